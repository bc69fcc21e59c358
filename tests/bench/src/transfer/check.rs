//! Is the copy equal to its source: the same files by name, each with the same BLAKE3 hash of all its bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Hash of each file, by its path below the folder.
pub type Hashes = BTreeMap<PathBuf, blake3::Hash>;

/// The regular files of a folder and of those in it, by their paths below it.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let place = folder.join(&below);
        for entry in std::fs::read_dir(&place).with_context(|| format!("reading {}", place.display()))? {
            let entry = entry?;
            let name = below.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_file() {
                files.push(name);
            }
        }
    }
    Ok(files)
}

/// Reads all of them.
pub fn hashes(folder: &Path) -> Result<Hashes> {
    let hash = |name: PathBuf| {
        let path = folder.join(&name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).with_context(|| format!("reading {}", path.display()))?;
        Ok((name, hasher.finalize()))
    };
    files(folder)?.into_iter().map(hash).collect()
}

/// What is wrong with a copy; nothing, if it is equal.
pub fn difference(source: &Hashes, copy: &Hashes) -> Option<String> {
    let wrong = source.iter().find(|(name, hash)| copy.get(*name) != Some(hash));
    let extra = copy.keys().find(|name| !source.contains_key(*name));
    match (wrong, extra) {
        (Some((name, _)), _) if copy.contains_key(name) => Some(format!("{} differs", name.display())),
        (Some((name, _)), _) => Some(format!("{} is missing", name.display())),
        (None, Some(name)) => Some(format!("{} is not in the source", name.display())),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_only_with_the_same_files_and_bytes() {
        let of = |files: &[(&str, &str)]| -> Hashes {
            files.iter().map(|(name, text)| (PathBuf::from(name), blake3::hash(text.as_bytes()))).collect()
        };
        let source = of(&[("a", "1"), ("b/c", "2")]);
        let told = |copy: &[(&str, &str)]| difference(&source, &of(copy));
        assert_eq!(told(&[("a", "1"), ("b/c", "2")]), None);
        assert_eq!(told(&[("a", "1"), ("b/c", "3")]).as_deref(), Some("b/c differs"));
        assert_eq!(told(&[("a", "1")]).as_deref(), Some("b/c is missing"));
        assert_eq!(told(&[("a", "1"), ("b/c", "2"), ("d", "")]).as_deref(), Some("d is not in the source"));
    }

    #[test]
    fn files_are_found_in_folders_of_folders() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("x/y")).expect("made");
        for name in ["a", "x/b", "x/y/c"] {
            std::fs::write(folder.path().join(name), name).expect("written");
        }
        let found = hashes(folder.path()).expect("read");
        let names: Vec<_> = found.keys().map(|name| name.display().to_string()).collect();
        assert_eq!(names, ["a", "x/b", "x/y/c"]);
        assert_eq!(found[Path::new("x/y/c")], blake3::hash(b"x/y/c"));
    }
}

//! What we promise to others, as committed files: a test fails when the code says something else than the file.
//!
//! With `SOMERSAULT_OVERWRITE=1` in the environment the tests write the files instead; the diff is then for a
//! person to judge before it is committed.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Set to `1`, it makes the tests write the committed files instead of comparing them.
pub const OVERWRITE: &str = "SOMERSAULT_OVERWRITE";

/// A file of the repository, by its path from the top.
pub fn repository_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Compares a committed file with what the code says now, or overwrites it.
///
/// # Panics
/// When they differ: this is an assertion.
pub fn assert_committed(path: &str, content: &str) -> io::Result<()> {
    let file = repository_file(path);
    if env::var_os(OVERWRITE).is_some_and(|value| value == "1") {
        return fs::write(file, content);
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    if let Some(difference) = first_difference(&committed, content) {
        panic!(
            "{path} is not what the code says; {difference}.\nIf the change is meant: {OVERWRITE}=1 cargo test -p \
             somersault-contract-tests, then look at the diff."
        );
    }
    Ok(())
}

/// The first line in which two texts differ, in words.
pub fn first_difference(committed: &str, content: &str) -> Option<String> {
    let (mut old, mut new) = (committed.lines(), content.lines());
    for number in 1.. {
        match (old.next(), new.next()) {
            (None, None) => break,
            (a, b) if a == b => {}
            (a, b) => {
                let show = |line: Option<&str>| line.map_or("nothing".to_owned(), |text| format!("`{text}`"));
                return Some(format!("line {number}: committed {}, code {}", show(a), show(b)));
            }
        }
    }
    (committed != content).then(|| "they differ in their line ends".to_owned())
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn says_where_two_texts_differ() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some("line 2: committed `b`, code `c`".into()));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some("line 2: committed nothing, code `b`".into()));
        assert_eq!(first_difference("a", "a\n"), Some("they differ in their line ends".into()));
    }
}

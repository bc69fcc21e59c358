//! Container images without a base image: one layer with static programs, in the archive format of
//! `docker save`, which every runtime imports.
//!
//! Format: <https://github.com/moby/docker-image-spec/blob/main/spec.md#combined-image-json--filesystem-changeset-format>

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

/// What is in an image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Name and tag, e.g. `docker.io/somersault/toolbox:1`.
    pub reference: String,
    /// Static program, on this machine.
    pub program: PathBuf,
    /// The program's name in `/`, and its other names.
    pub names: Vec<String>,
    /// Arguments when a pod gives none.
    pub default_arguments: Vec<String>,
}

impl Image {
    /// Writes the archive. The same input gives the same bytes.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let layer = self.layer().with_context(|| format!("packing {}", self.program.display()))?;
        let name = self.names.first().context("an image's program needs a name")?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": [format!("/{name}")], "Cmd": self.default_arguments, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
            "history": [{"created_by": "somersault-cluster"}],
        });
        let config = serde_json::to_vec(&config)?;
        let config_name = format!("{}.json", sha256(&config));
        let manifest =
            json!([{"Config": config_name, "RepoTags": [self.reference], "Layers": ["layer.tar"]}]);
        let unfinished = archive.with_extension("unfinished");
        let file = File::create(&unfinished).with_context(|| format!("creating {}", unfinished.display()))?;
        let mut tar = tar::Builder::new(file);
        append(&mut tar, &config_name, &config, 0o644)?;
        append(&mut tar, "layer.tar", &layer, 0o644)?;
        append(&mut tar, "manifest.json", &serde_json::to_vec(&manifest)?, 0o644)?;
        tar.into_inner().context("finishing an archive")?;
        std::fs::rename(&unfinished, archive).with_context(|| format!("naming {}", archive.display()))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let program = std::fs::read(&self.program)?;
        let (name, others) = self.names.split_first().context("an image's program needs a name")?;
        append(&mut tar, name, &program, 0o755)?;
        for other in others {
            let mut header = header(0, 0o755);
            header.set_entry_type(tar::EntryType::Link);
            tar.append_link(&mut header, other, name)?;
        }
        Ok(tar.into_inner()?)
    }
}

fn append<W: std::io::Write>(tar: &mut tar::Builder<W>, name: &str, content: &[u8], mode: u32) -> Result<()> {
    tar.append_data(&mut header(content.len() as u64, mode), name, content)
        .with_context(|| format!("packing {name}"))
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

/// As Go, and therefore every image, names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_gives_the_same_archive_and_its_layer_is_what_the_config_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("program");
        std::fs::write(&program, "a static program").expect("written");
        let image = Image {
            reference: "docker.io/somersault/test:1".to_owned(),
            program,
            names: vec!["tool".to_owned(), "other".to_owned()],
            default_arguments: vec!["pause".to_owned()],
        };
        let archives = ["one.tar", "two.tar"].map(|name| {
            let archive = folder.path().join(name);
            image.write(&archive).expect("packed");
            std::fs::read(archive).expect("read")
        });
        assert_eq!(archives[0], archives[1]);
        let layer = image.layer().expect("packed");
        let text = String::from_utf8_lossy(&archives[0]).into_owned();
        assert!(text.contains(&format!("sha256:{}", sha256(&layer))));
    }
}

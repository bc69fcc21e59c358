//! Writes the custom resource definitions into a folder, or checks that the folder has them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Parser;
use somersault_crd::generate;

/// Writes Somersault's custom resource definitions into a folder.
#[derive(Parser)]
struct Args {
    /// Write nothing; fail if a file of the folder differs from what would be written.
    #[arg(long)]
    check: bool,
    /// The folder, such as deploy/crds.
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if !args.check {
        fs::create_dir_all(&args.folder).with_context(|| format!("create {}", args.folder.display()))?;
    }
    let mut stale = Vec::new();
    for file in generate::files()? {
        let path = args.folder.join(&file.name);
        if !args.check {
            fs::write(&path, &file.content).with_context(|| format!("write {}", path.display()))?;
        } else if fs::read_to_string(&path).ok().as_deref() != Some(file.content.as_str()) {
            stale.push(path.display().to_string());
        }
    }
    if !stale.is_empty() {
        bail!(
            "differs from the code: {}; run crdgen without --check and commit the result",
            stale.join(", ")
        );
    }
    Ok(())
}

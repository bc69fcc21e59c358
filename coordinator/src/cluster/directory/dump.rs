//! A dump of a cluster, read once and offline: what would happen to my VMs if this node died?

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files;
use super::store::{Objects, Store, io_error};
use crate::cluster::{ClusterError, Snapshot, manifest};

/// Reads a dump into a snapshot; see [`read_objects`].
pub fn read_dump(path: &Path) -> Result<Snapshot, ClusterError> {
    Ok(snapshot(&read_objects(path)?))
}

/// Reads a file (YAML or JSON, by what it starts with), a folder, or standard input (`-`). Manifests that cannot
/// be read are listed in the snapshot's problems; only a path that cannot be read at all is an error.
pub fn read_objects(path: &Path) -> Result<Objects, ClusterError> {
    if path == Path::new("-") {
        let text = files::read_limited(io::stdin().lock()).map_err(|e| io_error(Path::new("stdin"), e))?;
        Ok(one_file(Path::new("stdin"), &text))
    } else if path.is_dir() {
        Store::open(path)?.objects()
    } else {
        let real = path.canonicalize().map_err(|e| io_error(path, e))?;
        let (text, _) = files::read_file(&real).map_err(|e| io_error(path, e))?;
        Ok(one_file(path, &text))
    }
}

/// The snapshot of these objects.
pub fn snapshot(objects: &Objects) -> Snapshot {
    let mut inventory = manifest::Inventory::default();
    for (path, entry) in objects.iter() {
        inventory.add(&path.display().to_string(), entry.document, &entry.id, &entry.value);
    }
    let mut snapshot = inventory.snapshot();
    snapshot.problems.extend(objects.problems());
    snapshot.problems.sort();
    snapshot
}

fn one_file(path: &Path, text: &str) -> Objects {
    // What `kubectl get -o json` prints is no document stream, and its parser is the stricter one.
    let json = text.trim_start().starts_with('{');
    let name = path.file_name().map_or_else(|| path.to_owned(), PathBuf::from);
    Objects::from_files(vec![(name, Arc::new(files::parse(text, json)))])
}

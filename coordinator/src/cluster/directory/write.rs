//! Durable changes of the folder's files: one document changes, the bytes of all others stay.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::files;
use super::store::io_error;
use crate::cluster::ClusterError;
use crate::cluster::error::refused;
use crate::cluster::manifest::{GROUP, ObjectId};
use crate::cluster::stamp::now_seconds;

/// Ends the name of a file that is not complete yet; begun by a dot, so that no reader looks at it.
const TEMPORARY: &str = ".tmp";
/// Folders in folders that leftovers are looked for in; the same bound as for manifests.
const DEPTH_MAX: usize = 16;

/// Gives a new object what the API server would: identity, time and version.
pub(super) fn stamp_new(object: &mut Value, id: &ObjectId, uid: &str) {
    let meta = &mut object["metadata"];
    if !id.namespace.is_empty() {
        meta["namespace"] = json!(id.namespace);
    }
    meta["uid"] = json!(uid);
    meta["creationTimestamp"] = json!(now_seconds());
    meta["resourceVersion"] = json!("1");
    if object["spec"].is_object() {
        object["metadata"]["generation"] = json!(1);
    }
}

/// Counts `resourceVersion` up, and `generation` where the spec changed; identity cannot be changed.
pub(super) fn stamp_changed(old: &Value, new: &mut Value) {
    let version = old["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok());
    new["metadata"]["resourceVersion"] = json!(version.unwrap_or(0).saturating_add(1).to_string());
    for field in ["uid", "creationTimestamp", "generation"] {
        match old["metadata"].get(field) {
            Some(value) => new["metadata"][field] = value.clone(),
            None => {
                new["metadata"].as_object_mut().map(|meta| meta.remove(field));
            }
        }
    }
    if old["spec"] != new["spec"] {
        let generation = old["metadata"]["generation"].as_u64().unwrap_or(0);
        new["metadata"]["generation"] = json!(generation.saturating_add(1));
    }
}

/// Writes a new object to a file of its own.
pub(super) fn create(root: &Path, id: &ObjectId, object: &Value) -> Result<(), ClusterError> {
    let path = root.join(home(object, id));
    let folder = path.parent().unwrap_or(root);
    create_folders(root, folder).map_err(|e| io_error(folder, e))?;
    if path.exists() {
        // The object is not in it, or we would not be here: somebody else's file, which we must not lose.
        return Err(refused(&id.to_string(), format!("{} is in its way; move it", path.display())));
    }
    let text = to_yaml(object).map_err(|why| refused(&id.to_string(), why))?;
    replace_file(&path, text.as_bytes()).map_err(|e| io_error(&path, e))
}

/// Where a new object's file goes, relative to the folder.
fn home(object: &Value, id: &ObjectId) -> PathBuf {
    let ours = object["apiVersion"].as_str().is_some_and(|api| api.starts_with(GROUP));
    let kind = id.kind.replace('/', "_").to_lowercase();
    let folder = match (ours, id.kind.as_str()) {
        (true, _) => Path::new("somersault").join(kind),
        (false, "Event") => PathBuf::from("events"),
        (false, _) => Path::new("created").join(kind),
    };
    let file = match id.namespace.as_str() {
        "" => format!("{}.yaml", id.name),
        namespace => format!("{namespace}_{}.yaml", id.name),
    };
    folder.join(file)
}

fn create_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let new = folder.ancestors().skip(1).take_while(|above| above.starts_with(root));
    new.for_each(|above| _ = files::sync_folder(above));
    Ok(())
}

/// Replaces an object in its document, or removes it (`None`); the other documents keep their bytes. The file
/// goes when its last object does.
pub(super) fn replace(
    path: &Path,
    id: &ObjectId,
    number: usize,
    object: Option<&Value>,
) -> Result<(), ClusterError> {
    let (text, _) = files::read_file(path).map_err(|e| io_error(path, e))?;
    let json = path.extension().is_some_and(|ext| ext == "json");
    let documents = files::split(&text, json);
    let target =
        files::numbered(&documents).find(|(found, _)| *found == number).map(|(_, document)| *document);
    let target = target.ok_or_else(|| changed_meanwhile(id, path))?;
    let value = files::parse_document(&target, json).map_err(|_| changed_meanwhile(id, path))?;
    let changed = change_document(value, id, object).ok_or_else(|| changed_meanwhile(id, path))?;
    let others = documents.iter().any(|document| document.has_content && *document != target);
    let result = match changed {
        None if !others => fs::remove_file(path).and_then(|()| sync_parent(path)),
        changed => {
            let mut out = String::with_capacity(text.len());
            for document in &documents {
                match (*document == target, &changed) {
                    (false, _) => out.push_str(document.text),
                    (true, None) => {}
                    (true, Some(value)) => out.push_str(&render(value, document.text, id, json)?),
                }
            }
            replace_file(path, out.as_bytes())
        }
    };
    result.map_err(|e| io_error(path, e))
}

fn render(value: &Value, old: &str, id: &ObjectId, json: bool) -> Result<String, ClusterError> {
    if json {
        let text = serde_json::to_string_pretty(value);
        return text.map(|text| text + "\n").map_err(|e| refused(&id.to_string(), e.to_string()));
    }
    let text = to_yaml(value).map_err(|why| refused(&id.to_string(), why))?;
    Ok(if old.starts_with("---") { format!("---\n{text}") } else { text })
}

/// The document with the object replaced or removed; `Some(None)` when nothing is left of it, `None` when the
/// object is not in it.
#[expect(clippy::option_option, reason = "not found, empty and changed are three different ends")]
fn change_document(mut value: Value, id: &ObjectId, object: Option<&Value>) -> Option<Option<Value>> {
    if !files::is_list(&value) {
        let is_it = ObjectId::of(&value).is_ok_and(|found| found == *id);
        return is_it.then(|| object.cloned());
    }
    let (api_version, kind) = files::list_type(&value);
    let items = value["items"].as_array_mut()?;
    let position = items.iter().position(|item| {
        let mut item = item.clone();
        files::complete_item(&mut item, &api_version, &kind);
        ObjectId::of(&item).is_ok_and(|found| found == *id)
    })?;
    match object {
        Some(object) => items[position] = object.clone(),
        None => {
            items.remove(position);
        }
    }
    Some((!items.is_empty()).then_some(value))
}

fn changed_meanwhile(id: &ObjectId, path: &Path) -> ClusterError {
    let why = format!("{} was edited without the lock at this moment; try again", path.display());
    ClusterError::Conflict { object: id.to_string(), why }
}

fn to_yaml(object: &Value) -> Result<String, String> {
    let mut text = serde_saphyr::to_string(object).map_err(|e| format!("cannot be written as YAML: {e}"))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Replaces a file: a reader sees the old bytes or the new ones, also after a power cut.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!(".{name}.{}.{count}{TEMPORARY}", std::process::id()));
    let written = write_new(&temporary, bytes, path).and_then(|()| fs::rename(&temporary, path));
    if let Err(e) = written {
        // Best effort: a leftover is hidden, and is removed at the next start.
        _ = fs::remove_file(&temporary);
        return Err(e);
    }
    sync_parent(path)
}

fn write_new(temporary: &Path, bytes: &[u8], replaces: &Path) -> io::Result<()> {
    // A dead process with our id may have left one of this name; under the lock nobody else uses it.
    match fs::remove_file(temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(temporary)?;
    file.write_all(bytes)?;
    if let Ok(meta) = fs::metadata(replaces) {
        file.set_permissions(meta.permissions())?;
    }
    file.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), files::sync_folder)
}

/// Removes temporary files below the folder; only under the lock.
pub(super) fn remove_leftovers(root: &Path) -> Result<(), ClusterError> {
    remove_leftovers_in(root, 0).map_err(|e| io_error(root, e))
}

fn remove_leftovers_in(folder: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() && depth < DEPTH_MAX {
            remove_leftovers_in(&entry.path(), depth + 1)?;
        } else if entry.file_type()?.is_file() && name.starts_with('.') && name.ends_with(TEMPORARY) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Strings that YAML would take for something else, were they not quoted.
    const TRAPS: [&str; 24] = [
        "",
        "~",
        "null",
        "true",
        "no",
        "on",
        "y",
        "0x1F",
        "0o17",
        "017",
        "1e3",
        "1_000",
        ".inf",
        "1.10",
        "-",
        "- a",
        "a: b",
        "#c",
        "a #b",
        "---",
        "...",
        "@a",
        "2026-03-02",
        " padded ",
    ];

    fn read_back(value: &Value) -> Value {
        let text = to_yaml(value).unwrap();
        let documents = files::split(&text, false);
        assert_eq!(documents.len(), 1, "{text}");
        files::parse_document(&documents[0], false).unwrap_or_else(|e| panic!("{e}:\n{text}"))
    }

    #[test]
    fn every_trap_is_quoted() {
        for trap in TRAPS {
            let value = json!({ "value": trap, trap: [trap, { trap: trap }] });
            assert_eq!(read_back(&value), value, "{trap:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_back_as_it_was(text in any::<String>(), key in "[ -~]{0,20}") {
            let value = json!({ "value": text, "list": [text, [], {}, null, 1, -2.5, true], key: text });
            prop_assert_eq!(read_back(&value), value);
        }

        #[test]
        fn any_lines_are_read_back_as_they_were(text in "[ \\t\\n#:a\\-|>'\"]{0,40}") {
            let value = json!({ "metadata": { "annotations": { "text": text } }, "after": 1 });
            prop_assert_eq!(read_back(&value), value);
        }
    }
}

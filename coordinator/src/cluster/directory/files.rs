//! Files of the cluster's folder: which ones count, how they fall into documents, and what objects are in them.
//!
//! ```text
//!   folder ──► *.yaml|*.yml|*.json, nested, no symlinks ──► documents at "---" ──► List items ──► objects
//! ```
//!
//! A file is split into documents before it is parsed, so that one broken document spoils no other, and so
//! that a change of one document leaves the bytes of the others as they were. Content is hostile: files,
//! documents, depth, and the expansion of aliases have limits.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;
use serde_json::Value;

use crate::cluster::manifest::ObjectId;

/// A dump of ten thousand VMs with their pods is about 50 MB; a larger file is a mistake or an attack.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Documents of one file; larger clusters are dumped as one List.
pub const DOCUMENTS_MAX: usize = 10_000;
/// Files of a folder; each is looked at on every read.
pub const FILES_MAX: usize = 50_000;
/// Folders in folders.
const DEPTH_MAX: usize = 16;
/// What aliases (`*name`) may add to a document: hand-written manifests repeat a block or two, `kubectl` none.
const ALIAS_EVENTS_MAX: usize = 10_000;

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Which object.
    pub id: ObjectId,
    /// Document of the file, from 1.
    pub document: usize,
    /// The object.
    pub value: Value,
}

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Document of the file, from 1; 0 where the file as a whole is meant.
    pub document: usize,
    /// `Kind namespace/name`, where it could be read.
    pub object: String,
    /// What is wrong.
    pub message: String,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// Its objects, in their order.
    pub entries: Vec<Entry>,
    /// Documents that could not be read.
    pub faults: Vec<Fault>,
}

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Its text, with the separator line above it. All texts of a file, in order, are the file.
    pub text: &'a str,
    /// Lines of the file above it.
    pub lines_above: usize,
    /// It has more than blank lines, comments and separators.
    pub has_content: bool,
}

/// How long a change may hide behind an equal signature: the kernel stamps files by its tick, which is 10 ms at
/// most; doubled twice for slow filesystems.
const STAMP_GRAIN: Duration = Duration::from_millis(40);

/// Identity of a file's content without reading it. Inodes are used again and stamps are coarse, so that it says
/// something only about a file that [`Signature::is_settled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    /// The signature of these metadata.
    pub fn of(meta: &fs::Metadata) -> Self {
        Self {
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Whether the last change is long enough past `now` that another one would have another stamp.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanos) = self.changed;
        let since_epoch = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok());
        let changed = since_epoch.map(|(s, ns)| SystemTime::UNIX_EPOCH + Duration::new(s, ns));
        changed.and_then(|changed| now.duration_since(changed).ok()).is_some_and(|age| age > STAMP_GRAIN)
    }
}

/// Whether a file of this name holds manifests. Hidden names are ours: locks, counters, unfinished writes.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json")
}

/// What is below a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// Every manifest file, sorted by path, with its signature.
    pub files: Vec<(PathBuf, Signature)>,
    /// Folders that could not be looked into, and why.
    pub faults: Vec<(PathBuf, String)>,
    /// There are more files than are read.
    is_cut: bool,
}

/// Which folder a path leads to, whatever its name: device and inode.
pub fn identity(folder: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(folder)?;
    Ok((meta.dev(), meta.ino()))
}

/// Every manifest file below `root`. Only a root that cannot be read is an error.
pub fn walk(root: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    listing.look_into(root, 0)?;
    if listing.is_cut {
        let message = format!("more than {FILES_MAX} manifest files; the rest is not read");
        listing.faults.push((root.to_owned(), message));
    }
    listing.files.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(listing)
}

impl Listing {
    fn look_into(&mut self, folder: &Path, depth: usize) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            match self.take(&entry, depth) {
                // What went away while we looked is no trouble.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => self.faults.push((entry.path(), format!("cannot be read: {e}"))),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, entry: &fs::DirEntry, depth: usize) -> io::Result<()> {
        let path = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() && !entry.file_name().as_encoded_bytes().starts_with(b".") {
            if depth + 1 >= DEPTH_MAX {
                return Err(io::Error::other(format!("folders are nested more than {DEPTH_MAX} deep")));
            }
            self.look_into(&path, depth + 1)?;
        } else if kind.is_file() && is_manifest(&path) {
            if self.files.len() < FILES_MAX {
                self.files.push((path, Signature::of(&entry.metadata()?)));
            } else {
                self.is_cut = true;
            }
        }
        Ok(())
    }
}

/// Reads a regular file of at most [`FILE_BYTES_MAX`] bytes; symlinks, pipes and devices are refused.
pub fn read_file(path: &Path) -> io::Result<(String, Signature)> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let text = read_limited(file)?;
    Ok((text, Signature::of(&meta)))
}

/// Reads at most [`FILE_BYTES_MAX`] bytes of UTF-8.
pub fn read_limited(reader: impl Read) -> io::Result<String> {
    let mut text = String::new();
    reader.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let limit = FILE_BYTES_MAX >> 20;
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {limit} MiB; split it into several files"),
        ));
    }
    Ok(text)
}

/// Flushes a folder, so that a rename in it survives a power cut.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Splits the text of a file into documents. JSON is one document.
pub fn split(text: &str, json: bool) -> Vec<Document<'_>> {
    if json {
        return vec![Document { text, lines_above: 0, has_content: !text.trim().is_empty() }];
    }
    let mut documents = Vec::new();
    let (mut start, mut at, mut line_number, mut lines_above) = (0, 0, 0, 0);
    let (mut separated, mut has_content) = (false, false);
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end();
        let separator = is_separator(bare);
        // Directives and comments above the first separator belong to the document below it.
        if separator && (separated || has_content) {
            documents.push(Document { text: &text[start..at], lines_above, has_content });
            (start, lines_above, has_content) = (at, line_number, false);
        }
        separated |= separator;
        let rest = if separator { bare[3..].trim_start() } else { bare.trim_start() };
        has_content |= !(rest.is_empty() || rest.starts_with('#') || bare.starts_with('%') || bare == "...");
        at += line.len();
        line_number += 1;
    }
    if start < text.len() {
        documents.push(Document { text: &text[start..], lines_above, has_content });
    }
    documents
}

/// `---` at the start of a line, alone or followed by a blank: a separator wherever it stands, by the rules of
/// YAML (it is forbidden inside scalars).
fn is_separator(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

/// Parses the text of a file into objects; what cannot be read becomes a fault, the rest goes on.
pub fn parse(text: &str, json: bool) -> Contents {
    let mut contents = Contents::default();
    let documents = split(text, json);
    for (number, document) in numbered(&documents) {
        if number > DOCUMENTS_MAX {
            let message = format!("more than {DOCUMENTS_MAX} documents; the rest of the file is not read");
            contents.faults.push(Fault { document: 0, object: String::new(), message });
            break;
        }
        match parse_document(document, json) {
            Ok(value) => flatten(value, number, &mut contents),
            Err(message) => {
                contents.faults.push(Fault { document: number, object: String::new(), message });
            }
        }
    }
    contents
}

/// The documents with content, counted from 1.
pub fn numbered<'d, 'a>(
    documents: &'d [Document<'a>],
) -> impl Iterator<Item = (usize, &'d Document<'a>)> + use<'d, 'a> {
    documents.iter().filter(|document| document.has_content).enumerate().map(|(index, doc)| (index + 1, doc))
}

/// Parses one document; the error names line and column of the file.
pub fn parse_document(document: &Document<'_>, json: bool) -> Result<Value, String> {
    if json {
        return serde_json::from_str(document.text).map_err(|e| format!("not valid JSON: {e}"));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(usize::try_from(FILE_BYTES_MAX).unwrap_or(usize::MAX)),
            max_documents: 2,
            // About one event per three bytes at the densest; the file's size is the limit that counts.
            max_events: usize::try_from(FILE_BYTES_MAX / 3).unwrap_or(usize::MAX),
            max_nodes: usize::try_from(FILE_BYTES_MAX / 3).unwrap_or(usize::MAX),
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: ALIAS_EVENTS_MAX },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(document.text, options).map_err(|e| {
        let text = e.without_snippet().to_string();
        let cause = text.lines().next().unwrap_or_default();
        match e.location() {
            Some(at) => {
                let line = at.line() + document.lines_above as u64;
                format!("not valid YAML at line {line}, column {}: {cause}", at.column())
            }
            None => format!("not valid YAML: {cause}"),
        }
    })
}

/// Takes the objects out of a document, which is one object or a List of them.
fn flatten(value: Value, document: usize, contents: &mut Contents) {
    if value.is_null() {
        return;
    }
    let Some(mut list) = as_list(value, document, contents) else { return };
    let (api_version, item_kind) = list_type(&list);
    let Some(Value::Array(items)) = list.get_mut("items").map(Value::take) else { return };
    for (index, mut item) in items.into_iter().enumerate() {
        complete_item(&mut item, &api_version, &item_kind);
        match ObjectId::of(&item) {
            Ok(id) => contents.entries.push(Entry { id, document, value: item }),
            Err(message) => contents.faults.push(Fault {
                document,
                object: ObjectId::describe(&item),
                message: format!("items[{index}]: {message}"),
            }),
        }
    }
}

/// Returns the document when it is a List; otherwise keeps it as the one object that it is.
fn as_list(value: Value, document: usize, contents: &mut Contents) -> Option<Value> {
    if is_list(&value) {
        return Some(value);
    }
    match ObjectId::of(&value) {
        Ok(id) => contents.entries.push(Entry { id, document, value }),
        Err(message) => {
            contents.faults.push(Fault { document, object: ObjectId::describe(&value), message });
        }
    }
    None
}

/// Whether a document is a `List` (or `NodeList`, …) of objects.
pub fn is_list(value: &Value) -> bool {
    value["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) && value["items"].is_array()
}

/// `apiVersion` and kind of a typed list's items, which do not repeat them; empty for a plain `List`.
pub fn list_type(list: &Value) -> (String, String) {
    let kind = list["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).unwrap_or_default();
    (list["apiVersion"].as_str().unwrap_or_default().to_owned(), kind.to_owned())
}

/// Gives an item of a typed list its type.
pub fn complete_item(item: &mut Value, api_version: &str, kind: &str) {
    if let Value::Object(fields) = item
        && !kind.is_empty()
        && !fields.contains_key("kind")
    {
        fields.insert("kind".to_owned(), Value::from(kind));
        fields.insert("apiVersion".to_owned(), Value::from(api_version));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(text: &str) -> Vec<(&str, usize, bool)> {
        split(text, false).into_iter().map(|d| (d.text, d.lines_above, d.has_content)).collect()
    }

    #[test]
    fn splits_at_separators_only() {
        assert_eq!(texts("a: 1\n"), [("a: 1\n", 0, true)]);
        assert_eq!(texts("---\na: 1\n---\nb: 2"), [("---\na: 1\n", 0, true), ("---\nb: 2", 2, true)]);
        assert_eq!(texts("# head\n%YAML 1.2\n---\na: 1\n").len(), 1);
        assert_eq!(
            texts("--- {a: 1}\n---\t# none\n"),
            [("--- {a: 1}\n", 0, true), ("---\t# none\n", 1, false)]
        );
        assert_eq!(texts("a: |\n  x\n ---\n---b: 1\n----\n").len(), 1);
        assert_eq!(texts("a: 1\r\n---\r\nb: 2\r\n").len(), 2);
        assert_eq!(texts(""), []);
    }

    #[test]
    fn documents_without_content_are_not_counted() {
        let text = "# licence\n---\n# nothing\n---\na: 1\n...\n---\n---\nb: 2\n";
        let documents = split(text, false);
        let counted: Vec<_> =
            numbered(&documents).map(|(number, document)| (number, document.text)).collect();
        assert_eq!(counted, [(1, "---\na: 1\n...\n"), (2, "---\nb: 2\n")]);
    }

    #[test]
    fn a_stamp_settles_with_time() {
        let stamp = SystemTime::UNIX_EPOCH + Duration::new(1_000, 5);
        let signature = Signature { inode: 1, size: 1, modified: (0, 0), changed: (1_000, 5) };
        assert!(!signature.is_settled(stamp));
        assert!(!signature.is_settled(stamp - Duration::from_secs(9)), "from the future");
        assert!(signature.is_settled(stamp + 2 * STAMP_GRAIN));
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_in_splitting(text in "(---|[a: #%.\\-]|\n|\r\n|\t|é){0,60}") {
            let documents = split(&text, false);
            prop_assert_eq!(documents.iter().map(|d| d.text).collect::<String>(), text.clone());
            for document in &documents {
                let above = &text[..document.text.as_ptr() as usize - text.as_ptr() as usize];
                prop_assert_eq!(above.matches('\n').count(), document.lines_above);
            }
        }

        #[test]
        fn parsing_never_panics(text in "(---|[a-c:#%&*!|>{}\\[\\]'\",. \\-]|\n){0,80}") {
            parse(&text, false);
            parse(&text, true);
        }
    }
}

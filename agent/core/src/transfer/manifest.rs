//! What a volume holds, by the word of its source, which may lie.
//!
//! A [`Manifest`] exists only after the checks: every path stays below the volume, every parent is a folder of
//! the list, sizes and ranges are possible. Nothing behind it needs to doubt them again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::packed::Packed;
use super::{
    ATTRIBUTES, MAX_ATTRIBUTE_BYTES, MAX_DEPTH, MAX_ENTRIES, MAX_FILE_BYTES, MAX_PATH_BYTES, MAX_PATHS_BYTES,
    MAX_RANGES, MAX_VOLUME_BYTES, chunk_count, span_bytes,
};

/// The checked list of a volume's files, folders, links and pipes. It is packed: an [`Entry`] is made of it when it is asked for.
/// A clone costs nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    identity: [u8; 32],
    list: Arc<List>,
}

/// Entries as they are kept.
#[derive(Debug, Default, PartialEq, Eq)]
struct List {
    entries: Packed<Record>,
    /// Of entries with more ranges than are packed with them, all ranges: they are looked up for each chunk.
    ranges: BTreeMap<usize, Arc<[Range<u64>]>>,
    data_bytes: u64,
}

/// An entry as it is packed. The path comes first, see [`Packed::key`].
type Record = (Vec<u8>, Kind, u64, Metadata, Vec<Range<u64>>, Option<Box<Extra>>);

/// Ranges that are packed with their entry: small files have one, and unpacking a few costs little.
const PACKED_RANGES_MAX: usize = 4;

/// Takes a list entry by entry, and checks it.
#[derive(Debug, Default)]
pub struct Lister {
    list: List,
    ranges: usize,
    attribute_bytes: usize,
    path_bytes: usize,
    total_bytes: u64,
}

/// One name in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the volume, empty for the volume's own folder.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Apparent size; 0 for all but a regular file.
    pub size_bytes: u64,
    /// What else is kept.
    pub metadata: Metadata,
    /// Chunks that may hold data, in order; the others are holes.
    pub data: Arc<[Range<u64>]>,
    /// What few have.
    pub extra: Option<Box<Extra>>,
}

/// What few entries have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extra {
    /// What a symbolic link says; of a further name the path of the file, which is in the list before it.
    pub target: Vec<u8>,
    /// Extended attributes, of files and folders: ACLs and capabilities among them.
    pub attributes: Attributes,
}

impl Extra {
    /// `None` where there is nothing of it.
    pub fn of(target: Vec<u8>, attributes: Attributes) -> Option<Box<Self>> {
        let any = !target.is_empty() || !attributes.is_empty();
        any.then(|| Box::new(Self { target, attributes }))
    }
}

/// Extended attributes by their names.
pub type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    Regular,
    /// A folder.
    Folder,
    /// A symbolic link, which nobody follows.
    Symlink,
    /// A named pipe.
    Pipe,
    /// A further name of a regular file: owner, permissions, time and content are that one's.
    Link,
}

impl Kind {
    /// As it enters the root.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Regular => 0,
            Self::Folder => 1,
            Self::Symlink => 2,
            Self::Pipe => 3,
            Self::Link => 4,
        }
    }
}

/// Owner, permissions and time of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Permission bits with set-id and sticky bits, no type.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime_s: i64,
    /// Nanoseconds of it.
    pub mtime_ns: u32,
}

/// What is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Too many entries or ranges.
    #[error("{what}: {count}, at most {limit} are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A path that is not a plain name below the volume.
    #[error("path {path:?}: {why}")]
    Path {
        /// The path, escaped.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A field of an entry is impossible.
    #[error("{field} of {path:?}: {why}")]
    Entry {
        /// The path, escaped.
        path: String,
        /// Which field.
        field: &'static str,
        /// What is wrong.
        why: &'static str,
    },
}

impl Lister {
    /// Takes the next one.
    pub fn push(&mut self, entry: &Entry) -> Result<(), ManifestError> {
        let limit = |what, count, limit| {
            if count > limit { Err(ManifestError::TooMany { what, count, limit }) } else { Ok(()) }
        };
        let index = self.list.entries.len();
        limit("entries", index + 1, MAX_ENTRIES)?;
        self.path_bytes += entry.path.len() + entry.target().len();
        limit("bytes of paths", self.path_bytes, MAX_PATHS_BYTES)?;
        let attributes = entry.attributes().iter();
        self.attribute_bytes += attributes.map(|(name, value)| name.len() + value.len()).sum::<usize>();
        limit("bytes of attributes", self.attribute_bytes, MAX_ATTRIBUTE_BYTES)?;
        self.ranges += entry.data.len();
        limit("data ranges", self.ranges, MAX_RANGES)?;
        match index.checked_sub(1).and_then(|last| self.list.entries.key(last)) {
            None if entry.path.is_empty() && entry.kind == Kind::Folder => {}
            None => return Err(not_the_folder()),
            Some(last) => {
                check_path(&entry.path)?;
                if last >= entry.path.as_slice() {
                    return Err(path_error(&entry.path, "out of order or named twice"));
                }
                self.list.check_parent(&entry.path)?;
            }
        }
        check_entry(entry)?;
        self.list.check_extra(entry)?;
        // Each size is below 2^45 and there are at most 2^18 of them.
        self.total_bytes += entry.size_bytes;
        if self.total_bytes > MAX_VOLUME_BYTES {
            return Err(entry_error(entry, "size", "the volume is larger than any volume can be"));
        }
        self.list.push(entry);
        Ok(())
    }

    /// The list is complete. `identity` tells this state of the source from others.
    pub fn end(mut self, identity: [u8; 32]) -> Result<Manifest, ManifestError> {
        if self.list.entries.is_empty() {
            return Err(not_the_folder());
        }
        self.list.entries.shrink();
        Ok(Manifest { identity, list: Arc::new(self.list) })
    }
}

impl List {
    fn push(&mut self, entry: &Entry) {
        let Entry { path, kind, size_bytes, metadata, data, extra } = entry;
        let few = if data.len() <= PACKED_RANGES_MAX { &data[..] } else { &[] };
        if few.len() < data.len() {
            self.ranges.insert(self.entries.len(), data.clone());
        }
        self.data_bytes += entry.data_bytes();
        self.entries.push(&(path, kind, size_bytes, metadata, few, extra));
    }

    fn get(&self, index: usize) -> Option<Entry> {
        let (path, kind, size_bytes, metadata, few, extra) = self.entries.get(index)?;
        let data = self.ranges.get(&index).cloned().unwrap_or_else(|| few.into());
        Some(Entry { path, kind, size_bytes, metadata, data, extra })
    }

    fn kind_of(&self, path: &[u8]) -> Option<Kind> {
        self.get(self.entries.find(path)?).map(|entry| entry.kind)
    }

    fn check_parent(&self, path: &[u8]) -> Result<(), ManifestError> {
        let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&path[..0], |slash| &path[..slash]);
        match self.kind_of(parent) {
            Some(Kind::Folder) => Ok(()),
            Some(_) => Err(path_error(path, "below a file")),
            None => Err(path_error(path, "its folder is not in the list")),
        }
    }
}

impl Manifest {
    /// Checks a list. `identity` tells this state of the source from others.
    pub fn new(identity: [u8; 32], entries: impl IntoIterator<Item = Entry>) -> Result<Self, ManifestError> {
        let mut lister = Lister::default();
        entries.into_iter().try_for_each(|entry| lister.push(&entry))?;
        lister.end(identity)
    }

    /// Differs when any file's inode, size, owner, permissions or times do.
    pub fn identity(&self) -> [u8; 32] {
        self.identity
    }

    /// How many files and folders.
    pub fn len(&self) -> usize {
        self.list.entries.len()
    }

    /// Never: it has the volume's own folder.
    pub fn is_empty(&self) -> bool {
        self.list.entries.is_empty()
    }

    /// A file or folder.
    pub fn entry(&self, index: usize) -> Option<Entry> {
        self.list.get(index)
    }

    /// What has this path.
    pub fn kind_of(&self, path: &[u8]) -> Option<Kind> {
        self.list.kind_of(path)
    }

    /// The volume's own folder.
    pub fn folder(&self) -> Entry {
        self.entry(0).expect("a list begins with it")
    }

    /// Files and folders, parents first.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry> + DoubleEndedIterator + '_ {
        (0..self.len()).map(|index| self.entry(index).expect("within the list"))
    }

    /// Bytes that may be data, over all files.
    pub fn data_bytes(&self) -> u64 {
        self.list.data_bytes
    }
}

impl Entry {
    /// Number of chunks.
    pub fn chunks(&self) -> u64 {
        chunk_count(self.size_bytes)
    }

    /// Bytes that may be data.
    pub fn data_bytes(&self) -> u64 {
        self.data.iter().map(|range| span_bytes(self.size_bytes, range)).sum()
    }

    /// Whether the chunk may hold data.
    pub fn may_hold_data(&self, chunk: u64) -> bool {
        let behind = self.data.partition_point(|range| range.end <= chunk);
        self.data.get(behind).is_some_and(|range| range.start <= chunk)
    }

    /// What a link points to; empty for all else.
    pub fn target(&self) -> &[u8] {
        self.extra.as_ref().map_or(&[], |extra| &extra.target)
    }

    /// Its extended attributes.
    pub fn attributes(&self) -> &Attributes {
        static NONE: Attributes = Attributes::new();
        self.extra.as_ref().map_or(&NONE, |extra| &extra.attributes)
    }

    /// The path for people: escaped, since names are hostile to terminals too.
    pub fn display(&self) -> String {
        escape(&self.path)
    }
}

/// Refuses everything but plain names joined by single slashes.
pub fn check_path(path: &[u8]) -> Result<(), ManifestError> {
    if path.len() > MAX_PATH_BYTES {
        return Err(path_error(&path[..64], "longer than any path can be"));
    }
    if path.contains(&0) {
        return Err(path_error(path, "contains a null byte"));
    }
    let mut depth = 0;
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" => return Err(path_error(path, "an empty name: absolute, doubled or trailing slash")),
            b"." | b".." => return Err(path_error(path, "leaves the volume")),
            name if name.len() > 255 => return Err(path_error(path, "a name longer than 255 bytes")),
            _ => depth += 1,
        }
    }
    if depth > MAX_DEPTH {
        return Err(path_error(path, "deeper than folders may be nested"));
    }
    Ok(())
}

fn check_entry(entry: &Entry) -> Result<(), ManifestError> {
    if entry.metadata.mode & !0o7777 != 0 {
        return Err(entry_error(entry, "mode", "has other bits than permissions"));
    }
    if entry.metadata.mtime_ns >= 1_000_000_000 {
        return Err(entry_error(entry, "mtime_ns", "a second or more"));
    }
    if entry.kind != Kind::Regular && (entry.size_bytes != 0 || !entry.data.is_empty()) {
        return Err(entry_error(entry, "size", "only a regular file has content"));
    }
    if entry.size_bytes > MAX_FILE_BYTES {
        return Err(entry_error(entry, "size", "larger than any file can be"));
    }
    let mut end = 0;
    for range in entry.data.iter() {
        if range.start < end {
            return Err(entry_error(entry, "data", "ranges overlap or are out of order"));
        }
        if range.end <= range.start {
            return Err(entry_error(entry, "data", "an empty range"));
        }
        end = range.end;
    }
    if end > entry.chunks() {
        return Err(entry_error(entry, "data", "a range beyond the end of the file"));
    }
    Ok(())
}

impl List {
    /// A link that leads out of the volume is content like any other: it is written as it is, and nobody follows it. A further
    /// name is of a file of the list.
    fn check_extra(&self, entry: &Entry) -> Result<(), ManifestError> {
        let target = entry.target();
        match entry.kind {
            Kind::Symlink if target.is_empty() || target.contains(&0) || target.len() >= MAX_PATH_BYTES => {
                return Err(entry_error(entry, "target", "not what a symbolic link can say"));
            }
            Kind::Link if self.kind_of(target) != Some(Kind::Regular) => {
                let why = "a further name of a file that is not in the list before it";
                return Err(entry_error(entry, "target", why));
            }
            Kind::Symlink | Kind::Link => {}
            _ if !target.is_empty() => return Err(entry_error(entry, "target", "only links have one")),
            _ => {}
        }
        let may_have = matches!(entry.kind, Kind::Regular | Kind::Folder);
        for name in entry.attributes().keys() {
            if !may_have || !is_kept(name) {
                return Err(entry_error(entry, "attributes", "one that no copy keeps"));
            }
        }
        Ok(())
    }
}

/// Whether a copy keeps an extended attribute of this name.
pub fn is_kept(attribute: &[u8]) -> bool {
    let is_known = ATTRIBUTES.iter().any(|known| match known.strip_suffix(b"*") {
        Some(prefix) => attribute.len() > prefix.len() && attribute.starts_with(prefix),
        None => attribute == *known,
    });
    // XATTR_NAME_MAX of Linux is 255.
    is_known && !attribute.contains(&0) && attribute.len() <= 255
}

fn not_the_folder() -> ManifestError {
    path_error(b"", "the first entry is not the volume's own folder")
}

fn path_error(path: &[u8], why: &'static str) -> ManifestError {
    ManifestError::Path { path: escape(path), why }
}

fn entry_error(entry: &Entry, field: &'static str, why: &'static str) -> ManifestError {
    ManifestError::Entry { path: entry.display(), field, why }
}

/// For messages: printable ASCII stays, everything else becomes an escape; cut to a line's length.
fn escape(path: &[u8]) -> String {
    let shown = &path[..path.len().min(256)];
    shown.escape_ascii().to_string()
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // lists of ranges that happen to have one
pub(super) mod tests {
    use super::*;

    pub(in super::super) const METADATA: Metadata =
        Metadata { mode: 0o640, uid: 107, gid: 107, mtime_s: 1_700_000_000, mtime_ns: 5 };

    pub(in super::super) fn folder(path: &str) -> Entry {
        Entry {
            path: path.into(),
            kind: Kind::Folder,
            size_bytes: 0,
            metadata: METADATA,
            data: [].into(),
            extra: None,
        }
    }

    pub(in super::super) fn file(path: &str, size_bytes: u64, data: &[Range<u64>]) -> Entry {
        Entry {
            path: path.into(),
            kind: Kind::Regular,
            size_bytes,
            metadata: METADATA,
            data: data.into(),
            extra: None,
        }
    }

    fn linked(path: &str, kind: Kind, target: &str) -> Entry {
        let extra = Extra { target: target.into(), ..Extra::default() };
        Entry { kind, extra: Some(Box::new(extra)), ..file(path, 0, &[]) }
    }

    fn with_attribute(path: &str, name: &str) -> Entry {
        let attributes = [(name.into(), b"v".to_vec())].into();
        Entry { extra: Some(Box::new(Extra { attributes, ..Extra::default() })), ..file(path, 0, &[]) }
    }

    fn check(entries: Vec<Entry>) -> Result<Manifest, ManifestError> {
        Manifest::new([1; 32], entries)
    }

    #[test]
    fn a_plain_volume_passes() {
        let manifest = check(vec![
            folder(""),
            file("disk.img", 5 << 20, &[0..1, 3..5]),
            folder("sub"),
            file("sub-way", 1, &[0..1]),
            file("sub/x", 0, &[]),
        ])
        .expect("valid");
        assert_eq!(manifest.data_bytes(), (3 << 20) + 1);
        let disk = manifest.entry(1).expect("there");
        assert_eq!((0..6).filter(|chunk| disk.may_hold_data(*chunk)).collect::<Vec<_>>(), [0, 3, 4]);
    }

    #[test]
    fn hostile_paths_are_refused() {
        for path in ["..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", ".", "./a", "a/.", "a\0b"] {
            assert!(check_path(path.as_bytes()).is_err(), "{path:?}");
        }
        assert!(check_path(&[b'a'; 256]).is_err());
        assert!(check_path(&b"a/".repeat(3000)).is_err());
        assert!(check_path(&[b"a/".repeat(MAX_DEPTH), b"a".to_vec()].concat()).is_err());
        for path in ["..a", "...", "a b", "a\n", "\u{e9}"] {
            assert!(check_path(path.as_bytes()).is_ok(), "{path:?}");
        }
    }

    #[test]
    fn lists_that_cannot_be_are_refused() {
        let refused: Vec<(&str, Vec<Entry>)> = vec![
            ("nothing", vec![]),
            ("no root", vec![file("a", 0, &[])]),
            ("twice", vec![folder(""), file("a", 0, &[]), file("a", 0, &[])]),
            ("order", vec![folder(""), file("b", 0, &[]), file("a", 0, &[])]),
            ("no parent", vec![folder(""), file("a/b", 0, &[])]),
            ("below a file", vec![folder(""), file("a", 0, &[]), file("a/b", 0, &[])]),
            ("huge", vec![folder(""), file("a", u64::MAX, &[])]),
            ("beyond", vec![folder(""), file("a", 1, &[0..2])]),
            ("overlap", vec![folder(""), file("a", 9 << 20, &[0..2, 1..3])]),
            ("empty range", vec![folder(""), file("a", 9 << 20, &[2..2])]),
            #[allow(clippy::reversed_empty_ranges)] // what a hostile source may send
            ("negative", vec![folder(""), file("a", 9 << 20, &[4..2])]),
            ("a link to nothing", vec![folder(""), linked("a", Kind::Symlink, "")]),
            ("a link with a null byte", vec![folder(""), linked("a", Kind::Symlink, "x\0y")]),
            ("a name of nothing", vec![folder(""), linked("a", Kind::Link, "b")]),
            ("a name of what comes later", vec![folder(""), linked("a", Kind::Link, "b"), file("b", 0, &[])]),
            ("a name of a folder", vec![folder(""), folder("a"), linked("b", Kind::Link, "a")]),
            ("a name of a name", {
                vec![
                    folder(""),
                    file("a", 0, &[]),
                    linked("b", Kind::Link, "a"),
                    linked("c", Kind::Link, "b"),
                ]
            }),
            ("a name outside", vec![folder(""), file("a", 0, &[]), linked("b", Kind::Link, "../a")]),
            ("below a link", vec![folder(""), linked("a", Kind::Symlink, "x"), file("a/b", 0, &[])]),
            ("a file that is a link too", vec![folder(""), linked("a", Kind::Regular, "x")]),
            ("a label", vec![folder(""), with_attribute("a", "security.selinux")]),
            ("a bare prefix", vec![folder(""), with_attribute("a", "user.")]),
        ];
        for (name, entries) in refused {
            assert!(check(entries).is_err(), "{name}");
        }
        let kept = vec![
            folder(""),
            with_attribute("a", "user.x"),
            linked("b", Kind::Link, "a"),
            linked("c", Kind::Symlink, "/../x"),
        ];
        assert!(check(kept).is_ok());
        let full = |name: &str| file(name, MAX_FILE_BYTES, &[]);
        let many = ["a", "b", "c", "d"].map(full).to_vec();
        assert!(check([vec![folder("")], many.clone()].concat()).is_ok());
        assert!(check([vec![folder("")], many, vec![file("e", 1, &[])]].concat()).is_err());
        let mut odd = file("a", 0, &[]);
        odd.metadata.mode = 0o100_644;
        assert!(check(vec![folder(""), odd]).is_err());
    }

    #[test]
    fn names_are_bounded_in_all() {
        let name = |number: usize| file(&format!("{number:0255}"), 0, &[]);
        let most = MAX_PATHS_BYTES / 255;
        let list = |count| std::iter::once(folder("")).chain((0..count).map(name));
        assert_eq!(Manifest::new([1; 32], list(most)).expect("valid").len(), most + 1);
        let what = "bytes of paths";
        let refused = Manifest::new([1; 32], list(most + 1)).expect_err("too many");
        assert!(matches!(refused, ManifestError::TooMany { what: found, .. } if found == what));
    }

    #[test]
    fn many_ranges_are_kept_beside_the_list() {
        let ranges: Vec<Range<u64>> = (0..9).map(|at| 2 * at..2 * at + 1).collect();
        let manifest =
            check(vec![folder(""), file("a", 20 << 20, &ranges), file("b", 1, &[0..1])]).expect("valid");
        assert_eq!(&manifest.entry(1).expect("there").data[..], ranges);
        assert_eq!((&manifest.entry(2).expect("there").data[..], manifest.entry(3)), (&[0..1][..], None));
        assert_eq!(manifest.data_bytes(), (9 << 20) + 1);
    }
}

//! What a volume holds, by the word of its source, which may lie.
//!
//! A [`Manifest`] exists only after the checks: every path stays below the volume, every parent is a folder of
//! the list, sizes and ranges are possible. Nothing behind it needs to doubt them again.

use std::ops::Range;

use super::{
    MAX_DEPTH, MAX_ENTRIES, MAX_FILE_BYTES, MAX_PATH_BYTES, MAX_RANGES, MAX_VOLUME_BYTES, chunk_count,
    span_bytes,
};

/// The checked list of a volume's files and folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    identity: [u8; 32],
    entries: Vec<Entry>,
}

/// A file or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the volume, empty for the volume's own folder.
    pub path: Vec<u8>,
    /// Which of the two.
    pub kind: Kind,
    /// Apparent size; 0 for a folder.
    pub size_bytes: u64,
    /// What else is kept.
    pub metadata: Metadata,
    /// Chunks that may hold data, in order; the others are holes.
    pub data: Vec<Range<u64>>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    Regular,
    /// A folder.
    Folder,
}

/// Owner, permissions and time of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl Manifest {
    /// Checks a list. `identity` tells this state of the source from others.
    pub fn new(identity: [u8; 32], entries: Vec<Entry>) -> Result<Self, ManifestError> {
        let limit = |what, count, limit| {
            if count > limit { Err(ManifestError::TooMany { what, count, limit }) } else { Ok(()) }
        };
        limit("entries", entries.len(), MAX_ENTRIES)?;
        limit("data ranges", entries.iter().map(|entry| entry.data.len()).sum(), MAX_RANGES)?;
        match entries.first() {
            Some(root) if root.path.is_empty() && root.kind == Kind::Folder => {}
            _ => return Err(path_error(b"", "the first entry is not the volume's own folder")),
        }
        let mut total: u64 = 0;
        for (index, entry) in entries.iter().enumerate() {
            if index > 0 {
                check_path(&entry.path)?;
                if entries[index - 1].path >= entry.path {
                    return Err(path_error(&entry.path, "out of order or named twice"));
                }
                check_parent(&entries[..index], &entry.path)?;
            }
            check_entry(entry)?;
            // Each size is below 2^45 and there are at most 2^16 of them.
            total += entry.size_bytes;
            if total > MAX_VOLUME_BYTES {
                return Err(entry_error(entry, "size", "the volume is larger than any volume can be"));
            }
        }
        Ok(Self { identity, entries })
    }

    /// Differs when any file's inode, size, owner, permissions or times do.
    pub fn identity(&self) -> [u8; 32] {
        self.identity
    }

    /// Files and folders, parents first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Bytes that may be data, over all files.
    pub fn data_bytes(&self) -> u64 {
        self.entries.iter().map(Entry::data_bytes).sum()
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

fn check_parent(before: &[Entry], path: &[u8]) -> Result<(), ManifestError> {
    let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&path[..0], |slash| &path[..slash]);
    match before.binary_search_by(|entry| entry.path.as_slice().cmp(parent)) {
        Ok(found) if before[found].kind == Kind::Folder => Ok(()),
        Ok(_) => Err(path_error(path, "below a file")),
        Err(_) => Err(path_error(path, "its folder is not in the list")),
    }
}

fn check_entry(entry: &Entry) -> Result<(), ManifestError> {
    if entry.metadata.mode & !0o7777 != 0 {
        return Err(entry_error(entry, "mode", "has other bits than permissions"));
    }
    if entry.metadata.mtime_ns >= 1_000_000_000 {
        return Err(entry_error(entry, "mtime_ns", "a second or more"));
    }
    if entry.kind == Kind::Folder && (entry.size_bytes != 0 || !entry.data.is_empty()) {
        return Err(entry_error(entry, "size", "a folder with content"));
    }
    if entry.size_bytes > MAX_FILE_BYTES {
        return Err(entry_error(entry, "size", "larger than any file can be"));
    }
    let mut end = 0;
    for range in &entry.data {
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
        Entry { path: path.into(), kind: Kind::Folder, size_bytes: 0, metadata: METADATA, data: Vec::new() }
    }

    pub(in super::super) fn file(path: &str, size_bytes: u64, data: &[Range<u64>]) -> Entry {
        Entry { path: path.into(), kind: Kind::Regular, size_bytes, metadata: METADATA, data: data.to_vec() }
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
        let disk = &manifest.entries()[1];
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
        ];
        for (name, entries) in refused {
            assert!(check(entries).is_err(), "{name}");
        }
        let full = |name: &str| file(name, MAX_FILE_BYTES, &[]);
        let many = ["a", "b", "c", "d"].map(full).to_vec();
        assert!(check([vec![folder("")], many.clone()].concat()).is_ok());
        assert!(check([vec![folder("")], many, vec![file("e", 1, &[])]].concat()).is_err());
        let mut odd = file("a", 0, &[]);
        odd.metadata.mode = 0o100_644;
        assert!(check(vec![folder(""), odd]).is_err());
    }
}

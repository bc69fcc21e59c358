//! What a source tells of a volume. Every name, size and range is the source's word, and the source may lie.

use bytes::Bytes;

use super::{ModelError, each, hash, limits, required};
use crate::v1;

/// Size of a chunk: large enough that hashing and framing cost little, small enough to send again.
pub const CHUNK_BYTES: u32 = 1024 * 1024;
/// Largest file that ext4 can hold: 16 TiB with blocks of 4 KiB.
const FILE_BYTES_MAX: u64 = 16 << 40;
/// A hash fits, and so does any stamp that a source may choose instead.
const IDENTITY_BYTES_MAX: usize = 64;

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The volume's own folder first, then the rest in byte order of the path; each path once.
    pub files: Vec<File>,
    /// Identifies this state of the source.
    pub identity: Bytes,
}

/// What an entry is. Everything else is refused at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A folder.
    Folder,
}

/// One file or folder of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Relative to the volume, raw bytes; normal components only; empty for the volume's own folder.
    pub path: Bytes,
    /// What it is.
    pub kind: FileKind,
    /// Its size; 0 for folders.
    pub size_bytes: u64,
    /// Permission bits (at most `0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime_s: i64,
    /// Its nanoseconds, below 10^9.
    pub mtime_ns: u32,
    /// Where data may be: whole chunks, ascending, without overlap, within the file. The rest is a hole.
    pub data: Vec<Range>,
}

/// Some bytes of a file; never empty, and its end does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

impl Range {
    /// First byte behind it.
    pub fn end(self) -> u64 {
        self.offset + self.length
    }
}

/// Leaves of some chunks, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// Index of the first.
    pub first_chunk: u64,
    /// BLAKE3 of each.
    pub leaves: Vec<[u8; 32]>,
}

/// One chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its first byte in the file.
    pub offset: u64,
    /// What is there.
    pub content: ChunkContent,
    /// BLAKE3 of the content, as the source says; to be compared before writing.
    pub leaf: [u8; 32],
}

/// What a chunk holds: 1 to [`CHUNK_BYTES`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkContent {
    /// These bytes.
    Data(Bytes),
    /// So many zeroes.
    Zeroes(u32),
}

impl ChunkContent {
    /// How many bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(count) => u64::from(*count),
        }
    }
}

impl TryFrom<v1::Manifest> for Manifest {
    type Error = ModelError;

    fn try_from(wire: v1::Manifest) -> Result<Self, ModelError> {
        if wire.chunk_bytes != CHUNK_BYTES {
            let why = format!("{}, but this side knows chunks of {CHUNK_BYTES} bytes only", wire.chunk_bytes);
            return Err(ModelError::invalid("chunk_bytes", why));
        }
        if wire.identity.is_empty() {
            return Err(ModelError::Missing("identity".into()));
        }
        super::at_most("identity", wire.identity.len(), IDENTITY_BYTES_MAX)?;
        let files: Vec<File> = each("files", wire.files, limits::FILES_MAX)?;
        if files.first().is_none_or(|first| !first.path.is_empty()) {
            return Err(ModelError::invalid("files", "does not begin with the volume's own folder"));
        }
        if let Some(index) = files.windows(2).position(|pair| pair[0].path >= pair[1].path) {
            let field = format!("files[{}].path", index + 1);
            return Err(ModelError::invalid(&field, "is there twice, or not in byte order"));
        }
        Ok(Self { files, identity: wire.identity })
    }
}

impl From<Manifest> for v1::Manifest {
    fn from(manifest: Manifest) -> Self {
        Self {
            chunk_bytes: CHUNK_BYTES,
            files: manifest.files.into_iter().map(Into::into).collect(),
            identity: manifest.identity,
        }
    }
}

impl TryFrom<v1::File> for File {
    type Error = ModelError;

    fn try_from(wire: v1::File) -> Result<Self, ModelError> {
        let kind = match v1::FileKind::try_from(wire.kind) {
            Ok(v1::FileKind::Regular) => FileKind::Regular,
            Ok(v1::FileKind::Folder) => FileKind::Folder,
            Err(_) => return Err(ModelError::invalid("kind", format!("{} is no kind of file", wire.kind))),
        };
        check_inner_path(&wire.path, kind)?;
        let size_max = if kind == FileKind::Folder { 0 } else { FILE_BYTES_MAX };
        if wire.size_bytes > size_max {
            return Err(ModelError::invalid(
                "size_bytes",
                format!("{}, at most {size_max}", wire.size_bytes),
            ));
        }
        if wire.mode > 0o7777 {
            return Err(ModelError::invalid("mode", format!("{:#o} has bits beyond 0o7777", wire.mode)));
        }
        if wire.mtime_ns >= 1_000_000_000 {
            return Err(ModelError::invalid("mtime_ns", format!("{} is a second or more", wire.mtime_ns)));
        }
        let data: Vec<Range> = each("data", wire.data, limits::RANGES_MAX)?;
        check_data(&data, wire.size_bytes)?;
        Ok(Self {
            path: wire.path,
            kind,
            size_bytes: wire.size_bytes,
            mode: wire.mode,
            uid: wire.uid,
            gid: wire.gid,
            mtime_s: wire.mtime_s,
            mtime_ns: wire.mtime_ns,
            data,
        })
    }
}

impl From<File> for v1::File {
    fn from(file: File) -> Self {
        let kind = match file.kind {
            FileKind::Regular => v1::FileKind::Regular,
            FileKind::Folder => v1::FileKind::Folder,
        };
        Self {
            path: file.path,
            kind: kind.into(),
            size_bytes: file.size_bytes,
            mode: file.mode,
            uid: file.uid,
            gid: file.gid,
            mtime_s: file.mtime_s,
            mtime_ns: file.mtime_ns,
            data: file.data.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Range> for Range {
    type Error = ModelError;

    fn try_from(wire: v1::Range) -> Result<Self, ModelError> {
        if wire.length == 0 {
            return Err(ModelError::Missing("length".into()));
        }
        if wire.offset.checked_add(wire.length).is_none() {
            return Err(ModelError::invalid("length", "the end of the range overflows"));
        }
        Ok(Self { offset: wire.offset, length: wire.length })
    }
}

impl From<Range> for v1::Range {
    fn from(range: Range) -> Self {
        Self { offset: range.offset, length: range.length }
    }
}

impl TryFrom<v1::Hashes> for Hashes {
    type Error = ModelError;

    fn try_from(wire: v1::Hashes) -> Result<Self, ModelError> {
        let (leaves, rest) = wire.leaves.as_chunks::<32>();
        if leaves.is_empty() || !rest.is_empty() {
            let why = format!("{} bytes are not one or more hashes of 32", wire.leaves.len());
            return Err(ModelError::invalid("leaves", why));
        }
        Ok(Self { first_chunk: wire.first_chunk, leaves: leaves.to_vec() })
    }
}

impl From<Hashes> for v1::Hashes {
    fn from(hashes: Hashes) -> Self {
        Self { first_chunk: hashes.first_chunk, leaves: hashes.leaves.concat().into() }
    }
}

impl TryFrom<v1::Chunk> for Chunk {
    type Error = ModelError;

    fn try_from(wire: v1::Chunk) -> Result<Self, ModelError> {
        use v1::chunk::Content;
        let (field, length) = match required("content", wire.content.as_ref())? {
            Content::Data(data) => ("data", data.len() as u64),
            Content::Zeroes(count) => ("zeroes", *count),
        };
        let fitting = u32::try_from(length).ok().filter(|length| (1..=CHUNK_BYTES).contains(length));
        let Some(fitting) = fitting else {
            return Err(ModelError::invalid(field, format!("{length} bytes, not 1 to {CHUNK_BYTES}")));
        };
        if wire.offset.checked_add(length).is_none() {
            return Err(ModelError::invalid("offset", "the end of the chunk overflows"));
        }
        let content = match wire.content {
            Some(Content::Data(data)) => ChunkContent::Data(data),
            _ => ChunkContent::Zeroes(fitting),
        };
        Ok(Self { offset: wire.offset, content, leaf: hash("leaf", &wire.leaf)? })
    }
}

impl From<Chunk> for v1::Chunk {
    fn from(chunk: Chunk) -> Self {
        use v1::chunk::Content;
        let content = match chunk.content {
            ChunkContent::Data(data) => Content::Data(data),
            ChunkContent::Zeroes(count) => Content::Zeroes(count.into()),
        };
        Self { offset: chunk.offset, content: Some(content), leaf: chunk.leaf.to_vec().into() }
    }
}

/// Whole chunks in order, so that each chunk is sent and verified once.
fn check_data(data: &[Range], size_bytes: u64) -> Result<(), ModelError> {
    let chunk = u64::from(CHUNK_BYTES);
    let mut end = 0;
    for (index, range) in data.iter().enumerate() {
        let whole = range.offset.is_multiple_of(chunk)
            && (range.end().is_multiple_of(chunk) || range.end() == size_bytes);
        if range.offset < end || !whole || range.end() > size_bytes {
            let why = "not whole chunks of the file, behind those before it";
            return Err(ModelError::invalid(&format!("data[{index}]"), why));
        }
        end = range.end();
    }
    Ok(())
}

/// A path inside a volume never leaves it.
fn check_inner_path(path: &[u8], kind: FileKind) -> Result<(), ModelError> {
    if path.is_empty() {
        return match kind {
            FileKind::Folder => Ok(()),
            FileKind::Regular => Err(ModelError::Missing("path".into())),
        };
    }
    if path.len() > limits::INNER_PATH_BYTES_MAX {
        return Err(ModelError::invalid("path", format!("{} bytes is longer than any path", path.len())));
    }
    if path.contains(&0) || path.split(|byte| *byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
        return Err(ModelError::invalid(
            "path",
            "must be relative, without NUL, empty, `.` or `..` components",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: u64 = CHUNK_BYTES as u64;

    fn wire_folder() -> v1::File {
        v1::File { kind: v1::FileKind::Folder.into(), mode: 0o755, ..v1::File::default() }
    }

    fn wire_file() -> v1::File {
        v1::File {
            path: Bytes::from_static(b"disk.img"),
            kind: v1::FileKind::Regular.into(),
            size_bytes: 3 * CHUNK + 5,
            mode: 0o660,
            uid: 107,
            gid: 107,
            mtime_s: -1,
            mtime_ns: 5,
            data: vec![
                v1::Range { offset: 0, length: CHUNK },
                v1::Range { offset: 2 * CHUNK, length: CHUNK + 5 },
            ],
        }
    }

    fn wire_manifest() -> v1::Manifest {
        let files = vec![wire_folder(), wire_file()];
        v1::Manifest { chunk_bytes: CHUNK_BYTES, files, identity: Bytes::from_static(b"id") }
    }

    fn refused(change: impl FnOnce(&mut v1::Manifest)) -> String {
        let mut wire = wire_manifest();
        change(&mut wire);
        Manifest::try_from(wire).unwrap_err().field().to_owned()
    }

    #[test]
    fn a_valid_manifest_survives_both_ways() {
        let manifest = Manifest::try_from(wire_manifest()).unwrap();
        assert_eq!(v1::Manifest::from(manifest), wire_manifest());
    }

    #[test]
    fn a_hostile_manifest_is_refused_by_field() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a\0b"] {
            assert_eq!(
                refused(|w| w.files[1].path = path.as_bytes().to_vec().into()),
                "files[1].path",
                "{path:?}"
            );
        }
        assert_eq!(refused(|w| w.files[1].kind = 7), "files[1].kind");
        assert_eq!(refused(|w| w.files[0].size_bytes = 1), "files[0].size_bytes");
        assert_eq!(refused(|w| w.files[1].size_bytes = u64::MAX), "files[1].size_bytes");
        assert_eq!(refused(|w| w.files[1].mode = 0o120_777), "files[1].mode");
        assert_eq!(refused(|w| w.files[1].mtime_ns = 1_000_000_000), "files[1].mtime_ns");
        assert_eq!(refused(|w| w.files[1].data[1].length = CHUNK + 6), "files[1].data[1]");
        assert_eq!(refused(|w| w.files[1].data[1].length = CHUNK - 1), "files[1].data[1]");
        assert_eq!(refused(|w| w.files[1].data[1].offset = 1), "files[1].data[1]");
        assert_eq!(refused(|w| w.files[1].data[1].offset = 0), "files[1].data[1]");
        assert_eq!(refused(|w| w.files[1].data[0].length = 0), "files[1].data[0].length");
        assert_eq!(refused(|w| w.files[1].data[1].length = u64::MAX), "files[1].data[1].length");
        assert_eq!(refused(|w| w.files.push(wire_file())), "files[2].path");
        assert_eq!(refused(|w| drop(w.files.remove(0))), "files");
        assert_eq!(refused(|w| w.files.clear()), "files");
        assert_eq!(refused(|w| w.chunk_bytes = 0), "chunk_bytes");
        assert_eq!(refused(|w| w.identity.clear()), "identity");
    }

    #[test]
    fn hashes_come_in_whole() {
        let wire = v1::Hashes { first_chunk: 2, leaves: vec![1; 64].into() };
        assert_eq!(v1::Hashes::from(Hashes::try_from(wire.clone()).unwrap()), wire);
        for length in [0, 31, 33] {
            let wire = v1::Hashes { first_chunk: 0, leaves: vec![1; length].into() };
            assert_eq!(Hashes::try_from(wire).unwrap_err().field(), "leaves");
        }
    }

    proptest! {
        #[test]
        fn a_chunk_that_passes_is_bounded(offset: u64, zeroes: u64, leaf in 0_usize..40) {
            let wire = v1::Chunk {
                offset,
                content: Some(v1::chunk::Content::Zeroes(zeroes)),
                leaf: vec![0; leaf].into(),
            };
            match Chunk::try_from(wire.clone()) {
                Ok(chunk) => {
                    prop_assert!(chunk.content.length() <= u64::from(CHUNK_BYTES));
                    prop_assert!(offset.checked_add(zeroes).is_some());
                    prop_assert_eq!(v1::Chunk::from(chunk), wire);
                }
                Err(_) => prop_assert!(
                    zeroes == 0 || zeroes > u64::from(CHUNK_BYTES) || leaf != 32 || offset > u64::MAX - zeroes
                ),
            }
        }
    }
}

//! What a source tells of a volume. Every name, size and range is the source's word, and the source may lie.

use bytes::Bytes;

use super::{ModelError, each, hash, limits, required};
use crate::v1;

/// Size of a chunk: large enough that hashing and framing cost little, small enough to send again.
pub const CHUNK_BYTES: u32 = 1024 * 1024;
/// The version of this protocol: what a target of it understands of an answer is told at `ReadRequest.version`. A source does
/// not send what an older target does not know, and a target takes what an older source sends.
pub const TRANSFER_VERSION: u32 = 1;
/// Most blocks of a chunk, each of 64 KiB.
pub const BLOCKS_MAX: usize = 16;
/// Most ranges of a chunk that cannot be read: every second sector of 4 KiB.
const UNREADABLE_RANGES_MAX: usize = 128;
/// Longest reason why.
const UNREADABLE_WHY_BYTES_MAX: usize = 512;
/// Largest file that ext4 can hold: 16 TiB with blocks of 4 KiB.
const FILE_BYTES_MAX: u64 = 16 << 40;
/// A hash fits, and so does any stamp that a source may choose instead.
const IDENTITY_BYTES_MAX: usize = 64;

/// What a source tells of a volume besides its files, which a [`Listing`] takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Identifies this state of the source.
    pub identity: Bytes,
    /// The source understands requests of several small files.
    pub packs: bool,
}

/// What an entry is. Everything else is refused at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Pipe,
    /// A further name of a regular file.
    Link,
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
    /// What a symbolic link says; of a further name the path of the file.
    pub target: Bytes,
    /// Extended attributes: names and values.
    pub attributes: Vec<(Bytes, Bytes)>,
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
    /// How the content's data is packed.
    pub encoding: Encoding,
    /// BLAKE3 of the whole chunk, as the source says; to be compared before writing. Zeroes of one that cannot be read.
    pub leaf: [u8; 32],
}

/// What a chunk holds: 1 to [`CHUNK_BYTES`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkContent {
    /// These bytes, once unpacked.
    Data(Bytes),
    /// So many zeroes.
    Zeroes(u32),
    /// What the target said that it holds.
    Same,
    /// The same, or zeroes where it said nothing, but for some blocks: their bits, and their content one after the other, once unpacked.
    Changed(u32, Bytes),
    /// Some of it cannot be read, and nothing of it is sent: which bytes of the file, and why.
    Unreadable(Vec<Range>, String),
}

/// How data is packed. Packed data is never longer than what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Plain,
    /// One frame of zstd.
    Zstd,
}

/// What a target holds of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Have {
    /// The chunk's first byte in the file.
    pub offset: u64,
    /// 32 bytes for each of its blocks, or for the whole chunk; at most [`BLOCKS_MAX`] times.
    pub hashes: Bytes,
}

/// Takes the files of a manifest as they arrive: the volume's own folder first, then the rest in byte order of the path; each path
/// once. There can be a quarter of a million, which nobody wants in memory several times.
#[derive(Debug, Default)]
pub struct Listing {
    count: usize,
    last: Vec<u8>,
}

impl Listing {
    /// Takes the next one.
    pub fn file(&mut self, wire: v1::File) -> Result<File, ModelError> {
        let field = |inner: &str| format!("files[{}]{inner}", self.count);
        super::at_most("files", self.count + 1, limits::FILES_MAX)?;
        let file = File::try_from(wire).map_err(|error| error.within(&field("")))?;
        if self.count == 0 && !file.path.is_empty() {
            return Err(does_not_begin());
        }
        if self.count > 0 && self.last.as_slice() >= &file.path[..] {
            return Err(ModelError::invalid(&field(".path"), "is there twice, or not in byte order"));
        }
        self.count += 1;
        file.path[..].clone_into(&mut self.last);
        Ok(file)
    }

    /// There are no more; takes all the rest of the message.
    pub fn end(self, wire: v1::Manifest) -> Result<Manifest, ModelError> {
        if wire.chunk_bytes != CHUNK_BYTES {
            let why = format!("{}, but this side knows chunks of {CHUNK_BYTES} bytes only", wire.chunk_bytes);
            return Err(ModelError::invalid("chunk_bytes", why));
        }
        if wire.identity.is_empty() {
            return Err(ModelError::Missing("identity".into()));
        }
        super::at_most("identity", wire.identity.len(), IDENTITY_BYTES_MAX)?;
        if self.count == 0 {
            return Err(does_not_begin());
        }
        Ok(Manifest { identity: wire.identity, packs: wire.version >= 1 })
    }
}

fn does_not_begin() -> ModelError {
    ModelError::invalid("files", "does not begin with the volume's own folder")
}

/// The message without files.
impl From<Manifest> for v1::Manifest {
    fn from(manifest: Manifest) -> Self {
        Self {
            chunk_bytes: CHUNK_BYTES,
            files: Vec::new(),
            identity: manifest.identity,
            version: manifest.packs.into(),
        }
    }
}

impl TryFrom<v1::File> for File {
    type Error = ModelError;

    fn try_from(wire: v1::File) -> Result<Self, ModelError> {
        let kind = match v1::FileKind::try_from(wire.kind) {
            Ok(v1::FileKind::Regular) => FileKind::Regular,
            Ok(v1::FileKind::Folder) => FileKind::Folder,
            Ok(v1::FileKind::Symlink) => FileKind::Symlink,
            Ok(v1::FileKind::Pipe) => FileKind::Pipe,
            Ok(v1::FileKind::Link) => FileKind::Link,
            Err(_) => return Err(ModelError::invalid("kind", format!("{} is no kind of file", wire.kind))),
        };
        check_inner_path(&wire.path, kind)?;
        let size_max = if kind == FileKind::Regular { FILE_BYTES_MAX } else { 0 };
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
        check_target(&wire.target, kind)?;
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
            target: wire.target,
            attributes: wire.attributes.into_iter().map(|each| (each.name, each.value)).collect(),
        })
    }
}

impl From<File> for v1::File {
    fn from(file: File) -> Self {
        let kind = match file.kind {
            FileKind::Regular => v1::FileKind::Regular,
            FileKind::Folder => v1::FileKind::Folder,
            FileKind::Symlink => v1::FileKind::Symlink,
            FileKind::Pipe => v1::FileKind::Pipe,
            FileKind::Link => v1::FileKind::Link,
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
            target: file.target,
            attributes: file
                .attributes
                .into_iter()
                .map(|(name, value)| v1::Attribute { name, value })
                .collect(),
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
        let encoding = match v1::Encoding::try_from(wire.encoding) {
            Ok(v1::Encoding::Plain) => Encoding::Plain,
            Ok(v1::Encoding::Zstd) => Encoding::Zstd,
            Err(_) => {
                return Err(ModelError::invalid("encoding", format!("{} is no encoding", wire.encoding)));
            }
        };
        let fitting = |field, length: u64| {
            let fitting = u32::try_from(length).ok().filter(|length| (1..=CHUNK_BYTES).contains(length));
            fitting
                .ok_or_else(|| ModelError::invalid(field, format!("{length} bytes, not 1 to {CHUNK_BYTES}")))
        };
        if wire.offset.checked_add(CHUNK_BYTES.into()).is_none() {
            return Err(ModelError::invalid("offset", "the end of the chunk overflows"));
        }
        let content = match required("content", wire.content)? {
            Content::Data(data) => {
                fitting("data", data.len() as u64)?;
                ChunkContent::Data(data)
            }
            Content::Zeroes(count) => ChunkContent::Zeroes(fitting("zeroes", count)?),
            Content::Same(true) => ChunkContent::Same,
            Content::Same(false) => return Err(ModelError::Missing("same".into())),
            Content::Changed(changed) => {
                fitting("changed.data", changed.data.len() as u64)?;
                ChunkContent::Changed(changed.blocks, changed.data)
            }
            Content::Unreadable(unreadable) => {
                if !wire.leaf.is_empty() {
                    return Err(ModelError::invalid("leaf", "of what cannot be read"));
                }
                let content = unreadable_within(unreadable, wire.offset)?;
                return Ok(Self { offset: wire.offset, content, encoding, leaf: [0; 32] });
            }
        };
        Ok(Self { offset: wire.offset, content, encoding, leaf: hash("leaf", &wire.leaf)? })
    }
}

/// Ranges in order within the chunk, and a reason that fits a line.
fn unreadable_within(wire: v1::Unreadable, offset: u64) -> Result<ChunkContent, ModelError> {
    let ranges: Vec<Range> = each("unreadable.ranges", wire.ranges, UNREADABLE_RANGES_MAX)?;
    let mut at = offset;
    for (index, range) in ranges.iter().enumerate() {
        if range.offset < at || range.end() > offset + u64::from(CHUNK_BYTES) {
            let field = format!("unreadable.ranges[{index}]");
            return Err(ModelError::invalid(&field, "not within the chunk, behind those before it"));
        }
        at = range.end();
    }
    if ranges.is_empty() {
        return Err(ModelError::Missing("unreadable.ranges".into()));
    }
    super::at_most("unreadable.why", wire.why.len(), UNREADABLE_WHY_BYTES_MAX)?;
    Ok(ChunkContent::Unreadable(ranges, wire.why))
}

impl From<Chunk> for v1::Chunk {
    fn from(chunk: Chunk) -> Self {
        use v1::chunk::Content;
        let content = match chunk.content {
            ChunkContent::Data(data) => Content::Data(data),
            ChunkContent::Zeroes(count) => Content::Zeroes(count.into()),
            ChunkContent::Same => Content::Same(true),
            ChunkContent::Changed(blocks, data) => Content::Changed(v1::Changed { blocks, data }),
            ChunkContent::Unreadable(ranges, why) => {
                let ranges = ranges.into_iter().map(Into::into).collect();
                Content::Unreadable(v1::Unreadable { ranges, why })
            }
        };
        let is_read = !matches!(content, Content::Unreadable(_));
        let encoding = match chunk.encoding {
            Encoding::Plain => v1::Encoding::Plain,
            Encoding::Zstd => v1::Encoding::Zstd,
        };
        Self {
            offset: chunk.offset,
            content: Some(content),
            leaf: if is_read { chunk.leaf.to_vec().into() } else { Bytes::new() },
            encoding: encoding.into(),
        }
    }
}

impl TryFrom<v1::Have> for Have {
    type Error = ModelError;

    fn try_from(wire: v1::Have) -> Result<Self, ModelError> {
        let (hashes, rest) = wire.hashes.as_chunks::<32>();
        if !rest.is_empty() || !(1..=BLOCKS_MAX).contains(&hashes.len()) {
            let why = format!("{} bytes are not 1 to {BLOCKS_MAX} hashes of 32", wire.hashes.len());
            return Err(ModelError::invalid("hashes", why));
        }
        Ok(Self { offset: wire.offset, hashes: wire.hashes })
    }
}

impl From<Have> for v1::Have {
    fn from(have: Have) -> Self {
        Self { offset: have.offset, hashes: have.hashes }
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

/// What a symbolic link says may be anything that a link can say; a further name is of a file inside the volume.
fn check_target(target: &[u8], kind: FileKind) -> Result<(), ModelError> {
    let wrong = |why: &str| Err(ModelError::invalid("target", why));
    match kind {
        FileKind::Symlink if target.is_empty() || target.len() >= limits::INNER_PATH_BYTES_MAX => {
            wrong("must have 1 to 4095 bytes")
        }
        FileKind::Symlink if target.contains(&0) => wrong("contains NUL"),
        FileKind::Link => check_inner_path(target, FileKind::Regular)
            .map_err(|_| ModelError::invalid("target", "no path inside the volume")),
        FileKind::Regular | FileKind::Folder | FileKind::Pipe if !target.is_empty() => {
            wrong("only links have one")
        }
        _ => Ok(()),
    }
}

/// A path inside a volume never leaves it.
fn check_inner_path(path: &[u8], kind: FileKind) -> Result<(), ModelError> {
    if path.is_empty() {
        return match kind {
            FileKind::Folder => Ok(()),
            _ => Err(ModelError::Missing("path".into())),
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
            ..v1::File::default()
        }
    }

    fn wire_manifest() -> v1::Manifest {
        let files = vec![wire_folder(), wire_file()];
        v1::Manifest { chunk_bytes: CHUNK_BYTES, files, identity: Bytes::from_static(b"id"), version: 1 }
    }

    fn take(mut wire: v1::Manifest) -> Result<(Vec<File>, Manifest), ModelError> {
        let mut listing = Listing::default();
        let files = std::mem::take(&mut wire.files).into_iter().map(|file| listing.file(file));
        Ok((files.collect::<Result<_, _>>()?, listing.end(wire)?))
    }

    fn refused(change: impl FnOnce(&mut v1::Manifest)) -> String {
        let mut wire = wire_manifest();
        change(&mut wire);
        take(wire).unwrap_err().field().to_owned()
    }

    #[test]
    fn a_valid_manifest_survives_both_ways() {
        let (files, manifest) = take(wire_manifest()).unwrap();
        let files = files.into_iter().map(Into::into).collect();
        assert_eq!(v1::Manifest { files, ..manifest.into() }, wire_manifest());
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
        let link = |w: &mut v1::Manifest, kind: v1::FileKind, target: &'static [u8]| {
            w.files[1] = v1::File { path: w.files[1].path.clone(), kind: kind.into(), ..v1::File::default() };
            w.files[1].target = Bytes::from_static(target);
        };
        for (kind, target) in [
            (v1::FileKind::Symlink, &b""[..]),
            (v1::FileKind::Symlink, b"a\0b"),
            (v1::FileKind::Link, b""),
            (v1::FileKind::Link, b"../x"),
            (v1::FileKind::Link, b"/x"),
            (v1::FileKind::Pipe, b"x"),
            (v1::FileKind::Regular, b"x"),
        ] {
            assert_eq!(refused(|w| link(w, kind, target)), "files[1].target", "{kind:?}");
        }
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

    #[test]
    fn what_a_target_has_comes_in_whole_hashes() {
        for hashes in [1, 16] {
            let wire = v1::Have { offset: 7, hashes: vec![1; 32 * hashes].into() };
            assert_eq!(v1::Have::from(Have::try_from(wire.clone()).unwrap()), wire);
        }
        for length in [0, 31, 33, 17 * 32] {
            let wire = v1::Have { offset: 0, hashes: vec![1; length].into() };
            assert_eq!(Have::try_from(wire).unwrap_err().field(), "hashes");
        }
    }

    #[test]
    fn what_cannot_be_read_lies_within_its_chunk() {
        let unreadable = |ranges: &[(u64, u64)], leaf: usize| v1::Chunk {
            offset: CHUNK,
            content: Some(v1::chunk::Content::Unreadable(v1::Unreadable {
                ranges: ranges
                    .iter()
                    .map(|(offset, length)| v1::Range { offset: *offset, length: *length })
                    .collect(),
                why: "Input/output error".into(),
            })),
            leaf: vec![0; leaf].into(),
            encoding: 0,
        };
        let valid = unreadable(&[(CHUNK, 4096), (2 * CHUNK - 1, 1)], 0);
        assert_eq!(v1::Chunk::from(Chunk::try_from(valid.clone()).unwrap()), valid);
        let refused = |chunk: v1::Chunk| Chunk::try_from(chunk).unwrap_err().field().to_owned();
        assert_eq!(refused(unreadable(&[(CHUNK, 4096)], 32)), "leaf");
        assert_eq!(refused(unreadable(&[], 0)), "unreadable.ranges");
        assert_eq!(refused(unreadable(&[(0, 4096)], 0)), "unreadable.ranges[0]");
        assert_eq!(refused(unreadable(&[(CHUNK, CHUNK + 1)], 0)), "unreadable.ranges[0]");
        assert_eq!(refused(unreadable(&[(CHUNK + 9, 9), (CHUNK, 9)], 0)), "unreadable.ranges[1]");
        assert_eq!(refused(unreadable(&[(CHUNK, 0)], 0)), "unreadable.ranges[0].length");
        assert_eq!(refused(unreadable(&[(u64::MAX, 2)], 0)), "unreadable.ranges[0].length");
    }

    fn content() -> impl Strategy<Value = v1::chunk::Content> {
        use v1::chunk::Content;
        let data = |bytes: usize| Bytes::from(vec![0; bytes]);
        let sizes = || prop_oneof![Just(0_usize), 1_usize..100, 1_048_575_usize..1_048_578];
        prop_oneof![
            any::<u64>().prop_map(Content::Zeroes),
            (0_u64..2_000_000).prop_map(Content::Zeroes),
            sizes().prop_map(move |bytes| Content::Data(data(bytes))),
            any::<bool>().prop_map(Content::Same),
            (any::<u32>(), sizes()).prop_map(move |(blocks, bytes)| {
                Content::Changed(v1::Changed { blocks, data: data(bytes) })
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_chunk_that_passes_is_bounded(
            offset in prop_oneof![any::<u64>(), 0_u64..9], content in content(), leaf in 31_usize..34, encoding in -1_i32..3,
        ) {
            let wire = v1::Chunk { offset, content: Some(content.clone()), leaf: vec![0; leaf].into(), encoding };
            let (length, whole) = match &content {
                v1::chunk::Content::Zeroes(count) => (*count, true),
                v1::chunk::Content::Data(data) => (data.len() as u64, true),
                v1::chunk::Content::Changed(changed) => (changed.data.len() as u64, true),
                v1::chunk::Content::Same(same) => (1, *same),
                v1::chunk::Content::Unreadable(_) => (0, false),
            };
            let passes = whole && (1..=CHUNK).contains(&length) && leaf == 32 && (0..2).contains(&encoding)
                && offset <= u64::MAX - CHUNK;
            match Chunk::try_from(wire.clone()) {
                Ok(chunk) => {
                    prop_assert!(passes);
                    prop_assert_eq!(v1::Chunk::from(chunk), wire);
                }
                Err(_) => prop_assert!(!passes),
            }
        }
    }
}

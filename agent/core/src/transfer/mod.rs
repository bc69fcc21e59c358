//! The copying of one volume, without IO: what the target has, what is missing, what a journal proves.
//!
//! ```text
//!   Manifest (of the source, checked)      Replay (of our journal, checksummed)
//!            \                                  /
//!             v                                v
//!   Session::begin: per chunk, the leaf that the target holds, and whether it is settled
//!            |
//!            |   have == leaf of an older state, unsettled  --offer----> same: settled | its blocks that differ: settled
//!            |   have == unknown or zero, unsettled         --fetch----> settled
//!            |   a hole of the source, have != zero         --punch----> settled
//!            v
//!   complete -> read back -> mismatch: unknown again (fetch) | all equal: root -> published
//! ```
//!
//! A chunk is *settled* when the target holds what the source had in this pass. Leaves of a pre-copy are never
//! taken as settled by a later pass: a guest may write after its chunk was read without the file's times
//! telling (direct IO updates them when a write begins, not when it lands), so they are compared by hash.

mod blocks;
mod held;
mod journal;
mod leaf;
mod manifest;
mod packed;
mod pressure;
mod rate;
mod session;

pub use blocks::{BLOCK_BYTES, BlockSet, Blocks, MAX_BLOCKS};
pub use held::{Held, Noted, Stamp};
pub use journal::{Encoder, Head, JournalError, MAX_RECORD_BYTES, Published, Record, Replay, replay};
pub use leaf::{Leaf, LeafTable, is_zero};
pub use manifest::{
    Attributes, Entry, Extra, Kind, Lister, Manifest, ManifestError, Metadata, check_path, is_kept,
};
pub use packed::Packed;
pub use pressure::Pressure;
pub use rate::{RateLimit, RateMeter};
pub use session::{AcceptError, Session, Unit};

/// What is read, hashed, sent and written as one. Large enough that a hash per chunk costs nothing on the
/// wire (32 bytes in a MiB), small enough that a guest's scattered writes do not resend the whole disk.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// Largest file: what ext4 can hold with blocks of 4 KiB. A size beyond it is a lie or a mistake.
pub const MAX_FILE_BYTES: u64 = 16 << 40;

/// Largest volume, over all its files.
pub const MAX_VOLUME_BYTES: u64 = 64 << 40;

/// Most files and folders in a volume. Volumes of virtual machines hold a handful, and trees of hundreds of thousands are rare;
/// with [`MAX_PATHS_BYTES`] the limit bounds the memory that a manifest takes.
pub const MAX_ENTRIES: usize = 262_144;

/// Most data ranges in a manifest; a source merges neighbours until it fits. At 16 bytes each they leave three
/// quarters of the largest message to the names.
pub const MAX_RANGES: usize = 500_000;

/// Extended attributes that are content, and kept; a name that ends in a star stands for all that begin so. Others belong to the
/// host (labels that are set anew, a driver's own notes), or need rights that no agent has.
pub const ATTRIBUTES: [&[u8]; 4] =
    [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default", b"user.*"];

/// Bytes of all attributes of a volume: an eighth of the largest message.
pub const MAX_ATTRIBUTE_BYTES: usize = 4 << 20;

/// Longest path of a file relative to its volume: `PATH_MAX` of Linux.
pub const MAX_PATH_BYTES: usize = 4_096;

/// Bytes of all paths of a volume, and of what its links say: three quarters of the largest message. A quarter of a million paths
/// of 90 bytes fit.
pub const MAX_PATHS_BYTES: usize = 24 << 20;

/// Deepest folder: each level costs an open descriptor while walking.
pub const MAX_DEPTH: usize = 64;

/// Most chunks that one request asks for: small enough that several requests of a file are in flight, large
/// enough that the round trip between two requests does not show.
pub const MAX_CHUNKS_PER_READ: u64 = 64;

/// Most small files that one request asks for. Each is open at the source while the request lasts, and a process may have a
/// thousand files open where nobody has raised that.
pub const MAX_FILES_PER_READ: usize = 32;

/// Number of chunks of a file; the last one may be short.
pub const fn chunk_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(CHUNK_BYTES)
}

/// Bytes of a file's chunk.
pub const fn chunk_len(size_bytes: u64, chunk: u64) -> u64 {
    let rest = size_bytes.saturating_sub(chunk.saturating_mul(CHUNK_BYTES));
    if rest < CHUNK_BYTES { rest } else { CHUNK_BYTES }
}

/// Bytes of a range of a file's chunks.
pub const fn span_bytes(size_bytes: u64, chunks: &std::ops::Range<u64>) -> u64 {
    let end = chunks.end.saturating_mul(CHUNK_BYTES);
    let end = if end < size_bytes { end } else { size_bytes };
    end.saturating_sub(chunks.start.saturating_mul(CHUNK_BYTES))
}

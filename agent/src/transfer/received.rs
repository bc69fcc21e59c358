//! A chunk that has arrived: unpacked, verified as a whole, written where it differs. Nothing that a source sends is written
//! before it is proven to be what the chunk's leaf says; a source that lies about the leaf itself is found out by the root.
//!
//! ```text
//!   Same    ── the leaf is the one that was offered ──► settled, nothing is written
//!   Zeroes  ── the leaf is that of zeroes           ──► a hole
//!   Data    ── its blocks merge to the leaf         ──► written; zeroes in it stay holes
//!   Changed ── with the blocks that we have (of zeroes, where we have nothing) they do ──► those that differ are written
//!   Unreadable                                      ──► nothing is written; it is asked for again at last, and then, where
//!                                                       somebody accepts that, comes with zeroes, as any of these
//! ```

use std::os::fd::OwnedFd;

use bytes::Bytes;
use somersault_agent_core::transfer::{BlockSet, Blocks, CHUNK_BYTES, Entry, Leaf, chunk_len};
use somersault_proto::model::{Chunk, ChunkContent, Encoding, Have, Range};

use super::TransferError;
use super::blocks::BlockHashes;
use super::io::{Leaves, Pool, punch, write_chunk};
use super::scan::shown;

/// A chunk that is asked for, and what is in its place.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) chunk: u64,
    /// Whether something else than a hole may be there.
    pub(super) over: bool,
    /// What an earlier pass has left there.
    pub(super) offer: Option<Leaf>,
}

/// What the source is told of a chunk, and what its answer is held against.
#[derive(Debug)]
pub(super) struct Offer {
    leaf: Leaf,
    blocks: Option<Blocks>,
}

impl Expected {
    /// With the hashes of its blocks, where they were kept.
    pub(super) fn offer(&self, size_bytes: u64, kept: &BlockHashes) -> Option<Offer> {
        let leaf = self.offer?;
        Some(Offer { leaf, blocks: kept.of(self.chunk, chunk_len(size_bytes, self.chunk), leaf) })
    }
}

impl Offer {
    /// As the wire carries it.
    pub(super) fn have(&self, chunk: u64, size_bytes: u64) -> Have {
        let hashes = match &self.blocks {
            Some(blocks) => blocks.to_bytes(),
            None => self.leaf.to_wire(chunk_len(size_bytes, chunk)).to_vec(),
        };
        Have { offset: chunk * CHUNK_BYTES, hashes: hashes.into() }
    }
}

/// The file that chunks go to.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    pub(super) entry: &'a Entry,
    pub(super) file: &'a OwnedFd,
    pub(super) kept: &'a BlockHashes,
    pub(super) pool: &'a Pool,
    pub(super) leaves: Leaves,
}

/// What a chunk is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// What it was.
    Same(Leaf),
    /// It was written.
    Written(Leaf),
}

/// What became of a chunk that has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is there.
    Settled(Settled),
    /// The source cannot read all of it. Nothing was written.
    Unreadable(Bad),
}

/// What a source cannot read of a chunk: which bytes of the file, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad(pub(super) Vec<Range>, pub(super) String);

impl Settled {
    pub(super) fn leaf(self) -> Leaf {
        match self {
            Self::Same(leaf) | Self::Written(leaf) => leaf,
        }
    }
}

/// Bytes of content that a chunk brought over the wire.
pub(super) fn wire_bytes(chunk: &Chunk) -> u64 {
    match &chunk.content {
        ChunkContent::Data(data) | ChunkContent::Changed(_, data) => data.len() as u64,
        ChunkContent::Zeroes(_) | ChunkContent::Same | ChunkContent::Unreadable(..) => 0,
    }
}

impl Sink<'_> {
    /// Takes the chunk that was expected.
    pub(super) fn take(
        &self,
        chunk: &Chunk,
        expected: &Expected,
        offer: Option<&Offer>,
    ) -> Result<Taken, TransferError> {
        let wrong = |why: &str| {
            let what = format!("chunk {} of {}: {why}", expected.chunk, shown(&self.entry.path));
            TransferError::SourceInvalid(what)
        };
        let offset = expected.chunk * CHUNK_BYTES;
        if chunk.offset != offset {
            return Err(wrong("another offset than asked for"));
        }
        let len = chunk_len(self.entry.size_bytes, expected.chunk);
        let leaf = Leaf::from_wire(chunk.leaf, len);
        let unpacked = |data: &Bytes, len: usize| {
            let content = unpack(data, chunk.encoding, len, self.pool);
            content.ok_or_else(|| wrong("another length than asked for, or badly packed"))
        };
        let failed = |error| TransferError::target("cannot write", shown(&self.entry.path), error);
        let proven = |found: Leaf| match leaf {
            Some(leaf) if found == leaf => Ok(found),
            _ => Err(wrong("it does not have its hash")),
        };
        let leaf = match &chunk.content {
            ChunkContent::Unreadable(ranges, why) => {
                return Ok(Taken::Unreadable(Bad(ranges.clone(), why.clone())));
            }
            ChunkContent::Same => {
                let offer = offer.ok_or_else(|| wrong("it is said to be the same as nothing"))?;
                return Ok(Taken::Settled(Settled::Same(proven(offer.leaf)?)));
            }
            ChunkContent::Zeroes(count) => {
                if u64::from(*count) != len {
                    return Err(wrong("another length than asked for"));
                }
                let leaf = proven(Leaf::ZERO)?;
                if expected.over {
                    punch(self.file, offset, len).map_err(failed)?;
                }
                leaf
            }
            ChunkContent::Data(data) => {
                let content = unpacked(data, usize::try_from(len).unwrap_or(usize::MAX))?;
                let blocks = Blocks::of(content.as_ref());
                let leaf = proven(blocks.leaf())?;
                write_chunk(self.file, offset, content.as_ref(), expected.over, self.leaves)
                    .map_err(failed)?;
                self.kept.keep(expected.chunk, &blocks);
                leaf
            }
            ChunkContent::Changed(bits, data) => {
                let before = match offer {
                    Some(offer) => offer.blocks.clone(),
                    None => Some(Blocks::zero(len)),
                };
                let (Some(before), Some(changed)) = (before, BlockSet::from_bits(*bits)) else {
                    return Err(wrong("some blocks of what the source was told nothing of"));
                };
                let spans = before.spans(changed).ok_or_else(|| wrong("blocks behind its end"))?;
                let content = unpacked(data, spans.iter().map(|(_, len)| len).sum())?;
                let blocks = before.with(changed, content.as_ref()).ok_or_else(|| wrong("other blocks"))?;
                let leaf = proven(blocks.leaf())?;
                if expected.over && offer.is_none() {
                    punch(self.file, offset, len).map_err(failed)?;
                }
                let mut rest = content.as_ref();
                for (start, len) in spans {
                    let (block, behind) = rest.split_at(len);
                    rest = behind;
                    let (at, over) = (offset + start as u64, offer.is_some());
                    write_chunk(self.file, at, block, over, self.leaves).map_err(failed)?;
                }
                self.kept.keep(expected.chunk, &blocks);
                leaf
            }
        };
        Ok(Taken::Settled(Settled::Written(leaf)))
    }
}

/// Content of that very length; `None` for anything else.
fn unpack(data: &Bytes, encoding: Encoding, len: usize, pool: &Pool) -> Option<Content> {
    match encoding {
        Encoding::Plain => (data.len() == len).then(|| Content::Plain(data.clone())),
        Encoding::Zstd => {
            let mut buffer = pool.take();
            // Whatever the frame says of itself, no more is written than there is room for.
            let written = zstd::bulk::decompress_to_buffer(data, buffer.room().get_mut(..len)?).ok()?;
            buffer.truncate(len);
            (written == len).then_some(Content::Unpacked(buffer))
        }
    }
}

/// A chunk's content, wherever it lies.
enum Content {
    Plain(Bytes),
    Unpacked(super::io::Buffer),
}

impl AsRef<[u8]> for Content {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Plain(data) => data,
            Self::Unpacked(buffer) => buffer.as_ref(),
        }
    }
}

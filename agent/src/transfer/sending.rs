//! One request for content, answered: a thread that reads, hashes, leaves out what the target has and packs the rest, a few
//! chunks ahead of the connection.
//!
//! ```text
//!   read ──► zeroes? ──► Zeroes
//!              │ no
//!              ▼
//!           blocks, leaf ──► as the target has it ──► Same
//!              │                  │ but for some blocks
//!              ▼                  ▼
//!             Data ───────────► Changed ──► packed, where the connection is what this waits for
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures::Stream;
use somersault_agent_core::transfer::{Blocks, CHUNK_BYTES, Entry, Leaf, Pressure, chunk_len, is_zero};
use somersault_proto::model::{Chunk, ChunkContent, Encoding, Have};
use somersault_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::TransferError;
use super::io::{Buffer, ChunkReader, Pool};
use super::scan::{read_failed, shown};

/// Chunks ready for the connection: one is sent while the next ones come from the disk. More would only be old by the time
/// that they are sent, and packed as hard as the connection was slow then.
const READ_AHEAD: usize = 2;

/// A file to read from.
pub(super) struct Opened {
    pub(super) entry: Entry,
    pub(super) reader: ChunkReader,
}

/// What a request asks for.
pub(super) struct Wanted {
    /// Of the file.
    pub(super) chunks: Vec<Range<u64>>,
    /// What the target has of some of them.
    pub(super) offers: Offers,
    /// What the target understands.
    pub(super) version: u32,
}

/// What a target has of some chunks, by their numbers.
pub(super) type Offers = BTreeMap<u64, Offered>;

/// What a target has of one chunk, by its word.
pub(super) struct Offered {
    leaf: Leaf,
    blocks: Option<Blocks>,
}

/// What a target says that it has of a file with so many bytes.
pub(super) fn offers(have: Vec<v1::Have>, size_bytes: u64) -> Result<Offers, String> {
    let offered = |(index, have)| {
        let have = Have::try_from(have).map_err(|error| format!("have[{index}].{error}"))?;
        let chunk = have.offset / CHUNK_BYTES;
        let whole = have.offset < size_bytes && have.offset.is_multiple_of(CHUNK_BYTES);
        let wrong = || format!("have[{index}] is not of a chunk of the file");
        if !whole {
            return Err(wrong());
        }
        let len = chunk_len(size_bytes, chunk);
        let blocks = Blocks::from_bytes(&have.hashes, len);
        let leaf = match &blocks {
            Some(blocks) => blocks.leaf(),
            None => {
                let hash = <[u8; 32]>::try_from(have.hashes.as_ref()).map_err(|_| wrong())?;
                Leaf::from_wire(hash, len).ok_or_else(wrong)?
            }
        };
        Ok((chunk, Offered { leaf, blocks }))
    };
    have.into_iter().enumerate().map(offered).collect()
}

/// The answer to a request. It ends, and its thread with it, when the connection does.
pub(super) fn answer(
    file: Opened,
    wanted: Wanted,
    pool: Pool,
    pressure: Arc<Mutex<Pressure>>,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Chunk, Status>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut packer = Packer { pool, pressure, context: None };
        let Wanted { chunks, offers, version } = wanted;
        let in_parts = version >= 1;
        for chunk in chunks.into_iter().flatten() {
            let began = Instant::now();
            let content = match offers.get(&chunk) {
                _ if !in_parts => file.whole(chunk),
                offered => file.chunk(chunk, offered, &packer.pool),
            };
            let packed = content.map(|content| if in_parts { packer.pack(content) } else { content });
            let failed = packed.is_err();
            let item = packed.map(Read::into_wire).map_err(TransferError::into_status);
            let worked = began.elapsed();
            if sender.blocking_send(item).is_err() || failed {
                return;
            }
            packer.sent(chunk_len(file.entry.size_bytes, chunk), worked, began.elapsed() - worked);
        }
    });
    ReceiverStream::new(receiver).map(move |item| {
        let _held = &permit;
        item
    })
}

/// A chunk on its way.
struct Read {
    offset: u64,
    leaf: [u8; 32],
    part: Part,
    encoding: Encoding,
}

/// What of it is sent.
enum Part {
    Nothing(ChunkContent),
    Whole(Buffer),
    Changed(u32, Buffer),
}

impl Opened {
    /// The chunk as it is now, without what the target has. Where it has nothing, that is zeroes.
    fn chunk(&self, chunk: u64, offered: Option<&Offered>, pool: &Pool) -> Result<Read, TransferError> {
        let len = chunk_len(self.entry.size_bytes, chunk);
        let content = self.read(chunk, len)?;
        if is_zero(content.as_ref()) {
            return Ok(Read::zeroes(chunk, len));
        }
        let blocks = Blocks::of(content.as_ref());
        let leaf = blocks.leaf();
        let zeroes;
        let theirs = match offered {
            Some(offered) if offered.leaf == leaf => {
                return Ok(Read::new(chunk, leaf, len, Part::Nothing(ChunkContent::Same)));
            }
            Some(offered) => offered.blocks.as_ref(),
            None => {
                zeroes = Blocks::zero(len);
                Some(&zeroes)
            }
        };
        let changed = theirs.map(|theirs| blocks.differing(theirs));
        let spans = changed.and_then(|changed| blocks.spans(changed)).unwrap_or_default();
        let part = match changed {
            Some(changed) if spans.iter().map(|(_, len)| len).sum::<usize>() < content.as_ref().len() => {
                Part::Changed(changed.bits(), gather(content.as_ref(), &spans, pool))
            }
            _ => Part::Whole(content),
        };
        Ok(Read::new(chunk, leaf, len, part))
    }

    /// All of the chunk, for a target that knows nothing else.
    fn whole(&self, chunk: u64) -> Result<Read, TransferError> {
        let len = chunk_len(self.entry.size_bytes, chunk);
        let content = self.read(chunk, len)?;
        let leaf = Leaf::of(content.as_ref());
        Ok(match leaf {
            Leaf::ZERO => Read::zeroes(chunk, len),
            leaf => Read::new(chunk, leaf, len, Part::Whole(content)),
        })
    }

    /// The leaves of some chunks.
    pub(super) fn hashes(&self, chunks: Range<u64>) -> Result<v1::Hashes, TransferError> {
        let first_chunk = chunks.start;
        let mut leaves = Vec::new();
        for chunk in chunks {
            let len = chunk_len(self.entry.size_bytes, chunk);
            leaves.extend_from_slice(&Leaf::of(self.read(chunk, len)?.as_ref()).to_wire(len));
        }
        Ok(v1::Hashes { first_chunk, leaves: leaves.into() })
    }

    fn read(&self, chunk: u64, len: u64) -> Result<Buffer, TransferError> {
        let offset = chunk * CHUNK_BYTES;
        let length = usize::try_from(len).unwrap_or(super::io::CHUNK);
        self.reader.read(offset, length).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                TransferError::SourceChanged(format!("{} was cut", shown(&self.entry.path)))
            }
            _ => read_failed(&self.entry.path, std::io::Error::other(format!("at byte {offset}: {error}"))),
        })
    }
}

/// Parts of a chunk's content, one after the other.
fn gather(content: &[u8], spans: &[(usize, usize)], pool: &Pool) -> Buffer {
    let mut gathered = pool.take();
    let mut at = 0;
    for (start, len) in spans {
        gathered.room()[at..at + len].copy_from_slice(&content[*start..start + len]);
        at += len;
    }
    gathered.truncate(at);
    gathered
}

impl Read {
    fn new(chunk: u64, leaf: Leaf, len: u64, part: Part) -> Self {
        Self { offset: chunk * CHUNK_BYTES, leaf: leaf.to_wire(len), part, encoding: Encoding::Plain }
    }

    fn zeroes(chunk: u64, len: u64) -> Self {
        let zeroes = ChunkContent::Zeroes(u32::try_from(len).unwrap_or(u32::MAX));
        Self::new(chunk, Leaf::ZERO, len, Part::Nothing(zeroes))
    }

    fn into_wire(self) -> Chunk {
        let bytes = Bytes::from_owner::<Buffer>;
        let content = match self.part {
            Part::Nothing(content) => content,
            Part::Whole(data) => ChunkContent::Data(bytes(data)),
            Part::Changed(blocks, data) => ChunkContent::Changed(blocks, bytes(data)),
        };
        Chunk { offset: self.offset, content, encoding: self.encoding, leaf: self.leaf }
    }
}

/// Packs content as hard as the connection asks for.
struct Packer {
    pool: Pool,
    /// Of all requests of a volume: they share the connections.
    pressure: Arc<Mutex<Pressure>>,
    /// zstd's working memory, and the level that it is for.
    context: Option<(i32, zstd::bulk::Compressor<'static>)>,
}

impl Packer {
    fn pack(&mut self, mut read: Read) -> Read {
        let (Part::Whole(data) | Part::Changed(_, data)) = &mut read.part else { return read };
        let Some(level) = self.pressure().level() else { return read };
        if self.context.as_ref().is_none_or(|(of, _)| *of != level) {
            self.context = zstd::bulk::Compressor::new(level).ok().map(|context| (level, context));
        }
        let Some((_, context)) = &mut self.context else { return read };
        let mut packed = self.pool.take();
        // What does not fit has not shrunk.
        let length = context.compress_to_buffer(data.as_ref(), packed.room()).unwrap_or(usize::MAX);
        if self.pressure().is_worth(data.as_ref().len(), length) {
            packed.truncate(length);
            *data = packed;
            read.encoding = Encoding::Zstd;
        }
        read
    }

    fn sent(&self, bytes: u64, worked: std::time::Duration, waited: std::time::Duration) {
        self.pressure().sent(bytes, worked, waited);
    }

    fn pressure(&self) -> std::sync::MutexGuard<'_, Pressure> {
        self.pressure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_target_has_is_of_chunks_of_the_file() {
        let have = |offset, bytes| v1::Have { offset, hashes: vec![1; bytes].into() };
        let size = CHUNK_BYTES + 100_000;
        let found = offers(vec![have(0, 512), have(CHUNK_BYTES, 64)], size).expect("valid");
        assert!(found[&0].blocks.is_some() && found[&1].blocks.is_some());
        let found = offers(vec![have(0, 32)], size).expect("valid");
        assert!(found[&0].blocks.is_none() && found[&0].leaf != Leaf::UNKNOWN);
        for (offset, bytes) in
            [(1, 32), (2 * CHUNK_BYTES, 32), (u64::MAX, 32), (0, 0), (0, 33), (0, 480), (CHUNK_BYTES, 96)]
        {
            assert!(offers(vec![have(offset, bytes)], size).is_err(), "{offset} {bytes}");
        }
        assert!(offers(vec![v1::Have { offset: 0, hashes: vec![0xff; 32].into() }], size).is_err());
    }
}

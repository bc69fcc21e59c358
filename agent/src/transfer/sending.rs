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
//!
//! What a disk cannot read, or not in time, is told as unreadable, and the rest goes on: what can be had of a dying disk comes
//! first. The target asks for the remainder at last, and then it is read in pieces. Where it says that it takes zeroes for what
//! cannot be read even so, the chunk with those follows the word of what is unreadable.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, stream};
use rustix::io::Errno;
use somersault_agent_core::transfer::{
    Blocks, CHUNK_BYTES, Entry, Leaf, MAX_FILES_PER_READ, Pressure, chunk_len, is_zero,
};
use somersault_proto::model::{self, Chunk, ChunkContent, Encoding, Have};
use somersault_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tonic::Status;

use super::TransferError;
use super::io::{Buffer, ChunkReader, Pool};
use super::meter::Rates;
use super::received::wire_bytes;
use super::scan::{read_failed, shown};

/// Chunks ready for the connection: one is sent while the next ones come from the disk. More would only be old by the time
/// that they are sent, and packed as hard as the connection was slow then.
const READ_AHEAD: usize = 2;

/// Content up to here is copied out of its buffer, which has room for a whole chunk, and goes on the wire with other content.
pub(super) const SMALL_BYTES: usize = 64 << 10;

/// The hardest level for small content: what is behind it finds nothing more there, and takes long to set up.
const SMALL_LEVEL: i32 = 3;

/// Threads that read at the same time, those among them that hang.
const THREADS_MAX: usize = 64;

/// What a second try reads at once: a disk's block, and before it a part in which there may be nothing wrong.
const PIECES: [usize; 2] = [64 << 10, 4 << 10];

/// A file to read from.
pub(super) struct Opened {
    pub(super) entry: Entry,
    pub(super) reader: ChunkReader,
}

/// What a request asks for of one file.
pub(super) struct Asked {
    pub(super) file: Opened,
    pub(super) chunks: Vec<Range<u64>>,
    /// What the target has of some of them.
    pub(super) offers: Offers,
}

/// How it is to be answered.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// Whether the target understands parts of chunks, packed ones, and that some cannot be read.
    pub(super) in_parts: bool,
    /// Whether what cannot be read is tried piece by piece.
    pub(super) thorough: bool,
    /// Whether zeroes are wanted for what cannot be read.
    pub(super) salvage: bool,
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
        let leaf = if let Some(blocks) = &blocks {
            blocks.leaf()
        } else {
            let hash = <[u8; 32]>::try_from(have.hashes.as_ref()).map_err(|_| wrong())?;
            Leaf::from_wire(hash, len).ok_or_else(wrong)?
        };
        Ok((chunk, Offered { leaf, blocks }))
    };
    have.into_iter().enumerate().map(offered).collect()
}

/// What all requests share.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) pool: Pool,
    /// Of the volume: its requests share the connections.
    pub(super) pressure: Arc<Mutex<Pressure>>,
    /// Of the agent.
    pub(super) stuck: Stuck,
    /// How long a read may take.
    pub(super) patience: Duration,
    /// Of the agent.
    pub(super) rates: Arc<Rates>,
}

/// The answer to a request. It ends, and its thread with it, when the connection does.
pub(super) fn answer(
    asked: Vec<Asked>,
    wanted: Wanted,
    means: Means,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Chunk, Status>> + Send + 'static {
    let of_file = |(part, asked): (usize, &Asked)| {
        asked.chunks.clone().into_iter().flatten().map(move |chunk| (part, chunk))
    };
    let left = asked.iter().enumerate().flat_map(of_file).collect();
    let work = Arc::new(Work { asked, wanted, means });
    let receiver = work.clone().start(VecDeque::clone(&left));
    let answer = Answer { receiver, work, left, second: None, unpaid: 0 };
    stream::unfold(answer, move |mut answer| {
        let _held = &permit;
        async move { answer.next().await.map(|item| (item, answer)) }
    })
}

/// A file's place among those that were asked for, and a chunk of it.
type Place = (usize, u64);

/// An answer under way: a thread that works, and the chunks that are still to come from it.
struct Answer {
    work: Arc<Work>,
    left: VecDeque<Place>,
    receiver: mpsc::Receiver<Result<Said<Chunk>, TransferError>>,
    /// The second message of a chunk.
    second: Option<Chunk>,
    /// Bytes of content that were sent, and not yet counted.
    unpaid: u64,
}

/// What is said of a chunk: the chunk, or what of it is unreadable, and then, where it is wanted, the chunk with zeroes there.
struct Said<T>(T, Option<T>);

impl<T> Said<T> {
    fn map<U>(self, mut change: impl FnMut(T) -> U) -> Said<U> {
        Said(change(self.0), self.1.map(change))
    }
}

impl Answer {
    /// The next chunk. A read that does not come back is left to itself, with its thread; another one goes on behind it.
    async fn next(&mut self) -> Option<Result<Chunk, Status>> {
        if let Some(second) = self.second.take() {
            return Some(Ok(second));
        }
        // What was sent last is paid for before the next chunk.
        let wait = self.work.means.rates.take(std::mem::take(&mut self.unpaid));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let place = *self.left.front()?;
        let said = match timeout(self.work.means.patience, self.receiver.recv()).await {
            Ok(Some(item)) => item,
            Ok(None) => return Some(Err(Status::internal("the agent stops"))),
            Err(_) => {
                if self.work.means.stuck.one_more() {
                    let rest: VecDeque<Place> = self.left.iter().copied().skip(1).collect();
                    self.receiver = self.work.clone().start(rest);
                    Ok(self.work.hangs(place))
                } else {
                    Err(self.work.hangs_for_good(place))
                }
            }
        };
        self.left.pop_front();
        if said.is_err() {
            self.left.clear();
        }
        let said = said.map(|Said(first, second)| {
            self.unpaid = wire_bytes(&first) + second.as_ref().map_or(0, wire_bytes);
            self.second = second;
            first
        });
        Some(said.map_err(TransferError::into_status))
    }
}

/// One request.
struct Work {
    asked: Vec<Asked>,
    wanted: Wanted,
    means: Means,
}

impl Work {
    /// A thread that sends these chunks, in order.
    fn start(self: Arc<Self>, chunks: VecDeque<Place>) -> mpsc::Receiver<Result<Said<Chunk>, TransferError>> {
        let is_small = |asked: &Asked| asked.file.entry.size_bytes <= SMALL_BYTES as u64;
        // A thread that waits after each small file is woken as often.
        let ahead = if self.asked.iter().all(is_small) { MAX_FILES_PER_READ } else { READ_AHEAD };
        let (sender, receiver) = mpsc::channel(ahead);
        let running = self.means.stuck.running();
        tokio::task::spawn_blocking(move || {
            let _running = running;
            let mut packer = Packer { means: &self.means, context: None };
            for (part, chunk) in chunks {
                let began = Instant::now();
                let asked = &self.asked[part];
                let read = asked.chunk(chunk, self.wanted, &self.means.pool);
                let pack = |read| if self.wanted.in_parts { packer.pack(read) } else { read };
                let said = read.map(|said| said.map(pack).map(Read::into_wire));
                let failed = said.is_err();
                let worked = began.elapsed();
                let handed_over = Instant::now();
                if sender.blocking_send(said).is_err() || failed {
                    return;
                }
                let bytes = chunk_len(asked.file.entry.size_bytes, chunk);
                packer.sent(bytes, worked, handed_over.elapsed());
            }
        });
        receiver
    }

    fn hangs(&self, (part, chunk): Place) -> Said<Chunk> {
        let file = &self.asked[part].file;
        let why = format!("a read has not come back within {} s", self.means.patience.as_secs_f32());
        let len = chunk_len(file.entry.size_bytes, chunk);
        let zeroes = self.wanted.salvage.then(|| Read::zeroes(chunk, len));
        Said(Read::unreadable(chunk, file.whole_range(chunk), &why), zeroes).map(Read::into_wire)
    }

    fn hangs_for_good(&self, (part, chunk): Place) -> TransferError {
        let why = format!("reads from byte {} on do not come back, nor do others", chunk * CHUNK_BYTES);
        read_failed(&self.asked[part].file.entry.path, std::io::Error::other(why))
    }
}

/// Reads that have not come back. Each keeps a thread for as long as its disk wants, which no program can change; so there is
/// a bound to them.
#[derive(Clone, Debug)]
pub(super) struct Stuck(Arc<Semaphore>);

impl Default for Stuck {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(THREADS_MAX)))
    }
}

impl Stuck {
    /// A thread begins to read; it counts until it has ended.
    fn running(&self) -> Option<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_owned().ok()
    }

    /// Whether one more thread may begin while another one hangs.
    fn one_more(&self) -> bool {
        self.0.available_permits() > 0
    }
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

impl Asked {
    /// The chunk as it is now, as the target understands it. For one that knows no parts, what cannot be read is an error.
    fn chunk(&self, chunk: u64, wanted: Wanted, pool: &Pool) -> Result<Said<Read>, TransferError> {
        let file = &self.file;
        let len = chunk_len(file.entry.size_bytes, chunk);
        let failed = |error: std::io::Error| file.failed(chunk, &error);
        let in_parts = |content| Opened::in_parts(chunk, content, self.offers.get(&chunk), pool);
        let error = match file.content(chunk, len) {
            Ok(content) if wanted.in_parts => return Ok(Said(in_parts(content), None)),
            Ok(content) => return Ok(Said(Opened::whole(chunk, content), None)),
            Err(error) if wanted.in_parts && is_bad(&error) => error,
            Err(error) => return Err(failed(error)),
        };
        if !wanted.thorough {
            let bad = Read::unreadable(chunk, file.whole_range(chunk), &error.to_string());
            return Ok(Said(bad, None));
        }
        let (content, bad) = file.in_pieces(chunk, len, pool).map_err(failed)?;
        if bad.is_empty() {
            return Ok(Said(in_parts(content), None));
        }
        let bad = Read::unreadable(chunk, bad, &error.to_string());
        Ok(Said(bad, wanted.salvage.then(|| in_parts(content))))
    }
}

impl Opened {
    /// Without what the target has. Where it has nothing, that is zeroes.
    fn in_parts(chunk: u64, content: Buffer, offered: Option<&Offered>, pool: &Pool) -> Read {
        let len = content.as_ref().len() as u64;
        if is_zero(content.as_ref()) {
            return Read::zeroes(chunk, len);
        }
        let blocks = Blocks::of(content.as_ref());
        let leaf = blocks.leaf();
        let zeroes;
        let theirs = match offered {
            Some(offered) if offered.leaf == leaf => {
                return Read::new(chunk, leaf, len, Part::Nothing(ChunkContent::Same));
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
        Read::new(chunk, leaf, len, part)
    }

    /// All of the chunk, for a target that knows nothing else.
    fn whole(chunk: u64, content: Buffer) -> Read {
        let len = content.as_ref().len() as u64;
        match Leaf::of(content.as_ref()) {
            Leaf::ZERO => Read::zeroes(chunk, len),
            leaf => Read::new(chunk, leaf, len, Part::Whole(content)),
        }
    }

    /// A chunk that could not be read at once, piece by piece, with zeroes for what cannot be read: which bytes of the file
    /// those are.
    fn in_pieces(&self, chunk: u64, len: u64, pool: &Pool) -> std::io::Result<(Buffer, Vec<Range<u64>>)> {
        let (mut content, mut bad): (_, Vec<Range<u64>>) = (pool.take(), Vec::new());
        let mut pieces: Vec<Range<u64>> = std::iter::once(0..len).collect();
        for size in PIECES {
            let smaller = pieces.into_iter().flat_map(|piece| {
                let end = piece.end;
                piece.step_by(size).map(move |start| start..end.min(start + size as u64))
            });
            let mut failed = Vec::new();
            for piece in smaller {
                let at = usize::try_from(piece.start).unwrap_or(0);
                let length = usize::try_from(piece.end - piece.start).unwrap_or(size);
                match self.reader.read(chunk * CHUNK_BYTES + piece.start, length) {
                    Ok(read) => content.room()[at..at + length].copy_from_slice(read.as_ref()),
                    Err(error) if is_bad(&error) => {
                        // A buffer comes with what was in it last.
                        content.room()[at..at + length].fill(0);
                        failed.push(piece);
                    }
                    Err(error) => return Err(error),
                }
            }
            pieces = failed;
        }
        for piece in pieces {
            match bad.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => bad.push(piece),
            }
        }
        content.truncate(usize::try_from(len).unwrap_or(super::io::CHUNK));
        let offset = chunk * CHUNK_BYTES;
        Ok((content, bad.into_iter().map(|range| offset + range.start..offset + range.end).collect()))
    }

    /// All bytes of a chunk.
    fn whole_range(&self, chunk: u64) -> Vec<Range<u64>> {
        let offset = chunk * CHUNK_BYTES;
        std::iter::once(offset..offset + chunk_len(self.entry.size_bytes, chunk)).collect()
    }

    /// The leaves of some chunks.
    pub(super) fn hashes(&self, chunks: Range<u64>) -> Result<v1::Hashes, TransferError> {
        let first_chunk = chunks.start;
        let mut leaves = Vec::new();
        for chunk in chunks {
            let len = chunk_len(self.entry.size_bytes, chunk);
            let content = self.content(chunk, len).map_err(|error| self.failed(chunk, &error))?;
            leaves.extend_from_slice(&Leaf::of(content.as_ref()).to_wire(len));
        }
        Ok(v1::Hashes { first_chunk, leaves: leaves.into() })
    }

    fn content(&self, chunk: u64, len: u64) -> std::io::Result<Buffer> {
        self.reader.read(chunk * CHUNK_BYTES, usize::try_from(len).unwrap_or(super::io::CHUNK))
    }

    fn failed(&self, chunk: u64, error: &std::io::Error) -> TransferError {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return TransferError::SourceChanged(format!("{} was cut", shown(&self.entry.path)));
        }
        let why = format!("at byte {}: {error}", chunk * CHUNK_BYTES);
        read_failed(&self.entry.path, std::io::Error::other(why))
    }
}

/// Whether it is the disk that could not read; what lies elsewhere may be readable then.
fn is_bad(error: &std::io::Error) -> bool {
    let codes = [Errno::IO, Errno::ILSEQ, Errno::NODATA, Errno::TIMEDOUT];
    error.raw_os_error().is_some_and(|code| codes.iter().any(|bad| bad.raw_os_error() == code))
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

    fn unreadable(chunk: u64, ranges: Vec<Range<u64>>, why: &str) -> Self {
        let wire = |range: Range<u64>| model::Range { offset: range.start, length: range.end - range.start };
        let ranges = ranges.into_iter().map(wire).collect();
        let part = Part::Nothing(ChunkContent::Unreadable(ranges, why.to_owned()));
        Self { offset: chunk * CHUNK_BYTES, leaf: [0; 32], part, encoding: Encoding::Plain }
    }

    fn into_wire(self) -> Chunk {
        let bytes = |data: Buffer| match data.as_ref() {
            small if small.len() <= SMALL_BYTES => Bytes::copy_from_slice(small),
            _ => Bytes::from_owner(data),
        };
        let content = match self.part {
            Part::Nothing(content) => content,
            Part::Whole(data) => ChunkContent::Data(bytes(data)),
            Part::Changed(blocks, data) => ChunkContent::Changed(blocks, bytes(data)),
        };
        Chunk { offset: self.offset, content, encoding: self.encoding, leaf: self.leaf }
    }
}

/// Packs content as hard as the connection asks for.
struct Packer<'a> {
    means: &'a Means,
    /// zstd's working memory, and the level that it is for.
    context: Option<(i32, zstd::bulk::Compressor<'static>)>,
}

impl Packer<'_> {
    fn pack(&mut self, mut read: Read) -> Read {
        let (Part::Whole(data) | Part::Changed(_, data)) = &mut read.part else { return read };
        let Some(level) = self.pressure().level() else { return read };
        let level = if data.as_ref().len() <= SMALL_BYTES { level.min(SMALL_LEVEL) } else { level };
        if self.context.as_ref().is_none_or(|(of, _)| *of != level) {
            self.context = zstd::bulk::Compressor::new(level).ok().map(|context| (level, context));
        }
        let Some((_, context)) = &mut self.context else { return read };
        let mut packed = self.means.pool.take();
        // What does not fit has not shrunk.
        let length = context.compress_to_buffer(data.as_ref(), packed.room()).unwrap_or(usize::MAX);
        if self.pressure().is_worth(data.as_ref().len(), length) {
            packed.truncate(length);
            *data = packed;
            read.encoding = Encoding::Zstd;
        }
        read
    }

    fn sent(&self, bytes: u64, worked: Duration, waited: Duration) {
        self.pressure().sent(bytes, worked, waited);
    }

    fn pressure(&self) -> std::sync::MutexGuard<'_, Pressure> {
        self.means.pressure.lock().unwrap_or_else(PoisonError::into_inner)
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

//! Gets what is missing: several requests in flight, each chunk verified before it is written, written chunks noted
//! in the journal once they are synced.
//!
//! ```text
//!   Session --units--> requests (2 connections) --chunks--> blocking pool: hash, compare, write --> Written
//!                                                                                        |
//!   Session::accept <---------------------------------------------------------------------+--> checkpoint:
//!                                                                          fdatasync, then journal
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use somersault_agent_core::transfer::{CHUNK_BYTES, Entry, Leaf, Session, Unit, chunk_len};
use somersault_proto::model::{Chunk, ChunkContent};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::TransferError;
use super::copying::{self, Copying, Written};
use super::meter::Meter;
use super::peer::{CONNECTIONS, Chunks, Peer};
use super::scan::shown;
use super::target::join;

/// Requests in flight: while one ends and the next begins, the other on the same connection keeps it busy.
const REQUESTS: usize = 2 * CONNECTIONS;

/// Chunks that are being hashed and written; bounds the memory of a slow disk's copy.
const WRITES: usize = 8;

/// A checkpoint after this part of the volume: a crash then costs less than 2 % of it, with what is in flight.
const CHECKPOINT_PARTS: u64 = 128;

/// Bounds of a checkpoint. Smaller ones would sync more often than disks like, larger ones would lose more than a few
/// seconds of work on a fast disk.
const CHECKPOINT_BYTES: (u64, u64) = (8 << 20, 256 << 20);

/// A checkpoint at the latest after this.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);

/// What the requests of a pass share.
#[derive(Clone)]
pub(super) struct Fetch {
    pub(super) peer: Peer,
    pub(super) copying: Arc<Copying>,
    pub(super) meter: Arc<Meter>,
    writes: Arc<Semaphore>,
}

impl Fetch {
    pub(super) fn new(peer: Peer, copying: Arc<Copying>, meter: Arc<Meter>) -> Self {
        Self { peer, copying, meter, writes: Arc::new(Semaphore::new(WRITES)) }
    }

    /// Fetches everything that is not settled. What has been written when it fails is noted all the same.
    pub(super) async fn run(&self, session: &mut Session) -> Result<(), TransferError> {
        let (sender, mut written) = mpsc::channel(1024);
        let mut checkpoints = Checkpoints::new(self.copying.clone(), session.manifest().data_bytes());
        let mut requests: JoinSet<Result<(), TransferError>> = JoinSet::new();
        let mut started = 0;
        let result = loop {
            while requests.len() < REQUESTS
                && let Some(unit) = session.next_unit()
            {
                requests.spawn(self.clone().request(started, ready(session, unit), sender.clone()));
                started += 1;
            }
            if requests.is_empty() {
                break Ok(());
            }
            tokio::select! {
                Some(chunk) = written.recv() => {
                    self.accept(session, &mut checkpoints, chunk);
                    if let Err(error) = checkpoints.advance().await { break Err(error) }
                }
                Some(ended) = requests.join_next() => {
                    if let Err(error) = join(ended) { break Err(error) }
                }
                () = self.meter.cancelled() => break Err(TransferError::Cancelled),
            }
        };
        // Requests are stopped; chunks that are being written come to their end, for the list to be complete.
        requests.shutdown().await;
        drop(sender);
        while let Some(chunk) = written.recv().await {
            self.accept(session, &mut checkpoints, chunk);
        }
        let noted = checkpoints.finish().await;
        result.and(noted)
    }

    fn accept(&self, session: &mut Session, checkpoints: &mut Checkpoints, chunk: Written) {
        session.accept(chunk.file, chunk.chunk, chunk.leaf);
        self.meter.worked(CHUNK_BYTES);
        self.meter.set_done(session.settled_bytes());
        checkpoints.add(chunk);
    }

    /// One request: the chunks that were asked for, in order, and nothing else.
    async fn request(
        self,
        number: usize,
        asked: Asked,
        written: mpsc::Sender<Written>,
    ) -> Result<(), TransferError> {
        let Asked { file, identity, entry, chunks, expected } = asked;
        let handle = {
            let (copying, entry) = (self.copying.clone(), entry.clone());
            Arc::new(join(tokio::task::spawn_blocking(move || copying.open(&entry)).await)?)
        };
        let mut stream = self.peer.read(number, file, identity, entry.size_bytes, &chunks).await?;
        let mut writes: JoinSet<Result<(), TransferError>> = JoinSet::new();
        for (number, over) in expected {
            let chunk = self.next(&mut stream, &entry, number).await?;
            let permit = self.writes.clone().acquire_owned().await;
            let Ok(permit) = permit else { return Err(TransferError::Cancelled) };
            let work = Work {
                file,
                entry: entry.clone(),
                number,
                over,
                chunk,
                handle: handle.clone(),
                _folder: self.copying.clone(),
                _permit: permit,
            };
            let written = written.clone();
            writes.spawn_blocking(move || work.run(&written));
            while let Some(ended) = writes.try_join_next() {
                join(ended)?;
            }
        }
        if stream.next().await?.is_some() {
            return Err(TransferError::SourceInvalid(format!(
                "more chunks of {} than asked for",
                shown(&entry.path)
            )));
        }
        while let Some(ended) = writes.join_next().await {
            join(ended)?;
        }
        Ok(())
    }

    async fn next(&self, stream: &mut Chunks, entry: &Entry, number: u64) -> Result<Chunk, TransferError> {
        let wrong = |why: &str| {
            TransferError::SourceInvalid(format!("chunk {number} of {}: {why}", shown(&entry.path)))
        };
        let chunk = stream.next().await?.ok_or_else(|| wrong("the stream ends before it"))?;
        if chunk.offset != number * CHUNK_BYTES {
            return Err(wrong("another offset than asked for"));
        }
        let len = chunk_len(entry.size_bytes, number);
        if chunk.content.length() != len {
            return Err(wrong("another length than asked for"));
        }
        if let ChunkContent::Data(_) = chunk.content {
            self.meter.received(len).await;
        }
        Ok(chunk)
    }
}

/// What to ask for, and per chunk whether something is there already.
struct Asked {
    file: usize,
    identity: [u8; 32],
    entry: Arc<Entry>,
    chunks: Vec<Range<u64>>,
    expected: Vec<(u64, bool)>,
}

fn ready(session: &Session, unit: Unit) -> Asked {
    let manifest = session.manifest();
    let mut entry = manifest.entries()[unit.file].clone();
    // The list of ranges can be long, and a request does not need it.
    entry.data = Vec::new();
    let over = |chunk| session.held(unit.file).is_none_or(|held| held.have.get(chunk) != Leaf::ZERO);
    let expected = unit.chunks.iter().cloned().flatten().map(|chunk| (chunk, over(chunk))).collect();
    Asked {
        file: unit.file,
        identity: manifest.identity(),
        entry: Arc::new(entry),
        chunks: unit.chunks,
        expected,
    }
}

/// A received chunk on its way to the disk.
struct Work {
    file: usize,
    entry: Arc<Entry>,
    number: u64,
    over: bool,
    chunk: Chunk,
    handle: Arc<std::os::fd::OwnedFd>,
    /// Keeps the folder locked: nobody else may begin while this chunk is on its way, even when the copy is dropped.
    _folder: Arc<Copying>,
    _permit: OwnedSemaphorePermit,
}

impl Work {
    fn run(self, written: &mpsc::Sender<Written>) -> Result<(), TransferError> {
        let content = match &self.chunk.content {
            ChunkContent::Data(data) => Some(data.as_ref()),
            ChunkContent::Zeroes(_) => None,
        };
        let leaf = content.map_or(Leaf::ZERO, Leaf::of);
        if Leaf::from_wire(self.chunk.leaf, self.chunk.content.length()) != Some(leaf) {
            let why = format!("chunk {} of {} does not have its hash", self.number, shown(&self.entry.path));
            return Err(TransferError::SourceInvalid(why));
        }
        copying::write(&self.handle, &self.entry, self.number, content, self.over)?;
        // The receiver lives until all senders are gone; when it does not, the copy was dropped.
        let _ =
            written.blocking_send(Written { file: self.file, chunk: self.number, leaf, handle: self.handle });
        Ok(())
    }
}

/// Makes written chunks durable and notes them, one batch at a time, beside the fetching.
struct Checkpoints {
    copying: Arc<Copying>,
    pending: Vec<Written>,
    pending_max: usize,
    last: Instant,
    running: Option<JoinHandle<Result<(), TransferError>>>,
}

impl Checkpoints {
    fn new(copying: Arc<Copying>, total_bytes: u64) -> Self {
        let bytes = (total_bytes / CHECKPOINT_PARTS).clamp(CHECKPOINT_BYTES.0, CHECKPOINT_BYTES.1);
        let pending_max = usize::try_from(bytes / CHUNK_BYTES).unwrap_or(1);
        Self { copying, pending: Vec::new(), pending_max, last: Instant::now(), running: None }
    }

    fn add(&mut self, chunk: Written) {
        self.pending.push(chunk);
    }

    /// Starts a checkpoint when one is due and none runs.
    async fn advance(&mut self) -> Result<(), TransferError> {
        if self.pending.len() < self.pending_max && self.last.elapsed() < CHECKPOINT_INTERVAL {
            return Ok(());
        }
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return Ok(());
        }
        self.settle().await?;
        self.last = Instant::now();
        let (copying, batch) = (self.copying.clone(), std::mem::take(&mut self.pending));
        self.running = Some(tokio::task::spawn_blocking(move || copying.checkpoint(batch)));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), TransferError> {
        match self.running.take() {
            Some(running) => join(running.await),
            None => Ok(()),
        }
    }

    async fn finish(mut self) -> Result<(), TransferError> {
        self.settle().await?;
        if self.pending.is_empty() {
            return Ok(());
        }
        let (copying, batch) = (self.copying.clone(), std::mem::take(&mut self.pending));
        join(tokio::task::spawn_blocking(move || copying.checkpoint(batch)).await)
    }
}

//! Gets what is missing: several requests in flight, each chunk verified before it is written, chunks noted in the
//! journal once they are synced.
//!
//! ```text
//!   Session --units--> requests, on the lanes: receive, verify, write --Arrived--> Session::accept, ::same
//!                                                                                        |
//!                                                       checkpoint: fdatasync, then journal
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use somersault_agent_core::transfer::{CHUNK_BYTES, Entry, Leaf, Manifest, Session, Unit, chunk_len};
use somersault_proto::model::{Chunk, Have};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::TransferError;
use super::blocks::BlockHashes;
use super::copying::{Copying, Written};
use super::io::{Leaves, Pool};
use super::lanes::{self, Lane};
use super::meter::Meter;
use super::peer::{Again, Ask, Chunks, Connection, Peer};
use super::received::{Bad, Expected, Offer, Settled, Sink, Taken, wire_bytes};
use super::scan::shown;
use super::target::join;
use super::unreadable::Unreadable;

/// Chunks that are written and not yet in the list. Each may be of another file, which is open as long; a process may have a
/// thousand open where nobody has raised that.
const WRITTEN_AHEAD: usize = 128;

/// Chunks of a checkpoint whose files are open, for the same reason; while one runs, no more than as many wait for the next.
const CHECKPOINT_OPEN: usize = 256;

/// A checkpoint after this part of the volume: a crash then costs less than 2 % of it, with what is in flight.
const CHECKPOINT_PARTS: u64 = 128;

/// Bounds of a checkpoint in chunks, open or not: of small files each is one, and the list of them takes memory.
const CHECKPOINT_CHUNKS: (usize, usize) = (256, 8192);

/// Bounds of a checkpoint. Smaller ones would sync more often than disks like, larger ones would lose more than a few
/// seconds of work on a fast disk.
const CHECKPOINT_BYTES: (u64, u64) = (8 << 20, 256 << 20);

/// A checkpoint at the latest after this.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);

/// The fetching of one pass.
pub(super) struct Fetch {
    lanes: Vec<(Lane, Connection)>,
    pub(super) copying: Arc<Copying>,
    pool: Pool,
    meter: Arc<Meter>,
    /// Small files of one request.
    files_max: usize,
}

impl Fetch {
    /// Connects as many lanes as this machine can use.
    pub(super) async fn connect(
        peer: &Peer,
        copying: Arc<Copying>,
        pool: Pool,
        meter: Arc<Meter>,
        files_max: usize,
    ) -> Result<Self, TransferError> {
        let mut lanes = Vec::new();
        for _ in 0..lanes::count() {
            let lane =
                Lane::start().map_err(|_| TransferError::Busy("no thread is to be had for the copy"))?;
            let peer = peer.clone();
            let connected = lane.handle().spawn(async move { peer.connection().await });
            lanes.push((lane, join(connected.await)?));
        }
        Ok(Self { lanes, copying, pool, meter, files_max })
    }

    /// Fetches everything that is not settled: what can be read first, and what a disk could not read once more at last, piece
    /// by piece. What has been written when it fails is noted all the same. Returns what cannot be read and was taken as
    /// zeroes, which is nothing unless somebody accepts that.
    pub(super) async fn run(&self, session: &mut Session, accept: bool) -> Result<Unreadable, TransferError> {
        let bad = self.pass(session, None).await?;
        if bad.is_empty() {
            return Ok(bad);
        }
        tracing::warn!(%bad, "the source could not read all; trying that again");
        let again = if accept { Again::Salvage } else { Again::Whole };
        let bad = self.pass(session, Some((bad.units().collect(), again))).await?;
        if bad.is_empty() || accept { Ok(bad) } else { Err(bad.report(session.manifest())) }
    }

    /// Fetches these chunks, or all that are not settled. Returns what the source cannot read.
    async fn pass(
        &self,
        session: &mut Session,
        again: Option<(VecDeque<Unit>, Again)>,
    ) -> Result<Unreadable, TransferError> {
        let (mut units, again) = again.unzip();
        let (sender, mut written) = mpsc::channel(WRITTEN_AHEAD);
        let mut unreadable = Unreadable::default();
        let mut checkpoints = Checkpoints::new(self.copying.clone(), session.manifest());
        let mut requests: JoinSet<Result<usize, TransferError>> = JoinSet::new();
        // One request at a time on each. More would only be more threads that read at the source: one asks for as much as a
        // second of a fast link.
        let mut idle: Vec<usize> = (0..self.lanes.len()).collect();
        let result = loop {
            while let Some(number) = idle.last().copied() {
                let units = match &mut units {
                    None => session.next_units(self.files_max),
                    Some(units) => units.pop_front().into_iter().collect(),
                };
                if units.is_empty() {
                    break;
                }
                idle.pop();
                let (lane, connection) = &self.lanes[number];
                let request = self.request(session, units, connection, again);
                let run = request.run(sender.clone());
                requests.spawn_on(async move { run.await.map(|()| number) }, lane.handle());
            }
            if requests.is_empty() {
                break Ok(());
            }
            tokio::select! {
                Some(chunk) = written.recv() => {
                    self.accept(session, &mut checkpoints, &mut unreadable, chunk);
                    if let Err(error) = checkpoints.advance().await { break Err(error) }
                }
                Some(ended) = requests.join_next() => {
                    match join(ended) {
                        Ok(number) => idle.push(number),
                        Err(error) => break Err(error),
                    }
                }
                () = self.meter.cancelled() => break Err(TransferError::Cancelled),
            }
        };
        // Requests are stopped, each between two chunks, for the list to be complete.
        requests.shutdown().await;
        drop(sender);
        while let Some(chunk) = written.recv().await {
            self.accept(session, &mut checkpoints, &mut unreadable, chunk);
        }
        let noted = checkpoints.finish().await;
        result.and(noted).map(|()| unreadable)
    }

    fn request(
        &self,
        session: &Session,
        units: Vec<Unit>,
        connection: &Connection,
        again: Option<Again>,
    ) -> Request {
        let part = |Unit { file, chunks }: Unit| {
            let entry = session.manifest().entry(file)?;
            let expected = |chunk| {
                let over = session.held(file).is_none_or(|held| held.leaf(chunk) != Leaf::ZERO);
                Expected { chunk, over, offer: session.offer(file, chunk) }
            };
            let expected = chunks.iter().cloned().flatten().map(expected).collect();
            Some(Part { file, entry, chunks, expected })
        };
        Request {
            connection: connection.clone(),
            copying: self.copying.clone(),
            pool: self.pool.clone(),
            meter: self.meter.clone(),
            identity: session.manifest().identity(),
            parts: units.into_iter().filter_map(part).collect(),
            again,
        }
    }

    fn accept(
        &self,
        session: &mut Session,
        checkpoints: &mut Checkpoints,
        unreadable: &mut Unreadable,
        arrived: Arrived,
    ) {
        self.meter.worked(CHUNK_BYTES);
        let Arrived { file, chunk, bad, settled, handle } = arrived;
        let whole = bad.is_none();
        if let Some(Bad(ranges, why)) = bad {
            unreadable.note(file, chunk, ranges, why);
        }
        if let Some(settled) = settled {
            match settled {
                Settled::Written(leaf) => session.accept(file, chunk, leaf),
                Settled::Same(_) => session.same(file, chunk),
            }
            self.meter.set_done(session.settled_bytes());
            let bytes = session.held(file).map_or(0, |held| chunk_len(held.size_bytes(), chunk));
            checkpoints.add(Written { file, chunk, settled, whole, handle }, bytes);
        }
    }
}

/// A chunk that has arrived.
#[derive(Debug)]
struct Arrived {
    file: usize,
    chunk: u64,
    /// What of it the source cannot read.
    bad: Option<Bad>,
    /// It is there: with zeroes for that, where those are accepted.
    settled: Option<Settled>,
    /// See [`Written`].
    handle: Option<Arc<OwnedFd>>,
}

/// One request: what to ask for, and what is there already.
struct Request {
    connection: Connection,
    /// Keeps the folder locked: nobody else may begin while a chunk is on its way, even when the copy is dropped.
    copying: Arc<Copying>,
    pool: Pool,
    meter: Arc<Meter>,
    identity: [u8; 32],
    /// One file, or several small ones.
    parts: Vec<Part>,
    /// Of a second try, what is wanted.
    again: Option<Again>,
}

/// What is asked for of one file.
struct Part {
    file: usize,
    entry: Entry,
    chunks: Vec<Range<u64>>,
    expected: Vec<Expected>,
}

/// What is there of it.
struct Present {
    kept: BlockHashes,
    /// Of each chunk that is expected.
    offers: Vec<Option<Offer>>,
}

impl Part {
    fn present(&self, copying: &Copying) -> Present {
        let kept = copying.block_hashes(&self.entry);
        let offer = |expected: &Expected| expected.offer(self.entry.size_bytes, &kept);
        Present { offers: self.expected.iter().map(offer).collect(), kept }
    }

    /// As the source is told of it.
    fn have(&self, present: &Present) -> Vec<Have> {
        let size_bytes = self.entry.size_bytes;
        let have = |(expected, offer): (&Expected, &Option<Offer>)| {
            offer.as_ref().map(|offer| offer.have(expected.chunk, size_bytes))
        };
        self.expected.iter().zip(&present.offers).filter_map(have).collect()
    }
}

impl Request {
    /// The chunks that were asked for, in order, and nothing else. It runs on a lane, where it may block.
    async fn run(self, arrived: mpsc::Sender<Arrived>) -> Result<(), TransferError> {
        let present: Vec<Present> = self.parts.iter().map(|part| part.present(&self.copying)).collect();
        let Some((first, more)) = self.parts.split_first() else { return Ok(()) };
        let ask = Ask {
            file: first.file,
            identity: self.identity,
            size_bytes: first.entry.size_bytes,
            chunks: &first.chunks,
            have: first.have(&present[0]),
            more: more
                .iter()
                .zip(&present[1..])
                .map(|(part, has)| (part.file, part.have(has).pop()))
                .collect(),
        };
        let mut stream = self.connection.read(ask, self.again).await?;
        for (part, present) in self.parts.iter().zip(&present) {
            self.take(part, present, &mut stream, &arrived).await?;
        }
        if stream.next().await?.is_some() {
            let why = format!("more chunks than asked for, behind those of {}", shown(&first.entry.path));
            return Err(TransferError::SourceInvalid(why));
        }
        Ok(())
    }

    /// The chunks of one file.
    async fn take(
        &self,
        part: &Part,
        present: &Present,
        stream: &mut Chunks,
        arrived: &mpsc::Sender<Arrived>,
    ) -> Result<(), TransferError> {
        let entry = &part.entry;
        let handle = Arc::new(self.copying.open(entry)?);
        let is_kept_open = self.copying.is_kept_open(entry);
        let leaves = if is_kept_open { Leaves::AtOnce } else { Leaves::WhenSynced };
        let sink = Sink { entry, file: &handle, kept: &present.kept, pool: &self.pool, leaves };
        for (expected, offer) in part.expected.iter().zip(&present.offers) {
            let chunk = self.next(stream, entry, expected).await?;
            // Before it is written, so that what was written is always told.
            let Ok(place) = arrived.reserve().await else { return Err(TransferError::Cancelled) };
            let taken = sink.take(&chunk, expected, offer.as_ref())?;
            let (bad, settled) = match taken {
                Taken::Settled(settled) => (None, Some(settled)),
                Taken::Unreadable(bad) if self.again == Some(Again::Salvage) => {
                    let chunk = self.next(stream, entry, expected).await?;
                    match sink.take(&chunk, expected, offer.as_ref())? {
                        Taken::Settled(settled) => (Some(bad), Some(settled)),
                        Taken::Unreadable(_) => {
                            let why = format!("twice that {} is unreadable", shown(&entry.path));
                            return Err(TransferError::SourceInvalid(why));
                        }
                    }
                }
                Taken::Unreadable(bad) => (Some(bad), None),
            };
            let (file, chunk) = (part.file, expected.chunk);
            let handle = is_kept_open.then(|| handle.clone());
            place.send(Arrived { file, chunk, bad, settled, handle });
        }
        Ok(())
    }

    async fn next(
        &self,
        stream: &mut Chunks,
        entry: &Entry,
        expected: &Expected,
    ) -> Result<Chunk, TransferError> {
        let chunk = stream.next().await?.ok_or_else(|| {
            let path = shown(&entry.path);
            TransferError::SourceInvalid(format!(
                "chunk {} of {path}: the stream ends before it",
                expected.chunk
            ))
        })?;
        self.meter.received(wire_bytes(&chunk)).await;
        Ok(chunk)
    }
}

/// Makes written chunks durable and notes them, one batch at a time, beside the fetching.
struct Checkpoints {
    copying: Arc<Copying>,
    pending: Vec<Written>,
    pending_bytes: u64,
    /// Those whose file is open.
    pending_open: usize,
    bytes_max: u64,
    chunks_max: usize,
    last: Instant,
    running: Option<JoinHandle<Result<(), TransferError>>>,
}

impl Checkpoints {
    fn new(copying: Arc<Copying>, manifest: &Manifest) -> Self {
        let total_bytes = manifest.data_bytes();
        let chunks_max = manifest.len() / usize::try_from(CHECKPOINT_PARTS).unwrap_or(usize::MAX);
        let bytes_max = (total_bytes / CHECKPOINT_PARTS).clamp(CHECKPOINT_BYTES.0, CHECKPOINT_BYTES.1);
        Self {
            copying,
            pending: Vec::new(),
            pending_bytes: 0,
            pending_open: 0,
            bytes_max,
            chunks_max: chunks_max.clamp(CHECKPOINT_CHUNKS.0, CHECKPOINT_CHUNKS.1),
            last: Instant::now(),
            running: None,
        }
    }

    fn add(&mut self, chunk: Written, bytes: u64) {
        self.pending_open += usize::from(chunk.handle.is_some());
        self.pending.push(chunk);
        self.pending_bytes += bytes;
    }

    /// Starts a checkpoint when one is due and none runs; where too much waits for it, ends that one first.
    async fn advance(&mut self) -> Result<(), TransferError> {
        let is_full = self.pending_open >= CHECKPOINT_OPEN || self.pending.len() >= self.chunks_max;
        let is_due =
            is_full || self.pending_bytes >= self.bytes_max || self.last.elapsed() >= CHECKPOINT_INTERVAL;
        let runs = self.running.as_ref().is_some_and(|running| !running.is_finished());
        if !is_due || (runs && !is_full) {
            return Ok(());
        }
        self.settle().await?;
        self.last = Instant::now();
        (self.pending_bytes, self.pending_open) = (0, 0);
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

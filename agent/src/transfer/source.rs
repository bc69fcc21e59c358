//! The side that holds the volume: lists, hashes and reads it, and never writes.
//!
//! ```text
//!   GetManifest --token ok--> scan --> session (job, path, target) --> Manifest
//!   GetHashes, Read --token ok--> session of that identity? --no--> SourceChanged: the target lists anew
//!                                        \--yes--> chunks, a few ahead (sending.rs)
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use rustix::fs::OFlags;
use somersault_agent_core::transfer::{
    CHUNK_BYTES, Kind, MAX_CHUNKS_PER_READ, MAX_ENTRIES, MAX_FILES_PER_READ, Manifest, Pressure, chunk_count,
};
use somersault_proto::model::{self, Chunk, NodeName};
use somersault_proto::token::Claims;
use somersault_proto::v1::{self, transfer_server::Transfer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status};

use super::device::Device;
use super::io::{ChunkReader, Pool};
use super::keys::Keys;
use super::listing;
use super::meter::Rates;
use super::root::Roots;
use super::scan::{self, Scanned, Top, shown};
use super::sending::{self, Asked, Means, Opened, Stuck, Wanted};
use super::wire::Wire;
use super::{Limits, TransferError};

/// Volumes whose listing is kept: more than are copied from a node at once. The oldest goes first, and costs its
/// target one more listing.
const SESSIONS_MAX: usize = 32;

/// Files and folders in all listings that are kept: the largest one, or what many usual ones hold.
const KEPT_ENTRIES_MAX: usize = MAX_ENTRIES;

/// Requests that read at the same time, over all targets. Each has a few chunks in memory.
const STREAMS_MAX: usize = 16;

/// Listings at the same time: each walks a volume and syncs its files.
const SCANS_MAX: usize = 2;

/// Batches hashed at the same time, and the chunks of one.
const HASH_AHEAD: usize = 2;
const HASH_BATCH: u64 = 32;

/// Serves the volumes below the roots, and those that are mounted for pods.
#[derive(Clone, Debug)]
pub struct Source(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: NodeName,
    wire: Wire,
    roots: Roots,
    keys: Arc<Keys>,
    sessions: Mutex<VecDeque<Arc<Session>>>,
    streams: Arc<Semaphore>,
    scans: Semaphore,
    pool: Pool,
    stuck: Stuck,
    rates: Arc<Rates>,
    /// With a read, and with one of the second try.
    patience: (Duration, Duration),
}

/// A volume that was listed for one target.
#[derive(Debug)]
struct Session {
    job: String,
    path: String,
    target: NodeName,
    scanned: Scanned,
    /// Of the connections to this target.
    pressure: Arc<Mutex<Pressure>>,
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Source {
    pub(super) fn new(
        node: NodeName,
        wire: Wire,
        roots: Roots,
        keys: Arc<Keys>,
        pool: Pool,
        rates: Arc<Rates>,
        limits: &Limits,
    ) -> Self {
        Self(Arc::new(Inner {
            node,
            wire,
            roots,
            keys,
            sessions: Mutex::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            scans: Semaphore::new(SCANS_MAX),
            pool,
            stuck: Stuck::default(),
            rates,
            patience: (limits.read_patience, limits.reread_patience),
        }))
    }

    /// Who calls, and what the coordinator allows it.
    fn authorize<T>(&self, request: &Request<T>, token: &str) -> Result<(NodeName, Claims), Status> {
        let target = self.0.wire.caller(request)?;
        match self.0.keys.verify(token, &self.0.node, &target) {
            Some(Ok(claims)) => Ok((target, claims)),
            Some(Err(error)) => Err(refused(error.to_string())),
            None => Err(refused("no coordinator has told its token key yet".into())),
        }
    }

    fn find(&self, target: &NodeName, claims: &Claims, identity: &[u8]) -> Result<Arc<Session>, Status> {
        let sessions = self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.iter().find(|session| session.is_of(target, claims));
        match session {
            Some(session) if session.scanned.manifest.identity() == identity => Ok(session.clone()),
            _ => Err(TransferError::SourceChanged("this state is not the latest that was listed".into())
                .into_status()),
        }
    }

    fn keep(&self, session: Session) {
        let mut sessions = self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|other| {
            other.job != session.job || other.path != session.path || other.target != session.target
        });
        sessions.push_front(Arc::new(session));
        sessions.truncate(SESSIONS_MAX);
        let entries = |session: &Arc<Session>| session.scanned.manifest.len();
        while sessions.len() > 1 && sessions.iter().map(entries).sum::<usize>() > KEPT_ENTRIES_MAX {
            sessions.pop_back();
        }
    }

    async fn stream_permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        let permit = self.0.streams.clone().acquire_owned().await;
        permit.map_err(|_| Status::unavailable("the agent stops"))
    }

    /// Opens a file of a session, and checks that it is the one that was listed.
    async fn open(&self, session: Arc<Session>, file: usize) -> Result<Opened, Status> {
        let (roots, pool) = (self.0.roots.clone(), self.0.pool.clone());
        blocking(move || session.open(&volume(&roots, &session.path)?, file, pool)).await
    }

    /// Opens further files of a session, each of one chunk.
    async fn small(
        &self,
        session: Arc<Session>,
        more: Vec<v1::Small>,
    ) -> Result<Vec<Result<Asked, String>>, Status> {
        if more.is_empty() {
            return Ok(Vec::new());
        }
        if more.len() > MAX_FILES_PER_READ {
            let why = format!("more than {MAX_FILES_PER_READ} files in one request");
            return Err(Status::invalid_argument(why));
        }
        let (roots, pool) = (self.0.roots.clone(), self.0.pool.clone());
        blocking(move || {
            let volume = volume(&roots, &session.path)?;
            let small = |small: v1::Small| {
                let file = session.open(&volume, index(small.file), pool.clone())?;
                let size_bytes = file.entry.size_bytes;
                if chunk_count(size_bytes) != 1 {
                    return Ok(Err(format!("file {} is not of one chunk", small.file)));
                }
                let have = v1::Have { offset: 0, hashes: small.held };
                let have = Some(have).filter(|have| !have.hashes.is_empty());
                let offers = sending::offers(have.into_iter().collect(), size_bytes);
                Ok(offers.map(|offers| Asked { file, chunks: std::iter::once(0..1).collect(), offers }))
            };
            more.into_iter().map(small).collect()
        })
        .await
    }
}

impl Session {
    /// A file of the volume, if it is the one that was listed.
    fn open(&self, volume: &Volume, file: usize, pool: Pool) -> Result<Opened, TransferError> {
        let entry = self.scanned.manifest.entry(file).filter(|entry| entry.kind == Kind::Regular);
        let Some(entry) = entry else {
            return Err(TransferError::OrderRefused(format!("there is no file {file} in the manifest")));
        };
        let volume = match volume {
            Volume::Folder(volume, _) => volume,
            Volume::Device(device) => return Ok(Opened { entry, reader: device.reader(pool)? }),
        };
        let opened = scan::open(volume.as_fd(), &entry.path, OFlags::NONBLOCK)?;
        let stat = scan::stat_of(opened.as_fd(), &entry.path)?;
        if stat.st_ino != self.scanned.inodes[file] {
            return Err(TransferError::SourceChanged(format!("{} was replaced", shown(&entry.path))));
        }
        Ok(Opened { entry, reader: ChunkReader::new(opened, pool, false) })
    }

    fn is_of(&self, target: &NodeName, claims: &Claims) -> bool {
        self.job == claims.job && self.path == claims.source_path.as_str() && self.target == *target
    }
}

#[tonic::async_trait]
impl Transfer for Source {
    /// Nobody calls it here: serving.rs does, without tonic's codec between.
    async fn get_manifest(
        &self,
        request: Request<v1::ManifestRequest>,
    ) -> Result<Response<v1::Manifest>, Status> {
        let manifest = self.list(request).await?;
        Ok(Response::new(listing::wire_manifest(&manifest)))
    }

    type GetHashesStream = Items<v1::Hashes>;

    async fn get_hashes(
        &self,
        request: Request<v1::HashesRequest>,
    ) -> Result<Response<Self::GetHashesStream>, Status> {
        let (target, claims) = self.authorize(&request, &request.get_ref().token)?;
        let request = request.into_inner();
        let session = self.find(&target, &claims, &request.identity)?;
        let file = Arc::new(self.open(session, index(request.file)).await?);
        let chunks =
            requested(&request.ranges, file.entry.size_bytes, u64::MAX).map_err(Status::invalid_argument)?;
        let permit = self.stream_permit().await?;
        let batches = batches(chunks);
        let items = stream::iter(batches)
            .map(move |chunks| {
                let file = file.clone();
                blocking(move || file.hashes(chunks))
            })
            .buffered(HASH_AHEAD);
        Ok(Response::new(holding(items, permit)))
    }

    type ReadStream = Items<v1::Chunk>;

    /// Nobody calls it here: serving.rs does, without tonic's codec between.
    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let chunks = self.content(request).await?;
        Ok(Response::new(Box::pin(chunks.map(|chunk| chunk.map(Into::into)))))
    }
}

impl Source {
    /// Lists the volume, and keeps the list for the requests that follow.
    pub(super) async fn list(&self, request: Request<v1::ManifestRequest>) -> Result<Manifest, Status> {
        let (target, claims) = self.authorize(&request, &request.get_ref().token)?;
        let Ok(_permit) = self.0.scans.acquire().await else {
            return Err(Status::unavailable("the agent stops"));
        };
        let roots = self.0.roots.clone();
        let path = claims.source_path.as_str().to_owned();
        let scanned = {
            let path = path.clone();
            blocking(move || match volume(&roots, &path)? {
                Volume::Folder(volume, top) => scan::scan(volume.as_fd(), top),
                Volume::Device(device) => device.scan(),
            })
            .await?
        };
        let manifest = scanned.manifest.clone();
        tracing::info!(job = claims.job, path, %target, bytes = scanned.manifest.data_bytes(), "volume listed");
        self.keep(Session { job: claims.job, path, target, scanned, pressure: Arc::default() });
        Ok(manifest)
    }

    /// The content of some chunks of a file, without what the target has.
    pub(super) async fn content(
        &self,
        request: Request<v1::ReadRequest>,
    ) -> Result<impl Stream<Item = Result<Chunk, Status>> + Send + use<>, Status> {
        let (target, claims) = self.authorize(&request, &request.get_ref().token)?;
        let request = request.into_inner();
        let session = self.find(&target, &claims, &request.identity)?;
        let means = Means {
            pool: self.0.pool.clone(),
            pressure: session.pressure.clone(),
            stuck: self.0.stuck.clone(),
            rates: self.0.rates.clone(),
            patience: if request.thorough { self.0.patience.1 } else { self.0.patience.0 },
        };
        let file = self.open(session.clone(), index(request.file)).await?;
        let size_bytes = file.entry.size_bytes;
        let chunks = requested(&request.ranges, size_bytes, MAX_CHUNKS_PER_READ);
        let offers = sending::offers(request.have, size_bytes);
        let first = Asked {
            file,
            chunks: chunks.map_err(Status::invalid_argument)?,
            offers: offers.map_err(Status::invalid_argument)?,
        };
        let asked = std::iter::once(Ok(first)).chain(self.small(session, request.more).await?);
        let asked = asked.collect::<Result<_, String>>().map_err(Status::invalid_argument)?;
        let wanted = Wanted {
            in_parts: request.version >= 1,
            thorough: request.thorough,
            salvage: request.thorough && request.salvage,
        };
        let permit = self.stream_permit().await?;
        Ok(sending::answer(asked, wanted, means, permit))
    }
}

/// A volume, open.
enum Volume {
    /// Its folder, and what lies at its top.
    Folder(OwnedFd, Top),
    Device(Device),
}

fn volume(roots: &Roots, path: &str) -> Result<Volume, TransferError> {
    let place = roots.place(path).map_err(|error| match error {
        TransferError::NotMounted { .. } => TransferError::SourceMissing(error.message()),
        error => error,
    })?;
    if place.is_device() {
        return Device::of(&place).map(Volume::Device);
    }
    let missing = |error| TransferError::SourceMissing(format!("{}: {error}", place.display()));
    Ok(Volume::Folder(place.open().map_err(missing)?, place.top()))
}

/// Whole chunks of the file, in order, without overlap, and no more than the limit.
fn requested(ranges: &[v1::Range], size_bytes: u64, limit: u64) -> Result<Vec<Range<u64>>, String> {
    let mut chunks: Vec<Range<u64>> = Vec::new();
    let mut count = 0;
    for (index, range) in ranges.iter().enumerate() {
        let end = range.offset.checked_add(range.length).filter(|end| *end <= size_bytes);
        let whole = end.filter(|end| end.is_multiple_of(CHUNK_BYTES) || *end == size_bytes);
        let (Some(end), true, true) = (whole, range.length > 0, range.offset.is_multiple_of(CHUNK_BYTES))
        else {
            return Err(format!("ranges[{index}] is not of whole chunks within the file"));
        };
        let this = range.offset / CHUNK_BYTES..chunk_count(end);
        if chunks.last().is_some_and(|last| last.end > this.start) {
            return Err(format!("ranges[{index}] is not behind those before it"));
        }
        count += this.end - this.start;
        if count > limit {
            return Err(format!("more than {limit} chunks in one request"));
        }
        chunks.push(this);
    }
    Ok(chunks)
}

fn batches(ranges: Vec<Range<u64>>) -> impl Iterator<Item = Range<u64>> + Send {
    ranges.into_iter().flat_map(|range| {
        let step = usize::try_from(HASH_BATCH).unwrap_or(1);
        range.clone().step_by(step).map(move |start| start..range.end.min(start + HASH_BATCH))
    })
}

/// A chunk range in bytes; the last chunk of a file may be short.
pub(super) fn wire_range(size_bytes: u64, chunks: &Range<u64>) -> model::Range {
    let offset = chunks.start * CHUNK_BYTES;
    model::Range { offset, length: (chunks.end * CHUNK_BYTES).min(size_bytes) - offset }
}

fn index(file: u32) -> usize {
    usize::try_from(file).unwrap_or(usize::MAX)
}

/// A stream that gives its permit back when it ends or is dropped.
fn holding<T: Send + 'static>(
    items: impl Stream<Item = Result<T, Status>> + Send + 'static,
    permit: OwnedSemaphorePermit,
) -> Items<T> {
    Box::pin(items.inspect(move |_| {
        let _held = &permit;
    }))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(TransferError::into_status),
        Err(_) => Err(Status::internal("the agent stops")),
    }
}

fn refused(why: String) -> Status {
    let mut status = Status::permission_denied(why);
    status
        .metadata_mut()
        .insert(super::error::REASON_HEADER, tonic::metadata::MetadataValue::from_static("SourceRefused"));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(ranges: &[(u64, u64)], size_bytes: u64) -> Result<Vec<Range<u64>>, String> {
        let ranges: Vec<_> =
            ranges.iter().map(|(offset, length)| v1::Range { offset: *offset, length: *length }).collect();
        requested(&ranges, size_bytes, MAX_CHUNKS_PER_READ)
    }

    #[test]
    fn whole_chunks_in_order_are_served() {
        let size = 3 * CHUNK_BYTES + 7;
        assert_eq!(ask(&[(0, CHUNK_BYTES), (2 * CHUNK_BYTES, CHUNK_BYTES + 7)], size), Ok(vec![0..1, 2..4]));
        assert_eq!(ask(&[], size), Ok(vec![]));
    }

    #[test]
    fn hostile_ranges_are_refused() {
        let size = 3 * CHUNK_BYTES + 7;
        for ranges in [
            &[(1, CHUNK_BYTES)][..],
            &[(0, 0)],
            &[(0, 5)],
            &[(0, CHUNK_BYTES), (0, CHUNK_BYTES)],
            &[(CHUNK_BYTES, CHUNK_BYTES), (0, CHUNK_BYTES)],
            &[(3 * CHUNK_BYTES, CHUNK_BYTES)],
            &[(u64::MAX - CHUNK_BYTES + 1, CHUNK_BYTES)],
            &[(0, u64::MAX)],
        ] {
            assert!(ask(ranges, size).is_err(), "{ranges:?}");
        }
        assert!(ask(&[(0, u64::MAX - u64::MAX % CHUNK_BYTES)], u64::MAX).is_err());
    }

    #[test]
    fn batches_cover_the_data() {
        let found: Vec<_> = batches(vec![0..70, 100..101]).collect();
        assert_eq!(found, vec![0..32, 32..64, 64..70, 100..101]);
    }
}

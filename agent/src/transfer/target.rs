//! The side that makes the copy: asks, fetches, verifies, publishes.
//!
//! ```text
//!   listed -> locked -> (published and equal?) --yes--> Done
//!                |no                    (halfway into a mounted volume, and equal? --yes--> finished -> Done)
//!                v
//!   ready --learn, punch, fetch-----> complete --pre-copy--------------------+
//!                ^                      |final                                |
//!                |                      v                                     |
//!                |                 listed again --source changed (bounded)--> listed
//!                |                      v                                     v
//!                +--differs (bounded)-- sealed, synced ----------------> read back
//!                                                   equal, final: published -> Done
//!                                                   equal, pre-copy: noted, kept as a partial copy -> Done
//!
//!   What a pre-copy has read back is not read back again by the final copy, as long as nobody has written to it.
//!
//!   A break of the connection leads back to `listed`, a few times in a row without progress.
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use somersault_agent_core::transfer::{Entry, Kind, Manifest, Replay, Session, Stamp};
use somersault_proto::model::{NodeName, Pull};
use tokio::task::JoinError;

use super::copying::Copying;
use super::fetch::Fetch;
use super::io::Pool;
use super::keys::Keys;
use super::listing::Listed;
use super::meter::Meter;
use super::partial::{Opened, Partial, Standing};
use super::peer::Peer;
use super::root::{Place, Roots, lasting};
use super::scan::{LOST_AND_FOUND, is_reserved};
use super::unreadable::Unreadable;
use super::wire::Wire;
use super::{Limits, PullDone, TransferError, existing, verify};

/// What a pull needs of its agent.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) node: &'a NodeName,
    pub(super) roots: &'a Roots,
    pub(super) wire: &'a Wire,
    pub(super) keys: &'a Keys,
    pub(super) limits: &'a Limits,
    pub(super) pool: &'a Pool,
}

/// How often the folder's lock is asked for, until it is free or the order is refused.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Read-backs that differ before the disk is not trusted any more.
const READ_BACKS_MAX: usize = 3;

/// Why a published copy is not made anew.
const WRITTEN_TO: &str = "this transfer has published it, and it was written to since";

/// A copy that is there.
struct Copied {
    root: [u8; 32],
    total_bytes: u64,
    /// What has zeroes, since the source could not read it: in words.
    unreadable: Option<String>,
}

impl Target<'_> {
    /// Makes the copy, starting over where that can help.
    pub(super) async fn pull(&self, pull: &Pull, meter: &Arc<Meter>) -> Result<PullDone, TransferError> {
        let start = Instant::now();
        self.check_token(pull)?;
        let (mut changes, mut waits) = (0, self.waits());
        loop {
            let sent_before = meter.sent_bytes();
            let error = match self.attempt(pull, meter).await {
                Ok(Copied { root: root_hash, total_bytes, unreadable }) => {
                    let sent_bytes = meter.sent_bytes();
                    let (elapsed, until_durable) = (start.elapsed(), meter.until_durable());
                    return Ok(PullDone {
                        root_hash,
                        total_bytes,
                        sent_bytes,
                        elapsed,
                        until_durable,
                        unreadable,
                    });
                }
                Err(error) => error,
            };
            if matches!(error, TransferError::SourceChanged(_)) {
                changes += 1;
                if changes > self.limits.source_changes_max {
                    return Err(error);
                }
            } else if error.is_transient() {
                if meter.sent_bytes() > sent_before {
                    waits = self.waits();
                }
                let Some(wait) = waits.next() else { return Err(error) };
                tokio::time::sleep(wait).await;
            } else {
                return Err(error);
            }
            tracing::info!(
                transfer = pull.transfer,
                error = error.message(),
                "the copy broke off and goes on"
            );
        }
    }

    /// Removes what a transfer keeps below any root, and in the mounted volume that it goes into. The published volume stays.
    pub(super) async fn drop_partial(
        &self,
        transfer: &str,
        target_path: Option<&str>,
    ) -> Result<(), TransferError> {
        // Only the root of the place matters: the partial folder has a name of its own.
        let below_roots = self.roots.of_copies().map(|root| format!("{}/-", root.display()));
        for path in below_roots.chain(target_path.map(str::to_owned)) {
            // A root that cannot be opened, or a volume that is not mounted any more, keeps nobody from cleaning the
            // others.
            let place = match self.place_of_copy(&path).await {
                Ok(place) => place,
                Err(error) => {
                    tracing::warn!(transfer, error = error.message(), "not looked for a partial copy");
                    continue;
                }
            };
            if let Some(partial) = self.lock(place, transfer, false).await? {
                join(tokio::task::spawn_blocking(move || partial.remove()).await)?;
            }
        }
        Ok(())
    }

    /// Opening a mounted volume may ask a server, so it is done where waiting is allowed.
    async fn place_of_copy(&self, path: &str) -> Result<Arc<Place>, TransferError> {
        let (roots, path) = (self.roots.clone(), path.to_owned());
        let place = join(tokio::task::spawn_blocking(move || roots.place_of_copy(&path)).await)?;
        Ok(Arc::new(place))
    }

    /// The order's token must be for this very copy; the source checks it again, for what it can see.
    fn check_token(&self, pull: &Pull) -> Result<(), TransferError> {
        let refused = |why: String| Err(TransferError::OrderRefused(why));
        match self.keys.verify(&pull.token, &pull.source_node, self.node) {
            Some(Ok(claims)) if claims.job != pull.transfer => refused(format!(
                "the token is for the transfer {:?}, not for {:?}",
                claims.job, pull.transfer
            )),
            Some(Ok(claims)) if claims.source_path != pull.source_path => {
                refused(format!("the token is for {}, not for {}", claims.source_path, pull.source_path))
            }
            Some(Err(error)) => refused(error.to_string()),
            // While no key is known here, the source alone decides.
            Some(Ok(_)) | None => Ok(()),
        }
    }

    fn waits(&self) -> impl Iterator<Item = Duration> + Send + use<> {
        ExponentialBuilder::default()
            .with_min_delay(self.limits.retry_min)
            .with_max_delay(self.limits.retry_max)
            .with_max_times(self.limits.retries_max)
            .build()
    }

    async fn lock(
        &self,
        place: Arc<Place>,
        transfer: &str,
        create: bool,
    ) -> Result<Option<Partial>, TransferError> {
        let deadline = Instant::now() + self.limits.lock_patience;
        loop {
            let (this, name) = (place.clone(), transfer.to_owned());
            match join(tokio::task::spawn_blocking(move || Partial::open(this, &name, create)).await)? {
                Opened::Locked(partial) => return Ok(Some(partial)),
                Opened::Missing => return Ok(None),
                Opened::Busy if Instant::now() >= deadline => {
                    return Err(TransferError::Busy("another process works on this transfer"));
                }
                Opened::Busy => tokio::time::sleep(LOCK_INTERVAL).await,
            }
        }
    }

    async fn attempt(&self, pull: &Pull, meter: &Arc<Meter>) -> Result<Copied, TransferError> {
        let place = self.place_of_copy(pull.target_path.as_str()).await?;
        let peer = Peer::connect(pull, self.wire, self.limits.stall).await?;
        let Listed { manifest, files_max } = peer.manifest(self.limits.listing).await?;
        let total_bytes = manifest.data_bytes();
        meter.set_total(total_bytes);
        if place.is_mounted() {
            refuse_reserved(&manifest)?;
        }
        let Some(partial) = self.lock(place.clone(), &pull.transfer, true).await? else {
            return Err(TransferError::Busy("the folder of this transfer is being removed"));
        };
        let (partial, standing) = join(
            tokio::task::spawn_blocking(move || partial.standing().map(|standing| (partial, standing))).await,
        )?;
        let exists = |why| Err(TransferError::TargetExists { path: place.display(), why });
        let is_this = |replay: &Replay| pull.final_copy && replay.head.identity == manifest.identity();
        let partial = match standing {
            Standing::Free => partial,
            Standing::Ours(replay, published) if is_this(&replay) => {
                meter.set_done(total_bytes);
                return Ok(Copied { root: published.root, total_bytes, unreadable: replay.unreadable });
            }
            Standing::Ours(..) if pull.final_copy => withdraw(partial).await?,
            Standing::Ours(..) => return exists("this transfer has published it already"),
            Standing::OursChanged if !place.is_mounted() => return exists(WRITTEN_TO),
            Standing::Halfway(replay, published) if is_this(&replay) => {
                let folder = manifest.folder();
                join(tokio::task::spawn_blocking(move || partial.finish(&folder)).await)?;
                meter.set_done(total_bytes);
                return Ok(Copied { root: published.root, total_bytes, unreadable: replay.unreadable });
            }
            Standing::Halfway(..) => withdraw(partial).await?,
            // Not every filesystem that is mounted anew gives its files the inodes that they had: only the content
            // tells then.
            changed @ (Standing::OursChanged | Standing::Foreign) => {
                let root = existing::compare(&peer, &place, &manifest, self.pool, meter).await?;
                let why = match changed {
                    Standing::OursChanged => WRITTEN_TO,
                    _ => "it is not a copy of the source",
                };
                return root
                    .map_or_else(|| exists(why), |root| Ok(Copied { root, total_bytes, unreadable: None }));
            }
        };
        let (pass, pool) = (pull.clone(), self.pool.clone());
        let source_path = lasting(pull.source_path.as_str()).to_owned();
        let begun =
            tokio::task::spawn_blocking(move || Copying::begin(partial, manifest, &pass, &source_path, pool));
        let (copying, mut session) = join(begun.await)?;
        let fetch = Fetch::connect(&peer, Arc::new(copying), self.pool.clone(), meter.clone(), files_max);
        self.copy(pull, &peer, fetch.await?, &mut session, meter).await
    }

    async fn copy(
        &self,
        pull: &Pull,
        peer: &Peer,
        fetch: Fetch,
        session: &mut Session,
        meter: &Arc<Meter>,
    ) -> Result<Copied, TransferError> {
        let copying = &fetch.copying;
        meter.set_done(session.settled_bytes());
        learn(copying, session, meter).await?;
        let (mut wrong, mut unreadable) = (Vec::new(), Unreadable::default());
        for _ in 0..READ_BACKS_MAX {
            punch(copying, session).await?;
            unreadable.add(fetch.run(session, pull.accept_unreadable).await?);
            if pull.final_copy {
                let again = peer.manifest(self.limits.listing).await?.manifest;
                if again.identity() != session.manifest().identity() {
                    let why = "it is not as it was when the copy began";
                    return Err(TransferError::SourceChanged(why.into()));
                }
                seal(copying, session.manifest()).await?;
            }
            meter.durable();
            let before = if pull.final_copy { BTreeMap::new() } else { stamps(copying, session).await? };
            wrong = verify::read_back(&copying.files, session, meter).await?;
            if wrong.is_empty() && session.is_complete() {
                let (root, copying) = (session.root(), copying.clone());
                let total_bytes = session.manifest().data_bytes();
                let unreadable = (!unreadable.is_empty()).then(|| unreadable.words(session.manifest()));
                let kept = if pull.final_copy {
                    let (folder, unreadable) = (session.manifest().folder(), unreadable.clone());
                    tokio::task::spawn_blocking(move || copying.publish(root, &folder, unreadable)).await
                } else {
                    let manifest = session.manifest().clone();
                    tokio::task::spawn_blocking(move || copying.note_read_back(&manifest, &before)).await
                };
                join(kept)?;
                return Ok(Copied { root, total_bytes, unreadable });
            }
            tracing::warn!(
                transfer = pull.transfer,
                chunks = wrong.len(),
                "read back differs; fetching again"
            );
            for (file, chunk) in &wrong {
                session.reject(*file, *chunk);
            }
            session.rewind();
        }
        let path = wrong.first().and_then(|(file, _)| session.manifest().entry(*file));
        let path = path.map_or_else(|| "the volume".to_owned(), |entry| entry.display());
        Err(TransferError::VerificationFailed { path })
    }
}

/// Finds out what the target holds where no journal tells of it: reading it costs less than fetching it again.
async fn learn(copying: &Arc<Copying>, session: &mut Session, meter: &Meter) -> Result<(), TransferError> {
    if !copying.files.are_worth_reading() {
        return Ok(());
    }
    for file in 0..session.manifest().len() {
        if session.unknown(file).next().is_some() {
            verify::learn(&copying.files, session, file, meter).await?;
        }
    }
    Ok(())
}

/// Makes holes of what is a hole at the source.
async fn punch(copying: &Arc<Copying>, session: &mut Session) -> Result<(), TransferError> {
    for file in 0..session.manifest().len() {
        let chunks = session.punches(file);
        if chunks.is_empty() {
            continue;
        }
        let (Some(entry), copying) = (session.manifest().entry(file), copying.clone()) else { continue };
        let chunks = join(
            tokio::task::spawn_blocking(move || copying.punch(file, &entry, &chunks).map(|()| chunks)).await,
        )?;
        for range in chunks {
            session.punched(file, range);
        }
    }
    Ok(())
}

/// Takes back what is under the final name.
async fn withdraw(partial: Partial) -> Result<Partial, TransferError> {
    join(tokio::task::spawn_blocking(move || partial.withdraw().map(|()| partial)).await)
}

/// What a mounted volume has at its top without being part of it cannot be copied there. A `lost+found` with nothing in
/// it came with the source's own filesystem, and is left out.
fn refuse_reserved(manifest: &Manifest) -> Result<(), TransferError> {
    let is_in_the_way = |entry: &Entry| is_reserved(&entry.path) && !is_blank(entry, manifest);
    match manifest.entries().find(is_in_the_way) {
        None => Ok(()),
        Some(entry) => {
            let path = entry.display();
            let why =
                "a mounted volume has a folder of that name besides its content; remove or rename this one";
            Err(TransferError::SourceUnsupported(format!("{path}: {why}")))
        }
    }
}

/// Whether it is a source's `lost+found` with nothing in it.
pub(super) fn is_blank(entry: &Entry, manifest: &Manifest) -> bool {
    let is_in_it =
        |other: Entry| other.path.strip_prefix(LOST_AND_FOUND).is_some_and(|rest| rest.starts_with(b"/"));
    entry.path == LOST_AND_FOUND && entry.kind == Kind::Folder && !manifest.entries().any(is_in_it)
}

/// How the files of the copy are, before they are read back.
async fn stamps(copying: &Arc<Copying>, session: &Session) -> Result<BTreeMap<u32, Stamp>, TransferError> {
    let (copying, manifest) = (copying.clone(), session.manifest().clone());
    join(tokio::task::spawn_blocking(move || copying.stamps(&manifest)).await)
}

async fn seal(copying: &Arc<Copying>, manifest: &Manifest) -> Result<(), TransferError> {
    let (copying, manifest) = (copying.clone(), manifest.clone());
    join(tokio::task::spawn_blocking(move || copying.seal(&manifest)).await)
}

/// What a task returned. A task that was stopped was stopped with the copy; a panic goes on here.
pub(super) fn join<T>(ended: Result<Result<T, TransferError>, JoinError>) -> Result<T, TransferError> {
    match ended {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(TransferError::Cancelled),
        },
    }
}

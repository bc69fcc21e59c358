//! The copying of volumes between agents: the target pulls, the source only reads.
//!
//! ```text
//!   order --Transfers::pull--> target.rs ---------gRPC over mutual TLS---------> serving.rs, source.rs of the other agent
//!                                  |                                                   |
//!            partial.rs, copying.rs, journal.rs, blocks.rs                    scan.rs, sending.rs
//!            fetch.rs on lanes.rs, received.rs                                         |
//!            mounted.rs                listing.rs, frames.rs: manifests and content on the wire, for both
//!              (below a storage root or mounted for a pod, through root.rs on both sides;
//!               device.rs: a block device, which a pod hands over by handing.rs)
//! ```
//!
//! What is decided without IO (what is missing, what a journal proves, what may be believed of a manifest) is in
//! `somersault_agent_core::transfer`.

mod blocks;
mod copying;
mod device;
mod error;
mod existing;
mod extents;
mod fetch;
mod frames;
mod handing;
mod io;
mod journal;
mod keys;
mod lanes;
mod listing;
mod metadata;
mod meter;
mod mounted;
mod partial;
mod peer;
mod received;
mod remove;
mod root;
mod scan;
mod sending;
mod serving;
mod source;
mod target;
mod unreadable;
mod verify;
mod wire;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use somersault_proto::model::{CopyRates, NodeName};
use somersault_proto::tls::TlsSource;
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;

pub use error::TransferError;
pub use handing::{SOCKET, hold};
pub use root::PARTIAL_PREFIX;
pub use serving::Serving;
/// An order to copy a volume to here.
pub use somersault_proto::model::Pull as PullRequest;

use io::Pool;
use keys::Keys;
use meter::{Meter, Rates};
use root::Roots;
use source::Source;
use target::Target;
use wire::Wire;

/// How often progress is told: four times a second is as much as a person can see.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// What a cancelled copy gets to note what it has written.
const CANCEL_GRACE: Duration = Duration::from_millis(500);

/// How many copies of one transfer an order ends before it gives up: they can only pile up while orders come faster
/// than a cancelled copy ends.
const SUPERSEDE_MAX: usize = 8;

/// What the transfers of an agent need to know.
#[derive(Clone, Debug)]
pub struct TransferConfig {
    /// Storage roots, each with how many folders deep its volumes lie. Those can be read and removed; made are only
    /// volumes directly below a root.
    pub roots: Vec<(PathBuf, u8)>,
    /// Where the kubelet mounts the volumes of pods, `/var/lib/kubelet/pods`: those can be read, and copies be put into
    /// them. It lies apart from every root. Without it there are none.
    pub pods: Option<PathBuf>,
    /// This agent's certificate.
    pub tls: TlsSource,
    /// This node.
    pub node: NodeName,
}

/// Limits of the copies that an agent makes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Copies at the same time; further ones wait. Two keep a disk and a link busy.
    pub pulls_max: usize,
    /// A source that has sent nothing for so long is given up. A disk that retries a bad sector takes up to 30 s for
    /// each (the SCSI layer's default command timeout).
    pub stall: Duration,
    /// The same for a listing, for which the source first syncs the volume's files.
    pub listing: Duration,
    /// Waits between attempts that bring nothing: the first, the longest, how many. Together about 30 s, in which an
    /// agent restarts; the coordinator repeats its order after that.
    pub retry_min: Duration,
    /// See `retry_min`.
    pub retry_max: Duration,
    /// See `retry_min`.
    pub retries_max: usize,
    /// How often a final copy starts over because the source changed meanwhile.
    pub source_changes_max: usize,
    /// A read that takes longer is left alone, and what lies behind it comes first. A disk tries a bad sector again and again
    /// for seconds, and is reset by the kernel after 30 s (the SCSI layer's default timeout for a command).
    pub read_patience: Duration,
    /// The same for the second try, in pieces, each of which may take as long as the kernel lets it.
    pub reread_patience: Duration,
    /// How long to wait for a copy of the same transfer that was just dropped to let go of its folder.
    pub lock_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pulls_max: 2,
            stall: Duration::from_mins(1),
            listing: Duration::from_mins(5),
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(8),
            retries_max: 8,
            source_changes_max: 3,
            read_patience: Duration::from_secs(10),
            reread_patience: Duration::from_secs(45),
            lock_patience: Duration::from_secs(5),
        }
    }
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Data bytes of the source that the target is known to hold.
    pub done_bytes: u64,
    /// Data bytes of the source; 0 until it has been listed.
    pub total_bytes: u64,
    /// Over the last seconds, of everything that was written, compared or read back: 0 means that nothing moves.
    pub rate_bytes_per_s: u64,
}

/// A copy that is complete; a final one is verified and published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullDone {
    /// BLAKE3 over sizes, leaves and metadata.
    pub root_hash: [u8; 32],
    /// Data bytes of the source.
    pub total_bytes: u64,
    /// Bytes of content that crossed the wire for this order.
    pub sent_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// How long until all of it was on the disk, before it was read back from there.
    pub until_durable: Duration,
    /// What the source could not read, by file and range, in words: the copy has zeroes there, as the order accepts.
    pub unreadable: Option<String>,
}

/// The transfers of one agent, as source and as target.
#[derive(Clone, Debug)]
pub struct Transfers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: NodeName,
    wire: Wire,
    limits: Limits,
    roots: Roots,
    keys: Arc<Keys>,
    pool: Pool,
    rates: Arc<Rates>,
    permits: Semaphore,
    running: Mutex<HashMap<String, Arc<Meter>>>,
    /// One volume is removed at a time: it keeps a disk busy enough.
    removing: tokio::sync::Mutex<()>,
    source: Source,
}

impl Transfers {
    /// With the limits that fit a node.
    pub fn new(config: TransferConfig) -> Self {
        Self::with_limits(config, Limits::default())
    }

    /// With other limits.
    pub fn with_limits(config: TransferConfig, limits: Limits) -> Self {
        let wire = Wire::Tls(config.tls.clone());
        Self::carried_by(wire, config, limits)
    }

    /// Without encryption, for a measurement: whoever calls is taken for this node.
    #[cfg(feature = "plaintext")]
    pub fn in_plaintext_with(config: TransferConfig, peer: NodeName) -> Self {
        Self::carried_by(Wire::Plain(peer), config, Limits::default())
    }

    fn carried_by(wire: Wire, config: TransferConfig, limits: Limits) -> Self {
        let roots = Roots::new(config.roots.clone(), config.pods.clone());
        let (keys, pool, rates) = (Arc::new(Keys::default()), Pool::default(), Arc::<Rates>::default());
        let source = Source::new(
            config.node.clone(),
            wire.clone(),
            roots.clone(),
            keys.clone(),
            pool.clone(),
            rates.clone(),
            &limits,
        );
        let permits = Semaphore::new(limits.pulls_max);
        Self(Arc::new(Inner {
            node: config.node,
            wire,
            limits,
            roots,
            keys,
            pool,
            rates,
            permits,
            running: Mutex::default(),
            removing: tokio::sync::Mutex::default(),
            source,
        }))
    }

    /// The service for the agent's server, which must require client certificates of the fleet's CA.
    pub fn service(&self) -> Serving {
        Serving::new(self.0.source.clone())
    }

    /// Takes the key that a coordinator signs its tokens with; it replaces that coordinator's last one.
    pub fn set_token_key(&self, coordinator: &str, key: [u8; 32]) {
        if let Err(error) = self.0.keys.set(coordinator, key) {
            tracing::warn!(coordinator, %error, "the coordinator's token key is refused; its transfers will be too");
        }
    }

    /// How fast copies may be from now on, those that run among them.
    pub fn set_rates(&self, rates: CopyRates) {
        self.0.rates.set(rates);
    }

    /// A coordinator is no more. Its key is kept as long as there is room, for the copies that it has ordered.
    pub fn coordinator_gone(&self, coordinator: &str) {
        self.0.keys.gone(coordinator);
    }

    /// Copies a volume. Dropping the future stops the copy; what has arrived stays, and the next order of the same
    /// transfer goes on from there. A second order of a transfer that runs ends the first as `Cancelled`, and does
    /// the same.
    pub fn pull(
        &self,
        request: PullRequest,
        progress: watch::Sender<PullProgress>,
    ) -> impl Future<Output = Result<PullDone, TransferError>> + Send + use<> {
        let inner = self.0.clone();
        async move { inner.pull(&request, &progress).await }
    }

    /// Stops a copy: its future ends as `Cancelled` within a second. With `drop_partial` what has arrived is removed,
    /// by that future or, where no copy runs, before this returns. A published volume is never touched.
    /// `target_path` is where the copy goes: a partial folder in a mounted volume is found by nothing else.
    pub async fn cancel(
        &self,
        transfer: &str,
        drop_partial: bool,
        target_path: Option<&str>,
    ) -> Result<(), TransferError> {
        let running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner).get(transfer).cloned();
        match running {
            Some(meter) => meter.cancel(drop_partial),
            None if drop_partial => self.0.target().drop_partial(transfer, target_path).await?,
            None => {}
        }
        Ok(())
    }

    /// Removes a volume for good, which must lie where a storage root has its volumes, and be in nobody's use. One that
    /// is not there is removed already. A mounted volume is never removed: it goes with its claim.
    pub async fn remove(&self, path: &str) -> Result<(), TransferError> {
        let place = match self.0.roots.place_below_root(path) {
            Err(TransferError::SourceMissing(_)) => return Ok(()),
            place => place?,
        };
        let _one_at_a_time = self.0.removing.lock().await;
        target::join(tokio::task::spawn_blocking(move || remove::volume(&place)).await)
    }
}

impl Inner {
    async fn pull(
        self: Arc<Self>,
        request: &PullRequest,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<PullDone, TransferError> {
        let meter = Arc::new(Meter::new(request.rate_limit_bytes_per_s, self.rates.clone()));
        let running = Running::enter(self.clone(), &request.transfer, &meter).await?;
        let result = self.supervise(request, &meter, progress).await;
        progress.send_replace(meter.progress());
        drop(running);
        if matches!(result, Err(TransferError::Cancelled)) && meter.is_to_be_dropped() {
            self.target().drop_partial(&request.transfer, Some(request.target_path.as_str())).await?;
        }
        result
    }

    async fn supervise(
        &self,
        request: &PullRequest,
        meter: &Arc<Meter>,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<PullDone, TransferError> {
        let _permit = tokio::select! {
            permit = self.permits.acquire() => permit.map_err(|_| TransferError::Cancelled)?,
            () = meter.cancelled() => return Err(TransferError::Cancelled),
        };
        let target = self.target();
        let mut work = std::pin::pin!(target.pull(request, meter));
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = meter.cancelled() => {
                    let ended = tokio::time::timeout(CANCEL_GRACE, &mut work).await;
                    return ended.unwrap_or(Err(TransferError::Cancelled));
                }
                _ = ticks.tick() => { progress.send_replace(meter.progress()); }
            }
        }
    }

    fn target(&self) -> Target<'_> {
        Target {
            node: &self.node,
            roots: &self.roots,
            wire: &self.wire,
            keys: &self.keys,
            limits: &self.limits,
            pool: &self.pool,
        }
    }
}

/// A copy in the list of those that run; leaves it when dropped.
struct Running {
    inner: Arc<Inner>,
    transfer: String,
    meter: Arc<Meter>,
}

impl Running {
    /// Enters the list. A copy of the same transfer that runs is ended first: the order that comes later is of a
    /// coordinator that knows more, and that has signed a token which still counts.
    async fn enter(inner: Arc<Inner>, transfer: &str, meter: &Arc<Meter>) -> Result<Self, TransferError> {
        for _ in 0..SUPERSEDE_MAX {
            let older = {
                let mut running = inner.running.lock().unwrap_or_else(PoisonError::into_inner);
                let older = running.get(transfer).cloned();
                if older.is_none() {
                    running.insert(transfer.to_owned(), meter.clone());
                }
                older
            };
            let Some(older) = older else {
                return Ok(Self { inner, transfer: transfer.to_owned(), meter: meter.clone() });
            };
            older.cancel(false);
            if tokio::time::timeout(inner.limits.lock_patience, older.ended()).await.is_err() {
                return Err(TransferError::Busy("this transfer is running already, and does not end"));
            }
        }
        Err(TransferError::Busy("orders of this transfer chase each other"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.transfer);
        self.meter.end();
    }
}

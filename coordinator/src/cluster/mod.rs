//! What the coordinator needs of a cluster. Two exist: `directory`, a folder of manifests, and `kube`, a real API
//! server. What both must do alike is beside them: `change` says what an action makes of an object, `stored` which
//! record may replace which, `published` what is shown when, `told` what an Event says.

mod change;
pub mod directory;
mod error;
pub mod kube;
pub mod manifest;
mod published;
mod stamp;
mod stored;
mod told;

use std::collections::BTreeMap;
use std::sync::Arc;

use somersault_coordinator_core::fleet::Fleet;
use somersault_coordinator_core::io::{Action, Notice, OpenRecovery, Record, Requests};
use somersault_coordinator_core::migration::{CronJobName, DryRun, DryRunAnswer, GuestAnswer, GuestQuestion};
use somersault_coordinator_core::names::NodeName;
use somersault_coordinator_core::view::View;
use tokio::sync::watch;

pub use self::error::ClusterError;
use self::manifest::ObjectId;
use crate::windows::Window;

/// The cluster as last read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Its objects. Shared with the snapshot before where none of them changed.
    pub fleet: Arc<Fleet>,
    /// What people ask for; shared likewise.
    pub requests: Arc<Requests>,
    /// When evacuations that have a window may stop VMs.
    pub windows: BTreeMap<String, Window>,
    /// `spec.renewTime` of each kubelet's Lease. Only a change of it tells something: it is the reading of
    /// another host's clock, and is never compared with ours.
    pub kubelet_renewals: BTreeMap<NodeName, String>,
    /// `metadata.generation` of those of our objects whose spec people change.
    pub generations: BTreeMap<ObjectId, i64>,
    /// `metadata.uid` of what we show nodes and recoveries in. Somebody may delete it while it is still to be seen.
    pub ours: BTreeMap<ObjectId, String>,
    /// Manifests that could not be read: file, document, field. The rest goes on.
    pub problems: Vec<Problem>,
}

/// One manifest that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// File, relative to the cluster's folder.
    pub file: String,
    /// Document of the file, from 1; 0 where the file as a whole is meant.
    pub document: usize,
    /// `Kind namespace/name`, where it could be read.
    pub object: String,
    /// The field and what is wrong with it.
    pub message: String,
}

/// A cluster that can be read, changed, and that stores our records in our objects' status.
pub trait Cluster: Send + Sync + 'static {
    /// The newest snapshot; changed whenever an object changed.
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>>;

    /// Whether a follower is of use: it has read the whole cluster, and agents beat to it too. Where nobody but the
    /// leader is of use, never.
    fn is_warm(&self) -> bool {
        false
    }

    /// Performs an action. Idempotent; a broken precondition is an error that retrying does not mend.
    fn act(&self, action: &Action) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Makes a user's own Job that answers a question, where it is not there yet, and says how it stands.
    fn ask_job(
        &self,
        question: &GuestQuestion,
        template: &CronJobName,
    ) -> impl Future<Output = Result<GuestAnswer, ClusterError>> + Send;

    /// Asks whether objects would be made, and makes none.
    fn dry_run(&self, question: &DryRun) -> impl Future<Output = Result<DryRunAnswer, ClusterError>> + Send;

    /// Stores a record in its object's status by compare-and-swap: refused when the stored record is of a
    /// newer epoch than `epoch`, or was changed by somebody else since it was last read or written here.
    fn commit(&self, record: &Record, epoch: u64) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Every stored record, read now and not from a cache.
    fn records(&self) -> impl Future<Output = Result<Vec<Record>, ClusterError>> + Send;

    /// Recoveries of dead nodes that are shown as neither over nor recovered, read now and not from a cache.
    fn open_recoveries(&self) -> impl Future<Output = Result<Vec<OpenRecovery>, ClusterError>> + Send;

    /// Writes the display part of our objects' status (everything but records). No decision needs it after a crash; what
    /// is shown as open is read again, so that it is shown to its end.
    fn publish(&self, view: &View) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Writes an Event.
    fn event(&self, notice: &Notice) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Waits until this process leads, and returns its epoch: larger than every epoch before. Leadership ends
    /// when the returned guard says so.
    fn lead(&self, identity: &str) -> impl Future<Output = Result<Leadership, ClusterError>> + Send;
}

/// Leadership of one epoch.
#[derive(Debug)]
pub struct Leadership {
    /// Our epoch.
    pub epoch: u64,
    /// Turns true when leadership is lost.
    pub lost: watch::Receiver<bool>,
    /// Whether it lasts at this very moment.
    pub lasts: Lasts,
}

/// Tells whether a term lasts at this very moment. It is asked right before each effect: a process that stood still
/// for longer than its lease would act in a dead term's name until its timers have told it.
#[derive(Clone)]
pub struct Lasts(Arc<dyn Fn() -> bool + Send + Sync>);

impl Lasts {
    /// For as long as this says so.
    pub fn new(lasts: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(lasts))
    }

    /// Until it is told to be lost: where leadership is bound to the life of the process.
    pub fn until_told() -> Self {
        Self::new(|| true)
    }

    /// Whether it lasts.
    pub fn now(&self) -> bool {
        self.0()
    }
}

impl std::fmt::Debug for Lasts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lasts").field(&self.now()).finish()
    }
}

//! The directory cluster: a folder of manifests, as `kubectl get -o yaml` prints them.
//!
//! ```text
//!             people, CLI, other controllers
//!                        │ Store
//!                        ▼
//!   notify ──► folder ──► objects ──► Inventory ──► Snapshot ──► watch channel ──► coordinator
//!                ▲                                                                     │
//!                └── act, commit, publish, event: one lock, one file at a time ◄───────┘
//! ```
//!
//! Every change is made under the folder's lock by replacing one file, so that a reader never sees half a change of
//! an object and a killed writer leaves nothing broken behind. Our own objects live in `somersault/<kind>/`, Events
//! in `events/`, other objects that we create in `created/<kind>/`.

mod act;
mod dump;
mod events;
pub mod files;
mod lead;
mod publish;
mod records;
pub mod store;
pub mod watch;
mod write;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use somersault_coordinator_core::io::{Action, Notice, OpenRecovery, Record};
use somersault_coordinator_core::migration::{
    CronJobName, DryRun, DryRunAnswer, GuestAnswer, GuestQuestion, Verdict,
};
use somersault_coordinator_core::view::View;
use tokio::sync::watch as channel;

pub use self::dump::{read_dump, read_objects, snapshot};
pub use self::lead::is_led;
pub use self::store::{Objects, Store, Transaction};
pub use self::watch::FolderWatch;
use crate::cluster::error::refused;
use crate::cluster::published::Published;
use crate::cluster::stored::{self, Known};
use crate::cluster::{Cluster, ClusterError, Leadership, Snapshot};

/// Why no Job is made.
const RUNS_NO_JOBS: &str = "a folder of manifests runs no Jobs";

/// A folder of manifests as a cluster.
pub struct Directory {
    inner: Arc<Inner>,
    snapshots: channel::Receiver<Arc<Snapshot>>,
}

struct Inner {
    store: Store,
    lead: Mutex<Option<lead::Lead>>,
    known: Mutex<Known>,
    published: Mutex<Published>,
    snapshots: channel::Receiver<Arc<Snapshot>>,
    poke: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("root", &self.inner.store.root()).finish_non_exhaustive()
    }
}

impl Directory {
    /// Opens a folder that can be read and written, removes what killed writers left in it, and starts to watch it.
    /// The first snapshot is there when this returns.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, ClusterError> {
        let store = Store::open(root)?;
        store.remove_leftovers()?;
        // Watched before it is read: what changes in between is seen twice and not never.
        let watch = FolderWatch::new(store.root());
        let first = Arc::new(snapshot(&store.objects()?));
        let (sender, snapshots) = channel::channel(first);
        let inner = Arc::new(Inner {
            store,
            lead: Mutex::default(),
            known: Mutex::default(),
            published: Mutex::new(Published::new()),
            snapshots: snapshots.clone(),
            poke: Box::new(watch.poker()),
        });
        let weak = Arc::downgrade(&inner);
        let refresh = move || {
            while let Some(inner) = weak.upgrade() {
                inner.refresh(&sender);
                drop(inner);
                watch.wait(watch::SLOW_LOOK);
            }
        };
        let place = inner.store.root().to_owned();
        let thread = std::thread::Builder::new().name("cluster-watch".to_owned()).spawn(refresh);
        thread.map_err(|e| store::io_error(&place, e))?;
        Ok(Self { inner, snapshots })
    }

    /// Raw access to the same folder.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Runs file work where it may block.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, ClusterError> + Send + 'static,
    ) -> Result<T, ClusterError> {
        let inner = Arc::clone(&self.inner);
        let place = self.inner.store.root().to_owned();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|e| store::io_error(&place, std::io::Error::other(e)))?
    }

    /// Changes the folder under its lock, and makes the change seen at once.
    async fn change(
        &self,
        work: impl FnOnce(&Inner, &Transaction<'_>) -> Result<(), ClusterError> + Send + 'static,
    ) -> Result<(), ClusterError> {
        self.run(move |inner| {
            let result = inner.store.transaction(|tx| {
                inner.check_lead()?;
                work(inner, tx)
            });
            (inner.poke)();
            result
        })
        .await
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The watching thread holds no reference while it waits: woken, it finds nobody and ends.
        (self.inner.poke)();
    }
}

impl Inner {
    /// Reads the folder anew; a folder that cannot be read leaves the last snapshot standing, with a problem.
    fn refresh(&self, sender: &channel::Sender<Arc<Snapshot>>) {
        if let Some(lead) = lock(&self.lead).as_ref() {
            lead.holds(self.store.root());
        }
        let next = match self.store.objects() {
            Ok(objects) => snapshot(&objects),
            Err(e) => {
                let mut last = Snapshot::clone(&sender.borrow());
                last.problems = vec![unreadable(&e)];
                last
            }
        };
        sender.send_if_modified(|current| {
            let changed = **current != next;
            if changed {
                *current = Arc::new(next);
            }
            changed
        });
    }

    /// The epoch in which we lead, where we do: looked up now, under the folder's lock.
    fn epoch(&self) -> Option<u64> {
        lock(&self.lead).as_ref().filter(|lead| lead.holds(self.store.root())).map(lead::Lead::epoch)
    }

    /// Only the leader changes anything.
    fn check_lead(&self) -> Result<u64, ClusterError> {
        let place = self.store.root().display().to_string();
        self.epoch().ok_or_else(|| refused(&place, "this process does not lead; it changes nothing"))
    }

    /// Takes the leadership if it is free.
    fn try_lead(&self, identity: &str) -> Result<Option<Leadership>, ClusterError> {
        // What we may have had before is over: its lock would keep us out.
        *lock(&self.lead) = None;
        let Some(file) = lead::try_lock(self.store.root())? else { return Ok(None) };
        self.store.transaction(|tx| {
            let records = records::all(&tx.objects()?, &mut lock(&self.known))?;
            let seen = stored::newest_epoch(&records);
            let (lead, leadership) = lead::Lead::begin(tx, file, identity, seen)?;
            *lock(&self.lead) = Some(lead);
            Ok(Some(leadership))
        })
    }
}

fn unreadable(error: &ClusterError) -> crate::cluster::Problem {
    let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    crate::cluster::Problem {
        file: ".".to_owned(),
        document: 0,
        object: String::new(),
        message: format!("{error}{cause}; what was read last is shown"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is replaced as a whole, never left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster for Directory {
    fn snapshots(&self) -> channel::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    async fn act(&self, action: &Action) -> Result<(), ClusterError> {
        let action = action.clone();
        self.change(move |_, tx| act::perform(tx, &action)).await
    }

    async fn ask_job(&self, _: &GuestQuestion, template: &CronJobName) -> Result<GuestAnswer, ClusterError> {
        Err(refused(template.as_str(), RUNS_NO_JOBS))
    }

    /// A folder takes whatever is written to it.
    async fn dry_run(&self, question: &DryRun) -> Result<DryRunAnswer, ClusterError> {
        let job = question.job.as_ref().map(|_| Verdict::Refused(RUNS_NO_JOBS.to_owned()));
        let claims = question.claims.iter().flatten().map(|_| Verdict::Admitted).collect();
        Ok(DryRunAnswer { claims, quotas: Vec::new(), job })
    }

    async fn commit(&self, record: &Record, epoch: u64) -> Result<(), ClusterError> {
        let record = record.clone();
        self.change(move |inner, tx| {
            let leading = inner.check_lead()?;
            records::commit(tx, &mut lock(&inner.known), &record, epoch, leading)
        })
        .await
    }

    async fn records(&self) -> Result<Vec<Record>, ClusterError> {
        self.run(|inner| records::all(&inner.store.objects()?, &mut lock(&inner.known))).await
    }

    async fn open_recoveries(&self) -> Result<Vec<OpenRecovery>, ClusterError> {
        self.run(|inner| Ok(publish::open_recoveries(&inner.store.objects()?))).await
    }

    async fn publish(&self, view: &View) -> Result<(), ClusterError> {
        let view = view.clone();
        self.run(move |inner| {
            // A follower's view is no less true, but two writers would fight.
            if inner.epoch().is_none() {
                return Ok(());
            }
            let snapshot = Arc::clone(&inner.snapshots.borrow());
            let mut published = lock(&inner.published);
            let changes = published.changes(&view, &snapshot);
            let stale = publish::stale(&inner.store.objects()?, &view, &snapshot.fleet);
            if changes.is_empty() && stale.is_empty() {
                return Ok(());
            }
            inner.store.transaction(|tx| {
                inner.check_lead()?;
                publish::write(tx, changes, &mut published, &mut lock(&inner.known))?;
                publish::end(tx, &stale, &mut published)
            })
        })
        .await
    }

    async fn event(&self, notice: &Notice) -> Result<(), ClusterError> {
        let notice = notice.clone();
        self.change(move |_, tx| events::write(tx, &notice)).await
    }

    async fn lead(&self, identity: &str) -> Result<Leadership, ClusterError> {
        loop {
            let identity = identity.to_owned();
            if let Some(leadership) = self.run(move |inner| inner.try_lead(&identity)).await? {
                return Ok(leadership);
            }
            tokio::time::sleep(lead::LOCK_RETRY).await;
        }
    }
}

//! Leadership on a Lease of our namespace: what [`super::election`] decides, done.
//!
//! ```text
//!   lead ──► read ──► write our name and the epoch, if still as read ──► led ──► renew, every few seconds ─┐
//!             ▲  └─ somebody leads: wait                                  ▲            │                    │
//!             └───────────────────────────────────────────────────────────┼────────────┼── lost ◄───────────┘
//!                                                                         └────────────┘
//! ```
//!
//! The epoch is the Lease's count of transitions, but never one that some record has seen: a person may have deleted
//! the Lease, or set it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::api::{FIELD_MANAGER, call};
use super::election::{Election, Found, NOBODY, Seen, Step, Times, seconds_of};
use super::write::Writer;
use crate::clock::{BootClock, Clock};
use crate::cluster::ClusterError;
use crate::cluster::error::refused;
use crate::cluster::manifest::ObjectId;
use crate::cluster::stored::newest_epoch;

/// The Lease's name.
pub const LEASE_NAME: &str = "somersault-coordinator";
/// Added to the newest epoch of any record when the Lease was deleted: more leaders than that have not come and gone
/// without leaving a record.
const EPOCHS_UNRECORDED: u64 = 1_000;
/// Giving the Lease back is one request; without it, the next leader waits for the lease to run out.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);

/// How soon things happen, by the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// Of lease and renewal.
    pub times: Times,
    /// Between two tries.
    pub retry: Duration,
}

/// The Lease.
#[derive(Clone)]
pub(super) struct Place {
    api: Api<Lease>,
    id: ObjectId,
}

impl Place {
    /// In this namespace.
    pub fn new(client: kube::Client, namespace: &str) -> Self {
        let id = ObjectId {
            kind: "Lease".to_owned(),
            namespace: namespace.to_owned(),
            name: LEASE_NAME.to_owned(),
        };
        Self { api: Api::namespaced(client, namespace), id }
    }

    async fn read(&self) -> Result<Option<Lease>, ClusterError> {
        call(&self.id, self.api.get_opt(LEASE_NAME)).await
    }

    /// Creates or replaces the Lease; a conflict where it is not as it was read.
    async fn write(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let parameters =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        if lease.metadata.resource_version.is_none() {
            call(&self.id, self.api.create(&parameters, lease)).await
        } else {
            call(&self.id, self.api.replace(LEASE_NAME, &parameters, lease)).await
        }
    }
}

/// A term of ours, which may be over.
#[derive(Debug)]
pub(super) struct Term {
    /// Its epoch.
    pub epoch: u64,
    /// Microseconds of our boot clock until which it lasts, as far as is stored.
    until: AtomicU64,
    over: AtomicBool,
    end: CancellationToken,
    ended: CancellationToken,
}

impl Term {
    /// Whether it lasts at this very moment. A process that stood still finds out here, before it does anything.
    pub fn lasts(&self) -> bool {
        let now = u64::try_from(BootClock.now().as_micros()).unwrap_or(u64::MAX);
        !self.over.load(Ordering::SeqCst) && now < self.until.load(Ordering::SeqCst)
    }

    /// Gives the Lease back, if it is ours still.
    pub async fn give_back(&self) {
        self.end.cancel();
        self.ended.cancelled().await;
    }

    fn extend(&self, election: &Election) {
        let until = election.deadline().unwrap_or_default();
        self.until.store(u64::try_from(until.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

/// One candidate's way to a term.
pub(super) struct Candidate {
    place: Place,
    election: Election,
    identity: String,
    pace: Pace,
}

impl Candidate {
    /// A candidate with a name that no other process has.
    pub fn new(place: Place, identity: String, rhythm: Pace) -> Self {
        let election = Election::new(identity.clone(), rhythm.times);
        Self { place, election, identity, pace: rhythm }
    }

    /// Waits until we lead. The records are asked for their newest epoch when there is no Lease.
    pub async fn win(mut self, writer: &Writer) -> (Arc<Term>, watch::Receiver<bool>) {
        let epoch = loop {
            match self.stand(writer).await {
                Ok(Some(epoch)) => break epoch,
                Ok(None) | Err(ClusterError::Conflict { .. }) => {}
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot stand for election");
                }
            }
            tokio::time::sleep(self.pace.retry).await;
        };
        let term = Arc::new(Term {
            epoch,
            until: AtomicU64::new(0),
            over: AtomicBool::new(false),
            end: CancellationToken::new(),
            ended: CancellationToken::new(),
        });
        term.extend(&self.election);
        let (lost, receiver) = watch::channel(false);
        tokio::spawn(self.hold(Arc::clone(&term), lost));
        (term, receiver)
    }

    /// Renews until the term is over.
    async fn hold(mut self, term: Arc<Term>, lost: watch::Sender<bool>) {
        loop {
            let now = BootClock.now();
            let left = self.election.deadline().unwrap_or_default().saturating_sub(now);
            if left.is_zero() {
                tracing::warn!("the lease could not be renewed in time");
                break;
            }
            let next = async {
                tokio::time::sleep(self.pace.retry.min(left)).await;
                tokio::time::timeout(left, self.renew()).await
            };
            match term.end.run_until_cancelled(next).await {
                None => {
                    self.release().await;
                    break;
                }
                Some(Ok(Ok(Some(_)))) => term.extend(&self.election),
                Some(Ok(Ok(None))) => {
                    tracing::warn!("somebody else leads");
                    break;
                }
                Some(Ok(Err(error))) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the lease was not renewed");
                }
                // The deadline is looked at above.
                Some(Err(_elapsed)) => {}
            }
        }
        term.over.store(true, Ordering::SeqCst);
        lost.send_replace(true);
        term.ended.cancel();
    }

    /// Reads the Lease, and takes it where it is free: our epoch when our name is stored.
    async fn stand(&mut self, writer: &Writer) -> Result<Option<u64>, ClusterError> {
        let asked = BootClock.now();
        let stored = self.place.read().await?;
        let answered = BootClock.now();
        let (found, last) = if let Some(lease) = &stored {
            (Found::Lease(seen(lease)), transitions(lease))
        } else {
            match newest_epoch(&writer.records().await?) {
                0 => (Found::Never, 0),
                epoch => (Found::Gone, epoch.saturating_add(EPOCHS_UNRECORDED)),
            }
        };
        match self.election.look(asked, answered, found) {
            Step::Acquire => {}
            Step::Mark => {
                self.place.write(&self.next(Lease::default(), NOBODY, Some(last))).await?;
                return Ok(None);
            }
            Step::Wait | Step::Renew | Step::Resign => return Ok(None),
        }
        let last = last.max(newest_epoch(&writer.records().await?));
        let lease = self.next(stored.unwrap_or_default(), &self.identity, Some(last.saturating_add(1)));
        self.store(&lease).await.map(Some)
    }

    /// Reads the Lease, and writes our name once more; `None` when it is not ours any more.
    async fn renew(&mut self) -> Result<Option<u64>, ClusterError> {
        let asked = BootClock.now();
        let stored = self.place.read().await?;
        let found = stored.as_ref().map_or(Found::Gone, |lease| Found::Lease(seen(lease)));
        if self.election.look(asked, BootClock.now(), found) != Step::Renew {
            self.election.step_down();
            return Ok(None);
        }
        let lease = self.next(stored.unwrap_or_default(), &self.identity, None);
        self.store(&lease).await.map(Some)
    }

    async fn store(&mut self, lease: &Lease) -> Result<u64, ClusterError> {
        let epoch = transitions(lease);
        if i32::try_from(epoch).is_err() {
            return Err(refused(&self.place.id, "its count of transitions is exhausted"));
        }
        let sent = BootClock.now();
        self.place.write(lease).await?;
        self.election.stored(sent);
        Ok(epoch)
    }

    /// The Lease with this name; with a new epoch where one begins.
    fn next(&self, read: Lease, holder: &str, epoch: Option<u64>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let old = read.spec.unwrap_or_default();
        let transitions = epoch.map(|epoch| i32::try_from(epoch).unwrap_or(i32::MAX));
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            // Other candidates wait as long, whatever they count with themselves.
            lease_duration_seconds: Some(seconds_of(holder, &self.pace.times)),
            // For people: nobody decides by them.
            renew_time: Some(now.clone()),
            acquire_time: if epoch.is_some() { Some(now) } else { old.acquire_time },
            lease_transitions: transitions.or(old.lease_transitions),
            ..old
        };
        let metadata = ObjectMeta {
            name: Some(LEASE_NAME.to_owned()),
            namespace: Some(self.place.id.namespace.clone()),
            ..read.metadata
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// So that the next leader need not wait for the lease to run out.
    async fn release(&mut self) {
        if !self.election.leads(BootClock.now()) {
            return;
        }
        let released = async {
            let Some(mut lease) = self.place.read().await? else { return Ok(()) };
            let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            self.place.write(&lease).await.map(drop)
        };
        match tokio::time::timeout(RELEASE_WITHIN, released).await {
            Ok(Ok(())) => tracing::info!("the leadership was given back"),
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the leadership was not given back");
            }
            Err(_elapsed) => tracing::warn!("the leadership was not given back in time"),
        }
        self.election.step_down();
    }
}

fn seen(lease: &Lease) -> Seen {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
    Seen {
        lease: Seen::lease_of(seconds),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: holder.unwrap_or_default(),
    }
}

fn transitions(lease: &Lease) -> u64 {
    let count = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
    u64::try_from(count).unwrap_or_default()
}

//! The writing half of the cluster: everything that changes something. Whether this process leads is the caller's to
//! know; the epoch is handed in.

use std::sync::Mutex;

use kube::Client;
use somersault_coordinator_core::io::{Action, Notice, OpenRecovery, Record, RecordKey};
use somersault_coordinator_core::migration::{CronJobName, DryRun, DryRunAnswer, GuestAnswer, GuestQuestion};
use somersault_coordinator_core::view::View;

use super::api::Api;
use super::publish::Shown;
use super::{act, events, held, publish, records};
use crate::cluster::stored::{self, Known};
use crate::cluster::{ClusterError, Snapshot};

/// Changes the cluster.
pub struct Writer {
    api: Api,
    known: Mutex<Known>,
    shown: Mutex<Shown>,
}

impl Writer {
    /// Writes through this client. `namespace` is the coordinator's own; `instance` names this process in Events.
    pub fn new(client: Client, namespace: impl Into<String>, instance: impl Into<String>) -> Self {
        let api = Api::new(client, namespace.into(), instance.into());
        Self { api, known: Mutex::default(), shown: Mutex::default() }
    }

    /// The API server.
    pub(super) fn api(&self) -> &Api {
        &self.api
    }

    /// Performs an action.
    pub async fn act(&self, action: &Action) -> Result<(), ClusterError> {
        act::perform(&self.api, action).await
    }

    /// Makes a user's Job that answers a question, once, and says how it stands.
    pub async fn ask_job(
        &self,
        question: &GuestQuestion,
        template: &CronJobName,
    ) -> Result<GuestAnswer, ClusterError> {
        act::job::answer(&self.api, question, template).await
    }

    /// Asks whether objects would be made, and makes none.
    pub async fn dry_run(&self, question: &DryRun) -> Result<DryRunAnswer, ClusterError> {
        act::dry_run::answer(&self.api, question).await
    }

    /// Stores a record of `epoch`, while `leading` is the epoch in which we lead.
    pub async fn commit(&self, record: &Record, epoch: u64, leading: u64) -> Result<(), ClusterError> {
        records::commit(&self.api, &self.known, record, epoch, leading).await
    }

    /// Lets the object of a record go, so that it can be deleted with nobody left to end what it tells of.
    pub async fn let_go(&self, record: &RecordKey) -> Result<(), ClusterError> {
        held::let_go(&self.api, &stored::object_of(record)).await
    }

    /// Every stored record, as stored now.
    pub async fn records(&self) -> Result<Vec<Record>, ClusterError> {
        records::all(&self.api, &self.known).await
    }

    /// Recoveries of dead nodes that are shown as neither over nor recovered.
    pub async fn open_recoveries(&self) -> Result<Vec<OpenRecovery>, ClusterError> {
        publish::open_recoveries(&self.api).await
    }

    /// Shows the view, in the epoch in which we lead.
    pub async fn publish(&self, view: &View, snapshot: &Snapshot, epoch: u64) -> Result<(), ClusterError> {
        publish::publish(&self.api, &self.known, &self.shown, view, snapshot, epoch).await
    }

    /// Writes an Event.
    pub async fn event(&self, notice: &Notice) -> Result<(), ClusterError> {
        events::write(&self.api, notice).await
    }
}

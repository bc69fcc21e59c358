//! The one task that owns the core and the agents' streams.
//!
//! ```text
//!   inbox, snapshots, time ──► step(now, input) ──► effects ──► agents' streams, orders, Effects
//!                                     └──► view, a few times a second
//! ```
//!
//! It never waits for IO, and it knows when it was late: a loop that stood still, or events that lay in the queue,
//! are told to the core before anything else, since silence of that time says nothing about the nodes.

mod peers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use somersault_coordinator_core::fleet::Fleet;
use somersault_coordinator_core::io::Prober as AskedBy;
use somersault_coordinator_core::names::NodeName;
use somersault_coordinator_core::policy::Policy;
use somersault_coordinator_core::view::View;
use somersault_coordinator_core::{BootTime, Coordinator, Effect, Input};
use somersault_proto::model::{self, CopyRates, FromCoordinator, Grant, Welcome};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::peers::PeerProbes;
use crate::agents::{Agents, Session};
use crate::clock::Clock;
use crate::cluster::{Cluster, Snapshot};
use crate::effects::Effects;
use crate::inbox::{Event, Stamped};
use crate::metrics::{Metrics, Refused};
use crate::orders::Orders;
use crate::windows;

/// The loop turns at least this often, so that it notices when it did not.
const TURN: Duration = Duration::from_millis(100);
/// How often what the core shows is looked at anew: as often as a person can follow a progress bar.
const VIEW_EVERY: Duration = Duration::from_millis(250);
/// How often open orders are looked through.
const ORDERS_EVERY: Duration = Duration::from_secs(1);
/// What agents are told about how often to report when nothing changes.
const REPORT_PERIOD: Duration = Duration::from_secs(30);

/// What the driver is made of.
pub struct Parts<C> {
    /// The core.
    pub core: Coordinator,
    /// Our clock.
    pub clock: Arc<dyn Clock>,
    /// What happens.
    pub events: mpsc::Receiver<Stamped>,
    /// The cluster's objects.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The policy.
    pub policies: watch::Receiver<Arc<Policy>>,
    /// Performs.
    pub effects: Effects<C>,
    /// Orders that are out.
    pub orders: Orders,
    /// Where the view goes.
    pub views: watch::Sender<Arc<View>>,
    /// Last turn of the loop, for the liveness probe.
    pub turned: watch::Sender<BootTime>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// The driver.
pub struct Driver<C> {
    parts: Parts<C>,
    agents: Agents,
    peers: PeerProbes,
    epoch: Option<u64>,
    policy_may_change: bool,
    /// The fleet that the core knows.
    fleet: Option<Arc<Fleet>>,
    /// Evacuations whose window is open, as the core knows.
    open_windows: BTreeSet<String>,
    /// The kubelets' Leases as last read.
    renewals: BTreeMap<NodeName, String>,
    view_due: BootTime,
    orders_due: BootTime,
    stalled_at: Option<BootTime>,
}

impl<C: Cluster> Driver<C> {
    /// A driver that has not started.
    pub fn new(parts: Parts<C>) -> Self {
        Self {
            parts,
            agents: Agents::default(),
            peers: PeerProbes::default(),
            epoch: None,
            policy_may_change: true,
            fleet: None,
            open_windows: BTreeSet::new(),
            renewals: BTreeMap::new(),
            view_due: BootTime::ZERO,
            orders_due: BootTime::ZERO,
            stalled_at: None,
        }
    }

    /// Runs until told to stop; then ends the streams, and lets what is in hand end.
    pub async fn run(mut self, stop: CancellationToken) {
        self.take_policy();
        self.take_snapshot();
        loop {
            let wait = self.wait(self.parts.clock.now());
            let wake_at = self.parts.clock.now() + wait;
            let stamped = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.parts.snapshots.changed() => {
                    self.turn(wake_at, None);
                    if changed.is_ok() {
                        self.take_snapshot();
                    } else {
                        tracing::error!("the cluster's objects are no longer read; stopping");
                        stop.cancel();
                    }
                    continue;
                }
                changed = self.parts.policies.changed(), if self.policy_may_change => {
                    self.turn(wake_at, None);
                    // Whoever could change it is gone: it stays.
                    self.policy_may_change = changed.is_ok();
                    self.take_policy();
                    continue;
                }
                stamped = self.parts.events.recv() => stamped,
                () = tokio::time::sleep(wait) => None,
            };
            self.turn(wake_at, stamped.as_ref().map(|stamped| stamped.at));
            match stamped {
                Some(stamped) => self.take(stamped.event),
                None => self.step(Input::Tick),
            }
        }
        self.agents.end_all("the coordinator is stopping; another one, or the next, takes over");
        self.parts.events.close();
        while self.parts.events.try_recv().is_ok() {}
        self.parts.effects.finish().await;
    }

    /// How long to sleep when nothing happens.
    fn wait(&self, now: BootTime) -> Duration {
        let deadline = self.parts.core.next_deadline().map(|at| at.saturating_sub(now));
        deadline.map_or(TURN, |wait| wait.min(TURN))
    }

    /// What each turn of the loop does first: notice lateness, and keep up the regular work.
    fn turn(&mut self, wake_at: BootTime, happened_at: Option<BootTime>) {
        let now = self.parts.clock.now();
        let slept_over = now.saturating_sub(wake_at);
        let lay_in_queue = happened_at.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        let lag = slept_over.max(lay_in_queue);
        self.parts.metrics.lag(lag);
        // Less than one beat late can make at most one beat seem missed, and suspicion takes several.
        let tolerated = self.parts.core.policy().detection.beat;
        let told_lately = self.stalled_at.is_some_and(|at| now < at + tolerated);
        if lag > tolerated && !told_lately {
            tracing::warn!(?lag, "the deciding loop was late; suspicion starts anew");
            self.parts.metrics.stall();
            self.stalled_at = Some(now);
            self.step(Input::Stalled(lag));
        }
        self.parts.turned.send_replace(now);
        if now >= self.view_due {
            self.show(now);
        }
        if now >= self.orders_due {
            self.orders_due = now + ORDERS_EVERY;
            self.send_all_orders();
            self.look_at_windows();
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Input(input) => self.step(input),
            Event::BeatsOpened { node, stream } => self.agents.open_beats(node, stream),
            Event::SessionOpened { node, session } => self.open_session(&node, session),
            Event::StreamEnded { node, id } => self.agents.ended(&node, id),
            Event::Progress { node, progress } => {
                let now = self.parts.clock.now();
                if let Some(input) = self.parts.orders.progress(now, &node, &progress) {
                    self.step(input);
                } else {
                    tracing::debug!(%node, order = progress.order, "progress of an order that is not open");
                    self.parts.metrics.refused(Refused::UnknownOrder);
                }
            }
            Event::ProbeAnswered { peer, answer } => {
                match self.peers.answered(self.parts.clock.now(), &peer, &answer) {
                    Some(input) => self.step(input),
                    None => self.parts.metrics.refused(Refused::UnknownProbe),
                }
            }
        }
    }

    fn take_policy(&mut self) {
        let policy = Policy::clone(&self.parts.policies.borrow_and_update());
        let before = self.parts.core.policy().copies;
        self.step(Input::Policy(Box::new(policy)));
        if self.parts.core.policy().copies != before
            && let Some(welcome) = self.welcome()
        {
            // An agent that knows us takes from it how fast its copies may be.
            let nodes: Vec<model::NodeName> = self.agents.with_session().cloned().collect();
            for node in nodes {
                self.agents.send(&node, FromCoordinator::Welcome(welcome));
            }
        }
    }

    fn take_snapshot(&mut self) {
        let snapshot = Arc::clone(&self.parts.snapshots.borrow_and_update());
        // Most snapshots of a large cluster differ in the kubelets' Leases only.
        if !self.fleet.as_ref().is_some_and(|taken| Arc::ptr_eq(taken, &snapshot.fleet)) {
            self.fleet = Some(Arc::clone(&snapshot.fleet));
            self.step(Input::Fleet(Box::new(Fleet::clone(&snapshot.fleet))));
            self.give_requests(&snapshot);
        }
        let before = std::mem::replace(&mut self.renewals, snapshot.kubelet_renewals.clone());
        for (node, renewed) in &snapshot.kubelet_renewals {
            // What was there when we first looked may be as old as it likes: only a change tells.
            if before.get(node).is_some_and(|last| last != renewed) {
                self.step(Input::KubeletRenewed { node: node.clone() });
            }
        }
    }

    /// A window opens and closes by itself.
    fn look_at_windows(&mut self) {
        let snapshot = Arc::clone(&self.parts.snapshots.borrow());
        if windows::open(&snapshot.windows, Timestamp::now()) != self.open_windows {
            self.give_requests(&snapshot);
        }
    }

    fn give_requests(&mut self, snapshot: &Snapshot) {
        self.open_windows = windows::open(&snapshot.windows, Timestamp::now());
        self.step(Input::Requests(Box::new(windows::note(&snapshot.requests, &self.open_windows))));
    }

    /// Greets back first, so that the agent knows our epoch and key before any order.
    fn open_session(&mut self, node: &model::NodeName, session: Session) {
        let Some(welcome) = self.welcome() else {
            drop(
                session
                    .orders
                    .try_send(Err(Status::unavailable("this coordinator does not lead; try again"))),
            );
            session.end.cancel();
            return;
        };
        tracing::info!(%node, version = session.hello.version, address = %session.hello.address, "session opened");
        self.agents.open_session(node.clone(), session);
        self.agents.send(node, FromCoordinator::Welcome(welcome));
        self.parts.orders.session_opened(node);
        // To everybody: orders may have waited for this node's address.
        self.send_all_orders();
    }

    /// What agents are greeted with, while this process leads.
    fn welcome(&self) -> Option<Welcome> {
        let copies = self.parts.core.policy().copies;
        Some(Welcome {
            epoch: self.epoch?,
            token_key: self.parts.orders.token_key(),
            report_period: REPORT_PERIOD,
            rates: CopyRates { node: copies.node, copy: copies.copy },
        })
    }

    fn send_all_orders(&mut self) {
        let nodes: Vec<model::NodeName> = self.agents.with_session().cloned().collect();
        for node in nodes {
            self.send_orders(&node);
        }
    }

    fn send_orders(&mut self, node: &model::NodeName) {
        if self.led().is_none() {
            return;
        }
        let agents = &self.agents;
        let now = self.parts.clock.now();
        for order in self.parts.orders.due(now, node, |source| agents.address(source).cloned()) {
            match order {
                Ok(order) => {
                    tracing::info!(%node, order = order.id, "order sent");
                    agents.send(node, FromCoordinator::Order(order));
                }
                Err(error) => {
                    tracing::error!(%node, error = &error as &dyn std::error::Error, "order not sent");
                }
            }
        }
    }

    /// One step of the core, and its effects in the order in which it gave them.
    fn step(&mut self, input: Input) {
        match &input {
            Input::Leading { epoch, .. } => self.new_epoch(Some(*epoch)),
            Input::Deposed => self.new_epoch(None),
            _ => {}
        }
        let now = self.parts.clock.now();
        let effects = self.parts.core.step(now, input);
        let something_happened = effects.iter().any(|effect| !matches!(effect, Effect::Grant { .. }));
        for effect in effects {
            self.perform(effect);
        }
        if something_happened {
            self.show(now);
        }
    }

    /// Orders of an epoch end with it. The agents greet anew, and learn the new one.
    fn new_epoch(&mut self, epoch: Option<u64>) {
        self.epoch = epoch;
        self.parts.orders.forget_all();
        self.peers.forget_all();
        self.agents.end_sessions("the leadership changed; greet again");
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Grant { node, sequence } => self.grant(&node, sequence),
            Effect::Probe { node, by, timeout } => self.probe(&node, by, timeout),
            Effect::Order { node, id, order } => {
                let (Ok(node), Some(epoch)) = (wire_name(&node), self.epoch) else { return };
                match self.parts.orders.give(node.clone(), id, order, epoch) {
                    Ok(()) => self.send_orders(&node),
                    Err(error) => tracing::error!(%node, %error, "order not given"),
                }
            }
            Effect::Commit(record) => self.parts.effects.commit(record),
            Effect::RunFence { node, epoch, timeout } => self.parts.effects.run_fence(node, epoch, timeout),
            Effect::AskFence { node, timeout } => self.parts.effects.ask_fence(node, timeout),
            Effect::AskGuest { question, timeout } => self.parts.effects.ask_guest(question, timeout),
            Effect::DryRun(question) => self.parts.effects.dry_run(question),
            Effect::Act(action) => self.parts.effects.act(action),
            Effect::Notify(notice) => self.parts.effects.notify(notice),
        }
    }

    /// The epoch in which we lead at this very moment. What reaches an agent cannot be taken back.
    fn led(&self) -> Option<u64> {
        self.epoch.filter(|epoch| self.parts.effects.leads_in(*epoch))
    }

    fn grant(&self, node: &NodeName, sequence: u64) {
        let (Ok(node), Some(epoch)) = (wire_name(node), self.led()) else { return };
        let policy = self.parts.core.policy();
        let grant = Grant {
            sequence,
            epoch,
            beat_interval: policy.detection.beat,
            lease: policy.lease.lease,
            watchdog: policy.lease.watchdog,
            policy_hash: policy.lease_hash(),
        };
        self.agents.grant(&node, grant);
    }

    /// Who cannot be asked gives no answer; the core waits no longer than its own deadline.
    fn probe(&mut self, node: &NodeName, by: AskedBy, timeout: Duration) {
        let Ok(name) = wire_name(node) else { return };
        let now = self.parts.clock.now();
        // Without an address of the agent the kubelet's port must do: whatever answers there, the kernel lives.
        let address = self.agents.address(&name).cloned().or_else(|| self.kubelet_address(node));
        match by {
            AskedBy::Coordinator => {
                if let Some(address) = address {
                    self.parts.effects.probe(name, address, timeout);
                } else {
                    tracing::warn!(%node, "no address to probe this node at");
                }
            }
            AskedBy::Peer(peer) => {
                let (Ok(peer), Some(address), Some(epoch)) = (wire_name(&peer), address, self.epoch) else {
                    return;
                };
                let order = self.peers.ask(now, peer.clone(), name, address, timeout, epoch);
                self.agents.send(&peer, FromCoordinator::Order(order));
            }
        }
    }

    /// The kubelet's port on the node's own address: whatever answers there, the kernel lives.
    fn kubelet_address(&self, node: &NodeName) -> Option<model::Address> {
        const KUBELET_PORT: u16 = 10250;
        let snapshot = self.parts.snapshots.borrow();
        let address = snapshot.fleet.nodes.get(node)?.address.clone()?;
        let host = if address.contains(':') && !address.starts_with('[') && address.matches(':').count() > 1 {
            format!("[{address}]")
        } else {
            address.clone()
        };
        address.parse().or_else(|_| format!("{host}:{KUBELET_PORT}").parse()).ok()
    }

    fn show(&mut self, now: BootTime) {
        self.view_due = now + VIEW_EVERY;
        let view = self.parts.core.view();
        self.parts.views.send_if_modified(|shown| {
            let differs = **shown != view;
            if differs {
                *shown = Arc::new(view);
            }
            differs
        });
    }
}

/// The name on the wire. A Node object whose name no certificate can hold has no agent either.
fn wire_name(node: &NodeName) -> Result<model::NodeName, model::Malformed> {
    node.as_str().parse()
}

//! Obeys orders: each once, whatever coordinator repeats it, and none of a coordinator that leads no more.
//!
//! ```text
//!   order --book--> Start ---> a task: pull, probe --progress--> every session
//!              |--> Repeat --> its last state
//!              '--> Refused -> Failed, with the reason
//! ```
//!
//! An agent stops no VM: launchers are the kubelet's, which this agent has no way to reach. An order to stop them
//! is answered with `NotSupported`, so that the coordinator keeps its alarm instead of believing that it is done.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use somersault_agent_core::book::{Admission, Book, Refusal};
use somersault_proto::model::{
    AbsolutePath, Address, FailureReason, FromAgent, NodeName, Order, OrderKind, ProbeAnswer, Progress,
    ProgressState, Pull,
};
use somersault_proto::tls::TlsSource;
use tokio::sync::{broadcast, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::beat::Shared;
use crate::peer;
use crate::transfer::{PullProgress, PullRequest, TransferError, Transfers};

/// Messages that wait for a slow session. It misses the oldest then; the coordinator repeats its orders and is
/// answered from the book.
const MESSAGES_MAX: usize = 256;
/// How often the progress of a copy is told: fast enough for a progress bar.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);

/// The end of an order that copies nothing.
const NOTHING_COPIED: ProgressState = ProgressState::Done {
    root_hash: [0; 32],
    total_bytes: 0,
    sent_bytes: 0,
    elapsed: Duration::ZERO,
    unreadable: None,
};

/// Takes orders and tells how they fare.
#[derive(Clone)]
pub struct Orders {
    inner: Arc<Inner>,
}

struct Inner {
    beats: Arc<Shared>,
    transfers: Transfers,
    tls: TlsSource,
    book: Mutex<Book<FromAgent>>,
    messages: broadcast::Sender<FromAgent>,
}

impl Orders {
    /// Obeys with these means.
    pub fn new(beats: Arc<Shared>, transfers: Transfers, tls: TlsSource) -> Self {
        let (messages, _) = broadcast::channel(MESSAGES_MAX);
        Self { inner: Arc::new(Inner { beats, transfers, tls, book: Mutex::default(), messages }) }
    }

    /// Everything that is told from now on.
    pub fn messages(&self) -> broadcast::Receiver<FromAgent> {
        self.inner.messages.subscribe()
    }

    /// Number of orders under way.
    pub fn open(&self) -> usize {
        self.with_book(|book| book.open().count())
    }

    /// Takes an order; returns the answer where there is one at once.
    pub fn take(&self, order: Order) -> Option<FromAgent> {
        let Order { id, epoch, kind } = order;
        let running = ProgressState::Running { done_bytes: 0, total_bytes: 0, rate_bytes_per_s: 0 };
        let initial = progress(&id, running);
        if let Err(stale) = self.inner.beats.with_lease(|lease| lease.admit(epoch)) {
            warn!(order = id, %stale, "order refused");
            return Some(failed(&id, FailureReason::StaleEpoch, &stale.to_string()));
        }
        match self.with_book(|book| book.admit(&id, initial)) {
            Ok(Admission::Start) => {
                info!(order = id, kind = name(&kind), "order taken");
                self.start(id, kind)
            }
            Ok(Admission::Repeat(state)) => Some(state),
            Err(refusal) => {
                warn!(order = id, %refusal, "order refused");
                let reason = match refusal {
                    Refusal::TooManyOrders => FailureReason::Busy,
                    Refusal::InvalidId => FailureReason::OrderRefused,
                };
                Some(failed(&id, reason, &refusal.to_string()))
            }
        }
    }

    /// The answer to an order that made no sense.
    pub fn refuse(id: &str, why: &str) -> FromAgent {
        failed(id, FailureReason::OrderRefused, why)
    }

    fn start(&self, id: String, kind: OrderKind) -> Option<FromAgent> {
        let this = self.clone();
        match kind {
            OrderKind::Pull(pull) => {
                tokio::spawn(async move { this.pull(id, pull).await });
                None
            }
            OrderKind::Probe { node, address, timeout } => {
                tokio::spawn(async move { this.probe(id, node, address, timeout).await });
                None
            }
            OrderKind::CancelPull { transfer, drop_partial, target_path } => {
                tokio::spawn(async move { this.cancel(id, transfer, drop_partial, target_path).await });
                None
            }
            OrderKind::RemoveVolume { path } => {
                tokio::spawn(async move { this.remove(id, path).await });
                None
            }
            OrderKind::StopLaunchers { .. } => {
                let why = "this agent cannot stop pods; power the node off, or stop them there";
                let answer = failed(&id, FailureReason::Other("NotSupported".to_owned()), why);
                self.with_book(|book| book.close(&id, answer.clone()));
                Some(answer)
            }
        }
    }

    async fn pull(&self, id: String, pull: Pull) {
        let (told, mut news) = watch::channel(PullProgress::default());
        let request = PullRequest {
            transfer: pull.transfer,
            source_node: pull.source_node,
            source_address: pull.source_address,
            source_path: pull.source_path,
            target_path: pull.target_path,
            token: pull.token,
            final_copy: pull.final_copy,
            rate_limit_bytes_per_s: pull.rate_limit_bytes_per_s,
            accept_unreadable: pull.accept_unreadable,
        };
        let copying = self.inner.transfers.pull(request, told);
        tokio::pin!(copying);
        let mut ticks = interval(PROGRESS_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let outcome = loop {
            tokio::select! {
                outcome = &mut copying => break outcome,
                _ = ticks.tick() => {
                    if news.has_changed().unwrap_or(false) {
                        let PullProgress { done_bytes, total_bytes, rate_bytes_per_s } = *news.borrow_and_update();
                        let running = ProgressState::Running { done_bytes, total_bytes, rate_bytes_per_s };
                        self.note(&id, progress(&id, running));
                    }
                }
            }
        };
        match outcome {
            Ok(done) => {
                info!(order = id, total_bytes = done.total_bytes, sent_bytes = done.sent_bytes, "copied");
                let state = ProgressState::Done {
                    root_hash: done.root_hash,
                    total_bytes: done.total_bytes,
                    sent_bytes: done.sent_bytes,
                    elapsed: done.elapsed,
                    unreadable: done.unreadable,
                };
                self.close(&id, progress(&id, state));
            }
            Err(error) => self.close_failed(&id, &error),
        }
    }

    async fn cancel(&self, id: String, transfer: String, drop_partial: bool, path: Option<AbsolutePath>) {
        let path = path.as_ref().map(AbsolutePath::as_str);
        match self.inner.transfers.cancel(&transfer, drop_partial, path).await {
            Ok(()) => self.close(&id, progress(&id, NOTHING_COPIED)),
            Err(error) => self.close_failed(&id, &error),
        }
    }

    async fn remove(&self, id: String, path: AbsolutePath) {
        match self.inner.transfers.remove(path.as_str()).await {
            Ok(()) => {
                info!(order = id, %path, "volume removed");
                self.close(&id, progress(&id, NOTHING_COPIED));
            }
            Err(error) => self.close_failed(&id, &error),
        }
    }

    async fn probe(&self, id: String, node: NodeName, address: Address, timeout: Duration) {
        let reachability = peer::probe(&self.inner.tls, &node, &address, timeout).await;
        info!(%node, ?reachability, "probed");
        self.close(&id, FromAgent::Probe(ProbeAnswer { order: id.clone(), node, reachability }));
    }

    fn close_failed(&self, id: &str, error: &TransferError) {
        let message = crate::beat::with_sources(error);
        warn!(order = id, error = message, "order failed");
        self.close(id, failed(id, error.failure_reason(), &message));
    }

    fn note(&self, id: &str, message: FromAgent) {
        if self.with_book(|book| book.note(id, message.clone())) {
            self.tell(message);
        }
    }

    fn close(&self, id: &str, message: FromAgent) {
        self.with_book(|book| book.close(id, message.clone()));
        self.tell(message);
    }

    fn tell(&self, message: FromAgent) {
        // No session is open: the coordinator asks again by repeating its order.
        let _receivers = self.inner.messages.send(message);
    }

    fn with_book<T>(&self, look: impl FnOnce(&mut Book<FromAgent>) -> T) -> T {
        look(&mut self.inner.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn name(kind: &OrderKind) -> &'static str {
    match kind {
        OrderKind::Pull(_) => "Pull",
        OrderKind::CancelPull { .. } => "CancelPull",
        OrderKind::Probe { .. } => "Probe",
        OrderKind::StopLaunchers { .. } => "StopLaunchers",
        OrderKind::RemoveVolume { .. } => "RemoveVolume",
    }
}

fn progress(id: &str, state: ProgressState) -> FromAgent {
    FromAgent::Progress(Progress { order: id.to_owned(), state })
}

fn failed(id: &str, reason: FailureReason, message: &str) -> FromAgent {
    progress(id, ProgressState::Failed { reason, message: message.to_owned() })
}

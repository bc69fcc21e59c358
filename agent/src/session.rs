//! The conversation with one coordinator: reports and progress up, orders down.
//!
//! ```text
//!   connecting --Welcome--> conversing --error, closed--> connecting
//!       ^--refused, timed out (pause, doubling)--'
//! ```
//!
//! A renewed certificate begins a new session: the old one would end with the old certificate.
//!
//! A report goes out when its shape changes (a grade, a volume more or less), and at the slow period otherwise.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use somersault_proto::model::{
    AbsolutePath, FLEET_MESSAGE_BYTES_MAX, FromAgent, FromCoordinator, Hello, Report, Welcome,
};
use somersault_proto::tls::{Identity, Renewals, TlsSource};
use somersault_proto::v1;
use somersault_proto::v1::fleet_client::FleetClient;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use crate::beat::{Shared, with_sources};
use crate::clock::boottime;
use crate::orders::Orders;
use crate::replicas::Tasks;
use crate::report::{report, shape};
use crate::sense::{Sensed, WatchedRoot};
use crate::transfer::Transfers;

/// Time for connecting, and for the coordinator's Welcome.
const WELCOME_MAX: Duration = Duration::from_secs(10);
/// Pause between attempts; jittered, so that a fleet does not return in step.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A session that lived so long had begun well; the next attempt follows soon. One that ends as soon as it is open
/// does not.
const LIVED_MIN: Duration = Duration::from_secs(15);
/// A connection whose ping goes unanswered this long is given up.
const PING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));
/// How often the shape of the report is looked at.
const CHANGE_PERIOD: Duration = Duration::from_millis(500);
/// Least time between reports, so that a disk that flaps does not flood the coordinator.
const REPORT_GAP_MIN: Duration = Duration::from_secs(1);
/// Messages on their way. The coordinator reads all the time; when this many wait it is overloaded, and orders
/// are not read either until it has caught up.
const OUTBOX_MAX: usize = 64;

/// What a session needs.
#[derive(Clone)]
pub struct SessionConfig {
    /// How this agent greets.
    pub hello: Hello,
    /// This node's certificates.
    pub tls: TlsSource,
    /// What is reported.
    pub roots: Vec<WatchedRoot>,
    /// The same of volumes that are mounted for pods.
    pub pods: Option<AbsolutePath>,
    /// The last grades.
    pub sensed: watch::Receiver<Arc<Sensed>>,
    /// Who obeys.
    pub orders: Orders,
    /// Who needs the coordinator's key.
    pub transfers: Transfers,
    /// Who knows the epoch.
    pub beats: Arc<Shared>,
    /// Told of what happens.
    pub metrics: Arc<crate::metrics::SessionMetrics>,
}

/// Why a conversation ended or did not begin.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("cannot connect")]
    Connect(#[from] tonic::transport::Error),
    #[error("no Welcome within {WELCOME_MAX:?}")]
    Timeout,
    #[error("refused: {}", .0.message())]
    Refused(#[from] Status),
    #[error("the coordinator's first message is no Welcome")]
    NoWelcome,
    #[error("closed by the coordinator")]
    Closed,
    #[error("the certificate was renewed")]
    Renewed,
}

/// Talks with every coordinator, for ever.
pub async fn converse_with_all(config: SessionConfig, mut coordinators: watch::Receiver<Vec<SocketAddr>>) {
    let mut sessions = Tasks::default();
    loop {
        let wanted = coordinators.borrow_and_update().clone();
        for gone in sessions.follow(&wanted, |coordinator| converse_for_ever(config.clone(), coordinator)) {
            config.metrics.gone(gone);
            config.transfers.coordinator_gone(&gone.to_string());
        }
        // When nobody looks for coordinators any more, the agent is about to end.
        if coordinators.changed().await.is_err() {
            return sessions.end().await;
        }
    }
}

async fn converse_for_ever(config: SessionConfig, coordinator: SocketAddr) {
    let (least, most) = RECONNECT;
    let backoff = ExponentialBuilder::default()
        .with_min_delay(least)
        .with_max_delay(most)
        .with_jitter()
        .without_max_times();
    let mut pauses = backoff.build();
    let mut last_error = String::new();
    loop {
        let began = Instant::now();
        let Err(broken) = converse(&config, coordinator).await;
        config.metrics.closed(coordinator);
        if matches!(broken, Broken::Renewed) {
            continue;
        }
        if began.elapsed() >= LIVED_MIN {
            pauses = backoff.build();
            last_error.clear();
        }
        // Said once, not at every attempt.
        let error = with_sources(&broken);
        if error != last_error {
            warn!(%coordinator, error, "no session");
            last_error = error;
        }
        sleep(pauses.next().unwrap_or(most)).await;
    }
}

async fn converse(config: &SessionConfig, coordinator: SocketAddr) -> Result<Infallible, Broken> {
    // Before opening: a renewal meanwhile must not be missed.
    let renewals = config.tls.renewals();
    let conversation = open(config, coordinator).await?;
    info!(%coordinator, "session open");
    config.metrics.opened(coordinator);
    conversation.run(config, renewals).await
}

/// An open session.
struct Conversation {
    outbox: mpsc::Sender<v1::FromAgent>,
    inbox: Streaming<v1::FromCoordinator>,
    news: broadcast::Receiver<FromAgent>,
    welcome: Welcome,
    reported: Option<(Instant, Report)>,
}

async fn open(config: &SessionConfig, coordinator: SocketAddr) -> Result<Conversation, Broken> {
    let opening = async {
        let channel = Endpoint::from_shared(format!("https://{coordinator}"))?
            .tcp_nodelay(true)
            .connect_timeout(WELCOME_MAX)
            .http2_keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .keep_alive_while_idle(true)
            .tls_config(config.tls.client(&Identity::Coordinator))?
            .connect()
            .await?;
        let mut client = FleetClient::new(channel)
            .max_decoding_message_size(FLEET_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(FLEET_MESSAGE_BYTES_MAX);
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        send(&outbox, FromAgent::Hello(config.hello.clone())).await?;
        let mut inbox = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let first = inbox.message().await?.ok_or(Broken::Closed)?;
        let Ok(FromCoordinator::Welcome(welcome)) = FromCoordinator::try_from(first) else {
            return Err(Broken::NoWelcome);
        };
        let news = config.orders.messages();
        Ok(Conversation { outbox, inbox, news, welcome, reported: None })
    };
    let conversation = timeout(WELCOME_MAX, opening).await.map_err(|_| Broken::Timeout)??;
    config.transfers.set_token_key(&coordinator.to_string(), conversation.welcome.token_key);
    config.transfers.set_rates(conversation.welcome.rates);
    // A replica that does not lead greets with an older epoch. Its orders are refused one by one, should any come.
    let epoch = conversation.welcome.epoch;
    if let Err(stale) = config.beats.with_lease(|lease| lease.admit(epoch)) {
        debug!(%coordinator, %stale, "this coordinator does not lead");
    }
    Ok(conversation)
}

impl Conversation {
    async fn run(mut self, config: &SessionConfig, mut renewals: Renewals) -> Result<Infallible, Broken> {
        let mut ticks = interval(CHANGE_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = self.inbox.message() => {
                    let message = message?.ok_or(Broken::Closed)?;
                    if let Some(answer) = obey(config, message) {
                        send(&self.outbox, answer).await?;
                    }
                }
                news = self.news.recv() => match news {
                    Ok(message) => send(&self.outbox, message).await?,
                    Err(RecvError::Lagged(missed)) => debug!(missed, "this session is slow"),
                    // The agent itself ends.
                    Err(RecvError::Closed) => return Err(Broken::Closed),
                },
                _ = ticks.tick() => self.report(config).await?,
                () = renewals.next() => return Err(Broken::Renewed),
            }
        }
    }

    /// Reports where there is something new or the last report is old.
    async fn report(&mut self, config: &SessionConfig) -> Result<(), Broken> {
        let sensed = config.sensed.borrow().clone();
        let Some(report) = report(&config.roots, config.pods.as_ref(), &sensed, boottime()) else {
            return Ok(());
        };
        let shape = shape(&report);
        let due = self.reported.as_ref().is_none_or(|(at, told)| {
            let age = at.elapsed();
            age >= self.welcome.report_period || (age >= REPORT_GAP_MIN && *told != shape)
        });
        if due {
            send(&self.outbox, FromAgent::Report(report)).await?;
            config.metrics.reported();
            self.reported = Some((Instant::now(), shape));
        }
        Ok(())
    }
}

fn obey(config: &SessionConfig, message: v1::FromCoordinator) -> Option<FromAgent> {
    let id = match &message.message {
        Some(v1::from_coordinator::Message::Order(order)) => order.id.clone(),
        _ => String::new(),
    };
    match FromCoordinator::try_from(message) {
        Ok(FromCoordinator::Order(order)) => config.orders.take(order),
        // It has greeted already, and tells what has changed.
        Ok(FromCoordinator::Welcome(welcome)) => {
            config.transfers.set_rates(welcome.rates);
            None
        }
        Err(error) => {
            warn!(order = id.escape_debug().to_string(), %error, "an order that makes no sense");
            (!id.is_empty()).then(|| Orders::refuse(&id, &error.to_string()))
        }
    }
}

async fn send(outbox: &mpsc::Sender<v1::FromAgent>, message: FromAgent) -> Result<(), Broken> {
    outbox.send(message.into()).await.map_err(|_| Broken::Closed)
}

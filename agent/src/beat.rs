//! Heartbeats: a thread of their own, and to each coordinator a connection of its own, so that nothing that the
//! agent does can delay them. This module knows nothing of the rest of the agent; it will become a process.
//!
//! ```text
//!   connecting --ok--> beating --error, or no answer to a ping of the connection--> waiting --> connecting
//!       '---refused, timed out------------------------------------------------------^
//!   beating --stop--> goodbye sent --> ended
//!   beating --certificate renewed--> beating on the old connection, opening one with the new certificate
//!                                      '--open: the old one is dropped--> beating
//! ```
//!
//! A beat that the connection does not take at once is dropped: an old beat says nothing. How a dead connection
//! is found: HTTP/2 pings of ours go unanswered. (The kernel's `TCP_USER_TIMEOUT` would find the same later.)

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use somersault_agent_core::lease::{Grant as LeaseGrant, Lease, SentBeats, StaleEpoch};
use somersault_proto::model::{self, BootId, FLEET_MESSAGE_BYTES_MAX, NodeName};
use somersault_proto::tls::{Identity, Renewals, TlsSource};
use somersault_proto::v1::fleet_client::FleetClient;
use somersault_proto::v1::{Beat, Grant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use crate::clock::boottime;
use crate::replicas::Tasks;

/// Pace until the first grant names one: the fast profile's, since a slower one would look like missed beats there.
const INTERVAL_FIRST: Duration = Duration::from_millis(200);
/// Time for TCP, TLS and the stream's opening. A SYN that was lost is sent again after 1 s by the kernel, so a
/// longer wait seldom helps, and a fresh attempt costs little.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Pause between attempts. The longest one bounds how late a node is seen again after its network is back.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// A connection whose ping goes unanswered this long is given up.
const PING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// A stream that lived so long had begun well; the next attempt follows at once. One that is refused as soon as it
/// is open does not.
const LIVED_MIN: Duration = Duration::from_secs(2);
/// Without a replica to beat, the thread says this often that it lives.
const TURN_PERIOD: Duration = Duration::from_secs(10);
/// Time to bring a goodbye onto the wire.
const GOODBYE_MAX: Duration = Duration::from_millis(300);

/// Whom to beat, as whom.
#[derive(Clone, Debug)]
pub struct BeatConfig {
    /// This node.
    pub node: NodeName,
    /// This boot.
    pub boot_id: BootId,
    /// Every coordinator replica, as it is now.
    pub coordinators: watch::Receiver<Vec<SocketAddr>>,
    /// Told when a stream has ended: the replica may be elsewhere now.
    pub lost: Arc<Notify>,
    /// This node's certificates.
    pub tls: TlsSource,
}

/// The running thread.
#[derive(Debug)]
pub struct Beats {
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

/// What the rest of the agent may know.
#[derive(Debug, Default)]
pub struct Shared {
    lease: Mutex<Lease>,
    /// One for each coordinator.
    links: Mutex<BTreeMap<SocketAddr, Arc<Link>>>,
    turned_ms: AtomicU64,
}

/// How the beats to one coordinator fare.
#[derive(Debug, Default)]
pub struct Link {
    /// The stream is open.
    pub connected: AtomicBool,
    /// Beats given to the connection.
    pub beats: AtomicU64,
    /// Beats that the connection did not take.
    pub beats_dropped: AtomicU64,
    /// Grants received.
    pub grants: AtomicU64,
}

impl Shared {
    /// Looks at the lease, or changes it, for an instant.
    pub fn with_lease<T>(&self, look: impl FnOnce(&mut Lease) -> T) -> T {
        // A lease is valid after each of its own methods, so a panic elsewhere cannot have broken it.
        look(&mut self.lease.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How the beats to each coordinator fare.
    pub fn links(&self) -> BTreeMap<SocketAddr, Arc<Link>> {
        self.with_links(|links| links.clone())
    }

    fn with_links<T>(&self, look: impl FnOnce(&mut BTreeMap<SocketAddr, Arc<Link>>) -> T) -> T {
        look(&mut self.links.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long ago the thread last did anything.
    pub fn idle_for(&self) -> Duration {
        boottime().saturating_sub(Duration::from_millis(self.turned_ms.load(Ordering::Relaxed)))
    }

    fn turn(&self) {
        let now = u64::try_from(boottime().as_millis()).unwrap_or(u64::MAX);
        self.turned_ms.store(now, Ordering::Relaxed);
    }
}

impl Beats {
    /// Starts the thread.
    pub fn start(config: BeatConfig) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        // From here on the thread has its time to begin; without this it would count as idle since the boot.
        shared.turn();
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("beat".to_owned()).spawn({
            let (shared, stop) = (shared.clone(), stop.clone());
            move || runtime.block_on(beat_all(config, shared, stop))
        })?;
        Ok(Self { shared, stop, thread })
    }

    /// What the grants came to.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Says goodbye to every coordinator and ends the thread. Blocks for a second at most.
    pub fn stop(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            warn!("the beat thread ended by a panic");
        }
    }
}

async fn beat_all(config: BeatConfig, shared: Arc<Shared>, stop: CancellationToken) {
    let (mut coordinators, mut beaters) = (config.coordinators.clone(), Tasks::default());
    let start = |coordinator| {
        let link = Arc::<Link>::default();
        shared.with_links(|links| links.insert(coordinator, link.clone()));
        let (config, shared, stop) = (config.clone(), shared.clone(), stop.clone());
        Beater { config, shared, coordinator, link, stop }.run()
    };
    while !stop.is_cancelled() {
        shared.turn();
        let wanted = coordinators.borrow_and_update().clone();
        // No goodbye to those that are no more: this node does not stop.
        for gone in beaters.follow(&wanted, start) {
            shared.with_links(|links| links.remove(&gone));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(TURN_PERIOD) => {}
            // When nobody looks for coordinators any more, the agent is about to end.
            Ok(()) = coordinators.changed() => {}
        }
    }
    beaters.end().await;
}

/// Beats one coordinator.
#[derive(Clone)]
struct Beater {
    config: BeatConfig,
    shared: Arc<Shared>,
    coordinator: SocketAddr,
    link: Arc<Link>,
    stop: CancellationToken,
}

/// Why a stream of beats ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("cannot connect")]
    Connect(#[from] tonic::transport::Error),
    #[error("no answer within {CONNECT_MAX:?}")]
    Timeout,
    #[error("refused: {}", .0.message())]
    Refused(#[from] Status),
    #[error("closed by the coordinator")]
    Closed,
}

impl Beater {
    async fn run(self) {
        let backoff = || {
            let (least, most) = RECONNECT;
            ExponentialBuilder::default()
                .with_min_delay(least)
                .with_max_delay(most)
                .without_max_times()
                .build()
        };
        let mut pauses = backoff();
        let mut last_error = String::new();
        while !self.stop.is_cancelled() {
            self.shared.turn();
            let began = Instant::now();
            let outcome = self.connect_and_beat().await;
            if self.link.connected.swap(false, Ordering::Relaxed) {
                self.config.lost.notify_one();
            }
            let Err(broken) = outcome else { return };
            if began.elapsed() >= CONNECT_MAX + LIVED_MIN {
                pauses = backoff();
                last_error.clear();
            }
            // Said once, not at every attempt.
            let error = with_sources(&broken);
            if error != last_error {
                warn!(coordinator = %self.coordinator, error, "no beats get through");
                last_error = error;
            }
            let pause = pauses.next().unwrap_or(RECONNECT.1);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// `Ok` when stopped.
    async fn connect_and_beat(&self) -> Result<(), Broken> {
        // Before opening: a renewal meanwhile must not be missed.
        let renewals = self.config.tls.renewals();
        let opened = tokio::select! {
            opened = self.open() => opened?,
            () = self.stop.cancelled() => return Ok(()),
        };
        self.link.connected.store(true, Ordering::Relaxed);
        info!(coordinator = %self.coordinator, "beating");
        self.beat_on(opened, renewals).await
    }

    /// A new stream, its first beat sent.
    async fn open(&self) -> Result<Opened, Broken> {
        let opening = async {
            let channel = self.endpoint()?.connect().await?;
            // Of two messages: the one on its way and the next. More would only age.
            let (beats, outbox) = mpsc::channel(2);
            let mut stream = Stream { beats, sent: SentBeats::default(), sequence: 0 };
            stream.beat(self, false);
            let grants = client(channel).heartbeat(ReceiverStream::new(outbox)).await?.into_inner();
            Ok::<_, Broken>((stream, grants))
        };
        timeout(CONNECT_MAX, opening).await.map_err(|_| Broken::Timeout)?
    }

    async fn beat_on(&self, opened: Opened, mut renewals: Renewals) -> Result<(), Broken> {
        let (mut stream, mut grants) = opened;
        let mut last = Instant::now();
        let mut successor = Successor::default();
        loop {
            self.shared.turn();
            let interval = self.shared.with_lease(|lease| lease.beat_interval()).unwrap_or(INTERVAL_FIRST);
            tokio::select! {
                () = self.stop.cancelled() => {
                    stream.goodbye(self, grants).await;
                    return Ok(());
                }
                () = sleep_until(last + interval) => {
                    // From now on, not from when it was due: after a stall there is nothing to catch up with.
                    last = Instant::now();
                    stream.beat(self, false);
                }
                grant = grants.message() => match grant {
                    Ok(Some(grant)) => stream.granted(self, grant),
                    // The coordinator closes the old stream when it has seen the new one.
                    Ok(None) | Err(_) if successor.is_coming() => {
                        (stream, grants) = successor.opened().await?;
                        last = Instant::now();
                    }
                    ended => return Err(ended.map_or_else(Broken::from, |_| Broken::Closed)),
                },
                () = renewals.next() => successor.open(self.clone()),
                opened = successor.opened() => match opened {
                    // It begins with a beat.
                    Ok(opened) => {
                        (stream, grants) = opened;
                        last = Instant::now();
                        debug!(coordinator = %self.coordinator, "beating with the new certificate");
                    }
                    Err(error) => {
                        debug!(%error, "no connection with the new certificate yet");
                        successor.open_later(self.clone());
                    }
                },
            }
        }
    }

    fn endpoint(&self) -> Result<Endpoint, tonic::transport::Error> {
        Endpoint::from_shared(format!("https://{}", self.coordinator))?
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .keep_alive_while_idle(true)
            .tls_config(self.config.tls.client(&Identity::Coordinator))
    }
}

/// A stream, and what comes back.
type Opened = (Stream, Streaming<Grant>);

/// A stream that is being opened.
type Opening = Pin<Box<dyn Future<Output = Result<Opened, Broken>> + Send>>;

/// The stream that is to take over, while it is being opened.
#[derive(Default)]
struct Successor {
    opening: Option<Opening>,
}

impl Successor {
    fn is_coming(&self) -> bool {
        self.opening.is_some()
    }

    /// Begins, or begins anew with what is newest now.
    fn open(&mut self, beater: Beater) {
        self.opening = Some(Box::pin(async move { beater.open().await }));
    }

    /// Begins after a pause: the old connection is still good.
    fn open_later(&mut self, beater: Beater) {
        self.opening = Some(Box::pin(async move {
            tokio::time::sleep(RECONNECT.1).await;
            beater.open().await
        }));
    }

    /// Waits for it; for ever where there is none.
    async fn opened(&mut self) -> Result<Opened, Broken> {
        let Some(opening) = &mut self.opening else { return std::future::pending().await };
        let opened = opening.await;
        self.opening = None;
        opened
    }
}

/// One open stream of beats.
struct Stream {
    beats: mpsc::Sender<Beat>,
    sent: SentBeats,
    sequence: u64,
}

impl Stream {
    fn beat(&mut self, beater: &Beater, goodbye: bool) {
        let beat = model::Beat {
            node: beater.config.node.clone(),
            boot_id: beater.config.boot_id.clone(),
            sequence: self.sequence + 1,
            goodbye,
        };
        let now = boottime();
        if self.beats.try_send(beat.into()).is_ok() {
            self.sequence += 1;
            self.sent.note(self.sequence, now);
            beater.link.beats.fetch_add(1, Ordering::Relaxed);
        } else {
            beater.link.beats_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn granted(&mut self, beater: &Beater, wire: Grant) {
        beater.link.grants.fetch_add(1, Ordering::Relaxed);
        let grant = match model::Grant::try_from(wire) {
            Ok(grant) => grant,
            Err(error) => return debug!(%error, "a grant that makes no sense"),
        };
        let Some(sent_at) = self.sent.answered(grant.sequence) else {
            return debug!(sequence = grant.sequence, "a grant that answers no beat of this stream");
        };
        let taken = LeaseGrant { epoch: grant.epoch, beat_interval: grant.beat_interval, lease: grant.lease };
        if let Err(StaleEpoch { got, seen }) = beater.shared.with_lease(|lease| lease.extend(sent_at, &taken))
        {
            debug!(got, seen, "a grant of a coordinator that leads no more");
        }
    }

    /// Sends a goodbye and waits, within bounds, until the coordinator has closed the stream in return.
    async fn goodbye(mut self, beater: &Beater, mut grants: Streaming<Grant>) {
        self.beat(beater, true);
        drop(self.beats);
        let closed = async { while let Ok(Some(_)) = grants.message().await {} };
        if timeout(GOODBYE_MAX, closed).await.is_err() {
            debug!("the coordinator did not confirm the goodbye");
        }
    }
}

fn client(channel: Channel) -> FleetClient<Channel> {
    FleetClient::new(channel)
        .max_decoding_message_size(FLEET_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(FLEET_MESSAGE_BYTES_MAX)
}

/// An error with what caused it, for one log line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

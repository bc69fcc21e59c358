//! A coordinator that only listens and says what a test tells it to, and agents run inside the test.

pub mod dead_mount;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use clap::Parser;
use somersault_agent::config::Config;
use somersault_agent::run::{AgentError, run};
use somersault_proto::model::{self, FromAgent, Progress, ProgressState};
use somersault_proto::tls::{ConnectionLimits, TlsSource};
use somersault_proto::token::TokenSigner;
use somersault_proto::v1;
use somersault_proto::v1::fleet_server::{Fleet, FleetServer};
use somersault_test_support::certs::CertAuthority;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tracing_subscriber::EnvFilter;

/// Longer than anything takes on a busy machine; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);
const CONNECTIONS: ConnectionLimits = ConnectionLimits { total: 64, strangers_per_host: 64 };

/// Folders and certificates of a test.
pub struct World {
    pub folder: TempDir,
    authority: CertAuthority,
}

impl World {
    pub fn new() -> Self {
        let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env());
        // Every test tries; one succeeds.
        let _first = log.try_init();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let authority = CertAuthority::new().expect("an authority");
        authority.issue_coordinator(&folder.path().join("coordinator")).expect("certificates");
        Self { folder, authority }
    }

    /// The flags of an agent on a free port, with one root that lies on the fixture's disk `sda`.
    pub fn agent(&self, node: &str, coordinators: &[SocketAddr]) -> AgentFlags {
        let certs = self.folder.path().join(node);
        self.authority.issue_node(node, &certs).expect("certificates");
        let root = self.folder.path().join(format!("{node}-root"));
        std::fs::create_dir_all(&root).expect("created");
        let address = free_address();
        let fixture = fixture_host();
        let mut flags: Vec<String> = ["agent", "--node", node].map(str::to_owned).into();
        for coordinator in coordinators {
            flags.extend(["--coordinator".to_owned(), coordinator.to_string()]);
        }
        let more = [
            ("--certs", certs.display().to_string()),
            ("--listen", address.to_string()),
            ("--advertise", address.to_string()),
            ("--root", format!("local-path={}", root.display())),
            ("--proc-root", fixture.join("proc").display().to_string()),
            ("--sys-root", fixture.join("sys").display().to_string()),
            ("--smartctl", "/nonexistent/smartctl".to_owned()),
            ("--kernel-period-ms", "100".to_owned()),
            ("--smart-period-ms", "100".to_owned()),
            ("--inventory-period-ms", "100".to_owned()),
        ];
        flags.extend(more.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        AgentFlags { flags, root, address }
    }
}

pub struct AgentFlags {
    pub flags: Vec<String>,
    pub root: PathBuf,
    pub address: SocketAddr,
}

impl AgentFlags {
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        match self.flags.iter().position(|given| given == flag) {
            Some(at) => value.clone_into(&mut self.flags[at + 1]),
            None => self.flags.extend([flag.to_owned(), value.to_owned()]),
        }
        self
    }

    pub fn start(self) -> Agent {
        let config = Config::try_parse_from(&self.flags).expect("flags");
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(config, stop.clone()));
        Agent { stop, task, root: self.root, address: self.address }
    }
}

/// An agent that runs inside the test.
pub struct Agent {
    stop: CancellationToken,
    task: JoinHandle<Result<(), AgentError>>,
    pub root: PathBuf,
    pub address: SocketAddr,
}

impl Agent {
    pub async fn stop(self) -> Result<(), AgentError> {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("the agent stops").expect("no panic")
    }
}

/// What the coordinator heard.
#[derive(Debug)]
pub enum Heard {
    Beat(model::Beat),
    Said(FromAgent),
    /// A stream of beats was refused.
    Refused,
}

/// How the coordinator answers.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// `None`: it does not lead, and grants nothing.
    pub grants: Option<Duration>,
    pub epoch: u64,
    /// It takes no beats.
    pub refuses: bool,
}

pub struct Coordinator {
    pub address: SocketAddr,
    pub heard: mpsc::UnboundedReceiver<(Instant, Heard)>,
    pub signer: TokenSigner,
    orders: broadcast::Sender<v1::Order>,
    epoch: u64,
    /// Of its own: connections die with it, as with a process.
    runtime: Option<Runtime>,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Coordinator {
    pub async fn start(world: &World, manner: Manner) -> Self {
        Self::start_at(world, manner, free_address()).await
    }

    pub async fn start_at(world: &World, manner: Manner, address: SocketAddr) -> Self {
        let tls = TlsSource::read(&world.folder.path().join("coordinator")).expect("certificates");
        let listener = listen(address).await;
        let address = listener.local_addr().expect("an address");
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (heard_tx, heard) = mpsc::unbounded_channel();
        let (orders, _) = broadcast::channel(64);
        let signer = TokenSigner::generate().expect("a key");
        let token_key = signer.public_key();
        let service = Service { manner, token_key, heard: heard_tx, orders: orders.clone() };
        let router = Server::builder().add_service(FleetServer::new(service));
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            router.serve_with_incoming(tls.accept(listener, CONNECTIONS)).await.expect("serves");
        });
        Self { address, heard, signer, orders, epoch: manner.epoch, runtime: Some(runtime) }
    }

    /// Dies without a word.
    pub fn kill(self) {
        drop(self);
    }

    pub fn order(&self, id: &str, kind: v1::order::Kind) {
        self.order_of(self.epoch, id, kind);
    }

    pub fn order_of(&self, epoch: u64, id: &str, kind: v1::order::Kind) {
        let order = v1::Order { id: id.to_owned(), epoch, kind: Some(kind) };
        self.orders.send(order).expect("a session is open");
    }

    /// The first message of which `look` makes something.
    pub async fn hear<T>(&mut self, mut look: impl FnMut(Instant, Heard) -> Option<T>) -> T {
        let search = async {
            loop {
                let (at, heard) = self.heard.recv().await.expect("the coordinator runs");
                if let Some(found) = look(at, heard) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, search).await.expect("the awaited message")
    }

    pub async fn beat(&mut self) -> (Instant, model::Beat) {
        self.hear(|at, heard| match heard {
            Heard::Beat(beat) => Some((at, beat)),
            Heard::Said(_) | Heard::Refused => None,
        })
        .await
    }

    pub async fn said<T>(&mut self, mut look: impl FnMut(FromAgent) -> Option<T>) -> T {
        self.hear(|_, heard| match heard {
            Heard::Said(message) => look(message),
            Heard::Beat(_) | Heard::Refused => None,
        })
        .await
    }

    pub async fn session(&mut self) -> model::Hello {
        self.said(|message| if let FromAgent::Hello(hello) = message { Some(hello) } else { None }).await
    }

    pub async fn report(&mut self, mut wanted: impl FnMut(&model::Report) -> bool) -> model::Report {
        self.said(|message| match message {
            FromAgent::Report(report) if wanted(&report) => Some(report),
            _ => None,
        })
        .await
    }

    /// How an order ended.
    pub async fn outcome(&mut self, id: &str) -> ProgressState {
        self.said(|message| match message {
            FromAgent::Progress(Progress { order, state }) if order == id => {
                (!matches!(state, ProgressState::Running { .. })).then_some(state)
            }
            _ => None,
        })
        .await
    }
}

struct Service {
    manner: Manner,
    token_key: [u8; 32],
    heard: mpsc::UnboundedSender<(Instant, Heard)>,
    orders: broadcast::Sender<v1::Order>,
}

type Reply<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Fleet for Service {
    type HeartbeatStream = Reply<v1::Grant>;
    type SessionStream = Reply<v1::FromCoordinator>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<v1::Beat>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let (manner, heard) = (self.manner, self.heard.clone());
        if manner.refuses {
            let _listening = heard.send((Instant::now(), Heard::Refused));
            return Err(Status::permission_denied("not today"));
        }
        let grants = request.into_inner().filter_map(move |wire| {
            let beat = model::Beat::try_from(wire.ok()?).expect("a valid beat");
            let sequence = beat.sequence;
            let _listening = heard.send((Instant::now(), Heard::Beat(beat)));
            let beat_interval = manner.grants?;
            let grant = model::Grant {
                sequence,
                epoch: manner.epoch,
                beat_interval,
                lease: Duration::from_secs(30),
                watchdog: Duration::from_secs(10),
                policy_hash: 1,
            };
            Some(Ok(grant.into()))
        });
        Ok(Response::new(Box::pin(grants)))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (heard, mut orders) = (self.heard.clone(), self.orders.subscribe());
        let (outbox, messages) = mpsc::channel(64);
        let welcome = v1::from_coordinator::Message::Welcome(v1::Welcome {
            epoch: self.manner.epoch,
            token_key: self.token_key.to_vec().into(),
            report_period_ms: 60_000,
            ..v1::Welcome::default()
        });
        let send = |message| Ok(v1::FromCoordinator { message: Some(message) });
        outbox.send(send(welcome)).await.expect("room");
        let mut inbox = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(wire)) = inbox.next().await {
                let message = FromAgent::try_from(wire).expect("a valid message");
                let _listening = heard.send((Instant::now(), Heard::Said(message)));
            }
        });
        tokio::spawn(async move {
            while let Ok(order) = orders.recv().await {
                if outbox.send(send(v1::from_coordinator::Message::Order(order))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// The recorded `/proc` and `/sys` of a host whose `/` lies on `sda2`.
pub fn fixture_host() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host")
}

/// Listens; an address that was in use a moment ago may need another moment.
async fn listen(address: SocketAddr) -> std::net::TcpListener {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener.into_std().expect("a listener"),
            Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A loopback address of its own: a port that is free now may be anybody's a moment later, while all of 127/8 is
/// this machine's.
pub fn free_address() -> SocketAddr {
    static HOSTS: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let host = HOSTS.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from(([127, 64 + high % 128, low, host], 7444))
}

/// A smartctl that prints what a test tells it to.
pub struct FakeSmartctl {
    folder: TempDir,
}

impl FakeSmartctl {
    pub fn new(report: &str) -> Self {
        let fake = Self { folder: tempfile::tempdir().expect("a folder") };
        fake.say(report);
        // Written by a child, so that no descriptor of ours is open for writing when another thread forks.
        let script = format!("#!/bin/sh\\ncat {}/report\\n", fake.folder.path().display());
        let shell = format!("printf '{script}' > '{0}' && chmod 755 '{0}'", fake.program().display());
        assert!(std::process::Command::new("sh").args(["-c", &shell]).status().expect("a shell").success());
        fake
    }

    pub fn program(&self) -> PathBuf {
        self.folder.path().join("smartctl")
    }

    pub fn say(&self, report: &str) {
        let (new, old) = (self.folder.path().join("new"), self.folder.path().join("report"));
        std::fs::write(&new, report).expect("written");
        std::fs::rename(new, old).expect("renamed");
    }
}

//! Simulated agents: real gRPC with a certificate of each node's own, two connections each, as the real ones have.
//!
//! ```text
//!   connection 1: beat, as often as the last grant says ──► grant
//!   connection 2: hello, then the same report every 30 s with other figures ──► welcome; probe orders are carried out
//! ```
//!
//! They sense nothing and copy nothing: an agent here costs the coordinator what a real one on a quiet node does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use somersault_proto::tls::{Identity, TlsSource};
use somersault_proto::v1;
use somersault_proto::v1::fleet_client::FleetClient;
use somersault_proto::v1::{from_agent, from_coordinator, order};
use somersault_test_support::certs::CertAuthority;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::plan::{Plan, boot_id, node_name};

/// As the real agent begins, before it is told otherwise.
const FIRST_BEAT_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_REPORT_PERIOD: Duration = Duration::from_secs(30);
/// Between two tries to connect, as the real agent's.
const RETRY: Duration = Duration::from_millis(500);
/// A port at which a probe of a living node learns that its kernel lives: nobody listens there (discard, RFC 863).
const CLOSED: &str = "127.0.0.1:9";
const GIB: u64 = 1 << 30;

/// The agents; they end with this value.
pub struct Agents {
    silent: watch::Sender<bool>,
    _all: JoinSet<()>,
}

struct Agent {
    number: u32,
    node: String,
    tls: TlsSource,
    coordinator: SocketAddr,
    /// What it says of where it serves.
    address: String,
    silent: watch::Receiver<bool>,
}

/// A certificate for each node's agent.
pub fn certify(plan: Plan, authority: &CertAuthority, folder: &Path) -> Result<Vec<TlsSource>> {
    let one = |number| {
        let certs = folder.join(node_name(number));
        authority.issue_node(&node_name(number), &certs)?;
        TlsSource::read(&certs).context("reading an agent's certificate")
    };
    plan.nodes().map(one).collect()
}

impl Agents {
    /// One for each certificate. The one of the node that dies will be silent, and serves at `void`.
    pub fn start(certificates: Vec<TlsSource>, coordinator: SocketAddr, void: SocketAddr) -> Self {
        let (silent, is_silent) = watch::channel(false);
        let (_, never) = watch::channel(false);
        let mut all = JoinSet::new();
        for (number, tls) in (0..).zip(certificates) {
            let agent = Arc::new(Agent {
                number,
                node: node_name(number),
                tls,
                coordinator,
                address: if number == 0 { void.to_string() } else { CLOSED.to_owned() },
                silent: if number == 0 { is_silent.clone() } else { never.clone() },
            });
            let again = Arc::clone(&agent);
            all.spawn(async move { agent.again_and_again(Agent::beat).await });
            all.spawn(async move { again.again_and_again(Agent::session).await });
        }
        Self { silent, _all: all }
    }

    /// The agent of the node that dies says no more; its connections are not closed, as if its power were gone.
    pub fn silence(&self) {
        self.silent.send_replace(true);
    }
}

impl Agent {
    async fn again_and_again<'a, R: Future<Output = Result<()>>>(&'a self, stream: impl Fn(&'a Self) -> R) {
        // Not all at once.
        sleep(RETRY * (self.number % 16) / 16).await;
        loop {
            // The coordinator is not there yet, or does not lead yet.
            let _ended = stream(self).await;
            sleep(RETRY).await;
        }
    }

    async fn connect(&self) -> Result<FleetClient<Channel>> {
        let tls = self.tls.client(&Identity::Coordinator);
        let endpoint = Endpoint::from_shared(format!("https://{}", self.coordinator))?.tls_config(tls)?;
        Ok(FleetClient::new(endpoint.connect().await?))
    }

    async fn beat(&self) -> Result<()> {
        let (send, beats) = mpsc::channel(4);
        let mut grants = self.connect().await?.heartbeat(ReceiverStream::new(beats)).await?.into_inner();
        let mut interval = FIRST_BEAT_INTERVAL;
        // A thousand hosts do not beat in step.
        sleep(interval * (self.number % 97) / 97).await;
        for sequence in 1.. {
            self.die_if_told().await;
            let beat =
                v1::Beat { node: self.node.clone(), boot_id: boot_id(self.number), sequence, goodbye: false };
            send.send(beat).await.context("the stream of beats ended")?;
            let next = tokio::time::Instant::now() + interval;
            while let Ok(grant) = tokio::time::timeout_at(next, grants.message()).await {
                let grant = grant?.context("the stream of grants ended")?;
                interval = Duration::from_millis(grant.beat_interval_ms.into());
            }
        }
        bail!("every number is used up")
    }

    async fn session(&self) -> Result<()> {
        let (send, messages) = mpsc::channel(4);
        let hello = v1::Hello {
            node: self.node.clone(),
            boot_id: boot_id(self.number),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: self.address.clone(),
        };
        send.send(from(from_agent::Message::Hello(hello))).await?;
        let mut orders = self.connect().await?.session(ReceiverStream::new(messages)).await?.into_inner();
        let period = self.welcome(&mut orders).await?;
        let mut due = tokio::time::Instant::now();
        for report in 0.. {
            loop {
                match tokio::time::timeout_at(due, orders.message()).await {
                    Err(_) => break,
                    Ok(message) => {
                        let message = message?.context("the session ended")?;
                        self.obey(message, &send).await?;
                    }
                }
            }
            self.die_if_told().await;
            send.send(from(from_agent::Message::Report(self.report(report)))).await?;
            due += period;
        }
        bail!("every number is used up")
    }

    async fn welcome(&self, orders: &mut Streaming<v1::FromCoordinator>) -> Result<Duration> {
        match orders.message().await?.and_then(|message| message.message) {
            Some(from_coordinator::Message::Welcome(welcome)) => {
                Ok(Duration::from_millis(welcome.report_period_ms.into()).max(FIRST_REPORT_PERIOD))
            }
            other => bail!("{other:?} instead of a welcome"),
        }
    }

    /// Of the orders, only probes are given to nodes that copy nothing.
    async fn obey(&self, message: v1::FromCoordinator, send: &mpsc::Sender<v1::FromAgent>) -> Result<()> {
        self.die_if_told().await;
        let Some(from_coordinator::Message::Order(order)) = message.message else { return Ok(()) };
        let Some(order::Kind::Probe(probe)) = order.kind else { return Ok(()) };
        let within = Duration::from_millis(probe.timeout_ms.into());
        let reachability = match timeout(within, TcpStream::connect(&probe.address)).await {
            Err(_) => v1::Reachability::Silent,
            Ok(_) => v1::Reachability::Kernel,
        };
        let answer = v1::ProbeAnswer { order: order.id, node: probe.node, reachability: reachability.into() };
        Ok(send.send(from(from_agent::Message::Probe(answer))).await?)
    }

    async fn die_if_told(&self) {
        if *self.silent.borrow() {
            std::future::pending::<()>().await;
        }
    }

    /// A root with its disk, a second disk, and figures that are never the same.
    fn report(&self, count: u32) -> v1::Report {
        let moving = self.number.wrapping_mul(31).wrapping_add(count.wrapping_mul(17)) % 100;
        let disk = |name: &str| v1::Disk {
            name: name.to_owned(),
            model: "SAMSUNG MZQL23T8HCLS-00A07".to_owned(),
            serial: format!("S64HNE0T{:06}{name}", self.number),
            grade: v1::Grade::Ok.into(),
            reasons: Vec::new(),
            smart_supported: true,
        };
        let root = v1::StorageRoot {
            path: "/opt/local-path-provisioner".to_owned(),
            storage_class: "local-path".to_owned(),
            shared: false,
            size_bytes: 3_500 * GIB,
            available_bytes: (2_000 + u64::from(moving)) * GIB,
            read_only: false,
            disk: "nvme0n1".to_owned(),
            listed_age_ms: Some(0),
            depth: 1,
        };
        v1::Report {
            roots: vec![root],
            pods: String::new(),
            volumes: Vec::new(),
            disks: vec![disk("nvme0n1"), disk("nvme1n1")],
            host: Some(v1::Host {
                cpu_ratio: f64::from(moving) / 100.0,
                memory_total_bytes: 1_056 * GIB,
                memory_available_bytes: (500 + u64::from(moving)) * GIB,
                load1: f64::from(moving),
                io_pressure_ratio: Some(0.01),
                uptime_s: 86_400 + u64::from(count) * FIRST_REPORT_PERIOD.as_secs(),
            }),
        }
    }
}

fn from(message: from_agent::Message) -> v1::FromAgent {
    v1::FromAgent { message: Some(message) }
}

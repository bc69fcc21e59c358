//! Puts the agent together, and takes it apart in order: goodbye first, so that the silence that follows is
//! nobody's alarm.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use somersault_agent_core::health::Thresholds;
use somersault_proto::model::{Address, BootId, Hello, PingReply};
use somersault_proto::tls::TlsSource;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::beat::{BeatConfig, Beats, Shared};
use crate::config::{Config, ConfigError};
use crate::enroll::origin;
use crate::metrics::{SessionMetrics, Sources};
use crate::orders::Orders;
use crate::replicas::{Resolver, System};
use crate::sense::{SenseConfig, Sensed, WatchedRoot, sense, smartctl_exists};
use crate::session::{SessionConfig, converse_with_all};
use crate::transfer::{TransferConfig, Transfers};
use crate::{inventory, metrics, peer};

/// Time for open streams to end. Copies are resumed later from their journals.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Why the agent ends, or does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// What it was told cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address is taken or not this host's.
    #[error("{flag} {address}: cannot listen there")]
    Listen {
        /// Which flag.
        flag: &'static str,
        /// What it says.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread to be had.
    #[error("cannot start the {0} thread")]
    Thread(&'static str, #[source] io::Error),
    /// The server gave up.
    #[error("the agent's server failed")]
    Server(#[from] tonic::transport::Error),
    /// The admin server gave up.
    #[error("the admin server failed")]
    Admin(#[source] io::Error),
    /// A bug: one of the agent's parts ended.
    #[error("a part of the agent ended unexpectedly")]
    Part(#[source] Option<JoinError>),
}

/// Runs the agent until told to stop.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), AgentError> {
    config.check_coordinators()?;
    let (boot_id, address) = (config.boot_id()?, config.advertised()?);
    let thresholds = config.thresholds()?;
    let roots = watch_roots(&config)?;
    let listeners = Listeners::bind(&config).await?;
    let origin = origin(&config)?;
    let tls = tokio::select! {
        // Files are there already.
        biased;
        tls = origin.first() => tls,
        ended = listeners.say_waiting() => return Err(AgentError::Admin(ended)),
        // Nobody has heard of us yet: there is nobody to say goodbye to.
        () = stop.cancelled() => return Ok(()),
    };
    if !smartctl_exists(&config.smartctl) {
        warn!(program = %config.smartctl.display(), "no smartctl: disks are judged by the kernel's word alone");
    }
    info!(node = %config.node, %boot_id, roots = roots.len(), "starting");
    let lost = Arc::new(Notify::new());
    let (resolver, coordinators) = Resolver::new(config.coordinators.clone(), System, lost.clone());
    let beats = Beats::start(BeatConfig {
        node: config.node.clone(),
        boot_id: boot_id.clone(),
        coordinators: coordinators.clone(),
        lost,
        tls: tls.clone(),
    })
    .map_err(|source| AgentError::Thread("beat", source))?;

    // Not a child of `stop`: the servers go on until the goodbye is said.
    let closing = CancellationToken::new();
    let keeping = origin.keep(tls.clone());
    let means =
        Means { config, tls, boot_id, address, roots, thresholds, coordinators, beats: beats.shared() };
    let (mut parts, mut servers) = means.start(listeners, &closing);
    parts.spawn(keeping);
    parts.spawn(resolver.look_for_ever());
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = parts.join_next() => Err(AgentError::Part(ended.and_then(Result::err))),
        Some(ended) = servers.join_next() => Err(match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) => AgentError::Part(None),
            Err(error) => AgentError::Part(Some(error)),
        }),
    };
    info!("stopping");
    say_goodbye(beats).await;
    closing.cancel();
    parts.shutdown().await;
    if timeout(STOP_MAX, async { while servers.join_next().await.is_some() {} }).await.is_err() {
        info!("streams were still open and are cut; copies resume later");
    }
    outcome
}

struct Listeners {
    agents: TcpListener,
    admin: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, AgentError> {
        let agents = listen("--listen", config.listen).await?;
        let admin = match config.admin_listen {
            Some(address) => Some(listen("--admin-listen", address).await?),
            None => None,
        };
        Ok(Self { agents, admin })
    }

    /// Answers those who ask whether we live, until there is more to say; ends only by an error.
    async fn say_waiting(&self) -> io::Error {
        match &self.admin {
            Some(listener) => match metrics::serve_waiting(listener).await {
                Ok(()) => io::Error::other("it ended by itself"),
                Err(error) => error,
            },
            None => std::future::pending().await,
        }
    }
}

/// Parts that run for ever, the end of any of which is a bug; the agent is restarted then by whoever runs it.
type Parts = JoinSet<()>;
/// Parts that end when told to.
type Servers = JoinSet<Result<(), AgentError>>;

/// What every part is made of.
struct Means {
    config: Config,
    tls: TlsSource,
    boot_id: BootId,
    address: Address,
    roots: Vec<WatchedRoot>,
    thresholds: Thresholds,
    coordinators: watch::Receiver<Vec<SocketAddr>>,
    beats: Arc<Shared>,
}

impl Means {
    fn start(self, listeners: Listeners, closing: &CancellationToken) -> (Parts, Servers) {
        let Self { config, tls, boot_id, address, roots, thresholds, coordinators, beats } = self;
        let transfers = Transfers::new(TransferConfig {
            roots: roots
                .iter()
                .map(|watched| (watched.root.path.as_str().into(), watched.root.depth))
                .collect(),
            pods: config.pods.as_ref().map(|path| path.as_str().into()),
            tls: tls.clone(),
            node: config.node.clone(),
        });
        let orders = Orders::new(beats.clone(), transfers.clone(), tls.clone());
        let (published, sensed) = watch::channel(Arc::new(Sensed::default()));
        let metrics = Arc::new(SessionMetrics::default());
        let mut parts = Parts::new();
        parts.spawn(sense(sense_config(&config, &roots, thresholds), published));
        let session = SessionConfig {
            hello: Hello {
                node: config.node.clone(),
                boot_id: boot_id.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                address,
            },
            tls: tls.clone(),
            roots: roots.clone(),
            pods: config.pods.clone(),
            sensed: sensed.clone(),
            orders: orders.clone(),
            transfers: transfers.clone(),
            beats: beats.clone(),
            metrics: metrics.clone(),
        };
        parts.spawn(converse_with_all(session, coordinators));

        let mut servers = Servers::new();
        let source = tls.clone();
        let (answer, stop) = (PingReply { node: config.node.clone(), boot_id }, closing.clone());
        servers
            .spawn(async move { Ok(peer::serve(listeners.agents, &tls, answer, &transfers, stop).await?) });
        if let Some(listener) = listeners.admin {
            let node = config.node.to_string();
            let sources = Sources { node, beats, sessions: metrics, orders, roots, sensed, tls: source };
            let serving = metrics::serve(listener, sources, closing.clone());
            servers.spawn(async move { serving.await.map_err(AgentError::Admin) });
        }
        (parts, servers)
    }
}

fn watch_roots(config: &Config) -> Result<Vec<WatchedRoot>, AgentError> {
    let watched = |root: crate::config::StorageRoot| {
        let watch = inventory::start(Path::new(root.path.as_str()), root.depth, config.inventory_period_ms)
            .map_err(|source| AgentError::Thread("inventory", source))?;
        Ok(WatchedRoot { root, watch })
    };
    config.storage_roots()?.into_iter().map(watched).collect()
}

fn sense_config(config: &Config, roots: &[WatchedRoot], thresholds: Thresholds) -> SenseConfig {
    SenseConfig {
        proc_root: config.proc_root.clone(),
        sys_root: config.sys_root.clone(),
        smartctl: config.smartctl.clone(),
        kernel_period: config.kernel_period_ms,
        smart_period: config.smart_period_ms,
        roots: roots.to_vec(),
        thresholds,
    }
}

async fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, AgentError> {
    TcpListener::bind(address).await.map_err(|source| AgentError::Listen { flag, address, source })
}

async fn say_goodbye(beats: Beats) {
    // The thread bounds itself; this wait is off the runtime's workers all the same.
    if tokio::task::spawn_blocking(|| beats.stop()).await.is_err() {
        warn!("no goodbye could be said");
    }
}

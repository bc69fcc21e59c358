//! Wires the parts of the coordinator together, and takes them apart again.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use somersault_coordinator_core::policy::Policy;
use somersault_coordinator_core::view::View;
use somersault_coordinator_core::{Coordinator, Input};
use somersault_proto::tls::TlsSource;
use somersault_proto::token::{TokenError, TokenSigner};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Operators};
use crate::alert::{self, Sources};
use crate::certificates::Certificates;
use crate::clock::{BootClock, Clock};
use crate::cluster::Cluster;
use crate::config::{Config, FenceSource};
use crate::driver::{Driver, Parts};
use crate::effects::{Effects, Tools};
use crate::fence::{Fencer, NoFencer, RemoteFencer};
use crate::inbox::Inbox;
use crate::leader::Epoch;
use crate::metrics::Metrics;
use crate::orders::Orders;
use crate::probe::NetworkProber;
use crate::{ingest, leader, publish};

/// How long stopping may take: Kubernetes kills after 30 s, and the commit in hand takes milliseconds.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A coordinator that listens but does nothing yet.
pub struct App<C> {
    cluster: Arc<C>,
    config: Config,
    agents: TcpListener,
    operators: Operators,
    signer: TokenSigner,
    certificates: Certificates,
    policy: watch::Sender<Arc<Policy>>,
}

/// A part that runs beside the deciding loop, until told to stop.
pub struct Part {
    name: &'static str,
    run: Box<dyn FnOnce(Arc<Metrics>, CancellationToken) -> Running + Send>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Running = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

impl Part {
    /// One that people know by this name.
    pub fn new<R>(
        name: &'static str,
        run: impl FnOnce(Arc<Metrics>, CancellationToken) -> R + Send + 'static,
    ) -> Self
    where
        R: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        Self { name, run: Box::new(move |metrics, stop| Box::pin(run(metrics, stop))) }
    }
}

/// Why a coordinator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A port cannot be had.
    #[error("cannot listen on {address} for {whom}; is another coordinator running?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// For whom.
        whom: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No key for tokens.
    #[error("cannot sign transfer tokens")]
    Token(#[from] TokenError),
    /// A server ended.
    #[error("the {what} ended, which it should not")]
    Ended {
        /// Which part.
        what: &'static str,
        /// Why.
        #[source]
        source: Option<Failure>,
    },
}

/// A part that ended, and why, where that is an error.
type PartEnded = (&'static str, Option<Failure>);

impl<C: Cluster> App<C> {
    /// Takes the ports, so that a second coordinator fails at once and clearly.
    pub async fn bind(cluster: Arc<C>, config: Config, certificates: Certificates) -> Result<Self, AppError> {
        let operators = Operators::open(config.admin_listen).await?;
        Self::bind_with(operators, cluster, config, certificates).await
    }

    /// The same, where operators have been served already.
    pub async fn bind_with(
        operators: Operators,
        cluster: Arc<C>,
        config: Config,
        certificates: Certificates,
    ) -> Result<Self, AppError> {
        let agents = listen(config.listen, "agents").await?;
        let signer = TokenSigner::generate()?;
        let (policy, _) = watch::channel(Arc::new(config.policy.clone()));
        Ok(Self { cluster, config, agents, operators, signer, certificates, policy })
    }

    /// Where a changed policy goes, for whoever watches one. What may change while we run does at once.
    pub fn policy(&self) -> watch::Sender<Arc<Policy>> {
        self.policy.clone()
    }

    /// Where agents connect; useful when port 0 was asked for.
    pub fn agents_address(&self) -> io::Result<SocketAddr> {
        self.agents.local_addr()
    }

    /// Where operators look.
    pub fn operators_address(&self) -> SocketAddr {
        self.operators.address()
    }

    /// Runs until told to stop, or until a part ends that must not.
    pub async fn run(self, stop: CancellationToken) -> Result<(), AppError> {
        let mut parts = self.start(&stop);
        let first = tokio::select! {
            () = stop.cancelled() => None,
            first = parts.join_next() => first,
        };
        let asked_to_stop = stop.is_cancelled();
        stop.cancel();
        let rest = async { while parts.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_WITHIN, rest).await.is_err() {
            tracing::warn!("not everything ended within {STOP_WITHIN:?}; leaving it");
        }
        match first {
            Some(Ok((what, source))) if !asked_to_stop => Err(AppError::Ended { what, source }),
            Some(Err(crash)) => Err(AppError::Ended { what: "task", source: Some(Box::new(crash)) }),
            _ => Ok(()),
        }
    }

    fn start(self, stop: &CancellationToken) -> JoinSet<PartEnded> {
        let Self { cluster, config, agents, operators, signer, certificates, policy } = self;
        let Config { policy: at_start, fence, alerts, .. } = config;
        let tls = certificates.tls;
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        let (inbox, events) = Inbox::new(Arc::clone(&clock));
        let (views, seen) = watch::channel(Arc::new(View::default()));
        let (turned, last_turn) = watch::channel(clock.now());
        let metrics = Arc::new(Metrics::default());
        let epoch = Epoch::default();
        let mut parts = JoinSet::new();
        let fencer = start_fencing(fence, &tls, &epoch, &inbox, &mut parts, stop);
        let tools = Tools {
            cluster: Arc::clone(&cluster),
            fencer,
            prober: Arc::new(NetworkProber::new(tls.clone())),
            inbox: inbox.clone(),
            epoch: epoch.clone(),
            metrics: Arc::clone(&metrics),
        };
        let driver = Driver::new(Parts {
            core: Coordinator::new(at_start),
            clock: Arc::clone(&clock),
            events,
            snapshots: cluster.snapshots(),
            policies: policy.subscribe(),
            effects: Effects::new(tools),
            orders: Orders::new(signer),
            views,
            turned,
            metrics: Arc::clone(&metrics),
        });

        for Part { name, run } in certificates.parts {
            let running = run(Arc::clone(&metrics), stop.clone());
            parts.spawn(async move { (name, running.await.err()) });
        }
        parts.spawn(quiet("deciding loop", driver.run(stop.clone())));
        let identity = uuid::Uuid::new_v4().to_string();
        let lead = leader::run(
            Arc::clone(&cluster),
            identity,
            epoch.clone(),
            inbox.clone(),
            Arc::clone(&metrics),
            stop.clone(),
        );
        parts.spawn(quiet("leader election", lead));
        let show = publish::run(Arc::clone(&cluster), seen.clone(), Arc::clone(&metrics), stop.clone());
        parts.spawn(quiet("publisher", show));
        let sources = Sources {
            snapshots: cluster.snapshots(),
            views: seen.clone(),
            policies: policy.subscribe(),
            clock: Arc::clone(&clock),
            epoch: epoch.clone(),
            metrics: Arc::clone(&metrics),
        };
        parts.spawn(quiet("alerts", alert::run(alerts, sources, stop.clone())));
        let watch_fleet = publish::watch_fleet(
            cluster.snapshots(),
            seen,
            policy.subscribe(),
            Arc::clone(&metrics),
            stop.clone(),
        );
        parts.spawn(quiet("fleet watch", watch_fleet));
        parts.spawn(serve_agents(agents, tls, inbox, Arc::clone(&metrics), stop.clone()));
        let is_warm = Arc::new(move || cluster.is_warm());
        let admin = Admin { clock, turned: last_turn, epoch, is_warm, metrics };
        let stop = stop.clone();
        parts.spawn(async move {
            let ended = operators.serve(admin, stop).await;
            ("server for operators", ended.err().map(Into::into))
        });
        parts
    }
}

/// Whoever runs the fence agents, kept up to date; the core hears who has one.
fn start_fencing(
    source: FenceSource,
    tls: &TlsSource,
    epoch: &Epoch,
    inbox: &Inbox,
    parts: &mut JoinSet<PartEnded>,
    stop: &CancellationToken,
) -> Arc<dyn Fencer> {
    let (again, stopped) = (stop.clone(), stop.clone());
    let fencer: Arc<dyn Fencer> = match source {
        FenceSource::None => Arc::new(NoFencer),
        FenceSource::Agents(agents) => {
            let follow = agents.clone();
            parts.spawn(quiet("fence configuration", async move { follow.follow(again).await }));
            Arc::new(agents)
        }
        FenceSource::Runner(addresses) => {
            let remote = RemoteFencer::new(addresses, tls.clone(), epoch.clone());
            let follow = remote.clone();
            parts.spawn(quiet("fence runner's client", async move { follow.follow(again).await }));
            Arc::new(remote)
        }
    };
    let (mut roster, inbox) = (fencer.roster(), inbox.clone());
    roster.mark_changed();
    parts.spawn(quiet("list of fence agents", async move {
        while let Some(Ok(())) = stopped.run_until_cancelled(roster.changed()).await {
            let now = roster.borrow_and_update().clone();
            inbox.input(Input::FenceAgents(Box::new(now))).await;
        }
        stopped.cancelled().await;
    }));
    fencer
}

pub(crate) async fn listen(address: SocketAddr, whom: &'static str) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, whom, source })
}

async fn quiet(what: &'static str, part: impl Future<Output = ()>) -> PartEnded {
    part.await;
    (what, None)
}

async fn serve_agents(
    listener: TcpListener,
    tls: TlsSource,
    inbox: Inbox,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> PartEnded {
    let ended = ingest::serve(listener, &tls, inbox, metrics, stop).await;
    ("server for agents", ended.err().map(Into::into))
}

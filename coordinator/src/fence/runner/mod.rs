//! The fence runner: `somersault-coordinator fence-runner`. It has the fence agents and the secrets of the management
//! controllers, and does with them what a coordinator says.
//!
//! ```text
//!   coordinator ── mTLS ──► service ──► runs ──► fence agents ──► management controllers
//!                              │          one a node, newest epoch
//!                              └──► the configuration, read again when it changes
//! ```
//!
//! ```text
//!   waiting for a certificate ── granted ──► ready ── it ends, and no next one is granted ──► not ready
//!        │ ports are held, operators are answered ◄── granted ──────────────────────────────────┘
//!        └─ coordinators wait in the port's queue
//! ```
//!
//! Several runners may serve side by side, so that one is left when a node dies with its runner: `off` of a machine
//! that is off does nothing, and a coordinator counts only the answer to its own order.

mod metrics;
mod runs;
mod service;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Args;
use somersault_proto::enroll::{Enrolment, Origin, OriginError};
use somersault_proto::model::{Address, FLEET_MESSAGE_BYTES_MAX};
use somersault_proto::tls::{ConnectionLimits, Identity, TlsError, TlsSource};
use somersault_proto::v1::fence_server::FenceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;

use self::metrics::RunnerMetrics;
use self::runs::Runs;
use self::service::FenceService;
use super::{Fencer, LiveAgents};
use crate::config::LogFormat;

/// The longest run: the slowest controllers need about a minute, and whoever waits longer has given up.
const RUN_MAX: Duration = Duration::from_mins(10);
/// Calls on one connection: a few coordinators poll, run and ask.
const CALLS_PER_CONNECTION: u32 = 64;
/// A caller that vanished is noticed after these two together.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// See [`KEEPALIVE_EVERY`].
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A few coordinators, each with a connection or two; and strangers, who have no certificate.
const CONNECTIONS: ConnectionLimits = ConnectionLimits { total: 256, strangers_per_host: 32 };

/// Runs the fence agents of the nodes for coordinators.
#[derive(Debug, Args)]
pub struct RunnerArgs {
    /// Where coordinators connect (mutual TLS).
    #[arg(long, env = "SOMERSAULT_FENCE_LISTEN", default_value = "0.0.0.0:7446")]
    pub listen: SocketAddr,

    /// Where /healthz, /readyz and /metrics are served (plain HTTP).
    #[arg(long, env = "SOMERSAULT_FENCE_ADMIN_LISTEN", default_value = "127.0.0.1:9446")]
    pub admin_listen: SocketAddr,

    /// Folder with ca.crt, tls.crt and tls.key; the certificate's DNS name must be fence-runner.somersault.
    #[arg(long, env = "SOMERSAULT_CERTS", value_name = "DIR", required_unless_present = "enroll")]
    pub certs: Option<PathBuf>,

    /// Instead of --certs: get a certificate from a coordinator that listens here, by this pod's token. Repeat it for
    /// each replica, or give a name that stands for all of them.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "certs")]
    pub enroll: Vec<Address>,

    /// The pod's ServiceAccount token with audience somersault.novasphere.dev, for --enroll.
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/somersault/token")]
    pub token_file: PathBuf,

    /// The authorities to trust (key ca.crt of ConfigMap somersault-ca-bundle), for --enroll.
    #[arg(long, value_name = "FILE", default_value = "/etc/somersault/ca/ca.crt")]
    pub ca_bundle: PathBuf,

    /// Fence agents of the nodes (YAML), usually of a mounted Secret; read again when it changes.
    #[arg(
        long,
        env = "SOMERSAULT_FENCE_CONFIG",
        value_name = "FILE",
        default_value = "/etc/somersault/fence/fence.yaml"
    )]
    pub fence_config: PathBuf,

    /// How to log; the levels are taken from `RUST_LOG`.
    #[arg(long, env = "SOMERSAULT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Why a fence runner cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The certificate files.
    #[error("the certificates in --certs cannot be used")]
    Tls(#[from] TlsError),
    /// The certificate is somebody else's.
    #[error("the certificate in {} is of {found}, not of fence-runner.somersault: coordinators would refuse it", folder.display())]
    WrongIdentity {
        /// The folder.
        folder: PathBuf,
        /// Whose it is.
        found: String,
    },
    /// A port cannot be had.
    #[error("cannot listen on {address}; is another fence runner running?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The server for coordinators ended.
    #[error("the server for coordinators ended")]
    Serve(#[from] tonic::transport::Error),
    /// The server for operators ended.
    #[error("the server for operators ended")]
    Admin(#[source] std::io::Error),
}

/// A fence runner that listens but does nothing yet.
pub struct Runner {
    origin: Origin,
    agents: LiveAgents,
    coordinators: TcpListener,
    operators: TcpListener,
}

impl Runner {
    /// Checks everything that the flags name, and takes the ports. A configuration that cannot be used is waited for,
    /// and so is an enrolment: later, while the runner runs.
    pub async fn bind(args: &RunnerArgs) -> Result<Self, RunnerError> {
        let origin = origin(args)?;
        let agents = LiveAgents::read_or_wait(&args.fence_config, RUN_MAX);
        let (coordinators, operators) = (listen(args.listen).await?, listen(args.admin_listen).await?);
        Ok(Self { origin, agents, coordinators, operators })
    }

    /// Where coordinators connect; useful when port 0 was asked for.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.coordinators.local_addr()
    }

    /// Where operators look.
    pub fn operators_address(&self) -> std::io::Result<SocketAddr> {
        self.operators.local_addr()
    }

    /// Serves until told to stop; then every fence agent is ended.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunnerError> {
        let Self { origin, agents, coordinators, operators } = self;
        let metrics = Arc::new(RunnerMetrics::default());
        let runs = Runs::new(Arc::clone(&metrics), stop.clone());
        let service = FenceServer::new(FenceService::new(agents.clone(), runs.clone(), Arc::clone(&metrics)))
            .max_decoding_message_size(FLEET_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(FLEET_MESSAGE_BYTES_MAX);
        let certified = Certified::default();
        let serve = async {
            let Some(tls) = stop.run_until_cancelled(origin.first()).await else { return Ok(()) };
            certified.set(tls.clone());
            let _renewing = AbortOnDropHandle::new(tokio::spawn(origin.keep(tls.clone())));
            let served = Server::builder()
                .max_concurrent_streams(CALLS_PER_CONNECTION)
                .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
                .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
                .serve_with_incoming_shutdown(
                    service,
                    tls.accept(coordinators, CONNECTIONS),
                    stop.clone().cancelled_owned(),
                )
                .await;
            served.map_err(RunnerError::Serve)
        };
        let shown = Shown { agents: agents.clone(), metrics, certified: certified.clone() };
        let show = serve_operators(operators, shown, stop.clone());
        let follow = async {
            agents.follow(stop.clone()).await;
            Ok(())
        };
        let ended = tokio::try_join!(serve, show, follow).map(drop);
        stop.cancel();
        runs.finish().await;
        ended
    }
}

/// Where the runner's certificate comes from. Files must be there, and be a fence runner's.
fn origin(args: &RunnerArgs) -> Result<Origin, RunnerError> {
    let identity = Identity::FenceRunner;
    let Some(folder) = args.certs.clone() else {
        return Ok(Origin::Enrolment(Enrolment {
            identity,
            coordinators: args.enroll.clone(),
            token_file: args.token_file.clone(),
            bundle_file: args.ca_bundle.clone(),
        }));
    };
    Origin::files(folder, &identity).map_err(|error| match error {
        OriginError::Tls(error) => RunnerError::Tls(error),
        OriginError::Foreign { folder, found } => RunnerError::WrongIdentity { folder, found: found.san() },
    })
}

/// The runner's certificate, once there is one.
#[derive(Clone, Default)]
struct Certified(Arc<OnceLock<TlsSource>>);

impl Certified {
    /// The first one; its successors come by the source.
    fn set(&self, tls: TlsSource) {
        self.0.get_or_init(|| tls);
    }

    /// Why no coordinator can call; `None` when they can.
    fn problem(&self) -> Option<&'static str> {
        match self.0.get() {
            None => Some("waiting for a certificate; the log says why"),
            Some(tls) if tls.current().validity().not_after <= SystemTime::now() => {
                Some("the certificate has ended; the log says why there is no new one")
            }
            Some(_) => None,
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, RunnerError> {
    TcpListener::bind(address).await.map_err(|source| RunnerError::Listen { address, source })
}

/// What operators are shown.
#[derive(Clone)]
struct Shown {
    agents: LiveAgents,
    metrics: Arc<RunnerMetrics>,
    certified: Certified,
}

async fn serve_operators(
    listener: TcpListener,
    shown: Shown,
    stop: CancellationToken,
) -> Result<(), RunnerError> {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(shown);
    axum::serve(listener, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(RunnerError::Admin)
}

/// Ready where coordinators can call; even with a configuration that cannot be used: they must hear that.
async fn readyz(State(Shown { agents, certified, .. }): State<Shown>) -> (StatusCode, String) {
    if let Some(problem) = certified.problem() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n"));
    }
    let roster = agents.roster();
    let roster = roster.borrow();
    let problem = roster.problem.as_deref().map_or_else(String::new, |why| format!("; {why}"));
    (StatusCode::OK, format!("{} nodes have a fence agent{problem}\n", roster.agents.len()))
}

async fn show_metrics(State(Shown { agents, metrics, .. }): State<Shown>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    metrics.roster(&agents.roster().borrow());
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

//! Flags and files: what the process is told at its start, checked before it does anything.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Parser, Subcommand, ValueEnum};
use somersault_coordinator_core::policy::{Policy, PolicyError, PolicySpec};

use crate::alert::config::{AlertArgs, AlertConfigError, AlertPlan};
use crate::fence::runner::RunnerArgs;
use crate::fence::{FenceConfigError, LiveAgents};

/// A policy is a few dozen lines.
const POLICY_BYTES_MAX: u64 = 256 * 1024;

/// Decides what becomes of virtual machines when their node dies, and moves their disks.
#[derive(Debug, Parser)]
#[command(
    name = "somersault-coordinator",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// What to be instead of a coordinator.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The coordinator. Nothing may be flattened into it: clap then takes it for absent, whatever is given.
    #[command(flatten)]
    pub coordinator: Option<Args>,
    /// Where the coordinator's alerts go.
    #[command(flatten)]
    pub alerts: AlertArgs,
}

/// What else this binary can be.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the nodes' fence agents for coordinators.
    FenceRunner(RunnerArgs),
    /// Do nothing until told to stop: a pod that runs this keeps its volumes mounted.
    Hold,
}

/// What a coordinator is told at its start.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the cluster's objects are: `kube`, an API server, or `dir:PATH`, a folder of manifests.
    #[arg(long, env = "SOMERSAULT_CLUSTER", default_value = "kube")]
    pub cluster: ClusterPlace,

    /// With `kube`: context of the kubeconfig; else the pod's own account, else the current context.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// With `kube`: the coordinator's own namespace, where its Lease is; else the pod's, or the context's.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,

    /// With `kube`: how people know this process, in the Lease and in Events; else the host's name.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub instance: Option<String>,

    /// Where agents connect (mutual TLS).
    #[arg(long, env = "SOMERSAULT_LISTEN", default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,

    /// Where /healthz, /readyz and /metrics are served (plain HTTP).
    #[arg(long, env = "SOMERSAULT_ADMIN_LISTEN", default_value = "127.0.0.1:9443")]
    pub admin_listen: SocketAddr,

    /// Folder with ca.crt, tls.crt and tls.key, read again when they change; the certificate's DNS name must be
    /// coordinator.somersault.
    #[arg(long, env = "SOMERSAULT_CERTS", value_name = "DIR", required_unless_present = "ca_secret")]
    pub certs: Option<PathBuf>,

    /// Keep a certificate authority of our own in this Secret, made if it is not there, and certify agents by
    /// their ServiceAccount tokens.
    #[arg(long, env = "SOMERSAULT_CA_SECRET", value_name = "NAME", conflicts_with = "certs")]
    pub ca_secret: Option<String>,

    /// Where agents ask for a certificate (TLS of the coordinator alone); only with --ca-secret.
    #[arg(long, env = "SOMERSAULT_ENROLL_LISTEN", default_value = "0.0.0.0:7445")]
    pub enroll_listen: SocketAddr,

    /// How long certificates are good; agents renew them after two thirds of it. Every replica must say the same.
    #[arg(
        long, env = "SOMERSAULT_CERTIFICATE_LIFETIME_S", value_name = "SECONDS", default_value_t = 86_400,
        value_parser = clap::value_parser!(u64).range(60..=2_592_000)
    )]
    pub certificate_lifetime_s: u64,

    /// Policy (YAML); without it, the safe profile.
    #[arg(long, env = "SOMERSAULT_POLICY", value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Fence agents of the nodes (YAML), run by this process; read again when it changes. Without this or
    /// --fence-runner, no node can be powered off.
    #[arg(long, env = "SOMERSAULT_FENCE_CONFIG", value_name = "FILE", conflicts_with = "fence_runner")]
    pub fence_config: Option<PathBuf>,

    /// Where fence runners serve, which have the fence agents; repeatable, and a name may stand for several.
    #[arg(long, env = "SOMERSAULT_FENCE_RUNNER", value_name = "HOST:PORT", value_delimiter = ',')]
    pub fence_runner: Vec<String>,

    /// How to log; the levels are taken from `RUST_LOG`.
    #[arg(long, env = "SOMERSAULT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Where the cluster's objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterPlace {
    /// A real API server.
    Kube,
    /// A folder of manifests.
    Directory(PathBuf),
}

impl FromStr for ClusterPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("dir:")) {
            ("kube", _) => Ok(Self::Kube),
            (_, Some(path)) if !path.is_empty() => Ok(Self::Directory(PathBuf::from(path))),
            _ => Err("expected kube, or dir:PATH with the folder of the manifests".to_owned()),
        }
    }
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

/// Everything that the flags and files say, checked.
#[derive(Debug)]
pub struct Config {
    /// Where agents connect.
    pub listen: SocketAddr,
    /// Where operators look.
    pub admin_listen: SocketAddr,
    /// Limits and time-outs.
    pub policy: Policy,
    /// Who runs the fence agents.
    pub fence: FenceSource,
    /// Where alerts go.
    pub alerts: AlertPlan,
}

/// Who runs the fence agents.
#[derive(Clone, Debug)]
pub enum FenceSource {
    /// Nobody.
    None,
    /// This process.
    Agents(LiveAgents),
    /// The fence runners at each `HOST:PORT`.
    Runner(Vec<String>),
}

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The policy file cannot be read.
    #[error("cannot read the policy {}", file.display())]
    PolicyUnreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("the policy {} cannot be understood: {why}", file.display())]
    PolicySyntax {
        /// Which.
        file: PathBuf,
        /// Where, and what is wrong.
        why: String,
    },
    /// Its values contradict each other.
    #[error("the policy cannot hold")]
    Policy(#[from] PolicyError),
    /// The fence agents.
    #[error("the fence agents cannot be used")]
    Fence(#[from] FenceConfigError),
    /// The alerts.
    #[error("alerts cannot be sent")]
    Alerts(#[from] AlertConfigError),
    /// A node is promised a fence agent that nobody configured.
    #[error("the policy's fencing.nodes names {node}, but --fence-config has no agent for it")]
    NoAgent {
        /// Which.
        node: String,
    },
}

impl Config {
    /// Reads and checks everything that the flags name, except the cluster.
    pub fn load(args: &Args, alerts: &AlertArgs) -> Result<Self, ConfigError> {
        let spec = args.policy.as_deref().map(read_policy).transpose()?.unwrap_or_default();
        let policy = Policy::try_from(spec)?;
        let fence = fence_source(args, &policy)?;
        let alerts = AlertPlan::try_from(alerts)?;
        Ok(Self { listen: args.listen, admin_listen: args.admin_listen, policy, fence, alerts })
    }
}

/// A node that the policy promises a fence agent must have one, where that can be known at the start.
fn fence_source(args: &Args, policy: &Policy) -> Result<FenceSource, ConfigError> {
    if !args.fence_runner.is_empty() {
        return Ok(FenceSource::Runner(args.fence_runner.clone()));
    }
    let live = match &args.fence_config {
        Some(file) => Some(LiveAgents::read(file, policy.fencing.timeout)?),
        None => None,
    };
    let agents = live.as_ref().map(LiveAgents::agents).unwrap_or_default();
    let fenced: std::collections::BTreeSet<_> = agents.nodes().cloned().collect();
    if let Some(node) = policy.fencing.nodes.difference(&fenced).next() {
        return Err(ConfigError::NoAgent { node: node.to_string() });
    }
    Ok(live.map_or(FenceSource::None, FenceSource::Agents))
}

fn read_policy(file: &Path) -> Result<PolicySpec, ConfigError> {
    let unreadable = |source| ConfigError::PolicyUnreadable { file: file.to_owned(), source };
    let syntax = |why: String| ConfigError::PolicySyntax { file: file.to_owned(), why };
    if fs::metadata(file).map_err(unreadable)?.len() > POLICY_BYTES_MAX {
        return Err(syntax(format!("more than {POLICY_BYTES_MAX} bytes")));
    }
    let text = fs::read_to_string(file).map_err(unreadable)?;
    serde_saphyr::from_str(&text).map_err(|error| syntax(error.to_string()))
}

//! A large cluster, as objects: what the coordinator needs for it at rest, and how long it takes to see to a node with
//! a hundred VMs.
//!
//! ```text
//!   real etcd and kube-apiserver ◄── 1,000 Nodes, 10,000 VMs with all that belongs to them; Leases that are renewed
//!        ▲        ▲
//!        │        └── KubeVirt's part, played here (standin)
//!   real coordinator, its own account and rights ◄── gRPC, mTLS ── 1,000 simulated agents (agents)
//! ```
//!
//! There is no kubelet and no controller: nodes without kubelets would be tainted and emptied by the controllers within
//! minutes.

mod agents;
mod api;
mod audit;
mod coordinator;
mod fill;
mod incident;
mod kubelets;
mod objects;
mod plan;
mod progress;
mod rest;
mod shown;
mod standin;
mod void;
mod wait;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use somersault_test_cluster::{ApiOptions, Cluster, api_usable_or_skip};
use somersault_test_support::certs::CertAuthority;

use self::agents::{Agents, certify};
use self::api::{Api, Kind};
use self::audit::{ACCOUNT, NAMESPACE};
use self::coordinator::Coordinator;
use self::kubelets::Kubelets;
use self::plan::Plan;
use self::void::Void;

/// Name of the cluster, so that it does not meet another one of this machine.
const CLUSTER: &str = "bench";
/// Files that each node's agent and the coordinator open for it: two connections, on both ends of which one process
/// stands; and as many again for everything else.
const FILES_PER_NODE: u64 = 4;
const FILES_BESIDE: u64 = 1_024;

/// How large, and how long.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// Nodes.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(2..=5_000))]
    nodes: u32,
    /// VMs.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    vms: u32,
    /// Of them, those on the node that dies.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=200))]
    doomed: u32,
    /// How long rest is looked at.
    #[arg(long, default_value_t = 60)]
    rest_seconds: u64,
    /// The policy's profile; all else is the default policy.
    #[arg(long, value_enum, default_value_t = Profile::Safe)]
    profile: Profile,
}

/// Of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Profile {
    /// Declared after 5 s.
    Safe,
    /// Declared after 1 s.
    Fast,
}

/// Measures, and prints.
pub fn run(options: Options) -> Result<()> {
    if !api_usable_or_skip("the fleet at scale") {
        return Ok(());
    }
    let plan = Plan { nodes: options.nodes, vms: options.vms, doomed: options.doomed.min(options.vms) };
    allow_files(plan)?;
    let program = std::env::current_exe().context("finding this program")?;
    let programs = program.parent().context("a program without a folder")?;
    for needed in ["somersault-coordinator", "somersault-cluster"] {
        ensure!(
            programs.join(needed).is_file(),
            "{needed} is not in {}; `make bench` builds it",
            programs.display()
        );
    }
    let work = programs.parent().context("a program without a target folder")?.join("bench-scale");
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("emptying {}", work.display()))?;
    }
    std::fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
    println!("Starting an etcd and a kube-apiserver.");
    Cluster::down(CLUSTER).context("removing what an earlier run has left")?;
    let cluster = Cluster::up_api(&ApiOptions {
        name: CLUSTER.to_owned(),
        tied: true,
        program: programs.join("somersault-cluster"),
        audit_policy: audit::policy(),
    })?;
    let runtime = tokio::runtime::Runtime::new().context("starting a runtime")?;
    runtime.block_on(Box::pin(measure(options, plan, &cluster, programs, &work)))
}

async fn measure(
    options: Options,
    plan: Plan,
    cluster: &Cluster,
    programs: &Path,
    work: &Path,
) -> Result<()> {
    let api = Api::of(&cluster.kubeconfig()).await?;
    install(cluster, &api, options.profile).await?;
    println!("Creating {} nodes and {} VMs.", plan.nodes, plan.vms);
    let began = Instant::now();
    fill::run(&api, plan).await?;
    println!("  that took {} s", began.elapsed().as_secs());

    let authority = CertAuthority::new()?;
    let certs = work.join("coordinator");
    authority.issue_coordinator(&certs)?;
    let certificates = certify(plan, &authority, &work.join("agents"))?;
    let void = Void::open().await?;
    let kubelets = Kubelets::start(&api, plan);
    println!("Starting the coordinator and {} agents.", plan.nodes);
    let mut coordinator =
        Coordinator::start(cluster, &programs.join("somersault-coordinator"), work, &certs)?;
    let agents = Agents::start(certificates, coordinator.agents, void.address());
    let start = rest::start(&mut coordinator, &api, plan).await.with_context(|| hint(&coordinator))?;
    println!(
        "Looking on for {} s while nothing happens, once two minutes have calmed it.",
        options.rest_seconds
    );
    let during = Duration::from_secs(options.rest_seconds);
    let rest = rest::look(&mut coordinator, &cluster.layout().log("audit"), during).await?;
    println!("A node with {} VMs falls silent.", plan.doomed);
    let incident = incident::run(&api, plan, &mut coordinator, &agents, &kubelets)
        .await
        .with_context(|| hint(&coordinator))?;
    ensure!(kubelets.failed() == 0, "{} renewals of Leases were refused", kubelets.failed());
    let declared = coordinator.metric("somersault_node_declared_after_seconds_count", "");
    ensure!((declared - 1.0).abs() < f64::EPSILON, "{declared} nodes were declared, and one died");
    shown::print(plan, &format!("{:?}", options.profile), &start, &rest, &incident);
    Ok(())
}

/// The definitions, the coordinator's rights, and the policy.
async fn install(cluster: &Cluster, api: &Api, profile: Profile) -> Result<()> {
    let deploy = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    let path = |below: &str| deploy.join(below).display().to_string();
    cluster.ask(&["apply", "-k", &path("crds")])?;
    cluster.ask(&["apply", "-f", &path("base/namespace.yaml"), "-f", &path("base/rbac.yaml")])?;
    api.create(Kind::ACCOUNT, objects::account(NAMESPACE, ACCOUNT)).await?;
    somersault_test_kubevirt::install(api.client()).await?;
    let policy = json!({"metadata": {"name": "default"}, "spec": {"profile": format!("{profile:?}")}});
    api.create(Kind::POLICY, policy).await.map(drop)
}

fn hint(coordinator: &Coordinator) -> String {
    format!("the coordinator's log is {}", coordinator.log.display())
}

/// This process has one end of each agent's connections, and the coordinator, which inherits the limit, the other.
fn allow_files(plan: Plan) -> Result<()> {
    let needed = u64::from(plan.nodes) * FILES_PER_NODE + FILES_BESIDE;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let allowed = maximum.is_none_or(|maximum| maximum >= needed);
    ensure!(
        allowed,
        "{needed} open files are needed, and {} are allowed (ulimit -Hn)",
        maximum.unwrap_or_default()
    );
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum }).context("allowing open files")
}

//! Three nodes with agents, and a coordinator whose cluster has nothing but these nodes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;
use somersault_coordinator::cluster::directory::store::Store;
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_crd::node_health::{NodeHealthStatus, NodeState};
use somersault_test_support::certs::CertAuthority;
use somersault_test_support::world::network;
use somersault_test_support::world::node::{NodeSpec, free_mount_point, settle_in};
use somersault_test_support::world::power;
use somersault_test_support::world::programs::{
    Agent, AgentPod, CoordinatorFlags, Process, start_coordinator,
};

/// Their names, in the order of their numbers.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// One plug is pulled again and again; that another node is suspected now and then is what is measured, and must
/// not end in a storm hold, which two of three nodes within a minute would by default.
const POLICY: &str = "profile: fast\nstorm: { windowPercent: 67 }\n";
const PERIOD: Duration = Duration::from_millis(100);

/// The running fleet.
pub struct Fleet {
    store: Store,
    /// The work folder, with logs.
    pub work: PathBuf,
    coordinator: Process,
}

impl Fleet {
    /// Starts everything.
    pub fn start() -> Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let programs = program.parent().context("a program without a folder")?;
        let work = programs.parent().context("a program without a target folder")?.join("bench/detection");
        if work.exists() {
            std::fs::remove_dir_all(&work).with_context(|| format!("emptying {}", work.display()))?;
        }
        let cluster = work.join("cluster");
        std::fs::create_dir_all(&cluster).with_context(|| format!("creating {}", cluster.display()))?;
        let store = Store::open(&cluster).context("opening the cluster's folder")?;
        let authority = CertAuthority::new()?;
        network::create_bridge()?;
        let mount_point = free_mount_point(&[&work, programs])?;
        for (node, number) in NODES.into_iter().zip(1..) {
            let spec = specification(&work, &mount_point, &program, node, number);
            start_node(&store, &authority, programs, &work, &spec)?;
        }
        let (certs, policy) = (work.join("tls"), work.join("policy.yaml"));
        authority.issue_coordinator(&certs)?;
        // No fence agent: a node that was cut off and is cut on again in the same boot is simply well again.
        std::fs::write(&policy, POLICY).context("writing the policy")?;
        let coordinator = start_coordinator(&CoordinatorFlags {
            programs,
            cluster: &cluster,
            certs: &certs,
            policy: &policy,
            fence_config: None,
            log: &work.join("coordinator.log"),
        })?;
        Ok(Self { store, work, coordinator })
    }

    /// What is known of a node.
    pub fn health(&mut self, node: &str) -> Result<NodeHealthStatus> {
        self.coordinator.check()?;
        let object = self.store.get(&ObjectId::cluster("NodeHealth", node))?;
        let status = object.map(|object| object["status"].clone()).filter(|status| !status.is_null());
        match status {
            Some(status) => NodeHealthStatus::deserialize(status).context("reading a NodeHealth"),
            None => Ok(NodeHealthStatus::default()),
        }
    }

    /// States of all nodes.
    pub fn states(&mut self) -> Result<Vec<NodeState>> {
        NODES.into_iter().map(|node| Ok(self.health(node)?.state)).collect()
    }
}

fn specification(work: &Path, mount_point: &Path, program: &Path, node: &str, number: u8) -> NodeSpec {
    let home = work.join(node);
    NodeSpec {
        name: node.to_owned(),
        number,
        mount_point: mount_point.to_owned(),
        folders: ["etc", "local-path"].map(|folder| (home.join(folder), folder.to_owned())).into(),
        hidden: Vec::new(),
        boot_id: home.join("boot_id"),
        log: work.join(format!("{node}.log")),
        init: vec![program.display().to_string(), "node".to_owned()],
    }
}

fn start_node(
    store: &Store,
    authority: &CertAuthority,
    programs: &Path,
    work: &Path,
    spec: &NodeSpec,
) -> Result<()> {
    let home = work.join(&spec.name);
    std::fs::create_dir_all(home.join("local-path")).context("making a node's folders")?;
    authority.issue_node(&spec.name, &home.join("etc/tls"))?;
    let file = home.join("node.json");
    spec.write(&file)?;
    let log = work.join(format!("{}-agent.log", spec.name));
    let root = format!("--root=local-path={}", spec.path("local-path").display());
    AgentPod::new(programs, spec, log).with([root]).write(&file)?;
    store.create(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": spec.name, "labels": {"kubernetes.io/hostname": spec.name}},
        "spec": {},
        "status": {
            "addresses": [{"type": "InternalIP", "address": network::address(spec.number)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))?;
    network::lay_cable(&spec.name, spec.number)?;
    power::on(&file)
}

/// First process of a node: keeps the agent running.
pub fn run_node(spec_file: &Path) -> Result<()> {
    let spec = NodeSpec::read(spec_file)?;
    let mut agent = Agent::of(spec_file)?;
    settle_in(&spec)?;
    loop {
        if let Err(error) = agent.keep_running() {
            eprintln!("node: {error:#}");
        }
        std::thread::sleep(PERIOD);
    }
}

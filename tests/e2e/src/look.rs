//! What the coordinator publishes, as scenarios ask for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;
use somersault_test_cluster::until;

use crate::api::Kind;
use crate::bed::{Bed, NAMESPACE, VMS, has_our_taint};

/// Between two looks of a scenario in which nothing may happen.
const QUIET_LOOK: Duration = Duration::from_millis(250);
/// States that are a death to the coordinator.
const DECLARED: [&str; 5] = ["AwaitingProof", "Fenced", "Recovering", "Quarantine", "FenceContradicted"];

/// Looks for as long as this, with a pause after each look.
pub fn throughout(during: Duration, pause: Duration, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < during {
        look()?;
        std::thread::sleep(pause);
    }
    Ok(())
}

impl Bed {
    /// Waits until a node is in a state.
    pub fn wait_state(&self, node: &str, state: &str, deadline: Duration) -> Result<()> {
        until(&format!("{node} is {state}"), deadline, &[], || {
            let now = self.node_state(node)?;
            ensure!(now == state, "it is {now}");
            Ok(Some(()))
        })
    }

    /// Waits until the node does not have our taint.
    pub fn wait_untainted(&self, node: &str, deadline: Duration) -> Result<()> {
        until(&format!("our taint is off {node}"), deadline, &[], || {
            Ok((!has_our_taint(&self.api().get(Kind::NODE, "", node)?)).then_some(()))
        })
    }

    /// Watches for as long as this: no node may be declared dead, tainted or switched off.
    pub fn stays_undeclared(&self, during: Duration) -> Result<()> {
        throughout(during, QUIET_LOOK, || self.check_undeclared())
    }

    /// No node is declared dead, tainted or off.
    pub fn check_undeclared(&self) -> Result<()> {
        for node in self.nodes() {
            let state = self.node_state(&node)?;
            ensure!(!DECLARED.contains(&state.as_str()), "{node} lives, and was declared: {state}");
            ensure!(!has_our_taint(&self.api().get(Kind::NODE, "", &node)?), "{node} lives, and is tainted");
            ensure!(self.cluster().is_on(&node)?, "{node} lives, and was switched off");
        }
        Ok(())
    }

    /// No node is declared dead, tainted or off, and these are held back: too many fell silent at once.
    pub fn check_held(&self, nodes: &[&String]) -> Result<()> {
        self.check_undeclared()?;
        for node in nodes {
            let state = self.node_state(node)?;
            ensure!(state == "StormHold", "{node} is silent with others, and is {state}");
        }
        Ok(())
    }

    /// Events about the coordinator with this reason, how often each was told included.
    pub fn told_of_coordinator(&self, reason: &str) -> Result<u64> {
        let events = self.api().list(Kind::EVENT, NAMESPACE, "")?;
        let of_it = |event: &&Value| {
            event["reason"] == reason && event["regarding"]["name"] == "somersault-coordinator"
        };
        Ok(events.iter().filter(of_it).map(|event| event["series"]["count"].as_u64().unwrap_or(1)).sum())
    }

    /// When something of a node's incident happened, by the coordinator's clock.
    pub fn milestone(&self, node: &str, milestone: &str) -> Result<Timestamp> {
        let health = self.api().get(Kind::NODE_HEALTH, "", node)?;
        let timeline = health["status"]["timeline"].as_array().context("no timeline")?;
        let entry = timeline.iter().find(|entry| entry["milestone"] == milestone);
        let at =
            entry.with_context(|| format!("{milestone} is not in the timeline of {node}"))?["at"].as_str();
        at.context("no time")?.parse().context("a time that is none")
    }

    /// The Recovery of a VM.
    pub fn recovery(&self, vm: &str) -> Result<Value> {
        self.api().get(Kind::RECOVERY, VMS, vm)
    }

    /// Waits until a VM's Recovery says this.
    pub fn wait_decision(&self, vm: &str, decision: &str, deadline: Duration) -> Result<Value> {
        until(&format!("{vm} is decided {decision}"), deadline, &[], || {
            let recovery = self.recovery(vm)?;
            let now = recovery["status"]["decision"].clone();
            ensure!(now == decision, "it is {now}");
            Ok(Some(recovery))
        })
    }

    /// The pod of the coordinator that leads.
    pub fn leader(&self) -> Result<Value> {
        let lease = self.api().get(Kind::LEASE, NAMESPACE, "somersault-coordinator")?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        let pods = self.coordinators()?;
        let leads = |pod: &&Value| pod["metadata"]["name"].as_str().is_some_and(|name| holder.contains(name));
        pods.iter().find(leads).cloned().with_context(|| format!("no pod is the leader {holder:?}"))
    }

    /// The epoch of the leader, by its Lease.
    pub fn leaders_epoch(&self) -> Result<u64> {
        let lease = self.api().get(Kind::LEASE, NAMESPACE, "somersault-coordinator")?;
        lease["spec"]["leaseTransitions"].as_u64().context("a Lease without an epoch")
    }

    /// The coordinator's pods.
    pub fn coordinators(&self) -> Result<Vec<Value>> {
        self.api().list(Kind::POD, NAMESPACE, "app.kubernetes.io/component=coordinator")
    }

    /// The node of the coordinator that leads.
    pub fn leaders_node(&self) -> Result<String> {
        let pod = self.leader()?;
        Ok(pod["spec"]["nodeName"].as_str().context("a leader without a node")?.to_owned())
    }

    /// A node on which no coordinator runs, or at least not the one that leads.
    pub fn node_without_leader(&self) -> Result<String> {
        let leads = self.leaders_node()?;
        let all: Vec<_> = self.coordinators()?;
        let busy = |node: &String| all.iter().any(|pod| pod["spec"]["nodeName"] == **node);
        let nodes = self.nodes();
        let free =
            nodes.iter().find(|node| !busy(node)).or_else(|| nodes.iter().find(|node| **node != leads));
        free.cloned().context("a cluster of one node")
    }

    /// Waits until the product is whole: as many coordinators as asked for, one of which leads.
    pub fn wait_whole(&self, deadline: Duration) -> Result<()> {
        until("every coordinator is ready and one leads", deadline, &[], || {
            let deployment = self.api().get(Kind::DEPLOYMENT, NAMESPACE, "somersault-coordinator")?;
            let (wanted, ready) = (&deployment["spec"]["replicas"], &deployment["status"]["readyReplicas"]);
            ensure!(wanted == ready, "{ready} of {wanted} are ready");
            self.leader().map(Some)
        })
        .map(drop)
    }

    /// Waits until every coordinator is another pod than these, of this image, and whole again.
    pub fn wait_replaced(&self, before: &[Value], image: &str, deadline: Duration) -> Result<()> {
        until("every coordinator is a new one", deadline, &[], || {
            for pod in self.coordinators()? {
                let name = &pod["metadata"]["name"];
                let is_old = before.iter().any(|old| old["metadata"]["uid"] == pod["metadata"]["uid"]);
                ensure!(!is_old, "{name} is still there");
                let runs = &pod["spec"]["containers"][0]["image"];
                ensure!(runs == image, "{name} is of {runs}");
            }
            Ok(Some(()))
        })?;
        self.wait_whole(deadline)
    }

    /// Epoch of the leader that has written the fence record of a node last.
    pub fn fence_epoch(&self, node: &str) -> Result<u64> {
        let health = self.api().get(Kind::NODE_HEALTH, "", node)?;
        health["status"]["fence"]["epoch"].as_u64().with_context(|| format!("{node} has no fence record"))
    }
}

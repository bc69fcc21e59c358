//! What kubelets do when nothing happens: each renews its Lease every ten seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::api::{Api, Kind};
use super::fill::renew_time;
use super::plan::{Plan, node_name};

/// As a kubelet does it: a quarter of the Lease's 40 s.
const PERIOD: Duration = Duration::from_secs(10);
/// So many renew side by side: one request takes a few milliseconds, and each of them sees to a quarter of the nodes.
const WORKERS: u32 = 4;

/// The kubelets; they end with this value.
pub struct Kubelets {
    silent: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    _workers: JoinSet<()>,
}

impl Kubelets {
    /// All of them.
    pub fn start(api: &Api, plan: Plan) -> Self {
        let (silent, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let nodes: Vec<_> = plan.nodes().filter(|node| node % WORKERS == worker).collect();
            if !nodes.is_empty() {
                workers.spawn(renew(api.clone(), nodes, Arc::clone(&silent), Arc::clone(&failed)));
            }
        }
        Self { silent, failed, _workers: workers }
    }

    /// The kubelet of the node that dies renews no more.
    pub fn silence(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    /// Renewals that the API server has refused.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

async fn renew(api: Api, nodes: Vec<u32>, silent: Arc<AtomicBool>, failed: Arc<AtomicU64>) {
    let pause = PERIOD / u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    let mut turns = tokio::time::interval(pause);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for node in nodes.iter().cycle() {
        turns.tick().await;
        if *node == 0 && silent.load(Ordering::Relaxed) {
            continue;
        }
        let change = json!({"spec": {"renewTime": renew_time()}});
        let renewed = api.merge(Kind::LEASE, Some("kube-node-lease"), &node_name(*node), change).await;
        if renewed.is_err() {
            failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

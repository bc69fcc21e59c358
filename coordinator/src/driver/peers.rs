//! Probes that other agents make for us: which are out, and whose answer counts.

use std::collections::BTreeMap;
use std::time::Duration;

use somersault_coordinator_core::io::Prober;
use somersault_coordinator_core::{BootTime, Input};
use somersault_proto::model::{Address, NodeName, Order, OrderKind, ProbeAnswer};

use crate::convert;

/// How long after its time-out an answer is still of use: one way over a bad network.
const LATE: Duration = Duration::from_secs(1);
/// Probes out at the same time; three for each suspect, and a storm hold begins long before.
const OUT_MAX: usize = 1024;

/// The probes that are out.
#[derive(Debug, Default)]
pub struct PeerProbes {
    asked: BTreeMap<String, Asked>,
    count: u64,
}

#[derive(Debug)]
struct Asked {
    node: NodeName,
    peer: NodeName,
    until: BootTime,
}

impl PeerProbes {
    /// The order that asks `peer` about `node`.
    pub fn ask(
        &mut self,
        now: BootTime,
        peer: NodeName,
        node: NodeName,
        address: Address,
        timeout: Duration,
        epoch: u64,
    ) -> Order {
        self.asked.retain(|_, asked| asked.until > now);
        if self.asked.len() >= OUT_MAX {
            self.asked.pop_first();
        }
        self.count += 1;
        let id = format!("probe:{epoch}.{}", self.count);
        self.asked.insert(id.clone(), Asked { node: node.clone(), peer, until: now + timeout + LATE });
        Order { id, epoch, kind: OrderKind::Probe { node, address, timeout } }
    }

    /// Takes an answer; `None` where `peer` was not asked this.
    pub fn answered(&mut self, now: BootTime, peer: &NodeName, answer: &ProbeAnswer) -> Option<Input> {
        let asked = self.asked.get(&answer.order)?;
        if asked.peer != *peer || asked.node != answer.node || asked.until <= now {
            return None;
        }
        self.asked.remove(&answer.order);
        Some(Input::Probed {
            node: convert::node(&answer.node),
            by: Prober::Peer(convert::node(peer)),
            answer: convert::reachability(answer.reachability),
        })
    }

    /// A new epoch: what was asked before counts no more.
    pub fn forget_all(&mut self) {
        self.asked.clear();
    }
}

#[cfg(test)]
mod tests {
    use somersault_proto::model::Reachability;

    use super::*;

    fn name(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn asked() -> (PeerProbes, String) {
        let mut probes = PeerProbes::default();
        let address = "10.0.0.1:7444".parse().unwrap();
        let order =
            probes.ask(Duration::ZERO, name("n2"), name("n1"), address, Duration::from_millis(300), 4);
        assert_eq!(order.epoch, 4);
        (probes, order.id)
    }

    fn answer(order: &str, node: &str) -> ProbeAnswer {
        ProbeAnswer { order: order.into(), node: name(node), reachability: Reachability::Agent }
    }

    #[test]
    fn the_answer_of_the_asked_peer_counts_once() {
        let (mut probes, id) = asked();
        let now = Duration::from_millis(100);
        let input = probes.answered(now, &name("n2"), &answer(&id, "n1"));
        assert!(matches!(input, Some(Input::Probed { by: Prober::Peer(peer), .. }) if peer.as_str() == "n2"));
        assert_eq!(probes.answered(now, &name("n2"), &answer(&id, "n1")), None);
    }

    #[test]
    fn made_up_answers_do_not_count() {
        let (mut probes, id) = asked();
        let now = Duration::from_millis(100);
        assert_eq!(probes.answered(now, &name("n3"), &answer(&id, "n1")), None, "n3 was not asked");
        assert_eq!(probes.answered(now, &name("n2"), &answer(&id, "n9")), None, "n9 was not asked about");
        assert_eq!(probes.answered(now, &name("n2"), &answer("probe:4.99", "n1")), None);
        assert_eq!(
            probes.answered(Duration::from_secs(2), &name("n2"), &answer(&id, "n1")),
            None,
            "too late"
        );
    }
}

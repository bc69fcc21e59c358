//! Orders that are out: each is repeated until its agent says that it is done or has failed.
//!
//! ```text
//!   Effect::Order ──► waiting ──send──► sent ──progress──► running ──done or failed──► forgotten
//!                        ▲                │ new session, or no word for a while
//!                        └────────────────┘
//! ```
//!
//! An agent answers a repeated id with the same progress, so repeating is harmless. Progress counts only when it
//! comes from the node that the order went to.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use somersault_coordinator_core::BootTime;
use somersault_coordinator_core::io;
use somersault_coordinator_core::migration::Unreadable;
use somersault_coordinator_core::names;
use somersault_proto::model::{self, Address, NodeName, OrderKind, ProgressState, Pull};
use somersault_proto::token::{Claims, TOKEN_LIFETIME, TokenSigner};

use crate::convert;

/// An agent reports at least each second while it works, so a silence of this length lost something.
const REPEAT_AFTER: Duration = Duration::from_secs(10);
/// Orders at the same time: far beyond what the policy's concurrency limits allow.
const ORDERS_MAX: usize = 10_000;

/// The orders that are out.
pub struct Orders {
    open: BTreeMap<(NodeName, String), Open>,
    signer: TokenSigner,
}

struct Open {
    order: io::Order,
    epoch: u64,
    heard: Option<BootTime>,
}

/// Why an order cannot be given now.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// So many are open that something is wrong.
    #[error("{ORDERS_MAX} orders are open already")]
    TooMany,
    /// It says something that the wire does not allow.
    #[error("the order cannot be expressed: {0}")]
    Invalid(#[from] model::Malformed),
    /// No token could be made.
    #[error("no token for the transfer")]
    Token(#[source] somersault_proto::token::TokenError),
}

impl Orders {
    /// No orders; tokens by `signer`.
    pub fn new(signer: TokenSigner) -> Self {
        Self { open: BTreeMap::new(), signer }
    }

    /// The key by which sources check our tokens.
    pub fn token_key(&self) -> [u8; 32] {
        self.signer.public_key()
    }

    /// Takes a new order. One about the same transfer replaces those before it: a cancelled pull must not be
    /// repeated behind its cancellation.
    pub fn give(
        &mut self,
        node: NodeName,
        id: names::OrderId,
        order: io::Order,
        epoch: u64,
    ) -> Result<(), OrderError> {
        if let Some(transfer) = transfer_of(&order) {
            self.open.retain(|(at, _), open| *at != node || transfer_of(&open.order) != Some(transfer));
        }
        if self.open.len() >= ORDERS_MAX {
            return Err(OrderError::TooMany);
        }
        self.open.insert((node, id.0), Open { order, epoch, heard: None });
        Ok(())
    }

    /// What is to be sent to this node now, because it is new or nothing was heard of it for a while. Pulls from
    /// a source whose address is not known yet stay where they are.
    pub fn due(
        &mut self,
        now: BootTime,
        node: &NodeName,
        address_of: impl Fn(&NodeName) -> Option<Address>,
    ) -> Vec<Result<model::Order, OrderError>> {
        let mut due = Vec::new();
        for ((at, id), open) in &mut self.open {
            if at != node || open.heard.is_some_and(|heard| now < heard + REPEAT_AFTER) {
                continue;
            }
            match wire_kind(&self.signer, node, &open.order, &address_of) {
                Ok(Some(kind)) => {
                    open.heard = Some(now);
                    due.push(Ok(model::Order { id: id.clone(), epoch: open.epoch, kind }));
                }
                Ok(None) => {}
                Err(error) => {
                    open.heard = Some(now);
                    due.push(Err(error));
                }
            }
        }
        due
    }

    /// A new session of the node: everything is sent again, but for removals. Much may have changed since one was given, and
    /// the core gives it anew where it still is to be.
    pub fn session_opened(&mut self, node: &NodeName) {
        self.open.retain(|(at, _), open| at != node || !matches!(open.order, io::Order::RemoveVolume { .. }));
        for ((at, _), open) in &mut self.open {
            if at == node {
                open.heard = None;
            }
        }
    }

    /// Takes an agent's word; `None` where we gave it no such order.
    pub fn progress(
        &mut self,
        now: BootTime,
        node: &NodeName,
        progress: &model::Progress,
    ) -> Option<io::Input> {
        let key = (node.clone(), progress.order.clone());
        let open = self.open.get_mut(&key)?;
        open.heard = Some(now);
        if !matches!(progress.state, ProgressState::Running { .. }) {
            self.open.remove(&key);
        }
        Some(io::Input::Progress {
            node: convert::node(node),
            order: names::OrderId(progress.order.clone()),
            state: convert::order_state(&progress.state),
        })
    }

    /// A new epoch: the core gives its orders anew.
    pub fn forget_all(&mut self) {
        self.open.clear();
    }
}

fn transfer_of(order: &io::Order) -> Option<&str> {
    match order {
        io::Order::Pull { transfer, .. } | io::Order::CancelPull { transfer, .. } => Some(transfer),
        io::Order::StopLaunchers { .. } | io::Order::RemoveVolume { .. } => None,
    }
}

fn wire_kind(
    signer: &TokenSigner,
    node: &NodeName,
    order: &io::Order,
    address_of: &impl Fn(&NodeName) -> Option<Address>,
) -> Result<Option<OrderKind>, OrderError> {
    Ok(match order {
        io::Order::Pull { transfer, source_node, source_path, target_path, final_, unreadable } => {
            let source_node: NodeName = source_node.as_str().parse()?;
            let Some(source_address) = address_of(&source_node) else { return Ok(None) };
            let claims = Claims {
                // Not the order: a repeated order of the same transfer resumes it.
                job: transfer.clone(),
                source_node: source_node.clone(),
                target_node: node.clone(),
                source_path: source_path.parse()?,
                exp: seconds_since_1970() + TOKEN_LIFETIME.as_secs(),
            };
            Some(OrderKind::Pull(Pull {
                transfer: transfer.clone(),
                source_node,
                source_address,
                source_path: claims.source_path.clone(),
                target_path: target_path.parse()?,
                token: signer.sign(&claims).map_err(OrderError::Token)?,
                final_copy: *final_,
                rate_limit_bytes_per_s: None,
                accept_unreadable: *unreadable == Unreadable::Zeroes,
            }))
        }
        io::Order::CancelPull { transfer, drop_partial, target_path } => Some(OrderKind::CancelPull {
            transfer: transfer.clone(),
            drop_partial: *drop_partial,
            target_path: target_path.as_deref().map(str::parse).transpose()?,
        }),
        io::Order::RemoveVolume { path } => Some(OrderKind::RemoveVolume { path: path.parse()? }),
        io::Order::StopLaunchers { pods } => {
            Some(OrderKind::StopLaunchers { pod_uids: pods.iter().map(|uid| uid.0.clone()).collect() })
        }
    })
}

/// The wall clock, for the end of a token alone.
fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use somersault_proto::token::TokenVerifier;

    use super::*;

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn address(name: &NodeName) -> Option<Address> {
        (name.as_str() == "n2").then(|| "10.0.0.2:7444".parse().unwrap())
    }

    fn pull(source: &str) -> io::Order {
        io::Order::Pull {
            transfer: "pv-1".into(),
            source_node: source.into(),
            source_path: "/srv/a".into(),
            target_path: "/srv/b".into(),
            final_: true,
            unreadable: Unreadable::Fail,
        }
    }

    fn orders() -> Orders {
        Orders::new(TokenSigner::generate().unwrap())
    }

    fn given(orders: &mut Orders, id: &str, order: io::Order) {
        orders.give(node("n3"), names::OrderId(id.into()), order, 7).unwrap();
    }

    fn due(orders: &mut Orders, at_s: u64) -> Vec<model::Order> {
        let due = orders.due(Duration::from_secs(at_s), &node("n3"), address);
        due.into_iter().collect::<Result<_, _>>().unwrap()
    }

    fn progress(id: &str, state: ProgressState) -> model::Progress {
        model::Progress { order: id.into(), state }
    }

    const RUNNING: ProgressState =
        ProgressState::Running { done_bytes: 1, total_bytes: 2, rate_bytes_per_s: 1 };

    fn failed() -> ProgressState {
        ProgressState::Failed { reason: model::FailureReason::SourceMissing, message: String::new() }
    }

    #[test]
    fn an_order_carries_epoch_address_and_a_token_for_both_ends() {
        let mut orders = orders();
        given(&mut orders, "o1", pull("n2"));
        let sent = due(&mut orders, 0);
        let [model::Order { epoch: 7, kind: OrderKind::Pull(pull), .. }] = sent.as_slice() else {
            panic!("{sent:?}")
        };
        assert_eq!(pull.source_address.as_str(), "10.0.0.2:7444");
        let verifier = TokenVerifier::new(&orders.token_key()).unwrap();
        let claims = verifier.verify(&pull.token, &node("n2"), &node("n3")).unwrap();
        assert_eq!((claims.job.as_str(), claims.source_path.as_str()), ("pv-1", "/srv/a"));
    }

    #[test]
    fn an_order_is_repeated_until_it_ends() {
        let mut orders = orders();
        given(&mut orders, "o1", pull("n2"));
        assert_eq!(due(&mut orders, 0).len(), 1);
        assert_eq!(due(&mut orders, 9).len(), 0, "it was just sent");
        assert_eq!(due(&mut orders, 10).len(), 1, "no word for a while");
        assert!(orders.progress(Duration::from_secs(15), &node("n3"), &progress("o1", RUNNING)).is_some());
        assert_eq!(due(&mut orders, 24).len(), 0, "it runs");
        orders.session_opened(&node("n3"));
        assert_eq!(due(&mut orders, 24).len(), 1, "the agent may have been restarted");
        assert!(orders.progress(Duration::from_secs(25), &node("n3"), &progress("o1", failed())).is_some());
        assert_eq!(due(&mut orders, 1000).len(), 0);
    }

    #[test]
    fn a_removal_is_not_repeated_to_an_agent_that_came_back() {
        let mut orders = orders();
        given(&mut orders, "o1", io::Order::RemoveVolume { path: "/srv/pvc-1".into() });
        orders.session_opened(&node("n3"));
        assert_eq!(due(&mut orders, 0).len(), 0, "nor sent for the first time, if it has waited");
        given(&mut orders, "o2", io::Order::RemoveVolume { path: "/srv/pvc-1".into() });
        assert_eq!(due(&mut orders, 1).len(), 1);
        orders.session_opened(&node("n3"));
        assert_eq!(due(&mut orders, 60).len(), 0);
    }

    #[test]
    fn a_pull_waits_for_the_address_of_its_source() {
        let mut orders = orders();
        given(&mut orders, "o1", pull("n9"));
        assert_eq!(due(&mut orders, 0).len(), 0);
        let late = orders.due(Duration::ZERO, &node("n3"), |_| Some("10.0.0.9:1".parse().unwrap()));
        assert_eq!(late.len(), 1);
    }

    #[test]
    fn progress_of_another_node_does_not_count() {
        let mut orders = orders();
        given(&mut orders, "o1", pull("n2"));
        assert!(orders.progress(Duration::ZERO, &node("n2"), &progress("o1", failed())).is_none());
        assert!(orders.progress(Duration::ZERO, &node("n3"), &progress("o2", failed())).is_none());
        assert_eq!(due(&mut orders, 0).len(), 1, "it is still open");
    }

    #[test]
    fn a_cancelled_pull_is_not_repeated() {
        let mut orders = orders();
        given(&mut orders, "o1", pull("n2"));
        given(
            &mut orders,
            "o2",
            io::Order::CancelPull { transfer: "pv-1".into(), drop_partial: true, target_path: None },
        );
        let sent = due(&mut orders, 0);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].id, "o2");
    }

    #[test]
    fn an_order_that_the_wire_does_not_allow_is_an_error_and_not_a_loop() {
        let mut orders = orders();
        let mut bad = pull("n2");
        let io::Order::Pull { target_path, .. } = &mut bad else { unreachable!() };
        *target_path = "/srv/../etc".into();
        given(&mut orders, "o1", bad);
        assert!(matches!(
            orders.due(Duration::ZERO, &node("n3"), address).as_slice(),
            [Err(OrderError::Invalid(_))]
        ));
        assert!(orders.due(Duration::ZERO, &node("n3"), address).is_empty());
    }
}

//! Orders to an agent.

use std::time::Duration;

use super::fleet::wire_millis;
use super::{AbsolutePath, Address, ModelError, NodeName, label, limits, name, required, text};
use crate::v1;

/// An order to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Unique in the life of the cluster; a repeated id is answered by the same progress.
    pub id: String,
    /// The leader's epoch; orders of an older one are refused.
    pub epoch: u64,
    /// What to do.
    pub kind: OrderKind,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// Copy a volume from its source to here.
    Pull(Pull),
    /// Stop a copy.
    CancelPull {
        /// Which.
        transfer: String,
        /// Remove what has arrived.
        drop_partial: bool,
        /// Where the copy goes; `None` from older coordinators.
        target_path: Option<AbsolutePath>,
    },
    /// Ask a node from here whether it is reachable.
    Probe {
        /// Which.
        node: NodeName,
        /// Where its agent serves.
        address: Address,
        /// When to give up.
        timeout: Duration,
    },
    /// Stop these launchers, which run elsewhere now.
    StopLaunchers {
        /// Pod uids; at least one.
        pod_uids: Vec<String>,
    },
    /// Remove a volume for good: nobody uses it any more, and no object of the cluster names it.
    RemoveVolume {
        /// The volume's folder, where a storage root has its volumes.
        path: AbsolutePath,
    },
}

/// Copy a volume from its source to here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Names the partial copy: a second order of the same transfer resumes the first. Fit for a file name.
    pub transfer: String,
    /// Where the volume is.
    pub source_node: NodeName,
    /// Where that node's agent serves.
    pub source_address: Address,
    /// The volume there.
    pub source_path: AbsolutePath,
    /// The volume to be here.
    pub target_path: AbsolutePath,
    /// Shown to the source on each call.
    pub token: String,
    /// Nobody writes to the source any more: publish the copy under its final name when it is complete.
    pub final_copy: bool,
    /// `None`: no limit.
    pub rate_limit_bytes_per_s: Option<u64>,
    /// Zeroes may stand for what the source cannot read: somebody has said so.
    pub accept_unreadable: bool,
}

/// A probe that takes longer proves nothing that a new one would not.
const PROBE_TIMEOUT_MS_MAX: u32 = 60_000;

impl TryFrom<v1::Order> for Order {
    type Error = ModelError;

    fn try_from(wire: v1::Order) -> Result<Self, ModelError> {
        use v1::order::Kind;
        Ok(Self {
            id: order_id("id", wire.id)?,
            epoch: wire.epoch,
            kind: match required("kind", wire.kind)? {
                Kind::Pull(pull) => {
                    OrderKind::Pull(pull.try_into().map_err(|e: ModelError| e.within("pull"))?)
                }
                Kind::CancelPull(cancel) => OrderKind::CancelPull {
                    transfer: file_name("cancel_pull.transfer", cancel.transfer)?,
                    drop_partial: cancel.drop_partial,
                    target_path: if cancel.target_path.is_empty() {
                        None
                    } else {
                        Some(name("cancel_pull.target_path", cancel.target_path)?)
                    },
                },
                Kind::Probe(probe) => probe_order(probe).map_err(|e| e.within("probe"))?,
                Kind::StopLaunchers(stop) => stop_order(stop).map_err(|e| e.within("stop_launchers"))?,
                Kind::RemoveVolume(remove) => {
                    OrderKind::RemoveVolume { path: name("remove_volume.path", remove.path)? }
                }
            },
        })
    }
}

fn probe_order(wire: v1::Probe) -> Result<OrderKind, ModelError> {
    if !(1..=PROBE_TIMEOUT_MS_MAX).contains(&wire.timeout_ms) {
        let why = format!("{} ms is not within 1..={PROBE_TIMEOUT_MS_MAX} ms", wire.timeout_ms);
        return Err(ModelError::invalid("timeout_ms", why));
    }
    Ok(OrderKind::Probe {
        node: name("node", wire.node)?,
        address: name("address", wire.address)?,
        timeout: Duration::from_millis(wire.timeout_ms.into()),
    })
}

fn stop_order(wire: v1::StopLaunchers) -> Result<OrderKind, ModelError> {
    if wire.pod_uids.is_empty() {
        return Err(ModelError::Missing("pod_uids".into()));
    }
    super::at_most("pod_uids", wire.pod_uids.len(), limits::PODS_MAX)?;
    let pod_uids = wire
        .pod_uids
        .into_iter()
        .enumerate()
        .map(|(index, uid)| file_name(&format!("pod_uids[{index}]"), uid))
        .collect::<Result<_, _>>()?;
    Ok(OrderKind::StopLaunchers { pod_uids })
}

impl From<Order> for v1::Order {
    fn from(order: Order) -> Self {
        use v1::order::Kind;
        let kind = match order.kind {
            OrderKind::Pull(pull) => Kind::Pull(pull.into()),
            OrderKind::CancelPull { transfer, drop_partial, target_path } => {
                let target_path = target_path.map(Into::into).unwrap_or_default();
                Kind::CancelPull(v1::CancelPull { transfer, drop_partial, target_path })
            }
            OrderKind::Probe { node, address, timeout } => Kind::Probe(v1::Probe {
                node: node.into(),
                address: address.into(),
                timeout_ms: wire_millis(timeout),
            }),
            OrderKind::StopLaunchers { pod_uids } => Kind::StopLaunchers(v1::StopLaunchers { pod_uids }),
            OrderKind::RemoveVolume { path } => Kind::RemoveVolume(v1::RemoveVolume { path: path.into() }),
        };
        Self { id: order.id, epoch: order.epoch, kind: Some(kind) }
    }
}

impl TryFrom<v1::Pull> for Pull {
    type Error = ModelError;

    fn try_from(wire: v1::Pull) -> Result<Self, ModelError> {
        if wire.token.is_empty() {
            return Err(ModelError::Missing("token".into()));
        }
        Ok(Self {
            transfer: file_name("transfer", wire.transfer)?,
            source_node: name("source_node", wire.source_node)?,
            source_address: name("source_address", wire.source_address)?,
            source_path: name("source_path", wire.source_path)?,
            target_path: name("target_path", wire.target_path)?,
            token: text("token", wire.token, limits::TOKEN_BYTES_MAX)?,
            final_copy: wire.r#final,
            rate_limit_bytes_per_s: (wire.rate_limit_bytes_per_s > 0).then_some(wire.rate_limit_bytes_per_s),
            accept_unreadable: wire.accept_unreadable,
        })
    }
}

impl From<Pull> for v1::Pull {
    fn from(pull: Pull) -> Self {
        Self {
            transfer: pull.transfer,
            source_node: pull.source_node.into(),
            source_address: pull.source_address.into(),
            source_path: pull.source_path.into(),
            target_path: pull.target_path.into(),
            token: pull.token,
            r#final: pull.final_copy,
            rate_limit_bytes_per_s: pull.rate_limit_bytes_per_s.unwrap_or(0),
            accept_unreadable: pull.accept_unreadable,
        }
    }
}

/// Any printable ASCII without spaces: ids are built of namespaces, names and counters.
pub(super) fn order_id(field: &str, value: String) -> Result<String, ModelError> {
    // A namespace of 63 bytes, two names of 253, and counters.
    const BYTES_MAX: usize = 1024;
    if value.is_empty() {
        return Err(ModelError::Missing(field.to_owned()));
    }
    if value.len() > BYTES_MAX || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        let start = super::names::shortened(&value);
        let why = format!("{start:?}: at most {BYTES_MAX} printable ASCII characters without spaces");
        return Err(ModelError::invalid(field, why));
    }
    Ok(value)
}

/// An id that is safe as a file name: agents name partial copies and journals after it.
fn file_name(field: &str, value: String) -> Result<String, ModelError> {
    // File systems allow 255 bytes; agents append a suffix.
    const BYTES_MAX: usize = 240;
    let value = label(field, value)?;
    let well_formed = value.len() <= BYTES_MAX
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':'))
        && !value.starts_with('.');
    if well_formed {
        Ok(value)
    } else {
        let why = format!(
            "{:?}: at most {BYTES_MAX} letters, digits and `._-:`, not starting with a dot",
            super::names::shortened(&value)
        );
        Err(ModelError::invalid(field, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire_pull() -> v1::Pull {
        v1::Pull {
            transfer: "default_vm-data_0".into(),
            source_node: "n2".into(),
            source_address: "10.0.0.2:7444".into(),
            source_path: "/srv/local/pvc-1".into(),
            target_path: "/srv/local/pvc-2".into(),
            token: "a.b.c".into(),
            r#final: true,
            rate_limit_bytes_per_s: 0,
            accept_unreadable: true,
        }
    }

    fn wire_order(kind: v1::order::Kind) -> v1::Order {
        v1::Order { id: "default/move:data:final:3.1.0".into(), epoch: 3, kind: Some(kind) }
    }

    fn refused(change: impl FnOnce(&mut v1::Pull)) -> String {
        let mut pull = wire_pull();
        change(&mut pull);
        Order::try_from(wire_order(v1::order::Kind::Pull(pull))).unwrap_err().field().to_owned()
    }

    #[test]
    fn every_order_survives_both_ways() {
        use v1::order::Kind;
        for kind in [
            Kind::Pull(wire_pull()),
            Kind::CancelPull(v1::CancelPull {
                transfer: "t".into(),
                drop_partial: true,
                target_path: "/srv/local/pvc-1".into(),
            }),
            Kind::Probe(v1::Probe { node: "n1".into(), address: "10.0.0.1:1".into(), timeout_ms: 300 }),
            Kind::StopLaunchers(v1::StopLaunchers { pod_uids: vec!["uid-1".into()] }),
            Kind::RemoveVolume(v1::RemoveVolume { path: "/srv/pvc-1".into() }),
        ] {
            let wire = wire_order(kind);
            assert_eq!(v1::Order::from(Order::try_from(wire.clone()).unwrap()), wire);
        }
    }

    #[test]
    fn a_hostile_pull_is_refused_by_field() {
        assert_eq!(refused(|p| p.target_path = "/srv/../etc".into()), "pull.target_path");
        assert_eq!(refused(|p| p.source_path = "relative".into()), "pull.source_path");
        assert_eq!(refused(|p| p.transfer = "../../x".into()), "pull.transfer");
        assert_eq!(refused(|p| p.transfer = ".hidden".into()), "pull.transfer");
        assert_eq!(refused(|p| p.source_address = "nowhere".into()), "pull.source_address");
        assert_eq!(refused(|p| p.token.clear()), "pull.token");
        assert_eq!(refused(|p| p.token = "x".repeat(limits::TOKEN_BYTES_MAX + 1)), "pull.token");
    }

    #[test]
    fn probes_and_stops_are_bounded() {
        use v1::order::Kind;
        let probe = v1::Probe { node: "n1".into(), address: "10.0.0.1:1".into(), timeout_ms: 0 };
        assert_eq!(Order::try_from(wire_order(Kind::Probe(probe))).unwrap_err().field(), "probe.timeout_ms");
        for pod_uids in [vec![], vec!["u".to_owned(); limits::PODS_MAX + 1]] {
            let wire = wire_order(Kind::StopLaunchers(v1::StopLaunchers { pod_uids }));
            assert_eq!(Order::try_from(wire).unwrap_err().field(), "stop_launchers.pod_uids");
        }
        for path in ["", "pvc-1", "/srv/../etc"] {
            let wire = wire_order(Kind::RemoveVolume(v1::RemoveVolume { path: path.into() }));
            assert_eq!(Order::try_from(wire).unwrap_err().field(), "remove_volume.path");
        }
        let empty = v1::Order { id: "order-1".into(), epoch: 1, kind: None };
        assert_eq!(Order::try_from(empty.clone()).unwrap_err().field(), "kind");
        for id in ["", "two words", "line\nbreak", &"x".repeat(1025)] {
            let wire = v1::Order { id: id.into(), ..empty.clone() };
            assert_eq!(Order::try_from(wire).unwrap_err().field(), "id");
        }
    }
}

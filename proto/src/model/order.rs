//! Orders to an agent, and how they fare.

use std::fmt;
use std::time::Duration;

use super::fleet::wire_millis;
use super::{AbsolutePath, Address, ModelError, NodeName, hash, label, limits, name, required, text};
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

/// How an order fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which order.
    pub order: String,
    /// How.
    pub state: ProgressState,
}

/// How an order fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// Under way.
    Running {
        /// Bytes done.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
        /// Bytes per second.
        rate_bytes_per_s: u64,
    },
    /// Done and verified.
    Done {
        /// BLAKE3 root over sizes, leaves and metadata, after the read back.
        root_hash: [u8; 32],
        /// Bytes in all.
        total_bytes: u64,
        /// Bytes that crossed the wire.
        sent_bytes: u64,
        /// How long it took.
        elapsed: Duration,
        /// What the source could not read, by file and range, in words: the copy has zeroes there.
        unreadable: Option<String>,
    },
    /// Failed.
    Failed {
        /// Why.
        reason: FailureReason,
        /// For people.
        message: String,
    },
}

/// Why an order failed; the name serves as condition reason and metric label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureReason {
    /// Somebody cancelled it.
    Cancelled,
    /// The order is of an older leader.
    StaleEpoch,
    /// The order cannot be understood or is not allowed here.
    OrderRefused,
    /// A path is not where a storage root of this node has its volumes.
    PathNotAllowed,
    /// The source's agent does not answer.
    SourceUnreachable,
    /// The source refused: token, path or caller.
    SourceRefused,
    /// The source volume is not there.
    SourceMissing,
    /// The source could not be read.
    SourceReadFailed,
    /// The source changed during a final copy, though nobody should write.
    SourceChanged,
    /// The source holds what cannot be copied without loss.
    SourceUnsupported,
    /// The source sent what cannot be or was not asked for: it lies, or has a bug.
    SourceInvalid,
    /// Something else is at the target path.
    TargetExists,
    /// No room on the target.
    TargetFull,
    /// The target could not be written.
    TargetWriteFailed,
    /// What was read back differs from what was sent.
    VerificationFailed,
    /// Somebody uses a volume that was to be removed.
    VolumeInUse,
    /// This agent copies as much as it may at once, or this transfer already.
    Busy,
    /// Any other; a newer agent may know more reasons than we do.
    Other(String),
}

impl FailureReason {
    const KNOWN: [Self; 17] = [
        Self::Cancelled,
        Self::StaleEpoch,
        Self::OrderRefused,
        Self::PathNotAllowed,
        Self::SourceUnreachable,
        Self::SourceRefused,
        Self::SourceMissing,
        Self::SourceReadFailed,
        Self::SourceChanged,
        Self::SourceUnsupported,
        Self::SourceInvalid,
        Self::TargetExists,
        Self::TargetFull,
        Self::TargetWriteFailed,
        Self::VerificationFailed,
        Self::VolumeInUse,
        Self::Busy,
    ];
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(name) => f.write_str(name),
            known => fmt::Debug::fmt(known, f),
        }
    }
}

/// Answer to a probe order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// Which order.
    pub order: String,
    /// The node in question.
    pub node: NodeName,
    /// What came back.
    pub reachability: Reachability,
}

/// What a probe found, best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reachability {
    /// No answer.
    Silent,
    /// Something answered, but not the agent: the kernel lives.
    Kernel,
    /// The agent answered.
    Agent,
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

impl TryFrom<v1::Progress> for Progress {
    type Error = ModelError;

    fn try_from(wire: v1::Progress) -> Result<Self, ModelError> {
        use v1::progress::State;
        let state = match required("state", wire.state)? {
            State::Running(running) => ProgressState::Running {
                done_bytes: running.done_bytes.min(running.total_bytes),
                total_bytes: running.total_bytes,
                rate_bytes_per_s: running.rate_bytes_per_s,
            },
            State::Done(done) => ProgressState::Done {
                root_hash: hash("done.root_hash", &done.root_hash)?,
                total_bytes: done.total_bytes,
                sent_bytes: done.sent_bytes,
                elapsed: Duration::from_millis(done.elapsed_ms),
                unreadable: (!done.unreadable.is_empty())
                    .then(|| text("done.unreadable", done.unreadable, limits::MESSAGE_BYTES_MAX))
                    .transpose()?,
            },
            State::Failed(failed) => ProgressState::Failed {
                reason: failure_reason("failed.reason", failed.reason)?,
                message: text("failed.message", failed.message, limits::MESSAGE_BYTES_MAX)?,
            },
        };
        Ok(Self { order: order_id("order", wire.order)?, state })
    }
}

impl From<Progress> for v1::Progress {
    fn from(progress: Progress) -> Self {
        use v1::progress::{Done, Failed, Running, State};
        let state = match progress.state {
            ProgressState::Running { done_bytes, total_bytes, rate_bytes_per_s } => {
                State::Running(Running { done_bytes, total_bytes, rate_bytes_per_s })
            }
            ProgressState::Done { root_hash, total_bytes, sent_bytes, elapsed, unreadable } => {
                State::Done(Done {
                    root_hash: root_hash.to_vec().into(),
                    total_bytes,
                    sent_bytes,
                    elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                    unreadable: unreadable.as_deref().map(sendable).unwrap_or_default(),
                })
            }
            ProgressState::Failed { reason, message } => {
                State::Failed(Failed { reason: reason.to_string(), message: sendable(&message) })
            }
        };
        Self { order: progress.order, state: Some(state) }
    }
}

/// A message for people that the receiver's checks accept: a failure must not be lost, nor a session closed, because the words
/// of the operating system, of a peer or of a volume about it are long, or hold a line break.
fn sendable(message: &str) -> String {
    let mut clean: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.len() > limits::MESSAGE_BYTES_MAX {
        let end = (0..=limits::MESSAGE_BYTES_MAX).rev().find(|end| clean.is_char_boundary(*end)).unwrap_or(0);
        clean.truncate(end);
    }
    clean
}

impl TryFrom<v1::ProbeAnswer> for ProbeAnswer {
    type Error = ModelError;

    fn try_from(wire: v1::ProbeAnswer) -> Result<Self, ModelError> {
        let reachability = match v1::Reachability::try_from(wire.reachability) {
            Ok(v1::Reachability::Unspecified) => return Err(ModelError::Missing("reachability".into())),
            Ok(v1::Reachability::Agent) => Reachability::Agent,
            Ok(v1::Reachability::Kernel) => Reachability::Kernel,
            Ok(v1::Reachability::Silent) => Reachability::Silent,
            Err(_) => {
                let why = format!("{} is no reachability", wire.reachability);
                return Err(ModelError::invalid("reachability", why));
            }
        };
        Ok(Self { order: order_id("order", wire.order)?, node: name("node", wire.node)?, reachability })
    }
}

impl From<ProbeAnswer> for v1::ProbeAnswer {
    fn from(answer: ProbeAnswer) -> Self {
        let reachability = match answer.reachability {
            Reachability::Silent => v1::Reachability::Silent,
            Reachability::Kernel => v1::Reachability::Kernel,
            Reachability::Agent => v1::Reachability::Agent,
        };
        Self { order: answer.order, node: answer.node.into(), reachability: reachability.into() }
    }
}

/// Any printable ASCII without spaces: ids are built of namespaces, names and counters.
fn order_id(field: &str, value: String) -> Result<String, ModelError> {
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

fn failure_reason(field: &str, value: String) -> Result<FailureReason, ModelError> {
    let value = camel_case(field, value)?;
    let known = FailureReason::KNOWN.into_iter().find(|reason| reason.to_string() == value);
    Ok(known.unwrap_or(FailureReason::Other(value)))
}

/// A reason: becomes a condition reason and a metric label, which have this shape in Kubernetes.
pub(super) fn camel_case(field: &str, value: String) -> Result<String, ModelError> {
    const BYTES_MAX: usize = 64;
    let well_formed = value.len() <= BYTES_MAX
        && value.starts_with(|first: char| first.is_ascii_uppercase())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if value.is_empty() {
        Err(ModelError::Missing(field.to_owned()))
    } else if well_formed {
        Ok(value)
    } else {
        let why =
            format!("{:?} is not CamelCase of at most {BYTES_MAX} bytes", super::names::shortened(&value));
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

    #[test]
    fn progress_survives_both_ways_and_keeps_unknown_reasons() {
        use v1::progress::{Done, Failed, State};
        for state in [
            State::Done(Done {
                root_hash: vec![7; 32].into(),
                total_bytes: 9,
                sent_bytes: 4,
                elapsed_ms: 12,
                unreadable: "4096 bytes cannot be read: disk.img bytes 0..4096: EIO".into(),
            }),
            State::Failed(Failed { reason: "TargetFull".into(), message: "no room".into() }),
            State::Failed(Failed { reason: "FromTheFuture".into(), message: String::new() }),
        ] {
            let wire = v1::Progress { order: "order-1".into(), state: Some(state) };
            assert_eq!(v1::Progress::from(Progress::try_from(wire.clone()).unwrap()), wire);
        }
    }

    #[test]
    fn a_failure_with_a_long_message_still_arrives() {
        let message = "é\n".repeat(limits::MESSAGE_BYTES_MAX);
        let failed = ProgressState::Failed { reason: FailureReason::SourceReadFailed, message };
        let wire = v1::Progress::from(Progress { order: "order-1".into(), state: failed });
        assert!(Progress::try_from(wire).is_ok());
    }

    #[test]
    fn hostile_progress_is_refused_by_field() {
        use v1::progress::{Done, Failed, State};
        let field = |state| {
            let wire = v1::Progress { order: "order-1".into(), state };
            Progress::try_from(wire).unwrap_err().field().to_owned()
        };
        assert_eq!(field(None), "state");
        assert_eq!(field(Some(State::Done(Done::default()))), "done.root_hash");
        let failed =
            |reason: &str| Some(State::Failed(Failed { reason: reason.into(), message: String::new() }));
        assert_eq!(field(failed("")), "failed.reason");
        assert_eq!(field(failed("no spaces allowed")), "failed.reason");
        assert_eq!(field(failed(&"A".repeat(65))), "failed.reason");
    }

    #[test]
    fn a_probe_answer_must_say_something() {
        let wire = v1::ProbeAnswer { order: "o".into(), node: "n1".into(), reachability: 0 };
        assert_eq!(ProbeAnswer::try_from(wire.clone()).unwrap_err().field(), "reachability");
        let wire = v1::ProbeAnswer { reachability: v1::Reachability::Kernel.into(), ..wire };
        let answer = ProbeAnswer::try_from(wire.clone()).unwrap();
        assert_eq!(answer.reachability, Reachability::Kernel);
        assert_eq!(v1::ProbeAnswer::from(answer), wire);
    }
}

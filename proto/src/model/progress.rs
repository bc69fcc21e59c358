//! What agents tell of their orders.

use std::fmt;
use std::time::Duration;

use super::order::order_id;
use super::{ModelError, NodeName, hash, limits, name, required, text};
use crate::v1;

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

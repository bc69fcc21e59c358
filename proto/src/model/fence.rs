//! What a coordinator asks of a fence runner, and what that answers.

use std::time::Duration;

use super::fleet::wire_millis;
use super::{ModelError, NodeName, each, label, limits, name, required, text};
use crate::v1;

/// Switch a node off, and read that back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceRun {
    /// Which node.
    pub node: NodeName,
    /// The leader's epoch.
    pub epoch: u64,
    /// Names this run: a repeated name is the same run.
    pub run: String,
    /// How long it may take.
    pub deadline: Duration,
    /// The entry that is meant.
    pub revision: String,
}

/// How a run goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceEvent {
    /// It goes on.
    GoesOn,
    /// It ended.
    Ended(FenceEnded),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceEnded {
    /// Of which node.
    pub node: NodeName,
    /// Under which epoch.
    pub epoch: u64,
    /// Which run.
    pub run: String,
    /// `Ok`: off, read back. `Err`: anything else, for people.
    pub result: Result<(), String>,
}

/// Ask a node's fence agent for its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceStatus {
    /// Which node.
    pub node: NodeName,
    /// The caller's epoch; 0 where it does not lead.
    pub epoch: u64,
    /// How long it may take.
    pub deadline: Duration,
    /// The entry that is meant.
    pub revision: String,
}

/// What a fence agent says of its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FencePower {
    /// It is on.
    On,
    /// It is off.
    Off,
    /// The agent did not say, with the reason for people.
    Unknown(String),
}

/// Which nodes have a fence agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FenceList {
    /// The nodes.
    pub nodes: Vec<FencedNode>,
    /// Why a changed configuration is not in use.
    pub problem: Option<String>,
}

/// A node with a fence agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FencedNode {
    /// Which.
    pub node: NodeName,
    /// Differs when its entry names another agent or another machine.
    pub revision: String,
}

impl TryFrom<v1::RunRequest> for FenceRun {
    type Error = ModelError;

    fn try_from(wire: v1::RunRequest) -> Result<Self, ModelError> {
        Ok(Self {
            node: name("node", wire.node)?,
            epoch: epoch("epoch", wire.epoch)?,
            run: label("run", wire.run)?,
            deadline: deadline("deadline_ms", wire.deadline_ms)?,
            revision: label("revision", wire.revision)?,
        })
    }
}

impl From<FenceRun> for v1::RunRequest {
    fn from(run: FenceRun) -> Self {
        let deadline_ms = wire_millis(run.deadline);
        let FenceRun { node, epoch, run, revision, .. } = run;
        Self { node: node.into(), epoch, run, deadline_ms, revision }
    }
}

impl TryFrom<v1::RunEvent> for FenceEvent {
    type Error = ModelError;

    fn try_from(wire: v1::RunEvent) -> Result<Self, ModelError> {
        match required("event", wire.event)? {
            v1::run_event::Event::GoesOn(_) => Ok(Self::GoesOn),
            v1::run_event::Event::Ended(ended) => {
                FenceEnded::try_from(ended).map(Self::Ended).map_err(|error| error.within("ended"))
            }
        }
    }
}

impl TryFrom<v1::RunEnded> for FenceEnded {
    type Error = ModelError;

    fn try_from(wire: v1::RunEnded) -> Result<Self, ModelError> {
        let result = match required("result", wire.result)? {
            v1::run_ended::Result::ConfirmedOff(_) => Ok(()),
            v1::run_ended::Result::Failed(failed) => {
                Err(text("failed.why", failed.why, limits::MESSAGE_BYTES_MAX)?)
            }
        };
        Ok(Self {
            node: name("node", wire.node)?,
            epoch: epoch("epoch", wire.epoch)?,
            run: label("run", wire.run)?,
            result,
        })
    }
}

impl From<FenceEvent> for v1::RunEvent {
    fn from(event: FenceEvent) -> Self {
        let event = match event {
            FenceEvent::GoesOn => v1::run_event::Event::GoesOn(v1::RunGoesOn {}),
            FenceEvent::Ended(ended) => v1::run_event::Event::Ended(v1::RunEnded {
                node: ended.node.into(),
                epoch: ended.epoch,
                run: ended.run,
                result: Some(match ended.result {
                    Ok(()) => v1::run_ended::Result::ConfirmedOff(v1::ConfirmedOff {}),
                    Err(why) => v1::run_ended::Result::Failed(v1::RunFailed { why }),
                }),
            }),
        };
        Self { event: Some(event) }
    }
}

impl TryFrom<v1::StatusRequest> for FenceStatus {
    type Error = ModelError;

    fn try_from(wire: v1::StatusRequest) -> Result<Self, ModelError> {
        Ok(Self {
            node: name("node", wire.node)?,
            epoch: wire.epoch,
            deadline: deadline("deadline_ms", wire.deadline_ms)?,
            revision: label("revision", wire.revision)?,
        })
    }
}

impl From<FenceStatus> for v1::StatusRequest {
    fn from(status: FenceStatus) -> Self {
        let deadline_ms = wire_millis(status.deadline);
        Self { node: status.node.into(), epoch: status.epoch, deadline_ms, revision: status.revision }
    }
}

impl TryFrom<v1::StatusReply> for FencePower {
    type Error = ModelError;

    fn try_from(wire: v1::StatusReply) -> Result<Self, ModelError> {
        let why = text("why", wire.why, limits::MESSAGE_BYTES_MAX)?;
        match v1::status_reply::Power::try_from(wire.power) {
            Ok(v1::status_reply::Power::On) => Ok(Self::On),
            Ok(v1::status_reply::Power::Off) => Ok(Self::Off),
            Ok(v1::status_reply::Power::Unspecified) => Ok(Self::Unknown(why)),
            Err(_) => Err(ModelError::invalid("power", format!("{} is no state of a machine", wire.power))),
        }
    }
}

impl From<FencePower> for v1::StatusReply {
    fn from(power: FencePower) -> Self {
        let (power, why) = match power {
            FencePower::On => (v1::status_reply::Power::On, String::new()),
            FencePower::Off => (v1::status_reply::Power::Off, String::new()),
            FencePower::Unknown(why) => (v1::status_reply::Power::Unspecified, why),
        };
        Self { power: power.into(), why }
    }
}

impl TryFrom<v1::ListReply> for FenceList {
    type Error = ModelError;

    fn try_from(wire: v1::ListReply) -> Result<Self, ModelError> {
        let problem = text("problem", wire.problem, limits::MESSAGE_BYTES_MAX)?;
        Ok(Self {
            nodes: each("nodes", wire.nodes, limits::FENCED_NODES_MAX)?,
            problem: (!problem.is_empty()).then_some(problem),
        })
    }
}

impl From<FenceList> for v1::ListReply {
    fn from(list: FenceList) -> Self {
        let nodes = list.nodes.into_iter().map(Into::into).collect();
        Self { nodes, problem: list.problem.unwrap_or_default() }
    }
}

impl TryFrom<v1::FencedNode> for FencedNode {
    type Error = ModelError;

    fn try_from(wire: v1::FencedNode) -> Result<Self, ModelError> {
        Ok(Self { node: name("node", wire.node)?, revision: label("revision", wire.revision)? })
    }
}

impl From<FencedNode> for v1::FencedNode {
    fn from(node: FencedNode) -> Self {
        Self { node: node.node.into(), revision: node.revision }
    }
}

/// Leaders count from 1.
fn epoch(field: &str, epoch: u64) -> Result<u64, ModelError> {
    if epoch == 0 { Err(ModelError::Missing(field.to_owned())) } else { Ok(epoch) }
}

fn deadline(field: &str, millis: u32) -> Result<Duration, ModelError> {
    if millis == 0 {
        return Err(ModelError::Missing(field.to_owned()));
    }
    Ok(Duration::from_millis(millis.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> v1::RunEnded {
        let result = Some(v1::run_ended::Result::ConfirmedOff(v1::ConfirmedOff {}));
        v1::RunEnded { node: "n1".into(), epoch: 3, run: "r".into(), result }
    }

    #[test]
    fn an_empty_message_is_never_a_proof() {
        assert!(FenceEvent::try_from(v1::RunEvent::default()).is_err());
        assert!(FenceEnded::try_from(v1::RunEnded::default()).is_err());
        assert!(FenceEnded::try_from(v1::RunEnded { result: None, ..ended() }).is_err());
        assert_eq!(
            FencePower::try_from(v1::StatusReply::default()).unwrap(),
            FencePower::Unknown(String::new())
        );
        assert!(FencePower::try_from(v1::StatusReply { power: 7, why: String::new() }).is_err());
    }

    #[test]
    fn what_was_asked_and_what_ended_survive_the_wire() {
        let run = FenceRun {
            node: "n1".parse().unwrap(),
            epoch: 3,
            run: "r".into(),
            deadline: Duration::from_secs(30),
            revision: "a".into(),
        };
        assert_eq!(FenceRun::try_from(v1::RunRequest::from(run.clone())).unwrap(), run);
        for result in [Ok(()), Err("no route".to_owned())] {
            let ended = FenceEnded { node: "n1".parse().unwrap(), epoch: 3, run: "r".into(), result };
            let event = FenceEvent::Ended(ended);
            assert_eq!(FenceEvent::try_from(v1::RunEvent::from(event.clone())).unwrap(), event);
        }
        for power in [FencePower::On, FencePower::Off, FencePower::Unknown("busy".into())] {
            assert_eq!(FencePower::try_from(v1::StatusReply::from(power.clone())).unwrap(), power);
        }
        let node = FencedNode { node: "n1".parse().unwrap(), revision: "a".into() };
        let list = FenceList { nodes: vec![node], problem: Some("line 3".into()) };
        assert_eq!(FenceList::try_from(v1::ListReply::from(list.clone())).unwrap(), list);
    }

    #[test]
    fn a_run_says_for_whom_it_is_and_how_long_it_may_take() {
        let whole = v1::RunRequest {
            node: "n1".into(),
            epoch: 1,
            run: "r".into(),
            deadline_ms: 1,
            revision: "a".into(),
        };
        assert!(FenceRun::try_from(whole.clone()).is_ok());
        for (broken, field) in [
            (v1::RunRequest { node: String::new(), ..whole.clone() }, "node"),
            (v1::RunRequest { epoch: 0, ..whole.clone() }, "epoch"),
            (v1::RunRequest { run: String::new(), ..whole.clone() }, "run"),
            (v1::RunRequest { deadline_ms: 0, ..whole.clone() }, "deadline_ms"),
            (v1::RunRequest { revision: String::new(), ..whole.clone() }, "revision"),
            (v1::RunRequest { node: "n1\nn2".into(), ..whole.clone() }, "node"),
        ] {
            assert_eq!(FenceRun::try_from(broken).unwrap_err().field(), field);
        }
    }
}

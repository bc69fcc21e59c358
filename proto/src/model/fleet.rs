//! Beats, grants and the greetings of a session.

use std::num::NonZeroU64;
use std::time::Duration;

use super::{
    Address, BootId, ModelError, NodeName, Order, ProbeAnswer, Progress, Report, hash, label, name, required,
};
use crate::v1;

/// A heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Who says so; to be compared with the certificate.
    pub node: NodeName,
    /// In which boot.
    pub boot_id: BootId,
    /// Grows by one for each beat of a stream.
    pub sequence: u64,
    /// The agent stops on purpose: silence that follows is not suspicious.
    pub goodbye: bool,
}

/// The answer to a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The beat that this answers.
    pub sequence: u64,
    /// The leader's epoch.
    pub epoch: u64,
    /// How often to beat from now on.
    pub beat_interval: Duration,
    /// The lease, valid from the send time of the answered beat.
    pub lease: Duration,
    /// The watchdog's time-out.
    pub watchdog: Duration,
    /// Differs when the values above differ.
    pub policy_hash: u64,
}

/// A session's messages from the agent. The first is [`FromAgent::Hello`].
#[derive(Clone, Debug, PartialEq)]
pub enum FromAgent {
    /// Greets.
    Hello(Hello),
    /// Tells all about the node.
    Report(Report),
    /// Tells how an order fares.
    Progress(Progress),
    /// Answers a probe order.
    Probe(ProbeAnswer),
}

/// A session's messages to the agent. The first is [`FromCoordinator::Welcome`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromCoordinator {
    /// Greets back.
    Welcome(Welcome),
    /// Gives an order.
    Order(Order),
}

/// The agent's greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who says so; to be compared with the certificate.
    pub node: NodeName,
    /// In which boot.
    pub boot_id: BootId,
    /// Version of the agent.
    pub version: String,
    /// Where this agent serves `Peer` and `Transfer`.
    pub address: Address,
}

/// The coordinator's greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The leader's epoch.
    pub epoch: u64,
    /// Ed25519 public key that signs transfer tokens while this coordinator runs.
    pub token_key: [u8; 32],
    /// How often to report when nothing changes.
    pub report_period: Duration,
    /// How fast copies may be.
    pub rates: CopyRates,
}

/// Limits of copies, in bytes of content per second; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyRates {
    /// All of a node together, from it and to it.
    pub node: Option<NonZeroU64>,
    /// Each copy to a node.
    pub copy: Option<NonZeroU64>,
}

/// An agent's answer to a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingReply {
    /// Who answers; to be compared with the certificate.
    pub node: NodeName,
    /// In which boot.
    pub boot_id: BootId,
}

/// Beats faster than this would load the coordinator for nothing: the fast profile beats every 200 ms.
const BEAT_INTERVAL_MS_MIN: u32 = 20;
/// Beats slower than this could not be told from silence by any profile.
const BEAT_INTERVAL_MS_MAX: u32 = 60_000;
/// No lease or watchdog of a profile comes near this.
const LEASE_MS_MAX: u32 = 3_600_000;
/// A report each day would be no report.
const REPORT_PERIOD_MS_MAX: u32 = 86_400_000;

impl TryFrom<v1::Beat> for Beat {
    type Error = ModelError;

    fn try_from(wire: v1::Beat) -> Result<Self, ModelError> {
        Ok(Self {
            node: name("node", wire.node)?,
            boot_id: name("boot_id", wire.boot_id)?,
            sequence: wire.sequence,
            goodbye: wire.goodbye,
        })
    }
}

impl From<Beat> for v1::Beat {
    fn from(beat: Beat) -> Self {
        Self {
            node: beat.node.into(),
            boot_id: beat.boot_id.into(),
            sequence: beat.sequence,
            goodbye: beat.goodbye,
        }
    }
}

impl TryFrom<v1::Grant> for Grant {
    type Error = ModelError;

    fn try_from(wire: v1::Grant) -> Result<Self, ModelError> {
        Ok(Self {
            sequence: wire.sequence,
            epoch: wire.epoch,
            beat_interval: millis(
                "beat_interval_ms",
                wire.beat_interval_ms,
                BEAT_INTERVAL_MS_MIN,
                BEAT_INTERVAL_MS_MAX,
            )?,
            lease: millis("lease_ms", wire.lease_ms, 1, LEASE_MS_MAX)?,
            watchdog: millis("watchdog_ms", wire.watchdog_ms, 1, LEASE_MS_MAX)?,
            policy_hash: wire.policy_hash,
        })
    }
}

impl From<Grant> for v1::Grant {
    fn from(grant: Grant) -> Self {
        Self {
            sequence: grant.sequence,
            epoch: grant.epoch,
            beat_interval_ms: wire_millis(grant.beat_interval),
            lease_ms: wire_millis(grant.lease),
            watchdog_ms: wire_millis(grant.watchdog),
            policy_hash: grant.policy_hash,
        }
    }
}

impl TryFrom<v1::Hello> for Hello {
    type Error = ModelError;

    fn try_from(wire: v1::Hello) -> Result<Self, ModelError> {
        Ok(Self {
            node: name("node", wire.node)?,
            boot_id: name("boot_id", wire.boot_id)?,
            version: label("version", wire.version)?,
            address: name("address", wire.address)?,
        })
    }
}

impl From<Hello> for v1::Hello {
    fn from(hello: Hello) -> Self {
        Self {
            node: hello.node.into(),
            boot_id: hello.boot_id.into(),
            version: hello.version,
            address: hello.address.into(),
        }
    }
}

impl TryFrom<v1::Welcome> for Welcome {
    type Error = ModelError;

    fn try_from(wire: v1::Welcome) -> Result<Self, ModelError> {
        Ok(Self {
            epoch: wire.epoch,
            token_key: hash("token_key", &wire.token_key)?,
            report_period: millis("report_period_ms", wire.report_period_ms, 100, REPORT_PERIOD_MS_MAX)?,
            rates: CopyRates {
                node: NonZeroU64::new(wire.node_bytes_per_s),
                copy: NonZeroU64::new(wire.copy_bytes_per_s),
            },
        })
    }
}

impl From<Welcome> for v1::Welcome {
    fn from(welcome: Welcome) -> Self {
        Self {
            epoch: welcome.epoch,
            token_key: welcome.token_key.to_vec().into(),
            report_period_ms: wire_millis(welcome.report_period),
            node_bytes_per_s: welcome.rates.node.map_or(0, NonZeroU64::get),
            copy_bytes_per_s: welcome.rates.copy.map_or(0, NonZeroU64::get),
        }
    }
}

impl TryFrom<v1::PingReply> for PingReply {
    type Error = ModelError;

    fn try_from(wire: v1::PingReply) -> Result<Self, ModelError> {
        Ok(Self { node: name("node", wire.node)?, boot_id: name("boot_id", wire.boot_id)? })
    }
}

impl From<PingReply> for v1::PingReply {
    fn from(reply: PingReply) -> Self {
        Self { node: reply.node.into(), boot_id: reply.boot_id.into() }
    }
}

impl TryFrom<v1::FromAgent> for FromAgent {
    type Error = ModelError;

    fn try_from(wire: v1::FromAgent) -> Result<Self, ModelError> {
        use v1::from_agent::Message;
        match required("message", wire.message)? {
            Message::Hello(hello) => {
                hello.try_into().map(Self::Hello).map_err(|e: ModelError| e.within("hello"))
            }
            Message::Report(report) => {
                report.try_into().map(Self::Report).map_err(|e: ModelError| e.within("report"))
            }
            Message::Progress(progress) => {
                progress.try_into().map(Self::Progress).map_err(|e: ModelError| e.within("progress"))
            }
            Message::Probe(probe) => {
                probe.try_into().map(Self::Probe).map_err(|e: ModelError| e.within("probe"))
            }
        }
    }
}

impl From<FromAgent> for v1::FromAgent {
    fn from(message: FromAgent) -> Self {
        use v1::from_agent::Message;
        Self {
            message: Some(match message {
                FromAgent::Hello(hello) => Message::Hello(hello.into()),
                FromAgent::Report(report) => Message::Report(report.into()),
                FromAgent::Progress(progress) => Message::Progress(progress.into()),
                FromAgent::Probe(probe) => Message::Probe(probe.into()),
            }),
        }
    }
}

impl TryFrom<v1::FromCoordinator> for FromCoordinator {
    type Error = ModelError;

    fn try_from(wire: v1::FromCoordinator) -> Result<Self, ModelError> {
        use v1::from_coordinator::Message;
        match required("message", wire.message)? {
            Message::Welcome(welcome) => {
                welcome.try_into().map(Self::Welcome).map_err(|e: ModelError| e.within("welcome"))
            }
            Message::Order(order) => {
                order.try_into().map(Self::Order).map_err(|e: ModelError| e.within("order"))
            }
        }
    }
}

impl From<FromCoordinator> for v1::FromCoordinator {
    fn from(message: FromCoordinator) -> Self {
        use v1::from_coordinator::Message;
        Self {
            message: Some(match message {
                FromCoordinator::Welcome(welcome) => Message::Welcome(welcome.into()),
                FromCoordinator::Order(order) => Message::Order(order.into()),
            }),
        }
    }
}

fn millis(field: &str, value: u32, least: u32, most: u32) -> Result<Duration, ModelError> {
    if (least..=most).contains(&value) {
        Ok(Duration::from_millis(value.into()))
    } else {
        Err(ModelError::invalid(field, format!("{value} ms is not within {least}..={most} ms")))
    }
}

/// Saturates: no duration of ours comes near 49 days.
pub(super) fn wire_millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire_beat() -> v1::Beat {
        v1::Beat {
            node: "n1".into(),
            boot_id: "0f4a3b7e-8f0d-4d8e-9a54-0123456789ab".into(),
            sequence: 7,
            goodbye: false,
        }
    }

    #[test]
    fn a_valid_beat_survives_both_ways() {
        let beat = Beat::try_from(wire_beat()).unwrap();
        assert_eq!(v1::Beat::from(beat), wire_beat());
    }

    #[test]
    fn an_invalid_beat_names_its_field() {
        let missing = Beat::try_from(v1::Beat { node: String::new(), ..wire_beat() }).unwrap_err();
        assert_eq!(missing, ModelError::Missing("node".into()));
        let invalid = Beat::try_from(v1::Beat { boot_id: "now".into(), ..wire_beat() }).unwrap_err();
        assert_eq!(invalid.field(), "boot_id");
        let status = tonic::Status::from(invalid);
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains("boot_id"), "{}", status.message());
    }

    #[test]
    fn a_grant_that_would_flood_or_starve_is_refused() {
        let wire = v1::Grant {
            sequence: 1,
            epoch: 1,
            beat_interval_ms: 200,
            lease_ms: 30_000,
            watchdog_ms: 10_000,
            policy_hash: 1,
        };
        let grant = Grant::try_from(wire).unwrap();
        assert_eq!(v1::Grant::from(grant), wire);
        for interval in [0, 1, 60_001, u32::MAX] {
            let error = Grant::try_from(v1::Grant { beat_interval_ms: interval, ..wire }).unwrap_err();
            assert_eq!(error.field(), "beat_interval_ms");
        }
    }

    #[test]
    fn a_token_key_of_the_wrong_length_is_refused() {
        let wire = v1::Welcome {
            epoch: 1,
            token_key: vec![0; 31].into(),
            report_period_ms: 30_000,
            ..v1::Welcome::default()
        };
        assert_eq!(Welcome::try_from(wire).unwrap_err().field(), "token_key");
    }

    #[test]
    fn an_empty_session_message_is_refused() {
        assert_eq!(
            FromAgent::try_from(v1::FromAgent { message: None }).unwrap_err(),
            ModelError::Missing("message".into())
        );
        assert!(FromCoordinator::try_from(v1::FromCoordinator { message: None }).is_err());
    }

    #[test]
    fn a_nested_field_is_named_from_the_top() {
        let hello = v1::Hello {
            node: "n1".into(),
            boot_id: wire_beat().boot_id,
            version: "0.1.0\nforged log line".into(),
            address: "10.0.0.1:7443".into(),
        };
        let wire = v1::FromAgent { message: Some(v1::from_agent::Message::Hello(hello)) };
        assert_eq!(FromAgent::try_from(wire).unwrap_err().field(), "hello.version");
    }
}

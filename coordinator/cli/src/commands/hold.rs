//! `release-hold`: a person says that the silence of many nodes is real.

use jiff::Timestamp;
use kube::core::ObjectMeta;
use serde_json::json;
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_crd::node_health::NodeState;
use somersault_crd::recovery_policy::POLICY_NAME;
use somersault_crd::{RecoveryPolicy, RecoveryPolicySpec};

use crate::args::{Global, ReleaseHoldArgs};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::requests::{self, Written};
use crate::source::Source;
use crate::world::World;

const KIND: &str = "RecoveryPolicy";

/// Runs the command.
pub fn run(global: &Global, args: &ReleaseHoldArgs) -> Result<Exit, Failure> {
    let source = Source::open(global)?;
    let world = World::of(&source.objects()?, None)?;
    let held: Vec<&str> = world
        .healths
        .iter()
        .filter(|(_, health)| {
            health.status.as_ref().is_some_and(|status| status.state == NodeState::StormHold)
        })
        .map(|(node, _)| node.as_str())
        .collect();
    if held.is_empty() {
        return Err(Failure::Refused("no node is in a storm hold".to_owned()));
    }
    // Any change of the text releases the hold once; a later storm holds again.
    let text = format!("{} by {}", Timestamp::now(), requests::whose_word(&source, args.by.as_deref())?);
    let id = ObjectId::cluster(KIND, POLICY_NAME);
    if source.get(&id)?.is_some() {
        source.set_spec(&id, |_| Ok(("holdRelease", json!(text))))?;
    } else {
        let spec = RecoveryPolicySpec { hold_release: Some(text.clone()), ..RecoveryPolicySpec::default() };
        let metadata = ObjectMeta { name: Some(POLICY_NAME.to_owned()), ..ObjectMeta::default() };
        let policy = RecoveryPolicy { metadata, spec, status: None };
        source.create(|_| Ok(json!(policy)))?;
    }
    let written = Written { kind: KIND, namespace: None, name: POLICY_NAME.to_owned() };
    output::print(global.output, &written, || {
        format!(
            "The storm hold is released: {} are judged one by one from now on. A proof is needed before anything is \
             done, as always.",
            held.join(", ")
        )
    })?;
    Ok(Exit::Ok)
}

//! The `RecoveryPolicy` that people write to the cluster and the policy that the coordinator understands have the same
//! fields, so that neither silently drops what the other says.

use anyhow::Result;
use serde_json::{Value, json};
use somersault_coordinator_core::policy::{Policy, PolicySpec};
use somersault_crd::RecoveryPolicySpec;

/// Every field of the coordinator's policy, set.
fn everything() -> Result<Value> {
    let mut spec = serde_json::to_value(PolicySpec::default())?;
    spec["profile"] = json!("Fast");
    spec["detection"] = json!({
        "beatMs": 200, "missedBeats": 3, "declareMs": 1000, "probeTimeoutMs": 300, "goodbyeMs": 120_000,
    });
    spec["fencing"]["nodes"] = json!(["n1"]);
    spec["evacuation"]["destinationClass"] = json!("ceph-rbd");
    spec["storageClasses"] = json!({"own-nfs": "Network"});
    Ok(spec)
}

#[test]
fn every_field_of_the_policy_can_be_written_to_the_cluster() -> Result<()> {
    let everything = everything()?;
    let object: RecoveryPolicySpec = serde_json::from_value(everything.clone())?;
    assert_eq!(serde_json::to_value(object)?, everything);
    Ok(())
}

#[test]
fn what_the_cluster_says_builds_a_policy() -> Result<()> {
    let object: RecoveryPolicySpec = serde_json::from_value(everything()?)?;
    let spec: PolicySpec = serde_json::from_value(serde_json::to_value(object)?)?;
    let policy = Policy::try_from(spec)?;
    assert_eq!(policy.evacuation.destination_class.as_deref(), Some("ceph-rbd"));
    assert_eq!(policy.class_overrides.0.len(), 1);
    Ok(())
}

/// An empty object changes nothing.
#[test]
fn an_empty_object_is_the_default_policy() -> Result<()> {
    let empty = serde_json::to_value(RecoveryPolicySpec::default())?;
    assert_eq!(empty, json!({}));
    assert_eq!(serde_json::from_value::<PolicySpec>(empty)?, PolicySpec::default());
    Ok(())
}

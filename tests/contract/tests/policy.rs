//! The `RecoveryPolicy` that people write to the cluster and the policy that the coordinator understands have the same
//! fields, so that neither silently drops what the other says.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use somersault_coordinator_core::policy::{Policy, PolicyError, PolicySpec};
use somersault_crd::{RecoveryPolicySpec, generate};

/// Every field of the coordinator's policy, set.
fn everything() -> Result<Value> {
    let mut spec = serde_json::to_value(PolicySpec::default())?;
    spec["profile"] = json!("Fast");
    spec["detection"] = json!({
        "beatMs": 200, "missedBeats": 3, "declareMs": 1000, "probeTimeoutMs": 300, "goodbyeMs": 120_000,
    });
    spec["fencing"]["nodes"] = json!(["n1"]);
    spec["evacuation"]["destinationClass"] = json!("ceph-rbd");
    spec["copies"] = json!({"nodeMibPerS": 200, "copyMibPerS": 100});
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
    assert_eq!(policy.copies.node.map(u64::from), Some(200 << 20));
    assert_eq!(policy.copies.copy.map(u64::from), Some(100 << 20));
    Ok(())
}

/// `kubectl get` shows the profile from the spec: where nobody set one, the API server fills in what the coordinator takes.
#[test]
fn the_profile_that_is_filled_in_is_the_coordinator_s_own() -> Result<()> {
    let files = generate::files()?;
    let file = files.iter().find(|file| file.name == "recoverypolicies.yaml").context("no definition")?;
    let definition: Value = serde_saphyr::from_str(&file.content)?;
    let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let filled_in: PolicySpec =
        serde_json::from_value(json!({"profile": spec["properties"]["profile"]["default"]}))?;
    assert_eq!(Policy::try_from(filled_in)?, Policy::default());
    Ok(())
}

/// The API server refuses a number exactly where the coordinator does. (The relations between numbers are compared
/// on a real API server, in `tests/cluster`.)
#[test]
fn ranges_are_the_coordinator_s() -> Result<()> {
    let files = generate::files()?;
    let file = files.iter().find(|file| file.name == "recoverypolicies.yaml").context("no definition")?;
    let definition: Value = serde_saphyr::from_str(&file.content)?;
    let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut numbers = 0;
    for (section, schema) in spec["properties"].as_object().context("no fields")? {
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            if !["integer", "number"].contains(&schema["type"].as_str().unwrap_or_default()) {
                continue;
            }
            let bound = |name: &str| {
                schema[name].as_i64().with_context(|| format!("{section}.{field} has no {name}"))
            };
            let (least, most) = (bound("minimum")?, bound("maximum")?);
            for (value, fits) in [(least, true), (most, true), (least - 1, false), (most + 1, false)] {
                let spec: PolicySpec = serde_json::from_value(json!({section: {field: value}}))?;
                let refused = matches!(Policy::try_from(spec), Err(PolicyError::Range { .. }));
                assert_eq!(refused, !fits, "{section}.{field} of {value}");
            }
            numbers += 1;
        }
    }
    assert!(numbers > 30, "{numbers}");
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

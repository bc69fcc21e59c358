//! The `RecoveryPolicy` named `default`: read before anything begins, and followed while we run.
//!
//! ```text
//!   start ──► there, understood and without contradiction? ──► what we begin with, leases and leader times included
//!                                  └─ no: the policy of our own flags
//!
//!   spec changed ──► understood and without contradiction? ──► in force ──► Accepted=True
//!                                  └─ no: the one before stays in force ──► Accepted=False, with what is wrong
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use somersault_coordinator_core::names::NodeName;
use somersault_coordinator_core::policy::{Policy, PolicySpec};
use somersault_crd::recovery_policy::POLICY_NAME;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Kube;
use super::collect::StoredPolicy;
use crate::cluster::ClusterError;
use crate::cluster::manifest::ObjectId;
use crate::cluster::stamp::now_seconds;

/// What could not be told is told again after this long; also how soon a new leader tells.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What was found in a policy.
type Verdict = Result<(), String>;

/// The policy to begin with: some of it counts from the start or not at all. Waits for the API server.
pub async fn at_start(cluster: &Kube, of_flags: &Policy) -> Policy {
    let mut specs = cluster.policy_specs();
    let stored = match specs.wait_for(|stored| *stored != StoredPolicy::Unread).await {
        Ok(stored) => stored.clone(),
        // Nobody reads any more: whoever leads will find that out, and say so.
        Err(_) => StoredPolicy::Absent,
    };
    // What is wrong with it is told by whoever follows it.
    first(&stored, of_flags)
}

fn first(stored: &StoredPolicy, of_flags: &Policy) -> Policy {
    match stored {
        StoredPolicy::Is(spec) => read(spec, &of_flags.fencing.nodes).unwrap_or_else(|_| of_flags.clone()),
        StoredPolicy::Unread | StoredPolicy::Absent => of_flags.clone(),
    }
}

/// Follows the policy until told to stop. Without one, and where the object is gone, that of our flags is in force.
pub async fn follow(
    cluster: Arc<Kube>,
    of_flags: Arc<Policy>,
    policies: watch::Sender<Arc<Policy>>,
    stop: CancellationToken,
) {
    let mut specs = cluster.policy_specs();
    specs.mark_changed();
    let mut untold: Option<(Value, Verdict)> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = specs.changed() => {
                if changed.is_err() {
                    return stop.cancelled().await;
                }
                let stored = specs.borrow_and_update().clone();
                untold = match stored {
                    StoredPolicy::Unread => continue,
                    StoredPolicy::Absent => {
                        policies.send_replace(Arc::clone(&of_flags));
                        None
                    }
                    StoredPolicy::Is(spec) => {
                        let read = read(&spec, &of_flags.fencing.nodes);
                        let verdict = read.map(|policy| drop(policies.send_replace(Arc::new(policy))));
                        if let Err(why) = &verdict {
                            tracing::error!(why, "the RecoveryPolicy cannot hold; the policy before it stays in force");
                        }
                        Some((spec, verdict))
                    }
                };
            }
            () = tokio::time::sleep(TELL_EVERY), if untold.is_some() => {}
        }
        if let Some((spec, verdict)) = &untold
            && cluster.leads()
        {
            match tell(&cluster, spec, verdict).await {
                Ok(()) => untold = None,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the policy's status was not written"
                    );
                }
            }
        }
    }
}

/// Reads a policy object's spec. Nodes that our own configuration has fence agents for need not be named again.
pub fn read(spec: &Value, fenced: &BTreeSet<NodeName>) -> Result<Policy, String> {
    let mut spec = spec.clone();
    if let Some(fields) = spec.as_object_mut() {
        // A request of people, not a limit.
        fields.remove("holdRelease");
    }
    let mut spec: PolicySpec = if spec.is_null() {
        PolicySpec::default()
    } else {
        serde_path_to_error::deserialize(spec).map_err(|e| format!("spec.{}: {}", e.path(), e.inner()))?
    };
    spec.fencing.nodes.extend(fenced.iter().cloned());
    Policy::try_from(spec).map_err(|error| error.to_string())
}

/// Writes the condition `Accepted`, unless it is there already. What it is about is the spec that was read: a newer
/// one is told by itself.
async fn tell(cluster: &Kube, spec: &Value, verdict: &Verdict) -> Result<(), ClusterError> {
    let id = ObjectId::cluster("RecoveryPolicy", POLICY_NAME);
    let api = cluster.api();
    let Some(object) = api.get(&id).await? else { return Ok(()) };
    if object["spec"] != *spec {
        return Ok(());
    }
    let (status, reason, message) = match verdict {
        Ok(()) => (
            "True",
            "InForce",
            "the coordinator follows this policy; a changed lease or leader counts from its next start",
        ),
        Err(why) => ("False", "Contradiction", why.as_str()),
    };
    let generation = &object["metadata"]["generation"];
    let conditions = object["status"]["conditions"].as_array();
    let before = conditions.and_then(|all| all.iter().find(|condition| condition["type"] == "Accepted"));
    if before.is_some_and(|b| {
        b["status"] == status && b["message"] == message && b["observedGeneration"] == *generation
    }) {
        return Ok(());
    }
    let since = before.filter(|before| before["status"] == status);
    let since = since.map_or_else(|| json!(now_seconds()), |before| before["lastTransitionTime"].clone());
    let manifest = json!({
        "apiVersion": somersault_crd::API_VERSION,
        "kind": id.kind,
        "metadata": { "name": id.name },
        "status": {
            "observedGeneration": generation,
            "conditions": [{
                "type": "Accepted", "status": status, "reason": reason, "message": message,
                "lastTransitionTime": since, "observedGeneration": generation,
            }],
        },
    });
    api.apply_status(&id, &manifest).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_object_is_read_with_the_request_that_is_no_limit() {
        let policy = read(&json!({"profile": "Fast", "holdRelease": "now"}), &BTreeSet::new());
        assert_eq!(policy.expect("a policy").detection.declare, Duration::from_secs(1));
        assert_eq!(read(&Value::Null, &BTreeSet::new()), Ok(Policy::default()));
    }

    #[test]
    fn fence_agents_of_our_own_configuration_stay() {
        let fenced = BTreeSet::from(["n1".into()]);
        let policy = read(&json!({"fencing": {"nodes": ["n2"]}}), &fenced).expect("a policy");
        assert_eq!(policy.fencing.nodes, BTreeSet::from(["n1".into(), "n2".into()]));
    }

    #[test]
    fn what_counts_from_the_start_is_taken_from_the_policy_that_is_there() {
        let flags = Policy::default();
        let stored = |spec: Value| first(&StoredPolicy::Is(spec), &flags);
        let leader =
            stored(json!({"leader": {"leaseMs": 9000, "renewMs": 6000, "retryMs": 1000}})).leader.clone();
        assert_eq!((leader.lease, leader.retry), (Duration::from_secs(9), Duration::from_secs(1)));
        assert_eq!(stored(json!({"leader": {"leaseMs": 1}})), flags, "it cannot hold");
        assert_eq!(first(&StoredPolicy::Absent, &flags), flags);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let unknown =
            read(&json!({"detection": {"beatMs": "soon"}}), &BTreeSet::new()).expect_err("no number");
        assert!(unknown.contains("detection.beatMs"), "{unknown}");
        let spec = json!({"detection": {"beatMs": 1000, "missedBeats": 3, "declareMs": 100}});
        let contradiction = read(&spec, &BTreeSet::new());
        assert!(contradiction.is_err());
    }
}

//! Shows the import, the handshake and the trap, on objects shaped as CDI 1.66.0 writes them.

use super::*;

fn now() -> Timestamp {
    "2026-11-23T11:16:00Z".parse().expect("a time")
}

fn data_volume(annotations: &Value) -> Value {
    json!({
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume",
        "metadata": {"namespace": "default", "name": "disk", "uid": "dv-uid", "annotations": annotations},
        "spec": {
            "source": {"http": {"url": "http://images.invalid/x.img"}},
            "pvc": {"resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "local-path"},
        },
        "status": {"phase": "Succeeded"},
    })
}

fn claim(owner: Option<&str>, annotations: &Value, phase: &str) -> Value {
    let owners =
        owner.map(|uid| json!([{"kind": "DataVolume", "name": "disk", "uid": uid, "controller": true}]));
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {
            "namespace": "default", "name": "disk", "uid": "claim-uid", "ownerReferences": owners,
            "annotations": annotations,
        },
        "status": {"phase": phase},
    })
}

fn changes(data_volume: Value, claim: Option<Value>) -> Vec<Change> {
    let mut objects = Objects::default();
    [Some(data_volume), claim].into_iter().flatten().for_each(|object| objects.put(object));
    reconcile(&objects, now())
}

fn phase_of(changes: &[Change]) -> Option<&str> {
    changes.iter().find_map(|change| match change {
        Change::UpdateStatus(object) => Some(phase(object)),
        _ => None,
    })
}

#[test]
fn a_missing_claim_is_made_again_even_after_success() {
    let changes = changes(data_volume(&json!({})), None);
    let Some(Change::Create(claim)) = changes.first() else { panic!("{changes:?}") };
    assert_eq!(annotation(claim, IMPORT_ENDPOINT), Some("http://images.invalid/x.img"));
    assert_eq!(annotation(claim, CREATED_FOR), Some("dv-uid"));
    assert_eq!(annotation(claim, IMPORT_PHASE), None, "so it is imported again");
    assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], "dv-uid");
}

#[test]
fn after_the_handshake_nothing_is_made() {
    let changes = changes(data_volume(&json!({PRE_POPULATED: "disk"})), None);
    assert_eq!(phase_of(&changes), Some("Pending"));
    assert_eq!(changes.len(), 1, "{changes:?}");
}

#[test]
fn the_handshake_is_answered_on_a_bound_claim_only() {
    let annotations = json!({POPULATED_FOR: "disk"});
    let changes_of =
        |phase: &str| changes(data_volume(&json!({})), Some(claim(Some("dv-uid"), &annotations, phase)));
    let bound = changes_of("Bound");
    let [Change::Update(answered)] = bound.as_slice() else { panic!("{bound:?}") };
    assert_eq!(annotation(answered, PRE_POPULATED), Some("disk"));
    let pending = changes_of("Pending");
    assert_eq!(phase_of(&pending), Some("Pending"));
    assert_eq!(pending.len(), 1, "{pending:?}");
}

#[test]
fn a_claim_of_somebody_else_is_taken_when_it_is_said_to_be_populated_or_adopted() {
    let taken = |data_volume: Value, annotations: Value| {
        let changes = changes(data_volume, Some(claim(None, &annotations, "Bound")));
        matches!(changes.as_slice(), [Change::Update(claim)] if claim["metadata"]["ownerReferences"][0]["uid"] == "dv-uid")
    };
    let plain = || data_volume(&json!({PRE_POPULATED: "disk"}));
    assert!(taken(plain(), json!({POPULATED_FOR: "disk"})));
    assert!(!taken(plain(), json!({POPULATED_FOR: "another"})));
    assert!(!taken(plain(), json!({})), "the rollback that forgot it: the DataVolume stays Pending");
    let adopting = || data_volume(&json!({ALLOW_ADOPTION: "true"}));
    assert!(taken(adopting(), json!({})));
    assert!(!taken(adopting(), json!({CREATED_FOR: "dv-uid"})));
}

#[test]
fn the_phase_follows_the_claim_and_its_importer() {
    let phase_with = |annotations: Value, phase: &str| {
        let mut new = data_volume(&json!({}));
        new["status"] = json!({});
        let changes = changes(new, Some(claim(Some("dv-uid"), &annotations, phase)));
        phase_of(&changes).map(str::to_owned)
    };
    let phase_is = |annotations: Value, phase: &str, expected: &str| {
        assert_eq!(phase_with(annotations, phase).as_deref(), Some(expected));
    };
    phase_is(json!({}), "Pending", "Pending");
    phase_is(json!({}), "Bound", "ImportScheduled");
    phase_is(json!({IMPORT_PHASE: "Running"}), "Bound", "ImportInProgress");
    phase_is(json!({IMPORT_PHASE: "Succeeded"}), "Bound", "Succeeded");
    phase_is(json!({}), "Lost", "Failed");
}

#[test]
fn the_storage_form_asks_for_more() {
    let spec =
        json!({"storage": {"resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "local-path"}});
    let claim = claim_spec(&spec).expect("a claim");
    assert_eq!(claim["resources"]["requests"]["storage"], "1138166334");
    assert_eq!(claim["accessModes"], json!(["ReadWriteOnce"]));
}

//! What a dry run of a claim says before its migration stops a VM, by a real API server with its real admission: policies
//! before quotas, quotas before the claim of its name that is there, and nothing is made.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use somersault_coordinator_core::io::ClaimTemplate;
use somersault_coordinator_core::migration::{Charge, DryRun, DryRunAnswer, NewClaim, Verdict};

use crate::bed::Bed;
use crate::claims::{old_volume, shop, template};

const CLAIM: &str = "quota-disk";
const CLAIM_KIND: &str = "PersistentVolumeClaim";
const QUOTA: &str = "ResourceQuota";
const GIB: u64 = 1 << 30;

pub async fn before_a_vm_is_stopped(bed: &Bed) -> Result<()> {
    old_volume(bed, "pv-quota-old", CLAIM, json!([])).await?;
    exactly_full(bed).await?;
    let before = bed.get(CLAIM_KIND, CLAIM).await?;
    let free = asked(bed, "other").await?;
    ensure!(free.claims == [Verdict::Admitted, Verdict::Admitted] && free.quotas.is_empty(), "{free:?}");
    of_a_class(bed).await?;
    limited(bed).await?;
    of_a_policy(bed).await?;
    let after = bed.get(CLAIM_KIND, CLAIM).await?;
    ensure!(before["metadata"]["uid"] == after["metadata"]["uid"], "the claim is another one");
    ensure!(before["spec"] == after["spec"], "it was changed: {after}");
    bed.delete(CLAIM_KIND, CLAIM).await?;
    bed.delete("PersistentVolume", "pv-quota-old").await
}

/// A lock of class `manual`, and then a claim of this class.
fn question(class: &str) -> DryRun {
    let new = |class: &str, volume: &str| {
        let template = ClaimTemplate { class: class.into(), ..template(class) };
        vec![NewClaim { claim: shop(CLAIM), template, volume: volume.into() }]
    };
    DryRun {
        migration: shop("m"),
        uid: "u".into(),
        vm: "web".into(),
        claims: [new("manual", "pv-lock"), new(class, "pv-new")],
        now: vec![Charge::new("manual", GIB)],
        job: None,
    }
}

async fn asked(bed: &Bed, class: &str) -> Result<DryRunAnswer> {
    Ok(bed.writer.dry_run(&question(class)).await?)
}

/// Makes a quota, waits until the API server has counted, and asks; returns the answer and takes the quota away.
async fn under(bed: &Bed, resource: &str, hard: &str, class: &str) -> Result<DryRunAnswer> {
    let spec = json!({ "hard": { resource: hard } });
    let made = json!({ "apiVersion": "v1", "kind": QUOTA, "metadata": { "name": "disks" }, "spec": spec });
    bed.create(made).await?;
    bed.until("the quota is counted", async || {
        Ok(bed.get(QUOTA, "disks").await?["status"]["used"][resource].is_string())
    })
    .await?;
    let answer = asked(bed, class).await;
    bed.delete(QUOTA, "disks").await?;
    answer
}

fn refusal(answer: &DryRunAnswer, class: &str) -> Option<&'static str> {
    question(class).judge(answer).err().map(|(refusal, _)| refusal.reason)
}

async fn used(bed: &Bed) -> Result<u64> {
    let listed = bed.api(CLAIM_KIND).list(&kube::api::ListParams::default()).await?;
    Ok(u64::try_from(listed.items.len())?)
}

/// The API server would refuse the claim beside its predecessor, and will not refuse it in its place.
async fn exactly_full(bed: &Bed) -> Result<()> {
    let claims = used(bed).await?;
    let full = under(bed, "persistentvolumeclaims", &claims.to_string(), "manual").await?;
    ensure!(matches!(&full.claims[..], [Verdict::OverQuota(_), Verdict::OverQuota(_)]), "{full:?}");
    ensure!(refusal(&full, "manual").is_none(), "{full:?}");
    let over = under(bed, "persistentvolumeclaims", &(claims - 1).to_string(), "manual").await?;
    ensure!(refusal(&over, "manual") == Some("QuotaWouldBeExceeded"), "{over:?}");
    // It is what really happens: the claim goes, and comes again.
    let spec = json!({ "hard": { "count/persistentvolumeclaims": claims.to_string() } });
    bed.create(json!({ "apiVersion": "v1", "kind": QUOTA, "metadata": { "name": "full" }, "spec": spec }))
        .await?;
    bed.until("the quota is counted", async || {
        let quota = bed.get(QUOTA, "full").await?;
        Ok(quota["status"]["used"]["count/persistentvolumeclaims"].as_str()
            == Some(claims.to_string().as_str()))
    })
    .await?;
    let spare = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": CLAIM_KIND, "metadata": { "name": name },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
                "resources": { "requests": { "storage": "1Gi" } },
            },
        })
    };
    ensure!(bed.create(spare("quota-spare")).await.is_err(), "the quota lets one more be made");
    bed.delete(CLAIM_KIND, CLAIM).await?;
    let again = async || Ok(bed.create(spare(CLAIM)).await.is_ok());
    let made = bed.until("another one of its name is let in", again).await;
    bed.delete(QUOTA, "full").await?;
    bed.delete(CLAIM_KIND, CLAIM).await?;
    bed.delete("PersistentVolume", "pv-quota-old").await?;
    made?;
    old_volume(bed, "pv-quota-old", CLAIM, json!([])).await.map(drop)
}

async fn of_a_class(bed: &Bed) -> Result<()> {
    let resource = "other.storageclass.storage.k8s.io/requests.storage";
    let enough = under(bed, resource, "1Gi", "other").await?;
    ensure!(enough.claims == [Verdict::Admitted, Verdict::Admitted], "{enough:?}");
    ensure!(refusal(&enough, "other").is_none(), "{enough:?}");
    let full = under(bed, resource, "1023Mi", "other").await?;
    ensure!(matches!(full.claims[1], Verdict::OverQuota(_)), "{full:?}");
    ensure!(refusal(&full, "other") == Some("QuotaWouldBeExceeded"), "{full:?}");
    ensure!(refusal(&full, "manual").is_none(), "another class is none of its");
    Ok(())
}

async fn limited(bed: &Bed) -> Result<()> {
    let limit = json!({ "type": "PersistentVolumeClaim", "max": { "storage": "512Mi" } });
    bed.create(json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": { "name": "small" }, "spec": { "limits": [limit] },
    }))
    .await?;
    // The API server's own cache learns of it.
    let refused = async || {
        let answer = asked(bed, "manual").await?;
        Ok(matches!(&answer.claims[..], [Verdict::Refused(why), _] if why.contains("512Mi")))
    };
    let told = bed.until("a claim that is too large is refused", refused).await;
    bed.delete("LimitRange", "small").await?;
    told
}

/// The policy's own words, although one of this name is there.
async fn of_a_policy(bed: &Bed) -> Result<()> {
    bed.cluster.apply(POLICY)?;
    let refused = async || {
        let answer = asked(bed, "other").await?;
        let told = |why: &str| why.contains("no disk of class other here");
        Ok(matches!(&answer.claims[..], [Verdict::Admitted, Verdict::Refused(why)] if told(why)))
    };
    let told = bed.until("a policy refuses", refused).await;
    bed.cluster.ask(&["delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", "no-other"])?;
    told?;
    let answer = asked(bed, "other").await?;
    let words = format!("{answer:?}");
    bed.until("the policy is gone", async || {
        Ok(asked(bed, "other").await?.claims == [Verdict::Admitted, Verdict::Admitted])
    })
    .await
    .context(words)
}

const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-other}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [persistentvolumeclaims]}
  validations:
  - expression: "object.spec.storageClassName != 'other'"
    message: no disk of class other here
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-other}
spec: {policyName: no-other, validationActions: [Deny]}
"#;

//! The Job by which a user looks at a guest that was moved: made of the template of a `CronJob` of the user's own, and read
//! until it has ended.
//!
//! ```text
//!   CronJob, labelled for it ──► Job, named after migration and run of the guest ──► Complete | Failed
//! ```
//!
//! Whoever may ask for a migration need not have the right to make a Job: by this they get the Job of somebody who has it
//! and who says so by a label, and no other. What is added to the template gives its pods no right that they would not have.

use std::net::IpAddr;

use serde_json::{Value, json};
use somersault_coordinator_core::migration::{
    CronJobName, DryRun, GUEST_WAIT_MAX, GuestAnswer, GuestQuestion, NoAnswer,
};
use somersault_coordinator_core::names::{Key, Uid};
use somersault_crd as crd;

use super::{MANAGED_BY, MANAGER, check_stays};
use crate::cluster::ClusterError;
use crate::cluster::error::{conflict, refused};
use crate::cluster::manifest::ObjectId;

/// Label of a `CronJob` whose template may be used.
const MAY_PROBE: &str = "somersault.novasphere.dev/probe";
/// Annotations of the Job's pods, for a template that looks at more than one VM.
const VM: &str = "somersault.novasphere.dev/vm";
const ADDRESS: &str = "somersault.novasphere.dev/address";
/// Annotation of the Job: whose template it has.
const TEMPLATE: &str = "somersault.novasphere.dev/template";
/// Of a template's name and of each uid, so that all of it stays below the 63 characters of a label, in which Kubernetes
/// puts a Job's name.
const NAME_CHARS: usize = 30;
const UID_CHARS: usize = 12;

/// A Job to make.
pub(in crate::cluster) struct ProbeJob<'a> {
    migration: &'a Key,
    uid: &'a Uid,
    vm: &'a str,
    template: &'a CronJobName,
    /// The run of the guest, and where it is.
    run: Option<(&'a Uid, IpAddr)>,
}

impl<'a> ProbeJob<'a> {
    /// The one that answers a question.
    pub(in crate::cluster) fn answering(question: &'a GuestQuestion, template: &'a CronJobName) -> Self {
        let GuestQuestion { migration, uid, vm, instance, address, .. } = question;
        Self { migration, uid, vm, template, run: Some((instance, *address)) }
    }

    /// One as it would be made.
    pub(in crate::cluster) fn to_try(question: &'a DryRun, template: &'a CronJobName) -> Self {
        let DryRun { migration, uid, vm, .. } = question;
        Self { migration, uid, vm, template, run: None }
    }

    /// Its identity: one for each run of the guest after each migration, whoever leads.
    pub(in crate::cluster) fn id(&self) -> ObjectId {
        let short = |uid: &Uid| -> String {
            uid.as_str().chars().filter(char::is_ascii_alphanumeric).take(UID_CHARS).collect()
        };
        let template: String = self.template.as_str().chars().take(NAME_CHARS).collect();
        let run = self.run.map_or_else(|| "dry-run".to_owned(), |(instance, _)| short(instance));
        let name = format!("{}-{}-{run}", template.trim_end_matches(['-', '.']), short(self.uid));
        ObjectId::namespaced("Job", &Key::new(self.migration.namespace.clone(), name))
    }

    /// The `CronJob`.
    pub(in crate::cluster) fn template_id(&self) -> ObjectId {
        let key = Key::new(self.migration.namespace.clone(), self.template.as_str());
        ObjectId::namespaced("CronJob", &key)
    }

    /// Its manifest; refused where the `CronJob` is not meant for this.
    pub(in crate::cluster) fn of(&self, cron_job: &Value) -> Result<Value, ClusterError> {
        let template_id = self.template_id();
        if cron_job["metadata"]["labels"][MAY_PROBE] != "true" {
            let why = format!(
                "it is not meant for this: whoever may change it says so by the label {MAY_PROBE}=true"
            );
            return Err(refused(&template_id, why));
        }
        check_stays(&template_id, cron_job)?;
        let (id, template) = (self.id(), &cron_job["spec"]["jobTemplate"]);
        let copy = |field: &str| match &template["metadata"][field] {
            Value::Object(map) => Value::Object(map.clone()),
            _ => json!({}),
        };
        let (mut labels, mut annotations) = (copy("labels"), copy("annotations"));
        labels[MANAGED_BY] = json!(MANAGER);
        annotations[TEMPLATE] = json!(self.template.as_str());
        let mut spec = template["spec"].clone();
        // Nobody waits for it any longer.
        let limit = GUEST_WAIT_MAX.as_secs();
        let asked = spec["activeDeadlineSeconds"].as_u64().unwrap_or(limit);
        spec["activeDeadlineSeconds"] = json!(asked.min(limit));
        if !spec["template"]["metadata"].is_object() {
            spec["template"]["metadata"] = json!({});
        }
        if !spec["template"]["metadata"]["annotations"].is_object() {
            spec["template"]["metadata"]["annotations"] = json!({});
        }
        let of_pods = &mut spec["template"]["metadata"]["annotations"];
        of_pods[VM] = json!(self.vm);
        if let Some((_, address)) = self.run {
            of_pods[ADDRESS] = json!(address.to_string());
        }
        Ok(json!({
            "apiVersion": "batch/v1",
            "kind": id.kind,
            "metadata": {
                "name": id.name, "namespace": id.namespace, "labels": labels, "annotations": annotations,
                // It goes with the migration, at the latest.
                "ownerReferences": [{
                    "apiVersion": crd::API_VERSION, "kind": "VolumeMigration",
                    "name": self.migration.name, "uid": self.uid.as_str(),
                }],
            },
            "spec": spec,
        }))
    }

    /// What one of its name says, which exists.
    pub(in crate::cluster) fn answer(&self, stored: &Value) -> Result<GuestAnswer, ClusterError> {
        let id = self.id();
        let owners = stored["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let owned = owners.into_iter().any(|owner| uid_of(owner) == self.uid.as_str());
        if !owned || stored["metadata"]["annotations"][TEMPLATE] != self.template.as_str() {
            return Err(conflict(&id, "one of this name exists, and nobody made it for this migration"));
        }
        let conditions = || stored["status"]["conditions"].as_array().into_iter().flatten();
        let holds = |kind: &str| conditions().find(|c| c["type"] == kind && c["status"] == "True");
        let logs = format!("kubectl logs -n {} job/{}", id.namespace, id.name);
        if holds("Complete").is_some() {
            return Ok(Ok(format!("Job {} has completed: {logs}", id.name)));
        }
        if let Some(failed) = holds("Failed") {
            let reason = failed["reason"].as_str().unwrap_or("for no reason that it tells");
            let why = format!("Job {} has failed ({reason}): {logs}", id.name);
            return Ok(Err(NoAnswer { why, is_final: true }));
        }
        let active = stored["status"]["active"].as_u64().unwrap_or_default();
        Ok(Err(format!("Job {} has not ended, {active} of its pods at work: {logs}", id.name).into()))
    }
}

fn uid_of(owner: &Value) -> &str {
    owner["uid"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(template: &str) -> (GuestQuestion, CronJobName) {
        let question = GuestQuestion {
            migration: Key::new("shop", "m"),
            uid: "0b9d1a52-1111-2222-3333-444455556666".into(),
            vm: "web".into(),
            instance: "77778888-9999-aaaa-bbbb-ccccddddeeee".into(),
            address: "10.42.0.7".parse().expect("an address"),
            probe: format!("job:{template}").parse().expect("a probe"),
        };
        (question, template.to_owned().try_into().expect("a name"))
    }

    fn cron_job() -> Value {
        json!({
            "metadata": { "labels": { MAY_PROBE: "true" } },
            "spec": { "suspend": true, "jobTemplate": {
                "metadata": { "labels": { "app": "check" } },
                "spec": {
                    "backoffLimit": 1, "activeDeadlineSeconds": 7200,
                    "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "c" }] } },
                },
            } },
        })
    }

    #[test]
    fn a_job_is_the_template_and_says_what_it_is_for() {
        let (question, template) = question("check");
        let job = ProbeJob::answering(&question, &template).of(&cron_job()).expect("meant for it");
        assert_eq!(job["metadata"]["name"], "check-0b9d1a521111-777788889999");
        assert_eq!(job["metadata"]["labels"], json!({ "app": "check", MANAGED_BY: MANAGER }));
        assert_eq!(job["metadata"]["ownerReferences"][0]["uid"], question.uid.as_str());
        let spec = &job["spec"];
        assert_eq!((&spec["backoffLimit"], &spec["activeDeadlineSeconds"]), (&json!(1), &json!(600)));
        let told = json!({ VM: "web", ADDRESS: "10.42.0.7" });
        assert_eq!(spec["template"]["metadata"]["annotations"], told);
        assert_eq!(spec["template"]["spec"], cron_job()["spec"]["jobTemplate"]["spec"]["template"]["spec"]);

        let mut short = cron_job();
        short["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] = json!(30);
        let job = ProbeJob::answering(&question, &template).of(&short).expect("meant for it");
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 30);
    }

    #[test]
    fn names_fit_into_a_label_and_differ_by_run() {
        let (mut question, template) = question(&"a-very-long-name-of-a-cronjob.".repeat(2)[..51]);
        let name = ProbeJob::answering(&question, &template).id().name;
        assert!(name.len() <= 63, "{name}");
        question.instance = "other".into();
        assert_ne!(ProbeJob::answering(&question, &template).id().name, name);
    }

    /// Somebody who can ask for a migration must not be able to start whatever Job a namespace has.
    #[test]
    fn a_cronjob_that_does_not_say_so_is_not_used() {
        let (question, template) = question("check");
        for labels in [json!(null), json!({}), json!({ MAY_PROBE: "false" })] {
            let mut other = cron_job();
            other["metadata"]["labels"] = labels;
            let why = ProbeJob::answering(&question, &template).of(&other).expect_err("not meant for it");
            assert!(why.to_string().contains("somersault.novasphere.dev/probe=true"), "{why}");
        }
    }

    #[test]
    fn its_end_is_the_answer_and_one_of_others_is_none() {
        let (question, template) = question("check");
        let job = ProbeJob::answering(&question, &template);
        let mut made = job.of(&cron_job()).expect("meant for it");
        let NoAnswer { why, is_final } = job.answer(&made).expect("ours").expect_err("not ended");
        assert!(!is_final && why.contains("has not ended"), "{why}");
        made["status"] = json!({ "conditions": [{ "type": "Complete", "status": "False" },
            { "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded" }] });
        let NoAnswer { why, is_final } = job.answer(&made).expect("ours").expect_err("failed");
        assert!(is_final, "{why}");
        assert!(
            why.ends_with("(BackoffLimitExceeded): kubectl logs -n shop job/check-0b9d1a521111-777788889999")
        );
        made["status"] = json!({ "conditions": [{ "type": "Complete", "status": "True" }] });
        assert!(job.answer(&made).expect("ours").is_ok());

        let mut foreign = made.clone();
        foreign["metadata"]["ownerReferences"][0]["uid"] = json!("another");
        assert!(job.answer(&foreign).is_err());
        made["metadata"]["annotations"][TEMPLATE] = json!("another");
        assert!(job.answer(&made).is_err());
    }
}

//! Jobs of users' own that look at a guest, run by the real controllers and kubelet: of a template that says that it may
//! be used, made once, and read to their end.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use somersault_coordinator_core::migration::{CronJobName, DryRun, GuestQuestion, NoAnswer, Verdict};
use somersault_coordinator_core::names::{Key, Uid};
use somersault_test_cluster::TOOLBOX_IMAGE;

use crate::bed::{Bed, SHOP};

const MIGRATION: &str = "probed";

pub async fn that_look_at_a_guest(bed: &Bed) -> Result<()> {
    let spec =
        json!({ "vm": "web", "destination": { "node": "n2" }, "probe": { "job": { "name": "works" } } });
    let made = bed
        .create(json!({
            "apiVersion": "somersault.novasphere.dev/v1alpha1", "kind": "VolumeMigration",
            "metadata": { "name": MIGRATION }, "spec": spec,
        }))
        .await?;
    let uid: Uid = made["metadata"]["uid"].as_str().context("no uid")?.into();
    for (name, label, command) in [
        ("works", "true", &["volume", "-p", "/tmp/none", "-a", "delete"][..]),
        ("fails", "true", &["no-such-command"][..]),
        ("secret", "false", &["pause"][..]),
    ] {
        bed.create(cron_job(name, label, command)).await?;
    }
    asked_before(bed, &uid).await?;
    ended_well(bed, &uid).await?;
    failed(bed, &uid).await?;
    // What was made for a migration goes with it.
    bed.delete("VolumeMigration", MIGRATION).await?;
    bed.until("its Jobs are gone", async || Ok(jobs(bed).await? == 0)).await
}

fn template(name: &str) -> Result<CronJobName> {
    Ok(name.to_owned().try_into()?)
}

/// Nothing is made, and what is missing is said.
async fn asked_before(bed: &Bed, uid: &Uid) -> Result<()> {
    let asked = async |name: &str| {
        let migration = Key::new(SHOP, MIGRATION);
        let question = DryRun {
            migration,
            uid: uid.clone(),
            vm: "web".into(),
            claims: [vec![], vec![]],
            now: vec![],
            job: Some(template(name)?),
        };
        let answer = bed.writer.dry_run(&question).await?;
        anyhow::Ok(answer.job.context("no verdict")?)
    };
    ensure!(asked("works").await? == Verdict::Admitted);
    for (name, why) in [("missing", "does not exist"), ("secret", "somersault.novasphere.dev/probe=true")] {
        let verdict = asked(name).await?;
        ensure!(matches!(&verdict, Verdict::Refused(said) if said.contains(why)), "{name}: {verdict:?}");
    }
    ensure!(jobs(bed).await? == 0, "a dry run has made a Job");
    Ok(())
}

async fn ended_well(bed: &Bed, uid: &Uid) -> Result<()> {
    let question = question(uid, "run-1", "works");
    let ask = async |question: &GuestQuestion| {
        bed.writer.ask_job(question, &template("works").expect("a name")).await
    };
    bed.until("the Job completes", async || Ok(ask(&question).await?.is_ok())).await?;
    ensure!(jobs(bed).await? == 1, "asked again, it was made again");
    let listed = bed.api("Job").list(&kube::api::ListParams::default()).await?;
    let job = serde_json::to_value(&listed.items[0])?;
    let told = &job["spec"]["template"]["metadata"]["annotations"];
    ensure!(told["somersault.novasphere.dev/address"] == "10.42.0.7", "{told}");
    ensure!(job["metadata"]["ownerReferences"][0]["uid"] == uid.as_str(), "{job}");
    ensure!(job["spec"]["activeDeadlineSeconds"] == 600, "{job}");
    // Another run of the guest is looked at anew.
    let again = self::question(uid, "run-2", "works");
    let first = ask(&again).await?;
    ensure!(first.is_err(), "answered before it ran: {first:?}");
    bed.until("the second Job completes", async || Ok(ask(&again).await?.is_ok())).await
}

async fn failed(bed: &Bed, uid: &Uid) -> Result<()> {
    let question = question(uid, "run-1", "fails");
    let template = template("fails")?;
    bed.until("the Job fails", async || {
        let answer = bed.writer.ask_job(&question, &template).await?;
        Ok(matches!(answer, Err(NoAnswer { is_final: true, .. })))
    })
    .await?;
    let answer = bed.writer.ask_job(&question, &template).await?;
    let why = answer.err().context("it answered")?.why;
    ensure!(why.contains("has failed (BackoffLimitExceeded): kubectl logs -n shop job/fails-"), "{why}");
    Ok(())
}

async fn jobs(bed: &Bed) -> Result<usize> {
    Ok(bed.api("Job").list(&kube::api::ListParams::default()).await?.items.len())
}

fn question(uid: &Uid, instance: &str, template: &str) -> GuestQuestion {
    GuestQuestion {
        migration: Key::new(SHOP, MIGRATION),
        uid: uid.clone(),
        vm: "web".into(),
        instance: instance.into(),
        address: std::net::Ipv4Addr::new(10, 42, 0, 7).into(),
        probe: format!("job:{template}").parse().expect("a probe"),
    }
}

fn cron_job(name: &str, label: &str, command: &[&str]) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": { "name": name, "labels": { "somersault.novasphere.dev/probe": label } },
        "spec": {
            "schedule": "0 0 1 1 *", "suspend": true,
            "jobTemplate": { "spec": { "backoffLimit": 0, "template": { "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "c", "image": TOOLBOX_IMAGE, "imagePullPolicy": "Never", "args": command }],
            } } } },
        },
    })
}

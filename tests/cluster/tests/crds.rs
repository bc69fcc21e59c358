//! Our custom resource definitions on a real API server: what they accept and refuse, that the rules in them say
//! what the coordinator says, and how the objects show to people.
//!
//! One test, since one cluster costs ten seconds and a gigabyte.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use somersault_coordinator_core::policy::{Policy, PolicyError, PolicySpec};
use somersault_crd::{RecoveryPolicy, RecoveryPolicySpec};
use somersault_test_cluster::{Cluster, Options, usable_or_skip};

/// Policies drawn at random. A few thousandths of a second each.
const DRAWS: usize = 400;

#[test]
fn the_api_server_takes_our_kinds_and_refuses_what_cannot_hold() -> Result<()> {
    if !usable_or_skip("the_api_server_takes_our_kinds_and_refuses_what_cannot_hold") {
        return Ok(());
    }
    let name = "test-crds";
    Cluster::down(name).context("removing what an earlier run has left")?;
    let cluster = Cluster::up(&Options {
        name: name.to_owned(),
        nodes: 1,
        tied: true,
        program: env!("CARGO_BIN_EXE_somersault-cluster").into(),
    })?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let said = cluster.ask(&["apply", "-k", &folder.display().to_string()])?;
    ensure!(!said.to_lowercase().contains("warning"), "{said}");
    let definitions = "crd/nodehealths.somersault.novasphere.dev crd/recoveries.somersault.novasphere.dev \
                       crd/recoverypolicies.somersault.novasphere.dev crd/volumemigrations.somersault.novasphere.dev \
                       crd/evacuations.somersault.novasphere.dev";
    let wait: Vec<_> = ["wait", "--for=condition=Established", "--timeout=30s"]
        .into_iter()
        .chain(definitions.split_whitespace())
        .collect();
    cluster.ask(&wait)?;

    good_and_bad_objects(&cluster)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(rules_say_what_the_coordinator_says(&cluster))?;
    people_see_and_wait(&cluster)
}

/// Each rule of each definition, by an object that keeps it and one that breaks it.
fn good_and_bad_objects(cluster: &Cluster) -> Result<()> {
    let policy = |spec: Value| object("RecoveryPolicy", "default", spec);
    accepts(cluster, &policy(json!({})))?;
    // A null is no value: `kubectl edit` and client-go write them.
    accepts(
        cluster,
        &policy(json!({"profile": null, "detection": {"beatMs": null}, "storageClasses": null})),
    )?;
    let full = json!({
        "profile": "Fast",
        "detection": {"beatMs": 200, "missedBeats": 3, "declareMs": 1000, "probeTimeoutMs": 300},
        "fencing": {"nodes": ["n1"]},
        "evacuation": {"automatic": true, "disruption": "Now", "destinationClass": "ceph-rbd"},
        "storageClasses": {"own-nfs": "Network", "own-disks": "Local"},
        "holdRelease": "2026-01-01, me",
    });
    accepts(cluster, &policy(full))?;
    let refused = [
        (json!({"profile": "Faster"}), "Unsupported value"),
        (json!({"detection": {"beatMs": 49}}), "should be greater than or equal to 50"),
        (json!({"lease": {"watchdogMs": 1500}}), "watchdogs count whole seconds"),
        (json!({"storageClasses": {"own-nfs": "Nfs"}}), "Unsupported value"),
        (json!({"evacuation": {"disruption": "Window"}}), "a policy has no window"),
        (json!({"evacuation": {"disruption": "Later"}}), "Unsupported value"),
        // Kept by the safe profile, broken by the fast one, whose verdict comes after a second.
        (json!({"profile": "Fast", "detection": {"missedBeats": 5}}), "suspect before it is declared"),
        (json!({"profile": "Fast", "detection": {"probeTimeoutMs": 360}}), "answered before the verdict"),
        (json!({"detection": {"declareMs": 30_000}}), "lease runs out before it is even declared"),
        (json!({"storm": {"burstMs": 60_000}}), "burst is the short window"),
        (json!({"leader": {"retryMs": 10_000}}), "try again before it gives up"),
        (json!({"leader": {"renewMs": 14_900}}), "given up before a new one takes over"),
        (json!({"lease": {"leaseMs": 23_000}}), "change of leader must not let"),
        (json!({"fencing": {"retryMaxMs": 1_000}}), "runs of a fence agent grow"),
        (json!({"recovery": {"quarantineMs": 4_000}}), "watched at least as long"),
    ];
    for (spec, why) in refused {
        refuses(cluster, &policy(spec), why)?;
    }
    refuses(cluster, &object("RecoveryPolicy", "other", json!({})), "the one policy is named default")?;

    accepts(cluster, &object("NodeHealth", "n1", json!({})))?;
    accepts(cluster, &object("NodeHealth", "n1", json!({"attestation": {"bootID": "b", "by": "me"}})))?;
    refuses(cluster, &object("NodeHealth", "n1", json!({"attestation": {"by": "me"}})), "bootID")?;

    accepts(cluster, &object("Recovery", "db", json!({"vm": "db"})))?;
    refuses(cluster, &object("Recovery", "db", json!({"vm": "web"})), "named like its VM")?;

    let to = json!({"node": "n2"});
    accepts(cluster, &object("VolumeMigration", "move", json!({"vm": "db", "destination": to})))?;
    let both = json!({"node": "n2", "storageClass": "nfs"});
    let refused = [
        (json!({"vm": "db", "claim": "db", "destination": to}), "set exactly one of vm and claim"),
        (json!({"destination": to}), "set exactly one of vm and claim"),
        (json!({"vm": "db", "destination": both}), "set exactly one of node and storageClass"),
        (json!({"vm": "db", "destination": {}}), "set exactly one of node and storageClass"),
    ];
    let probing = |probe: Value| json!({"vm": "db", "destination": to, "probe": probe});
    for probe in
        [json!({"tcp": {"port": 22}}), json!({"http": {"port": 80}}), json!({"job": {"name": "a.b-1"}})]
    {
        accepts(cluster, &object("VolumeMigration", "move", probing(probe)))?;
    }
    let probes = [
        (json!({}), "set exactly one of tcp, http and job"),
        (json!({"tcp": {"port": 22}, "job": {"name": "check"}}), "set exactly one of tcp, http and job"),
        (json!({"job": {"name": "a/../b"}}), "name must be that of a CronJob"),
        (json!({"job": {"name": "-a"}}), "name must be that of a CronJob"),
    ];
    let refused = refused.into_iter().chain(probes.map(|(probe, why)| (probing(probe), why)));
    for (spec, why) in refused {
        refuses(cluster, &object("VolumeMigration", "move", spec), why)?;
    }
    accepts(cluster, &object("Evacuation", "n1", json!({"node": "n1"})))?;
    refuses(cluster, &object("Evacuation", "n1", json!({"node": ""})), "at least 1 chars long")?;
    let windowed = |window: Value| {
        object("Evacuation", "n1", json!({"node": "n1", "disruption": "Window", "window": window}))
    };
    accepts(
        cluster,
        &windowed(json!({"opens": "22:00", "closes": "04:00", "days": ["Sat"], "timeZone": "UTC"})),
    )?;
    refuses(
        cluster,
        &object("Evacuation", "n1", json!({"node": "n1", "disruption": "Window"})),
        "needs a window",
    )?;
    refuses(cluster, &windowed(json!({"opens": "24:00", "closes": "04:00"})), "should match")?;
    transitions(cluster)
}

/// Rules about what was there before.
fn transitions(cluster: &Cluster) -> Result<()> {
    let to = json!({"node": "n2"});
    let changes = [
        ("Recovery", json!({"vm": "x"}), json!({"vm": "y"}), "a Recovery stays with its VM"),
        ("Evacuation", json!({"node": "a"}), json!({"node": "b"}), "node cannot change"),
        ("Evacuation", json!({"node": "a"}), json!({"node": "a", "disk": "sda"}), "disk cannot change"),
        (
            "Evacuation",
            json!({"node": "a", "cancelled": true}),
            json!({"node": "a", "cancelled": false}),
            "stays cancelled",
        ),
        (
            "VolumeMigration",
            json!({"vm": "x", "destination": to}),
            json!({"claim": "x", "destination": to}),
            "what is moved cannot change",
        ),
        (
            "VolumeMigration",
            json!({"vm": "x", "destination": to}),
            json!({"vm": "x", "destination": {"node": "n3"}}),
            "destination cannot change",
        ),
        (
            "VolumeMigration",
            json!({"vm": "x", "destination": to, "cancelled": true}),
            json!({"vm": "x", "destination": to}),
            "stays cancelled",
        ),
    ];
    for (kind, before, after, why) in changes {
        cluster.apply(&object(kind, "x", before).to_string())?;
        let said = cluster.apply(&object(kind, "x", after.clone()).to_string());
        let Err(error) = said else { bail!("{kind} may become {after}") };
        ensure!(format!("{error:#}").contains(why), "{kind} {after}: {error:#}");
        cluster.ask(&["delete", kind, "x"])?;
    }
    Ok(())
}

/// Policies drawn at random, near the borders of every relation: the API server accepts one exactly when the
/// coordinator does. The seed is in the message of a failure.
async fn rules_say_what_the_coordinator_says(cluster: &Cluster) -> Result<()> {
    let file = Kubeconfig::read_from(cluster.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let policies: Api<RecoveryPolicy> = Api::all(Client::try_from(config)?);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let mut accepted = 0;
    for _ in 0..DRAWS {
        let spec = draw(&mut random);
        let verdict = Policy::try_from(serde_json::from_value::<PolicySpec>(spec.clone())?);
        let object = RecoveryPolicy {
            metadata: ObjectMeta { name: Some("default".to_owned()), ..ObjectMeta::default() },
            spec: serde_json::from_value::<RecoveryPolicySpec>(spec.clone())?,
            status: None,
        };
        match (verdict, policies.create(&dry_run, &object).await) {
            (Ok(_), Ok(_)) => accepted += 1,
            (Err(error), Err(Error::Api(status))) if status.is_invalid() => {
                // The API server names every broken rule, the coordinator the first: by the same words.
                let why = match error {
                    PolicyError::Relation { why, .. } => why,
                    PolicyError::NoWindow => "a policy has no window",
                    PolicyError::Range { .. } => {
                        bail!("{spec} is out of range: the draw is wrong (seed {seed})")
                    }
                };
                ensure!(status.message.contains(why), "{spec} (seed {seed}): {why}, but {}", status.message);
            }
            (verdict, answer) => {
                bail!("{spec} (seed {seed}): the coordinator says {verdict:?}, the API server {answer:?}")
            }
        }
    }
    ensure!(
        accepted > DRAWS / 20 && accepted < DRAWS,
        "{accepted} of {DRAWS} accepted: the draw tells nothing"
    );
    Ok(())
}

fn draw(random: &mut StdRng) -> Value {
    let mut spec = json!({});
    if random.random_bool(0.5) {
        spec["profile"] = json!(if random.random_bool(0.5) { "Fast" } else { "Safe" });
    }
    // Values that are near each other's, so that each relation is about as often kept as broken.
    let fields = [
        ("detection", "beatMs", 50..400),
        ("detection", "missedBeats", 2..6),
        ("detection", "declareMs", 500..8_000),
        ("detection", "probeTimeoutMs", 50..800),
        ("lease", "leaseMs", 5_000..40_000),
        ("lease", "reconnectMs", 1_000..8_000),
        ("lease", "driftPercent", 0..10),
        ("leader", "leaseMs", 8_000..16_000),
        ("leader", "renewMs", 4_000..12_000),
        ("leader", "retryMs", 1_000..6_000),
        ("storm", "burstMs", 1_000..40_000),
        ("storm", "windowMs", 1_500..60_000),
        ("fencing", "retryFirstMs", 500..4_000),
        ("fencing", "retryMaxMs", 1_500..60_000),
        ("recovery", "quarantineMs", 800..60_000),
    ];
    for (section, field, range) in fields {
        if random.random_bool(0.2) {
            spec[section][field] = json!(random.random_range(range));
        }
    }
    spec
}

/// Columns, categories, short names, `kubectl explain`, and `kubectl wait` on a condition of each kind.
fn people_see_and_wait(cluster: &Cluster) -> Result<()> {
    let to = json!({"node": "n2"});
    let condition = |kind: &str, holds: &str, reason: &str| {
        json!({
            "type": kind, "status": holds, "reason": reason, "message": "PowerOffConfirmed, HumanAttested",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let objects = [
        (
            object("NodeHealth", "n1", json!({})),
            json!({
                "state": "Healthy",
                "disks": [{"name": "sda", "grade": "Ok"}, {"name": "sdb", "grade": "Failing"}],
                "conditions": [
                    condition("Reachable", "True", "Healthy"),
                    condition("DisksHealthy", "False", "Failing"),
                    condition("ProofPossible", "True", "ProofPossible"),
                ],
            }),
            "Reachable",
        ),
        (
            object("Recovery", "db", json!({"vm": "db"})),
            json!({
                "node": "n1", "decision": "Recreate", "reasons": ["AllDisksNetwork", "Other"],
                "conditions": [condition("Decided", "True", "AllDisksNetwork")],
            }),
            "Decided",
        ),
        (
            object("RecoveryPolicy", "default", json!({"profile": "Fast"})),
            json!({"observedGeneration": 1, "conditions": [condition("Accepted", "True", "Accepted")]}),
            "Accepted",
        ),
        (
            object("VolumeMigration", "move", json!({"vm": "db", "destination": to})),
            json!({"phase": "Succeeded", "conditions": [condition("Complete", "True", "Succeeded")]}),
            "Complete",
        ),
        (
            object("Evacuation", "n1", json!({"node": "n1"})),
            json!({"complete": true, "conditions": [condition("Complete", "True", "Done")]}),
            "Complete",
        ),
    ];
    for (object, status, condition) in &objects {
        cluster.apply(&object.to_string())?;
        let (kind, name) = (text(&object["kind"])?, text(&object["metadata"]["name"])?);
        let patch = json!({"status": status}).to_string();
        cluster.ask(&["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch])?;
        let wait = format!("--for=condition={condition}");
        cluster.ask(&["wait", &wait, &format!("{kind}/{name}"), "--timeout=5s"])?;
    }
    let shows = |arguments: &[&str], words: &[&str]| -> Result<()> {
        let shown = cluster.ask(arguments)?;
        match words.iter().find(|word| !shown.contains(**word)) {
            Some(word) => bail!("kubectl {arguments:?} does not show {word}:\n{shown}"),
            None => Ok(()),
        }
    };
    // The worst grade of any disk, not that of the first.
    shows(&["get", "nh", "-o", "wide"], &["Healthy", "Failing", "PowerOffConfirmed, HumanAttested"])?;
    shows(&["get", "rcv"], &["Recreate", "AllDisksNetwork"])?;
    shows(&["get", "rpol"], &["Fast", "True"])?;
    shows(&["get", "vmig"], &["Succeeded"])?;
    shows(&["get", "evac"], &["true"])?;
    let kinds = ["nodehealth", "recovery", "recoverypolicy", "volumemigration", "evacuation"];
    shows(
        &["get", "somersault"],
        &kinds.map(|kind| format!("{kind}.somersault")).each_ref().map(String::as_str),
    )?;
    let explained = ["A fenced boot sends heartbeats", "Since when", "ENUM"];
    shows(&["explain", "nodehealth.status.state"], &[explained[0], explained[2]])?;
    shows(&["explain", "nodehealth.status"], &[explained[1]])
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": somersault_crd::API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
    });
    object["spec"] = spec;
    if matches!(kind, "Recovery" | "VolumeMigration") {
        object["metadata"]["namespace"] = json!("default");
    }
    object
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("no text")
}

fn try_to_create(cluster: &Cluster, object: &Value) -> Result<()> {
    let file = cluster.layout().root().join("object.json");
    std::fs::write(&file, object.to_string())?;
    cluster.ask(&["create", "--dry-run=server", "-f", &file.display().to_string()]).map(drop)
}

fn accepts(cluster: &Cluster, object: &Value) -> Result<()> {
    try_to_create(cluster, object).with_context(|| format!("refused: {object}"))
}

fn refuses(cluster: &Cluster, object: &Value, why: &str) -> Result<()> {
    let Err(error) = try_to_create(cluster, object) else { bail!("accepted: {object}") };
    ensure!(format!("{error:#}").contains(why), "{object} is refused, but not because {why}: {error:#}");
    Ok(())
}

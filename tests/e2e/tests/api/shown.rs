//! What is shown in the status of our objects, beside the records that are stored there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use somersault_coordinator::cluster::Snapshot;
use somersault_coordinator_core::decision::{self, DecisionKind, Question};
use somersault_coordinator_core::fencing::{FenceStage, ProofKind};
use somersault_coordinator_core::fleet::{Grade, Host, NodeReport, StorageRoot, Usage};
use somersault_coordinator_core::io::Record;
use somersault_coordinator_core::locality::ClassOverrides;
use somersault_coordinator_core::migration::Phase;
use somersault_coordinator_core::view::{
    CopyView, MigrationView, Milestone, NodeState, NodeView, RecoveryCause, RecoveryProgress, RecoveryView,
    RemovalView, View,
};

use crate::bed::{Bed, NODE};
use crate::claims::shop;
use crate::records::{
    EMPTY, EPOCH, MOVE, evacuation, fence, migration, uid_of_the_evacuation, uid_of_the_move,
};

/// An epoch in which nothing was shown yet.
const SHOWN: u64 = EPOCH + 1;

fn node(state: NodeState, message: &str, load: f64) -> NodeView {
    let root = StorageRoot {
        path: "/var/lib/volumes".into(),
        class: "local-path".into(),
        depth: 1,
        shared: false,
        size_bytes: 100,
        available_bytes: 40,
        read_only: false,
        disk: Some("vda".into()),
        listed_age: None,
    };
    let health = somersault_coordinator_core::fleet::DiskHealth {
        grade: Grade::Failing,
        reasons: vec!["PendingSectors".into()],
        model: "M".into(),
        serial: "S".into(),
    };
    let usage = Usage { allocated_bytes: 5, apparent_bytes: 9, inodes: 2, ..Usage::default() };
    let report = NodeReport {
        pods: Some("/var/lib/kubelet/pods".into()),
        address: "10.9.0.1:7443".into(),
        agent_version: "0.1.0".into(),
        roots: vec![root],
        usage: BTreeMap::from([("/var/lib/volumes/orphan".to_owned(), usage)]),
        gone: std::collections::BTreeSet::new(),
        disks: BTreeMap::from([("vda".to_owned(), health)]),
        host: Host { load1: load, ..Host::default() },
        certificate_until_s: None,
    };
    NodeView {
        state,
        since: Duration::from_secs(50),
        message: message.into(),
        boot_id: Some("b1".into()),
        proofs_possible: vec![ProofKind::PowerOffConfirmed, ProofKind::HumanAttested],
        fence_agent: None,
        proof: None,
        timeline: vec![(Milestone::LastBeat, Duration::from_millis(1_500))],
        report: Some(report),
        fence: None,
    }
}

fn view(node: NodeView) -> View {
    View { nodes: BTreeMap::from([(NODE.into(), node)]), ..View::default() }
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

async fn version(bed: &Bed, kind: &str, name: &str) -> Result<Value> {
    Ok(bed.get(kind, name).await?["metadata"]["resourceVersion"].clone())
}

pub async fn beside_records(bed: &Bed) -> Result<()> {
    let stored = bed.get("NodeHealth", NODE).await?["status"]["fence"].clone();
    ensure!(stored.is_object(), "there is no record to leave alone");
    let snapshot = Snapshot::default();
    let publish = async |node: NodeView, snapshot: &Snapshot| {
        bed.writer.publish(&view(node), snapshot, SHOWN).await?;
        bed.get("NodeHealth", NODE).await
    };
    let mut fenced = node(NodeState::Fenced, "proven", 0.5);
    fenced.proof = Some(ProofKind::HumanAttested);
    let shown = publish(fenced, &snapshot).await?;
    let status = &shown["status"];
    ensure!(status["fence"] == stored, "the record was changed: {}", status["fence"]);
    ensure!(status["state"] == "Fenced" && status["proof"] == "HumanAttested", "{status}");
    ensure!(status["disks"][0]["grade"] == "Failing" && status["host"]["load1"] == 0.5, "{status}");
    ensure!(condition(&shown, "Reachable")["status"] == "False", "{status}");
    ensure!(condition(&shown, "DisksHealthy")["observedGeneration"] == 1, "{status}");
    let since = condition(&shown, "Reachable")["lastTransitionTime"].clone();

    // What is not shown any more goes, and a condition that stays what it was keeps its time.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let shown = publish(node(NodeState::AwaitingProof, "waits", 0.5), &snapshot).await?;
    ensure!(shown["status"].get("proof").is_none(), "the proof is still shown: {}", shown["status"]["proof"]);
    ensure!(condition(&shown, "Reachable")["message"] == "waits", "{shown}");
    ensure!(condition(&shown, "Reachable")["lastTransitionTime"] == since, "{shown}");
    let shown = publish(node(NodeState::Healthy, "back", 0.5), &snapshot).await?;
    ensure!(condition(&shown, "Reachable")["status"] == "True", "{shown}");
    ensure!(condition(&shown, "Reachable")["lastTransitionTime"] != since, "{shown}");

    // The same, or only other numbers: not written. Another generation: written.
    let before = version(bed, "NodeHealth", NODE).await?;
    publish(node(NodeState::Healthy, "back", 0.5), &snapshot).await?;
    publish(node(NodeState::Healthy, "back", 7.5), &snapshot).await?;
    ensure!(version(bed, "NodeHealth", NODE).await? == before, "written without need");
    let id = somersault_coordinator::cluster::manifest::ObjectId::cluster("NodeHealth", NODE);
    let later = Snapshot { generations: BTreeMap::from([(id, 3)]), ..Snapshot::default() };
    let shown = publish(node(NodeState::Healthy, "back", 7.5), &later).await?;
    ensure!(shown["status"]["observedGeneration"] == 3 && shown["status"]["host"]["load1"] == 7.5, "{shown}");

    // The next leader knows nothing of what is shown, and changes nothing by showing the same.
    let before = bed.get("NodeHealth", NODE).await?["status"].clone();
    let next = bed.another_writer();
    next.publish(&view(node(NodeState::Healthy, "back", 7.5)), &later, SHOWN + 1).await?;
    let mut after = bed.get("NodeHealth", NODE).await?["status"].clone();
    after["since"] = before["since"].clone();
    after["timeline"] = before["timeline"].clone();
    ensure!(after == before, "{before}\nbecame\n{after}");

    // A leader that never heard the node has no figures of it; one that somebody else has written stays, and must not keep the
    // rest from being written.
    bed.patch_status("NodeHealth", NODE, json!({ "host": { "load1": 9.5 } })).await?;
    let unheard = NodeView { report: None, ..node(NodeState::AwaitingProof, "unheard", 0.0) };
    next.publish(&view(unheard), &later, SHOWN + 1).await?;
    let shown = bed.get("NodeHealth", NODE).await?;
    ensure!(shown["status"]["message"] == "unheard" && shown["status"]["disks"] == json!([]), "{shown}");
    managed_apart(bed).await
}

/// Each of our two field managers owns its own fields.
async fn managed_apart(bed: &Bed) -> Result<()> {
    let object = bed.get("NodeHealth", NODE).await?;
    let fields = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let of = |manager: &str, operation: &str| {
        fields
            .iter()
            .find(|f| f["manager"] == manager && f["operation"] == operation)
            .cloned()
            .unwrap_or_default()
    };
    let shown = of("somersault", "Apply")["fieldsV1"]["f:status"].clone();
    ensure!(shown.get("f:state").is_some() && shown.get("f:conditions").is_some(), "{shown}");
    ensure!(shown.get("f:fence").is_none(), "the display owns the record");
    Ok(())
}

/// Records and displays of one object, written at the same time: neither is lost.
pub async fn while_records_are_stored(bed: &Bed) -> Result<()> {
    bed.writer.records().await?;
    let states = [NodeState::Suspect, NodeState::AwaitingProof, NodeState::Fenced, NodeState::Recovering];
    let steps = [
        FenceStage::Declared,
        FenceStage::PowerOrdered,
        FenceStage::Fenced { proof: ProofKind::PowerOffConfirmed },
        FenceStage::Closed,
    ];
    let shows = async {
        for (number, state) in states.into_iter().cycle().take(40).enumerate() {
            let view = view(node(state, &format!("number {number}"), 0.5));
            bed.writer.publish(&view, &Snapshot::default(), SHOWN).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let commits = async {
        for stage in steps.into_iter().cycle().take(40) {
            bed.writer.commit(&fence(EPOCH + 2, stage), EPOCH + 2, EPOCH + 2).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    };
    tokio::try_join!(shows, commits)?;
    let last = bed.get("NodeHealth", NODE).await?["status"].clone();
    ensure!(last["state"] == "Recovering" && last["message"] == "number 39", "{last}");
    ensure!(last["fence"]["stage"] == "Closed" && last["fence"]["epoch"] == EPOCH + 2, "{last}");
    Ok(())
}

pub async fn recoveries(bed: &Bed) -> Result<()> {
    let publish = async |view: &View| {
        bed.writer.publish(view, &Snapshot::default(), SHOWN).await?;
        bed.get("Recovery", "db").await
    };
    let mut incident = view(node(NodeState::AwaitingProof, "silent", 0.5));
    let fleet = somersault_coordinator_core::fleet::Fleet::default();
    let question = Question { dead: [NODE.into()].into(), ..Question::default() };
    let mut decision = decision::decide(&fleet, &ClassOverrides::default(), &shop("db"), &question);
    decision.kind = DecisionKind::ManualRecovery;
    let recovery = RecoveryView {
        cause: RecoveryCause::NodeDied,
        node: Some(NODE.into()),
        decision,
        progress: RecoveryProgress::NeedsPerson,
        proof: None,
        ended: false,
        runbook: Some("# Steps".into()),
    };
    incident.recoveries.insert(shop("db"), recovery.clone());
    let shown = publish(&incident).await?;
    ensure!(shown["spec"]["vm"] == "db" && shown["status"]["runbook"] == "# Steps", "{shown}");
    ensure!(condition(&shown, "Ended")["status"] == "False", "{shown}");

    // A new leader knows nothing yet: what is shown stays. Once the node is healthy, the incident is over.
    let mut over = incident.clone();
    over.recoveries.clear();
    let next = bed.another_writer();
    next.publish(&over, &Snapshot::default(), SHOWN + 2).await?;
    ensure!(condition(&bed.get("Recovery", "db").await?, "Ended")["status"] == "False", "ended too early");
    over.nodes.insert(NODE.into(), node(NodeState::Healthy, "back", 0.5));
    next.publish(&over, &Snapshot::default(), SHOWN + 2).await?;
    let shown = bed.get("Recovery", "db").await?;
    ensure!(condition(&shown, "Ended")["status"] == "True", "{shown}");
    ensure!(shown["status"]["node"] == NODE, "what happened is forgotten: {shown}");
    let runbook = shown["status"]["runbook"].as_str().unwrap_or_default();
    ensure!(runbook.contains("It is over"), "steps that hold no more: {shown}");
    let before = version(bed, "Recovery", "db").await?;
    next.publish(&over, &Snapshot::default(), SHOWN + 2).await?;
    ensure!(version(bed, "Recovery", "db").await? == before, "ended again and again");
    bed.cluster.ask(&["-n", "shop", "wait", "--for=condition=Ended", "recovery/db", "--timeout=5s"])?;

    // The next incident of the same VM.
    next.publish(&incident, &Snapshot::default(), SHOWN + 2).await?;
    let shown = bed.get("Recovery", "db").await?;
    ensure!(condition(&shown, "Ended")["status"] == "False", "{shown}");
    let kinds = shown["status"]["conditions"].as_array().map(Vec::len);
    ensure!(kinds == Some(3), "{shown}");
    // Removed by a person, it is made again with the next change.
    bed.delete("Recovery", "db").await?;
    let mut acting = recovery;
    acting.progress = RecoveryProgress::Acting;
    incident.recoveries.insert(shop("db"), acting);
    next.publish(&incident, &Snapshot::default(), SHOWN + 2).await?;
    next.publish(&incident, &Snapshot::default(), SHOWN + 2).await?;
    ensure!(bed.get("Recovery", "db").await?["status"]["progress"] == "Acting", "it is not shown any more");
    Ok(())
}

pub async fn migrations_and_evacuations(bed: &Bed) -> Result<()> {
    bed.writer.records().await?;
    let record = migration(&uid_of_the_move(bed).await?, EPOCH + 2, Phase::PreCopying);
    let plan = evacuation(&uid_of_the_evacuation(bed).await?, EPOCH + 2, false);
    for record in [Record::Migration(Box::new(record.clone())), Record::Evacuation(plan.clone())] {
        bed.writer.commit(&record, EPOCH + 2, EPOCH + 2).await?;
    }
    let shown = MigrationView {
        record: record.clone(),
        copies: BTreeMap::from([(
            shop("web-root"),
            CopyView { done_bytes: 5, total_bytes: 10, rate_bytes_per_s: 2 },
        )]),
        waits_for_word: false,
        removal: Some(RemovalView::UnderWay),
    };
    let mut gone = shown.clone();
    gone.record.key = shop("gone");
    let view = View {
        migrations: BTreeMap::from([(shop(MOVE), shown), (shop("gone"), gone)]),
        evacuations: BTreeMap::from([(EMPTY.to_owned(), plan)]),
        ..View::default()
    };
    bed.writer.publish(&view, &Snapshot::default(), SHOWN).await?;
    let moved = bed.get("VolumeMigration", MOVE).await?;
    let expected = json!({
        "doneBytes": 5, "totalBytes": 10, "rateBytesPerSecond": 2, "secondsLeft": 2,
        "volumes": [{ "claim": "web-root", "doneBytes": 5, "totalBytes": 10, "rateBytesPerSecond": 2 }],
    });
    ensure!(moved["status"]["progress"] == expected, "{moved}");
    ensure!(moved["status"]["phase"] == "PreCopying" && moved["status"]["epoch"] == EPOCH + 2, "{moved}");
    ensure!(condition(&moved, "Complete")["status"] == "False", "{moved}");
    ensure!(condition(&moved, "Succeeded")["status"] == "False", "{moved}");
    ensure!(condition(&moved, "OldVolumesRemoved")["reason"] == "UnderWay", "{moved}");
    ensure!(bed.get("VolumeMigration", "gone").await?.is_null(), "made for nobody");
    let emptied = bed.get("Evacuation", EMPTY).await?;
    ensure!(emptied["status"]["plan"][0]["bytes"] == 7, "the record was lost: {emptied}");
    ensure!(condition(&emptied, "Complete")["reason"] == "InProgress", "{emptied}");
    // Both records are still what the core last stored.
    let records = bed.writer.records().await?;
    ensure!(records.contains(&Record::Migration(Box::new(record))), "{records:?}");
    Ok(())
}

/// What a leader of a large cluster begins with, and what it costs afterwards.
pub async fn a_thousand_nodes(bed: &Bed) -> Result<()> {
    const NODES: usize = 1_000;
    let views = |load: f64| View {
        nodes: (0..NODES)
            .map(|number| {
                (format!("node-{number:04}").as_str().into(), node(NodeState::Healthy, "fine", load))
            })
            .collect(),
        ..View::default()
    };
    let (snapshot, epoch) = (Snapshot::default(), SHOWN + 3);
    let began = Instant::now();
    let mut rounds = 0;
    while bed.shown_count().await? < NODES + 1 {
        bed.writer.publish(&views(0.5), &snapshot, epoch).await?;
        rounds += 1;
        ensure!(rounds < 100, "{} are shown after {rounds} rounds", bed.shown_count().await?);
    }
    let first = began.elapsed();
    // One of them changes its state while the numbers of all move.
    let mut one = views(1.5);
    one.nodes.insert("node-0500".into(), node(NodeState::Suspect, "silent", 1.5));
    let began = Instant::now();
    bed.writer.publish(&one, &snapshot, epoch).await?;
    let urgent = began.elapsed();
    let shown = bed.get("NodeHealth", "node-0500").await?;
    ensure!(shown["status"]["state"] == "Suspect", "{shown}");
    let others = bed.get("NodeHealth", "node-0501").await?;
    ensure!(others["status"]["host"]["load1"] == 0.5, "numbers were written at once");
    let began = Instant::now();
    bed.writer.publish(&one, &snapshot, epoch).await?;
    let idle = began.elapsed();
    eprintln!(
        "   {NODES} statuses first shown in {first:.1?} ({rounds} rounds), one change among them in {urgent:.1?}, \
         none in {idle:.1?}"
    );
    Ok(())
}

impl Bed {
    async fn shown_count(&self) -> Result<usize> {
        let all = self.api("NodeHealth").list(&kube::api::ListParams::default()).await?;
        let shown = all.items.iter().filter(|object| object.data["status"]["message"].is_string());
        Ok(shown.count())
    }
}

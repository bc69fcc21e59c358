//! What the directory cluster shows to people: states of nodes, recoveries, progress and Events.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use somersault_coordinator::cluster::Cluster;
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::coordinator::Coordinator;
use somersault_coordinator_core::decision::{self, DecisionKind, Question};
use somersault_coordinator_core::fencing::agents::{FenceAgentView, FencingState};
use somersault_coordinator_core::fencing::{FenceStage, ProofKind};
use somersault_coordinator_core::fleet::{
    DiskHealth, DiskImage, Grade, Host, NodeReport, StorageRoot, Usage,
};
use somersault_coordinator_core::io::{Effect, Input, Notice, Record, Severity, Subject};
use somersault_coordinator_core::locality::ClassOverrides;
use somersault_coordinator_core::migration::{MigrationRecord, Phase};
use somersault_coordinator_core::policy::Policy;
use somersault_coordinator_core::view::{
    CopyView, MigrationView, Milestone, NodeState, NodeView, RecoveryCause, RecoveryProgress, RecoveryView,
    View,
};

use super::{World, fence, migration, migration_id, node_health, shop};

/// A view of one node in this state.
pub fn view_of(state: NodeState) -> View {
    let root = StorageRoot {
        path: "/var/lib/volumes".into(),
        class: "local-path".into(),
        depth: 1,
        shared: false,
        size_bytes: 100,
        available_bytes: 40,
        read_only: false,
        disk: Some("vda".into()),
        listed_age: Some(Duration::from_secs(3)),
    };
    let health = DiskHealth {
        grade: Grade::Failing,
        reasons: vec!["PendingSectors".into()],
        model: "M".into(),
        serial: "S".into(),
    };
    let usage = Usage { allocated_bytes: 5, apparent_bytes: 9, inodes: 2, disk_image: DiskImage::Present };
    let report = NodeReport {
        pods: Some("/var/lib/kubelet/pods".into()),
        address: "10.9.0.1:7443".into(),
        agent_version: "0.1.0".into(),
        certificate_until_s: Some(1_800_000_000),
        roots: vec![root],
        usage: BTreeMap::from([
            ("/var/lib/volumes/pv-state".to_owned(), usage),
            ("/var/lib/volumes/orphan".to_owned(), usage),
        ]),
        gone: std::collections::BTreeSet::new(),
        disks: BTreeMap::from([("vda".to_owned(), health)]),
        host: Host { load1: 0.5, ..Host::default() },
    };
    let node = NodeView {
        state,
        since: Duration::from_secs(50),
        message: "as it is".into(),
        boot_id: Some("b1".into()),
        proofs_possible: vec![ProofKind::PowerOffConfirmed, ProofKind::HumanAttested],
        fence_agent: Some(FenceAgentView {
            state: FencingState::Answers,
            answered: Some(Duration::from_secs(1)),
            change_refused: None,
        }),
        proof: None,
        timeline: vec![
            (Milestone::LastBeat, Duration::from_millis(1_500)),
            (Milestone::Declared, Duration::from_secs(2)),
        ],
        report: Some(report),
        fence: None,
    };
    View { nodes: BTreeMap::from([("n1".into(), node)]), ..View::default() }
}

#[tokio::test]
async fn a_nodes_state_is_shown_and_its_record_stays() {
    let (world, epoch) = World::leading().await;
    world.directory.commit(&fence(epoch, FenceStage::PowerOrdered), epoch).await.unwrap();
    world.directory.publish(&view_of(NodeState::AwaitingProof)).await.unwrap();
    let status = world.get(&node_health("n1"))["status"].clone();
    assert_eq!(
        (&status["state"], &status["fence"]["stage"]),
        (&json!("AwaitingProof"), &json!("PowerOrdered"))
    );
    assert_eq!(status["agent"]["certificateNotAfter"], json!("2027-01-15T08:00:00Z"));
    assert_eq!(status["proofsPossible"], json!(["PowerOffConfirmed", "HumanAttested"]));
    assert_eq!(status["disks"][0]["grade"], "Failing");
    assert_eq!(status["roots"][0]["listedAgeMs"], 3_000);
    assert_eq!(status["volumes"][0]["diskImage"], "Present");
    let volumes = status["volumes"].as_array().unwrap();
    assert!(volumes[0].get("volume").is_none(), "{}", volumes[0]);
    assert_eq!(
        (&volumes[1]["volume"], &volumes[1]["claim"]),
        (&json!("pv-state"), &json!("shop/persistent-state-for-db-x7k2p"))
    );
    let stamp = |at: &Value| at.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let apart = stamp(&status["timeline"][1]["at"]).duration_since(stamp(&status["timeline"][0]["at"]));
    assert_eq!(apart.as_millis(), 500);
    let age = jiff::Timestamp::now().duration_since(stamp(&status["since"]));
    assert!(age.is_positive(), "a stamp in the future: {age:?}");
    let condition = |kind: &str| {
        let all = status["conditions"].as_array().unwrap().clone();
        all.into_iter().find(|condition| condition["type"] == kind).unwrap()["status"].clone()
    };
    assert_eq!((condition("Reachable"), condition("DisksHealthy")), (json!("False"), json!("False")));
    assert_eq!(condition("ProofPossible"), "True");
    assert_eq!(condition("FencingAnswers"), "True");
}

#[tokio::test]
async fn status_is_written_only_when_it_changed_and_numbers_seldom() {
    let (world, _) = World::leading().await;
    let version = || world.get(&node_health("n1"))["metadata"]["resourceVersion"].clone();
    let mut view = view_of(NodeState::Healthy);
    world.directory.publish(&view).await.unwrap();
    let first = version();
    world.directory.publish(&view).await.unwrap();
    let node = view.nodes.get_mut(&"n1".into()).unwrap();
    node.report.as_mut().unwrap().host.load1 = 3.0;
    node.report.as_mut().unwrap().usage.values_mut().for_each(|usage| usage.allocated_bytes += 1);
    world.directory.publish(&view).await.unwrap();
    assert_eq!(version(), first, "numbers were written at once");
    view.nodes.get_mut(&"n1".into()).unwrap().state = NodeState::Suspect;
    world.directory.publish(&view).await.unwrap();
    assert_ne!(version(), first, "a change of state was not written at once");
    assert_eq!(world.get(&node_health("n1"))["status"]["host"]["load1"], 3.0);
}

#[tokio::test]
async fn what_somebody_deletes_is_made_again_with_its_record() {
    let (world, epoch) = World::leading().await;
    let view = view_of(NodeState::AwaitingProof);
    let id = node_health("n1");
    world.directory.commit(&fence(epoch, FenceStage::PowerOrdered), epoch).await.unwrap();
    world.directory.publish(&view).await.unwrap();
    let uid = world.get(&id)["metadata"]["uid"].as_str().unwrap().to_owned();
    world.until(|snapshot| snapshot.ours.get(&id) == Some(&uid)).await;
    world.directory.publish(&view).await.unwrap();
    world.directory.store().delete(&id, None).unwrap();
    world.until(|snapshot| !snapshot.ours.contains_key(&id)).await;
    world.directory.publish(&view).await.unwrap();
    let status = world.get(&id)["status"].clone();
    assert_eq!(
        (&status["state"], &status["fence"]["stage"]),
        (&json!("AwaitingProof"), &json!("PowerOrdered"))
    );
    world.directory.commit(&fence(epoch, FenceStage::Declared), epoch).await.unwrap();
}

#[tokio::test]
async fn recoveries_are_shown_and_end_with_their_incident() {
    let (world, _) = World::leading().await;
    let mut view = view_of(NodeState::AwaitingProof);
    let fleet = world.directory.snapshots().borrow().fleet.clone();
    let question = Question { dead: ["n1".into()].into(), ..Question::default() };
    let decision = decision::decide(&fleet, &ClassOverrides::default(), &shop("db"), &question);
    assert_ne!(decision.kind, DecisionKind::NothingToDo);
    let recovery = RecoveryView {
        cause: RecoveryCause::NodeDied,
        node: Some("n1".into()),
        decision,
        progress: RecoveryProgress::AwaitingProof,
        proof: Some(ProofKind::HumanAttested),
        ended: false,
        runbook: Some("# Steps".into()),
    };
    view.recoveries.insert(shop("db"), recovery);
    world.directory.publish(&view).await.unwrap();
    let id = ObjectId::namespaced("Recovery", &shop("db"));
    let shown = world.get(&id);
    assert_eq!((&shown["spec"]["vm"], &shown["status"]["node"]), (&json!("db"), &json!("n1")));
    assert_eq!(
        (&shown["status"]["progress"], &shown["status"]["runbook"]),
        (&json!("AwaitingProof"), &json!("# Steps"))
    );
    assert!(!shown["status"]["reasons"].as_array().unwrap().is_empty());
    assert_eq!(shown["status"]["proof"], "HumanAttested", "its own, whatever its node shows");
    let ended = || {
        let conditions = world.get(&id)["status"]["conditions"].as_array().unwrap().clone();
        let ended = conditions.into_iter().find(|condition| condition["type"] == "Ended").unwrap();
        ended["status"] == "True"
    };
    // A new leader knows nothing yet: what is shown stays.
    view.recoveries.clear();
    world.directory.publish(&view).await.unwrap();
    assert!(!ended());
    view.nodes.get_mut(&"n1".into()).unwrap().state = NodeState::Healthy;
    world.directory.publish(&view).await.unwrap();
    assert!(ended());
    let runbook = world.get(&id)["status"]["runbook"].clone();
    assert!(runbook.as_str().unwrap().contains("It is over"), "{runbook}");
    let version = world.get(&id)["metadata"]["resourceVersion"].clone();
    world.directory.publish(&view).await.unwrap();
    assert_eq!(world.get(&id)["metadata"]["resourceVersion"], version);
}

/// From a claim that breaks in the cluster to the Recovery and the Event in it, with the whole core in between.
#[tokio::test]
async fn broken_storage_becomes_a_recovery_and_a_sound_one_ends_it() {
    let (world, epoch) = World::leading().await;
    let mut coordinator = Coordinator::new(Policy::default());
    let mut now = Duration::from_secs(1_000);
    let fleet = || world.directory.snapshots().borrow().fleet.clone();
    let _ = coordinator.step(now, Input::Fleet(Box::new((*fleet()).clone())));
    let _ = coordinator.step(now, Input::Leading { epoch, records: Vec::new(), recoveries: Vec::new() });
    // Whatever the fixture has, as long as time goes by in it.
    let mut settle = async |coordinator: &mut Coordinator| {
        let mut told = Vec::new();
        for _ in 0..4 {
            now += Duration::from_secs(6);
            let fleet = fleet();
            told.extend(coordinator.step(now, Input::Fleet(Box::new((*fleet).clone()))));
        }
        for effect in &told {
            if let Effect::Notify(notice @ Notice { subject: Subject::Vm(_), .. }) = effect {
                world.directory.event(notice).await.unwrap();
            }
        }
        world.directory.publish(&coordinator.view()).await.unwrap();
    };
    settle(&mut coordinator).await;
    let id = ObjectId::namespaced("Recovery", &shop("web"));
    assert!(world.get(&id).is_null(), "{}", world.get(&id));

    let volume = ObjectId::cluster("PersistentVolume", "pv-web");
    let kept = world.get(&volume);
    assert!(!kept.is_null(), "the fixture has no volume of web");
    world.directory.store().delete(&volume, None).unwrap();
    world.until(|snapshot| !snapshot.fleet.volumes.contains_key(&"pv-web".into())).await;
    settle(&mut coordinator).await;
    let status = world.get(&id)["status"].clone();
    assert_eq!(
        (&status["cause"], &status["progress"], &status["reasons"][0]),
        (&json!("StorageFailed"), &json!("NeedsPerson"), &json!("VolumeMissing"))
    );
    assert!(status["runbook"].as_str().unwrap().contains("no node of it died"), "{status}");
    let said = |reason: &str| {
        let events = world.directory.store().list("Event").unwrap();
        events.iter().filter(|event| event["reason"] == reason).count()
    };
    assert_eq!((said("StorageFailed"), said("StorageSound")), (1, 0));

    world.directory.store().create(kept).unwrap();
    world.until(|snapshot| snapshot.fleet.volumes.contains_key(&"pv-web".into())).await;
    settle(&mut coordinator).await;
    let status = world.get(&id)["status"].clone();
    assert_eq!(status["progress"], "Recovered");
    let conditions = status["conditions"].as_array().unwrap();
    let ended = conditions.iter().find(|condition| condition["type"] == "Ended").unwrap();
    assert_eq!((&ended["status"], &ended["reason"]), (&json!("True"), &json!("StorageSound")));
    assert_eq!(said("StorageSound"), 1);
}

#[tokio::test]
async fn what_an_earlier_leader_told_of_storage_stays_until_more_is_known() {
    let (world, _) = World::leading().await;
    let mut view = view_of(NodeState::Healthy);
    let fleet = world.directory.snapshots().borrow().fleet.clone();
    let decision = decision::decide(&fleet, &ClassOverrides::default(), &shop("db"), &Question::default());
    let recovery = RecoveryView {
        cause: RecoveryCause::StorageFailed,
        node: None,
        decision,
        progress: RecoveryProgress::NeedsPerson,
        proof: None,
        ended: false,
        runbook: None,
    };
    view.recoveries.insert(shop("db"), recovery);
    world.directory.publish(&view).await.unwrap();
    let id = ObjectId::namespaced("Recovery", &shop("db"));
    let ended = || {
        let conditions = world.get(&id)["status"]["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|condition| condition["type"] == "Ended").unwrap()["status"].clone()
    };
    assert_eq!((&world.get(&id)["status"]["node"], ended()), (&json!(""), json!("False")));
    view.recoveries.clear();
    for in_doubt in [None, Some([shop("db")].into())] {
        view.storage_in_doubt = in_doubt;
        world.directory.publish(&view).await.unwrap();
        assert_eq!(ended(), "False");
    }
    view.storage_in_doubt = Some([shop("web")].into());
    world.directory.publish(&view).await.unwrap();
    assert_eq!(ended(), "True");
}

#[tokio::test]
async fn progress_of_a_migration_is_shown_and_not_of_one_that_is_gone() {
    let (world, epoch) = World::leading().await;
    let record = migration(epoch, Phase::PreCopying);
    world.directory.commit(&Record::Migration(Box::new(record.clone())), epoch).await.unwrap();
    let shown = MigrationView {
        record: record.clone(),
        copies: BTreeMap::from([(
            shop("web-root"),
            CopyView { done_bytes: 5, total_bytes: 10, rate_bytes_per_s: 2 },
        )]),
        waits_for_word: false,
        removal: None,
    };
    let gone = MigrationView { record: MigrationRecord { key: shop("gone"), ..record }, ..shown.clone() };
    let migrations = BTreeMap::from([(shop("move-web"), shown), (shop("gone"), gone)]);
    world.directory.publish(&View { migrations, ..View::default() }).await.unwrap();
    let status = world.get(&migration_id())["status"].clone();
    assert_eq!(
        status["progress"],
        json!({
            "doneBytes": 5, "totalBytes": 10, "rateBytesPerSecond": 2, "secondsLeft": 2,
            "volumes": [{ "claim": "web-root", "doneBytes": 5, "totalBytes": 10, "rateBytesPerSecond": 2 }],
        })
    );
    assert_eq!(status["phase"], "PreCopying");
    assert!(world.get(&ObjectId::namespaced("VolumeMigration", &shop("gone"))).is_null());
}

#[tokio::test]
async fn events_count_up_and_only_the_newest_are_kept() {
    let (world, _) = World::leading().await;
    let notice = |reason: &'static str, message: &str| Notice {
        severity: Severity::Warning,
        subject: Subject::Vm(shop("web")),
        reason,
        message: message.to_owned(),
    };
    for _ in 0..3 {
        world.directory.event(&notice("Declared", "node n2 is silent")).await.unwrap();
    }
    world.directory.event(&notice("Declared", &"ä".repeat(2_000))).await.unwrap();
    let events = world.directory.store().list("Event").unwrap();
    assert_eq!(events.len(), 2);
    let counted = events.iter().find(|event| event["count"] == 3).expect("no event was counted up");
    assert_eq!((&counted["type"], &counted["involvedObject"]["name"]), (&json!("Warning"), &json!("web")));
    assert_eq!(counted["metadata"]["namespace"], "shop");
    assert!(events.iter().all(|event| event["message"].as_str().unwrap().len() <= 1_024));
    // Old ones of a busy past, each older than the two above.
    for number in 0..600 {
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": { "name": format!("old-{number:03}"), "namespace": "default" },
            "source": { "component": "somersault" },
            "lastTimestamp": format!("2020-01-01T{:02}:{:02}:00Z", number / 60, number % 60),
        });
        let path = world.folder.path().join(format!("events/old-{number}.json"));
        fs::write(path, event.to_string()).unwrap();
    }
    world.directory.event(&notice("Fenced", "node n2 is off")).await.unwrap();
    let names: Vec<_> = world.directory.store().list("Event").unwrap();
    let names: Vec<_> =
        names.iter().map(|event| event["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names.len(), 500);
    assert!(!names.contains(&"old-000".to_owned()) && names.contains(&"old-599".to_owned()));
    assert_eq!(names.iter().filter(|name| name.starts_with("web.")).count(), 3);
}

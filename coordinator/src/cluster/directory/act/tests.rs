//! Every action done, done again, and refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use somersault_coordinator_core::fleet::{OUT_OF_SERVICE_TAINT, Owner, SavedStart, VolumeMode};
use somersault_coordinator_core::io::{ClaimTemplate, NewVolume};
use somersault_coordinator_core::migration::{Destination, MigrationSpec, Unreadable, WhichDisks};
use somersault_coordinator_core::names::VolumeName;
use tempfile::TempDir;

use super::*;
use crate::cluster::directory::Store;
use crate::cluster::manifest::PROVISIONED_BY;

/// A copy of the fixtures, to be changed.
struct World {
    _folder: TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cluster"), folder.path());
        let store = Store::open(folder.path()).unwrap();
        Self { _folder: folder, store }
    }

    fn act(&self, action: &Action) -> Result<(), ClusterError> {
        self.store.transaction(|tx| perform(tx, action))
    }

    /// Does it, and does it again: the second time nothing may change.
    fn twice(&self, action: &Action) {
        self.act(action).unwrap();
        let once = self.all();
        self.act(action).unwrap();
        assert!(self.all() == once, "{action:?} is not idempotent");
    }

    fn refused(&self, action: &Action, why: &str) {
        let before = self.all();
        let error = self.act(action).unwrap_err().to_string();
        assert!(error.contains(why), "{error:?} does not say {why:?}");
        assert!(self.all() == before, "a refused action changed something");
    }

    fn all(&self) -> Vec<Value> {
        self.store.objects().unwrap().iter().map(|(_, entry)| entry.value.clone()).collect()
    }

    fn get(&self, kind: &str, name: &str) -> Value {
        let cluster = ObjectId::cluster(kind, name);
        let found = self.store.get(&cluster).unwrap();
        found
            .or_else(|| self.store.get(&ObjectId::namespaced(kind, &shop(name))).unwrap())
            .unwrap_or(Value::Null)
    }

    fn edit(&self, kind: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let id = ObjectId::of(&self.get(kind, name)).unwrap();
        let done = self.store.patch(&id, |object| {
            change(object);
            Ok(())
        });
        done.unwrap();
    }

    fn remove_pods_of(&self, claim: &str) {
        for pod in self.store.list("Pod").unwrap() {
            if pod["spec"]["volumes"].to_string().contains(&format!("\"{claim}\"")) {
                self.store.delete(&ObjectId::of(&pod).unwrap(), None).unwrap();
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn shop(name: &str) -> Key {
    Key::new("shop", name)
}

fn new_volume(class: &str, node: Option<&str>) -> NewVolume {
    NewVolume {
        name: "pv-new".into(),
        class: class.into(),
        node: node.map(NodeName::from),
        path: "/srv/volumes/pv-new".into(),
        capacity_bytes: 10 << 30,
        access_modes: vec!["ReadWriteOnce".into()],
        mode: VolumeMode::Filesystem,
        claim: shop("web-root"),
    }
}

fn template() -> ClaimTemplate {
    let annotations = [
        ("example.org/team", "web"),
        ("pv.kubernetes.io/bound-by-controller", "yes"),
        ("volume.kubernetes.io/selected-node", "n2"),
        ("volume.beta.kubernetes.io/storage-provisioner", "x"),
        ("cdi.kubevirt.io/storage.import.source", "http"),
    ];
    ClaimTemplate {
        class: "local-path".into(),
        requested_bytes: 10 << 30,
        access_modes: vec!["ReadWriteOnce".into()],
        mode: VolumeMode::Filesystem,
        labels: BTreeMap::from([("app".into(), "web".into())]),
        annotations: annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

fn create_claim() -> Action {
    Action::CreateClaim { claim: shop("web-root"), template: template(), volume: "pv-new".into() }
}

fn delete_claim() -> Action {
    Action::DeleteClaim { claim: shop("web-root"), uid: "c-web-root".into() }
}

#[test]
fn taint_and_untaint_touch_no_other_taint() {
    let world = World::new();
    for node in ["n1", "n2"] {
        let others = world.get("Node", node)["spec"].clone();
        world.twice(&Action::Taint { node: node.into() });
        let taints = world.get("Node", node)["spec"]["taints"].clone();
        let ours: Vec<_> = taints.as_array().unwrap().iter().filter(|taint| UNREACHABLE.is(taint)).collect();
        assert_eq!(ours.len(), 1);
        world.twice(&Action::Untaint { node: node.into() });
        assert_eq!(world.get("Node", node)["spec"], others);
    }
    world.refused(&Action::Taint { node: "gone".into() }, "does not exist");
    world.twice(&Action::Untaint { node: "gone".into() });
}

#[test]
fn out_of_service_is_ours_by_its_value_and_somebody_elses_stays() {
    let world = World::new();
    let set = || world.store.transaction(|tx| set_taint(tx, &"n1".into(), OUT_OF_SERVICE));
    let before = world.get("Node", "n1")["spec"].clone();
    set().unwrap();
    set().unwrap();
    let snapshot = super::super::snapshot(&world.store.objects().unwrap());
    assert!(snapshot.fleet.nodes[&"n1".into()].is_out_of_service_by_us());
    world.twice(&Action::InService { node: "n1".into() });
    assert_eq!(world.get("Node", "n1")["spec"], before);
    world.edit("Node", "n1", |node| {
        let taint = json!({ "key": OUT_OF_SERVICE_TAINT, "value": "nodeshutdown", "effect": "NoExecute" });
        node["spec"]["taints"] = json!([taint]);
    });
    let theirs = world.get("Node", "n1")["spec"].clone();
    set().unwrap();
    world.twice(&Action::InService { node: "n1".into() });
    assert_eq!(world.get("Node", "n1")["spec"], theirs);
}

#[test]
fn an_attachment_goes_only_from_the_proven_node_and_with_its_uid() {
    let world = World::new();
    let attachment = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttachment",
        "metadata": { "name": "csi-1" },
        "spec": { "attacher": "rbd.csi.ceph.com", "nodeName": "n2", "source": { "persistentVolumeName": "pv-db" } },
        "status": { "attached": true },
    });
    world.store.transaction(|tx| tx.create_with_uid(attachment, "a-1").map(|_| ())).unwrap();
    let fleet = super::super::snapshot(&world.store.objects().unwrap()).fleet;
    let read = &fleet.attachments["csi-1"];
    assert_eq!((read.node.as_str(), read.volume.as_ref()), ("n2", Some(&"pv-db".into())));
    assert!(read.attached && !read.deleting);
    let delete = |uid: &str, node: &str| {
        world.store.transaction(|tx| delete_attachment(tx, "csi-1", &uid.into(), &node.into()))
    };
    assert!(matches!(delete("a-1", "n1"), Err(ClusterError::Refused { .. })));
    assert!(matches!(delete("a-2", "n2"), Err(ClusterError::Conflict { .. })));
    assert!(!world.get("VolumeAttachment", "csi-1").is_null());
    delete("a-1", "n2").unwrap();
    assert!(world.get("VolumeAttachment", "csi-1").is_null());
    delete("a-1", "n2").unwrap();
}

#[test]
fn a_pod_goes_only_from_the_proven_node_and_with_its_uid() {
    let world = World::new();
    let delete = |uid: &str, node: &str| {
        let pod = shop("virt-launcher-web-abcde");
        world.store.transaction(|tx| delete_pod(tx, &pod, &uid.into(), &node.into()))
    };
    assert!(matches!(delete("p-web", "n1"), Err(ClusterError::Refused { .. })));
    assert!(matches!(delete("p-other", "n2"), Err(ClusterError::Conflict { .. })));
    assert!(!world.get("Pod", "virt-launcher-web-abcde").is_null());
    delete("p-web", "n2").unwrap();
    assert!(world.get("Pod", "virt-launcher-web-abcde").is_null());
    delete("p-web", "n2").unwrap();
    assert!(!world.get("Pod", "virt-launcher-db-abcde").is_null());
}

#[test]
fn retain_is_set_once() {
    let world = World::new();
    world.twice(&Action::RetainVolume { volume: "pv-web".into() });
    assert_eq!(world.get("PersistentVolume", "pv-web")["spec"]["persistentVolumeReclaimPolicy"], "Retain");
}

#[test]
fn a_local_volume_is_pinned_and_pre_bound() {
    let world = World::new();
    let action = Action::CreateVolume(new_volume("local-path", Some("n3")));
    world.twice(&action);
    let volume = world.get("PersistentVolume", "pv-new");
    let spec = &volume["spec"];
    assert_eq!(spec["local"]["path"], "/srv/volumes/pv-new");
    let term = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    assert_eq!(term.to_string(), r#"{"key":"kubernetes.io/hostname","operator":"In","values":["n3-host"]}"#);
    assert_eq!(spec["persistentVolumeReclaimPolicy"], "Retain");
    assert_eq!(
        (&spec["claimRef"]["namespace"], &spec["claimRef"]["name"]),
        (&json!("shop"), &json!("web-root"))
    );
    assert!(spec["claimRef"].get("uid").is_none());
    assert!(volume["metadata"]["annotations"].get(PROVISIONED_BY).is_none());
    assert_eq!(volume["status"]["phase"], "Available");
    let fleet = super::super::snapshot(&world.store.objects().unwrap()).fleet;
    assert_eq!(fleet.volumes[&"pv-new".into()].capacity_bytes, 10 << 30);

    let mut other = new_volume("local-path", Some("n1"));
    world.refused(&Action::CreateVolume(other.clone()), "another volume has this name");
    other.name = "pv-web".into();
    world.refused(&Action::CreateVolume(other), "another volume has this name");
    let mut nowhere = new_volume("local-path", Some("gone"));
    nowhere.name = "pv-nowhere".into();
    world.refused(&Action::CreateVolume(nowhere), "Node gone does not exist");
}

#[test]
fn a_shared_volume_is_reached_as_its_class_says() {
    let source = |class: &str| {
        let world = World::new();
        world.twice(&Action::CreateVolume(new_volume(class, None)));
        let volume = world.get("PersistentVolume", "pv-new");
        assert!(volume["spec"].get("nodeAffinity").is_none());
        volume["spec"].clone()
    };
    let nfs = source("nfs");
    assert_eq!(nfs["csi"]["driver"], "nfs.csi.k8s.io");
    assert_eq!(
        nfs["csi"]["volumeAttributes"],
        json!({ "server": "10.9.0.9", "share": "/export", "subDir": "pv-new" })
    );
    assert_eq!(source("nfs-legacy")["nfs"], json!({ "server": "10.9.0.9", "path": "/export/pv-new" }));
    let world = World::new();
    world.refused(&Action::CreateVolume(new_volume("other", None)), "only its provisioner can say");
    world.refused(&Action::CreateVolume(new_volume("nfs-nowhere", None)), "names no server and share");
    world
        .refused(&Action::CreateVolume(new_volume("no-class", None)), "StorageClass no-class does not exist");
}

#[test]
fn only_our_own_unbound_volume_is_forgotten() {
    let world = World::new();
    world.refused(&Action::ForgetVolume { volume: "pv-web".into() }, "we did not create it");
    world.act(&Action::CreateVolume(new_volume("local-path", Some("n3")))).unwrap();
    world.twice(&Action::ForgetVolume { volume: "pv-new".into() });
    assert!(world.get("PersistentVolume", "pv-new").is_null());
}

#[test]
fn a_swap_keeps_the_claims_name_and_the_old_volume() {
    let world = World::new();
    world.twice(&Action::CreateVolume(new_volume("local-path", Some("n3"))));
    world.refused(&delete_claim(), "Pod shop/virt-launcher-web-abcde uses it");
    world.remove_pods_of("web-root");
    world.refused(&delete_claim(), "not on reclaim policy Retain");
    world.twice(&Action::RetainVolume { volume: "pv-web".into() });
    let wrong = Action::DeleteClaim { claim: shop("web-root"), uid: "somebody-else".into() };
    world.refused(&wrong, "its uid is");
    world.twice(&delete_claim());
    let old = world.get("PersistentVolume", "pv-web");
    assert_eq!(
        (&old["status"]["phase"], &old["spec"]["claimRef"]["uid"]),
        (&json!("Released"), &json!("c-web-root"))
    );

    world.twice(&Action::PrebindVolume { volume: "pv-new".into(), claim: shop("web-root") });
    world.twice(&create_claim());
    let (claim, volume) =
        (world.get("PersistentVolumeClaim", "web-root"), world.get("PersistentVolume", "pv-new"));
    assert_eq!(claim["spec"]["volumeName"], "pv-new");
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], (10_u64 << 30).to_string());
    assert_eq!((&claim["status"]["phase"], &volume["status"]["phase"]), (&json!("Bound"), &json!("Bound")));
    assert_eq!(claim["metadata"]["uid"], volume["spec"]["claimRef"]["uid"]);
    assert_ne!(claim["metadata"]["uid"], "c-web-root");
    let annotations = json!({ "example.org/team": "web", "pv.kubernetes.io/bind-completed": "yes" });
    assert_eq!(claim["metadata"]["annotations"], annotations);
    assert_eq!(claim["metadata"]["labels"], json!({ "app": "web" }));
    world.refused(&Action::ForgetVolume { volume: "pv-new".into() }, "is bound to it");
    world.refused(
        &Action::PrebindVolume { volume: "pv-new".into(), claim: shop("db-data") },
        "is bound to it",
    );

    // And back again.
    let uid = claim["metadata"]["uid"].as_str().unwrap();
    world.twice(&Action::DeleteClaim { claim: shop("web-root"), uid: uid.into() });
    world.twice(&Action::PrebindVolume { volume: "pv-web".into(), claim: shop("web-root") });
    let back = Action::CreateClaim { claim: shop("web-root"), template: template(), volume: "pv-web".into() };
    world.twice(&back);
    assert_eq!(world.get("PersistentVolume", "pv-web")["status"]["phase"], "Bound");
    assert_eq!(world.get("PersistentVolume", "pv-new")["status"]["phase"], "Released");
}

#[test]
fn a_volume_that_held_data_is_deleted_only_as_its_claim_has_left_it() {
    let world = World::new();
    let delete = |uid: &str| Action::DeleteReleased { volume: "pv-web".into(), claim_uid: uid.into() };
    world.refused(&delete("c-web-root"), "is bound to it");
    world.remove_pods_of("web-root");
    world.twice(&Action::RetainVolume { volume: "pv-web".into() });
    world.twice(&delete_claim());
    world.refused(&delete("another"), "not Released by the claim");
    world.twice(&Action::PrebindVolume { volume: "pv-web".into(), claim: shop("rescue") });
    world.refused(&delete("c-web-root"), "not Released by the claim");
    let world = World::new();
    world.remove_pods_of("web-root");
    world.twice(&Action::RetainVolume { volume: "pv-web".into() });
    world.twice(&delete_claim());
    world.twice(&delete("c-web-root"));
    assert!(world.get("PersistentVolume", "pv-web").is_null());
}

/// While the disks of a VM are between nodes, its claim is bound to a volume that no node reaches.
#[test]
fn a_claim_is_locked_gets_its_new_volume_and_the_lock_is_forgotten() {
    let world = World::new();
    world.remove_pods_of("web-root");
    world.act(&Action::RetainVolume { volume: "pv-web".into() }).unwrap();
    let kept = NewVolume { claim: shop("kept-for-later"), ..new_volume("local-path", Some("n3")) };
    world.twice(&Action::CreateVolume(kept));
    let lock =
        Action::CreateLock { volume: "pv-new-lock".into(), claim: shop("web-root"), template: template() };
    world.twice(&lock);
    let spec = world.get("PersistentVolume", "pv-new-lock")["spec"].clone();
    let pin = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    let hostname = pin["values"][0].as_str().unwrap();
    for node in world.store.list("Node").unwrap() {
        assert_ne!(node["metadata"]["labels"]["kubernetes.io/hostname"], hostname, "a node reaches the lock");
    }
    assert_eq!(spec["persistentVolumeReclaimPolicy"], "Retain");
    let create = |volume: &str| Action::CreateClaim {
        claim: shop("web-root"),
        template: template(),
        volume: volume.into(),
    };
    world.twice(&delete_claim());
    world.refused(&create("pv-new"), "not pre-bound to");
    world.twice(&create("pv-new-lock"));
    world.refused(&Action::ForgetVolume { volume: "pv-new-lock".into() }, "is bound to it");

    let locked =
        world.get("PersistentVolumeClaim", "web-root")["metadata"]["uid"].as_str().unwrap().to_owned();
    world.twice(&Action::PrebindVolume { volume: "pv-new".into(), claim: shop("web-root") });
    world.twice(&Action::DeleteClaim { claim: shop("web-root"), uid: locked.as_str().into() });
    world.twice(&create("pv-new"));
    world.twice(&Action::ForgetVolume { volume: "pv-new-lock".into() });
    assert_eq!(world.get("PersistentVolumeClaim", "web-root")["spec"]["volumeName"], "pv-new");
    assert_eq!(world.get("PersistentVolume", "pv-new-lock"), Value::Null);
}

#[test]
fn a_claim_is_created_only_on_a_volume_that_is_pre_bound_to_it() {
    let world = World::new();
    world.refused(&create_claim(), "PersistentVolume pv-new does not exist");
    world.act(&Action::CreateVolume(new_volume("local-path", Some("n3")))).unwrap();
    world.refused(&create_claim(), "exists and is not for");
    let foreign = Action::CreateClaim { claim: shop("else"), template: template(), volume: "pv-new".into() };
    world.refused(&foreign, "not pre-bound to");
    // A crash after the volume was bound and before the claim was made.
    world
        .edit("PersistentVolume", "pv-new", |volume| volume["spec"]["claimRef"]["uid"] = json!("never-made"));
    world.remove_pods_of("web-root");
    world.act(&Action::RetainVolume { volume: "pv-web".into() }).unwrap();
    world.act(&delete_claim()).unwrap();
    world.refused(&create_claim(), "pre-bind it again");
    world.twice(&Action::PrebindVolume { volume: "pv-new".into(), claim: shop("web-root") });
    world.twice(&create_claim());
}

#[test]
fn a_claim_that_a_data_volume_would_fill_again_is_not_deleted() {
    let world = World::new();
    let delete = Action::DeleteClaim { claim: shop("wk1-system"), uid: "c-wk1-system".into() };
    world.refused(&delete, "would import its image again");
    world.edit("DataVolume", "wk1-system", |dv| {
        dv["metadata"]["annotations"] = json!({ "cdi.kubevirt.io/storage.prePopulated": "wk1-system" });
    });
    world.twice(&delete);
}

#[test]
fn a_claim_is_given_up_for_a_new_import_only_if_that_will_come_and_the_old_volume_stays() {
    let world = World::new();
    let volume = world.get("PersistentVolumeClaim", "wk1-system")["spec"]["volumeName"].clone();
    let volume = VolumeName::from(volume.as_str().unwrap());
    let reimport = |uid: &str, data_volume: &str, volume: &VolumeName| Action::ReimportClaim {
        claim: shop("wk1-system"),
        uid: uid.into(),
        data_volume: data_volume.to_owned(),
        volume: volume.clone(),
    };
    let good = reimport("c-wk1-system", "wk1-system", &volume);
    world.edit("PersistentVolume", volume.as_str(), |pv| {
        pv["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
    });
    world.refused(&good, "not on reclaim policy Retain");
    world.twice(&Action::RetainVolume { volume: volume.clone() });
    world.refused(&reimport("c-wk1-system", "wk1-system", &"pv-web".into()), "is not bound to pv-web");
    world.refused(&reimport("c-wk1-system", "another", &volume), "would not make it anew");
    let marks = json!({ "cdi.kubevirt.io/storage.prePopulated": "wk1-system" });
    world.edit("DataVolume", "wk1-system", |dv| dv["metadata"]["annotations"] = marks);
    world.refused(&good, "would not make it anew");
    world.edit("DataVolume", "wk1-system", |dv| dv["metadata"]["annotations"] = Value::Null);
    world.twice(&good);
    assert!(world.get("PersistentVolumeClaim", "wk1-system").is_null());
    assert_eq!(world.get("PersistentVolume", volume.as_str())["status"]["phase"], "Released");
    // Made anew meanwhile, by CDI: that one is left alone.
    let anew = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": { "namespace": "shop", "name": "wk1-system" },
        "spec": { "resources": { "requests": { "storage": "1Gi" } } },
    });
    world.store.transaction(|tx| tx.create(anew).map(|_| ())).unwrap();
    world.twice(&good);
    assert!(!world.get("PersistentVolumeClaim", "wk1-system").is_null());
}

#[test]
fn a_vm_is_stopped_and_given_back_by_its_own_field() {
    for (vm, field, saved, stopped) in [
        ("web", "runStrategy", SavedStart::RunStrategy("Always".into()), json!("Halted")),
        ("db", "running", SavedStart::Running(true), json!(false)),
    ] {
        let world = World::new();
        let before = world.get("VirtualMachine", vm)["spec"].clone();
        world.twice(&Action::StopVm { vm: shop(vm), owner: Owner::Itself });
        assert_eq!(world.get("VirtualMachine", vm)["spec"][field], stopped);
        world.twice(&Action::RestoreStart { vm: shop(vm), owner: Owner::Itself, start: saved });
        assert_eq!(world.get("VirtualMachine", vm)["spec"], before);
        let foreign = SavedStart::WukongStartStrategy(None);
        let restore = Action::RestoreStart { vm: shop(vm), owner: Owner::Itself, start: foreign };
        world.refused(&restore, "does not have the start field");
    }
}

#[test]
fn a_wukong_gets_its_start_strategy_back_exactly() {
    let owner = || Owner::Wukong { name: "wk1".into() };
    for found in
        [None, Some("null"), Some("{}"), Some(r#"{"autoStart":true,"delay":"1.50","extra":[1,null]}"#)]
    {
        let world = World::new();
        world.edit("Wukong", "wk1", |wukong| {
            if let Some(text) = found {
                wukong["spec"]["startStrategy"] = serde_json::from_str(text).unwrap();
            }
        });
        let before = world.get("Wukong", "wk1")["spec"].clone();
        let fleet = super::super::snapshot(&world.store.objects().unwrap()).fleet;
        let start = fleet.vms[&shop("wk1-vm")].start.clone();
        assert_eq!(start, SavedStart::WukongStartStrategy(found.map(str::to_owned)));
        world.twice(&Action::StopVm { vm: shop("wk1-vm"), owner: owner() });
        assert_eq!(world.get("Wukong", "wk1")["spec"]["startStrategy"]["autoStart"], false);
        assert_eq!(
            world.get("VirtualMachine", "wk1-vm")["spec"]["running"],
            true,
            "its operator's to change"
        );
        world.twice(&Action::RestoreStart { vm: shop("wk1-vm"), owner: owner(), start });
        assert_eq!(world.get("Wukong", "wk1")["spec"], before);
    }
}

#[test]
fn owners_that_we_do_not_know_or_that_changed_are_refused() {
    let world = World::new();
    let pool = Owner::Unknown { kind: "VirtualMachinePool".into(), name: "fleet".into() };
    world.refused(
        &Action::StopVm { vm: shop("managed"), owner: pool },
        "VirtualMachinePool fleet controls it",
    );
    world.refused(
        &Action::StopVm { vm: shop("wk1-vm"), owner: Owner::Itself },
        "its controller is Wukong wk1",
    );
    let wukong = Owner::Wukong { name: "wk1".into() };
    world.refused(&Action::StopVm { vm: shop("web"), owner: wukong }, "its controller is nobody");
    world.refused(&Action::StopVm { vm: shop("gone"), owner: Owner::Itself }, "does not exist");
}

#[test]
fn a_live_migration_is_asked_for_once_and_pinned_to_its_node() {
    let world = World::new();
    let ask = |vm: &str, node: Option<&str>| Action::LiveMigrate {
        key: shop("evac-web"),
        vm: vm.into(),
        node: node.map(Into::into),
    };
    world.refused(&ask("web", Some("n9")), "does not exist");
    world.twice(&ask("web", Some("n3")));
    world.refused(&ask("db", None), "it exists and moves another VM");
    let made = world.get("VirtualMachineInstanceMigration", "evac-web");
    assert_eq!(
        made["spec"],
        json!({ "vmiName": "web", "addedNodeSelector": { "kubernetes.io/hostname": "n3-host" } })
    );
    let fleet = super::super::snapshot(&world.store.objects().unwrap()).fleet;
    assert_eq!(fleet.live_migrations[&shop("evac-web")].vm, "web");
}

#[test]
fn migrations_and_evacuations_are_created_once() {
    let world = World::new();
    let spec = MigrationSpec {
        vm: Some("web".into()),
        claim: None,
        destination: Destination::Class("nfs".into()),
        disks: WhichDisks::All,
        pre_copy_only: true,
        cancelled: false,
        remove_old: false,
        unreadable: Unreadable::Zeroes,
        probe: None,
        evacuation: Some("empty-n2".into()),
    };
    let create = Action::CreateMigration { key: shop("evac-web"), spec: spec.clone() };
    world.twice(&create);
    world.twice(&Action::CancelMigration { key: shop("evac-web") });
    world.twice(&Action::ProceedMigration { key: shop("evac-web") });
    // Cancelled by somebody, it is still the same one.
    world.twice(&create);
    let fleet = super::super::snapshot(&world.store.objects().unwrap());
    let made = &fleet.requests.migrations[&shop("evac-web")];
    assert_eq!(made.spec, MigrationSpec { cancelled: true, pre_copy_only: false, ..spec.clone() });
    assert!(!made.uid.as_str().is_empty(), "its uid was not read");
    let other = MigrationSpec { vm: Some("db".into()), ..spec };
    world.refused(&Action::CreateMigration { key: shop("evac-web"), spec: other }, "asks something else");
    world.refused(&Action::CancelMigration { key: shop("gone") }, "does not exist");

    let mut evacuation = fleet.requests.evacuations["empty-n2"].clone();
    evacuation.node = "n1".into();
    let taken = Action::CreateEvacuation { name: "empty-n2".into(), spec: evacuation.clone() };
    world.refused(&taken, "asks something else");
    world.twice(&Action::CreateEvacuation { name: "disk-n1".into(), spec: evacuation });
}

//! Migrations and evacuations that we make ourselves.

use anyhow::{Result, ensure};
use serde_json::json;
use somersault_coordinator_core::evacuation::{Disruption, EvacuationSpec};
use somersault_coordinator_core::io::Action;
use somersault_coordinator_core::migration::{Destination, MigrationSpec, Unreadable, WhichDisks};
use somersault_coordinator_core::names::Key;

use crate::bed::{Bed, NODE, SHOP};

/// A live migration, which KubeVirt does.
pub async fn asked_of_kubevirt(bed: &Bed) -> Result<()> {
    const KIND: &str = "VirtualMachineInstanceMigration";
    let ask = |name: &str, vm: &str, node: Option<&str>| Action::LiveMigrate {
        key: Key::new(SHOP, name),
        vm: vm.into(),
        node: node.map(Into::into),
    };
    bed.twice(&ask("evac-any", "web", None), KIND, "evac-any").await?;
    bed.twice(&ask("evac-n1", "web", Some(NODE)), KIND, "evac-n1").await?;
    let made = bed.get(KIND, "evac-n1").await?;
    ensure!(made["spec"]["addedNodeSelector"] == json!({ "kubernetes.io/hostname": NODE }), "{made}");
    bed.refused(&ask("evac-n1", "db", None), "moves another VM", KIND, "evac-n1").await?;
    bed.refused(&ask("evac-gone", "web", Some("no-such-node")), "does not exist", KIND, "evac-gone").await?;
    bed.delete(KIND, "evac-any").await?;
    bed.delete(KIND, "evac-n1").await
}

pub async fn made_once(bed: &Bed) -> Result<()> {
    let key = Key::new(SHOP, "evac-web");
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
        evacuation: Some("empty-n1".into()),
    };
    let create = Action::CreateMigration { key: key.clone(), spec: spec.clone() };
    bed.twice(&create, "VolumeMigration", "evac-web").await?;
    let made = bed.get("VolumeMigration", "evac-web").await?;
    ensure!(made["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "somersault", "{made}");

    // Its evacuation lets it go on, a person cancels it: it is still the same.
    bed.twice(&Action::ProceedMigration { key: key.clone() }, "VolumeMigration", "evac-web").await?;
    bed.twice(&Action::CancelMigration { key: key.clone() }, "VolumeMigration", "evac-web").await?;
    bed.twice(&create, "VolumeMigration", "evac-web").await?;
    let spec_now = bed.get("VolumeMigration", "evac-web").await?["spec"].clone();
    ensure!(spec_now["cancelled"] == true && spec_now["preCopyOnly"] == false, "{spec_now}");

    let other = MigrationSpec { vm: Some("db".into()), ..spec.clone() };
    let other = Action::CreateMigration { key, spec: other };
    bed.refused(&other, "asks something else", "VolumeMigration", "evac-web").await?;
    let gone = Action::CancelMigration { key: Key::new(SHOP, "gone") };
    bed.refused(&gone, "does not exist", "VolumeMigration", "gone").await?;
    let nowhere = Action::CreateMigration { key: Key::new("no-such-namespace", "evac-web"), spec };
    bed.refused(&nowhere, "its namespace does not exist", "VolumeMigration", "evac-web").await?;

    let evacuation = EvacuationSpec {
        uid: "".into(),
        node: NODE.into(),
        disk: Some("vda".into()),
        destination: Some(Destination::Class("nfs".into())),
        disruption: Disruption::PreCopyOnly,
        window_open: false,
        dry_run: true,
        cancelled: false,
        complete: false,
    };
    let create = Action::CreateEvacuation { name: "disk-vda".into(), spec: evacuation.clone() };
    bed.twice(&create, "Evacuation", "disk-vda").await?;
    let other = EvacuationSpec { disk: Some("vdb".into()), ..evacuation };
    let other = Action::CreateEvacuation { name: "disk-vda".into(), spec: other };
    bed.refused(&other, "asks something else", "Evacuation", "disk-vda").await?;
    bed.delete("VolumeMigration", "evac-web").await?;
    bed.delete("Evacuation", "disk-vda").await
}

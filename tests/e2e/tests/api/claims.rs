//! Claims that change their volume, with the real binder and the real controllers that protect claims and volumes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use futures::StreamExt as _;
use kube::api::{WatchEvent, WatchParams};
use serde_json::{Value, json};
use somersault_coordinator_core::fleet::VolumeMode;
use somersault_coordinator_core::io::{Action, ClaimTemplate, NewVolume};
use somersault_coordinator_core::names::Key;
use somersault_test_cluster::TOOLBOX_IMAGE;

use crate::bed::{Bed, NODE, SHOP};

const CLAIM: &str = "PersistentVolumeClaim";
const VOLUME: &str = "PersistentVolume";
const GIB: u64 = 1 << 30;

pub fn shop(name: &str) -> Key {
    Key::new(SHOP, name)
}

/// A volume that we make for a claim.
pub fn new_volume(name: &str, claim: &str) -> NewVolume {
    NewVolume {
        name: name.into(),
        class: "local-path".into(),
        node: Some(NODE.into()),
        path: format!("/opt/local-path-provisioner/{name}"),
        capacity_bytes: GIB,
        access_modes: vec!["ReadWriteOnce".into()],
        mode: VolumeMode::Filesystem,
        claim: shop(claim),
    }
}

/// What a claim asks, with notes of the binder and of CDI that mean nothing about the next one.
pub fn template(class: &str) -> ClaimTemplate {
    let annotations = [
        ("example.org/team", "web"),
        ("pv.kubernetes.io/bind-completed", "yes"),
        ("volume.kubernetes.io/selected-node", "n2"),
        ("cdi.kubevirt.io/storage.import.source", "http"),
    ];
    ClaimTemplate {
        class: class.into(),
        requested_bytes: GIB,
        access_modes: vec!["ReadWriteOnce".into()],
        mode: VolumeMode::Filesystem,
        labels: BTreeMap::from([("app".into(), "web".into())]),
        annotations: annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

/// A volume that nobody of us made, and the claim bound to it; returns the claim's uid.
pub async fn old_volume(bed: &Bed, volume: &str, claim: &str, owners: Value) -> Result<String> {
    bed.create(json!({
        "apiVersion": "v1", "kind": VOLUME, "metadata": { "name": volume },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" }, "storageClassName": "manual",
            "hostPath": { "path": format!("/opt/local-path-provisioner/{volume}"), "type": "DirectoryOrCreate" },
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": { "namespace": SHOP, "name": claim },
        },
    }))
    .await?;
    let made = bed
        .create(json!({
            "apiVersion": "v1", "kind": CLAIM, "metadata": { "name": claim, "ownerReferences": owners },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "manual", "volumeName": volume,
                "resources": { "requests": { "storage": "1Gi" } },
            },
        }))
        .await?;
    bound(bed, claim, volume).await?;
    made["metadata"]["uid"].as_str().map(str::to_owned).context("a claim without a uid")
}

/// Waits until the two are bound to each other, and returns the claim.
pub async fn bound(bed: &Bed, claim: &str, volume: &str) -> Result<Value> {
    bed.until(&format!("{claim} is bound to {volume}"), async || {
        let (claim, volume) = (bed.get(CLAIM, claim).await?, bed.get(VOLUME, volume).await?);
        let mutual = claim["metadata"]["uid"] == volume["spec"]["claimRef"]["uid"];
        Ok(claim["status"]["phase"] == "Bound" && volume["status"]["phase"] == "Bound" && mutual)
    })
    .await?;
    bed.get(CLAIM, claim).await
}

async fn phase(bed: &Bed, volume: &str, phase: &str) -> Result<()> {
    let what = format!("{volume} is {phase}");
    bed.until(&what, async || Ok(bed.get(VOLUME, volume).await?["status"]["phase"] == phase)).await
}

/// Deletes a claim, twice, and waits until it is gone and its volume is nobody's.
async fn deleted(bed: &Bed, claim: &str, uid: &str, volume: &str) -> Result<()> {
    let delete = Action::DeleteClaim { claim: shop(claim), uid: uid.into() };
    bed.writer.act(&delete).await?;
    bed.writer.act(&delete).await?;
    bed.until("the claim is gone", async || Ok(bed.get(CLAIM, claim).await?.is_null())).await?;
    bed.writer.act(&delete).await?;
    phase(bed, volume, "Released").await?;
    let kept = bed.get(VOLUME, volume).await?["spec"]["claimRef"]["uid"].clone();
    ensure!(kept == uid, "{volume} forgot whose it was: {kept}");
    Ok(())
}

/// Creates a claim, and once more when it is bound.
async fn created(bed: &Bed, claim: &str, template: ClaimTemplate, volume: &str) -> Result<Value> {
    let create = Action::CreateClaim { claim: shop(claim), template, volume: volume.into() };
    bed.writer.act(&create).await?;
    bed.writer.act(&create).await?;
    bound(bed, claim, volume).await?;
    bed.twice(&create, CLAIM, claim).await?;
    bed.get(CLAIM, claim).await
}

pub async fn a_swap_and_back(bed: &Bed) -> Result<()> {
    let uid = old_volume(bed, "pv-old", "web-root", json!([])).await?;
    let new = new_volume("pv-new", "web-root");
    bed.twice(&Action::CreateVolume(new.clone()), VOLUME, "pv-new").await?;
    pinned_and_pre_bound(&bed.get(VOLUME, "pv-new").await?)?;
    phase(bed, "pv-new", "Available").await?;
    let other = Action::CreateVolume(NewVolume { path: "/elsewhere".into(), ..new.clone() });
    bed.refused(&other, "another volume has this name", VOLUME, "pv-new").await?;
    let nowhere = Action::CreateVolume(NewVolume { name: "x".into(), node: Some("gone".into()), ..new });
    bed.refused(&nowhere, "Node gone does not exist", VOLUME, "x").await?;
    let foreign = Action::ForgetVolume { volume: "pv-old".into() };
    bed.refused(&foreign, "we did not create it", VOLUME, "pv-old").await?;
    let given_up = Action::DeleteReleased { volume: "pv-old".into(), claim_uid: uid.as_str().into() };
    bed.refused(&given_up, "is bound to it", VOLUME, "pv-old").await?;

    until_nothing_is_in_the_way(bed, &uid).await?;
    deleted(bed, "web-root", &uid, "pv-old").await?;
    let prebind =
        |volume: &str, claim: &str| Action::PrebindVolume { volume: volume.into(), claim: shop(claim) };
    bed.twice(&prebind("pv-new", "web-root"), VOLUME, "pv-new").await?;
    let claim = created(bed, "web-root", template("local-path"), "pv-new").await?;
    ensure!(claim["metadata"]["labels"] == json!({ "app": "web" }), "{claim}");
    let annotations = claim["metadata"]["annotations"].as_object().context("no annotations")?;
    ensure!(annotations["example.org/team"] == "web", "{annotations:?}");
    let foreign = ["volume.kubernetes.io/selected-node", "cdi.kubevirt.io/storage.import.source"];
    ensure!(foreign.iter().all(|key| !annotations.contains_key(*key)), "{annotations:?}");

    let forget = Action::ForgetVolume { volume: "pv-new".into() };
    bed.refused(&forget, "is bound to it", VOLUME, "pv-new").await?;
    bed.refused(&prebind("pv-new", "db-data"), "is bound to it", VOLUME, "pv-new").await?;
    bed.twice(&prebind("pv-new", "web-root"), VOLUME, "pv-new").await?;
    let taken = Action::CreateClaim {
        claim: shop("web-root"),
        template: template("manual"),
        volume: "pv-old".into(),
    };
    bed.refused(&taken, "exists and is not for", CLAIM, "web-root").await?;

    // And back again, without a moment in which the old volume is anybody's.
    let uid = claim["metadata"]["uid"].as_str().context("no uid")?;
    deleted(bed, "web-root", uid, "pv-new").await?;
    let seen = references_seen(bed, "pv-old", async {
        bed.twice(&prebind("pv-old", "web-root"), VOLUME, "pv-old").await?;
        created(bed, "web-root", template("manual"), "pv-old").await.map(drop)
    });
    let seen = Box::pin(seen).await?;
    let of_before = Action::DeleteReleased { volume: "pv-new".into(), claim_uid: "another".into() };
    bed.refused(&of_before, "not Released by the claim", VOLUME, "pv-new").await?;
    ensure!(seen.len() >= 3, "too few versions to tell: {seen:?}");
    ensure!(seen.iter().all(|claim| claim == "web-root"), "pv-old was anybody's: {seen:?}");
    forgotten(bed, "pv-new").await
}

/// Forgets a volume, twice, and waits until it is gone.
async fn forgotten(bed: &Bed, volume: &str) -> Result<()> {
    let forget = Action::ForgetVolume { volume: volume.into() };
    bed.writer.act(&forget).await?;
    bed.writer.act(&forget).await?;
    bed.until("the volume is gone", async || Ok(bed.get(VOLUME, volume).await?.is_null())).await?;
    bed.writer.act(&forget).await.context("gone already")
}

fn pinned_and_pre_bound(volume: &Value) -> Result<()> {
    let spec = &volume["spec"];
    let pin = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    let pinned = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [NODE] });
    ensure!(*pin == pinned && spec["local"]["path"] == "/opt/local-path-provisioner/pv-new", "{spec}");
    ensure!(spec["persistentVolumeReclaimPolicy"] == "Retain", "{spec}");
    ensure!(spec["claimRef"]["name"] == "web-root" && spec["claimRef"]["uid"].is_null(), "{spec}");
    ensure!(volume["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"].is_null(), "{volume}");
    Ok(())
}

/// Removes one by one what keeps the claim from being deleted.
async fn until_nothing_is_in_the_way(bed: &Bed, uid: &str) -> Result<()> {
    let delete = Action::DeleteClaim { claim: shop("web-root"), uid: uid.into() };
    bed.refused(&delete, "not on reclaim policy Retain", CLAIM, "web-root").await?;
    bed.twice(&Action::RetainVolume { volume: "pv-old".into() }, VOLUME, "pv-old").await?;
    let policy = bed.get(VOLUME, "pv-old").await?["spec"]["persistentVolumeReclaimPolicy"].clone();
    ensure!(policy == "Retain", "{policy}");
    bed.create(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "user" },
        "spec": {
            "nodeName": NODE, "restartPolicy": "Never",
            "containers": [{
                "name": "c", "image": TOOLBOX_IMAGE, "imagePullPolicy": "Never", "args": ["no-such-command"],
                "volumeMounts": [{ "name": "disk", "mountPath": "/disk" }],
            }],
            "volumes": [{ "name": "disk", "persistentVolumeClaim": { "claimName": "web-root" } }],
        },
    }))
    .await?;
    // Finished pods keep claims from being deleted too.
    let failed = async || Ok(bed.get("Pod", "user").await?["status"]["phase"] == "Failed");
    bed.until("the pod has failed", failed).await?;
    bed.refused(&delete, "Pod shop/user uses it", CLAIM, "web-root").await?;
    bed.delete("Pod", "user").await?;
    let another = Action::DeleteClaim { claim: shop("web-root"), uid: "somebody-else".into() };
    bed.refused(&another, "its uid is", CLAIM, "web-root").await
}

/// Whose a volume was, in each version of it that there was while `body` ran.
async fn references_seen(
    bed: &Bed,
    volume: &str,
    body: impl Future<Output = Result<()>>,
) -> Result<Vec<String>> {
    let api = bed.api(VOLUME);
    let before = bed.get(VOLUME, volume).await?["metadata"]["resourceVersion"].clone();
    let only = WatchParams::default().fields(&format!("metadata.name={volume}"));
    let watch = api.watch(&only, before.as_str().unwrap_or_default()).await?;
    body.await?;
    let last = bed.get(VOLUME, volume).await?["metadata"]["resourceVersion"].clone();
    let mut watch = std::pin::pin!(watch);
    let mut seen = Vec::new();
    while let Some(event) = watch.next().await {
        let WatchEvent::Modified(object) = event? else { continue };
        let object = serde_json::to_value(object)?;
        seen.push(object["spec"]["claimRef"]["name"].as_str().unwrap_or("nobody's").to_owned());
        if object["metadata"]["resourceVersion"] == last {
            break;
        }
    }
    Ok(seen)
}

/// The binder would bind all of these.
pub async fn what_does_not_fit(bed: &Bed) -> Result<()> {
    let create = |template: ClaimTemplate, volume: &str, claim: &str| Action::CreateClaim {
        claim: shop(claim),
        template,
        volume: volume.into(),
    };
    let fits = template("local-path");
    let nowhere = create(fits.clone(), "pv-fits", "fits");
    bed.refused(&nowhere, "PersistentVolume pv-fits does not exist", CLAIM, "fits").await?;
    bed.writer.act(&Action::CreateVolume(new_volume("pv-fits", "fits"))).await?;
    let foreign = create(fits.clone(), "pv-fits", "else");
    bed.refused(&foreign, "not pre-bound to", CLAIM, "else").await?;
    for (wrong, why) in [
        (ClaimTemplate { requested_bytes: 2 * GIB, ..fits.clone() }, "asks 2147483648 bytes"),
        (ClaimTemplate { mode: VolumeMode::Block, ..fits.clone() }, "volume mode Block"),
        (
            ClaimTemplate { access_modes: vec!["ReadWriteMany".into()], ..fits.clone() },
            "access mode ReadWriteMany",
        ),
    ] {
        bed.refused(&create(wrong, "pv-fits", "fits"), why, CLAIM, "fits").await?;
    }
    // Bound, and its claim gone: only a pre-binding makes it free again.
    let claim = created(bed, "fits", fits.clone(), "pv-fits").await?;
    deleted(bed, "fits", claim["metadata"]["uid"].as_str().unwrap_or_default(), "pv-fits").await?;
    bed.refused(&create(fits, "pv-fits", "fits"), "pre-bind it again", CLAIM, "fits").await?;
    forgotten(bed, "pv-fits").await
}

/// Volumes that every node reaches, as their class says.
pub async fn a_shared_volume(bed: &Bed) -> Result<()> {
    let class = |name: &str, provisioner: &str, parameters: Value| {
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
            "provisioner": provisioner, "parameters": parameters,
        })
    };
    let nfs = json!({ "server": "10.9.0.9", "share": "/export" });
    bed.create(class("nfs", "nfs.csi.k8s.io", nfs)).await?;
    bed.create(class("nfs-legacy", "example.org/nfs", json!({ "server": "10.9.0.9", "path": "/export" })))
        .await?;
    bed.create(class("nfs-nowhere", "nfs.csi.k8s.io", json!({}))).await?;
    let shared = |class: &str| {
        let name = format!("pv-{class}");
        let new = NewVolume { node: None, class: class.into(), ..new_volume(&name, "shared") };
        (name, Action::CreateVolume(new))
    };
    for (class, field, expected) in [
        ("nfs", "/spec/csi/volumeAttributes/subDir", "pv-nfs"),
        ("nfs-legacy", "/spec/nfs/path", "/export/pv-nfs-legacy"),
    ] {
        let (name, create) = shared(class);
        bed.twice(&create, VOLUME, &name).await?;
        let made = bed.get(VOLUME, &name).await?;
        ensure!(made.pointer(field).is_some_and(|value| value == expected), "{made}");
        ensure!(made["spec"]["nodeAffinity"].is_null(), "{made}");
        forgotten(bed, &name).await?;
    }
    let (name, create) = shared("nfs-nowhere");
    bed.refused(&create, "names no server and share", VOLUME, &name).await?;
    let (name, create) = shared("no-class");
    bed.refused(&create, "StorageClass no-class does not exist", VOLUME, &name).await
}

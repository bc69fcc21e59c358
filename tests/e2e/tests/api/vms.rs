//! Stopping and starting through the owner's field.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use somersault_coordinator_core::fleet::{Owner, SavedStart};
use somersault_coordinator_core::io::Action;

use crate::bed::Bed;
use crate::claims::shop;

const VM: &str = "VirtualMachine";

async fn vm(bed: &Bed, name: &str, spec: Value, owner: Option<(&str, &str, &str)>) -> Result<()> {
    let owners = owner.map(|(kind, name, uid)| {
        json!([{
            "apiVersion": "vm.novasphere.dev/v1alpha1", "kind": kind, "name": name, "uid": uid, "controller": true,
        }])
    });
    let mut object = json!({
        "apiVersion": "kubevirt.io/v1", "kind": VM,
        "metadata": { "name": name, "ownerReferences": owners.unwrap_or(json!([])) }, "spec": spec,
    });
    object["spec"]["template"] = json!({ "spec": { "domain": {} } });
    bed.create(object).await.map(drop)
}

fn stop(vm: &str, owner: Owner) -> Action {
    Action::StopVm { vm: shop(vm), owner }
}

fn restore(vm: &str, owner: Owner, start: SavedStart) -> Action {
    Action::RestoreStart { vm: shop(vm), owner, start }
}

pub async fn stopped_and_given_back(bed: &Bed) -> Result<()> {
    vm(bed, "web", json!({ "runStrategy": "RerunOnFailure" }), None).await?;
    vm(bed, "db", json!({ "running": true }), None).await?;
    for (name, field, saved, stopped) in [
        ("web", "runStrategy", SavedStart::RunStrategy("RerunOnFailure".into()), json!("Halted")),
        ("db", "running", SavedStart::Running(true), json!(false)),
    ] {
        let before = bed.get(VM, name).await?["spec"].clone();
        bed.twice(&stop(name, Owner::Itself), VM, name).await?;
        ensure!(bed.get(VM, name).await?["spec"][field] == stopped, "{name} was not stopped");
        bed.twice(&restore(name, Owner::Itself, saved), VM, name).await?;
        ensure!(bed.get(VM, name).await?["spec"] == before, "{name} was not given back");
    }
    let foreign = restore("db", Owner::Itself, SavedStart::RunStrategy("Always".into()));
    bed.refused(&foreign, "does not have the start field", VM, "db").await?;
    vm(bed, "pooled", json!({ "running": true }), Some(("VirtualMachinePool", "fleet", "u"))).await?;
    let pool = Owner::Unknown { kind: "VirtualMachinePool".into(), name: "fleet".into() };
    bed.refused(&stop("pooled", pool), "VirtualMachinePool fleet controls it", VM, "pooled").await?;
    bed.refused(&stop("pooled", Owner::Itself), "its controller is VirtualMachinePool", VM, "pooled").await?;
    bed.refused(&stop("gone", Owner::Itself), "does not exist", VM, "gone").await?;
    while_it_changes_all_the_time(bed).await?;
    only_the_very_one(bed).await
}

/// Beside a stopped Wukong, a VM's object changes many times a second.
async fn while_it_changes_all_the_time(bed: &Bed) -> Result<()> {
    let over = AtomicBool::new(false);
    let others = async {
        let mut number = 0_u64;
        while !over.load(Ordering::SeqCst) {
            number += 1;
            let firmware = json!({ "spec": { "template": { "spec": { "firmware": number.to_string() } } } });
            bed.patch(VM, "db", firmware).await?;
        }
        Ok::<_, anyhow::Error>(number)
    };
    let ours = async {
        let result = async {
            for _ in 0..20 {
                bed.writer.act(&stop("db", Owner::Itself)).await?;
                bed.writer.act(&restore("db", Owner::Itself, SavedStart::Running(true))).await?;
            }
            Ok(())
        };
        let result = result.await;
        over.store(true, Ordering::SeqCst);
        result
    };
    let (writes, ()) = tokio::try_join!(others, ours)?;
    let firmware = bed.get(VM, "db").await?["spec"]["template"]["spec"]["firmware"].clone();
    ensure!(firmware == json!(writes.to_string()), "of {writes} writes the last is {firmware}: one was lost");
    Ok(())
}

/// What our patches rely on: with a uid, they are for the very object.
async fn only_the_very_one(bed: &Bed) -> Result<()> {
    let patch = json!({ "metadata": { "uid": "somebody-else" }, "spec": { "running": false } });
    let error = bed.patch(VM, "db", patch).await.err().context("a patch with a wrong uid was accepted")?;
    ensure!(format!("{error:#}").contains("metadata.uid"), "{error:#}");
    ensure!(bed.get(VM, "db").await?["spec"]["running"] == true, "and it changed the VM");
    Ok(())
}

pub async fn wukongs_to_the_byte(bed: &Bed) -> Result<()> {
    let owner = || Owner::Wukong { name: "wk1".into() };
    let wukong = bed
        .create(json!({
            "apiVersion": "vm.novasphere.dev/v1alpha1", "kind": "Wukong", "metadata": { "name": "wk1" },
            "spec": { "cpu": 2 },
        }))
        .await?;
    let uid = wukong["metadata"]["uid"].as_str().context("a Wukong without a uid")?;
    vm(bed, "wk1-vm", json!({ "running": true }), Some(("Wukong", "wk1", uid))).await?;
    let found = [
        None,
        Some("{}"),
        Some(r#"{"autoStart":true,"delay":"1.50","extra":[1,null],"nested":{"a":null,"b":0}}"#),
    ];
    for text in found {
        let strategy = text.map(serde_json::from_str).transpose()?;
        bed.set_spec("Wukong", "wk1", "startStrategy", strategy).await?;
        let before = bed.get("Wukong", "wk1").await?["spec"].clone();
        let kept = before.get("startStrategy").map(Value::to_string);
        ensure!(kept.as_deref() == text, "the API server itself has made {kept:?} of {text:?}");
        bed.twice(&stop("wk1-vm", owner()), "Wukong", "wk1").await?;
        let stopped = bed.get("Wukong", "wk1").await?["spec"].clone();
        ensure!(stopped["startStrategy"]["autoStart"] == false, "{stopped}");
        let saved = SavedStart::WukongStartStrategy(text.map(str::to_owned));
        bed.twice(&restore("wk1-vm", owner(), saved), "Wukong", "wk1").await?;
        let after = bed.get("Wukong", "wk1").await?["spec"].clone();
        ensure!(after == before, "{before}\nbecame\n{after}");
    }
    ensure!(bed.get(VM, "wk1-vm").await?["spec"]["running"] == true, "the VM is its operator's to change");
    bed.refused(&stop("wk1-vm", Owner::Itself), "its controller is Wukong wk1", VM, "wk1-vm").await
}

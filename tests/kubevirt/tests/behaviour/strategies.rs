//! Start, stop and failure under each run strategy.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use somersault_test_kubevirt::NETWORK_CLASS;
use somersault_test_kubevirt::builders::{Vm, claim};

use crate::bed::Bed;

/// Longer than anything that the stand-in does by itself takes.
const QUIET: Duration = Duration::from_millis(1500);

pub fn each(bed: &Bed) -> Result<()> {
    bed.say("run strategies");
    let names = ["Always", "RerunOnFailure", "Manual", "Once", "Halted"];
    let vms = names.map(|name| Vm::new(&name.to_lowercase()).run_strategy(name).claim("root", NETWORK_CLASS));
    let older = Vm::new("older").running(false).claim("root", NETWORK_CLASS);
    let missing = Vm::new("missing").existing_claim("root", "nowhere");
    let objects: Vec<_> = vms.iter().chain([&older, &missing]).flat_map(Vm::objects).collect();
    bed.apply(&objects)?;
    for name in ["manual", "halted", "older"] {
        bed.wait_vm(name, "Stopped")?;
        ensure!(bed.find("vmi", name)?.is_none(), "{name} runs");
    }
    bed.wait_vm("missing", "ErrorPvcNotFound")?;
    bed.apply(&[claim("default", "nowhere", NETWORK_CLASS)])?;

    let ask = |name: &str, request: Value| {
        bed.patch_status("vm", name, &json!({"status": {"stateChangeRequests": [request]}}))
    };
    ask("manual", json!({"action": "Start"}))?;
    bed.patch("vm", "halted", &json!({"spec": {"runStrategy": "Always"}}))?;
    bed.patch("vm", "older", &json!({"spec": {"running": true}}))?;
    for name in ["always", "rerunonfailure", "manual", "once", "halted", "older", "missing"] {
        bed.wait_vm(name, "Running")?;
    }

    bed.say("launchers deleted by force");
    let names = ["always", "rerunonfailure", "manual", "once"];
    let before = names.map(|name| bed.get("vmi", name));
    for name in names {
        bed.force_delete_launcher(name)?;
    }
    let [always, rerun, manual, once] = before;
    bed.wait_new_instance("always", &always?)?;
    bed.wait_new_instance("rerunonfailure", &rerun?)?;
    std::thread::sleep(QUIET);
    for (name, before) in [("manual", &manual?), ("once", &once?)] {
        let vmi = bed.wait_vmi(name, "Failed")?;
        ensure!(vmi["metadata"]["uid"] == before["metadata"]["uid"], "{name} was started again");
    }
    let failed = bed.get("vmi", "once")?;
    bed.delete("vmi", "once")?;
    bed.wait_new_instance("once", &failed)?;

    bed.say("stopped");
    bed.patch("vm", "halted", &json!({"spec": {"runStrategy": "Halted"}}))?;
    bed.patch("vm", "older", &json!({"spec": {"running": false}}))?;
    let restarted = bed.get("vmi", "rerunonfailure")?;
    let uid = restarted["metadata"]["uid"].clone();
    ask("rerunonfailure", json!({"action": "Stop", "uid": uid}))?;
    for name in ["halted", "older", "rerunonfailure"] {
        bed.wait_gone("vmi", name)?;
        bed.wait_vm(name, "Stopped")?;
    }
    let left = bed.launchers("halted")?;
    ensure!(left.is_empty(), "launchers are left: {left:?}");
    std::thread::sleep(QUIET);
    ensure!(bed.find("vmi", "rerunonfailure")?.is_none(), "it was started again");

    let disk = bed.disk("rerunonfailure-root")?;
    ensure!(disk.faults.is_empty() && disk.instances().len() == 2, "{disk}");
    let both = json!({"spec": {"running": true}});
    ensure!(bed.patch("vm", "halted", &both).is_err(), "running and runStrategy exclude each other");
    for name in ["always", "rerunonfailure", "manual", "once", "halted", "older", "missing"] {
        bed.delete("vm", name)?;
    }
    for name in ["always", "halted"] {
        bed.wait_gone("vm", name)?;
    }
    Ok(())
}

//! Nodes that lose their power or their network.

use anyhow::{Result, ensure};
use serde_json::json;
use somersault_test_cluster::{condition, until};
use somersault_test_kubevirt::NETWORK_CLASS;
use somersault_test_kubevirt::builders::Vm;
use somersault_test_kubevirt::judge::{self, Disk};

use crate::bed::{Bed, DEADLINE};

/// A VM on a local disk of n2, and one on the network, run there when its power goes.
pub fn lose_power(bed: &Bed) -> Result<()> {
    let local = Vm::new("local").claim("root", "local-path").on_node("n2");
    let untouched = Vm::new("untouched").claim("root", "local-path").on_node("n2");
    let network = Vm::new("network").claim("root", NETWORK_CLASS).preferring_node("n2");
    bed.apply(&[local.objects(), untouched.objects(), network.objects()].concat())?;
    for name in ["local", "untouched", "network"] {
        bed.wait_vm(name, "Running")?;
    }
    let vmi = bed.get("vmi", "local")?;
    ensure!(vmi["status"]["nodeName"] == "n2", "{}", vmi["status"]);
    ensure!(vmi["status"]["volumeStatus"][0]["persistentVolumeClaimInfo"]["claimName"] == "local-root");
    for claim in ["local-root", "untouched-root", "network-root"] {
        bed.wait_disk(claim, "it writes", |disk| disk.records.len() > 5)?;
    }

    bed.say("n2 loses its power; the network VM is recovered as Somersault does it");
    bed.cluster.power_off("n2")?;
    bed.cordon("n2")?;
    let before = bed.disk("network-root")?;
    let dead = bed.get("vmi", "network")?;
    bed.force_delete_launcher("network")?;
    let alive = bed.wait_new_instance("network", &dead)?;
    ensure!(alive["status"]["nodeName"] != "n2", "it is back on the dead node");
    let now = bed.wait_disk("network-root", "the new one writes", |disk| disk.runs.len() > 1)?;
    ensure!(now.continues(&before).is_empty(), "{now}");
    ensure!(now.instances().len() == 2, "{now}");
    bed.say(&format!("it ran again; nobody wrote for {:?}", now.silence_before(1).unwrap_or_default()));
    Ok(())
}

/// Measured on KubeVirt 1.9.0: the VM is called Running for ever; its launcher deleted, it fits nowhere else.
pub fn nobody_acts_on_lost_power(bed: &Bed) -> Result<()> {
    bed.wait("node", "n2", "Kubernetes has noticed", |node| {
        (condition(node, "Ready") == Some("Unknown")).then_some(())
    })?;
    bed.say("Kubernetes knows that n2 is gone");
    let vm =
        bed.wait("vm", "local", "not ready", |vm| (vm["status"]["ready"] == false).then(|| vm.clone()))?;
    ensure!(vm["status"]["printableStatus"] == "Running", "{}", vm["status"]);
    ensure!(bed.get("vmi", "local")?["status"]["phase"] == "Running", "its instance has ended");

    bed.force_delete_launcher("local")?;
    bed.wait_vm("local", "ErrorUnschedulable")?;
    let vmi = bed.get("vmi", "local")?;
    ensure!(vmi["status"]["phase"] == "Scheduling", "{}", vmi["status"]);

    bed.say("a launcher that never ran is deleted: a failed start");
    bed.force_delete_launcher("local")?;
    bed.wait("vm", "local", "it backs off", |vm| {
        (vm["status"]["startFailure"]["consecutiveFailCount"] == 1).then_some(())
    })?;
    bed.wait_vm("local", "CrashLoopBackOff")?;

    bed.say("n2 is back, still cordoned: the launcher stays Pending");
    bed.cluster.power_on("n2")?;
    bed.cluster.wait_ready("n2")?;
    bed.wait_vm("local", "ErrorUnschedulable")?;
    bed.wait_vm("untouched", "ErrorUnschedulable")?;
    let names = ["local-root", "untouched-root"];
    let before = names.map(|claim| bed.disk(claim));
    bed.uncordon("n2")?;
    for (claim, before) in names.iter().zip(before) {
        let now = bed.wait_disk(claim, "it goes on", |disk| disk.runs.len() > 1)?;
        ensure!(now.continues(&before?).is_empty(), "{now}");
    }
    bed.wait_vm("local", "Running")?;
    bed.wait_vm("untouched", "Running")?;
    Ok(())
}

/// A node that only lost its network, and a launcher deleted without fencing: the judge sees both write.
pub fn two_at_once(bed: &Bed) -> Result<()> {
    bed.say("n3 loses its network, and somebody forgets to fence");
    let vm = Vm::new("twice").claim("root", NETWORK_CLASS).preferring_node("n3");
    bed.apply(&vm.objects())?;
    let first = bed.wait_vmi("twice", "Running")?;
    ensure!(first["status"]["nodeName"] == "n3", "{}", first["status"]);
    bed.cluster.cut("n3")?;
    bed.cordon("n3")?;
    let alone = bed.disk("twice-root")?;
    ensure!(alone.faults.is_empty(), "{alone}");
    bed.force_delete_launcher("twice")?;
    let second = bed.wait_new_instance("twice", &first)?;
    let both = bed.wait_disk("twice-root", "both write", Disk::ran_twice)?;
    for vmi in [&first, &second] {
        let uid = vmi["metadata"]["uid"].as_str().unwrap_or_default();
        ensure!(both.instances().contains(&uid), "{uid} is not on the disk: {both}");
    }
    bed.say("the orphan ends when the network is back");
    bed.cluster.mend("n3")?;
    bed.uncordon("n3")?;
    let orphan = json!(first["metadata"]["uid"]);
    bed.wait_disk("twice-root", "only one writes", |disk| {
        let last = disk.records.iter().rev().take(20);
        last.filter(|record| record.instance == orphan).count() == 0
    })?;
    Ok(())
}

/// Launchers do not need it, and afterwards everything goes on.
pub fn the_api_server_is_away(bed: &Bed) -> Result<()> {
    bed.say("the API server goes and comes back");
    let path = bed.disk_path("network-root")?;
    let before = judge::read(&path)?;
    let running = bed.get("vmi", "network")?;
    bed.cluster.stop_program(None, "kube-apiserver")?;
    let away = until("ten writes more", DEADLINE, &[], || {
        let disk = judge::read(&path)?;
        Ok((disk.records.len() > before.records.len() + 10).then_some(disk))
    })?;
    ensure!(away.continues(&before).is_empty(), "{away}");
    bed.cluster.start_program(None, "kube-apiserver")?;
    bed.wait("vmi", "network", "Running as before", |vmi| {
        (vmi["metadata"]["uid"] == running["metadata"]["uid"] && vmi["status"]["phase"] == "Running")
            .then_some(())
    })?;
    bed.force_delete_launcher("network")?;
    bed.wait_new_instance("network", &running)?;
    Ok(())
}

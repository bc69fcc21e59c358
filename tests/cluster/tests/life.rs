//! A cluster's life: up, a volume written, power off and on by hand and by a real fence agent, a plug pulled and put
//! back, down.
//!
//! One test, since one cluster costs ten seconds and a gigabyte.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use somersault_test_cluster::{
    BMC_PASSWORD, BMC_PORT, BMC_USER, BmcFault, Cluster, GATEWAY, Log, Options, until, usable_or_skip,
};

const WRITER: &str = include_str!("writer.yaml");
/// Provisioning, scheduling and starting take about 5 s on an idle machine.
const POD_DEADLINE: Duration = Duration::from_mins(1);
/// A program that was killed starts again within a second or two.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(20);
/// A kubelet renews its Lease every 10 s
/// (<https://kubernetes.io/docs/concepts/architecture/leases/#node-heart-beats>).
const TWO_RENEWALS: Duration = Duration::from_secs(25);

#[test]
fn a_cluster_lives_loses_power_and_leaves_nothing() -> Result<()> {
    if !usable_or_skip("a_cluster_lives_loses_power_and_leaves_nothing") {
        return Ok(());
    }
    let name = "test-life";
    Cluster::down(name).context("removing what an earlier run has left")?;
    let cluster = Cluster::up(&Options {
        name: name.to_owned(),
        nodes: 3,
        tied: true,
        program: env!("CARGO_BIN_EXE_somersault-cluster").into(),
    })?;
    let root = cluster.layout().root().display().to_string();

    let file = write_on_a_local_volume(&cluster)?;
    lose_power(&cluster, &file)?;
    pull_the_plug(&cluster)?;
    stop_the_clock(&cluster, &file)?;
    fence(&cluster)?;

    ensure!(!traces(&root, name)?.is_empty(), "a cluster without a trace: this test would see nothing");
    drop(cluster);
    // What was killed is in the list of processes until the kernel has taken it apart.
    until("nothing is left behind", PROGRAM_DEADLINE, &[], || {
        let traces = traces(&root, name)?;
        ensure!(traces.is_empty(), "left behind:\n{}", traces.join("\n"));
        Ok(Some(()))
    })
}

/// Returns the file's path on the node.
fn write_on_a_local_volume(cluster: &Cluster) -> Result<String> {
    cluster.apply(WRITER)?;
    let logs = ["local-path-provisioner", "kube-scheduler", "n2-kubelet"];
    let logs = logs.map(|part| Log(cluster.layout().log(part)));
    until("the writer runs", POD_DEADLINE, &logs, || {
        let pod = cluster.get(&["pod", "writer"])?;
        Ok((pod["status"]["phase"] == "Running").then_some(()))
    })?;
    let claim = cluster.get(&["pvc", "numbers"])?;
    let volume = claim["spec"]["volumeName"].as_str().context("a claim without a volume")?.to_owned();
    let volume = cluster.get(&["pv", &volume])?;
    let folder = volume["spec"]["hostPath"]["path"].as_str().context("a volume without a path")?;
    ensure!(folder.starts_with("/opt/local-path-provisioner/"), "the volume is at {folder}");
    let file = format!("{folder}/life-numbers");
    until("numbers are on the disk", POD_DEADLINE, &logs, || {
        Ok((numbers(cluster, &file)?.len() > 3).then_some(()))
    })?;
    Ok(file)
}

fn lose_power(cluster: &Cluster, file: &str) -> Result<()> {
    let before = cluster.get(&["node", "n2"])?["status"]["nodeInfo"]["bootID"].clone();
    let written = numbers(cluster, file)?.len();
    let disk = cluster.layout().node("n2").join("data.xfs").display().to_string();
    ensure!(output("losetup", &["-j", &disk])?.contains(&disk), "n2 has no data.xfs");

    cluster.power_off("n2")?;
    ensure!(!cluster.is_on("n2")?, "n2 is still on");
    let alive = processes("append\0/data/life-numbers")?;
    ensure!(alive.is_empty(), "the writer outlived its node: {alive:?}");
    until("the disk is released", Duration::from_secs(5), &[], || {
        Ok(output("losetup", &["-j", &disk])?.is_empty().then_some(()))
    })?;

    cluster.power_on("n2")?;
    cluster.wait_ready("n2")?;
    let after = cluster.get(&["node", "n2"])?["status"]["nodeInfo"]["bootID"].clone();
    ensure!(before.is_string() && after.is_string() && before != after, "boot ids {before} and {after}");
    let logs = [Log(cluster.layout().log("n2-kubelet"))];
    let all = until("the writer goes on", POD_DEADLINE, &logs, || {
        let all = numbers(cluster, file)?;
        Ok((all.len() > written + 3).then_some(all))
    })?;
    let expected: Vec<_> = (1..=all.len()).collect();
    ensure!(all == expected, "the disk says {all:?}");
    Ok(())
}

fn pull_the_plug(cluster: &Cluster) -> Result<()> {
    let renewed = || -> Result<String> {
        let lease = cluster.get(&["-n", "kube-node-lease", "lease", "n3"])?;
        lease["spec"]["renewTime"].as_str().map(str::to_owned).context("a lease without a time")
    };
    cluster.cut("n3")?;
    let cut = renewed()?;
    sleep(TWO_RENEWALS);
    ensure!(renewed()? == cut, "n3 still renews its lease");
    ensure!(cluster.is_on("n3")?, "n3 lost its power with its network");
    cluster.mend("n3")?;
    until("n3 renews its lease", TWO_RENEWALS, &[Log(cluster.layout().log("n3-kubelet"))], || {
        Ok((renewed()? != cut).then_some(()))
    })
}

fn stop_the_clock(cluster: &Cluster, file: &str) -> Result<()> {
    cluster.freeze("n2")?;
    let frozen = numbers(cluster, file)?.len();
    sleep(Duration::from_secs(2));
    ensure!(numbers(cluster, file)?.len() == frozen, "a frozen node writes");
    cluster.thaw("n2")?;
    until("the writer goes on", POD_DEADLINE, &[], || {
        Ok((numbers(cluster, file)?.len() > frozen + 3).then_some(()))
    })
}

/// The real `fence_redfish` of ClusterLabs, on n1, at the management controller of n2. Exit codes: 0 on or done, 2 off,
/// 1 it cannot tell.
fn fence(cluster: &Cluster) -> Result<()> {
    let Some(agent) = ["/usr/sbin", "/usr/bin"]
        .map(|folder| format!("{folder}/fence_redfish"))
        .into_iter()
        .find(|file| Path::new(file).exists())
    else {
        ensure!(std::env::var_os("CI").is_none(), "fence_redfish (Debian: fence-agents) must be there in CI");
        eprintln!("SKIPPED fencing by fence_redfish: it is not installed (Debian: fence-agents)");
        return Ok(());
    };
    let password = |password: &str, action: &str| ask_agent(cluster, &agent, password, action);
    let ask = |action: &str| password(BMC_PASSWORD, action);
    let codes = |expected: i32, (code, said): (i32, String)| {
        ensure!(code == expected, "fence_redfish ended with {code}, not {expected}: {said}");
        Ok(())
    };
    codes(0, ask("status")?)?;
    codes(1, password("wrong", "status")?)?;
    cluster.bmc_fault("n2", Some(BmcFault::Fails))?;
    codes(1, ask("status")?)?;
    cluster.bmc_fault("n2", Some(BmcFault::Lies))?;
    codes(2, ask("status")?)?;
    codes(0, ask("off")?)?;
    ensure!(cluster.is_on("n2")?, "a controller that lies has switched n2 off");
    cluster.bmc_fault("n2", None)?;
    cluster.stop_program(None, "bmc")?;
    codes(1, ask("status")?)?;
    cluster.start_program(None, "bmc")?;
    until(
        "the management controller is back",
        PROGRAM_DEADLINE,
        &[Log(cluster.layout().log("bmc"))],
        || Ok((ask("status")?.0 == 0).then_some(())),
    )?;

    codes(0, ask("off")?)?;
    ensure!(!cluster.is_on("n2")?, "n2 is still on");
    let alive = processes("append\0/data/life-numbers")?;
    ensure!(alive.is_empty(), "the writer outlived its node: {alive:?}");
    codes(2, ask("status")?)?;
    codes(0, ask("off")?)?;
    codes(0, ask("on")?)?;
    cluster.wait_ready("n2")?;
    codes(0, ask("status")?)
}

fn ask_agent(cluster: &Cluster, agent: &str, password: &str, action: &str) -> Result<(i32, String)> {
    let mut command = cluster.command_on("n1")?;
    command.arg(agent).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {agent}"))?;
    let options = format!(
        "ip={GATEWAY}\nipport={BMC_PORT}\nusername={BMC_USER}\npassword={password}\nssl_insecure=1\n\
         systems_uri=/redfish/v1/Systems/n2\naction={action}\n"
    );
    child.stdin.take().context("no stdin")?.write_all(options.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code().context("fence_redfish was killed")?, said))
}

/// The file's numbers, one per line.
fn numbers(cluster: &Cluster, file: &str) -> Result<Vec<usize>> {
    let text = std::fs::read_to_string(cluster.path_on("n2", file)?)?;
    text.lines().map(|line| line.parse().with_context(|| format!("{line:?} is no number"))).collect()
}

/// Everything on this machine that belongs to the cluster.
fn traces(root: &str, name: &str) -> Result<Vec<String>> {
    let mut traces = processes(root)?;
    traces.extend(lines_with(&output("losetup", &["-a"])?, root));
    traces.extend(lines_with(&std::fs::read_to_string("/proc/mounts")?, root));
    traces.extend(lines_with(&output("find", &["/sys/fs/cgroup", "-maxdepth", "2", "-type", "d"])?, name));
    traces.extend(Path::new(root).exists().then(|| root.to_owned()));
    Ok(traces)
}

fn lines_with(text: &str, word: &str) -> Vec<String> {
    text.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
}

/// Command lines that contain `part`, arguments separated by zeros.
fn processes(part: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        // Not every entry is a process, and a process may end between two looks at it.
        let Ok(line) = std::fs::read(entry?.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains(part) {
            found.push(line);
        }
    }
    Ok(found)
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("starting {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

//! `make demo-cluster`: the main job on a real Kubernetes cluster, told step by step.
//! `make try`: the same cluster and the same VMs, and the rest is up to you.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use somersault_test_cluster::{Cluster, Hold, Missing, check_requirements};
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::programs::Images;
use somersault_test_e2e::side_by_side;
use somersault_test_e2e::stage::{DB, ODD, Stage, WEB};
use somersault_test_support::ending::{self, Ended};

/// By convention of test harnesses: skipped, because something is missing here.
const EXIT_SKIPPED: u8 = 77;
/// Of the cluster.
const NAME: &str = "demo";
const NODES: u8 = 3;
/// A decision is there when the node is declared; a node boots in ten seconds and is watched for some more.
const DECIDE_DEADLINE: Duration = Duration::from_secs(30);
const RETURN_DEADLINE: Duration = Duration::from_mins(3);

#[derive(Parser)]
#[command(about = "Somersault on a real Kubernetes cluster on this machine.")]
struct Arguments {
    /// Pull no plug: leave the cluster to whoever wants to try something, until Ctrl-C.
    #[arg(long)]
    stay: bool,
}

fn main() -> ExitCode {
    let Arguments { stay } = Arguments::parse();
    // Before anything else: neither the clean-up at the beginning nor the one at the end may reach another one's cluster.
    let hold = match Hold::take(NAME) {
        Ok(hold) => hold,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let acting = hold.clone();
    let act = move || if stay { leave_to_you(acting) } else { play(acting) };
    let clean_up = || {
        println!("== the cluster is taken down, and nothing is left behind");
        Cluster::down(hold.name())
    };
    let ended = check_requirements().map_err(anyhow::Error::from).and_then(|()| ending::run(act, clean_up));
    match ended.and_then(exit_code) {
        Ok(code) => code,
        Err(error) if error.is::<Missing>() => {
            eprintln!("{error:#}");
            ExitCode::from(EXIT_SKIPPED)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn exit_code(ended: Ended<Result<()>>) -> Result<ExitCode> {
    match ended {
        Ended::Done(result) => result.map(|()| ExitCode::SUCCESS),
        // As a shell says it of a program that a signal has ended; no signal's number comes near 128.
        Ended::Signalled(signal) => Ok(ExitCode::from(u8::try_from(128 + signal)?)),
    }
}

/// Ends by a signal only.
fn leave_to_you(hold: Hold) -> Result<()> {
    let bed = Bed::up(hold, NODES, Images::Release, true, &|what| println!("== {what}"))?;
    let node = bed.node_without_leader()?;
    println!(
        "== VMs on {node}: web on network storage, db on a local disk, odd on a disk that nobody can place"
    );
    let _stage = Stage::set(&bed, &node, &[WEB, DB, ODD])?;
    print!("{}", bed.plugin(&["status"])?);
    let program = bed.cluster().layout().program().display().to_string();
    let layout = bed.cluster().layout();
    print!(
        "{}",
        what_to_type(
            &layout.kubeconfig().display().to_string(),
            &program,
            &node,
            &layout.data_disk(&node).display().to_string()
        )
    );
    loop {
        std::thread::park();
    }
}

/// What whoever tries the cluster on `node` may type, in the order in which it tells something.
fn what_to_type(kubeconfig: &str, program: &str, node: &str, disk: &str) -> String {
    let (db, namespace) = (DB.name, VMS);
    format!(
        "\nIn another terminal:\n\n\
         export KUBECONFIG={kubeconfig}\n\
         export PATH=$PWD/target/debug:$PATH          # kubectl somersault\n\
         alias kubectl='{program} --name {NAME} kubectl --'  # unless you have one\n\
         kubectl somersault report                    # what would become of each VM\n\
         {program} --name {NAME} cut {node}             # its network plug; power-off pulls the power cord\n\
         kubectl somersault status --watch\n\
         kubectl somersault recoveries                # what became of each VM, and which need a person\n\
         kubectl somersault runbook {db} -n {namespace}       # what that person has to do, step by step\n\
         mount -o loop,ro {disk} /mnt  # its disk with local volumes, once it is off; umount it before power-on\n\
         {program} --name {NAME} mend {node}; {program} --name {NAME} power-on {node}\n\n\
         Ctrl-C here takes everything down.\n"
    )
}

fn play(hold: Hold) -> Result<()> {
    let began = Instant::now();
    let step = |text: &str| println!("\n== [{:>5.1} s] {text}", began.elapsed().as_secs_f32());
    let bed = Bed::up(hold, NODES, Images::Release, true, &|what| step(what))?;

    step("who is there, and could be switched off: kubectl somersault status");
    print!("{}", bed.plugin(&["status"])?);
    let node = bed.node_without_leader()?;
    step(&format!(
        "three VMs on {node}: web on network storage, db on a local disk, odd on a disk that nobody can place"
    ));
    let stage = Stage::set(&bed, &node, &[WEB, DB, ODD])?;
    step("what would become of them if their node died: kubectl somersault report");
    print!("{}", bed.plugin(&["report"])?);

    step(&format!("the network plug of {node} is pulled; its VMs still run and write"));
    let times = side_by_side::measure(&bed, &stage, &WEB, &node)?;
    println!("{}", times.table(None));
    step("what became of each: kubectl somersault recoveries");
    for vm in [&DB, &ODD] {
        bed.wait_decision(vm.name, "ManualRecovery", DECIDE_DEADLINE)?;
    }
    print!("{}", bed.plugin(&["recoveries"])?);
    step("what a person has to do for db: kubectl somersault runbook db");
    print!("{}", bed.plugin(&["runbook", DB.name, "-n", VMS])?);

    step(&format!("{node} gets its plug and its power back"));
    comes_back(&bed, &node)?;
    // Where odd starts again is up to the scheduler: nothing says where its disk is.
    for vm in [&WEB, &DB] {
        stage.wait_writes(vm, RETURN_DEADLINE)?;
    }
    step("what the VMs' own disks say");
    judge(&stage)?;

    bed.wait_whole(RETURN_DEADLINE)?;
    let node = bed.leaders_node()?;
    step(&format!("the same for {node}, on which the leading coordinator runs: web is there now"));
    let stage = Stage::set(&bed, &node, &[WEB])?;
    let leaders = side_by_side::pull_plug(&bed, &stage, &WEB, &node)?;
    println!("{}", times.table(Some(&leaders)));
    comes_back(&bed, &node)?;
    stage.wait_writes(&WEB, RETURN_DEADLINE)?;
    step("what its own disk says");
    judge(&stage)?;
    step("done; the cluster is taken down, and nothing is left behind");
    Ok(())
}

fn comes_back(bed: &Bed, node: &str) -> Result<()> {
    bed.cluster().mend(node)?;
    bed.cluster().power_on(node)?;
    bed.cluster().wait_ready(node)?;
    bed.wait_state(node, "Healthy", RETURN_DEADLINE)
}

/// Prints what every VM's disk says; an error when one is not sound, or web has not moved.
fn judge(stage: &Stage<'_>) -> Result<()> {
    stage.judge()?;
    for vm in stage.staged() {
        let disk = stage.disk(vm)?;
        println!(
            "{:<4} {} instances, {} writes, none lost",
            vm.name,
            disk.instances().len(),
            disk.records.len()
        );
    }
    ensure!(stage.instances(&WEB)? == 2, "web should have run twice in a row, and never at once");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_readme_promises_is_there_to_type() {
        let text =
            what_to_type("/etc/kubeconfig", "somersault-cluster", "n2", "/clusters/demo/nodes/n2/data.xfs");
        let lines: Vec<&str> = text.lines().collect();
        let at = |command: &str| lines.iter().position(|line| line.starts_with(command));
        let commands = [
            "somersault-cluster --name demo cut n2",
            "kubectl somersault status --watch",
            "kubectl somersault runbook db -n ",
            "mount -o loop,ro /clusters/demo/nodes/n2/data.xfs ",
        ];
        let places: Vec<_> = commands.iter().map(|command| at(command)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
    }
}

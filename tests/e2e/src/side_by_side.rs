//! The same dead node, timed for us and for Kubernetes by itself, in one run.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use jiff::Timestamp;
use somersault_test_cluster::{condition, until};

use crate::api::Kind;
use crate::bed::{Bed, has_our_taint};
use crate::stage::{Stage, Vm};

/// Kubernetes marks a node Unknown 50 s after its last lease renewal, and looks every 5 s
/// (kube-controller-manager: `--node-monitor-grace-period`, `--node-monitor-period`); a busy machine takes longer.
const KUBERNETES_DEADLINE: Duration = Duration::from_mins(3);
/// From the plug to a VM that writes elsewhere: about 3 s on an idle machine, and about 20 s where the leader goes with
/// the node, 15 s of them its Lease. A busy machine may take its time; what takes longer than this is no recovery.
const RECREATE_DEADLINE: Duration = Duration::from_mins(1);
/// The coordinator shows at once what it has done.
const SHOW_DEADLINE: Duration = Duration::from_secs(30);
const TAINT: &str = "node.kubernetes.io/unreachable";

/// How a cut-off node's VM came back, from the moment at which the plug was pulled.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The coordinator called the node unreachable.
    pub declared: Duration,
    /// Our taint was seen on the node's object: nothing new is placed there. By looks at it, as for Kubernetes' own.
    pub tainted: Duration,
    /// It had the proof that nothing runs there any more.
    pub proven: Duration,
    /// The VM on network storage wrote on its disk again, elsewhere.
    pub writes: Duration,
    /// Between the last write of the old instance and the first of the new one.
    pub silent: Duration,
}

/// What was measured of both, from the moment at which the plug was pulled.
#[derive(Clone, Debug)]
pub struct Times {
    /// Ours.
    pub ours: Recovered,
    /// Kubernetes called the node Ready=Unknown.
    pub not_ready: Duration,
    /// Kubernetes set its unreachable taint.
    pub tainted: Duration,
}

/// Pulls the network plug of a node on which `vm` is staged, and waits until the VM writes on its disk elsewhere.
pub fn pull_plug(bed: &Bed, stage: &Stage<'_>, vm: &Vm, node: &str) -> Result<Recovered> {
    let wall = Timestamp::now();
    bed.cluster().cut(node)?;
    // It is set before any VM starts elsewhere; when that writes, its disk tells.
    let tainted = until(&format!("our taint is on {node}"), RECREATE_DEADLINE, &[], || {
        let object = bed.api().get(Kind::NODE, "", node)?;
        has_our_taint(&object).then(|| since(wall, Timestamp::now())).transpose()
    })?;
    let disk = stage.wait_new_writer(vm, RECREATE_DEADLINE)?;
    let writes = since(wall, disk.runs.last().context("a disk without writers")?.began)?;
    let silent = disk.silence_before(disk.runs.len() - 1).unwrap_or_default();
    // A new leader may have acted before it has shown anything.
    let shown = |milestone: &str| {
        until(&format!("{node} shows when it was {milestone}"), SHOW_DEADLINE, &[], || {
            bed.milestone(node, milestone).and_then(|at| since(wall, at)).map(Some)
        })
    };
    Ok(Recovered { declared: shown("Declared")?, tainted, proven: shown("Proven")?, writes, silent })
}

/// Pulls the network plug of a node on which `vm` is staged, and times both.
pub fn measure(bed: &Bed, stage: &Stage<'_>, vm: &Vm, node: &str) -> Result<Times> {
    let pulled = Instant::now();
    let ours = pull_plug(bed, stage, vm, node)?;
    let not_ready = until(&format!("Kubernetes calls {node} Unknown"), KUBERNETES_DEADLINE, &[], || {
        let object = bed.api().get(Kind::NODE, "", node)?;
        Ok((condition(&object, "Ready") == Some("Unknown")).then(|| pulled.elapsed()))
    })?;
    let tainted = until(&format!("Kubernetes taints {node}"), KUBERNETES_DEADLINE, &[], || {
        let taints = bed.api().get(Kind::NODE, "", node)?["spec"]["taints"].clone();
        let set = taints.as_array().is_some_and(|all| all.iter().any(|taint| taint["key"] == TAINT));
        Ok(set.then(|| pulled.elapsed()))
    })?;
    Ok(Times { ours, not_ready, tainted })
}

fn since(wall: Timestamp, at: Timestamp) -> Result<Duration> {
    let elapsed = at.duration_since(wall);
    ensure!(!elapsed.is_negative(), "{at} is before the plug was pulled");
    Duration::try_from(elapsed).context("a time that is none")
}

impl std::fmt::Display for Recovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} (declared after {}, tainted after {}, proven after {}; the VM was silent for {})",
            seconds(self.writes),
            seconds(self.declared),
            seconds(self.tainted),
            seconds(self.proven),
            seconds(self.silent)
        )
    }
}

impl Times {
    /// For people: beside Kubernetes by itself, and beside the loss of the leader's own node where that was measured too.
    pub fn table(&self, leaders: Option<&Recovered>) -> Table {
        let of_both = |what: &str, ours: fn(&Recovered) -> String, kubernetes: String| {
            let leaders = leaders.map(ours);
            let row = [Some(what.to_owned()), Some(ours(&self.ours)), leaders, Some(kubernetes)];
            row.into_iter().flatten().collect::<Vec<_>>()
        };
        let header = [
            Some("after the plug was pulled"),
            Some("Somersault"),
            leaders.map(|_| "the leader on that node"),
            Some("Kubernetes"),
        ];
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(header.into_iter().flatten());
        table.add_row(of_both("the node is called dead", |t| seconds(t.declared), seconds(self.not_ready)));
        table.add_row(of_both("nothing new is placed there", |t| seconds(t.tainted), seconds(self.tainted)));
        table.add_row(of_both("proof that nothing runs there", |t| seconds(t.proven), "never".to_owned()));
        table.add_row(of_both(
            "its VM on network storage writes again",
            |t| format!("{} (silent for {})", seconds(t.writes), seconds(t.silent)),
            "when a person acts".to_owned(),
        ));
        table
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leaders_node_has_a_column_where_it_was_measured() {
        let ours = |writes| Recovered {
            declared: Duration::from_secs(1),
            tainted: Duration::from_millis(1_250),
            proven: Duration::from_secs(2),
            writes: Duration::from_secs(writes),
            silent: Duration::from_secs(1),
        };
        let times =
            Times { ours: ours(3), not_ready: Duration::from_secs(47), tainted: Duration::from_secs(48) };
        let alone = times.table(None).to_string();
        assert!(alone.contains("3.00 s (silent for 1.00 s)") && !alone.contains("leader"), "{alone}");
        let placed = alone.lines().find(|line| line.contains("is placed there")).expect("a row");
        assert!(placed.contains("1.25 s"), "the taint's own time, not the verdict's: {placed}");
        let beside = times.table(Some(&ours(20))).to_string();
        let row = beside.lines().find(|line| line.contains("writes again")).expect("a row");
        assert!(row.contains("3.00 s (silent") && row.contains("20.00 s (silent"), "{beside}");
    }
}

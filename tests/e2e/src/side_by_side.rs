//! The same dead node, timed for us and for Kubernetes by itself, in one run.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use jiff::Timestamp;
use somersault_test_cluster::{condition, until};

use crate::api::Kind;
use crate::bed::Bed;
use crate::stage::{Stage, Vm};

/// Kubernetes marks a node Unknown 50 s after its last lease renewal, and looks every 5 s
/// (kube-controller-manager: `--node-monitor-grace-period`, `--node-monitor-period`); a busy machine takes longer.
const KUBERNETES_DEADLINE: Duration = Duration::from_mins(3);
/// From the plug to a VM that writes elsewhere: about 3 s on an idle machine.
const RECREATE_DEADLINE: Duration = Duration::from_mins(2);
const TAINT: &str = "node.kubernetes.io/unreachable";

/// What was measured, from the moment at which the plug was pulled.
#[derive(Clone, Debug)]
pub struct Times {
    /// The coordinator called the node unreachable.
    pub declared: Duration,
    /// It had the proof that nothing runs there any more.
    pub proven: Duration,
    /// The VM on network storage wrote on its disk again, elsewhere.
    pub writes: Duration,
    /// Between the last write of the old instance and the first of the new one.
    pub silent: Duration,
    /// Kubernetes called the node Ready=Unknown.
    pub not_ready: Duration,
    /// Kubernetes set its unreachable taint.
    pub tainted: Duration,
}

/// Pulls the network plug of a node on which `vm` is staged, and times both.
pub fn measure(bed: &Bed, stage: &Stage<'_>, vm: &Vm, node: &str) -> Result<Times> {
    let (pulled, wall) = (Instant::now(), Timestamp::now());
    bed.cluster().cut(node)?;
    let disk = stage.wait_new_writer(vm, RECREATE_DEADLINE)?;
    let writes = since(wall, disk.runs.last().context("a disk without writers")?.began)?;
    let silent = disk.silence_before(disk.runs.len() - 1).unwrap_or_default();
    let (declared, proven) =
        (since(wall, bed.milestone(node, "Declared")?)?, since(wall, bed.milestone(node, "Proven")?)?);
    let not_ready = until(&format!("Kubernetes calls {node} Unknown"), KUBERNETES_DEADLINE, &[], || {
        let object = bed.api().get(Kind::NODE, "", node)?;
        Ok((condition(&object, "Ready") == Some("Unknown")).then(|| pulled.elapsed()))
    })?;
    let tainted = until(&format!("Kubernetes taints {node}"), KUBERNETES_DEADLINE, &[], || {
        let taints = bed.api().get(Kind::NODE, "", node)?["spec"]["taints"].clone();
        let set = taints.as_array().is_some_and(|all| all.iter().any(|taint| taint["key"] == TAINT));
        Ok(set.then(|| pulled.elapsed()))
    })?;
    Ok(Times { declared, proven, writes, silent, not_ready, tainted })
}

fn since(wall: Timestamp, at: Timestamp) -> Result<Duration> {
    let elapsed = at.duration_since(wall);
    ensure!(!elapsed.is_negative(), "{at} is before the plug was pulled");
    Duration::try_from(elapsed).context("a time that is none")
}

impl Times {
    /// For people.
    pub fn table(&self) -> Table {
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header([
            "after the plug was pulled",
            "Somersault",
            "Kubernetes",
        ]);
        table.add_row([
            "the node is called dead".to_owned(),
            seconds(self.declared),
            seconds(self.not_ready),
        ]);
        table.add_row([
            "nothing new is placed there".to_owned(),
            seconds(self.declared),
            seconds(self.tainted),
        ]);
        table.add_row(["proof that nothing runs there".to_owned(), seconds(self.proven), "never".to_owned()]);
        table.add_row([
            "its VM on network storage writes again".to_owned(),
            format!("{} (silent for {})", seconds(self.writes), seconds(self.silent)),
            "when a person acts".to_owned(),
        ]);
        table
    }
}

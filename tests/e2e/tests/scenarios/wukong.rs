//! The VM of a Wukong, with two disks, one of them imported: its operator makes missing claims anew, blank, and writes
//! the whole VM every ten seconds.

use std::time::Duration;

use anyhow::{Result, ensure};
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage;
use somersault_test_kubevirt::builders;
use somersault_test_kubevirt::judge::Disk;

/// The Wukong.
pub const WUKONG: &str = "wk";
/// Its VM.
pub const VM: &str = "wk-vm";
/// The claims of its disks.
pub const CLAIMS: [&str; 2] = ["wk-system", "wk-data"];
/// Provisioning, an import, scheduling, starting.
const RUN_DEADLINE: Duration = Duration::from_mins(3);

/// Removes the VMs of earlier scenarios, and starts it on a node.
pub fn start(bed: &Bed, node: &str) -> Result<()> {
    stage::clear(bed)?;
    stage::only_on(bed, node, || {
        bed.api().create(Kind::WUKONG, VMS, builders::wukong(VMS, WUKONG, "local-path"))?;
        until("the Wukong's VM writes on both disks", RUN_DEADLINE, &[bed.standin_log()], || {
            let disks = disks(bed, node)?;
            ensure!(disks.iter().all(|disk| disk.records.len() > 5), "they say {disks:?}");
            Ok(Some(()))
        })
    })
}

/// What its disks on a node say now.
pub fn disks(bed: &Bed, node: &str) -> Result<Vec<Disk>> {
    CLAIMS.iter().map(|claim| stage::claim_disk(bed, claim, node)).collect()
}

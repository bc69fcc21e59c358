//! VMs of Wukongs, each with two disks, one of them imported: the operator makes missing claims anew, blank, and writes
//! the whole VM every ten seconds.

use std::time::Duration;

use anyhow::{Result, ensure};
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage;
use somersault_test_kubevirt::builders;
use somersault_test_kubevirt::judge::Disk;

/// Provisioning, an import, scheduling, starting.
const RUN_DEADLINE: Duration = Duration::from_mins(3);

/// A Wukong, and what it makes.
#[derive(Debug, PartialEq, Eq)]
pub struct Wukong {
    /// Its name.
    pub name: &'static str,
    /// Its VM.
    pub vm: &'static str,
    /// The claims of its disks.
    pub claims: [&'static str; 2],
}

/// The one that most scenarios have.
pub const FIRST: &Wukong = &Wukong { name: "wk", vm: "wk-vm", claims: ["wk-system", "wk-data"] };
/// One beside it.
pub const SECOND: &Wukong = &Wukong { name: "wl", vm: "wl-vm", claims: ["wl-system", "wl-data"] };

/// Removes the VMs of earlier scenarios, and starts these on a node.
pub fn start(bed: &Bed, node: &str, wukongs: &[&Wukong]) -> Result<()> {
    stage::clear(bed)?;
    stage::only_on(bed, node, || {
        for wukong in wukongs {
            bed.api().create(Kind::WUKONG, VMS, builders::wukong(VMS, wukong.name, "local-path"))?;
        }
        until("the Wukongs' VMs write on both disks", RUN_DEADLINE, &[bed.standin_log()], || {
            for wukong in wukongs {
                let disks = disks(bed, wukong, node)?;
                ensure!(disks.iter().all(|disk| disk.records.len() > 5), "{}: {disks:?}", wukong.name);
            }
            Ok(Some(()))
        })
    })
}

/// What its disks on a node say now.
pub fn disks(bed: &Bed, wukong: &Wukong, node: &str) -> Result<Vec<Disk>> {
    wukong.claims.iter().map(|claim| stage::claim_disk(bed, claim, node)).collect()
}

//! Before the story: the cluster comes up, with every VM running where its manifests say.

use std::time::Instant;

use anyhow::{Context, Result};
use somersault_coordinator::cluster::directory::store::Store;
use somersault_test_support::certs::CertAuthority;

use super::stage::{PATIENCE, Stage, VMS};
use crate::standin::ControlPlane;
use crate::watch::until;
use crate::world::layout::Layout;
use crate::world::nodes::{self, NODES};
use crate::world::{disks, stored_disk, write_manifests};

/// Builds everything but the coordinator.
pub fn run() -> Result<Stage> {
    let began = Instant::now();
    let layout = Layout::create()?;
    if stored_disk::is_needed(&layout)? {
        println!("            and, since this folder lies on no disk: the disk that the agents look at");
    }
    write_manifests(&layout)?;
    let authority = CertAuthority::new()?;
    nodes::build(&layout, &authority)?;
    disks::make_all(&layout).context("making the VMs' disks")?;
    let store = Store::open(&layout.cluster).context("opening the cluster's folder")?;
    let control_plane = ControlPlane::start(store.clone(), layout.network_volumes())?;
    NODES.into_iter().try_for_each(|node| nodes::power_on(&layout, node))?;
    let stage = Stage { layout, store, authority, _control_plane: control_plane };
    until("every VM runs", PATIENCE, || {
        let look = stage.look()?;
        Ok(VMS.iter().all(|vm| look.running(vm).is_some()).then_some(()))
    })?;
    println!(
        "\nThree nodes and {} VMs were built and started in {:.1} s.",
        VMS.len(),
        began.elapsed().as_secs_f32()
    );
    Ok(stage)
}

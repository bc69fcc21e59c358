//! Before the story: the cluster comes up, with every VM running where its manifests say.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use somersault_coordinator::cluster::directory::store::Store;
use somersault_test_support::certs::CertAuthority;

use crate::guest::journal::{Journal, Run};
use crate::standin::ControlPlane;
use crate::watch::{Look, until};
use crate::world::layout::Layout;
use crate::world::nodes::{self, NODES};
use crate::world::{disks, write_manifests};

/// Every VM of the manifests.
pub const VMS: [&str; 5] = ["web", "queue", "ledger", "wk1-vm", "desk"];
const START: Duration = Duration::from_secs(20);

/// What the steps work on.
pub struct Stage {
    /// When the demo began.
    pub began: Instant,
    /// Folders.
    pub layout: Layout,
    /// The cluster.
    pub store: Store,
    /// Certificates.
    pub authority: CertAuthority,
    /// KubeVirt and the rest; they work as long as this lives.
    _control_plane: ControlPlane,
}

/// Builds everything but the coordinator.
pub fn run() -> Result<Stage> {
    let began = Instant::now();
    let layout = Layout::create()?;
    write_manifests(&layout)?;
    let authority = CertAuthority::new()?;
    nodes::build(&layout, &authority)?;
    disks::make_all(&layout)?;
    let store = Store::open(&layout.cluster).context("opening the cluster's folder")?;
    let network_volumes = layout.mount_point.join("rbd").display().to_string();
    let control_plane = ControlPlane::start(store.clone(), network_volumes)?;
    NODES.into_iter().try_for_each(|node| nodes::power_on(&layout, node))?;
    let stage = Stage { began, layout, store, authority, _control_plane: control_plane };
    stage.wait_for_vms()?;
    println!("built in {:.1} s", stage.began.elapsed().as_secs_f32());
    Ok(stage)
}

impl Stage {
    /// Reads the cluster now.
    pub fn look(&self) -> Result<Look> {
        Look::at(&self.store)
    }

    fn wait_for_vms(&self) -> Result<()> {
        until("every VM runs", START, || {
            let look = self.look()?;
            Ok(VMS.iter().all(|vm| look.running(vm).is_some()).then_some(()))
        })
    }

    /// Where the image of each of a VM's claims is on this machine.
    pub fn images(&self, vm: &str) -> Result<BTreeMap<String, PathBuf>> {
        let look = self.look()?;
        let machine = look.object("VirtualMachine", vm).with_context(|| format!("there is no VM {vm}"))?;
        let volumes = machine["spec"]["template"]["spec"]["volumes"].as_array();
        let claims = volumes
            .into_iter()
            .flatten()
            .filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
        claims
            .map(|claim| {
                let volume = look.volume_of(claim).with_context(|| format!("claim {claim} is not bound"))?;
                Ok((claim.to_owned(), self.image_of(volume)?))
            })
            .collect()
    }

    /// Where the image of a volume is on this machine.
    pub fn image_of(&self, volume: &serde_json::Value) -> Result<PathBuf> {
        let spec = &volume["spec"];
        let path = match spec["csi"]["volumeHandle"].as_str() {
            Some(handle) => self.layout.mount_point.join("rbd").join(handle),
            None => ["local", "hostPath", "nfs"]
                .into_iter()
                .find_map(|source| spec[source]["path"].as_str())
                .map(PathBuf::from)
                .context("a volume without a path")?,
        };
        let affinity = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
        // The one hostPath volume without affinity is on n2.
        let node = affinity["values"][0].as_str().unwrap_or("n2");
        let folder =
            self.layout.behind(node, &path).with_context(|| format!("{} is on no node", path.display()))?;
        Ok(folder.join("disk.img"))
    }

    /// Who wrote on a VM's disks, one after the other, by claim. An error where two instances did at once.
    pub fn journals(&self, vm: &str) -> Result<BTreeMap<String, Vec<Run>>> {
        self.images(vm)?
            .into_iter()
            .map(|(claim, image)| Ok((claim, Journal::open(&image, false)?.runs()?)))
            .collect()
    }
}

//! What the steps work on, and how they look at VMs and disks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use somersault_coordinator::cluster::directory::store::Store;
use somersault_test_support::certs::CertAuthority;

use crate::guest::journal::{Journal, Run};
use crate::standin::ControlPlane;
use crate::standin::kubelets::mounted_at;
use crate::watch::{Look, until};
use crate::world::disks;
use crate::world::layout::Layout;

/// Every VM of the manifests.
pub const VMS: [&str; 5] = ["web", "queue", "ledger", "wk1-vm", "desk"];
/// How long anything that should take a second or two may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Hashes of the files in an image, by path.
pub type Files = BTreeMap<PathBuf, String>;

/// What the steps work on.
pub struct Stage {
    /// Folders.
    pub layout: Layout,
    /// The cluster.
    pub store: Store,
    /// Certificates.
    pub authority: CertAuthority,
    /// KubeVirt and the rest; they work as long as this lives.
    pub _control_plane: ControlPlane,
}

impl Stage {
    /// Reads the cluster now.
    pub fn look(&self) -> Result<Look> {
        Look::at(&self.store)
    }

    /// Where the image of each of a VM's claims is on this machine, by claim.
    pub fn images(&self, vm: &str) -> Result<BTreeMap<String, PathBuf>> {
        let look = self.look()?;
        let machine = look.object("VirtualMachine", vm).with_context(|| format!("there is no VM {vm}"))?;
        let volumes = machine["spec"]["template"]["spec"]["volumes"].as_array();
        let claim = |volume: &Value| Some(volume["persistentVolumeClaim"]["claimName"].as_str()?.to_owned());
        let claims = volumes.into_iter().flatten().filter_map(claim);
        claims
            .map(|claim| {
                let volume = look.volume_of(&claim).with_context(|| format!("claim {claim} is not bound"))?;
                let image = self.image_of(volume)?;
                Ok((claim, image))
            })
            .collect()
    }

    /// Where the image of a volume is on this machine.
    pub fn image_of(&self, volume: &Value) -> Result<PathBuf> {
        let path = mounted_at(volume, &self.layout.network_volumes()).context("a volume without a path")?;
        // The one hostPath volume without affinity is on n2.
        let node = node_of(volume).unwrap_or("n2");
        let folder = self.layout.behind(node, path.as_ref());
        Ok(folder.with_context(|| format!("{path} is on no node"))?.join("disk.img"))
    }

    /// Who wrote on each of a VM's disks, one after the other, by claim; an error where two instances did at
    /// once, or where a write is missing.
    pub fn journals(&self, vm: &str) -> Result<BTreeMap<String, Vec<Run>>> {
        self.images(vm)?.into_iter().map(|(claim, image)| Ok((claim, runs_of(&image)?))).collect()
    }

    /// The hashes of all files in each of a VM's disks, by claim.
    pub fn files(&self, vm: &str) -> Result<BTreeMap<String, Files>> {
        let scratch = self.layout.work.join("compare");
        self.images(vm)?
            .into_iter()
            .map(|(claim, image)| Ok((claim, disks::hash_files(&image, &scratch)?)))
            .collect()
    }

    /// Waits until a VM runs in another instance than `old`; returns its node.
    pub fn wait_for_restart(&self, vm: &str, old: &str) -> Result<String> {
        until(&format!("{vm} runs in a new instance"), PATIENCE, || {
            let look = self.look()?;
            Ok(look.running(vm).filter(|(_, uid)| *uid != old).map(|(node, _)| node.to_owned()))
        })
    }

    /// A VM's disks must say: it ran on these nodes, one after the other, never twice at once, and it runs on
    /// the last one now. Returns the longest silence on a disk between the last two instances.
    pub fn assert_history(&self, vm: &str, nodes: &[&str]) -> Result<Duration> {
        let mut gap_ms = 0;
        for (claim, runs) in until(&format!("{vm} writes on its disks"), PATIENCE, || {
            let journals = self.journals(vm)?;
            Ok(journals.values().all(|runs| runs.len() >= nodes.len()).then_some(journals))
        })? {
            let seen: Vec<_> = runs.iter().map(|run| run.node.as_str()).collect();
            ensure!(seen == nodes, "{vm}: disk {claim} says that it ran on {seen:?}, expected {nodes:?}");
            for pair in runs.windows(2) {
                let [before, after] = pair else { bail!("windows of two") };
                ensure!(before.to_ms < after.from_ms, "{vm}: two instances wrote on {claim} at once");
                gap_ms = after.from_ms - before.to_ms;
            }
        }
        Ok(Duration::from_millis(gap_ms))
    }
}

/// The one node that a local volume is on.
pub fn node_of(volume: &Value) -> Option<&str> {
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    terms[0]["matchExpressions"][0]["values"][0].as_str()
}

/// Who wrote on a disk, one after the other.
pub fn runs_of(image: &Path) -> Result<Vec<Run>> {
    Ok(Journal::open(image, false)?.runs()?)
}

//! A cluster with the stand-in on it, and what the scenarios ask of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use somersault_test_cluster::{Cluster, Log, Options, TOOLBOX_IMAGE, until};
use somersault_test_kubevirt::builders::manifest;
use somersault_test_kubevirt::judge::{self, Disk};
use somersault_test_kubevirt::{IMAGE, Standin, client};
use tokio::runtime::Runtime;

const NAME: &str = "test-kubevirt";
/// Scheduling, provisioning and starting take two to five seconds on an idle machine.
pub const DEADLINE: Duration = Duration::from_mins(1);

pub struct Bed {
    /// Ends before the cluster does.
    _standin: Standin,
    runtime: Runtime,
    client: Client,
    pub cluster: Cluster,
    began: Instant,
}

impl Bed {
    pub fn up() -> Result<Self> {
        assert_eq!(IMAGE, TOOLBOX_IMAGE, "the guest is in the cluster's toolbox");
        Cluster::down(NAME).context("removing what an earlier run has left")?;
        let options = Options { name: NAME.to_owned(), nodes: 3, tied: true, program: cluster_program()? };
        let cluster = Cluster::up(&options)?;
        let standin = Standin::start(&cluster.kubeconfig())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(client(Some(&cluster.kubeconfig())))?;
        Ok(Self { _standin: standin, runtime, client, cluster, began: Instant::now() })
    }

    /// Says where the test is.
    pub fn say(&self, what: &str) {
        eprintln!("{:5.1} s  {what}", self.began.elapsed().as_secs_f32());
    }

    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.cluster.apply(&manifest(objects))
    }

    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        self.find(kind, name)?.with_context(|| format!("there is no {kind} {name}"))
    }

    /// `None` when it is not there.
    pub fn find(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let found = self.runtime.block_on(self.api(kind)?.get_opt(name))?;
        found.map(|found| serde_json::to_value(found).context("an object")).transpose()
    }

    pub fn patch(&self, kind: &str, name: &str, patch: &Value) -> Result<()> {
        let parameters = PatchParams::default();
        self.runtime.block_on(self.api(kind)?.patch(name, &parameters, &Patch::Merge(patch)))?;
        Ok(())
    }

    pub fn patch_status(&self, kind: &str, name: &str, patch: &Value) -> Result<()> {
        let parameters = PatchParams::default();
        self.runtime.block_on(self.api(kind)?.patch_status(name, &parameters, &Patch::Merge(patch)))?;
        Ok(())
    }

    pub fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.runtime.block_on(self.api(kind)?.delete(name, &DeleteParams::default()))?;
        Ok(())
    }

    /// The launchers of a VM.
    pub fn launchers(&self, vm: &str) -> Result<Vec<String>> {
        let selector = ListParams::default().labels(&format!("vm.kubevirt.io/name={vm}"));
        let found = self.runtime.block_on(self.api("pod")?.list(&selector))?;
        Ok(found.items.into_iter().filter_map(|pod| pod.metadata.name).collect())
    }

    fn api(&self, kind: &str) -> Result<Api<DynamicObject>> {
        let (group, version, kind) = match kind {
            "vm" => ("kubevirt.io", "v1", "VirtualMachine"),
            "vmi" => ("kubevirt.io", "v1", "VirtualMachineInstance"),
            "vmim" => ("kubevirt.io", "v1", "VirtualMachineInstanceMigration"),
            "dv" => ("cdi.kubevirt.io", "v1beta1", "DataVolume"),
            "wukong" => ("vm.novasphere.dev", "v1alpha1", "Wukong"),
            "pod" => ("", "v1", "Pod"),
            "pvc" => ("", "v1", "PersistentVolumeClaim"),
            "pv" => ("", "v1", "PersistentVolume"),
            "node" => ("", "v1", "Node"),
            other => bail!("no kind {other}"),
        };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let client = self.client.clone();
        Ok(match kind {
            "PersistentVolume" | "Node" => Api::all_with(client, &resource),
            _ => Api::namespaced_with(client, "default", &resource),
        })
    }

    /// Waits until `check` finds what it looks for in an object.
    pub fn wait<T>(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        check: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        let logs = [Log(self.cluster.layout().log("kube-scheduler"))];
        let mut last = Value::Null;
        let found = until(&format!("{kind} {name}: {what}"), DEADLINE, &logs, || {
            last = self.get(kind, name)?;
            Ok(check(&last))
        });
        found.with_context(|| format!("{:#}", last["status"]))
    }

    /// Waits for the word that `kubectl get vm` prints.
    pub fn wait_vm(&self, name: &str, word: &str) -> Result<()> {
        self.wait("vm", name, word, |vm| (vm["status"]["printableStatus"] == word).then_some(()))
    }

    pub fn wait_vmi(&self, name: &str, phase: &str) -> Result<Value> {
        self.wait("vmi", name, phase, |vmi| (vmi["status"]["phase"] == phase).then(|| vmi.clone()))
    }

    /// Waits for another instance than this one to run.
    pub fn wait_new_instance(&self, name: &str, than: &Value) -> Result<Value> {
        self.wait("vmi", name, "another instance runs", |vmi| {
            let is_new = vmi["metadata"]["uid"] != than["metadata"]["uid"];
            (is_new && vmi["status"]["phase"] == "Running").then(|| vmi.clone())
        })
    }

    pub fn wait_gone(&self, kind: &str, name: &str) -> Result<()> {
        until(&format!("{kind} {name} is gone"), DEADLINE, &[], || {
            Ok(self.find(kind, name)?.is_none().then_some(()))
        })
    }

    /// What Somersault does to a dead node's launchers.
    pub fn force_delete_launcher(&self, vm: &str) -> Result<()> {
        let now = DeleteParams::default().grace_period(0);
        for pod in self.launchers(vm)? {
            self.runtime.block_on(self.api("pod")?.delete(&pod, &now))?;
        }
        Ok(())
    }

    pub fn cordon(&self, node: &str) -> Result<()> {
        self.patch("node", node, &json!({"spec": {"unschedulable": true}}))
    }

    pub fn uncordon(&self, node: &str) -> Result<()> {
        self.patch("node", node, &json!({"spec": {"unschedulable": null}}))
    }

    /// The file behind a claim, as this machine sees it.
    pub fn disk_path(&self, claim: &str) -> Result<PathBuf> {
        let volume = self.get("pvc", claim)?["spec"]["volumeName"].as_str().context("not bound")?.to_owned();
        let volume = self.get("pv", &volume)?["spec"].clone();
        let folder = volume["hostPath"]["path"].as_str().context("a volume without a path")?;
        let disk = format!("{folder}/disk.img");
        if let Some(shared) = disk.strip_prefix("/mnt/network/") {
            return Ok(self.cluster.layout().network_folder().join(shared));
        }
        let terms = &volume["nodeAffinity"]["required"]["nodeSelectorTerms"];
        let node =
            terms[0]["matchExpressions"][0]["values"][0].as_str().context("a volume without a node")?;
        self.cluster.path_on(node, &disk)
    }

    pub fn disk(&self, claim: &str) -> Result<Disk> {
        judge::read(&self.disk_path(claim)?)
    }

    /// Waits until `check` holds for what a disk says.
    pub fn wait_disk(&self, claim: &str, what: &str, check: impl Fn(&Disk) -> bool) -> Result<Disk> {
        let path = self.disk_path(claim)?;
        until(&format!("{claim}: {what}"), DEADLINE, &[], || {
            let disk = judge::read(&path)?;
            Ok(check(&disk).then_some(disk))
        })
    }
}

/// Cargo puts it beside us.
fn cluster_program() -> Result<PathBuf> {
    let test = std::env::current_exe().context("finding this program")?;
    let folder = test.parent().and_then(|deps| deps.parent()).context("a program without a folder")?;
    let program = folder.join("somersault-cluster");
    ensure!(program.exists(), "{} is missing: cargo build -p somersault-test-cluster", program.display());
    Ok(program)
}

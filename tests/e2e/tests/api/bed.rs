//! A cluster of one node, our definitions on it, and a look at its objects that owes nothing to the code under test.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use somersault_coordinator::cluster::ClusterError;
use somersault_coordinator::cluster::kube::Writer;
use somersault_coordinator_core::io::Action;
use somersault_test_cluster::{Cluster, Options};
use tokio::time::{Instant, sleep};

/// Binders, garbage collectors and kubelets work within seconds, on a busy machine too.
const PATIENCE: Duration = Duration::from_mins(1);
/// The one node.
pub const NODE: &str = "n1";
/// Namespace of everything that has one.
pub const SHOP: &str = "shop";
/// The coordinator's own namespace.
pub const SYSTEM: &str = "somersault-system";

/// Kind, group, version, plural, whether namespaced: of what the steps look at.
const KINDS: [(&str, &str, &str, &str, bool); 20] = [
    ("Node", "", "v1", "nodes", false),
    ("Pod", "", "v1", "pods", true),
    ("Namespace", "", "v1", "namespaces", false),
    ("PersistentVolume", "", "v1", "persistentvolumes", false),
    ("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims", true),
    ("ResourceQuota", "", "v1", "resourcequotas", true),
    ("LimitRange", "", "v1", "limitranges", true),
    ("StorageClass", "storage.k8s.io", "v1", "storageclasses", false),
    ("CronJob", "batch", "v1", "cronjobs", true),
    ("Job", "batch", "v1", "jobs", true),
    ("Deployment", "apps", "v1", "deployments", true),
    ("VirtualMachine", "kubevirt.io", "v1", "virtualmachines", true),
    ("VirtualMachineInstance", "kubevirt.io", "v1", "virtualmachineinstances", true),
    ("VirtualMachineInstanceMigration", "kubevirt.io", "v1", "virtualmachineinstancemigrations", true),
    ("DataVolume", "cdi.kubevirt.io", "v1beta1", "datavolumes", true),
    ("Wukong", "vm.novasphere.dev", "v1alpha1", "wukongs", true),
    ("NodeHealth", "somersault.novasphere.dev", "v1alpha1", "nodehealths", false),
    ("Recovery", "somersault.novasphere.dev", "v1alpha1", "recoveries", true),
    ("VolumeMigration", "somersault.novasphere.dev", "v1alpha1", "volumemigrations", true),
    ("Evacuation", "somersault.novasphere.dev", "v1alpha1", "evacuations", false),
];

/// The cluster, as the steps use it.
pub struct Bed {
    pub cluster: Cluster,
    pub client: Client,
    pub writer: Writer,
}

/// Brings the cluster up.
pub fn up() -> Result<Cluster> {
    let name = "test-api";
    Cluster::down(name).context("removing what an earlier run has left")?;
    let cluster =
        Cluster::up(&Options { name: name.to_owned(), nodes: 1, tied: true, program: cluster_program()? })?;
    cluster.ask(&["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds")])?;
    cluster.apply(somersault_test_kubevirt::CRDS)?;
    cluster.ask(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
    Ok(cluster)
}

/// The program that becomes the first process of worlds and nodes; cargo puts it beside us.
fn cluster_program() -> Result<PathBuf> {
    let test = std::env::current_exe().context("finding this program")?;
    let folder = test.parent().and_then(|deps| deps.parent()).context("a program without a folder")?;
    let program = folder.join("somersault-cluster");
    ensure!(program.exists(), "{} is not built: cargo build -p somersault-test-cluster", program.display());
    Ok(program)
}

impl Bed {
    /// Connects to a cluster that is up.
    pub async fn on(cluster: Cluster) -> Result<Self> {
        let client = client(&cluster).await?;
        let bed = Self { writer: Writer::new(client.clone(), SYSTEM, "test-0"), client, cluster };
        for name in [SHOP, SYSTEM] {
            bed.create(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }))
                .await?;
        }
        Ok(bed)
    }

    /// One more writer of the same cluster.
    pub fn another_writer(&self) -> Writer {
        Writer::new(self.client.clone(), SYSTEM, "test-1")
    }

    pub fn api(&self, kind: &str) -> Api<DynamicObject> {
        Self::api_by(&self.client, kind)
    }

    /// The same under the coordinator's name, with every right.
    pub async fn api_as_coordinator(&self, kind: &str) -> Result<Api<DynamicObject>> {
        let mut config = config(&self.cluster).await?;
        config.auth_info.impersonate = Some(format!("system:serviceaccount:{SYSTEM}:somersault-coordinator"));
        config.auth_info.impersonate_groups = Some(vec!["system:masters".to_owned()]);
        Ok(Self::api_by(&Client::try_from(config)?, kind))
    }

    fn api_by(client: &Client, kind: &str) -> Api<DynamicObject> {
        let (kind, group, version, plural, namespaced) =
            *KINDS.iter().find(|(known, ..)| *known == kind).expect("a kind of the table");
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        if namespaced {
            Api::namespaced_with(client.clone(), SHOP, &resource)
        } else {
            Api::all_with(client.clone(), &resource)
        }
    }

    /// An object; `Null` where there is none.
    pub async fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let found = self.api(kind).get_opt(name).await?;
        Ok(found.map(serde_json::to_value).transpose()?.unwrap_or_default())
    }

    pub async fn create(&self, mut object: Value) -> Result<Value> {
        let kind = object["kind"].as_str().context("an object without a kind")?.to_owned();
        if KINDS.iter().any(|(known, _, _, _, namespaced)| *known == kind && *namespaced) {
            object["metadata"]["namespace"] = json!(SHOP);
        }
        let made = self.api(&kind).create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(serde_json::to_value(made)?)
    }

    /// Sets a field of the spec to exactly this, or removes it.
    pub async fn set_spec(&self, kind: &str, name: &str, field: &str, value: Option<Value>) -> Result<()> {
        let mut object = self.get(kind, name).await?;
        let spec = object["spec"].as_object_mut().context("an object without a spec")?;
        match value {
            Some(value) => spec.insert(field.to_owned(), value),
            None => spec.remove(field),
        };
        let object = serde_json::from_value(object)?;
        self.api(kind).replace(name, &PostParams::default(), &object).await?;
        Ok(())
    }

    pub async fn patch(&self, kind: &str, name: &str, patch: Value) -> Result<()> {
        let patched = self.api(kind).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).with_context(|| format!("patching {kind} {name}"))
    }

    pub async fn patch_status(&self, kind: &str, name: &str, status: Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "status": status }));
        let patched = self.api(kind).patch_status(name, &PatchParams::default(), &patch).await;
        patched.map(drop).with_context(|| format!("patching the status of {kind} {name}"))
    }

    pub async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.api(kind).delete(name, &DeleteParams::default().grace_period(0)).await?;
        self.until(&format!("{kind} {name} is gone"), async || Ok(self.get(kind, name).await?.is_null()))
            .await
    }

    /// Asks until the answer is yes.
    pub async fn until(&self, what: &str, check: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !check().await? {
            ensure!(Instant::now() < deadline, "{what}: not within {} s", PATIENCE.as_secs());
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Does it, and does it again: the second time nothing may change of the object that it is about.
    pub async fn twice(&self, action: &Action, kind: &str, name: &str) -> Result<()> {
        self.writer.act(action).await.with_context(|| format!("{action:?}"))?;
        let once = ours(self.get(kind, name).await?);
        self.writer.act(action).await.with_context(|| format!("again: {action:?}"))?;
        let again = ours(self.get(kind, name).await?);
        ensure!(once == again, "{action:?} is not idempotent:\n{once}\n{again}");
        Ok(())
    }

    /// It must be refused, for this reason, and change nothing of the object.
    pub async fn refused(&self, action: &Action, why: &str, kind: &str, name: &str) -> Result<()> {
        let before = ours(self.get(kind, name).await?);
        match self.writer.act(action).await {
            Ok(()) => bail!("{action:?} was done"),
            Err(error @ ClusterError::Io { .. }) => bail!("{action:?}: {error}: as if it could pass"),
            Err(error) => ensure!(error.to_string().contains(why), "{error} does not say {why:?}"),
        }
        let after = ours(self.get(kind, name).await?);
        ensure!(before == after, "{action:?} was refused and changed something:\n{before}\n{after}");
        Ok(())
    }
}

/// What nobody but us writes of an object.
fn ours(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["resourceVersion", "managedFields", "generation", "finalizers"] {
            metadata.remove(field);
        }
        // Kubernetes notes here how far it is with binding.
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|name, _| !name.starts_with("pv.kubernetes.io/"));
        }
    }
    object
}

async fn client(cluster: &Cluster) -> Result<Client> {
    Ok(Client::try_from(config(cluster).await?)?)
}

async fn config(cluster: &Cluster) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

/// Without an API server everything is trouble that may pass, and nothing hangs; with it again, all goes on.
pub async fn away(bed: &Bed) -> Result<()> {
    bed.cluster.stop_program(None, "kube-apiserver")?;
    let taint = Action::Taint { node: NODE.into() };
    let began = Instant::now();
    let refused = bed.writer.act(&taint).await;
    ensure!(matches!(refused, Err(ClusterError::Io { .. })), "{refused:?}");
    ensure!(began.elapsed() < Duration::from_secs(6), "it took {:?} to say so", began.elapsed());
    bed.cluster.start_program(None, "kube-apiserver")?;
    bed.until("the API server is back", async || Ok(bed.writer.act(&taint).await.is_ok())).await
}

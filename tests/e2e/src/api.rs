//! The API server, for code that waits: raw objects by kind and name, one call after the other.
//!
//! A `kubectl` for each look would cost more processor than what is being watched.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kube::api::{Api as KubeApi, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::Value;
use tokio::runtime::Runtime;

/// No call here reads more than a few dozen objects; a longer wait means that the API server is away.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// A kind that scenarios look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(&'static str, &'static str, &'static str, bool);

#[allow(missing_docs)] // The names say it.
impl Kind {
    pub const NODE: Self = Self("", "v1", "Node", false);
    pub const POD: Self = Self("", "v1", "Pod", true);
    pub const NAMESPACE: Self = Self("", "v1", "Namespace", false);
    pub const VOLUME: Self = Self("", "v1", "PersistentVolume", false);
    pub const CLAIM: Self = Self("", "v1", "PersistentVolumeClaim", true);
    pub const LEASE: Self = Self("coordination.k8s.io", "v1", "Lease", true);
    pub const EVENT: Self = Self("events.k8s.io", "v1", "Event", true);
    pub const DEPLOYMENT: Self = Self("apps", "v1", "Deployment", true);
    pub const DAEMON_SET: Self = Self("apps", "v1", "DaemonSet", true);
    pub const VM: Self = Self("kubevirt.io", "v1", "VirtualMachine", true);
    pub const VMI: Self = Self("kubevirt.io", "v1", "VirtualMachineInstance", true);
    pub const LIVE_MIGRATION: Self = Self("kubevirt.io", "v1", "VirtualMachineInstanceMigration", true);
    pub const DATA_VOLUME: Self = Self("cdi.kubevirt.io", "v1beta1", "DataVolume", true);
    pub const WUKONG: Self = Self("vm.novasphere.dev", "v1alpha1", "Wukong", true);
    pub const MIGRATION: Self = Self("somersault.novasphere.dev", "v1alpha1", "VolumeMigration", true);
    pub const NODE_HEALTH: Self = Self("somersault.novasphere.dev", "v1alpha1", "NodeHealth", false);
    pub const RECOVERY: Self = Self("somersault.novasphere.dev", "v1alpha1", "Recovery", true);
    pub const POLICY: Self = Self("somersault.novasphere.dev", "v1alpha1", "RecoveryPolicy", false);
}

/// A client that blocks.
pub struct Api {
    runtime: Runtime,
    client: Client,
}

impl Api {
    /// For the cluster that a kubeconfig names.
    pub fn of(kubeconfig: &std::path::Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("starting a runtime")?;
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(kubeconfig)?;
            let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
            config.connect_timeout = Some(CALL_DEADLINE);
            config.read_timeout = Some(CALL_DEADLINE);
            anyhow::Ok(Client::try_from(config)?)
        });
        let client = client.with_context(|| format!("using {}", kubeconfig.display()))?;
        Ok(Self { runtime, client })
    }

    /// An object; `None` where there is none.
    pub fn find(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Value>> {
        let found = self.call(self.objects(kind, namespace).get_opt(name))?;
        found.map(|object| serde_json::to_value(object).context("an object that is no JSON")).transpose()
    }

    /// An object that is there.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Value> {
        self.find(kind, namespace, name)?
            .with_context(|| format!("there is no {} {namespace}/{name}", kind.2))
    }

    /// The objects of a kind with these labels; of every namespace where none is named.
    pub fn list(&self, kind: Kind, namespace: &str, labels: &str) -> Result<Vec<Value>> {
        let parameters = ListParams::default().labels(labels);
        let found = self.call(async move { self.objects(kind, namespace).list(&parameters).await })?;
        found.items.into_iter().map(|object| Ok(serde_json::to_value(object)?)).collect()
    }

    /// Creates an object.
    pub fn create(&self, kind: Kind, namespace: &str, object: Value) -> Result<()> {
        let object: DynamicObject = serde_json::from_value(object).context("a manifest")?;
        let parameters = PostParams::default();
        self.call(async move { self.objects(kind, namespace).create(&parameters, &object).await }).map(drop)
    }

    /// Merges a change into an object.
    pub fn merge(&self, kind: Kind, namespace: &str, name: &str, change: &Value) -> Result<()> {
        let parameters = PatchParams::default();
        self.call(async move {
            self.objects(kind, namespace).patch(name, &parameters, &Patch::Merge(change)).await
        })
        .map(drop)
    }

    /// Merges a change into an object's status.
    pub fn merge_status(&self, kind: Kind, namespace: &str, name: &str, change: &Value) -> Result<()> {
        let parameters = PatchParams::default();
        self.call(async move {
            self.objects(kind, namespace).patch_status(name, &parameters, &Patch::Merge(change)).await
        })
        .map(drop)
    }

    /// Deletes an object; one that is not there is gone already.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<()> {
        let parameters = DeleteParams::default();
        let deleted =
            self.runtime.block_on(async { self.objects(kind, namespace).delete(name, &parameters).await });
        match deleted {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("deleting {} {namespace}/{name}", kind.2)),
        }
    }

    fn objects(&self, kind: Kind, namespace: &str) -> KubeApi<DynamicObject> {
        let Kind(group, version, name, namespaced) = kind;
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, name));
        if namespaced && !namespace.is_empty() {
            KubeApi::namespaced_with(self.client.clone(), namespace, &resource)
        } else {
            KubeApi::all_with(self.client.clone(), &resource)
        }
    }

    fn call<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(CALL_DEADLINE, call).await });
        match answer {
            Ok(answer) => answer.context("asking the API server"),
            Err(_) => Err(anyhow!("the API server did not answer within {CALL_DEADLINE:?}")),
        }
    }
}

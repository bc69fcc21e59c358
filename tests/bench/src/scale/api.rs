//! The API server, for many raw objects at a time.

use std::path::Path;

use anyhow::{Context, Result};
use kube::api::{Api as KubeApi, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::{Value, json};

/// Group, version, name and plural of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(&'static str, &'static str, &'static str, &'static str);

#[allow(missing_docs)] // The names say it.
impl Kind {
    pub const NAMESPACE: Self = Self("", "v1", "Namespace", "namespaces");
    pub const ACCOUNT: Self = Self("", "v1", "ServiceAccount", "serviceaccounts");
    pub const NODE: Self = Self("", "v1", "Node", "nodes");
    pub const LEASE: Self = Self("coordination.k8s.io", "v1", "Lease", "leases");
    pub const CLASS: Self = Self("storage.k8s.io", "v1", "StorageClass", "storageclasses");
    pub const DRIVER: Self = Self("storage.k8s.io", "v1", "CSIDriver", "csidrivers");
    pub const CLAIM: Self = Self("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims");
    pub const VOLUME: Self = Self("", "v1", "PersistentVolume", "persistentvolumes");
    pub const ATTACHMENT: Self = Self("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments");
    pub const VM: Self = Self("kubevirt.io", "v1", "VirtualMachine", "virtualmachines");
    pub const INSTANCE: Self = Self("kubevirt.io", "v1", "VirtualMachineInstance", "virtualmachineinstances");
    pub const POD: Self = Self("", "v1", "Pod", "pods");
    pub const HEALTH: Self = Self("somersault.novasphere.dev", "v1alpha1", "NodeHealth", "nodehealths");
    pub const POLICY: Self =
        Self("somersault.novasphere.dev", "v1alpha1", "RecoveryPolicy", "recoverypolicies");

    fn resource(self) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(self.0, self.1, self.2), self.3)
    }
}

/// The API server.
#[derive(Clone)]
pub struct Api(Client);

impl Api {
    /// The one that a kubeconfig names.
    pub async fn of(kubeconfig: &Path) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(Self(Client::try_from(config)?))
    }

    /// Its client.
    pub fn client(&self) -> &Client {
        &self.0
    }

    /// The objects of a kind, of one namespace or of all.
    pub fn all(&self, kind: Kind, namespace: Option<&str>) -> KubeApi<DynamicObject> {
        match namespace {
            Some(namespace) => KubeApi::namespaced_with(self.0.clone(), namespace, &kind.resource()),
            None => KubeApi::all_with(self.0.clone(), &kind.resource()),
        }
    }

    /// Creates an object, and returns its uid.
    pub async fn create(&self, kind: Kind, mut object: Value) -> Result<String> {
        let resource = kind.resource();
        object["kind"] = json!(resource.kind);
        object["apiVersion"] = json!(resource.api_version);
        let object: DynamicObject = serde_json::from_value(object).context("a manifest")?;
        let api = self.all(kind, object.metadata.namespace.as_deref());
        let created = api.create(&PostParams::default(), &object).await;
        let name = || format!("creating {} {}", kind.2, object.metadata.name.clone().unwrap_or_default());
        created.with_context(name)?.metadata.uid.context("an object without a uid")
    }

    /// Creates an object whose status is written by a second request.
    pub async fn create_with_status(&self, kind: Kind, object: Value, status: Value) -> Result<String> {
        let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
        let (namespace, name) = (text("namespace"), text("name").context("an object without a name")?);
        let uid = self.create(kind, object).await?;
        self.merge_status(kind, namespace.as_deref(), &name, status).await?;
        Ok(uid)
    }

    /// Merges into an object's status.
    pub async fn merge_status(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
        status: Value,
    ) -> Result<()> {
        let (api, change) = (self.all(kind, namespace), Patch::Merge(json!({ "status": status })));
        let written = api.patch_status(name, &PatchParams::default(), &change).await;
        written.map(drop).with_context(|| format!("writing the status of {} {name}", kind.2))
    }

    /// Merges a change into an object.
    pub async fn merge(&self, kind: Kind, namespace: Option<&str>, name: &str, change: Value) -> Result<()> {
        let (api, change) = (self.all(kind, namespace), Patch::Merge(change));
        let merged = api.patch(name, &PatchParams::default(), &change).await;
        merged.map(drop).with_context(|| format!("changing {} {name}", kind.2))
    }
}

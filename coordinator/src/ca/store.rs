//! Where the authorities are kept: a Secret, written by compare-and-swap, and a ConfigMap, applied.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};

use super::BUNDLE_NAME;

/// Who writes, as the API server records it.
const FIELD_MANAGER: &str = "somersault";

/// The Secret and the ConfigMap.
pub trait CaStore: Send + Sync + 'static {
    /// Name of the Secret.
    fn name(&self) -> &str;

    /// The Secret, if it is there.
    fn read(&self) -> impl Future<Output = Result<Option<Secret>, StoreError>> + Send;

    /// Makes the Secret; false where it is there already.
    fn create(&self, secret: &Secret) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Replaces the Secret whose resource version it bears; false where that is not the newest any more.
    fn replace(&self, secret: &Secret) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// The ConfigMap, if it is there.
    fn published(&self) -> impl Future<Output = Result<Option<ConfigMap>, StoreError>> + Send;

    /// Makes the ConfigMap say this, whatever it says now.
    fn publish(&self, bundle: &ConfigMap) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// The API server did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct StoreError {
    /// What was asked, with the object's name.
    pub what: String,
    /// What it said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The store of a real cluster.
#[derive(Clone)]
pub struct KubeStore {
    name: String,
    secrets: Api<Secret>,
    bundles: Api<ConfigMap>,
}

impl KubeStore {
    /// In our own namespace.
    pub fn new(client: &Client, namespace: &str, secret: &str) -> Self {
        Self {
            name: secret.to_owned(),
            secrets: Api::namespaced(client.clone(), namespace),
            bundles: Api::namespaced(client.clone(), namespace),
        }
    }
}

impl CaStore for KubeStore {
    fn name(&self) -> &str {
        &self.name
    }

    async fn read(&self) -> Result<Option<Secret>, StoreError> {
        self.secrets.get_opt(&self.name).await.map_err(failed("read Secret", &self.name))
    }

    async fn create(&self, secret: &Secret) -> Result<bool, StoreError> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        lost_to_another(self.secrets.create(&params, secret).await)
            .map_err(failed("create Secret", &self.name))
    }

    async fn replace(&self, secret: &Secret) -> Result<bool, StoreError> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        lost_to_another(self.secrets.replace(&secret.name_any(), &params, secret).await)
            .map_err(failed("update Secret", &self.name))
    }

    async fn published(&self) -> Result<Option<ConfigMap>, StoreError> {
        self.bundles.get_opt(BUNDLE_NAME).await.map_err(failed("read ConfigMap", BUNDLE_NAME))
    }

    async fn publish(&self, bundle: &ConfigMap) -> Result<(), StoreError> {
        // By force: nobody else has a say in whom our agents trust.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = self.bundles.patch(BUNDLE_NAME, &params, &Patch::Apply(bundle)).await;
        applied.map(drop).map_err(failed("apply ConfigMap", BUNDLE_NAME))
    }
}

fn failed(what: &str, name: &str) -> impl FnOnce(kube::Error) -> StoreError {
    let what = format!("{what} {name}");
    |source| StoreError { what, source: source.into() }
}

/// False where the API server says that somebody was faster: it exists, or has another version, or is gone.
fn lost_to_another<T>(written: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(error),
    }
}

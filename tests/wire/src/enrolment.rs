//! A coordinator with an authority of its own, on stand-ins for the API server: a Secret and a ConfigMap in memory, and
//! tokens that a test hands out and that are reviewed as Kubernetes does it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use somersault_coordinator::ca::{CaPolicy, CaStore, StoreError};
use somersault_coordinator::certificates::{Certificates, EnrolmentPlan};
use somersault_coordinator::enroll::{Accounts, ReviewError, Reviewer};
use somersault_proto::enroll::{Enrolment, TOKEN_AUDIENCE};
use somersault_proto::tls::Identity;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::SOON;

/// Name of the Secret.
pub const SECRET: &str = "somersault-ca";
/// Where everything lives.
pub const NAMESPACE: &str = "somersault-system";

/// A Secret and a ConfigMap in memory, written by compare-and-swap as on an API server.
#[derive(Clone, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    version: u64,
    secret: Option<Secret>,
    bundle: Option<ConfigMap>,
}

impl MemoryStore {
    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The published authorities, PEM.
    pub fn bundle(&self) -> Option<String> {
        self.with(|inner| inner.bundle.as_ref()?.data.as_ref()?.get("ca.crt").cloned())
    }

    /// Changes what is published, as somebody with too many rights would.
    pub fn deface_bundle(&self, text: &str) {
        self.with(|inner| {
            let bundle = inner.bundle.get_or_insert_default();
            bundle.data = Some([("ca.crt".to_owned(), text.to_owned())].into());
        });
    }

    /// Deletes the Secret.
    pub fn delete_secret(&self) {
        self.with(|inner| inner.secret = None);
    }

    /// The keys of the Secret.
    pub fn secret_keys(&self) -> Vec<String> {
        self.with(|inner| {
            let data = inner.secret.as_ref().and_then(|secret| secret.data.as_ref());
            data.map(|data| data.keys().cloned().collect()).unwrap_or_default()
        })
    }

    /// Annotates the Secret, as a person does.
    pub fn annotate(&self, annotation: &str) {
        self.with(|inner| {
            inner.version += 1;
            let version = inner.version.to_string();
            if let Some(secret) = &mut inner.secret {
                let annotations = secret.metadata.annotations.get_or_insert_default();
                annotations.insert(annotation.to_owned(), "now".to_owned());
                secret.metadata.resource_version = Some(version);
            }
        });
    }

    fn write(inner: &mut Inner, secret: &Secret) {
        inner.version += 1;
        let mut secret = secret.clone();
        secret.metadata.resource_version = Some(inner.version.to_string());
        inner.secret = Some(secret);
    }
}

impl CaStore for MemoryStore {
    fn name(&self) -> &str {
        SECRET
    }

    async fn read(&self) -> Result<Option<Secret>, StoreError> {
        Ok(self.with(|inner| inner.secret.clone()))
    }

    async fn create(&self, secret: &Secret) -> Result<bool, StoreError> {
        // Both of two that start together have read that there is none.
        sleep(Duration::from_millis(5)).await;
        Ok(self.with(|inner| {
            let free = inner.secret.is_none();
            if free {
                Self::write(inner, secret);
            }
            free
        }))
    }

    async fn replace(&self, secret: &Secret) -> Result<bool, StoreError> {
        Ok(self.with(|inner| {
            let found = inner.secret.as_ref().and_then(|found| found.metadata.resource_version.clone());
            let newest = found.is_some() && found == secret.metadata.resource_version;
            if newest {
                Self::write(inner, secret);
            }
            newest
        }))
    }

    async fn published(&self) -> Result<Option<ConfigMap>, StoreError> {
        Ok(self.with(|inner| inner.bundle.clone()))
    }

    async fn publish(&self, bundle: &ConfigMap) -> Result<(), StoreError> {
        self.with(|inner| inner.bundle = Some(bundle.clone()));
        Ok(())
    }
}

/// A token, as Kubernetes knows it.
#[derive(Clone, Debug)]
pub struct Token {
    /// Whom it is for.
    pub audience: String,
    /// `system:serviceaccount:…`.
    pub account: String,
    /// The pod that it is bound to.
    pub pod: Option<String>,
    /// That pod's node; not told by an API server before Kubernetes 1.30.
    pub node: Option<String>,
    /// It has ended.
    pub ended: bool,
}

impl Token {
    /// Of the agent on a node.
    pub fn of_agent(node: &str) -> Self {
        Self {
            audience: TOKEN_AUDIENCE.to_owned(),
            account: format!("system:serviceaccount:{NAMESPACE}:somersault-agent"),
            pod: Some(format!("agent-{node}")),
            node: Some(node.to_owned()),
            ended: false,
        }
    }
}

/// Reviews tokens as an API server does.
#[derive(Clone, Default)]
pub struct Kubernetes {
    tokens: Arc<Mutex<BTreeMap<String, Token>>>,
    pods: Arc<Mutex<BTreeMap<String, Pod>>>,
}

impl Kubernetes {
    /// Makes a token known.
    pub fn issue(&self, secret: &str, token: Token) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(secret.to_owned(), token);
    }

    /// A pod with the uid that its tokens tell, running on a node.
    pub fn run_pod(&self, name: &str, uid: &str, node: &str) {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), pod);
    }
}

impl Reviewer for Kubernetes {
    async fn review(&self, secret: String) -> Result<TokenReviewStatus, ReviewError> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let refused =
            |why: &str| TokenReviewStatus { error: Some(why.to_owned()), ..TokenReviewStatus::default() };
        Ok(match tokens.get(&secret) {
            None => refused("invalid bearer token"),
            Some(token) if token.ended => refused("token has expired"),
            Some(token) if token.audience != TOKEN_AUDIENCE => {
                refused("token audiences are invalid for the target audiences")
            }
            Some(token) => {
                let fields = [
                    ("pod-name", token.pod.clone()),
                    ("pod-uid", token.pod.as_ref().map(|pod| format!("uid-{pod}"))),
                    ("node-name", token.node.clone()),
                ];
                let extra = fields.into_iter().filter_map(|(key, value)| {
                    Some((format!("authentication.kubernetes.io/{key}"), vec![value?]))
                });
                TokenReviewStatus {
                    authenticated: Some(true),
                    audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
                    user: Some(UserInfo {
                        username: Some(token.account.clone()),
                        extra: Some(extra.collect()),
                        ..UserInfo::default()
                    }),
                    error: None,
                }
            }
        })
    }

    async fn pod(&self, name: &str) -> Result<Option<Pod>, ReviewError> {
        Ok(self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }
}

/// What an authority needs of a cluster, and where it enrols.
pub struct Enrolling {
    /// Its Secret and ConfigMap.
    pub store: MemoryStore,
    /// Its tokens.
    pub kubernetes: Kubernetes,
    /// Where it enrols.
    pub address: SocketAddr,
    folder: TempDir,
}

impl Enrolling {
    /// An authority whose certificates live so long.
    pub async fn start(leaf_lifetime: Duration) -> Result<(Self, Certificates)> {
        let (store, kubernetes) = (MemoryStore::default(), Kubernetes::default());
        let policy = CaPolicy { leaf_lifetime, ..CaPolicy::default() };
        let plan = EnrolmentPlan {
            listen: "127.0.0.1:0".parse()?,
            policy,
            store: store.clone(),
            reviewer: kubernetes.clone(),
            accounts: Accounts::new(NAMESPACE),
        };
        let (certificates, address) = Certificates::from_authority(plan).await?;
        Ok((Self { store, kubernetes, address, folder: TempDir::new()? }, certificates))
    }

    /// What the agent of a node has: this token, and the bundle as the kubelet would mount it now.
    pub fn pod(&self, node: &str, token: &str) -> Result<Enrolment> {
        let folder = self.folder.path().join(node);
        std::fs::create_dir_all(&folder)?;
        let enrolment = Enrolment {
            identity: Identity::Node(node.parse()?),
            coordinators: vec![self.address.to_string().parse()?],
            token_file: folder.join("token"),
            bundle_file: folder.join("ca.crt"),
        };
        std::fs::write(&enrolment.token_file, token)?;
        std::fs::write(&enrolment.bundle_file, self.store.bundle().context("nothing is published")?)?;
        Ok(enrolment)
    }

    /// Keeps a mounted bundle as the kubelet does: somewhat late.
    pub fn mount(&self, bundle_file: PathBuf) -> impl Future<Output = ()> + Send + 'static {
        let store = self.store.clone();
        async move {
            loop {
                sleep(Duration::from_millis(300)).await;
                let Some(bundle) = store.bundle() else { continue };
                // Renamed into its place, as the kubelet does: nobody reads half of it.
                let new = bundle_file.with_extension("new");
                if std::fs::write(&new, bundle).is_ok() {
                    drop(std::fs::rename(&new, &bundle_file));
                }
            }
        }
    }

    /// Waits until the authorities are as wanted.
    pub async fn until_bundle(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let seen = async {
            loop {
                if let Some(bundle) = self.store.bundle().filter(|bundle| wanted(bundle)) {
                    return bundle;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, seen).await.with_context(|| format!("never: {what}"))
    }
}

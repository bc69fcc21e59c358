//! Clients of the API server.
//!
//! One for calls, one for watches: a watch stays silent for as long as nothing changes, a call does not.

use std::time::Duration;

use kube::config::{InferConfigError, KubeConfigOptions};
use kube::{Client, Config};

/// An API server that does not take a connection within this time is away, or another one must be asked.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// No answer to a call takes longer; the caller's own deadline is shorter.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// A watch ends by itself before that (see [`super::watch`]): then its connection is dead.
const WATCH_SILENT_MAX: Duration = Duration::from_secs(super::watch::TURN_SECONDS as u64 + 5);

/// The two clients, and the namespace that the configuration names.
pub(super) struct Clients {
    /// For calls.
    pub calls: Client,
    /// For watches.
    pub watches: Client,
    /// Of the pod, or of the context.
    pub namespace: String,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a pod's files nor a kubeconfig.
    #[error("there is neither a pod's service account nor a kubeconfig that can be used")]
    Config(#[source] InferConfigError),
    /// The context is not in the kubeconfig, or says something unusable.
    #[error("the kubeconfig's context {context} cannot be used")]
    Context {
        /// Which.
        context: String,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// No thread to be had.
    #[error("cannot start the thread that joins the cluster's objects")]
    Thread(#[source] std::io::Error),
    /// What they say cannot be used.
    #[error("no client can be made for {server}")]
    Client {
        /// Where.
        server: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
}

/// Makes the clients: from the kubeconfig where there is one, or from a context of it, else from a pod's own files.
/// Nothing is asked yet.
pub(super) async fn connect(context: Option<&str>) -> Result<Clients, ConnectError> {
    let mut config = match context {
        None => Config::infer().await.map_err(ConnectError::Config)?,
        Some(context) => {
            let options = KubeConfigOptions { context: Some(context.to_owned()), ..Default::default() };
            Config::from_kubeconfig(&options)
                .await
                .map_err(|source| ConnectError::Context { context: context.to_owned(), source })?
        }
    };
    config.connect_timeout = Some(CONNECT_WITHIN);
    config.write_timeout = Some(READ_WITHIN);
    let client = |read: Duration| {
        let mut config = config.clone();
        config.read_timeout = Some(read);
        let server = config.cluster_url.to_string();
        Client::try_from(config).map_err(|source| ConnectError::Client { server, source })
    };
    let (calls, watches) = (client(READ_WITHIN)?, client(WATCH_SILENT_MAX)?);
    Ok(Clients { calls, watches, namespace: config.default_namespace })
}

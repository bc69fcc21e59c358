//! Clients of the API server.
//!
//! One for calls, one for watches: a watch stays silent for as long as nothing changes, a call does not. Neither
//! trusts a connection that is silent for longer than it can be alive: its peer may be frozen, or gone without a word.

use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::header::USER_AGENT;
use kube::config::{InferConfigError, KubeConfigOptions};
use kube::{Client, Config};

/// An API server that does not take a connection within this time is away, or another one must be asked.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// No answer to a call takes longer; the caller's own deadline is shorter.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// A watch ends by itself before that (see [`super::watch`]): then its connection is dead. What comes on top is what a
/// busy server may take to begin a list, or to say that a watch has ended.
const WATCH_SILENT_MAX: Duration = Duration::from_secs(super::watch::TURN_SECONDS as u64 + 5);
/// Who we are in the API server's logs and metrics.
const AGENT: &str = concat!("somersault-coordinator/", env!("CARGO_PKG_VERSION"));

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
    let config = match context {
        None => Config::infer().await.map_err(ConnectError::Config)?,
        Some(context) => {
            let options = KubeConfigOptions { context: Some(context.to_owned()), ..Default::default() };
            Config::from_kubeconfig(&options)
                .await
                .map_err(|source| ConnectError::Context { context: context.to_owned(), source })?
        }
    };
    clients(config, WATCH_SILENT_MAX)
}

fn clients(mut config: Config, watch_silent_max: Duration) -> Result<Clients, ConnectError> {
    config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
    config.connect_timeout = Some(CONNECT_WITHIN);
    config.write_timeout = Some(READ_WITHIN);
    let client = |read: Duration| {
        let mut config = config.clone();
        config.read_timeout = Some(read);
        let server = config.cluster_url.to_string();
        Client::try_from(config).map_err(|source| ConnectError::Client { server, source })
    };
    let (calls, watches) = (client(READ_WITHIN)?, client(watch_silent_max)?);
    Ok(Clients { calls, watches, namespace: config.default_namespace })
}

#[cfg(test)]
mod tests {
    //! Shows on a real socket who we say that we are, and that a server which falls silent is left.

    use futures::StreamExt as _;
    use k8s_openapi::api::core::v1::Node;
    use kube::Api;
    use kube::api::WatchParams;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const SHORTLY: Duration = Duration::from_millis(300);

    async fn server() -> (TcpListener, Clients) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let config = Config::new(format!("http://{address}").parse().expect("a URL"));
        (listener, clients(config, SHORTLY).expect("clients"))
    }

    async fn request_of(socket: &mut TcpStream) -> String {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(socket.read_u8().await.expect("a request"));
        }
        String::from_utf8(request).expect("text")
    }

    #[tokio::test]
    async fn the_server_is_told_who_asks() {
        let (listener, clients) = server().await;
        for client in [clients.calls, clients.watches] {
            let asking = tokio::spawn(async move { client.apiserver_version().await });
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let request = request_of(&mut socket).await;
            assert!(request.contains(&format!("user-agent: {AGENT}\r\n")), "{request}");
            asking.abort();
        }
    }

    #[test]
    fn a_silent_watch_is_left_within_fifteen_seconds_but_not_before_it_ends_by_itself() {
        let turn = Duration::from_secs(crate::cluster::kube::watch::TURN_SECONDS.into());
        assert!(turn < WATCH_SILENT_MAX && WATCH_SILENT_MAX <= Duration::from_secs(15));
    }

    #[tokio::test]
    async fn a_watch_on_a_connection_that_fell_silent_ends() {
        let (listener, clients) = server().await;
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            request_of(&mut socket).await;
            let event =
                r#"{"type":"ADDED","object":{"kind":"Node","apiVersion":"v1","metadata":{"name":"n1"}}}"#;
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            let chunk = format!("{head}{:x}\r\n{event}\n\r\n", event.len() + 1);
            socket.write_all(chunk.as_bytes()).await.expect("it listens");
            // Open, and silent for ever.
            std::future::pending::<()>().await;
        });
        let api: Api<Node> = Api::all(clients.watches);
        let events = api.watch(&WatchParams::default(), "1").await.expect("a watch");
        let mut events = std::pin::pin!(events);
        assert!(matches!(events.next().await, Some(Ok(_))), "what was told before counts");
        let noticed = tokio::time::timeout(SHORTLY * 20, events.next()).await;
        assert!(!matches!(noticed.expect("it ends"), Some(Ok(_))), "nothing more was told");
        server.abort();
    }
}

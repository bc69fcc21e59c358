//! Probes: does a node's agent answer, or at least its kernel?
//!
//! ```text
//!   TCP connect ── refused ─────────────────────────► Kernel
//!        │   └──── no answer, no route, no time ────► Silent
//!        ▼ connected
//!   mTLS + Ping ── right name ──────────────────────► Agent
//!            └──── anything else ───────────────────► Kernel
//! ```

use std::future::Future;
use std::io::ErrorKind;
use std::pin::Pin;
use std::time::Duration;

use somersault_coordinator_core::io::Reachability;
use somersault_proto::model::{Address, FLEET_MESSAGE_BYTES_MAX, NodeName, PingReply};
use somersault_proto::tls::{Identity, TlsSource};
use somersault_proto::v1::PingRequest;
use somersault_proto::v1::peer_client::PeerClient;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Endpoint;

/// Asks nodes whether they live.
pub trait Prober: Send + Sync + 'static {
    /// Asks within `timeout`. An address without an agent's port is asked at the kubelet's.
    fn probe(
        &self,
        node: NodeName,
        address: Address,
        timeout: Duration,
    ) -> Pin<Box<dyn Future<Output = Reachability> + Send>>;
}

/// Asks over the network.
#[derive(Clone, Debug)]
pub struct NetworkProber {
    tls: TlsSource,
}

impl NetworkProber {
    /// With our certificate.
    pub fn new(tls: TlsSource) -> Self {
        Self { tls }
    }
}

impl Prober for NetworkProber {
    fn probe(
        &self,
        node: NodeName,
        address: Address,
        timeout: Duration,
    ) -> Pin<Box<dyn Future<Output = Reachability> + Send>> {
        let tls = self.tls.clone();
        Box::pin(async move {
            let deadline = Instant::now() + timeout;
            match timeout_at(deadline, TcpStream::connect(address.as_str())).await {
                Err(_) => return Reachability::Silent,
                Ok(Err(error)) => return of_connect_error(error.kind()),
                Ok(Ok(_connection)) => {}
            }
            match timeout_at(deadline, ping(&tls, &node, &address)).await {
                Ok(Some(name)) if name == node => Reachability::Agent,
                _ => Reachability::Kernel,
            }
        })
    }
}

/// A refusal is an answer. An unreachable host or network is our own side's word, and no answer.
fn of_connect_error(kind: ErrorKind) -> Reachability {
    match kind {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Reachability::Kernel,
        _ => Reachability::Silent,
    }
}

/// The name that the agent answers with; `None` where it does not answer as one.
async fn ping(tls: &TlsSource, node: &NodeName, address: &Address) -> Option<NodeName> {
    let channel = Endpoint::from_shared(format!("https://{address}"))
        .ok()?
        .tls_config(tls.client(&Identity::Node(node.clone())))
        .ok()?
        .connect()
        .await
        .ok()?;
    let mut client = PeerClient::new(channel).max_decoding_message_size(FLEET_MESSAGE_BYTES_MAX);
    let reply = client.ping(PingRequest {}).await.ok()?.into_inner();
    PingReply::try_from(reply).ok().map(|reply| reply.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_of_the_other_side_proves_its_kernel_alive() {
        assert_eq!(of_connect_error(ErrorKind::ConnectionRefused), Reachability::Kernel);
        assert_eq!(of_connect_error(ErrorKind::ConnectionReset), Reachability::Kernel);
        for ours in [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable, ErrorKind::TimedOut] {
            assert_eq!(of_connect_error(ours), Reachability::Silent);
        }
    }
}

//! Serves other agents and coordinators, and asks other agents: does this node live?

use std::io;
use std::time::Duration;

use somersault_proto::model::{Address, FLEET_MESSAGE_BYTES_MAX, NodeName, PingReply, Reachability};
use somersault_proto::tls::{ConnectionLimits, Identity, TlsSource, peer_identity};
use somersault_proto::v1;
use somersault_proto::v1::peer_client::PeerClient;
use somersault_proto::v1::peer_server::{Peer, PeerServer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::transfer::Transfers;

/// Streams of one connection at once. An agent asks a ping or two; a transfer reads a few files side by side.
const STREAMS_MAX: u32 = 32;
/// Each node may pull from this one over a few connections a copy, each coordinator asks over one; far more than ever
/// happens together. Strangers have but so many places a host, and lose them after seconds.
pub const CONNECTIONS: ConnectionLimits = ConnectionLimits { total: 1024, strangers_per_host: 64 };
/// A connection whose ping goes unanswered this long is closed: its peer is gone, its file handles are not.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// Serves `Peer` and `Transfer` until told to stop.
pub async fn serve(
    listener: TcpListener,
    tls: &TlsSource,
    answer: PingReply,
    transfers: &Transfers,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let peer = PeerServer::new(Answering { answer: answer.into() })
        .max_decoding_message_size(FLEET_MESSAGE_BYTES_MAX);
    server()
        .add_service(peer)
        .add_service(transfers.service())
        .serve_with_incoming_shutdown(tls.accept(listener, CONNECTIONS), stop.cancelled_owned())
        .await
}

/// A server as every agent has it, before it serves anything.
pub fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(PING.0))
        .http2_keepalive_timeout(Some(PING.1))
}

struct Answering {
    answer: v1::PingReply,
}

#[tonic::async_trait]
impl Peer for Answering {
    async fn ping(&self, request: Request<v1::PingRequest>) -> Result<Response<v1::PingReply>, Status> {
        // TLS has checked the authority; others that it vouches for have no business here.
        match peer_identity(&request)? {
            Identity::Node(_) | Identity::Coordinator => Ok(Response::new(self.answer.clone())),
            Identity::FenceRunner => Err(Status::permission_denied("only nodes and coordinators ask agents")),
        }
    }
}

/// Asks a node: its agent first, and failing that, whether its kernel lives.
pub async fn probe(tls: &TlsSource, node: &NodeName, address: &Address, within: Duration) -> Reachability {
    let deadline = Instant::now() + within;
    match timeout_at(deadline, TcpStream::connect(address.as_str())).await {
        Ok(Ok(_connected)) => {}
        // The port is closed, or was closed on us: only a living kernel says so.
        Ok(Err(error)) if answered(error.kind()) => return Reachability::Kernel,
        Ok(Err(_)) | Err(_) => return Reachability::Silent,
    }
    match timeout_at(deadline, ping(tls, node, address, within)).await {
        Ok(Some(reply)) if reply.node == *node => Reachability::Agent,
        Ok(_) | Err(_) => Reachability::Kernel,
    }
}

fn answered(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
}

async fn ping(tls: &TlsSource, node: &NodeName, address: &Address, within: Duration) -> Option<PingReply> {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .ok()?
        .tcp_nodelay(true)
        .connect_timeout(within)
        .tls_config(tls.client(&Identity::Node(node.clone())))
        .ok()?;
    let mut client =
        PeerClient::new(endpoint.connect().await.ok()?).max_decoding_message_size(FLEET_MESSAGE_BYTES_MAX);
    let reply = timeout(within, client.ping(v1::PingRequest {})).await.ok()?.ok()?;
    reply.into_inner().try_into().ok()
}

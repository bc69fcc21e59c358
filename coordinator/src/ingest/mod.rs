//! The `Fleet` service: what agents say becomes events for the driver, once it is checked.
//!
//! Identity is the certificate: a message that speaks for another node ends its stream with `PermissionDenied`.

mod incoming;
mod streams;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use somersault_proto::model::{FLEET_MESSAGE_BYTES_MAX, NodeName};
use somersault_proto::tls::{TlsFiles, peer_node};
use somersault_proto::v1;
use somersault_proto::v1::fleet_server::{Fleet, FleetServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use self::streams::Reader;
use crate::agents::{GRANTS_WAITING_MAX, ORDERS_WAITING_MAX};
use crate::inbox::Inbox;
use crate::metrics::{Metrics, Refused};

/// Streams of one connection. An agent opens one on each of its two.
const STREAMS_PER_CONNECTION: u32 = 4;
/// A peer that vanished is noticed by HTTP/2 after these two together, long after its beats are missed.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// See [`KEEPALIVE_EVERY`].
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers of one request; gRPC needs a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// Serves agents until told to stop.
pub async fn serve(
    listener: TcpListener,
    tls: &TlsFiles,
    inbox: Inbox,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = FleetServer::new(FleetService { inbox, metrics, streams: AtomicU64::new(0) })
        .max_decoding_message_size(FLEET_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(FLEET_MESSAGE_BYTES_MAX);
    Server::builder()
        .tls_config(tls.server())?
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .serve_with_incoming_shutdown(service, incoming::connections(listener), stop.cancelled_owned())
        .await
}

struct FleetService {
    inbox: Inbox,
    metrics: Arc<Metrics>,
    streams: AtomicU64,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Fleet for FleetService {
    type HeartbeatStream = Answers<v1::Grant>;
    type SessionStream = Answers<v1::FromCoordinator>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<v1::Beat>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let node = self.identify(&request)?;
        let (grants, answers) = mpsc::channel(GRANTS_WAITING_MAX);
        tokio::spawn(self.reader(node).beats(request.into_inner(), grants));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(|answer| answer.map(Into::into)))))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = self.identify(&request)?;
        let (orders, answers) = mpsc::channel(ORDERS_WAITING_MAX);
        tokio::spawn(self.reader(node).session(request.into_inner(), orders));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(|answer| answer.map(Into::into)))))
    }
}

impl FleetService {
    fn identify<T>(&self, request: &Request<T>) -> Result<NodeName, Status> {
        peer_node(request).map_err(|error| {
            let from = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
            tracing::warn!(from, %error, "refused a connection");
            self.metrics.refused(Refused::Identity);
            Status::from(error)
        })
    }

    fn reader(&self, node: NodeName) -> Reader {
        let id = self.streams.fetch_add(1, Ordering::Relaxed);
        Reader { node, id, inbox: self.inbox.clone(), metrics: Arc::clone(&self.metrics) }
    }
}

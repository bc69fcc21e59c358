//! The `Fleet` service: what agents say becomes events for the driver, once it is checked.
//!
//! Identity is the certificate: a message that speaks for another node ends its stream with `PermissionDenied`.

mod streams;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt};
use somersault_proto::model::FLEET_MESSAGE_BYTES_MAX;
use somersault_proto::tls::{ConnectionLimits, TlsSource, peer_certificate, peer_node};
use somersault_proto::v1;
use somersault_proto::v1::fleet_server::{Fleet, FleetServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use self::streams::{Reader, certificate_ended};
use crate::agents::{GRANTS_WAITING_MAX, ORDERS_WAITING_MAX};
use crate::inbox::Inbox;
use crate::metrics::{Metrics, Refused};

/// Two for each agent of a cluster of Kubernetes' largest supported size would be 10,000; a coordinator that is
/// asked for more waits until some end. Handshakes that lead nowhere end by themselves after seconds, and a host has
/// but so many of them at a time: all agents of a node and more, never all places.
const CONNECTIONS: ConnectionLimits = ConnectionLimits { total: 10_000, strangers_per_host: 256 };
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
    tls: &TlsSource,
    inbox: Inbox,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = FleetServer::new(FleetService { inbox, metrics, streams: AtomicU64::new(0) })
        .max_decoding_message_size(FLEET_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(FLEET_MESSAGE_BYTES_MAX);
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .serve_with_incoming_shutdown(service, tls.accept(listener, CONNECTIONS), stop.cancelled_owned())
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
        let reader = self.reader(&request)?;
        let (grants, answers) = mpsc::channel(GRANTS_WAITING_MAX);
        tokio::spawn(reader.beats(request.into_inner(), grants));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(|answer| answer.map(Into::into)))))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let reader = self.reader(&request)?;
        let (orders, answers) = mpsc::channel(ORDERS_WAITING_MAX);
        tokio::spawn(reader.session(request.into_inner(), orders));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(|answer| answer.map(Into::into)))))
    }
}

impl FleetService {
    /// Reads the stream of the node whose certificate it is.
    fn reader<T>(&self, request: &Request<T>) -> Result<Reader, Status> {
        let (node, not_after) = peer_node(request)
            .and_then(|node| Ok((node, peer_certificate(request)?.not_after)))
            .map_err(|error| {
                let from = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
                tracing::warn!(from, %error, "refused a connection");
                self.metrics.refused(Refused::Identity);
                Status::from(error)
            })?;
        if not_after <= SystemTime::now() {
            // TLS lets a certificate in to the end of its last second; its streams have ended at the beginning of it.
            tracing::warn!(%node, reason = ?Refused::CertificateEnded, "refused a stream");
            self.metrics.refused(Refused::CertificateEnded);
            return Err(certificate_ended());
        }
        let id = self.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Reader { node, not_after, id, inbox: self.inbox.clone(), metrics: Arc::clone(&self.metrics) })
    }
}

//! The `Enrollment` service: its limits, and what it says.
//!
//! A stranger learns one of four things: certified, not accepted, not a valid request, later. The reason for a
//! refusal is in our log, where only we read it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use somersault_proto::model::{ENROLL_REPLY_BYTES_MAX, ENROLL_REQUEST_BYTES_MAX, EnrollReply, EnrollRequest};
use somersault_proto::tls::{ConnectionLimits, Identity, TlsSource};
use somersault_proto::v1;
use somersault_proto::v1::enrollment_server::{Enrollment, EnrollmentServer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::csr;
use super::proof::{Accounts, Proof};
use super::review::{ReviewError, Reviewer};
use crate::ca::Signer;
use crate::metrics::{Enrolled, Metrics};

/// A fleet that starts together asks together, for some milliseconds each; whoever finds no place tries again.
/// A host has one agent, and perhaps the fence runner.
const CONNECTIONS: ConnectionLimits = ConnectionLimits { total: 1024, strangers_per_host: 8 };
/// A connection carries one request, and is of no use afterwards.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30);
/// Until a connection that is too old is cut.
const CONNECTION_GRACE: Duration = Duration::from_secs(5);
/// Requests of one connection at a time.
const REQUESTS_PER_CONNECTION: u32 = 1;
/// Headers of one request; gRPC needs a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Reviews at a time: the API server's priority and fairness gives a client a few dozen places.
const REVIEWS_MAX: usize = 8;
/// Time for waiting for a place and for the API server; the client's own limit is twice that.
const REVIEW_WITHIN: Duration = Duration::from_secs(10);
/// Before a refusal is told: whoever guesses or floods does it once a second on each of its few connections.
const REFUSED_AFTER: Duration = Duration::from_secs(1);

/// Serves enrolment until told to stop.
pub async fn serve<R: Reviewer>(
    listener: TcpListener,
    tls: TlsSource,
    enrolling: Enrolling<R>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = EnrollmentServer::new(Service { enrolling, reviews: Semaphore::new(REVIEWS_MAX) })
        .max_decoding_message_size(ENROLL_REQUEST_BYTES_MAX)
        .max_encoding_message_size(ENROLL_REPLY_BYTES_MAX);
    Server::builder()
        .max_concurrent_streams(REQUESTS_PER_CONNECTION)
        .max_connection_age(CONNECTION_AGE_MAX)
        .max_connection_age_grace(CONNECTION_GRACE)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .add_service(service)
        .serve_with_incoming_shutdown(tls.accept_anybody(listener, CONNECTIONS), stop.cancelled_owned())
        .await
}

/// Who certifies whom.
pub struct Enrolling<R> {
    /// Signs.
    pub signer: Signer,
    /// Knows tokens.
    pub reviewer: R,
    /// Whose tokens are taken.
    pub accounts: Accounts,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

struct Service<R> {
    enrolling: Enrolling<R>,
    reviews: Semaphore,
}

/// How a request failed: a word for the peer, and the whole for us.
enum Failure {
    /// It is the peer's.
    Refused(String),
    /// It is ours, and may be over soon.
    Later(String),
}

#[tonic::async_trait]
impl<R: Reviewer> Enrollment for Service<R> {
    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollReply>, Status> {
        let from = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
        let metrics = &self.enrolling.metrics;
        match self.certify(request.into_inner()).await {
            Ok((identity, until, reply)) => {
                tracing::info!(from, identity = identity.san(), %until, "certified");
                metrics.enrolled(Enrolled::Certified);
                Ok(Response::new(reply.into()))
            }
            Err(Failure::Refused(why)) => {
                tracing::warn!(from, why, "refused a certificate");
                metrics.enrolled(Enrolled::Refused);
                sleep(REFUSED_AFTER).await;
                Err(Status::permission_denied("not accepted; the coordinator's log says why"))
            }
            Err(Failure::Later(why)) => {
                tracing::warn!(from, why, "could not decide about a certificate");
                metrics.enrolled(Enrolled::Failed);
                Err(Status::unavailable("not now; the coordinator's log says why"))
            }
        }
    }
}

impl<R: Reviewer> Service<R> {
    async fn certify(&self, wire: v1::EnrollRequest) -> Result<(Identity, Timestamp, EnrollReply), Failure> {
        let request = EnrollRequest::try_from(wire).map_err(|error| Failure::Refused(error.to_string()))?;
        let key = csr::public_key(&request.csr_der).map_err(Failure::Refused)?;
        let identity = timeout(REVIEW_WITHIN, self.identify(request.token)).await.map_err(|_| {
            Failure::Later(format!("the API server did not answer within {REVIEW_WITHIN:?}"))
        })??;
        let (certified, bundle) = self
            .enrolling
            .signer
            .certify(&identity, &key, Timestamp::now())
            .map_err(|error| Failure::Later(error.to_string()))?;
        let reply = EnrollReply {
            certificate_chain_pem: certified.pem,
            ca_bundle_pem: bundle,
            now: SystemTime::now(),
        };
        Ok((identity, certified.not_after, reply))
    }

    /// Whom the token proves its holder to be.
    async fn identify(&self, token: String) -> Result<Identity, Failure> {
        let Enrolling { reviewer, accounts, .. } = &self.enrolling;
        let later = |error: ReviewError| Failure::Later(format!("{error}: {}", error.source));
        let _place = self.reviews.acquire().await.map_err(|closed| Failure::Later(closed.to_string()))?;
        let status = reviewer.review(token).await.map_err(later)?;
        let identified = match accounts.proof(&status) {
            Ok(Proof::Whole(identity)) => Ok(identity),
            Ok(Proof::AgentOf(pod)) => {
                let found = reviewer.pod(&pod.name).await.map_err(later)?;
                pod.identity(found.as_ref())
            }
            Err(refusal) => Err(refusal),
        };
        identified.map_err(|refusal| Failure::Refused(refusal.to_string()))
    }
}

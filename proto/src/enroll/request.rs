//! One request for a certificate: a new key, the token of the moment, and a look at what comes back.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use rustls::CertificateError;
use tokio::time::timeout;
use tonic::transport::Endpoint;

use super::{CLOCK_SKEW_MAX, EnrollError, Enrolment, utc};
use crate::model::limits::{ENROLL_TOKEN_BYTES_MAX, PEM_BYTES_MAX};
use crate::model::{Address, ENROLL_REPLY_BYTES_MAX, ENROLL_REQUEST_BYTES_MAX, EnrollReply, EnrollRequest};
use crate::tls::{Identity, Pem, TlsMaterial, anonymous_client};
use crate::v1::enrollment_client::EnrollmentClient;

/// Time for connecting. A name may stand for several addresses, which share it.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Time for one coordinator. It asks the API server, and has others who ask.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Asks one coordinator after the other until one gives a certificate.
pub async fn enroll(enrolment: &Enrolment) -> Result<TlsMaterial, EnrollError> {
    let bundle = read(&enrolment.bundle_file, PEM_BYTES_MAX)
        .await
        .map_err(|source| EnrollError::NoBundle { file: enrolment.bundle_file.clone(), source })?;
    let token = read(&enrolment.token_file, ENROLL_TOKEN_BYTES_MAX)
        .await
        .map_err(|source| EnrollError::NoToken { file: enrolment.token_file.clone(), source })?;
    // The API server would refuse what is no text; a newline at the end is nobody's fault.
    let token = String::from_utf8_lossy(&token).trim().to_owned();
    let key = KeyPair::generate().map_err(EnrollError::NoKey)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(EnrollError::NoKey)?;
    let request = EnrollRequest { csr_der: csr.der().to_vec().into(), token };

    let mut last = EnrollError::NoCoordinator;
    for coordinator in &enrolment.coordinators {
        match ask(coordinator, &bundle, request.clone()).await {
            Ok(reply) => return taken(enrolment, coordinator, &reply, &key),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask(
    coordinator: &Address,
    bundle: &[u8],
    request: EnrollRequest,
) -> Result<EnrollReply, EnrollError> {
    let unreachable = |source| unreachable(coordinator, source);
    let asking = async {
        let channel = Endpoint::from_shared(format!("https://{coordinator}"))
            .and_then(|endpoint| endpoint.tls_config(anonymous_client(bundle, &Identity::Coordinator)))
            .map_err(unreachable)?
            .connect_timeout(CONNECT_WITHIN)
            .connect()
            .await
            .map_err(unreachable)?;
        let mut client = EnrollmentClient::new(channel)
            .max_encoding_message_size(ENROLL_REQUEST_BYTES_MAX)
            .max_decoding_message_size(ENROLL_REPLY_BYTES_MAX);
        let reply = client.enroll(crate::v1::EnrollRequest::from(request)).await.map_err(|status| {
            EnrollError::Refused { coordinator: coordinator.clone(), message: status.message().to_owned() }
        })?;
        Ok(EnrollReply::try_from(reply.into_inner())?)
    };
    let late = |_| EnrollError::Timeout { coordinator: coordinator.clone(), within: ANSWER_WITHIN };
    timeout(ANSWER_WITHIN, asking).await.map_err(late)?
}

/// A failed connection; one that failed for the time of day says so.
fn unreachable(coordinator: &Address, source: tonic::transport::Error) -> EnrollError {
    match clock_problem(&source) {
        Some(problem) => EnrollError::CoordinatorClock {
            coordinator: coordinator.clone(),
            now: SystemTime::now(),
            problem,
        },
        None => EnrollError::Unreachable { coordinator: coordinator.clone(), source },
    }
}

/// What the TLS library found wrong with the time, somewhere below.
pub(super) fn clock_problem(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut causes = std::iter::successors(Some(error), |cause| cause.source());
    causes.find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let inner = io.and_then(|inner| inner.downcast_ref()).or_else(|| cause.downcast_ref());
        match inner? {
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => Some("has ended"),
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => Some("is not good yet"),
            _ => None,
        }
    })
}

/// What came back, if it is ours and good now.
fn taken(
    enrolment: &Enrolment,
    coordinator: &Address,
    reply: &EnrollReply,
    key: &KeyPair,
) -> Result<TlsMaterial, EnrollError> {
    let now = SystemTime::now();
    let (skew, word) = skew(now, reply.now);
    if skew > CLOCK_SKEW_MAX {
        tracing::warn!(
            here = utc(now), %coordinator, there = utc(reply.now), "the clock of this node is {} s {word} the \
            coordinator's; certificates and transfer tokens fail when it is further off: have it kept by NTP",
            skew.as_secs()
        );
    }
    let material = TlsMaterial::from_pem(
        Pem { origin: Path::new("ca_bundle_pem"), text: reply.ca_bundle_pem.as_bytes() },
        Pem { origin: Path::new("certificate_chain_pem"), text: reply.certificate_chain_pem.as_bytes() },
        Pem { origin: Path::new("the key of this request"), text: key.serialize_pem().as_bytes() },
    )?;
    if *material.identity() != enrolment.identity {
        let (wanted, got) = (enrolment.identity.san(), material.identity().san());
        return Err(EnrollError::OtherIdentity { wanted, got });
    }
    let validity = material.validity();
    if now < validity.not_before || now >= validity.not_after {
        return Err(EnrollError::Clock { of: enrolment.identity.san(), now, validity });
    }
    Ok(material)
}

/// How far two clocks are apart, and on which side the first one is.
fn skew(here: SystemTime, there: SystemTime) -> (Duration, &'static str) {
    match here.duration_since(there) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    }
}

/// A small file.
pub(super) async fn read(file: &Path, bytes_max: usize) -> std::io::Result<Vec<u8>> {
    let bytes = tokio::fs::read(file).await?;
    if bytes.is_empty() {
        return Err(std::io::Error::other("it is empty"));
    }
    if bytes.len() > bytes_max {
        return Err(std::io::Error::other(format!("it has {} bytes, at most {bytes_max}", bytes.len())));
    }
    Ok(bytes)
}

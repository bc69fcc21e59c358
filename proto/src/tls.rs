//! Mutual TLS: certificate files, who a peer must be, and who it is.
//!
//! A folder holds `ca.crt`, `tls.crt` and `tls.key`, the names of a Kubernetes TLS secret. Identity is a DNS SAN
//! of the certificate: `<node>.node.somersault` for an agent, `coordinator.somersault` for a coordinator,
//! `fence-runner.somersault` for a fence runner.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tonic::Request;
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TonicIdentity, ServerTlsConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::model::NodeName;

/// SAN of every coordinator.
pub const COORDINATOR_SAN: &str = "coordinator.somersault";
/// What follows a node's name in its agent's SAN.
const NODE_SAN_SUFFIX: &str = ".node.somersault";
/// A peer that has not finished its handshake by then is not one of ours, or its network is of no use.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A chain of certificates or a key is a few KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// SAN of every fence runner.
pub const FENCE_RUNNER_SAN: &str = "fence-runner.somersault";

/// Who holds a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// A coordinator.
    Coordinator,
    /// The agent of a node.
    Node(NodeName),
    /// A fence runner.
    FenceRunner,
}

impl Identity {
    /// The DNS SAN that stands for it.
    pub fn san(&self) -> String {
        match self {
            Self::Coordinator => COORDINATOR_SAN.to_owned(),
            Self::Node(node) => format!("{node}{NODE_SAN_SUFFIX}"),
            Self::FenceRunner => FENCE_RUNNER_SAN.to_owned(),
        }
    }
}

/// The certificate files of one process, read and checked.
#[derive(Clone)]
pub struct TlsFiles {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
    identity: Identity,
}

/// What is wrong with the certificate files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}; the folder must hold ca.crt, tls.crt and tls.key", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is far larger than any certificate.
    #[error("{} has {bytes} bytes, more than the {FILE_BYTES_MAX} of any certificate chain", file.display())]
    TooLarge {
        /// Which.
        file: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A file holds no PEM block of the kind that it must hold.
    #[error("{} holds no PEM block of {expected}", file.display())]
    NoPem {
        /// Which.
        file: PathBuf,
        /// What it must hold.
        expected: &'static str,
    },
    /// Certificate and key do not fit together.
    #[error("{} is not the key of the certificate beside it, or of an unknown kind", file.display())]
    KeyMismatch {
        /// The key.
        file: PathBuf,
        /// What the TLS library says.
        #[source]
        source: rustls::Error,
    },
    /// The certificate does not say who we are.
    #[error("{} does not say whose it is", file.display())]
    NoIdentity {
        /// Which.
        file: PathBuf,
        /// Why not.
        #[source]
        source: IdentityError,
    },
}

/// Why a certificate does not tell who holds it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The peer showed none.
    #[error("no client certificate")]
    NoCertificate,
    /// It cannot be read.
    #[error("the certificate cannot be parsed")]
    Unparsable,
    /// None of its SANs is one of ours.
    #[error(
        "the certificate has no DNS name of the form NODE{NODE_SAN_SUFFIX}, {COORDINATOR_SAN} or {FENCE_RUNNER_SAN}"
    )]
    NoName,
    /// It would stand for several.
    #[error("the certificate names more than one identity")]
    Ambiguous,
    /// A node was expected.
    #[error("the certificate is not a node's")]
    NotANode,
    /// A coordinator was expected.
    #[error("the certificate is not a coordinator's")]
    NotACoordinator,
}

impl From<IdentityError> for tonic::Status {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::NotANode | IdentityError::NotACoordinator => {
                Self::permission_denied(error.to_string())
            }
            _ => Self::unauthenticated(error.to_string()),
        }
    }
}

impl TlsFiles {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of a folder, and checks that they hold what they should and fit
    /// together.
    pub fn read(folder: &Path) -> Result<Self, TlsError> {
        let (ca_file, certificate_file, key_file) =
            (folder.join("ca.crt"), folder.join("tls.crt"), folder.join("tls.key"));
        let (ca, certificate, key) = (read(&ca_file)?, read(&certificate_file)?, read(&key_file)?);

        certificates(&ca_file, &ca)?;
        let chain = certificates(&certificate_file, &certificate)?;
        let private_key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|_| TlsError::NoPem { file: key_file.clone(), expected: "a private key" })?;
        let identity = identity_of(&chain[0])
            .map_err(|source| TlsError::NoIdentity { file: certificate_file, source })?;
        CertifiedKey::from_der(chain, private_key, &default_provider())
            .map_err(|source| TlsError::KeyMismatch { file: key_file, source })?;
        Ok(Self { ca, certificate, key, identity })
    }

    /// Who we are, by our own certificate.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// For a server that talks to holders of a certificate of the same CA only.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(TonicIdentity::from_pem(&self.certificate, &self.key))
            .client_ca_root(Certificate::from_pem(&self.ca))
            .timeout(HANDSHAKE_TIMEOUT)
    }

    /// For a client that talks to nobody but `peer`, whatever the address says.
    pub fn client(&self, peer: &Identity) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(TonicIdentity::from_pem(&self.certificate, &self.key))
            .ca_certificate(Certificate::from_pem(&self.ca))
            .domain_name(peer.san())
            .timeout(HANDSHAKE_TIMEOUT)
    }
}

impl std::fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsFiles").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Who sent a request, by the certificate of its connection.
pub fn peer_identity<T>(request: &Request<T>) -> Result<Identity, IdentityError> {
    let certificates = request.peer_certs().ok_or(IdentityError::NoCertificate)?;
    identity_of(certificates.first().ok_or(IdentityError::NoCertificate)?)
}

/// The node that sent a request; a coordinator's certificate is refused.
pub fn peer_node<T>(request: &Request<T>) -> Result<NodeName, IdentityError> {
    match peer_identity(request)? {
        Identity::Node(node) => Ok(node),
        Identity::Coordinator | Identity::FenceRunner => Err(IdentityError::NotANode),
    }
}

/// Who holds a certificate. It must have been verified against the CA before.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unparsable)?;
    let names = parsed.subject_alternative_name().map_err(|_| IdentityError::Unparsable)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut identities = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => identity_of_san(name),
        _ => None,
    });
    let identity = identities.next().ok_or(IdentityError::NoName)?;
    if identities.any(|other| other != identity) {
        return Err(IdentityError::Ambiguous);
    }
    Ok(identity)
}

/// The identity that a DNS name stands for; `None` for names that are none of ours, wildcards among them.
fn identity_of_san(name: &str) -> Option<Identity> {
    if name == COORDINATOR_SAN {
        return Some(Identity::Coordinator);
    }
    if name == FENCE_RUNNER_SAN {
        return Some(Identity::FenceRunner);
    }
    name.strip_suffix(NODE_SAN_SUFFIX)?.parse().ok().map(Identity::Node)
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { file: file.to_owned(), source };
    let bytes = fs::metadata(file).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(TlsError::TooLarge { file: file.to_owned(), bytes });
    }
    fs::read(file).map_err(unreadable)
}

/// At least one certificate.
fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(TlsError::NoPem { file: file.to_owned(), expected: "a certificate" }),
    }
}

#[cfg(test)]
mod tests;

//! One set of certificates: whom we trust, who we are, and the key that shows it. Checked when it is made, so that
//! what cannot work is refused before anything uses it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TonicIdentity};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{Identity, IdentityError, identity_of};
use super::incoming::HANDSHAKE_TIMEOUT;

/// A chain of certificates or a key is a few KiB.
pub(super) const FILE_BYTES_MAX: u64 = 256 * 1024;
/// gRPC is HTTP/2, and a client of tonic insists that the server says so.
const ALPN: &[u8] = b"h2";

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From when.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

/// The certificates and the key of one process, checked.
#[derive(Clone)]
pub struct TlsMaterial {
    bundle: Vec<u8>,
    chain: Vec<u8>,
    key: Vec<u8>,
    identity: Identity,
    validity: Validity,
    mutual: Arc<ServerConfig>,
    one_sided: Arc<ServerConfig>,
}

/// PEM and where it comes from, for error messages: a file, or a field of a message.
#[derive(Clone, Copy, Debug)]
pub struct Pem<'a> {
    /// Where it comes from.
    pub origin: &'a Path,
    /// The text.
    pub text: &'a [u8],
}

/// What is wrong with certificates.
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
    /// The authority's certificates cannot vouch for anybody.
    #[error("{} holds no certificate that can serve as an authority", file.display())]
    NoAuthority {
        /// Which.
        file: PathBuf,
        /// What the TLS library says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl TlsMaterial {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of a folder.
    pub fn read(folder: &Path) -> Result<Self, TlsError> {
        let [ca, certificate, key] = ["ca.crt", "tls.crt", "tls.key"].map(|name| folder.join(name));
        let (bundle, chain, secret) = (read(&ca)?, read(&certificate)?, read(&key)?);
        Self::from_pem(
            Pem { origin: &ca, text: &bundle },
            Pem { origin: &certificate, text: &chain },
            Pem { origin: &key, text: &secret },
        )
    }

    /// Checks that the parts hold what they should and fit together.
    pub fn from_pem(bundle: Pem<'_>, chain: Pem<'_>, key: Pem<'_>) -> Result<Self, TlsError> {
        let authorities = certificates(bundle)?;
        let certificates = certificates(chain)?;
        let no_identity = |source| TlsError::NoIdentity { file: chain.origin.to_owned(), source };
        let identity = identity_of(&certificates[0]).map_err(no_identity)?;
        let validity = validity_of(&certificates[0]).ok_or_else(|| no_identity(IdentityError::Unparsable))?;
        let secret = PrivateKeyDer::from_pem_slice(key.text)
            .map_err(|_| TlsError::NoPem { file: key.origin.to_owned(), expected: "a private key" })?;
        let mismatch = |source| TlsError::KeyMismatch { file: key.origin.to_owned(), source };
        CertifiedKey::from_der(certificates.clone(), secret.clone_key(), &default_provider())
            .map_err(mismatch)?;

        let no_authority = |source| TlsError::NoAuthority { file: bundle.origin.to_owned(), source };
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| no_authority(error.into()))?;
        }
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
            .build()
            .map_err(|error| no_authority(error.into()))?;
        let builder = || {
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()
        };
        let mutual = builder().and_then(|builder| {
            builder
                .with_client_cert_verifier(verifier)
                .with_single_cert(certificates.clone(), secret.clone_key())
        });
        let one_sided = builder()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates.clone(), secret));
        Ok(Self {
            bundle: bundle.text.to_vec(),
            chain: chain.text.to_vec(),
            key: key.text.to_vec(),
            identity,
            validity,
            mutual: finished(mutual.map_err(mismatch)?),
            one_sided: finished(one_sided.map_err(mismatch)?),
        })
    }

    /// Who we are, by our own certificate.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When our own certificate is good.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The same text on both sides: nothing to renew.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.bundle == other.bundle && self.chain == other.chain && self.key == other.key
    }

    /// For a client that talks to nobody but `peer`, whatever the address says.
    pub fn client(&self, peer: &Identity) -> ClientTlsConfig {
        client(&self.bundle, peer).identity(TonicIdentity::from_pem(&self.chain, &self.key))
    }

    /// For a server that talks to holders of a certificate of our authorities only.
    pub(super) fn mutual(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.mutual)
    }

    /// For a server whose clients have no certificate yet.
    pub(super) fn one_sided(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.one_sided)
    }
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial")
            .field("identity", &self.identity)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// For a client without a certificate that talks to nobody but `peer`.
pub(crate) fn client(bundle: &[u8], peer: &Identity) -> ClientTlsConfig {
    ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(bundle))
        .domain_name(peer.san())
        .timeout(HANDSHAKE_TIMEOUT)
}

/// When a certificate is good; `None` where it cannot be read.
pub fn validity_of(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let time = |seconds: i64| {
        u64::try_from(seconds).ok().map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    };
    let validity = parsed.validity();
    Some(Validity {
        not_before: time(validity.not_before.timestamp())?,
        not_after: time(validity.not_after.timestamp())?,
    })
}

/// What every server of ours has in common.
fn finished(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would not look at the client's certificate again, which may have ended meanwhile.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
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
fn certificates(pem: Pem<'_>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(TlsError::NoPem { file: pem.origin.to_owned(), expected: "a certificate" }),
    }
}

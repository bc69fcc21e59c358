//! One authority: made, read back, and signing certificates for identities. Names come from us alone, never from a
//! request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use somersault_proto::enroll::CLOCK_SKEW_MAX;
use somersault_proto::tls::Identity;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::whole_seconds;

/// An authority's certificate, which others trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    pem: String,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// An authority with its key.
#[derive(Clone)]
pub struct Authority {
    anchor: Anchor,
    key: Arc<KeyPair>,
}

/// A certificate that was just signed.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The certificate, PEM.
    pub pem: String,
    /// When it ends.
    pub not_after: Timestamp,
}

impl Anchor {
    /// Reads a certificate, and nothing beside it.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let [der] = found
            .map_err(|error| format!("no PEM: {error}"))?
            .try_into()
            .map_err(|found: Vec<_>| format!("{} certificates, not one", found.len()))?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|error| format!("no certificate: {error}"))?;
        if !parsed.is_ca() {
            return Err("the certificate is not one of an authority".to_owned());
        }
        let time = |seconds| {
            Timestamp::from_second(seconds).map_err(|error| format!("its times make no sense: {error}"))
        };
        Ok(Self {
            pem: pem.to_owned(),
            not_before: time(parsed.validity().not_before.timestamp())?,
            not_after: time(parsed.validity().not_after.timestamp())?,
        })
    }

    /// The certificate, PEM, with a newline at its end.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// From when it is good.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Until when it is good.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl Authority {
    /// Makes a new one (ECDSA on P-256, which every TLS library knows).
    pub fn make(now: Timestamp, lifetime: Duration) -> Result<Self, rcgen::Error> {
        let time = |time| rcgen::date_time_ymd(1970, 1, 1) + whole_seconds(time);
        let mut params = CertificateParams::default();
        // A name of its own: by it a verifier tells two authorities of one bundle apart.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("somersault authority {}", uuid::Uuid::new_v4()));
        // It signs leaves only, no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = time(now - CLOCK_SKEW_MAX);
        params.not_after = time(now + lifetime);
        let key = Arc::new(KeyPair::generate()?);
        let issuer = CertifiedIssuer::self_signed(params, &*key)?;
        let anchor = Anchor::parse(&issuer.pem()).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        Ok(Self { anchor, key })
    }

    /// Reads one back.
    pub fn parse(anchor: Anchor, key_pem: &str) -> Result<Self, String> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| format!("no key: {error}"))?;
        let der = CertificateDer::from_pem_slice(anchor.pem.as_bytes())
            .map_err(|error| format!("no PEM: {error}"))?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|error| format!("no certificate: {error}"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err("it is not the key of the certificate beside it".to_owned());
        }
        Ok(Self { anchor, key: Arc::new(key) })
    }

    /// What others trust.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// The key, PEM: for the Secret, and nothing else.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Signs a certificate that lets the holder of a key stand for an identity, as server and as client.
    pub fn certify(
        &self,
        identity: &Identity,
        public_key: &impl PublicKeyData,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Certified, rcgen::Error> {
        let time = |time| rcgen::date_time_ymd(1970, 1, 1) + whole_seconds(time);
        let mut params = CertificateParams::new([identity.san()])?;
        // No common name: it has room for 64 bytes, a node's name needs more, and the SAN says it all.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "somersault");
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        // Never longer than the authority: a verifier would refuse it earlier than its holder expects.
        let not_after = (now + lifetime).min(self.anchor.not_after);
        params.not_before = time(now - CLOCK_SKEW_MAX);
        params.not_after = time(not_after);
        let issuer = Issuer::from_ca_cert_pem(&self.anchor.pem, &*self.key)?;
        let certificate = params.signed_by(public_key, &issuer)?;
        Ok(Certified { pem: certificate.pem(), not_after })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Authority").field("anchor", &self.anchor).finish_non_exhaustive()
    }
}

//! Certificates of a test fleet: one authority, and a leaf for each node and coordinator.
//!
//! A leaf's identity is its one DNS name, `<node>.node.somersault` or `coordinator.somersault`. Everybody both
//! serves and dials (agents pull from agents), so each leaf is good for both sides.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// The DNS name in a coordinator's certificate.
pub const COORDINATOR_NAME: &str = "coordinator.somersault";

/// The DNS name in a fence runner's certificate.
pub const FENCE_RUNNER_NAME: &str = "fence-runner.somersault";

/// The DNS name in the certificate of `node`'s agent.
pub fn node_name(node: &str) -> String {
    format!("{node}.node.somersault")
}

/// An authority whose key lives only as long as this value.
pub struct CertAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl CertAuthority {
    /// Makes a new authority.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Somersault test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)
            .context("signing the test authority's own certificate")?;
        Ok(Self { issuer })
    }

    /// Writes `ca.crt`, `tls.crt` and `tls.key` for the agent of `node` into `dir`, which is created.
    pub fn issue_node(&self, node: &str, dir: &Path) -> Result<()> {
        self.issue(&node_name(node), dir)
    }

    /// Writes `ca.crt`, `tls.crt` and `tls.key` for a coordinator into `dir`, which is created.
    pub fn issue_coordinator(&self, dir: &Path) -> Result<()> {
        self.issue(COORDINATOR_NAME, dir)
    }

    /// Writes `ca.crt`, `tls.crt` and `tls.key` for a fence runner into `dir`, which is created.
    pub fn issue_fence_runner(&self, dir: &Path) -> Result<()> {
        self.issue(FENCE_RUNNER_NAME, dir)
    }

    fn issue(&self, dns_name: &str, dir: &Path) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([dns_name.to_owned()])
            .with_context(|| format!("{dns_name} is no DNS name"))?;
        params.distinguished_name.push(DnType::CommonName, dns_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("signing the leaf of {dns_name}"))?;

        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        write(&dir.join("ca.crt"), &self.issuer.pem(), 0o644)?;
        write(&dir.join("tls.crt"), &leaf.pem(), 0o644)?;
        write(&dir.join("tls.key"), &key.serialize_pem(), 0o600)
    }
}

fn write(path: &Path, pem: &str, mode: u32) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(pem.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use x509_parser::extensions::GeneralName;
    use x509_parser::pem::Pem;

    use super::*;

    fn read_pem(path: &Path) -> Pem {
        let text = std::fs::read(path).expect("the file was written");
        x509_parser::pem::parse_x509_pem(&text).expect("PEM").1
    }

    fn issued(issue: impl FnOnce(&CertAuthority, &Path)) -> (tempfile::TempDir, Pem, Pem) {
        let dir = tempfile::tempdir().expect("a folder");
        issue(&CertAuthority::new().expect("an authority"), dir.path());
        let (ca, leaf) = (read_pem(&dir.path().join("ca.crt")), read_pem(&dir.path().join("tls.crt")));
        (dir, ca, leaf)
    }

    #[test]
    fn a_node_is_named_by_one_dns_name_signed_by_the_authority() {
        let (_dir, ca, leaf) = issued(|authority, dir| authority.issue_node("n1", dir).expect("issued"));
        let (ca, leaf) = (ca.parse_x509().expect("a CA"), leaf.parse_x509().expect("a leaf"));
        let names = leaf.subject_alternative_name().expect("parses").expect("present");
        assert_eq!(names.value.general_names, vec![GeneralName::DNSName("n1.node.somersault")]);
        assert_eq!(leaf.issuer(), ca.subject());
        assert!(ca.is_ca() && !leaf.is_ca());
    }

    #[test]
    fn a_leaf_serves_and_dials() {
        let (_dir, _ca, leaf) = issued(|authority, dir| authority.issue_coordinator(dir).expect("issued"));
        let leaf = leaf.parse_x509().expect("a leaf");
        let usage = leaf.extended_key_usage().expect("parses").expect("present");
        assert!(usage.value.server_auth && usage.value.client_auth);
    }

    #[test]
    fn the_key_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, _ca, _leaf) = issued(|authority, dir| authority.issue_node("n1", dir).expect("issued"));
        let mode = std::fs::metadata(dir.path().join("tls.key")).expect("written").permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }
}

//! Who a certificate speaks for, and what is said of folders that hold something else.

use std::fs;

use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tonic::Request;

use super::identity::identity_of_san;
use super::material::FILE_BYTES_MAX;
use super::*;

fn node(name: &str) -> Identity {
    Identity::Node(name.parse().unwrap())
}

/// A certificate with these SANs, and its key.
fn issued(sans: &[&str]) -> (rcgen::Certificate, KeyPair) {
    let ca_key = KeyPair::generate().unwrap();
    let ca = Issuer::new(CertificateParams::new(Vec::<String>::new()).unwrap(), ca_key);
    let key = KeyPair::generate().unwrap();
    let sans: Vec<String> = sans.iter().map(ToString::to_string).collect();
    (CertificateParams::new(sans).unwrap().signed_by(&key, &ca).unwrap(), key)
}

fn identity(sans: &[&str]) -> Result<Identity, IdentityError> {
    identity_of(issued(sans).0.der())
}

/// A folder whose CA file holds the certificate itself: enough for what `read` checks.
fn folder(sans: &[&str]) -> TempDir {
    let folder = TempDir::new().unwrap();
    let (certificate, key) = issued(sans);
    fs::write(folder.path().join("ca.crt"), certificate.pem()).unwrap();
    fs::write(folder.path().join("tls.crt"), certificate.pem()).unwrap();
    fs::write(folder.path().join("tls.key"), key.serialize_pem()).unwrap();
    folder
}

#[test]
fn a_certificate_tells_who_holds_it() {
    assert_eq!(identity(&["n1.node.somersault"]), Ok(node("n1")));
    assert_eq!(
        identity(&["localhost", "worker-1.example.com.node.somersault"]),
        Ok(node("worker-1.example.com"))
    );
    assert_eq!(identity(&["coordinator.somersault"]), Ok(Identity::Coordinator));
    assert_eq!(identity(&["fence-runner.somersault"]), Ok(Identity::FenceRunner));
}

#[test]
fn a_certificate_that_does_not_say_one_name_is_refused() {
    assert_eq!(identity(&["localhost"]), Err(IdentityError::NoName));
    assert_eq!(identity(&[]), Err(IdentityError::NoName));
    assert_eq!(identity(&["*.node.somersault"]), Err(IdentityError::NoName));
    assert_eq!(identity(&["N1.node.somersault"]), Err(IdentityError::NoName));
    assert_eq!(identity(&["n1.node.somersault", "n2.node.somersault"]), Err(IdentityError::Ambiguous));
    assert_eq!(identity(&["n1.node.somersault", COORDINATOR_SAN]), Err(IdentityError::Ambiguous));
    assert_eq!(identity_of(&CertificateDer::from(vec![1, 2, 3])), Err(IdentityError::Unparsable));
}

#[test]
fn a_san_and_an_identity_are_the_same_thing() {
    for identity in [node("n1"), node("a.b"), Identity::Coordinator, Identity::FenceRunner] {
        assert_eq!(identity_of_san(&identity.san()), Some(identity));
    }
}

#[test]
fn a_good_folder_is_read() {
    let folder = folder(&["n1.node.somersault"]);
    assert_eq!(TlsSource::read(folder.path()).unwrap().identity(), node("n1"));
}

#[test]
fn a_missing_file_is_named() {
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        let folder = folder(&["n1.node.somersault"]);
        fs::remove_file(folder.path().join(name)).unwrap();
        let error = TlsSource::read(folder.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("/{name}")), "{error}");
    }
}

#[test]
fn a_file_with_other_content_is_named() {
    for (name, content) in [("ca.crt", ""), ("tls.crt", "hello"), ("tls.key", "-----BEGIN NONSENSE-----")] {
        let folder = folder(&["n1.node.somersault"]);
        fs::write(folder.path().join(name), content).unwrap();
        let error = TlsSource::read(folder.path()).unwrap_err();
        assert!(matches!(error, TlsError::NoPem { .. }), "{error}");
        assert!(error.to_string().contains(&format!("/{name}")), "{error}");
    }
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let folder = folder(&["n1.node.somersault"]);
    let other = KeyPair::generate().unwrap();
    fs::write(folder.path().join("tls.key"), other.serialize_pem()).unwrap();
    assert!(matches!(TlsSource::read(folder.path()), Err(TlsError::KeyMismatch { .. })));
}

#[test]
fn a_huge_file_is_not_read() {
    let folder = folder(&["n1.node.somersault"]);
    let file = fs::OpenOptions::new().write(true).open(folder.path().join("ca.crt")).unwrap();
    file.set_len(FILE_BYTES_MAX + 1).unwrap();
    assert!(matches!(TlsSource::read(folder.path()), Err(TlsError::TooLarge { .. })));
}

#[test]
fn a_request_without_a_certificate_has_no_identity() {
    assert_eq!(peer_node(&Request::new(())), Err(IdentityError::NoCertificate));
}

#[test]
fn keys_are_not_printed() {
    let folder = folder(&["n1.node.somersault"]);
    let printed = format!("{:?}", TlsSource::read(folder.path()).unwrap());
    assert!(!printed.contains("key") && printed.contains("n1"), "{printed}");
}

//! When the next certificate is asked for, and what is said of clocks.

use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error as RustlsError};

use super::request::clock_problem;
use super::*;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn the_next_certificate_is_asked_for_after_two_thirds_and_not_by_all_at_once() {
    let (now, end) = (at(1_000), at(4_000));
    assert_eq!(renewal_due(now, end, 0.0), at(3_000));
    let earliest = renewal_due(now, end, 1.0);
    assert!(earliest >= at(2_699) && earliest <= at(2_701), "{earliest:?}");
    // What a broken random source may say changes nothing.
    assert_eq!(renewal_due(now, end, 7.0), earliest);
    assert_eq!(renewal_due(now, end, -7.0), at(3_000));
}

#[test]
fn a_certificate_that_has_ended_is_renewed_at_once() {
    assert_eq!(renewal_due(at(4_000), at(1_000), 0.5), at(4_000));
}

/// As the transport wraps what the TLS library says.
fn wrapped(error: CertificateError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, RustlsError::InvalidCertificate(error))
}

#[test]
fn a_handshake_that_failed_for_the_time_of_day_says_so() {
    let (time, other) = (
        UnixTime::since_unix_epoch(Duration::from_secs(9)),
        UnixTime::since_unix_epoch(Duration::from_secs(5)),
    );
    let ended = Some("has ended");
    assert_eq!(clock_problem(&wrapped(CertificateError::Expired)), ended);
    assert_eq!(clock_problem(&wrapped(CertificateError::ExpiredContext { time, not_after: other })), ended);
    let early = Some("is not good yet");
    assert_eq!(clock_problem(&wrapped(CertificateError::NotValidYet)), early);
    assert_eq!(
        clock_problem(&wrapped(CertificateError::NotValidYetContext { time: other, not_before: time })),
        early
    );
    assert_eq!(clock_problem(&wrapped(CertificateError::UnknownIssuer)), None);
    assert_eq!(clock_problem(&io::Error::other("no route to host")), None);
}

#[test]
fn a_wrong_clock_is_told_with_both_times() {
    let validity = Validity { not_before: at(1_800_000_000), not_after: at(1_800_086_400) };
    let error = EnrollError::Clock { of: "n1.node.somersault".into(), now: at(0), validity };
    let words = error.to_string();
    for part in ["1970-01-01T00:00:00Z", "2027-01-15T08:00:00Z", "2027-01-16T08:00:00Z", "NTP"] {
        assert!(words.contains(part), "{words}");
    }
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let enrolment = Enrolment {
        identity: Identity::FenceRunner,
        coordinators: vec!["127.0.0.1:1".parse().unwrap()],
        token_file: folder.path().join("token"),
        bundle_file: folder.path().join("ca.crt"),
    };
    let words = async || enroll(&enrolment).await.unwrap_err().to_string();
    assert!(words().await.contains("somersault-ca-bundle"));
    std::fs::write(&enrolment.bundle_file, "").unwrap();
    assert!(words().await.contains("somersault-ca-bundle"));
    std::fs::write(&enrolment.bundle_file, "not yet looked at").unwrap();
    assert!(words().await.contains("audience somersault.novasphere.dev"));
    std::fs::write(&enrolment.token_file, "a.b.c\n").unwrap();
    assert!(words().await.contains("127.0.0.1:1"));
}

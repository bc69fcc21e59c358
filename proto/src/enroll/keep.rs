//! When to ask: at the start until there is a certificate, and again before it ends or when the authorities change.

use std::time::{Duration, SystemTime};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::sleep;

use super::request::read;
use super::{Attempts, Enrolment, enroll, utc};
use crate::model::limits::PEM_BYTES_MAX;
use crate::tls::{TlsMaterial, TlsSource};

/// Pause between attempts. A whole fleet that asks at once is spread over it by its jitter.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often the time and the bundle are looked at. By the wall clock, which goes on while a machine is suspended.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// No certificate lives so short that more looks would be of use.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(50);

fn no_attempt() -> Attempts {
    Attempts::new("no certificate", RETRY)
}

/// Asks until there is a certificate. Says each new reason for having none once.
pub async fn first(enrolment: &Enrolment) -> TlsMaterial {
    let mut attempts = no_attempt();
    loop {
        match enroll(enrolment).await {
            Ok(material) => {
                told(enrolment, &material);
                return material;
            }
            Err(error) => attempts.failed(&error).await,
        }
    }
}

/// Keeps the certificate of `source` new, for ever.
pub async fn keep(enrolment: Enrolment, source: TlsSource) {
    let mut attempts = no_attempt();
    let mut bundle = read_bundle(&enrolment).await;
    let mut due = renewal_due(SystemTime::now(), source.current().validity().not_after, chance());
    loop {
        let rest = due.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        // Half of the rest each time, so that short lives are kept as well as long ones.
        sleep((rest / 2).clamp(LOOK_AGAIN_MIN, LOOK_EVERY)).await;
        let now_published = read_bundle(&enrolment).await;
        let changed = now_published.is_some() && now_published != bundle;
        if SystemTime::now() < due && !changed {
            continue;
        }
        match enroll(&enrolment).await {
            Ok(material) => {
                told(&enrolment, &material);
                due = renewal_due(SystemTime::now(), material.validity().not_after, chance());
                source.renew(material);
                bundle = now_published;
                attempts = no_attempt();
            }
            Err(error) => {
                let until = source.current().validity().not_after;
                tracing::debug!(until = utc(until), "the old certificate stays in use");
                attempts.failed(&error).await;
            }
        }
    }
}

/// When to ask for the next one: after two thirds of the time from now to its end, up to a tenth earlier by `chance`
/// (0 to 1), so that a fleet that started together does not ask together for ever.
pub fn renewal_due(now: SystemTime, not_after: SystemTime, chance: f64) -> SystemTime {
    let life = not_after.duration_since(now).unwrap_or(Duration::ZERO);
    now + life.mul_f64(2.0 / 3.0 - chance.clamp(0.0, 1.0) / 10.0)
}

/// Between 0 and 1; 0 where the system has no randomness, which making a key would have told already.
fn chance() -> f64 {
    let mut bytes = [0; 2];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX),
        Err(_) => 0.0,
    }
}

async fn read_bundle(enrolment: &Enrolment) -> Option<Vec<u8>> {
    read(&enrolment.bundle_file, PEM_BYTES_MAX).await.ok()
}

fn told(enrolment: &Enrolment, material: &TlsMaterial) {
    let until = utc(material.validity().not_after);
    tracing::info!(identity = enrolment.identity.san(), until, "certified");
}

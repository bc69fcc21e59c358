//! Whether a coordinator leads: its Lease is held, and alive.
//!
//! ```text
//!   no Lease, no holder ────────────────────────────────────────────────► nobody leads
//!   renewed within its duration, by whoever's clock ────────────────────► somebody leads
//!   otherwise: looked at until it changes ── it changed ────────────────► somebody leads, and clocks differ
//!                                        └── it stayed as it is ────────► nobody leads
//! ```
//!
//! `renewTime` is the reading of another host's clock. It may tell good news at once, for what is only shown; bad news
//! needs that the Lease was seen to stand still.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};

use super::api::limited;
use super::install;
use super::trouble::Trouble;

/// A leader renews every 2 s (client-go's and our own default); two renewals must have been missed.
const WATCH_FOR: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Looks, and again where that is needed. `None` where we may not look.
pub async fn observe(client: &Client) -> Result<Option<bool>, Trouble> {
    let api: Api<Lease> = Api::namespaced(client.clone(), install::NAMESPACE);
    let look = || limited(api.get_opt(install::COORDINATOR));
    let first = match look().await {
        Ok(Some(lease)) => lease,
        Ok(None) => return Ok(Some(false)),
        Err(trouble) if trouble.is_forbidden() => return Ok(None),
        Err(trouble) => return Err(trouble),
    };
    if !is_held(&first) {
        return Ok(Some(false));
    }
    if is_fresh(&first, Timestamp::now()) {
        return Ok(Some(true));
    }
    for _ in 0..WATCH_FOR.as_millis() / LOOK_EVERY.as_millis() {
        tokio::time::sleep(LOOK_EVERY).await;
        match look().await? {
            Some(lease) if lease.spec != first.spec => return Ok(Some(is_held(&lease))),
            Some(_) => {}
            None => return Ok(Some(false)),
        }
    }
    Ok(Some(false))
}

fn is_held(lease: &Lease) -> bool {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref());
    holder.is_some_and(|holder| !holder.is_empty())
}

/// Renewed within its duration, by clocks that may differ: in either direction.
fn is_fresh(lease: &Lease, now: Timestamp) -> bool {
    let Some(spec) = &lease.spec else { return false };
    let (Some(renewed), Some(seconds)) = (&spec.renew_time, spec.lease_duration_seconds) else {
        return false;
    };
    now.duration_since(renewed.0).as_secs().abs() < i64::from(seconds)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;

    fn lease(holder: &str, renewed: i64) -> Lease {
        let renewed = Timestamp::from_second(renewed).expect("in range");
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(renewed)),
            ..LeaseSpec::default()
        };
        Lease { spec: Some(spec), ..Lease::default() }
    }

    #[test]
    fn a_clock_tells_good_news_only() {
        let now = Timestamp::from_second(1_000).expect("in range");
        assert!(is_fresh(&lease("a", 990), now));
        assert!(is_fresh(&lease("a", 1_010), now), "the other clock is ahead");
        assert!(!is_fresh(&lease("a", 900), now), "must be looked at longer");
        assert!(!is_fresh(&lease("a", 1_100), now), "must be looked at longer");
        assert!(!is_fresh(&Lease::default(), now));
    }

    #[test]
    fn a_lease_that_was_given_back_has_no_holder() {
        assert!(is_held(&lease("pod-1", 0)));
        assert!(!is_held(&lease("", 0)));
        assert!(!is_held(&Lease::default()));
    }
}

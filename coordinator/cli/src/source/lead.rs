//! Whether a coordinator leads: its Lease is held, and alive.
//!
//! ```text
//!   no Lease, no holder ────────────────────────────────────────────────► nobody leads
//!   renewed within a third of its duration, by whoever's clock ─────────► somebody leads
//!   otherwise: looked at until it changes ── it changed ────────────────► somebody leads, and clocks differ
//!                                        └── it stayed as it is ────────► nobody leads
//! ```
//!
//! `renewTime` is the reading of another host's clock. It may tell good news at once, for what is only shown; bad news
//! needs that the Lease was seen to stand still. Who looks again and again waits for that only once.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, Client};
use somersault_coordinator::cluster::kube::NOBODY;
use somersault_coordinator_core::policy::LEADER_LEASE_MAX;

use super::api::limited;
use super::install;
use super::trouble::Trouble;

/// A leader renews every 2 s and its lease lasts 15 s (client-go's and our own defaults): in a third of it, two renewals
/// must have been missed. Where the policy says otherwise, it is a third of what the Lease says.
const WATCH_SHARE: u32 = 3;
/// What a Lease says that says nothing.
const LEASE: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A Lease that was held and not fresh, and since when it is seen as it is.
#[derive(Clone, Debug)]
pub struct Still {
    spec: Option<LeaseSpec>,
    since: Instant,
}

impl Still {
    /// Since when a Lease stands still: since it was first seen so.
    fn of(lease: &Lease, before: Option<Self>, now: Instant) -> Self {
        let before = before.filter(|before| before.spec == lease.spec);
        before.unwrap_or_else(|| Self { spec: lease.spec.clone(), since: now })
    }
}

/// Looks, and again where that is needed. `None` where we may not look. `still` is kept from one call to the next.
pub async fn observe(client: &Client, still: &mut Option<Still>) -> Result<Option<bool>, Trouble> {
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
    let seen = Still::of(&first, still.take(), Instant::now());
    let since = seen.since;
    *still = Some(seen);
    while since.elapsed() < watch_for(&first) {
        tokio::time::sleep(LOOK_EVERY).await;
        match look().await? {
            Some(lease) if lease.spec != first.spec => return Ok(Some(is_held(&lease))),
            Some(_) => {}
            None => return Ok(Some(false)),
        }
    }
    Ok(Some(false))
}

/// How long a Lease must stand still until nobody leads.
fn watch_for(lease: &Lease) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|spec| u64::try_from(spec.lease_duration_seconds?).ok());
    seconds.map_or(LEASE, Duration::from_secs).clamp(LEASE, LEADER_LEASE_MAX) / WATCH_SHARE
}

fn is_held(lease: &Lease) -> bool {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref());
    // A Lease that was put back is waited for like a silent leader's: it has nobody's name (the coordinator's election).
    holder.is_some_and(|holder| !holder.is_empty() && holder != NOBODY)
}

/// Renewed lately, by clocks that may differ: in either direction. A leader that is frozen, or cut off, is nobody's long
/// before its Lease has run out: what it told last is old.
fn is_fresh(lease: &Lease, now: Timestamp) -> bool {
    let Some(spec) = &lease.spec else { return false };
    let Some(renewed) = &spec.renew_time else { return false };
    now.duration_since(renewed.0).unsigned_abs() < watch_for(lease)
}

#[cfg(test)]
mod tests {
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
        assert!(is_fresh(&lease("a", 996), now));
        assert!(is_fresh(&lease("a", 1_004), now), "the other clock is ahead");
        assert!(!is_fresh(&lease("a", 993), now), "a leader that was frozen for 7 s says nothing of now");
        assert!(!is_fresh(&lease("a", 900), now), "must be looked at longer");
        assert!(!is_fresh(&lease("a", 1_100), now), "must be looked at longer");
        assert!(!is_fresh(&Lease::default(), now));
    }

    #[test]
    fn a_lease_stands_still_since_it_was_first_seen_so() {
        let (first, now) = (Instant::now(), Instant::now() + Duration::from_secs(9));
        let seen = Still::of(&lease("a", 900), None, first);
        assert_eq!(Still::of(&lease("a", 900), Some(seen.clone()), now).since, first);
        assert_eq!(Still::of(&lease("a", 902), Some(seen), now).since, now, "it was renewed");
    }

    #[test]
    fn a_slow_leader_is_watched_longer() {
        let held = |seconds| {
            let spec = LeaseSpec { lease_duration_seconds: Some(seconds), ..LeaseSpec::default() };
            watch_for(&Lease { spec: Some(spec), ..Lease::default() }).as_secs()
        };
        assert_eq!((held(3), held(15), held(60), held(i32::MAX)), (5, 5, 20, 20));
        assert_eq!(watch_for(&Lease::default()).as_secs(), 5);
    }

    #[test]
    fn a_lease_that_was_given_back_has_no_holder() {
        assert!(is_held(&lease("pod-1", 0)));
        assert!(!is_held(&lease("", 0)));
        assert!(!is_held(&Lease::default()));
    }
}

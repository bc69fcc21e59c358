//! Alertmanagers: told of everything that fires again and again, as its API asks of those who are no Prometheus
//! (`docs/alerts_api.md` of Alertmanager).
//!
//! ```text
//!   URL ──► its addresses, looked up every half minute ──► a task for each: one that hangs holds up no other
//!
//!   changed, or RESEND over ──► POST all: firing with an end in the future, ended with the moment of their end ──► taken
//!            ▲                                                                                     └► not: soon again
//!            └────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! What we do not say again ends by itself at its end in the future: so that alerts of a leader that is gone do not fire for
//! ever, and fire on while the next one takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use somersault_coordinator_core::BootTime;
use somersault_coordinator_core::alerts::told::Outgoing;
use somersault_coordinator_core::alerts::{Alert, AlertId};
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::config::{if_there, read_secret};
use super::http::{Endpoint, Message};
use super::receiver::{Common, Health, Newest, SendError, time_of_day};

/// An alert ends so many tellings after the last one: three may be lost, or another leader may take over, of whom a minute is
/// not heard, and three until it knows which storage is broken.
const ENDS_AFTER: u32 = 4;

/// One alert, as Alertmanager takes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Posted<'a> {
    labels: BTreeMap<&'a str, String>,
    annotations: BTreeMap<&'static str, String>,
    starts_at: Timestamp,
    ends_at: Timestamp,
}

/// Tells every replica of one Alertmanager, for ever.
pub async fn follow(endpoint: Endpoint, newest: Newest, common: Common) {
    let name = format!("alertmanager {}", endpoint.authority());
    let mut health = Health::new(&name, "its name", &common);
    let mut replicas: BTreeMap<SocketAddr, AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        let wait = match endpoint.resolve(common.plan.pace.within).await {
            Ok(found) => {
                replicas.retain(|address, _| found.contains(address));
                for address in found {
                    replicas.entry(address).or_insert_with(|| {
                        let health = Health::new(&name, &address.to_string(), &common);
                        let told = tell(endpoint.clone(), address, newest.clone(), common.clone(), health);
                        AbortOnDropHandle::new(tokio::spawn(told))
                    });
                }
                health.recovers();
                common.plan.pace.resolve
            }
            // Those that were there may be there still.
            Err(error) => health.fails(&error.into()),
        };
        sleep(wait).await;
    }
}

/// Which alerts a replica has heard of in which state: only a change of these cannot wait.
type Heard = (u64, BTreeSet<AlertId>, BTreeSet<AlertId>);

fn heard(epoch: u64, outgoing: &Outgoing) -> Heard {
    let firing = outgoing.firing.iter().map(|alert| alert.id.clone()).collect();
    (epoch, firing, outgoing.ended.iter().map(|(alert, _)| alert.id.clone()).collect())
}

async fn tell(endpoint: Endpoint, at: SocketAddr, mut newest: Newest, common: Common, mut health: Health) {
    let (mut told, mut again): (Option<Heard>, Instant) = (None, Instant::now());
    loop {
        let now = newest.borrow_and_update().clone();
        if let Some(now) = now.filter(|now| common.epoch.current() == Some(now.0)) {
            let (epoch, outgoing) = &*now;
            let next = heard(*epoch, outgoing);
            let nothing = outgoing.firing.is_empty() && outgoing.ended.is_empty();
            if !nothing && (told.as_ref() != Some(&next) || Instant::now() >= again) {
                match post(&endpoint, at, outgoing, &common).await {
                    Ok(()) => {
                        health.works();
                        (told, again) = (Some(next), Instant::now() + common.plan.pace.resend);
                    }
                    Err(error) => {
                        sleep(health.fails(&error)).await;
                        continue;
                    }
                }
            }
        }
        // There is another one at each look, whether it says anything else or not.
        if newest.changed().await.is_err() {
            return;
        }
    }
}

async fn post(
    endpoint: &Endpoint,
    at: SocketAddr,
    outgoing: &Outgoing,
    common: &Common,
) -> Result<(), SendError> {
    let plan = &common.plan;
    let token = read_secret(plan.alertmanager_token.as_deref()).await?;
    let body = Bytes::from(serde_json::to_vec(&posted(outgoing, common))?);
    let message = Message { content_type: "application/json", token, body };
    endpoint.post(at, if_there(plan.ca.as_deref()), message, plan.pace.within).await?;
    Ok(())
}

fn posted<'a>(outgoing: &Outgoing, common: &'a Common) -> Vec<Posted<'a>> {
    let ahead = common.plan.pace.resend * ENDS_AFTER;
    let ahead = SignedDuration::try_from(ahead).unwrap_or(SignedDuration::from_mins(4));
    let now = Timestamp::now();
    let later = now.checked_add(ahead).unwrap_or(now);
    let at = |at: BootTime| time_of_day(common.clock.as_ref(), at);
    let firing = outgoing.firing.iter().map(|alert| one(alert, at(alert.since), later, common));
    // An end that is not after the beginning would be refused, with all the others.
    let ended = outgoing.ended.iter().map(|(alert, end)| {
        let (start, end) = (at(alert.since), at(*end));
        one(alert, start, end.max(start), common)
    });
    firing.chain(ended).collect()
}

fn one<'a>(alert: &Alert, starts_at: Timestamp, ends_at: Timestamp, common: &'a Common) -> Posted<'a> {
    let own = common.plan.labels.iter().map(|(name, value)| (name.as_str(), value.clone()));
    Posted {
        labels: own.chain(alert.id.labels()).collect(),
        annotations: BTreeMap::from([
            ("summary", alert.id.summary()),
            ("description", alert.description.clone()),
        ]),
        starts_at,
        ends_at,
    }
}

//! One watch for each kind, whose events go to the one who joins them.
//!
//! ```text
//!            ┌──────────── no such kind here: ask again, ever more slowly ────────────┐
//!            ▼                                                                        │
//!   is it there? ──► list ──► watch, ten seconds a time ──► cut: list or watch again  │
//!            └──────────────────────────── 404: the kind is gone ─────────────────────┘
//! ```

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use serde_json::Value;
use tokio::sync::mpsc;

use super::kinds::Kind;

/// How long a watch lasts. One that is silent for longer stands on a dead connection, and what it does not tell is
/// missing in every decision. Each new one goes on where the last one ended and costs a request: two a second in all,
/// a tenth of what one controller may ask.
pub(super) const TURN_SECONDS: u32 = 10;
/// How soon a definition that somebody has just applied is noticed, at first and at most.
const ABSENT_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Between two tries of a watch that was interrupted, at first and at most, jitter not counted. An API server that
/// comes back costs two of them, one until it answers and one after its answer that our version is too old; a leader
/// must not decide by what was true before it went. For an API server that does not take connections it is nothing,
/// and one that has too much to do says how long to wait, which the client heeds.
const INTERRUPTED_WAIT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(1));
/// Objects of one page of a list.
const PAGE: u32 = 500;

/// What a watch tells, with its name.
#[derive(Debug)]
pub(super) enum Told {
    /// A list begins; whatever it does not have is gone.
    Begin(&'static str),
    /// An object as it is now, or what is kept of it.
    Is(&'static str, Value),
    /// An object is gone, or is none of this watch's any more.
    Gone(&'static str, Value),
    /// The list is complete.
    Complete(&'static str),
    /// There is no such kind here: it has no objects.
    Absent(&'static str),
}

/// Watches a kind until nobody listens.
pub(super) async fn watch(client: Client, kind: Kind, told: mpsc::Sender<Told>) {
    let api: Api<DynamicObject> = match kind.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &kind.resource()),
        None => Api::all_with(client, &kind.resource()),
    };
    while !told.is_closed() {
        if kind.optional && wait_until_there(&api, kind, &told).await.is_none() {
            return;
        }
        follow(&api, kind, &told).await;
    }
}

/// Follows a kind until it is gone, or nobody listens.
async fn follow(api: &Api<DynamicObject>, kind: Kind, told: &mpsc::Sender<Told>) {
    let mut config = watcher::Config::default().timeout(TURN_SECONDS).page_size(PAGE);
    config.label_selector = kind.labels.map(str::to_owned);
    let mut events = watcher::watcher(api.clone(), config).backoff(Waits::new()).boxed();
    let mut is_interrupted = false;
    loop {
        let next = events.try_next().await;
        // A list that begins may fail yet.
        if is_interrupted && !matches!(next, Ok(Some(Event::Init)) | Err(_)) {
            is_interrupted = false;
            tracing::info!(kind = kind.watch, "watched again");
        }
        let news = match next {
            Ok(Some(Event::Init)) => Told::Begin(kind.watch),
            Ok(Some(Event::InitApply(object) | Event::Apply(object))) => match raw(kind, object) {
                Some(object) => Told::Is(kind.watch, object),
                None => continue,
            },
            Ok(Some(Event::Delete(object))) => match raw(kind, object) {
                Some(object) => Told::Gone(kind.watch, object),
                None => continue,
            },
            Ok(Some(Event::InitDone)) => Told::Complete(kind.watch),
            Ok(None) => return,
            Err(error) => {
                // Once, and not at every try of an outage.
                if !std::mem::replace(&mut is_interrupted, true) {
                    tracing::warn!(
                        kind = kind.watch,
                        error = &error as &dyn std::error::Error,
                        "watch interrupted"
                    );
                }
                if kind.optional && is_not_found(&error) {
                    return;
                }
                continue;
            }
        };
        if told.send(news).await.is_err() {
            return;
        }
    }
}

/// Waits until the API server knows the kind; `None` when nobody listens any more.
async fn wait_until_there(api: &Api<DynamicObject>, kind: Kind, told: &mpsc::Sender<Told>) -> Option<()> {
    let mut waits = growing(ABSENT_WAIT);
    loop {
        let wait = match api.list(&ListParams::default().limit(1)).await {
            Ok(_) => return Some(()),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                told.send(Told::Absent(kind.watch)).await.ok()?;
                waits.next().unwrap_or(ABSENT_WAIT.1)
            }
            Err(error) => {
                tracing::warn!(
                    kind = kind.watch,
                    error = &error as &dyn std::error::Error,
                    "cannot be listed"
                );
                ABSENT_WAIT.0
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = told.closed() => return None,
        }
    }
}

fn growing((first, most): (Duration, Duration)) -> ExponentialBackoff {
    let waits = ExponentialBuilder::default().with_min_delay(first).with_max_delay(most);
    waits.without_max_times().with_jitter().build()
}

/// Waits between tries of an interrupted watch.
struct Waits(ExponentialBackoff);

impl Waits {
    fn new() -> Self {
        Self(growing(INTERRUPTED_WAIT))
    }
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        *self = Self::new();
    }
}

/// What is kept of an object, if anything.
fn raw(kind: Kind, object: DynamicObject) -> Option<Value> {
    if !kind.keeps(&object.data) {
        return None;
    }
    let mut object = match serde_json::to_value(object) {
        Ok(object) => object,
        Err(error) => {
            tracing::error!(kind = kind.watch, %error, "an object that is no JSON");
            return None;
        }
    };
    // Items of a list carry neither.
    object["kind"] = kind.name.into();
    object["apiVersion"] = kind.resource().api_version.into();
    kind.kept(object)
}

fn is_not_found(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(cause)
    | watcher::Error::WatchStartFailed(cause)
    | watcher::Error::WatchFailed(cause)) = error
    else {
        return false;
    };
    matches!(cause, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_watch_is_tried_again_soon_however_long_it_was_interrupted() {
        let mut waits = Waits::new();
        // Jitter adds at most as much again.
        let longest = waits.by_ref().take(1_000).max();
        assert!(longest.is_some_and(|longest| longest <= INTERRUPTED_WAIT.1 * 2), "{longest:?}");
        waits.reset();
        assert!(waits.next().is_some_and(|first| first <= INTERRUPTED_WAIT.0 * 2));
    }
}

//! One watch for each kind, whose events go to the one who joins them.
//!
//! ```text
//!            ┌──────────── no such kind here: ask again, ever more slowly ────────────┐
//!            ▼                                                                        │
//!   is it there? ──► list ──► watch, a minute at a time ──► cut: list or watch again  │
//!            └──────────────────────────── 404: the kind is gone ─────────────────────┘
//! ```

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde_json::Value;
use tokio::sync::mpsc;

use super::kinds::{Kind, strip};

/// How long a watch lasts. One that is silent for longer stands on a dead connection, and what it does not tell is
/// missing in every decision; each new one costs a request.
pub(super) const TURN_SECONDS: u32 = 60;
/// How soon a definition that somebody has just applied is noticed, at first and at most.
const ABSENT_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Objects of one page of a list.
const PAGE: u32 = 500;

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Told {
    /// A list begins; whatever it does not have is gone.
    Begin(&'static str),
    /// An object, as it is now, stripped.
    Is(&'static str, Value),
    /// An object is gone.
    Gone(Value),
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
    let mut events = watcher::watcher(api.clone(), config).default_backoff().boxed();
    loop {
        let news = match events.try_next().await {
            Ok(Some(Event::Init)) => Told::Begin(kind.name),
            Ok(Some(Event::InitApply(object) | Event::Apply(object))) => match raw(kind, object) {
                Some(object) => Told::Is(kind.name, object),
                None => continue,
            },
            Ok(Some(Event::Delete(object))) => match raw(kind, object) {
                Some(object) => Told::Gone(object),
                None => continue,
            },
            Ok(Some(Event::InitDone)) => Told::Complete(kind.name),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(
                    kind = kind.name,
                    error = &error as &dyn std::error::Error,
                    "watch interrupted"
                );
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
    let waits = || {
        ExponentialBuilder::default()
            .with_min_delay(ABSENT_WAIT.0)
            .with_max_delay(ABSENT_WAIT.1)
            .without_max_times()
            .with_jitter()
            .build()
    };
    let mut wait = waits();
    loop {
        match api.list(&ListParams::default().limit(1)).await {
            Ok(_) => return Some(()),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                told.send(Told::Absent(kind.name)).await.ok()?;
            }
            Err(error) => {
                tracing::warn!(
                    kind = kind.name,
                    error = &error as &dyn std::error::Error,
                    "cannot be listed"
                );
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait.next().unwrap_or(ABSENT_WAIT.1)) => {}
            () = told.closed() => return None,
        }
    }
}

fn raw(kind: Kind, object: DynamicObject) -> Option<Value> {
    let mut object = match serde_json::to_value(object) {
        Ok(object) => object,
        Err(error) => {
            tracing::error!(kind = kind.name, %error, "an object that is no JSON");
            return None;
        }
    };
    // Items of a list carry neither.
    object["kind"] = kind.name.into();
    object["apiVersion"] = kind.resource().api_version.into();
    strip(&mut object);
    Some(object)
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

//! The display part of our objects' status, by server-side apply: what we applied before and do not any more goes,
//! and the records, which another field manager of ours writes, stay.
//!
//! ```text
//!   epoch begins ──► nothing is known to be shown; open Recoveries are listed once
//!   each view ──► changes that are due, a few at a time ──► Recoveries whose incident is over are ended
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use serde_json::Value;
use somersault_coordinator_core::io::OpenRecovery;
use somersault_coordinator_core::view::View;

use super::api::Api;
use super::records;
use crate::cluster::manifest::ObjectId;
use crate::cluster::published::{self, Change, Open, Published};
use crate::cluster::stored::Known;
use crate::cluster::{ClusterError, Snapshot};

/// Statuses written at the same time. A thousand nodes at the beginning of an epoch take a few seconds then, and the
/// API server hardly notices.
const SIDE_BY_SIDE: usize = 8;
/// Statuses written before a newer view is looked at, about half a second's worth: what people wait for comes first
/// in each.
const ROUND_MAX: usize = 64;

/// What is shown, as far as we know.
#[derive(Debug)]
pub(super) struct Shown {
    /// Whose knowledge it is: other leaders may have written since.
    epoch: u64,
    published: Published,
    /// Recoveries that are not marked as ended; `None` before they were listed.
    open: Option<BTreeMap<ObjectId, Open>>,
}

impl Shown {
    fn of(epoch: u64) -> Self {
        Self { epoch, published: Published::new(), open: None }
    }
}

impl Default for Shown {
    fn default() -> Self {
        Self::of(0)
    }
}

/// Shows a view.
pub(super) async fn publish(
    api: &Api,
    known: &Mutex<Known>,
    shown: &Mutex<Shown>,
    view: &View,
    snapshot: &Snapshot,
    epoch: u64,
) -> Result<(), ClusterError> {
    if lock(shown).epoch != epoch {
        *lock(shown) = Shown::of(epoch);
    }
    if lock(shown).open.is_none() {
        let open = list_open(api).await?;
        lock(shown).open = Some(open);
    }
    let mut changes = lock(shown).published.changes(view, snapshot);
    changes.truncate(ROUND_MAX);
    let done = futures::stream::iter(changes)
        .map(|change| async {
            let last = lock(shown).published.conditions(&change.id);
            let written = write(api, known, &change, last).await;
            (change, written)
        })
        .buffer_unordered(SIDE_BY_SIDE);
    let failed = done
        .fold(None, async |failed, (change, written)| match written {
            Ok(Some(conditions)) => {
                lock(shown).note(change, conditions, view);
                failed
            }
            Ok(None) => {
                lock(shown).published.forget(&change.id);
                failed
            }
            // One that cannot be written keeps no other from it.
            Err(error) => failed.or(Some(error)),
        })
        .await;
    failed.map_or(Ok(()), Err)?;
    end_stale(api, shown, view, snapshot).await
}

/// What a new leader has to show to its end.
pub(super) async fn open_recoveries(api: &Api) -> Result<Vec<OpenRecovery>, ClusterError> {
    Ok(published::to_go_on(list_open(api).await?))
}

async fn list_open(api: &Api) -> Result<BTreeMap<ObjectId, Open>, ClusterError> {
    let stored = api.list("Recovery", None).await?;
    Ok(published::open_recoveries(stored.iter().map(|(_, object)| object)))
}

impl Shown {
    fn note(&mut self, change: Change, conditions: Value, view: &View) {
        if change.id.kind == "Recovery"
            && let Some(recovery) = view.recoveries.get(&change.id.key())
            && let Some(open) = &mut self.open
        {
            open.insert(change.id.clone(), Open::of(recovery));
        }
        self.published.written(change, conditions);
    }
}

/// Writes one change, and returns the conditions as they are now; `None` where there is no such object, or not yet.
async fn write(
    api: &Api,
    known: &Mutex<Known>,
    change: &Change,
    last: Option<Value>,
) -> Result<Option<Value>, ClusterError> {
    let before = match last {
        Some(conditions) => conditions,
        None => match (api.get(&change.id).await?, &change.template) {
            (Some(object), _) => {
                records::restore(api, known, &change.id, &object).await?;
                object["status"]["conditions"].clone()
            }
            (None, Some(template)) => {
                // Where somebody else has just made it, there is nothing to keep either.
                if let Some(object) = api.create(template).await? {
                    records::restore(api, known, &change.id, &object).await?;
                }
                Value::Null
            }
            // Removed by somebody a moment ago.
            (None, None) => return Ok(None),
        },
    };
    let conditions = change.conditions(&before);
    match api.apply_status(&change.id, &change.manifest(&conditions)).await {
        Ok(()) => Ok(Some(conditions)),
        Err(ClusterError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn end_stale(
    api: &Api,
    shown: &Mutex<Shown>,
    view: &View,
    snapshot: &Snapshot,
) -> Result<(), ClusterError> {
    let stale = |open| published::stale(open, view, &snapshot.fleet);
    let stale = lock(shown).open.as_ref().map(stale).unwrap_or_default();
    for id in stale {
        let ended = api.modify_status(&id, |object| {
            published::end(&id, object);
            Ok(())
        });
        match ended.await {
            Ok(_) | Err(ClusterError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut shown = lock(shown);
        shown.published.forget(&id);
        if let Some(open) = &mut shown.open {
            open.remove(&id);
        }
    }
    Ok(())
}

fn lock(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    // What it guards only decides when something is written again.
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Runs the controllers: everything that is watched goes into one store; after each event every controller looks
//! at it, and what they want is written, until they want nothing more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use kube::api::{Api, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Config};
use serde_json::Value;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use crate::change::Change;
use crate::install::install;
use crate::objects::{Kind, Objects, uid};
use crate::wukong::Operator;
use crate::{data_volume, hotplug, importer, migration, provision, vm, vmi};

/// Writes that are under way at the same time.
const WRITES_MAX: usize = 16;
/// More than any object needs to settle; whoever wants still more waits for the next event or for [`PATIENCE`].
const ROUNDS_MAX: usize = 16;
/// Between two attempts when the API server does not do what is asked.
const PATIENCE: Duration = Duration::from_millis(200);
/// A server that is back is noticed within it.
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// When nothing is due.
const IDLE: Duration = Duration::from_mins(1);

/// The controllers, running in this process until it is dropped.
pub struct Standin {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Standin {
    /// Installs what is missing and starts the controllers, on a thread of their own.
    pub fn start(kubeconfig: &Path) -> Result<Self> {
        let kubeconfig = kubeconfig.to_owned();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("kubevirt-standin".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = client(Some(&kubeconfig)).await?;
                install(&client).await?;
                // Nobody may be left who wants to know.
                let _ = ready.send(());
                tokio::select! {
                    result = run(client) => result,
                    _ = stopped => Ok(()),
                }
            })
        })?;
        let mut standin = Self { stop: Some(stop), thread: Some(thread) };
        if is_ready.recv().is_err() {
            standin.join()?;
        }
        Ok(standin)
    }

    fn join(&mut self) -> Result<()> {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow::anyhow!("the stand-in for KubeVirt has panicked"))?
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            eprintln!("stand-in for KubeVirt: {error:#}");
        }
    }
}

/// A client for a kubeconfig, else for what the environment says.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let kubeconfig =
                Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => Config::infer().await.context("no cluster: set KUBECONFIG")?,
    };
    Client::try_from(config).context("a client for the cluster")
}

type Events = SelectAll<BoxStream<'static, (Kind, watcher::Result<Event<DynamicObject>>)>>;

/// Runs the controllers for ever.
pub async fn run(client: Client) -> Result<()> {
    let mut events: Events = Kind::ALL.into_iter().map(|kind| watch(&client, kind)).collect();
    let mut world = World::default();
    let mut wait = IDLE;
    loop {
        let was_complete = world.is_complete();
        let event = tokio::select! {
            event = events.next() => Some(event.context("every watch has ended")?),
            () = tokio::time::sleep(wait) => None,
        };
        if let Some(event) = event {
            world.take(event);
        }
        while let Some(Some(event)) = events.next().now_or_never() {
            world.take(event);
        }
        if !world.is_complete() {
            wait = IDLE;
            continue;
        }
        if !was_complete {
            info!("watching: VMs that are created now are started");
        }
        wait = world.settle(&client, &mut events).await;
    }
}

fn watch(client: &Client, kind: Kind) -> BoxStream<'static, (Kind, watcher::Result<Event<DynamicObject>>)> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind.resource());
    let backoff = backon::ExponentialBuilder::default()
        .with_min_delay(PATIENCE)
        .with_max_delay(RECONNECT_MAX)
        .without_max_times();
    let backoff = watcher::ExponentialBackoff::from(backoff);
    let stream = watcher(api, watcher::Config::default()).backoff(backoff);
    stream.map(move |event| (kind, event)).boxed()
}

#[derive(Default)]
struct World {
    objects: Objects,
    operator: Operator,
    /// Kinds whose first list is complete.
    complete: BTreeSet<Kind>,
    /// Uids of a list that is under way.
    listing: BTreeMap<Kind, BTreeSet<String>>,
}

impl World {
    fn take(&mut self, (kind, event): (Kind, watcher::Result<Event<DynamicObject>>)) {
        match event {
            Ok(Event::Init) => {
                self.listing.insert(kind, BTreeSet::new());
            }
            Ok(Event::InitApply(object)) => {
                let object = raw(kind, object);
                self.listing.entry(kind).or_default().insert(uid(&object).to_owned());
                self.objects.put(object);
            }
            Ok(Event::InitDone) => {
                if let Some(uids) = self.listing.remove(&kind) {
                    self.objects.retain(kind, &uids);
                }
                self.complete.insert(kind);
            }
            Ok(Event::Apply(object)) => self.objects.put(raw(kind, object)),
            Ok(Event::Delete(object)) => self.objects.remove(&raw(kind, object)),
            Err(error) => warn!(kind = kind.name(), %error, "watch"),
        }
    }

    fn is_complete(&self) -> bool {
        self.complete.len() == Kind::ALL.len()
    }

    /// Lets the controllers work until they want nothing more; returns how long they can wait.
    async fn settle(&mut self, client: &Client, events: &mut Events) -> Duration {
        for _ in 0..ROUNDS_MAX {
            let now = Timestamp::now();
            let (changes, retry) = self.decide(now);
            let (of_operator, again) = self.operator.reconcile(&self.objects, now);
            if changes.is_empty() && of_operator.is_empty() {
                return retry.into_iter().chain(again).min().map_or(IDLE, |due| until(now, due));
            }
            let written = self.write(client, changes).await;
            let of_operator = self.write(client, of_operator).await;
            if of_operator != Outcome::Done {
                self.operator.look_again();
            }
            if written.max(of_operator) == Outcome::Failed {
                return PATIENCE;
            }
            while let Some(Some(event)) = events.next().now_or_never() {
                self.take(event);
            }
        }
        PATIENCE
    }

    fn decide(&self, now: Timestamp) -> (Vec<Change>, Option<Timestamp>) {
        let objects = &self.objects;
        let (mut changes, retry) = vm::reconcile(objects, now);
        changes.extend(vmi::reconcile(objects, now));
        changes.extend(migration::reconcile(objects, now));
        changes.extend(data_volume::reconcile(objects, now));
        changes.extend(hotplug::reconcile(objects));
        changes.extend(importer::reconcile(objects));
        changes.extend(provision::reconcile(objects));
        (changes, retry)
    }

    async fn write(&mut self, client: &Client, changes: Vec<Change>) -> Outcome {
        let results = futures::stream::iter(changes)
            .map(|change| async move { (change.apply(client).await, change) })
            .buffer_unordered(WRITES_MAX)
            .collect::<Vec<_>>()
            .await;
        let mut outcome = Outcome::Done;
        for (result, change) in results {
            match result {
                Ok(object) => {
                    match change {
                        Change::Create(_) | Change::Delete { .. } => info!("{}", change.describe()),
                        Change::Update(_) | Change::UpdateStatus(_) => debug!("{}", change.describe()),
                    }
                    if let Some(object) = object {
                        self.objects.put(object);
                    }
                }
                Err(error) if is_overtaken(&error) => {
                    debug!("{}: {error:#}", change.describe());
                    outcome = outcome.max(Outcome::Overtaken);
                }
                Err(error) => {
                    warn!("{}: {error:#}", change.describe());
                    outcome = Outcome::Failed;
                }
            }
        }
        outcome
    }
}

/// What became of several writes: the worst of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Done,
    /// An object had changed: it is decided anew at once.
    Overtaken,
    Failed,
}

/// The object has changed or gone meanwhile.
fn is_overtaken(error: &anyhow::Error) -> bool {
    let status = error.downcast_ref::<kube::Error>();
    matches!(status, Some(kube::Error::Api(status)) if matches!(status.code, 404 | 409))
}

fn until(now: Timestamp, due: Timestamp) -> Duration {
    Duration::try_from(due.duration_since(now)).unwrap_or_default()
}

/// With its kind, which the items of a list do not carry.
fn raw(kind: Kind, object: DynamicObject) -> Value {
    // Only maps with keys that are not text cannot become JSON.
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["kind"] = kind.name().into();
    value["apiVersion"] = kind.api_version().into();
    value
}

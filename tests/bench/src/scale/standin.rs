//! KubeVirt's part in a recovery, played by the bench, and that of Kubernetes' attach-detach controller:
//!
//! ```text
//!   launcher gone ──► instance Failed ──► deleted ──► new instance and launcher on another node, Scheduling
//!                           old attachment gone ──► new one ──► the start takes its time ──► Running
//! ```
//!
//! The steps are those of KubeVirt's controllers, with as many requests; ten VMs at a time, as its controllers do
//! (`--vm-controller-threads` and the like). What a real start takes is waited for: see [`START`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject};
use kube::runtime::watcher::{self, Event};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::api::{Api, Kind};
use super::objects;
use super::plan::{Plan, Vm, doomed_node};

/// From a launcher that was made to its VM that runs: image at hand, no live disk to wait for. (1.4 s from a power off
/// to running elsewhere were measured with KubeVirt's own controllers and kubelets.)
pub const START: Duration = Duration::from_secs(1);
/// As KubeVirt's controllers.
const SIDE_BY_SIDE: usize = 10;

/// What happened to the VMs of the dead node, by the wall clock.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Each launcher that was deleted.
    pub deleted: Vec<Timestamp>,
    /// Each attachment that was deleted.
    pub detached: Vec<Timestamp>,
    /// Each VM that runs again.
    pub running: Vec<Timestamp>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// The stand-in; it ends with this value.
pub struct Standin {
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

impl Standin {
    /// Begins to watch; returns once it sees the dead node's launchers and attachments.
    pub async fn start(api: &Api, plan: Plan) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (gone, is_gone) = watch::channel(BTreeSet::new());
        let (ready, mut is_ready) = watch::channel(0);
        let mut tasks = JoinSet::new();
        let noted = Arc::clone(&seen);
        let doomed = plan.vms().filter(|vm| plan.node_of(*vm) == 0);
        let detached: BTreeSet<_> = doomed.map(|vm| vm.attachment(0)).collect();
        let told = ready.clone();
        let all = api.all(Kind::ATTACHMENT, None);
        tasks.spawn(follow(all, watcher::Config::default(), told, move |name| {
            if detached.contains(name) {
                lock(&noted).detached.push(Timestamp::now());
                gone.send_modify(|gone| {
                    gone.insert(name.to_owned());
                });
            }
        }));
        let (noted, api) = (Arc::clone(&seen), api.clone());
        let runtime = tokio::runtime::Handle::current();
        let threads = Arc::new(Semaphore::new(SIDE_BY_SIDE));
        let node = format!("spec.nodeName={}", doomed_node());
        let pods = watcher::Config::default().labels("kubevirt.io=virt-launcher").fields(&node);
        tasks.spawn(follow(api.all(Kind::POD, None), pods, ready, move |name| {
            let Some(vm) = Vm::of_launcher(name) else { return };
            lock(&noted).deleted.push(Timestamp::now());
            let (api, noted, gone) = (api.clone(), Arc::clone(&noted), is_gone.clone());
            let threads = Arc::clone(&threads);
            runtime.spawn(async move {
                let restarted = restart(&api, plan, vm, gone, &threads).await;
                let mut seen = lock(&noted);
                match restarted {
                    Ok(()) => seen.running.push(Timestamp::now()),
                    Err(error) => seen.failures.push(format!("{}: {error:#}", vm.name())),
                }
            });
        }));
        is_ready.wait_for(|ready| *ready == 2).await.context("a watch ended")?;
        Ok(Self { seen, _tasks: tasks })
    }

    /// What has happened so far.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

/// Calls `gone` for each deleted object; counts `ready` up when the first list is complete.
async fn follow(
    api: kube::Api<DynamicObject>,
    config: watcher::Config,
    ready: watch::Sender<u32>,
    gone: impl Fn(&str) + Send,
) {
    let mut is_ready = false;
    let mut events = watcher::watcher(api, config).boxed();
    loop {
        match events.try_next().await {
            Ok(Some(Event::InitDone)) if !is_ready => {
                is_ready = true;
                ready.send_modify(|ready| *ready += 1);
            }
            Ok(Some(Event::Delete(object))) => gone(object.metadata.name.as_deref().unwrap_or_default()),
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => eprintln!("  a watch of the bench: {error}"),
        }
    }
}

async fn restart(
    api: &Api,
    plan: Plan,
    vm: Vm,
    mut gone: watch::Receiver<BTreeSet<String>>,
    threads: &Semaphore,
) -> Result<()> {
    let (namespace, name, node) = (vm.namespace(), vm.name(), plan.elsewhere(vm));
    let own = Some(namespace.as_str());
    let working = threads.acquire().await?;
    let failed = json!({"status": {"phase": "Failed"}});
    api.merge(Kind::INSTANCE, own, &name, failed).await?;
    api.all(Kind::INSTANCE, own).delete(&name, &DeleteParams::default()).await?;
    let object = api.all(Kind::VM, own).get(&name).await?;
    let uid = object.metadata.uid.context("a VM without a uid")?;
    let instance = api.create(Kind::INSTANCE, objects::instance(vm, &uid, node, "Scheduling")).await?;
    api.create(Kind::POD, objects::launcher(vm, 1, &instance, node)).await?;
    drop(working);
    // A disk that one node writes at a time is attached to the next one when the one before has let go.
    gone.wait_for(|gone| gone.contains(&vm.attachment(0))).await?;
    let (attachment, attached) = objects::attachment(vm, 1, node);
    api.create_with_status(Kind::ATTACHMENT, attachment, attached).await?;
    tokio::time::sleep(START).await;
    let _working = threads.acquire().await?;
    api.merge_status(Kind::POD, own, &vm.launcher(1), objects::launcher_status()).await?;
    let running = objects::instance(vm, &uid, node, "Running")["status"].clone();
    api.merge(Kind::INSTANCE, own, &name, json!({"status": running})).await
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    // Each change is one push.
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

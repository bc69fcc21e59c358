//! An API server as a command sees it: every call waits here, and no wait is without a limit.
//!
//! What is written is written with the preconditions of what was seen: a change of an object names its
//! resourceVersion, and where somebody was faster, we look again and decide again.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::Client;
use kube::api::{Api, DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::Request;
use serde_json::{Value, json};
use somersault_coordinator::cluster::directory::Objects;
use somersault_coordinator::cluster::directory::files::{Contents, Entry, Fault};
use somersault_coordinator::cluster::kube::Writer;
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::io::{Action, RecordKey};
use tokio::runtime::Runtime;

use super::kinds::{Absent, Kind, READ};
use super::trouble::{self, Trouble};
use super::{connect, identity, install, lead};
use crate::args::Global;
use crate::exit::Failure;
use crate::output;

/// Whose changes these are, for `kubectl get --show-managed-fields`.
pub const FIELD_MANAGER: &str = "kubectl-somersault";
/// One answer: a page of five hundred VMs takes a busy server about a second.
const CALL_MAX: Duration = Duration::from_secs(15);
/// As kubectl pages.
const PAGE_OBJECTS: u32 = 500;
/// Kinds read at the same time: a server gives one user a few seats.
const LISTS_AT_ONCE: usize = 4;
/// Objects of one kind; whoever has more has a list that never ends.
const OBJECTS_MAX: usize = 200_000;
/// How often somebody else may be faster before a person should look.
const TRIES_MAX: usize = 5;

/// An API server.
pub struct ApiServer {
    runtime: Runtime,
    client: Client,
    address: String,
    namespace: String,
    told: Cell<bool>,
    /// The leader's Lease, where it stands still.
    lease: Cell<Option<lead::Still>>,
}

impl ApiServer {
    /// The server that kubectl would talk to. Nothing is sent yet.
    pub fn open(global: &Global) -> Result<Self, Failure> {
        // One worker beside us keeps connections alive while a person thinks.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (client, address, namespace) = runtime.block_on(async {
            let config = connect::config(global).await?;
            let (address, namespace) = (config.cluster_url.to_string(), config.default_namespace.clone());
            Ok::<_, Failure>((connect::client(config)?, address, namespace))
        })?;
        Ok(Self {
            runtime,
            client,
            address: address.trim_end_matches('/').to_owned(),
            namespace,
            told: Cell::new(false),
            lease: Cell::default(),
        })
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// `https://host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The namespace of the kubeconfig's context.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Waits for several calls, each of which has its own limit.
    pub fn wait<T>(&self, calls: impl Future<Output = T>) -> T {
        self.runtime.block_on(calls)
    }

    /// See [`super::Source::objects`].
    pub fn objects(&self) -> Result<Objects, Failure> {
        let lists = self.wait(async {
            let lists = READ.iter().map(|kind| async move { (kind, list(&self.client, kind).await) });
            futures::stream::iter(lists).buffered(LISTS_AT_ONCE).collect::<Vec<_>>().await
        });
        let (mut files, mut absent, mut forbidden) = (Vec::new(), Vec::new(), Vec::new());
        for (kind, result) in lists {
            match result {
                Ok(contents) => files.push((PathBuf::from(kind.resource()), Arc::new(contents))),
                Err(trouble) if trouble.is_not_found() => absent.push(kind.absent),
                // Pods are read in two parts.
                Err(trouble) if trouble.is_forbidden() => {
                    if !forbidden.contains(&kind.resource()) {
                        forbidden.push(kind.resource());
                    }
                }
                Err(trouble) => return Err(trouble.failure(&self.address, &kind.resource())),
            }
        }
        // An answer that is made without some kind would be a wrong one: "nothing is lost", "no such VM".
        if !forbidden.is_empty() {
            return Err(trouble::may_not_list(&forbidden));
        }
        self.tell_absent(&absent);
        Ok(Objects::from_files(files))
    }

    /// What this cluster lacks is told by whoever asks.
    pub fn be_quiet(&self) {
        self.told.set(true);
    }

    /// Says once what this cluster lacks.
    fn tell_absent(&self, absent: &[Absent]) {
        if self.told.replace(true) {
            return;
        }
        if absent.contains(&Absent::KubeVirt) {
            output::note("this cluster has no KubeVirt: there are no VMs to tell about");
        }
        if absent.contains(&Absent::Somersault) {
            output::note(&format!(
                "{}. What is told comes from the cluster's own objects alone",
                trouble::not_installed()
            ));
        }
    }

    /// See [`super::Source::led`].
    pub fn led(&self) -> Result<Option<bool>, Failure> {
        let mut still = self.lease.take();
        let led = self.wait(lead::observe(&self.client, &mut still));
        self.lease.set(still);
        led.map_err(|trouble| trouble.failure(&self.address, "the leader's Lease"))
    }

    /// See [`super::Source::get`].
    pub fn get(&self, id: &ObjectId) -> Result<Option<Value>, Failure> {
        let kind = kind_of(id)?;
        match self.wait(get(&self.client, kind, id)) {
            Ok(object) => Ok(Some(object)),
            Err(trouble) if trouble.is_not_found() => Ok(None),
            Err(trouble) => Err(self.failure(&trouble, id)),
        }
    }

    /// See [`super::Source::create`].
    pub fn create(
        &self,
        mut plan: impl FnMut(&Objects) -> Result<Value, Failure>,
    ) -> Result<ObjectId, Failure> {
        for tries_left in (0..TRIES_MAX).rev() {
            let object = plan(&self.objects()?)?;
            let id = identity(&object)?;
            let kind = kind_of(&id)?;
            match self.wait(create(&self.client, kind, &id, &object)) {
                Ok(()) => return Ok(id),
                Err(trouble) if trouble.is_conflict() && tries_left > 0 => {}
                Err(trouble) if trouble.is_not_found() && kind.absent == Absent::Somersault => {
                    return Err(match trouble.status().and_then(|status| status.details.as_ref()) {
                        Some(details) if details.kind == "namespaces" => {
                            Failure::NotFound(format!("there is no namespace {}", id.namespace))
                        }
                        _ => trouble::not_installed(),
                    });
                }
                Err(trouble) => return Err(self.failure(&trouble, &id)),
            }
        }
        Err(Failure::Refused("somebody else creates the same objects all the time; try again".to_owned()))
    }

    /// See [`super::Source::delete`].
    pub fn delete(&self, id: &ObjectId) -> Result<(), Failure> {
        match self.wait(delete(&self.client, kind_of(id)?, id)) {
            Err(trouble) if !trouble.is_not_found() => Err(self.failure(&trouble, id)),
            _ => Ok(()),
        }
    }

    /// See [`super::Source::set_spec`].
    pub fn set_spec(
        &self,
        id: &ObjectId,
        mut decide: impl FnMut(&Value) -> Result<(&'static str, Value), String>,
    ) -> Result<(), Failure> {
        let kind = kind_of(id)?;
        for tries_left in (0..TRIES_MAX).rev() {
            let object = self.get(id)?.ok_or_else(|| Failure::NotFound(format!("{id} does not exist")))?;
            let (field, value) = decide(&object).map_err(|why| Failure::Refused(format!("{id}: {why}")))?;
            if object["spec"][field] == value {
                return Ok(());
            }
            let patch = json!({
                "metadata": { "resourceVersion": object["metadata"]["resourceVersion"] },
                "spec": { field: value },
            });
            match self.wait(merge(&self.client, kind, id, &patch)) {
                Ok(()) => return Ok(()),
                Err(trouble) if trouble.is_conflict() && tries_left > 0 => {}
                Err(trouble) => return Err(self.failure(&trouble, id)),
            }
        }
        Err(Failure::Refused(format!("{id} is changed by others all the time; try again")))
    }

    /// Our user name, as the server knows it.
    pub fn who(&self) -> Result<String, Failure> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let (parameters, question) = (PostParams::default(), SelfSubjectReview::default());
        let review = self
            .wait(limited(api.create(&parameters, &question)))
            .map_err(|trouble| trouble.failure(&self.address, "the question who you are"))?;
        let user = review.status.and_then(|status| status.user_info).and_then(|info| info.username);
        user.filter(|name| !name.is_empty()).ok_or_else(|| {
            Failure::Failed(format!("the API server {} does not say who you are", self.address))
        })
    }

    /// Does what the coordinator itself would do.
    pub fn act(&self, action: &Action) -> Result<(), Failure> {
        Ok(self.wait(self.writer().act(action))?)
    }

    /// Takes the coordinator's finalizer off the object of a record: nobody is left to end what it tells of.
    pub fn let_go(&self, record: &RecordKey) -> Result<(), Failure> {
        Ok(self.wait(self.writer().let_go(record))?)
    }

    fn writer(&self) -> Writer {
        Writer::new(self.client.clone(), install::NAMESPACE, FIELD_MANAGER)
    }

    fn failure(&self, trouble: &Trouble, id: &ObjectId) -> Failure {
        trouble.failure(&self.address, &id.to_string())
    }
}

/// Waits for one answer, not for ever.
pub async fn limited<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
    match tokio::time::timeout(CALL_MAX, call).await {
        Ok(answer) => answer.map_err(Trouble::Kube),
        Err(_) => Err(Trouble::Late(CALL_MAX.as_secs())),
    }
}

fn kind_of(id: &ObjectId) -> Result<&'static Kind, Failure> {
    Kind::named(&id.kind).ok_or_else(|| Failure::Failed(format!("{id} is of a kind that is not known here")))
}

fn request(error: kube::core::request::Error) -> Trouble {
    Trouble::Kube(kube::Error::BuildRequest(error))
}

/// Every object of a kind, page by page.
async fn list(client: &Client, kind: &Kind) -> Result<Contents, Trouble> {
    let mut parameters = ListParams::default().limit(PAGE_OBJECTS);
    if !kind.selector.is_empty() {
        parameters = parameters.labels(kind.selector);
    }
    let mut contents = Contents::default();
    loop {
        let call = Request::new(kind.path("")).list(&parameters).map_err(request)?;
        let mut page: Value = limited(client.request(call)).await?;
        let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) else {
            return Ok(contents);
        };
        for item in items {
            take_in(kind, item, &mut contents);
        }
        match page["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() && contents.entries.len() < OBJECTS_MAX => {
                parameters = parameters.continue_token(token);
            }
            Some(token) if !token.is_empty() => {
                let message = format!("more than {OBJECTS_MAX} objects; the rest was not read");
                contents.faults.push(Fault { document: 0, object: String::new(), message });
                return Ok(contents);
            }
            _ => return Ok(contents),
        }
    }
}

/// An item of a list as the object that it is: lists do not repeat the type, and who manages which field is of no use here,
/// but often half of the bytes.
fn take_in(kind: &Kind, mut item: Value, contents: &mut Contents) {
    complete(kind, &mut item);
    let Some(item) = kind.kept(item) else { return };
    match ObjectId::of(&item) {
        Ok(id) => contents.entries.push(Entry { id, document: 0, value: item }),
        Err(message) => {
            contents.faults.push(Fault { document: 0, object: ObjectId::describe(&item), message });
        }
    }
}

fn complete(kind: &Kind, object: &mut Value) {
    let Value::Object(fields) = object else { return };
    fields.insert("kind".to_owned(), Value::from(kind.name));
    fields.insert("apiVersion".to_owned(), Value::from(kind.api_version()));
    if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
        match metadata.remove("managedFields") {
            Some(Value::Array(entries)) if kind.name == "NodeHealth" => {
                metadata
                    .insert("managedFields".to_owned(), entries.into_iter().map(without_fields).collect());
            }
            _ => {}
        }
    }
}

/// When which part of an object was written, and by whom: no field of a node's health tells how old its report is.
fn without_fields(mut entry: Value) -> Value {
    if let Value::Object(entry) = &mut entry {
        entry.remove("fieldsType");
        entry.remove("fieldsV1");
    }
    entry
}

async fn get(client: &Client, kind: &Kind, id: &ObjectId) -> Result<Value, Trouble> {
    let call =
        Request::new(kind.path(&id.namespace)).get(&id.name, &GetParams::default()).map_err(request)?;
    let mut object: Value = limited(client.request(call)).await?;
    complete(kind, &mut object);
    Ok(object)
}

async fn create(client: &Client, kind: &Kind, id: &ObjectId, object: &Value) -> Result<(), Trouble> {
    let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let body = serde_json::to_vec(object).map_err(|error| Trouble::Kube(kube::Error::SerdeError(error)))?;
    let call = Request::new(kind.path(&id.namespace)).create(&parameters, body).map_err(request)?;
    limited(client.request::<Value>(call)).await.map(drop)
}

async fn delete(client: &Client, kind: &Kind, id: &ObjectId) -> Result<(), Trouble> {
    let call =
        Request::new(kind.path(&id.namespace)).delete(&id.name, &DeleteParams::default()).map_err(request)?;
    limited(client.request::<Value>(call)).await.map(drop)
}

async fn merge(client: &Client, kind: &Kind, id: &ObjectId, patch: &Value) -> Result<(), Trouble> {
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let call = Request::new(kind.path(&id.namespace))
        .patch(&id.name, &parameters, &Patch::Merge(patch))
        .map_err(request)?;
    limited(client.request::<Value>(call)).await.map(drop)
}

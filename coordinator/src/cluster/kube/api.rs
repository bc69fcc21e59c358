//! Objects of the API server, by our own identities, as JSON.
//!
//! Every write carries a precondition: a `resourceVersion` or a uid, so that what was looked at is what is changed.
//!
//! ```text
//!   modify: read ──► change ──► write, with the resourceVersion that was read ──► done
//!             ▲                               │
//!             └───── somebody was faster ─────┘   a few times
//! ```
//!
//! Answers are told apart by what they mean to us: 404 nothing there, 409 somebody was faster, other refusals a
//! person's matter; overload, breakdowns and silence pass, and the caller tries again.

use std::io;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use kube::Client;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::api::{Preconditions, PropagationPolicy};
use kube::core::Status;
use serde_json::{Value, json};

use crate::cluster::ClusterError;
use crate::cluster::change::uid;
use crate::cluster::error::{conflict, not_found, refused};
use crate::cluster::manifest::ObjectId;

/// Who changes fields, as far as the API server is concerned.
pub(super) const FIELD_MANAGER: &str = "somersault";
/// Who changes the records in our objects' status: apart from the display, which is applied as a whole.
pub(super) const RECORDS_MANAGER: &str = "somersault-records";
/// How long a call may take. A leader stops 10 s after its last renewal, and its lease ends 5 s later: what it has
/// begun by then has ended before another one leads.
const CALL_WITHIN: Duration = Duration::from_secs(5);
/// Objects of one page of a list: a few megabytes of our own objects.
const PAGE: u32 = 250;
/// More of one kind than any cluster that we know of has; then something else is wrong.
const OBJECTS_MAX: usize = 200_000;

/// Kinds that we read or write here: kind, group, version, plural, whether namespaced.
const KINDS: [(&str, &str, &str, &str, bool); 20] = [
    ("Node", "", "v1", "nodes", false),
    ("Pod", "", "v1", "pods", true),
    ("PersistentVolume", "", "v1", "persistentvolumes", false),
    ("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims", true),
    ("ResourceQuota", "", "v1", "resourcequotas", true),
    ("StorageClass", "storage.k8s.io", "v1", "storageclasses", false),
    ("VolumeAttachment", "storage.k8s.io", "v1", "volumeattachments", false),
    ("Deployment", "apps", "v1", "deployments", true),
    ("CronJob", "batch", "v1", "cronjobs", true),
    ("Job", "batch", "v1", "jobs", true),
    ("Event", "events.k8s.io", "v1", "events", true),
    ("VirtualMachine", "kubevirt.io", "v1", "virtualmachines", true),
    ("VirtualMachineInstanceMigration", "kubevirt.io", "v1", "virtualmachineinstancemigrations", true),
    ("DataVolume", "cdi.kubevirt.io", "v1beta1", "datavolumes", true),
    ("Wukong", "vm.novasphere.dev", "v1alpha1", "wukongs", true),
    ("NodeHealth", "somersault.novasphere.dev", "v1alpha1", "nodehealths", false),
    ("Recovery", "somersault.novasphere.dev", "v1alpha1", "recoveries", true),
    ("VolumeMigration", "somersault.novasphere.dev", "v1alpha1", "volumemigrations", true),
    ("Evacuation", "somersault.novasphere.dev", "v1alpha1", "evacuations", false),
    ("RecoveryPolicy", "somersault.novasphere.dev", "v1alpha1", "recoverypolicies", false),
];

/// The API server.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    namespace: String,
    instance: String,
}

/// How a change is written.
#[derive(Clone, Copy)]
enum How {
    /// What differs, as a merge patch.
    Patch,
    /// The whole object: for values that no merge patch can say, such as a null.
    Replace,
    /// The whole status.
    ReplaceStatus,
}

impl Api {
    /// Through this client; `namespace` is the coordinator's own, `instance` this very process.
    pub(super) fn new(client: Client, namespace: String, instance: String) -> Self {
        Self { client, namespace, instance }
    }

    /// The coordinator's own namespace.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// This process, for people.
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// An object as it is stored now, and not as some cache has it.
    pub(super) async fn get(&self, id: &ObjectId) -> Result<Option<Value>, ClusterError> {
        let api = self.of(id)?;
        call(id, async move { api.get_opt(&id.name).await }).await?.map(|object| json(id, object)).transpose()
    }

    /// Every object of a kind, in one namespace or in all, as stored when the list began.
    pub(super) async fn list(
        &self,
        kind: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<(ObjectId, Value)>, ClusterError> {
        let anyone = ObjectId {
            kind: kind.to_owned(),
            namespace: namespace.unwrap_or_default().to_owned(),
            name: String::new(),
        };
        let (resource, _) = resource(&anyone)?;
        let api: kube::Api<DynamicObject> = match namespace {
            Some(namespace) => kube::Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => kube::Api::all_with(self.client.clone(), &resource),
        };
        let mut found = Vec::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = call(&anyone, api.list(&page)).await?;
            for object in list.items {
                let metadata = &object.metadata;
                let id = ObjectId {
                    kind: kind.to_owned(),
                    namespace: metadata.namespace.clone().unwrap_or_default(),
                    name: metadata.name.clone().unwrap_or_default(),
                };
                let object = json(&id, object)?;
                found.push((id, object));
            }
            if found.len() > OBJECTS_MAX {
                return Err(refused(kind, format!("there are more than {OBJECTS_MAX} of them")));
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => return Ok(found),
            }
        }
    }

    /// Creates an object; `None` where one of its name exists.
    pub(super) async fn create(&self, object: &Value) -> Result<Option<Value>, ClusterError> {
        let id = ObjectId::of(object).map_err(|why| refused(&ObjectId::describe(object), why))?;
        self.create_as(&id, object).await
    }

    /// What would come of it, and nothing is made.
    pub(super) async fn try_create(&self, object: &Value) -> Result<Option<Value>, ClusterError> {
        let id = ObjectId::of(object).map_err(|why| refused(&ObjectId::describe(object), why))?;
        self.post(&id, object, &PostParams { dry_run: true, ..post(FIELD_MANAGER) }).await
    }

    /// The same, where the identity is known.
    pub(super) async fn create_as(
        &self,
        id: &ObjectId,
        object: &Value,
    ) -> Result<Option<Value>, ClusterError> {
        self.post(id, object, &post(FIELD_MANAGER)).await
    }

    async fn post(
        &self,
        id: &ObjectId,
        object: &Value,
        parameters: &PostParams,
    ) -> Result<Option<Value>, ClusterError> {
        let api = self.of(id)?;
        let object = dynamic(id, object)?;
        let created = async {
            match api.create(parameters, &object).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
                created => created.map(Some),
            }
        };
        match call(id, created).await {
            Ok(created) => created.map(|object| json(id, object)).transpose(),
            // What is missing is not the object, which was to be made.
            Err(ClusterError::NotFound { .. }) => Err(refused(id, "its namespace does not exist")),
            Err(error) => Err(error),
        }
    }

    /// Changes an object by a closure, which sees it as it is stored now and may refuse. Nothing is written when it
    /// changes nothing. Where somebody else is faster, all of it is done again.
    pub(super) async fn modify(
        &self,
        id: &ObjectId,
        change: impl Fn(&mut Value) -> Result<(), ClusterError> + Send + Sync,
    ) -> Result<Value, ClusterError> {
        self.modify_how(id, How::Patch, change).await
    }

    /// The same, to the last null.
    pub(super) async fn modify_exactly(
        &self,
        id: &ObjectId,
        change: impl Fn(&mut Value) -> Result<(), ClusterError> + Send + Sync,
    ) -> Result<Value, ClusterError> {
        self.modify_how(id, How::Replace, change).await
    }

    /// The same, of the object's status.
    pub(super) async fn modify_status(
        &self,
        id: &ObjectId,
        change: impl Fn(&mut Value) -> Result<(), ClusterError> + Send + Sync,
    ) -> Result<Value, ClusterError> {
        self.modify_how(id, How::ReplaceStatus, change).await
    }

    async fn modify_how(
        &self,
        id: &ObjectId,
        how: How,
        change: impl Fn(&mut Value) -> Result<(), ClusterError> + Send + Sync,
    ) -> Result<Value, ClusterError> {
        let mut waits = again();
        loop {
            let stored = self.get(id).await?.ok_or_else(|| not_found(id))?;
            let mut object = stored.clone();
            change(&mut object)?;
            if object == stored {
                return Ok(object);
            }
            let written = match how {
                How::Patch => self.patch(id, as_read(&stored, difference(&stored, &object))).await,
                How::Replace | How::ReplaceStatus => self.replace(id, &object, how, FIELD_MANAGER).await,
            };
            match written {
                Err(ClusterError::Conflict { .. }) if let Some(wait) = waits.next() => {
                    tokio::time::sleep(wait).await;
                }
                written => return written,
            }
        }
    }

    async fn patch(&self, id: &ObjectId, patch: Value) -> Result<Value, ClusterError> {
        let api = self.of(id)?;
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
        let patch = Patch::Merge(patch);
        json(id, call(id, async { api.patch(&id.name, &parameters, &patch).await }).await?)
    }

    /// Replaces the record part of an object's status; a conflict where the object is not the one that was read.
    pub(super) async fn replace_record(&self, id: &ObjectId, object: &Value) -> Result<(), ClusterError> {
        self.replace(id, object, How::ReplaceStatus, RECORDS_MANAGER).await.map(drop)
    }

    async fn replace(
        &self,
        id: &ObjectId,
        object: &Value,
        how: How,
        manager: &str,
    ) -> Result<Value, ClusterError> {
        let api = self.of(id)?;
        let object = dynamic(id, object)?;
        let parameters = post(manager);
        let replaced = async {
            match how {
                How::ReplaceStatus => api.replace_status(&id.name, &parameters, &object).await,
                How::Patch | How::Replace => api.replace(&id.name, &parameters, &object).await,
            }
        };
        json(id, call(id, replaced).await?)
    }

    /// Sets fields of the very object that was read, whatever became of its other fields since.
    pub(super) async fn merge(
        &self,
        id: &ObjectId,
        read: &Value,
        mut patch: Value,
    ) -> Result<(), ClusterError> {
        patch["metadata"] = json!({ "uid": uid(read) });
        let mut waits = again();
        loop {
            match self.patch(id, patch.clone()).await {
                Err(ClusterError::Conflict { .. }) if let Some(wait) = waits.next() => {
                    tokio::time::sleep(wait).await;
                }
                patched => return patched.map(drop),
            }
        }
    }

    /// Makes what this manifest's status holds ours, and what we have applied before and do not any more, nobody's.
    pub(super) async fn apply_status(&self, id: &ObjectId, manifest: &Value) -> Result<(), ClusterError> {
        let api = self.of(id)?;
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(manifest);
        call(id, async { api.patch_status(&id.name, &parameters, &patch).await }).await.map(drop)
    }

    /// Deletes the very object that was read; done where it is gone. `grace` of 0 removes a pod without its kubelet.
    pub(super) async fn delete(
        &self,
        id: &ObjectId,
        preconditions: Preconditions,
        grace: Option<u32>,
    ) -> Result<(), ClusterError> {
        let api = self.of(id)?;
        let parameters = DeleteParams {
            grace_period_seconds: grace,
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match call(id, async { api.delete(&id.name, &parameters).await }).await {
            Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn of(&self, id: &ObjectId) -> Result<kube::Api<DynamicObject>, ClusterError> {
        // Names become parts of URLs, and some of them were typed by people.
        ObjectId::check_name(&id.name).map_err(|why| refused(id, why))?;
        let (resource, namespaced) = resource(id)?;
        let client = self.client.clone();
        if !namespaced {
            return Ok(kube::Api::all_with(client, &resource));
        }
        ObjectId::check_name(&id.namespace).map_err(|why| refused(id, why))?;
        Ok(kube::Api::namespaced_with(client, &id.namespace, &resource))
    }
}

/// Waits between tries after somebody was faster: about a second in all. Nodes are written by their kubelet and the
/// controller manager, most of all in the moments that we care about; the first tries follow each other closely,
/// since whoever reads last and writes first wins.
pub(super) fn again() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_millis(100))
        .with_max_times(15)
        .with_jitter()
        .build()
}

fn resource(id: &ObjectId) -> Result<(ApiResource, bool), ClusterError> {
    let known = KINDS.iter().find(|(kind, ..)| *kind == id.kind);
    let (kind, group, version, plural, namespaced) =
        known.ok_or_else(|| refused(id, "this kind is not one that we read or write"))?;
    let api_version = if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") };
    let resource = ApiResource {
        group: (*group).to_owned(),
        version: (*version).to_owned(),
        api_version,
        kind: (*kind).to_owned(),
        plural: (*plural).to_owned(),
    };
    Ok((resource, *namespaced))
}

/// The patch, for the object as it was read and no other.
fn as_read(read: &Value, mut patch: Value) -> Value {
    patch["metadata"]["resourceVersion"] = read["metadata"]["resourceVersion"].clone();
    patch
}

/// The merge patch (RFC 7386) that makes `new` of `old`, where `new` has no null that `old` has not.
fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(have), Value::Object(want)) = (old, new) else { return new.clone() };
    let gone =
        have.keys().filter(|field| !want.contains_key(*field)).map(|field| (field.clone(), Value::Null));
    let changed = want.iter().filter(|(field, value)| have.get(*field) != Some(*value));
    let changed = changed
        .map(|(field, value)| (field.clone(), difference(have.get(field).unwrap_or(&Value::Null), value)));
    gone.chain(changed).collect()
}

fn post(manager: &str) -> PostParams {
    PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() }
}

fn json(id: &ObjectId, object: DynamicObject) -> Result<Value, ClusterError> {
    serde_json::to_value(object).map_err(|e| refused(id, e.to_string()))
}

fn dynamic(id: &ObjectId, object: &Value) -> Result<DynamicObject, ClusterError> {
    serde_json::from_value(object.clone()).map_err(|e| refused(id, e.to_string()))
}

/// Waits for an answer, and tells what it means.
pub(super) async fn call<T>(
    id: &ObjectId,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClusterError> {
    let answer = tokio::time::timeout(CALL_WITHIN, request).await;
    let silence = || {
        let why = format!("no answer within {} s", CALL_WITHIN.as_secs());
        passing(id, io::Error::new(io::ErrorKind::TimedOut, why))
    };
    answer.map_err(|_| silence())?.map_err(|error| meaning(id, error))
}

/// What an error means to us.
pub(super) fn meaning(id: &ObjectId, error: kube::Error) -> ClusterError {
    match error {
        kube::Error::Api(status) => meaning_of_status(id, *status),
        kube::Error::BuildRequest(_) | kube::Error::Auth(_) => refused(id, error.to_string()),
        error => passing(id, io::Error::other(error)),
    }
}

fn meaning_of_status(id: &ObjectId, status: Status) -> ClusterError {
    let details = status.details.as_ref();
    let named = details.is_some_and(|details| !details.name.is_empty());
    // A patch with a uid is one for the very object that was read: the server calls another uid an invalid value.
    let is_another = details.is_some_and(|details| details.causes.iter().any(|c| c.field == "metadata.uid"));
    let message = &status.message;
    match status.code {
        422 if is_another => conflict(id, "it was deleted and made anew in between"),
        404 if named => not_found(id),
        404 => {
            let why = format!("{message}: install the CustomResourceDefinitions of {}", id.kind);
            refused(id, why)
        }
        409 => conflict(id, message.clone()),
        401 => refused(id, format!("{message}: the API server does not accept our credentials")),
        403 => {
            let why = format!("{message}. Where this is a right that is missing, apply the deployment again");
            refused(id, why)
        }
        408 | 410 | 429 | 500.. => passing(id, io::Error::other(kube::Error::Api(Box::new(status)))),
        _ => refused(id, message.clone()),
    }
}

fn passing(id: &ObjectId, source: io::Error) -> ClusterError {
    ClusterError::Io { place: format!("the API server ({id})"), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::is_passing;

    fn node() -> ObjectId {
        ObjectId::cluster("Node", "n1")
    }

    /// A record is stored by writing a whole status back as it was read. A figure with another last digit would make whoever
    /// stores it the owner of that field: it then stays when the rest of it goes, and the schema refuses the status from then on.
    #[test]
    fn figures_that_are_read_and_written_again_stay_the_same() {
        for n in 0..10_000_u32 {
            let figure = f64::from(n) / 9_973.0;
            let text = serde_json::to_string(&figure).expect("a number");
            let read: Value = serde_json::from_str(&text).expect("the same number");
            assert_eq!(read.to_string(), text);
        }
    }

    fn answer(code: u16, reason: &str, name: &str) -> ClusterError {
        let status = json!({
            "kind": "Status", "status": "Failure", "code": code, "reason": reason,
            "message": "as the server says", "details": { "name": name },
        });
        meaning(&node(), kube::Error::Api(Box::new(serde_json::from_value(status).unwrap())))
    }

    #[test]
    fn each_answer_is_what_it_means_to_us() {
        assert!(matches!(answer(404, "NotFound", "n1"), ClusterError::NotFound { .. }));
        assert!(matches!(answer(409, "Conflict", "n1"), ClusterError::Conflict { .. }));
        for code in [400, 401, 403, 404, 405, 413, 415, 422] {
            let refusal = answer(code, "", "");
            assert!(matches!(refusal, ClusterError::Refused { .. }), "{code}: {refusal}");
            assert!(refusal.to_string().contains("as the server says"), "{refusal}");
        }
        for code in [408, 410, 429, 500, 502, 503, 504] {
            let trouble = answer(code, "", "n1");
            assert!(is_passing(&trouble), "{code}: {trouble}");
        }
        let cause =
            json!({ "field": "metadata.uid", "reason": "FieldValueInvalid", "message": "is immutable" });
        let another =
            json!({ "code": 422, "reason": "Invalid", "details": { "name": "n1", "causes": [cause] } });
        let another = kube::Error::Api(Box::new(serde_json::from_value(another).unwrap()));
        assert!(matches!(meaning(&node(), another), ClusterError::Conflict { .. }));
        assert!(answer(404, "NotFound", "").to_string().contains("CustomResourceDefinitions of Node"));
    }

    #[test]
    fn a_patch_says_what_differs_and_nothing_else() {
        let old = json!({ "spec": { "a": 1, "b": { "c": 2, "uid": "x" }, "list": [1, 2] }, "status": {} });
        let new = json!({ "spec": { "b": { "c": 3 }, "list": [1], "new": { "d": 4 } }, "status": {} });
        let patch =
            json!({ "spec": { "a": null, "b": { "c": 3, "uid": null }, "list": [1], "new": { "d": 4 } } });
        assert_eq!(difference(&old, &new), patch);
        assert_eq!(difference(&new, &new), json!({}));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_silent_is_passing_trouble() {
        let silence = call::<()>(&node(), std::future::pending()).await.unwrap_err();
        assert!(is_passing(&silence), "{silence}");
        let source = std::error::Error::source(&silence).unwrap().to_string();
        assert_eq!(source, "no answer within 5 s");
    }

    #[test]
    fn each_kind_is_namespaced_as_its_manifests_are() {
        for (kind, group, version, _, namespaced) in KINDS.into_iter().filter(|(kind, ..)| *kind != "Event") {
            let api_version =
                if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            let object = json!({
                "apiVersion": api_version, "kind": kind, "metadata": { "name": "x", "namespace": "y" },
            });
            let id = ObjectId::of(&object).unwrap();
            assert_eq!((id.kind.as_str(), id.namespace.is_empty()), (kind, !namespaced));
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_elsewhere_reaches_no_server() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let api = Api::new(Client::try_from(config).unwrap(), "ns".into(), "me".into());
        for name in ["../../secrets/x", "a?b", "a b", ""] {
            let error = api.get(&ObjectId::cluster("Node", name)).await.unwrap_err();
            assert!(matches!(error, ClusterError::Refused { .. }), "{name}: {error}");
        }
    }
}

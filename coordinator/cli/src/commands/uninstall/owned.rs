//! What `deploy/` and the coordinator have made, and in which order it goes: first what acts, last what permits.

use kube::Client;
use kube::api::{DeleteParams, GetParams, ListParams, Preconditions};
use kube::core::Request;
use serde_json::Value;

use crate::source::api::limited;
use crate::source::install;
use crate::source::trouble::Trouble;

/// Objects of one kind of ours: an installation has a handful.
const OBJECTS_MAX: u32 = 500;

/// Where objects of a kind are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// In no namespace.
    Cluster,
    /// In our namespace.
    Ours,
    /// In several: ours, and that of the kubelets' Leases.
    Everywhere,
}

/// A kind of which we may have objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    name: &'static str,
    /// `/api/v1`, `/apis/apps/v1`.
    api: &'static str,
    plural: &'static str,
    scope: Scope,
    /// Made by the coordinator under this name, without our label.
    unlabelled: &'static [&'static str],
}

const fn kind(name: &'static str, api: &'static str, plural: &'static str, scope: Scope) -> Kind {
    Kind { name, api, plural, scope, unlabelled: &[] }
}

/// The kind of the leader's Lease.
const LEASE: &str = "Lease";
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// In the order in which they go.
pub const KINDS: [Kind; 18] = [
    // What stands in other people's way goes first.
    kind("ValidatingAdmissionPolicyBinding", ADMISSION, "validatingadmissionpolicybindings", Scope::Cluster),
    kind("ValidatingAdmissionPolicy", ADMISSION, "validatingadmissionpolicies", Scope::Cluster),
    kind("ValidatingWebhookConfiguration", ADMISSION, "validatingwebhookconfigurations", Scope::Cluster),
    kind("DaemonSet", "/apis/apps/v1", "daemonsets", Scope::Ours),
    kind("Deployment", "/apis/apps/v1", "deployments", Scope::Ours),
    kind("PodDisruptionBudget", "/apis/policy/v1", "poddisruptionbudgets", Scope::Ours),
    kind("Service", "/api/v1", "services", Scope::Ours),
    kind("NetworkPolicy", "/apis/networking.k8s.io/v1", "networkpolicies", Scope::Ours),
    Kind {
        unlabelled: &[install::COORDINATOR],
        ..kind(LEASE, "/apis/coordination.k8s.io/v1", "leases", Scope::Ours)
    },
    Kind { unlabelled: &[install::CA_BUNDLE], ..kind("ConfigMap", "/api/v1", "configmaps", Scope::Ours) },
    Kind { unlabelled: &[install::CA_SECRET], ..kind("Secret", "/api/v1", "secrets", Scope::Ours) },
    kind("RoleBinding", RBAC, "rolebindings", Scope::Everywhere),
    kind("Role", RBAC, "roles", Scope::Everywhere),
    kind("ClusterRoleBinding", RBAC, "clusterrolebindings", Scope::Cluster),
    kind("ClusterRole", RBAC, "clusterroles", Scope::Cluster),
    kind("ServiceAccount", "/api/v1", "serviceaccounts", Scope::Ours),
    kind("ResourceQuota", "/api/v1", "resourcequotas", Scope::Ours),
    kind("PriorityClass", "/apis/scheduling.k8s.io/v1", "priorityclasses", Scope::Cluster),
];

/// Our definitions.
const DEFINITIONS: Kind = kind(
    "CustomResourceDefinition",
    "/apis/apiextensions.k8s.io/v1",
    "customresourcedefinitions",
    Scope::Cluster,
);

/// An object of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    kind: Kind,
    namespace: String,
    name: String,
    /// So that no later one of this name goes.
    uid: String,
}

impl Owned {
    /// An object of our namespace.
    #[cfg(test)]
    pub fn named(kind: &str, name: &str) -> Self {
        let kind = KINDS.into_iter().find(|known| known.name == kind).expect("a kind of ours");
        let (namespace, uid) = (install::NAMESPACE.to_owned(), "u".to_owned());
        Self { kind, namespace, name: name.to_owned(), uid }
    }

    fn of(kind: Kind, object: &Value) -> Self {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        Self { kind, namespace: text("namespace"), name: text("name"), uid: text("uid") }
    }

    /// By it the next coordinator knows that the last one has given up (the coordinator's election).
    pub fn is_leaders_lease(&self) -> bool {
        self.kind.name == LEASE && self.name == install::COORDINATOR
    }

    /// `Kind name`, with the namespace where it has one.
    pub fn words(&self) -> String {
        match self.namespace.as_str() {
            "" => format!("{} {}", self.kind.name, self.name),
            namespace => format!("{} {namespace}/{}", self.kind.name, self.name),
        }
    }
}

impl Kind {
    /// Path of the collection: in our namespace, in all of them, or of the cluster.
    fn path(&self, namespace: &str) -> String {
        match namespace {
            "" => format!("{}/{}", self.api, self.plural),
            namespace => format!("{}/namespaces/{namespace}/{}", self.api, self.plural),
        }
    }

    /// Where its objects of ours are.
    fn place(&self) -> &'static str {
        match self.scope {
            Scope::Ours => install::NAMESPACE,
            Scope::Everywhere | Scope::Cluster => "",
        }
    }
}

/// Everything of ours, in the order in which it goes.
pub async fn find(client: &Client) -> Result<Vec<Owned>, Trouble> {
    let label = format!("{}={}", install::NAME_LABEL.0, install::NAME_LABEL.1);
    let labelled = ListParams::default().labels(&label).limit(OBJECTS_MAX);
    let mut owned = Vec::new();
    for kind in KINDS {
        let found = list(client, &kind, &labelled).await?;
        owned.extend(found.iter().map(|object| Owned::of(kind, object)));
        let is_known = |name: &str| found.iter().any(|object| object["metadata"]["name"] == name);
        for name in kind.unlabelled.iter().filter(|name| !is_known(name)) {
            owned.extend(get(client, &kind, name).await?.map(|object| Owned::of(kind, &object)));
        }
    }
    Ok(owned)
}

/// Our definitions that are there.
pub async fn definitions(client: &Client) -> Result<Vec<Owned>, Trouble> {
    let found = list(client, &DEFINITIONS, &ListParams::default().limit(OBJECTS_MAX)).await?;
    let ours = found.iter().filter(|object| object["spec"]["group"] == somersault_crd::GROUP);
    Ok(ours.map(|object| Owned::of(DEFINITIONS, object)).collect())
}

/// Deletes the very object; one that is gone already is no error.
pub async fn delete(client: &Client, owned: &Owned) -> Result<(), Trouble> {
    let parameters = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(owned.uid.clone()), resource_version: None }),
        ..DeleteParams::background()
    };
    let call =
        Request::new(owned.kind.path(&owned.namespace)).delete(&owned.name, &parameters).map_err(request)?;
    found(limited(client.request::<Value>(call)).await).map(drop)
}

async fn list(client: &Client, kind: &Kind, parameters: &ListParams) -> Result<Vec<Value>, Trouble> {
    let call = Request::new(kind.path(kind.place())).list(parameters).map_err(request)?;
    // Older clusters do not know every kind.
    let page = found(limited(client.request::<Value>(call)).await)?;
    Ok(match page.map(|mut page| page["items"].take()) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    })
}

async fn get(client: &Client, kind: &Kind, name: &str) -> Result<Option<Value>, Trouble> {
    let call = Request::new(kind.path(kind.place())).get(name, &GetParams::default()).map_err(request)?;
    found(limited(client.request::<Value>(call)).await)
}

fn found<T>(answer: Result<T, Trouble>) -> Result<Option<T>, Trouble> {
    match answer {
        Err(trouble) if trouble.is_not_found() => Ok(None),
        answer => answer.map(Some),
    }
}

fn request(error: kube::core::request::Error) -> Trouble {
    Trouble::Kube(kube::Error::BuildRequest(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that `deploy/` installs, as files.
    const INSTALLED: [&str; 9] = [
        include_str!("../../../../../deploy/base/agent.yaml"),
        include_str!("../../../../../deploy/base/claim-lock.yaml"),
        include_str!("../../../../../deploy/base/coordinator.yaml"),
        include_str!("../../../../../deploy/base/namespace.yaml"),
        include_str!("../../../../../deploy/base/network-policy.yaml"),
        include_str!("../../../../../deploy/base/rbac.yaml"),
        include_str!("../../../../../deploy/base/records.yaml"),
        include_str!("../../../../../deploy/components/fence-runner/fence-runner.yaml"),
        include_str!("../../../../../deploy/crds/recoveries.yaml"),
    ];

    #[test]
    fn every_kind_that_is_installed_goes_or_is_said_to_stay() {
        for line in INSTALLED.iter().flat_map(|file| file.lines()) {
            let Some(kind) = line.strip_prefix("kind: ") else { continue };
            let stays = ["Namespace", DEFINITIONS.name].contains(&kind);
            assert!(stays || KINDS.iter().any(|known| known.name == kind), "{kind} is forgotten");
        }
    }
}

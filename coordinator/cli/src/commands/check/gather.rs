//! Looks at everything that `check` concludes from. What cannot be looked at is told, and the rest goes on.

use std::cell::Cell;
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::core::Request;
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::fleet::{Node, OS_LABEL, OUT_OF_SERVICE_TAINT};
use somersault_coordinator_core::names::NodeName;
use somersault_crd::recovery_policy::POLICY_NAME;

use super::facts::{
    Cluster, Definition, DefinitionState, Facts, FenceRunner, KubeVirt, NodeSeen, PodSeen, PolicySeen, Seen,
    Server, Unplaced, Workload,
};
use super::rules::number;
use super::{guard, rights};
use crate::commands::status::volumes::{self, VolumeRow};
use crate::exit::Failure;
use crate::output;
use crate::source::api::limited;
use crate::source::trouble::Trouble;
use crate::source::{ApiServer, install};
use crate::world::{self, World};

/// Pods of one part: one on each node.
const PODS_MAX: u32 = 10_000;
/// Where `KubeVirt` says what it is.
const KUBEVIRTS: &str = "/apis/kubevirt.io/v1/kubevirts";

/// Looks at everything; also tells whether some question was not answered, and may be in a moment. An error only where
/// the server does not answer at all.
pub fn gather(server: &ApiServer) -> Result<(Facts, bool), Failure> {
    let client = server.client();
    let version = server
        .wait(limited(client.apiserver_version()))
        .map_err(|trouble| trouble.failure(server.address(), "its version"))?;
    server.be_quiet();
    let unanswered = Cell::new(false);
    let not_seen = |failure: &Failure| {
        unanswered.set(unanswered.get() || matches!(failure, Failure::Unreachable(_)));
        failure.to_string()
    };
    let seen = |trouble: Trouble| {
        not_seen(&trouble.failure(server.address(), "this"));
        trouble.words()
    };
    let (admission, definitions, namespace, coordinator, agents, fence_runner, authority_until, kubevirt) =
        server.wait(async {
            futures::join!(
                admission(client),
                definitions(client),
                namespace(client),
                deployment(client, install::COORDINATOR, "coordinator"),
                agents(client),
                fence_runner(client),
                authority(client),
                kubevirt(client),
            )
        });
    let (claim_lock, record_guard) = admission;
    let (coordinator_rights, own_rights) = server.wait(async {
        let needed = super::needs::of_coordinator();
        futures::join!(
            async {
                rights::ask_of(client, install::NAMESPACE, install::COORDINATOR, needed?).await.map_err(seen)
            },
            async { rights::ask_own(client, rights::of_commands()).await.map_err(seen) },
        )
    });
    let facts = Facts {
        now: Timestamp::now(),
        version: env!("CARGO_PKG_VERSION"),
        server: Server {
            address: server.address().to_owned(),
            number: number(&version.git_version),
            version: version.git_version,
            user: server.who().map_err(|failure| not_seen(&failure)),
        },
        definitions: definitions.map_err(seen),
        namespace: namespace.map_err(seen),
        coordinator_rights,
        own_rights,
        claim_lock: claim_lock.map_err(seen),
        record_guard: record_guard.map_err(seen),
        coordinator: coordinator.map_err(seen),
        led: server.led().map_err(|failure| not_seen(&failure)),
        agents: agents.map_err(seen),
        fence_runner: fence_runner.map_err(seen),
        authority_until: authority_until
            .map_err(seen)
            .and_then(|bundle| bundle.as_deref().map(ends_at).transpose()),
        cluster: cluster(server).map_err(|failure| not_seen(&failure)),
        kubevirt: kubevirt.map_err(seen),
    };
    Ok((facts, unanswered.get()))
}

/// The definitions that this program was built with, as `deploy/crds` has them.
fn own_definitions() -> Vec<CustomResourceDefinition> {
    let files = somersault_crd::generate::files().expect("our own definitions are generated in every build");
    let parse = |content: &str| serde_saphyr::from_str(content).expect("and are read back by a test");
    files.iter().map(|file| parse(&file.content)).collect()
}

/// Our definitions as they are, beside those of this program.
async fn definitions(client: &Client) -> Result<Vec<Definition>, Trouble> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut found = Vec::new();
    for own in own_definitions() {
        let name = own.name_any();
        let state = match limited(api.get_opt(&name)).await? {
            None => DefinitionState::Missing,
            Some(installed) if !is_established(&installed) => DefinitionState::NotEstablished,
            Some(installed) if installed.spec.versions == own.spec.versions => DefinitionState::Same,
            Some(_) => DefinitionState::Differs,
        };
        found.push(Definition { name, state });
    }
    Ok(found)
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Established" && condition.status == "True")
}

async fn namespace(client: &Client) -> Result<bool, Trouble> {
    let api: Api<Namespace> = Api::all(client.clone());
    Ok(limited(api.get_opt(install::NAMESPACE)).await?.is_some())
}

/// Whether the policy that locks claims is there and bound, and whether the one that guards our records is what it was.
async fn admission(client: &Client) -> (Result<bool, Trouble>, Result<bool, Trouble>) {
    let claim_lock = async { Ok(guard::policy_and_binding(client, install::CLAIM_LOCK).await?.is_some()) };
    futures::join!(claim_lock, guard::is_intact(client))
}

async fn deployment(client: &Client, name: &str, component: &str) -> Result<Option<Workload>, Trouble> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), install::NAMESPACE);
    let Some(deployment) = limited(api.get_opt(name)).await? else { return Ok(None) };
    let status = deployment.status.unwrap_or_default();
    Ok(Some(Workload {
        observed: is_observed(deployment.metadata.generation, status.observed_generation),
        // One where it is absent, as the API says.
        wanted: deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1),
        ready: status.ready_replicas.unwrap_or(0),
        pods: pods(client, component).await?,
    }))
}

async fn fence_runner(client: &Client) -> Result<Option<FenceRunner>, Trouble> {
    let Some(workload) = deployment(client, install::FENCE_RUNNER, "fence-runner").await? else {
        return Ok(None);
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), install::NAMESPACE);
    // Its metadata alone: what it holds are passwords.
    let has_secret = match limited(secrets.get_metadata_opt(install::FENCE_SECRET)).await {
        Err(trouble) if trouble.is_forbidden() => None,
        answer => Some(answer?.is_some()),
    };
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), install::NAMESPACE);
    let asks =
        limited(deployments.get_opt(install::COORDINATOR)).await?.as_ref().is_none_or(asks_a_fence_runner);
    Ok(Some(FenceRunner { workload, has_secret, is_asked: asks }))
}

/// Whether this coordinator is told of a fence runner.
fn asks_a_fence_runner(coordinator: &Deployment) -> bool {
    let pod = coordinator.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let mut args =
        pod.into_iter().flat_map(|pod| &pod.containers).filter_map(|container| container.args.as_ref());
    args.any(|args| args.iter().any(|arg| arg.starts_with("--fence-runner")))
}

async fn agents(client: &Client) -> Result<Option<Workload>, Trouble> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), install::NAMESPACE);
    let Some(set) = limited(api.get_opt(install::AGENT)).await? else { return Ok(None) };
    let status = set.status.unwrap_or_default();
    Ok(Some(Workload {
        observed: is_observed(set.metadata.generation, status.observed_generation),
        wanted: status.desired_number_scheduled,
        ready: status.number_ready,
        pods: pods(client, "agent").await?,
    }))
}

/// Whether a status is about the object as it is: just after an upgrade it is still about the version before.
fn is_observed(generation: Option<i64>, observed: Option<i64>) -> bool {
    observed.unwrap_or_default() >= generation.unwrap_or_default()
}

async fn pods(client: &Client, component: &str) -> Result<Vec<PodSeen>, Trouble> {
    let api: Api<Pod> = Api::namespaced(client.clone(), install::NAMESPACE);
    let ours = ListParams::default().labels(&install::part(component)).limit(PODS_MAX);
    let list = limited(api.list(&ours)).await?;
    Ok(list.items.iter().map(pod).collect())
}

fn pod(pod: &Pod) -> PodSeen {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let condition =
        |kind: &str| status?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind);
    let image =
        spec.and_then(|spec| spec.containers.first()).and_then(|container| container.image.as_deref());
    let label = pod.labels().get("app.kubernetes.io/version").cloned();
    PodSeen {
        name: pod.name_any(),
        node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        ready: condition("Ready").is_some_and(|condition| condition.status == "True"),
        trouble: trouble_of(pod).unwrap_or_default(),
        version: label.or_else(|| image.and_then(tag)),
    }
}

/// Why a pod is not ready: what its containers wait for, else why it is not placed.
fn trouble_of(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let waiting = status.container_statuses.iter().flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let words = [waiting.reason.as_deref(), waiting.message.as_deref()];
        Some(words.into_iter().flatten().collect::<Vec<_>>().join(": "))
    });
    waiting.or_else(|| {
        let conditions = status.conditions.as_ref()?;
        conditions
            .iter()
            .find(|condition| condition.status == "False")
            .and_then(|condition| condition.message.clone())
    })
}

/// The tag of an image; none where it is named by its digest or not at all.
fn tag(image: &str) -> Option<String> {
    let (_, last) = image.rsplit_once('/').unwrap_or(("", image));
    if last.contains('@') {
        return None;
    }
    last.split_once(':').map(|(_, tag)| tag.to_owned())
}

/// Our authority's public certificates.
async fn authority(client: &Client) -> Result<Option<String>, Trouble> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), install::NAMESPACE);
    let map = limited(api.get_opt(install::CA_BUNDLE)).await?;
    Ok(map.and_then(|map| map.data?.remove(install::CA_BUNDLE_KEY)).filter(|text| !text.trim().is_empty()))
}

/// When the last of these certificates ends: beside it there may be one that is being replaced.
fn ends_at(bundle: &str) -> Seen<Timestamp> {
    let broken = |what: String| format!("ConfigMap {}: {what}", install::CA_BUNDLE);
    let mut ends = Vec::new();
    for pem in x509_parser::pem::Pem::iter_from_buffer(bundle.as_bytes()) {
        let pem = pem.map_err(|error| broken(error.to_string()))?;
        let certificate = pem.parse_x509().map_err(|error| broken(error.to_string()))?;
        ends.push(certificate.validity().not_after.timestamp());
    }
    let last = ends.into_iter().max().ok_or_else(|| broken("it holds no certificate".to_owned()))?;
    Timestamp::from_second(last).map_err(|error| broken(error.to_string()))
}

async fn kubevirt(client: &Client) -> Result<Option<KubeVirt>, Trouble> {
    let call = Request::new(KUBEVIRTS).list(&ListParams::default().limit(1));
    let call = call.map_err(|error| Trouble::Kube(kube::Error::BuildRequest(error)))?;
    let list: Value = match limited(client.request(call)).await {
        Err(trouble) if trouble.is_not_found() => return Ok(None),
        answer => answer?,
    };
    let Some(found) = list["items"].get(0) else { return Ok(None) };
    let text = |field: &str| found["status"][field].as_str().unwrap_or_default().to_owned();
    Ok(Some(KubeVirt { phase: text("phase"), version: text("observedKubeVirtVersion") }))
}

/// What is made of the policy: by us, and by the coordinator where it has looked at it.
fn policy(object: &Value) -> PolicySeen {
    let profile = object["spec"]["profile"].as_str().unwrap_or("Safe").to_lowercase();
    if let Err(why) = world::read_policy(&object["spec"]) {
        return PolicySeen { profile, accepted: Some(Err(why)) };
    }
    let status = &object["status"];
    let generation = &object["metadata"]["generation"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let mut of_now = conditions
        .filter(|condition| condition["type"] == "Accepted" && status["observedGeneration"] == *generation);
    let accepted = of_now.next().map(|condition| match condition["status"].as_str() {
        Some("True") => Ok(()),
        _ => Err(condition["message"].as_str().unwrap_or("the coordinator does not say why").to_owned()),
    });
    PolicySeen { profile, accepted }
}

/// The objects that decisions are made from, and what is made of them.
fn cluster(server: &ApiServer) -> Result<Cluster, Failure> {
    let objects = server.objects()?;
    let world = World::of(&objects, None)?;
    let policy = objects.get(&ObjectId::cluster("RecoveryPolicy", POLICY_NAME)).map(policy);
    // Others have no agent, and no VMs.
    let is_linux = |node: &Node| node.labels.get(OS_LABEL).is_none_or(|os| os == "linux");
    let nodes = world.fleet.nodes.iter().filter(|(_, node)| is_linux(node));
    let nodes = nodes.map(|(name, node)| NodeSeen {
        name: name.clone(),
        ready: node.ready,
        out_of_service: node.has_taint(OUT_OF_SERVICE_TAINT) && !node.is_out_of_service_by_us(),
        health: world.healths.get(name).and_then(|health| health.status.clone()),
        certificate_until: objects
            .get(&ObjectId::cluster("NodeHealth", name.as_str()))
            .and_then(|health| health["status"]["agent"]["certificateNotAfter"].as_str()?.parse().ok()),
    });
    let rows = volumes::rows(&world, None);
    let unlisted = unlisted(&world, &rows);
    let unplaced = rows.into_iter().filter(|row| row.locality == "Unknown");
    let unplaced = unplaced.filter_map(|row| {
        (row.phase == "Bound").then_some(())?;
        // As the decision reads it: the volume's class counts, and the claim's where the volume has none.
        // One that is not there is broken storage, which is told elsewhere.
        let volume = world.fleet.volumes.get(&row.volume.as_deref()?.into())?;
        let class = if volume.class.is_empty() { row.class } else { volume.class.clone() };
        Some(Unplaced {
            declared: world.policy.class_overrides.0.contains_key(&class),
            class,
            claim: format!("{}/{}", row.namespace?, row.claim?),
            volume: row.volume.unwrap_or_default(),
            because: row.because,
        })
    });
    Ok(Cluster {
        nodes: nodes.collect(),
        vms: world.fleet.vms.len(),
        unplaced: unplaced.collect(),
        unlisted,
        problems: world.problems.iter().map(output::describe).collect(),
        policy,
    })
}

/// Local volumes that no agent looks at: below no storage root of their node.
fn unlisted(world: &World, rows: &[VolumeRow]) -> BTreeMap<(String, String), usize> {
    let mut unlisted = BTreeMap::new();
    for row in rows.iter().filter(|row| row.phase == "Bound") {
        let report = row.node.as_ref().and_then(|node| world.fleet.reports.get(&NodeName(node.clone())));
        let volume = row.volume.as_ref().and_then(|name| world.fleet.volumes.get(&name.as_str().into()));
        let path = volume.and_then(|volume| volume.source.path());
        if let (Some(report), Some(path)) = (report, path)
            && report.root_of(path).is_none()
        {
            let folder = path.trim_end_matches('/').rsplit_once('/').map_or(path, |(folder, _)| folder);
            *unlisted.entry((row.class.clone(), folder.to_owned())).or_default() += 1;
        }
    }
    unlisted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_tag_of_an_image() {
        assert_eq!(tag("docker.io/somersault/somersault:0.1.0").as_deref(), Some("0.1.0"));
        assert_eq!(tag("localhost:5000/somersault"), None);
        assert_eq!(tag("registry:5000/somersault@sha256:00"), None);
        assert_eq!(tag("somersault"), None);
    }

    #[test]
    fn a_status_from_before_an_upgrade_is_not_about_it() {
        assert!(is_observed(Some(2), Some(2)));
        assert!(!is_observed(Some(3), Some(2)));
        assert!(!is_observed(Some(1), None), "nobody has looked at it yet");
    }

    #[test]
    fn our_own_definitions_can_be_read() {
        let names: Vec<_> = own_definitions().iter().map(ResourceExt::name_any).collect();
        assert!(names.contains(&"nodehealths.somersault.novasphere.dev".to_owned()), "{names:?}");
    }

    #[test]
    fn a_bundle_without_a_certificate_is_told() {
        assert!(ends_at("").unwrap_err().contains("holds no certificate"));
        assert!(ends_at("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }
}

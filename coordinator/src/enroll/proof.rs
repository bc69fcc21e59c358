//! What a reviewed token proves, and what it does not.
//!
//! | what must hold | else |
//! |---|---|
//! | the API server knows the token | garbage, ended, revoked, of a deleted pod |
//! | for our audience, said by the API server itself | a token made for somebody else, or a server that does not look |
//! | of the agents' or the fence runner's ServiceAccount, in our namespace | any other workload |
//! | bound to a pod | a long-lived token, which anybody may have copied |
//! | the pod's node, by the token or by the pod of that uid | an agent that speaks for another node |

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use somersault_proto::enroll::TOKEN_AUDIENCE;
use somersault_proto::model::NodeName;
use somersault_proto::tls::Identity;

/// ServiceAccount of the agents.
const AGENT: &str = "somersault-agent";
/// ServiceAccount of the fence runner.
const FENCE_RUNNER: &str = "somersault-fence-runner";
/// Where the API server tells of the pod to which a token is bound.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// See [`POD_NAME`].
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// And of that pod's node: from Kubernetes 1.30 on.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Whose tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    namespace: String,
}

/// What a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// All that is needed.
    Whole(Identity),
    /// An agent, whose pod must be asked for its node.
    AgentOf(PodRef),
}

/// A pod, and no other of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Why a token is not taken. For our log: whoever shows it is told nothing of this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The API server does not know it.
    #[error("the API server does not accept the token: {0}")]
    NotAuthenticated(String),
    /// It is for others.
    #[error("the token is for {0:?}, not for {TOKEN_AUDIENCE}")]
    Audience(Vec<String>),
    /// It is of another workload.
    #[error("the token is of {0}, which gets no certificate")]
    Account(String),
    /// It could be anybody's.
    #[error("the token of {account} is not bound to a pod ({missing} is not told); mount a projected one")]
    NotBound {
        /// Whose.
        account: String,
        /// What is missing.
        missing: &'static str,
    },
    /// The pod is gone, or is another by the same name.
    #[error("pod {0} is not there any more")]
    PodGone(String),
    /// It has no node yet.
    #[error("pod {0} runs on no node")]
    NoNode(String),
    /// Its node's name cannot be one.
    #[error("the node's name cannot stand in a certificate: {0}")]
    NodeName(String),
}

impl Accounts {
    /// The accounts of our own namespace.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into() }
    }

    /// What a reviewed token proves.
    pub fn proof(&self, status: &TokenReviewStatus) -> Result<Proof, Refusal> {
        if status.authenticated != Some(true) {
            return Err(Refusal::NotAuthenticated(status.error.clone().unwrap_or_default()));
        }
        let audiences = status.audiences.clone().unwrap_or_default();
        if !audiences.iter().any(|audience| audience == TOKEN_AUDIENCE) {
            return Err(Refusal::Audience(audiences));
        }
        let user = status.user.clone().unwrap_or_default();
        let account = user.username.clone().unwrap_or_default();
        let is = |name: &str| account == format!("system:serviceaccount:{}:{name}", self.namespace);
        if !is(AGENT) && !is(FENCE_RUNNER) {
            return Err(Refusal::Account(account));
        }
        let extra = |key| {
            told(&user, key).ok_or_else(|| Refusal::NotBound { account: account.clone(), missing: key })
        };
        let pod = PodRef { name: extra(POD_NAME)?, uid: extra(POD_UID)? };
        if is(FENCE_RUNNER) {
            return Ok(Proof::Whole(Identity::FenceRunner));
        }
        match told(&user, NODE_NAME) {
            Some(node) => node_identity(node).map(Proof::Whole),
            None => Ok(Proof::AgentOf(pod)),
        }
    }
}

impl PodRef {
    /// The node on which it runs, by the pod of that name as it is now.
    pub fn identity(&self, found: Option<&Pod>) -> Result<Identity, Refusal> {
        let pod = found
            .filter(|pod| pod.metadata.uid.as_deref() == Some(self.uid.as_str()))
            .ok_or_else(|| Refusal::PodGone(self.name.clone()))?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        node_identity(node.ok_or_else(|| Refusal::NoNode(self.name.clone()))?)
    }
}

fn node_identity(node: String) -> Result<Identity, Refusal> {
    NodeName::try_from(node).map(Identity::Node).map_err(|malformed| Refusal::NodeName(malformed.to_string()))
}

/// The one value of an extra field; several would leave it open which one holds.
fn told(user: &UserInfo, key: &str) -> Option<String> {
    let extra: &BTreeMap<String, Vec<String>> = user.extra.as_ref()?;
    match extra.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::new("somersault-system")
    }

    /// As the API server of Kubernetes 1.36 answers about an agent's projected token.
    fn review() -> TokenReviewStatus {
        let extra = [(POD_NAME, "agent-x1"), (POD_UID, "uid-1"), (NODE_NAME, "n1")]
            .map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
            error: None,
            user: Some(UserInfo {
                username: Some("system:serviceaccount:somersault-system:somersault-agent".to_owned()),
                extra: Some(extra.into()),
                ..UserInfo::default()
            }),
        }
    }

    fn of(account: &str) -> TokenReviewStatus {
        let mut review = review();
        review.user.as_mut().unwrap().username = Some(account.to_owned());
        review
    }

    fn with(key: &str, values: Option<&[&str]>) -> TokenReviewStatus {
        let mut review = review();
        let extra = review.user.as_mut().unwrap().extra.as_mut().unwrap();
        match values {
            Some(values) => {
                let values = values.iter().map(ToString::to_string).collect();
                extra.insert(key.to_owned(), values)
            }
            None => extra.remove(key),
        };
        review
    }

    fn refused(review: &TokenReviewStatus) -> Refusal {
        accounts().proof(review).unwrap_err()
    }

    fn node(name: &str) -> Identity {
        Identity::Node(name.parse().unwrap())
    }

    fn pod(uid: &str, node: Option<&str>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod.spec.get_or_insert_default().node_name = node.map(ToOwned::to_owned);
        pod
    }

    #[test]
    fn an_agents_token_proves_its_node() {
        assert_eq!(accounts().proof(&review()), Ok(Proof::Whole(node("n1"))));
    }

    #[test]
    fn the_fence_runners_token_proves_the_fence_runner_and_no_node() {
        let review = of("system:serviceaccount:somersault-system:somersault-fence-runner");
        assert_eq!(accounts().proof(&review), Ok(Proof::Whole(Identity::FenceRunner)));
    }

    #[test]
    fn an_older_api_server_leaves_the_node_to_the_pod() {
        let Ok(Proof::AgentOf(agent)) = accounts().proof(&with(NODE_NAME, None)) else { panic!("not asked") };
        assert_eq!(agent.identity(Some(&pod("uid-1", Some("n1")))), Ok(node("n1")));
        let gone = Err(Refusal::PodGone("agent-x1".into()));
        assert_eq!(agent.identity(None), gone);
        assert_eq!(agent.identity(Some(&pod("uid-2", Some("n1")))), gone, "another by the same name");
        assert_eq!(agent.identity(Some(&pod("uid-1", None))), Err(Refusal::NoNode("agent-x1".into())));
    }

    #[test]
    fn a_token_that_the_api_server_does_not_know_is_refused() {
        let unknown = TokenReviewStatus { authenticated: None, error: Some("expired".into()), ..review() };
        assert_eq!(refused(&unknown), Refusal::NotAuthenticated("expired".into()));
        let no = TokenReviewStatus { authenticated: Some(false), ..review() };
        assert!(matches!(refused(&no), Refusal::NotAuthenticated(_)));
    }

    #[test]
    fn a_token_for_others_is_refused() {
        let others = ["https://kubernetes.default.svc".to_owned()];
        let review_of = |audiences| TokenReviewStatus { audiences, ..review() };
        assert_eq!(refused(&review_of(Some(others.to_vec()))), Refusal::Audience(others.to_vec()));
        // An API server that does not look at audiences tells none.
        assert_eq!(refused(&review_of(None)), Refusal::Audience(Vec::new()));
    }

    #[test]
    fn other_accounts_are_refused() {
        for account in [
            "system:serviceaccount:default:somersault-agent",
            "system:serviceaccount:somersault-system:default",
            "system:serviceaccount:somersault-system:somersault-agent2",
            "system:serviceaccount:somersault-system:somersault-coordinator",
            "somersault-agent",
            "system:node:n1",
            "",
        ] {
            assert_eq!(refused(&of(account)), Refusal::Account(account.to_owned()));
        }
    }

    #[test]
    fn a_token_of_no_pod_is_refused() {
        for missing in [POD_NAME, POD_UID] {
            for values in [None, Some([].as_slice()), Some(&[""]), Some(&["a", "b"])] {
                let refusal = refused(&with(missing, values));
                assert!(matches!(refusal, Refusal::NotBound { missing: key, .. } if key == missing));
            }
        }
    }

    #[test]
    fn a_node_that_cannot_be_named_is_refused() {
        for name in ["*", "N1", "n1.node.somersault,coordinator", "a..b"] {
            assert!(matches!(refused(&with(NODE_NAME, Some(&[name]))), Refusal::NodeName(_)), "{name}");
        }
    }
}

//! What the coordinator and the person who asks must be allowed to do, and whether they are.
//!
//! What the coordinator needs is read from the very roles that `deploy/` installs, so that the two cannot differ.

use futures::StreamExt as _;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::PostParams;
use kube::{Api, Client};

use super::facts::Verdict;
use crate::source::api::limited;
use crate::source::kinds::READ;
use crate::source::trouble::Trouble;

/// Questions at the same time: a server gives one user a few seats.
const QUESTIONS_AT_ONCE: usize = 8;

/// Something that somebody may be allowed to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    pub verb: String,
    /// Empty for the core group.
    pub group: String,
    pub resource: String,
    pub subresource: String,
    /// Empty for every namespace, or none.
    pub namespace: String,
    /// Empty for every object.
    pub name: String,
}

impl Right {
    fn new(verb: &str, group: &str, resource: &str) -> Self {
        Self {
            verb: verb.to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            ..Self::default()
        }
    }

    /// As people say it: `patch nodes`, `get leases.coordination.k8s.io/x in somersault-system`.
    pub fn words(&self) -> String {
        let joined = |before: &str, text: &str| {
            if text.is_empty() { String::new() } else { format!("{before}{text}") }
        };
        format!(
            "{} {}{}{}{}{}",
            self.verb,
            self.resource,
            joined(".", &self.group),
            joined("/", &self.subresource),
            joined(" ", &self.name),
            joined(" in ", &self.namespace)
        )
    }

    fn attributes(&self) -> ResourceAttributes {
        let set = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ResourceAttributes {
            verb: set(&self.verb),
            group: set(&self.group),
            resource: set(&self.resource),
            subresource: set(&self.subresource),
            namespace: set(&self.namespace),
            name: set(&self.name),
            ..ResourceAttributes::default()
        }
    }
}

/// The rights that these rules give in a namespace, or everywhere where it is empty.
pub fn of_rules(rules: &[PolicyRule], namespace: &str) -> Vec<Right> {
    let mut rights = Vec::new();
    for rule in rules {
        let every_name = [String::new()];
        let names = rule.resource_names.as_deref().filter(|names| !names.is_empty()).unwrap_or(&every_name);
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                let (resource, subresource) = resource.split_once('/').unwrap_or((resource.as_str(), ""));
                for verb in &rule.verbs {
                    rights.extend(names.iter().map(|name| Right {
                        subresource: subresource.to_owned(),
                        namespace: namespace.to_owned(),
                        name: name.clone(),
                        ..Right::new(verb, group, resource)
                    }));
                }
            }
        }
    }
    rights.sort();
    rights.dedup();
    rights
}

/// What the commands of this program need.
pub fn of_commands() -> Vec<Right> {
    let ours = |verb, resource| Right::new(verb, somersault_crd::GROUP, resource);
    let reads = READ.iter().map(|kind| Right::new("list", kind.group, kind.plural));
    let writes = [
        ours("patch", "nodehealths"),
        ours("create", "recoverypolicies"),
        ours("patch", "recoverypolicies"),
        ours("create", "volumemigrations"),
        ours("patch", "volumemigrations"),
        ours("create", "evacuations"),
        ours("patch", "evacuations"),
        // A dry run's, once it is answered.
        ours("delete", "evacuations"),
    ];
    let mut rights: Vec<Right> = reads.chain(writes).collect();
    // Pods are read in two parts.
    rights.sort();
    rights.dedup();
    rights
}

/// Asks the server what we may do.
pub async fn ask_own(client: &Client, rights: Vec<Right>) -> Result<Vec<Verdict>, Trouble> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let ask = |right: Right| {
        let api = api.clone();
        async move {
            let spec = SelfSubjectAccessReviewSpec {
                resource_attributes: Some(right.attributes()),
                ..SelfSubjectAccessReviewSpec::default()
            };
            let question = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            let answer = limited(api.create(&PostParams::default(), &question)).await?;
            let allowed = answer.status.is_some_and(|status| status.allowed);
            Ok(Verdict { right: right.words(), allowed })
        }
    };
    all(rights.into_iter().map(ask)).await
}

/// Asks the server what an account may do.
pub async fn ask_of(
    client: &Client,
    namespace: &str,
    account: &str,
    rights: Vec<Right>,
) -> Result<Vec<Verdict>, Trouble> {
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let user = format!("system:serviceaccount:{namespace}:{account}");
    // As the server itself sees an account: some roles are bound to these groups.
    let groups = vec![
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ];
    let ask = |right: Right| {
        let (api, user, groups) = (api.clone(), user.clone(), groups.clone());
        async move {
            let spec = SubjectAccessReviewSpec {
                user: Some(user),
                groups: Some(groups),
                resource_attributes: Some(right.attributes()),
                ..SubjectAccessReviewSpec::default()
            };
            let question = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let answer = limited(api.create(&PostParams::default(), &question)).await?;
            let allowed = answer.status.is_some_and(|status| status.allowed);
            Ok(Verdict { right: right.words(), allowed })
        }
    };
    all(rights.into_iter().map(ask)).await
}

/// Several questions at a time, the answers in their order; the first trouble ends it.
async fn all(
    questions: impl Iterator<Item = impl Future<Output = Result<Verdict, Trouble>>>,
) -> Result<Vec<Verdict>, Trouble> {
    let answers: Vec<_> = futures::stream::iter(questions).buffered(QUESTIONS_AT_ONCE).collect().await;
    answers.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_single_rights() {
        let rule = PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["nodes".to_owned(), "nodes/status".to_owned()]),
            verbs: vec!["get".to_owned(), "patch".to_owned()],
            ..PolicyRule::default()
        };
        let named = PolicyRule {
            api_groups: Some(vec!["coordination.k8s.io".to_owned()]),
            resources: Some(vec!["leases".to_owned()]),
            resource_names: Some(vec!["leader".to_owned()]),
            verbs: vec!["update".to_owned()],
            ..PolicyRule::default()
        };
        let words = |rights: Vec<Right>| rights.iter().map(Right::words).collect::<Vec<_>>();
        assert_eq!(
            words(of_rules(&[rule.clone(), rule], "")),
            ["get nodes", "get nodes/status", "patch nodes", "patch nodes/status"]
        );
        assert_eq!(words(of_rules(&[named], "ours")), ["update leases.coordination.k8s.io leader in ours"]);
    }

    #[test]
    fn the_commands_need_to_read_and_to_write() {
        let words: Vec<_> = of_commands().iter().map(Right::words).collect();
        assert!(words.contains(&"list virtualmachines.kubevirt.io".to_owned()), "{words:?}");
        assert!(words.contains(&"patch nodehealths.somersault.novasphere.dev".to_owned()), "{words:?}");
    }
}

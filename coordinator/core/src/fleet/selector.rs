//! Node selectors, by the rules of Kubernetes: of volumes' affinities, of VMs, of storage classes' topologies.

use super::Node;
use crate::names::NodeName;

/// A node selector: terms are alternatives, the requirements of a term must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSelector {
    /// `nodeSelectorTerms`; an empty term matches nothing, as in Kubernetes.
    pub terms: Vec<Vec<Requirement>>,
}

/// One requirement of a node selector term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key; `metadata.name` stands for the node's name (`matchFields`).
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt`, `Lt`.
    pub operator: String,
    /// Values.
    pub values: Vec<String>,
}

impl NodeSelector {
    /// Whether the node matches any term, by the rules of Kubernetes. An operator that we do not know
    /// matches nothing.
    pub fn matches(&self, name: &NodeName, node: &Node) -> bool {
        self.terms.iter().any(|term| !term.is_empty() && term.iter().all(|req| req.matches(name, node)))
    }
}

impl Requirement {
    fn matches(&self, name: &NodeName, node: &Node) -> bool {
        let value = match self.key.as_str() {
            "metadata.name" => Some(name.as_str()),
            key => node.labels.get(key).map(String::as_str),
        };
        let number = |text: &str| text.parse::<i64>().ok();
        match self.operator.as_str() {
            "In" => value.is_some_and(|v| self.values.iter().any(|want| want == v)),
            "NotIn" => value.is_none_or(|v| self.values.iter().all(|want| want != v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => match (value.and_then(number), self.values.first().and_then(|v| number(v))) {
                (Some(have), Some(limit)) => have > limit,
                _ => false,
            },
            "Lt" => match (value.and_then(number), self.values.first().and_then(|v| number(v))) {
                (Some(have), Some(limit)) => have < limit,
                _ => false,
            },
            _ => false,
        }
    }
}

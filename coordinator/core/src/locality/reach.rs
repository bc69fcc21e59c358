//! From which nodes a volume may be used, by its node affinity.

use crate::fleet::{Fleet, NodeSelector, Requirement, Volume};
use crate::names::NodeName;

/// What a volume's node affinity comes to in this cluster.
pub(super) struct Reach {
    pub(super) nodes: Nodes,
    /// Every requirement speaks of a zone or region (or of the kind of machine): it names no single node, even
    /// where just one node matches today.
    pub(super) zones_only: bool,
}

/// The nodes that match.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Nodes {
    /// There is no affinity.
    Any,
    /// One.
    One(NodeName),
    /// So many, at least two.
    Several(usize),
    /// None, though the affinity names one: it is not in the cluster, or bears another label now.
    Absent(NodeName),
    /// None, and the affinity names none.
    None,
}

impl Reach {
    /// Evaluates the volume's affinity against every node: labels are what binds, a node's name need not be its
    /// hostname label.
    pub(super) fn of(fleet: &Fleet, volume: &Volume) -> Self {
        let Some(affinity) = &volume.node_affinity else {
            return Self { nodes: Nodes::Any, zones_only: false };
        };
        let zones_only = speaks_of_zones_only(affinity);
        let mut matching =
            fleet.nodes.iter().filter(|(name, node)| affinity.matches(name, node)).map(|(name, _)| name);
        let nodes = match (matching.next(), matching.count()) {
            (Some(only), 0) => Nodes::One(only.clone()),
            (Some(_), more) => Nodes::Several(more + 1),
            (None, _) => {
                named_node(affinity).map_or(Nodes::None, |name| Nodes::Absent(NodeName(name.to_owned())))
            }
        };
        Self { nodes, zones_only }
    }
}

/// Where a volume with a path most likely is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Likely<'a> {
    /// On the node that its affinity names; another one may match too.
    Node(&'a NodeName),
    /// On no node that could be told.
    Nowhere,
    /// Only asking every node tells.
    Unclear,
}

/// Where a volume most likely is, by one look at the node that it names instead of a look at every node.
pub(crate) fn likely_node<'a>(fleet: &'a Fleet, volume: &Volume) -> Likely<'a> {
    let mut nodes = fleet.nodes.iter();
    if let (Some((only, node)), None) = (nodes.next(), nodes.next()) {
        let admitted = volume.node_affinity.as_ref().is_none_or(|affinity| affinity.matches(only, node));
        return if admitted { Likely::Node(only) } else { Likely::Unclear };
    }
    let Some(affinity) = &volume.node_affinity else { return Likely::Nowhere };
    let named = named_node(affinity).map(NodeName::from);
    match named.and_then(|name| fleet.nodes.get_key_value(&name)) {
        Some((name, node)) if affinity.matches(name, node) => Likely::Node(name),
        _ => Likely::Unclear,
    }
}

/// The one value that every term demands of a label that is not a zone's: a node that is gone has no labels to
/// compare with any more, but its name stands here.
fn named_node(affinity: &NodeSelector) -> Option<&str> {
    let mut names = affinity.terms.iter().map(|term| {
        term.iter().find_map(|requirement| match requirement.values.as_slice() {
            [only] if requirement.operator == "In" && !is_coarse(requirement) => Some(only.as_str()),
            _ => None,
        })
    });
    let first = names.next()??;
    names.all(|name| name == Some(first)).then_some(first)
}

fn speaks_of_zones_only(affinity: &NodeSelector) -> bool {
    let mut requirements = affinity.terms.iter().flatten().peekable();
    requirements.peek().is_some() && requirements.all(is_coarse)
}

/// Whether a requirement speaks of places or kinds of machines, never of one machine: the well-known zone and
/// region labels, those that CSI drivers derive from them (`topology.ebs.csi.aws.com/zone`,
/// `topology.gke.io/zone`, `csi.hetzner.cloud/location`, …), operating system and architecture.
fn is_coarse(requirement: &Requirement) -> bool {
    let key = requirement.key.as_str();
    let (prefix, name) = key.split_once('/').unwrap_or(("", key));
    matches!(name, "zone" | "region" | "location")
        || (prefix == "kubernetes.io" && matches!(name, "os" | "arch"))
}

//! What the node machinery may look at while it judges, and how it speaks.

use crate::BootTime;
use crate::fencing::agents::PowerOff;
use crate::fleet::Fleet;
use crate::io::{Effect, Notice, Requests, Severity, Subject};
use crate::names::{Key, NodeName};
use crate::policy::Policy;

/// What we know besides the nodes' own state.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Limits.
    pub policy: Policy,
    /// The cluster as last read.
    pub fleet: Fleet,
    /// It was read at all: before that, an absent Node object says nothing.
    pub fleet_read: bool,
    /// What people ask for.
    pub requests: Requests,
    /// Whose power can be cut.
    pub power_off: PowerOff,
    /// Our epoch, while we lead.
    pub epoch: Option<u64>,
}

/// The facts at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene<'a> {
    /// The moment.
    pub now: BootTime,
    /// The facts.
    pub facts: &'a Facts,
}

impl Scene<'_> {
    /// Whether the Node object exists.
    pub fn exists(&self, node: &NodeName) -> bool {
        self.facts.fleet.nodes.contains_key(node)
    }
}

/// A notice about a node.
pub(crate) fn tell_node(
    fx: &mut Vec<Effect>,
    severity: Severity,
    node: &NodeName,
    reason: &'static str,
    message: String,
) {
    fx.push(Effect::Notify(Notice { severity, subject: Subject::Node(node.clone()), reason, message }));
}

/// A notice about a VM.
pub(crate) fn tell_vm(
    fx: &mut Vec<Effect>,
    severity: Severity,
    vm: &Key,
    reason: &'static str,
    message: String,
) {
    fx.push(Effect::Notify(Notice { severity, subject: Subject::Vm(vm.clone()), reason, message }));
}

//! What a component declares to Prometheus: each name once, with its words, so that rules and dashboards can be held against
//! them.

use std::hash::Hash;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Metric, Registry};

/// Begin of every name.
const PREFIX: &str = "somersault";

/// A registry that knows its names.
#[derive(Debug)]
pub struct Declared {
    registry: Registry,
    names: Vec<String>,
}

impl Default for Declared {
    fn default() -> Self {
        Self { registry: Registry::with_prefix(PREFIX), names: Vec::new() }
    }
}

impl Declared {
    /// Of which every series has the label `node`.
    pub fn of_node(node: &str) -> Self {
        let label = ("node".into(), node.to_owned().into());
        Self { registry: Registry::with_prefix_and_labels(PREFIX, [label].into_iter()), names: Vec::new() }
    }

    /// Declares a metric: its name has its unit behind it. A counter is shown with `_total` behind that.
    pub fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.registry.register(name, help, metric.clone());
        self.names.push(format!("{PREFIX}_{name}"));
        metric
    }

    /// Declares a metric that has labels.
    pub fn family<L, M>(&mut self, name: &str, help: &str) -> Family<L, M>
    where
        L: Clone + Hash + Eq + EncodeLabelSet,
        Family<L, M>: Metric + Clone + Default,
    {
        self.add(name, help, Family::default())
    }

    /// All of them, to be encoded.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Their names, without what their kind puts behind them.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

//! What a fence runner counts.

use std::fmt;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use somersault_coordinator_core::fencing::agents::{FenceAnswer, FenceRoster};
use somersault_coordinator_core::io::FenceResult;

/// All metrics of a fence runner.
pub struct RunnerMetrics {
    registry: Registry,
    runs: Family<ResultLabels, Counter>,
    statuses: Family<ResultLabels, Counter>,
    refused: Counter,
    nodes: Gauge,
    problem: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

impl Default for RunnerMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("somersault_fence_runner");
        let (runs, statuses) = (Family::default(), Family::default());
        let (refused, nodes, problem) = (Counter::default(), Gauge::default(), Gauge::default());
        registry.register("runs", "Runs of fence agents that ended, by result", Family::clone(&runs));
        registry.register("statuses", "Answers of fence agents to status", Family::clone(&statuses));
        registry.register("refused", "Calls that were refused", Counter::clone(&refused));
        registry.register("nodes", "Nodes that have a fence agent", Gauge::clone(&nodes));
        registry.register(
            "config_problem",
            "1 while the changed fence configuration cannot be used",
            Gauge::clone(&problem),
        );
        Self { registry, runs, statuses, refused, nodes, problem }
    }
}

impl RunnerMetrics {
    /// A run ended.
    pub fn ran(&self, result: &FenceResult) {
        let result = match result {
            FenceResult::ConfirmedOff => "ConfirmedOff",
            FenceResult::Failed(_) => "Failed",
        };
        self.runs.get_or_create(&ResultLabels { result }).inc();
    }

    /// An agent said what its machine does.
    pub fn answered(&self, answer: &FenceAnswer) {
        let result = match answer {
            FenceAnswer::On => "On",
            FenceAnswer::Off => "Off",
            FenceAnswer::Failed(_) => "Failed",
        };
        self.statuses.get_or_create(&ResultLabels { result }).inc();
    }

    /// A call was refused.
    pub fn refused(&self) {
        self.refused.inc();
    }

    /// The configuration as it is now.
    pub fn roster(&self, roster: &FenceRoster) {
        self.nodes.set(i64::try_from(roster.agents.len()).unwrap_or(i64::MAX));
        self.problem.set(roster.problem.is_some().into());
    }

    /// Everything in the text format of `OpenMetrics`.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

//! Findings from SMART values.
//!
//! Left out on purpose, since healthy disks show them all the time: attribute 188 (packed timeouts, the main
//! source of false alarms in Scrutiny's issue tracker), `NVMe` error log entries (every rejected command counts)
//! and exit bits 5-7 of smartctl (the past: an attribute once below its threshold, old log records).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::grade::Reason;
use super::thresholds::Thresholds;
use super::trend::Trend;
use crate::smart::SmartValues;

/// Counters whose movement matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Counter {
    Reallocated,
    ReportedUncorrectable,
    Pending,
    OfflineUncorrectable,
    LinkErrors,
    MediaErrors,
    Uncorrected,
}

/// Counters of data that could not be read.
const UNCORRECTABLE: [Counter; 5] = [
    Counter::ReportedUncorrectable,
    Counter::Pending,
    Counter::OfflineUncorrectable,
    Counter::MediaErrors,
    Counter::Uncorrected,
];

/// What must be remembered between two readings.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SmartMemory {
    trends: BTreeMap<Counter, Trend>,
}

impl SmartMemory {
    /// The findings of this reading.
    pub(super) fn judge(
        &mut self,
        now: Duration,
        values: &SmartValues,
        limits: &Thresholds,
    ) -> BTreeSet<Reason> {
        for (counter, value) in counters(values) {
            self.trends.entry(counter).or_default().note(now, value, limits.trend_window);
        }
        let mut found = levels(values, limits);
        found.extend(self.growth(limits));
        found
    }

    fn growth(&self, limits: &Thresholds) -> Vec<Reason> {
        let trend = |counter| self.trends.get(&counter);
        let mut found = Vec::new();
        if trend(Counter::Reallocated).is_some_and(|t| t.growth() >= limits.reallocated_growth_failing) {
            found.push(Reason::Reallocated);
        }
        if trend(Counter::LinkErrors).is_some_and(|t| t.rises() > 0) {
            found.push(Reason::LinkErrorsGrowing);
        }
        let rises = |counter| trend(counter).map_or(0, Trend::rises);
        if UNCORRECTABLE.into_iter().any(|counter| rises(counter) >= limits.uncorrectable_rises_failing) {
            found.push(Reason::UncorrectableGrowing);
        }
        found
    }
}

fn counters(values: &SmartValues) -> impl Iterator<Item = (Counter, u64)> {
    [
        (Counter::Reallocated, values.reallocated),
        (Counter::ReportedUncorrectable, values.reported_uncorrectable),
        (Counter::Pending, values.pending),
        (Counter::OfflineUncorrectable, values.offline_uncorrectable),
        (Counter::LinkErrors, values.link_errors),
        (Counter::MediaErrors, values.media_errors),
        (Counter::Uncorrected, values.uncorrected),
    ]
    .into_iter()
    .filter_map(|(counter, value)| Some((counter, value?)))
}

/// What a single reading tells.
fn levels(values: &SmartValues, limits: &Thresholds) -> BTreeSet<Reason> {
    let at_least = |value: Option<u64>, limit: u64| value.is_some_and(|value| value >= limit);
    let warning = |bit: u8| values.nvme_critical_warning & (1 << bit) != 0;
    let defects =
        [values.reallocated, values.reported_uncorrectable, values.pending, values.offline_uncorrectable]
            .into_iter()
            .chain([values.grown_defects])
            .any(|value| at_least(value, 1));
    [
        (Reason::SmartFailingNow, values.failing_now),
        (Reason::NvmeSpareLow, warning(0)),
        (Reason::NvmeTemperature, warning(1)),
        (Reason::NvmeDegraded, warning(2)),
        (Reason::NvmeReadOnly, warning(3)),
        (Reason::VolatileBackupFailed, warning(4)),
        (
            Reason::PendingSectors,
            at_least(values.pending, limits.pending_failing)
                || at_least(values.offline_uncorrectable, limits.offline_uncorrectable_failing),
        ),
        (Reason::Reallocated, at_least(values.reallocated, limits.reallocated_failing)),
        (Reason::SectorDefects, defects),
        (Reason::MediaErrors, at_least(values.media_errors, 1) || at_least(values.uncorrected, 1)),
        (Reason::WearExhausted, at_least(values.wear_percent, limits.wear_warning_percent)),
    ]
    .into_iter()
    .filter_map(|(reason, holds)| holds.then_some(reason))
    .collect()
}

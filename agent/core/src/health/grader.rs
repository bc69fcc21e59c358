//! Joins the findings of all sources over time into one assessment of a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::grade::{Grade, Reason};
use super::kernel::{KernelMemory, Signals};
use super::rules::SmartMemory;
use super::thresholds::Thresholds;
use crate::smart::{Identity, SmartReport, SmartState, SmartValues};

/// Remembers what one disk has shown.
#[derive(Clone, Debug)]
pub struct Grader {
    limits: Thresholds,
    kernel: KernelMemory,
    kernel_at: Option<Duration>,
    smart: SmartMemory,
    smart_at: Option<Duration>,
    /// How the last attempt to read SMART ended; `None` before the first.
    doubt: Option<Doubt>,
    /// The last good reading and its time.
    good: Option<(Duration, SmartValues)>,
    identity: Identity,
    held: BTreeMap<Reason, Held>,
}

/// Why the last attempt gave no values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// It gave values, or the disk sleeps and must not be woken.
    No,
    Unsupported,
    Disabled,
    Unreadable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Kernel,
    Smart,
}

/// A finding that counts, and how long its source has not shown it any more.
#[derive(Clone, Copy, Debug)]
struct Held {
    source: Source,
    clean: Duration,
}

/// What is believed of a disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assessment {
    /// The worst of the reasons' grades.
    pub grade: Grade,
    /// Worst first. Empty for `Ok`, and for `Unknown` before the first reading.
    pub reasons: Vec<Reason>,
    /// The disk has given SMART values at least once.
    pub smart_supported: bool,
    /// Model and serial number, as far as known.
    pub identity: Identity,
    /// The last good reading, for metrics; its age is not judged here.
    pub values: Option<SmartValues>,
    /// How long requests have been waiting without any completion.
    pub stalled_for: Duration,
}

impl Grader {
    /// A disk of which nothing is known.
    pub fn new(limits: Thresholds) -> Self {
        Self {
            limits,
            kernel: KernelMemory::default(),
            kernel_at: None,
            smart: SmartMemory::default(),
            smart_at: None,
            doubt: None,
            good: None,
            identity: Identity::default(),
            held: BTreeMap::new(),
        }
    }

    /// Takes what the kernel says now.
    pub fn observe(&mut self, now: Duration, signals: &Signals) {
        let gap = gap(self.kernel_at.replace(now), now, self.limits.kernel_gap_max);
        let found = self.kernel.judge(gap, signals, &self.limits);
        self.hold(Source::Kernel, gap, &found);
    }

    /// Takes the outcome of an attempt to read SMART. A reading of another serial number means that the disk
    /// was replaced: what its predecessor showed is forgotten.
    pub fn observe_smart(&mut self, now: Duration, report: SmartReport) {
        if self.identity.contradicts(&report.identity) {
            *self = Self::new(self.limits.clone());
        }
        self.identity.complete(report.identity);
        let gap = gap(self.smart_at.replace(now), now, self.limits.smart_stale);
        self.doubt = Some(match report.state {
            SmartState::Values(values) => {
                let found = self.smart.judge(now, &values, &self.limits);
                self.hold(Source::Smart, gap, &found);
                self.good = Some((now, *values));
                Doubt::No
            }
            SmartState::Asleep => Doubt::No,
            SmartState::Disabled => Doubt::Disabled,
            SmartState::Unsupported if self.good.is_none() => Doubt::Unsupported,
            SmartState::Unsupported | SmartState::Unreadable(_) => Doubt::Unreadable,
        });
        if self.doubt != Some(Doubt::No) {
            self.restart_clean_time(Source::Smart);
        }
    }

    /// What to believe at this moment.
    pub fn assess(&self, now: Duration) -> Assessment {
        let mut reasons: Vec<Reason> = self.held.keys().copied().collect();
        let unknown = self.unknown(now);
        let grade = match reasons.iter().map(|reason| reason.grade()).max() {
            Some(worst) => worst,
            None if unknown.is_none() && self.good.is_some() => Grade::Ok,
            None => Grade::Unknown,
        };
        reasons.extend(unknown);
        reasons.sort_by_key(|reason| (std::cmp::Reverse(reason.grade()), *reason));
        Assessment {
            grade,
            reasons,
            smart_supported: self.good.is_some(),
            identity: self.identity.clone(),
            values: self.good.as_ref().map(|(_, values)| values.clone()),
            stalled_for: self.kernel.stalled_for(),
        }
    }

    /// Why the disk's own word is missing or worthless.
    fn unknown(&self, now: Duration) -> Option<Reason> {
        match self.doubt? {
            Doubt::Unsupported => Some(Reason::SmartUnsupported),
            Doubt::Disabled => Some(Reason::SmartDisabled),
            Doubt::Unreadable => Some(Reason::SmartUnreadable),
            Doubt::No => {
                let fresh = self
                    .good
                    .as_ref()
                    .is_some_and(|(at, _)| now.saturating_sub(*at) < self.limits.smart_stale);
                (!fresh).then_some(Reason::SmartStale)
            }
        }
    }

    fn hold(&mut self, source: Source, gap: Duration, found: &BTreeSet<Reason>) {
        let clean = self.limits.clean;
        self.held.retain(|reason, held| {
            if held.source == source && !found.contains(reason) {
                held.clean += gap;
            }
            held.clean < clean
        });
        for reason in found {
            self.held.insert(*reason, Held { source, clean: Duration::ZERO });
        }
    }

    fn restart_clean_time(&mut self, source: Source) {
        for held in self.held.values_mut().filter(|held| held.source == source) {
            held.clean = Duration::ZERO;
        }
    }
}

/// Observed time since the sample before: nothing is known of a longer silence.
fn gap(before: Option<Duration>, now: Duration, max: Duration) -> Duration {
    before.map_or(Duration::ZERO, |before| now.saturating_sub(before).min(max))
}

#[cfg(test)]
mod tests;

//! What has grown between two looks. Only where the second has a newer report than the first is there anything to tell: two
//! looks at one report differ by nothing, and that is no growth of zero.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use somersault_coordinator_core::fleet::NodeReport;
use somersault_coordinator_core::names::NodeName;

use super::super::storage::told;
use super::super::volumes::{self, Row};
use crate::units;
use crate::world::World;

const SECONDS_OF_A_DAY: i128 = 86_400;

/// Growth of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Growth {
    /// What was seen, for a day; below 0 where it has shrunk.
    growth_bytes_per_day: i64,
    /// Over which time it was seen.
    growth_over_seconds: u64,
}

/// The first look.
pub struct Before {
    reports: BTreeMap<NodeName, NodeReport>,
    told: BTreeMap<NodeName, told::LastWord>,
    /// What a folder took, by node and path; of a shared root the node that told.
    taken: BTreeMap<(Option<String>, String), u64>,
}

impl Before {
    /// What is there now.
    pub fn of(world: &World, namespace: Option<&str>) -> Self {
        let told = told::all(world, Timestamp::now());
        let rows = volumes::rows(world, &told, namespace, None);
        let taken = rows.into_iter().filter_map(|row| Some((key(&row)?, row.allocated_bytes?)));
        Self { taken: taken.collect(), reports: world.fleet.reports.clone(), told }
    }

    /// Nodes of which nothing new was reported.
    pub fn unchanged(&self, world: &World) -> Vec<String> {
        let same =
            world.fleet.reports.iter().filter(|(node, report)| self.reports.get(*node) == Some(*report));
        same.map(|(node, _)| node.to_string()).collect()
    }

    /// What the volume has grown since; `None` where there is nothing new of it to tell.
    pub fn growth(&self, world: &World, row: &Row, elapsed: Duration) -> Option<Growth> {
        let now = row.allocated_bytes?;
        let teller = NodeName(row.teller.clone()?);
        if self.reports.get(&teller)? == world.fleet.reports.get(&teller)? {
            return None;
        }
        let before = *self.taken.get(&key(row)?)?;
        let first = self.told.get(&teller).and_then(|told| told.told_at.as_deref());
        let over = between(first, row.told.told_at.as_deref()).unwrap_or(elapsed);
        Growth::of(before, now, over)
    }
}

/// A volume that has moved in between is another folder.
fn key(row: &Row) -> Option<(Option<String>, String)> {
    Some((row.teller.clone(), row.path.clone()?))
}

/// From one report to the next, where both tell their times.
fn between(first: Option<&str>, second: Option<&str>) -> Option<Duration> {
    let (first, second): (Timestamp, Timestamp) = (first?.parse().ok()?, second?.parse().ok()?);
    let between = Duration::try_from(second.duration_since(first)).ok()?;
    (!between.is_zero()).then_some(between)
}

impl Growth {
    fn of(before: u64, now: u64, over: Duration) -> Option<Self> {
        let seconds = over.as_secs();
        let grown = (i128::from(now) - i128::from(before)) * SECONDS_OF_A_DAY;
        let per_day = grown.checked_div(i128::from(seconds))?;
        let growth_bytes_per_day =
            i64::try_from(per_day).unwrap_or(if per_day < 0 { i64::MIN } else { i64::MAX });
        Some(Self { growth_bytes_per_day, growth_over_seconds: seconds })
    }

    /// For people.
    pub fn words(&self) -> String {
        let size = units::bytes(self.growth_bytes_per_day.unsigned_abs());
        let what = match self.growth_bytes_per_day {
            0 => "none seen".to_owned(),
            ..0 => format!("-{size}/day"),
            _ => format!("+{size}/day"),
        };
        format!("{what}, over {} s", self.growth_over_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_for_a_day() {
        let words =
            |before, now, seconds| Growth::of(before, now, Duration::from_secs(seconds)).map(|g| g.words());
        assert_eq!(words(0, 1 << 20, 60).as_deref(), Some("+1.4 GiB/day, over 60 s"));
        assert_eq!(words(1 << 20, 0, 86_400).as_deref(), Some("-1.0 MiB/day, over 86400 s"));
        assert_eq!(words(7, 7, 60).as_deref(), Some("none seen, over 60 s"));
        assert_eq!(words(0, 1, 0), None, "in no time nothing can be told");
        let most = Growth::of(0, u64::MAX, Duration::from_secs(1)).map(|g| g.growth_bytes_per_day);
        assert_eq!(most, Some(i64::MAX));
    }

    #[test]
    fn the_time_between_reports_counts_where_it_is_told() {
        let at = Some("2026-01-01T00:00:00Z");
        assert_eq!(between(at, Some("2026-01-01T00:01:30Z")), Some(Duration::from_secs(90)));
        assert_eq!(between(at, at), None);
        assert_eq!(between(at, Some("2025-01-01T00:00:00Z")), None, "a clock that was set back");
        assert_eq!(between(None, at), None);
    }
}

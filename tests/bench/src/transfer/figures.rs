//! What came out for one work and tool, and how its runs become one line of results.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::contender::Tool;
use super::work::Work;
use crate::statistics::Sample;

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// From the start of the client until the target is durable.
    pub time: Duration,
    /// Until it was read back from the disk as well, by who does so.
    pub read_back: Option<Duration>,
    /// Left the source's device.
    pub sent_bytes: u64,
    /// The most memory of one process.
    pub rss_bytes: u64,
    /// More of both sides' files in the page cache than before.
    pub cache_bytes: u64,
    /// What the copy takes on the target's disk.
    pub allocated_bytes: u64,
    /// Of a run that was killed: what was sent again, as a share of one that was not.
    pub sent_again: Option<f64>,
    /// What the tool itself says, if it does.
    pub told: Option<Told>,
}

/// Our engine's own word: time without the start of its process, bytes of content without what carries them.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Told {
    pub seconds: f64,
    /// Until everything was on the disk, and had yet to be read back.
    pub durable_seconds: f64,
    pub sent_bytes: u64,
}

impl Told {
    /// How long it read back what was durable.
    pub fn reading_back(&self) -> Duration {
        Duration::try_from_secs_f64(self.seconds - self.durable_seconds).unwrap_or_default()
    }
}

/// A line of results.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub work: Work,
    pub tool: Tool,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of a work and tool.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    Measured(Figures),
    /// The copy ended with an error or could not be made: no figures. A tool's own words.
    Failed {
        failed: String,
    },
    /// It was not equal to its source.
    Wrong {
        wrong: String,
    },
    /// The tool is not here.
    Skipped {
        skipped: String,
    },
}

/// Of all runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    pub median_s: f64,
    /// Between the fastest and the slowest.
    pub spread_s: f64,
    /// In the median.
    pub sent_bytes: u64,
    /// The most of any run.
    pub rss_max_bytes: u64,
    /// The most of any run, that from a disk among them.
    pub cache_growth_bytes: u64,
    /// The most of any run.
    pub allocated_bytes: u64,
    /// In the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_again_share: Option<f64>,
    /// Of the one run whose source lay on the disk as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_disk_s: Option<f64>,
    /// Until it was read back as well, in the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_back_median_s: Option<f64>,
    /// Told by the engine, in the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_median_s: Option<f64>,
    /// Told by the engine, in the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_bytes: Option<u64>,
    /// Each run, in the order in which they ran.
    pub runs_s: Vec<f64>,
}

impl Line {
    /// Is it a wrong copy?
    pub fn is_wrong(&self) -> bool {
        matches!(self.outcome, Outcome::Wrong { .. })
    }

    /// What was measured.
    pub fn figures(&self) -> Option<&Figures> {
        match &self.outcome {
            Outcome::Measured(figures) => Some(figures),
            Outcome::Failed { .. } | Outcome::Wrong { .. } | Outcome::Skipped { .. } => None,
        }
    }
}

impl Outcome {
    /// For people: in a word, and what there is to say of it.
    pub fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Measured(_) => ("measured", ""),
            Self::Failed { failed } => ("failed", failed),
            Self::Wrong { wrong } => ("WRONG", wrong),
            Self::Skipped { skipped } => ("skipped", skipped),
        }
    }
}

impl Figures {
    /// Of at least one run, and of one from a disk if there was one.
    pub fn of(runs: &[Run], from_disk: Option<&Run>) -> Option<Self> {
        let times = Sample::new(runs.iter().map(|run| run.time).collect())?;
        let most = |figure: fn(&Run) -> u64| runs.iter().map(figure).max().unwrap_or_default();
        let told =
            |figure: fn(Told) -> f64| median(runs.iter().filter_map(|run| run.told.map(figure)).collect());
        let bytes = |figure: fn(&Run) -> Option<u64>| {
            let mut all: Vec<_> = runs.iter().filter_map(figure).collect();
            all.sort_unstable();
            all.get(all.len().saturating_sub(1) / 2).copied()
        };
        Some(Self {
            median_s: times.percentile(50).as_secs_f64(),
            spread_s: times.percentile(100).saturating_sub(times.percentile(0)).as_secs_f64(),
            sent_bytes: bytes(|run| Some(run.sent_bytes)).unwrap_or_default(),
            rss_max_bytes: most(|run| run.rss_bytes),
            cache_growth_bytes: most(|run| run.cache_bytes).max(from_disk.map_or(0, |run| run.cache_bytes)),
            allocated_bytes: most(|run| run.allocated_bytes),
            sent_again_share: median(runs.iter().filter_map(|run| run.sent_again).collect()),
            from_disk_s: from_disk.map(|run| run.time.as_secs_f64()),
            read_back_median_s: median(
                runs.iter().filter_map(|run| Some(run.read_back?.as_secs_f64())).collect(),
            ),
            engine_median_s: told(|told| told.durable_seconds),
            content_bytes: bytes(|run| run.told.map(|told| told.sent_bytes)),
            runs_s: runs.iter().map(|run| run.time.as_secs_f64()).collect(),
        })
    }
}

/// Of an even number the lower one, as [`Sample`] has it.
fn median(mut all: Vec<f64>) -> Option<f64> {
    all.sort_by(f64::total_cmp);
    all.get(all.len().saturating_sub(1) / 2).copied()
}

/// The figures of a work and tool, among all lines.
pub fn find(lines: &[Line], work: Work, tool: Tool) -> Option<&Figures> {
    lines.iter().find(|line| (line.work, line.tool) == (work, tool))?.figures()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: u64) -> Run {
        Run {
            time: Duration::from_secs(seconds),
            read_back: Some(Duration::from_secs(seconds + 1)),
            sent_bytes: 10 * seconds,
            rss_bytes: seconds,
            cache_bytes: 1,
            allocated_bytes: 2,
            sent_again: None,
            told: None,
        }
    }

    #[test]
    fn runs_become_their_median_spread_and_extremes() {
        assert_eq!(Figures::of(&[], None), None);
        let figures = Figures::of(&[run(5), run(1), run(2)], Some(&Run { cache_bytes: 7, ..run(9) }))
            .expect("measured");
        let expected = Figures {
            median_s: 2.0,
            spread_s: 4.0,
            sent_bytes: 20,
            rss_max_bytes: 5,
            cache_growth_bytes: 7,
            allocated_bytes: 2,
            sent_again_share: None,
            from_disk_s: Some(9.0),
            read_back_median_s: Some(3.0),
            engine_median_s: None,
            content_bytes: None,
            runs_s: vec![5.0, 1.0, 2.0],
        };
        assert_eq!(figures, expected);
    }

    #[test]
    fn a_line_says_what_it_has_and_nothing_else() {
        let line = |outcome| Line { work: Work::DenseExt4, tool: Tool::QemuImg, outcome };
        let json = |line| serde_json::to_value(line).expect("JSON");
        let failed = json(line(Outcome::Failed { failed: "no".to_owned() }));
        assert_eq!(failed, serde_json::json!({"work": "dense-ext4", "tool": "qemu-img", "failed": "no"}));
        let measured = json(line(Outcome::Measured(Figures::of(&[run(1)], None).expect("measured"))));
        assert_eq!(measured["median_s"], 1.0);
        assert_eq!(measured.get("sent_again_share"), None);
    }
}

//! From when on a signal counts, each limit with its evidence. What an administrator sets differently is read from JSON, and
//! refused as a whole where it would grade nothing, or everything.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// From when on a signal counts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Thresholds {
    /// A finding is dropped after its source was clean this long. 30 min: three SMART polls of 10 min agree.
    #[serde(rename = "cleanSeconds", deserialize_with = "seconds")]
    pub clean: Duration,
    /// No completion with requests in flight: a warning. 30 s is the kernel's default SCSI command timeout.
    #[serde(rename = "stallWarningSeconds", deserialize_with = "seconds")]
    pub stall_warning: Duration,
    /// The same: failed. 120 s is the kernel's default `hung_task_timeout_secs`.
    #[serde(rename = "stallFailedSeconds", deserialize_with = "seconds")]
    pub stall_failed: Duration,
    /// Longest time between two kernel samples that counts as observed: when the whole machine stood still,
    /// its disk did not stall.
    #[serde(rename = "kernelGapMaxSeconds", deserialize_with = "seconds")]
    pub kernel_gap_max: Duration,
    /// Age at which a good SMART reading no longer counts: six missed polls of 10 min.
    #[serde(rename = "smartStaleSeconds", deserialize_with = "seconds")]
    pub smart_stale: Duration,
    /// Attribute 5 from which on disks fail far more often: the 17-70 bucket of the Backblaze-derived table in
    /// Scrutiny shows 23.6 % a year, 71-260 36 %.
    pub reallocated_failing: u64,
    /// Attribute 5, growth within [`Thresholds::trend_window`]. Google (FAST'07): first reallocations make
    /// failure within 60 days 14 times as likely.
    pub reallocated_growth_failing: u64,
    /// Attribute 197. Google (FAST'07): first pending sectors make failure 16 times as likely; a handful heals
    /// when rewritten.
    pub pending_failing: u64,
    /// Attribute 198. Google (FAST'07): first offline reallocations make failure 21 times as likely.
    pub offline_uncorrectable_failing: u64,
    /// How many rises of an uncorrectable counter within [`Thresholds::trend_window`] make it grow. One alone
    /// says little: 20-63 % of SSDs see one in four years (Google, FAST'16).
    pub uncorrectable_rises_failing: usize,
    /// Window of the growth rules.
    #[serde(rename = "trendWindowSeconds", deserialize_with = "seconds")]
    pub trend_window: Duration,
    /// Wear in percent of the rated endurance. No cliff at 100 % (Google, FAST'16): a warning only.
    pub wear_warning_percent: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        const DAY: Duration = Duration::from_hours(24);
        Self {
            clean: Duration::from_mins(30),
            stall_warning: Duration::from_secs(30),
            stall_failed: Duration::from_mins(2),
            kernel_gap_max: Duration::from_secs(15),
            smart_stale: Duration::from_hours(1),
            reallocated_failing: 70,
            reallocated_growth_failing: 10,
            pending_failing: 16,
            offline_uncorrectable_failing: 3,
            uncorrectable_rises_failing: 2,
            trend_window: DAY,
            wear_warning_percent: 100,
        }
    }
}

/// Why limits are refused.
#[derive(Debug, thiserror::Error)]
pub enum ThresholdsError {
    /// No JSON object, or one with other fields.
    #[error("not an object of limits")]
    Malformed(#[from] serde_json::Error),
    /// A limit that no disk or every disk reaches.
    #[error("{field}: {why}")]
    Senseless {
        /// The field, as it is written.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Thresholds {
    /// Reads limits; a field that is not named keeps its default.
    pub fn from_json(text: &str) -> Result<Self, ThresholdsError> {
        let limits: Self = serde_json::from_str(text)?;
        let refused = |field, why| Err(ThresholdsError::Senseless { field, why });
        let counts = [
            ("reallocatedFailing", limits.reallocated_failing),
            ("reallocatedGrowthFailing", limits.reallocated_growth_failing),
            ("pendingFailing", limits.pending_failing),
            ("offlineUncorrectableFailing", limits.offline_uncorrectable_failing),
            ("wearWarningPercent", limits.wear_warning_percent),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return refused(field, "0 is what healthy disks have");
        }
        if limits.uncorrectable_rises_failing == 0 {
            return refused("uncorrectableRisesFailing", "0 is what healthy disks have");
        }
        if limits.stall_warning.is_zero() || limits.stall_failed <= limits.stall_warning {
            return refused(
                "stallFailedSeconds",
                "must be longer than stallWarningSeconds, and that longer than 0",
            );
        }
        if limits.kernel_gap_max.is_zero() || limits.smart_stale.is_zero() || limits.trend_window.is_zero() {
            return refused(
                "kernelGapMaxSeconds, smartStaleSeconds, trendWindowSeconds",
                "must be longer than 0",
            );
        }
        Ok(limits)
    }
}

/// Whole seconds.
fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_keeps_its_default() {
        let read =
            Thresholds::from_json(r#"{"pendingFailing": 3, "stallFailedSeconds": 60}"#).expect("valid");
        let expected =
            Thresholds { pending_failing: 3, stall_failed: Duration::from_mins(1), ..Thresholds::default() };
        assert_eq!(read, expected);
        assert_eq!(Thresholds::from_json("{}").expect("valid"), Thresholds::default());
    }

    #[test]
    fn what_would_grade_nothing_or_everything_is_refused_by_its_field() {
        for (text, word) in [
            (r#"{"pendingFailing": 0}"#, "pendingFailing"),
            (r#"{"uncorrectableRisesFailing": 0}"#, "uncorrectableRisesFailing"),
            (r#"{"stallFailedSeconds": 30}"#, "stallFailedSeconds"),
            (r#"{"stallWarningSeconds": 0}"#, "stallFailedSeconds"),
            (r#"{"smartStaleSeconds": 0}"#, "smartStaleSeconds"),
            (r#"{"pending": 3}"#, "not an object of limits"),
            (r#"{"pendingFailing": -1}"#, "not an object of limits"),
            ("pendingFailing: 3", "not an object of limits"),
        ] {
            let refused = Thresholds::from_json(text).expect_err(text).to_string();
            assert!(refused.contains(word), "{text}: {refused}");
        }
    }
}

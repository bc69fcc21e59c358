//! Which migrations and evacuations are shown: all that go on, and those that ended lately. Their objects stay until
//! somebody deletes them, since they tell which volumes were kept.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use somersault_coordinator::cluster::manifest::display;

/// Who comes in the morning sees what ended in the night.
const LATELY: SignedDuration = SignedDuration::from_hours(24);

/// Which of those that have ended are shown.
#[derive(Clone, Copy, Debug)]
pub enum Ended {
    /// Every one.
    All,
    /// Those of the last day, counted from now.
    LatelyAt(Timestamp),
}

impl Ended {
    /// Whether an object with these conditions is shown. One that does not tell when it ended is.
    pub fn shows(self, conditions: &[Condition]) -> bool {
        let Self::LatelyAt(now) = self else { return true };
        let complete =
            conditions.iter().find(|found| found.type_ == display::COMPLETE && found.status == "True");
        complete.is_none_or(|found| now.duration_since(found.last_transition_time.0) < LATELY)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn what_ended_more_than_a_day_ago_is_left_out() {
        let now = Timestamp::from_second(1_000_000_000).expect("in range");
        let complete = |status: &str, hours: i64| Condition {
            type_: display::COMPLETE.to_owned(),
            status: status.to_owned(),
            reason: "Succeeded".to_owned(),
            message: String::new(),
            last_transition_time: Time(now - SignedDuration::from_hours(hours)),
            observed_generation: None,
        };
        let lately = Ended::LatelyAt(now);
        assert!(lately.shows(&[complete("True", 23)]));
        assert!(!lately.shows(&[complete("True", 25)]));
        assert!(Ended::All.shows(&[complete("True", 25)]));
        assert!(lately.shows(&[complete("False", 25)]), "it goes on");
        assert!(lately.shows(&[]), "nobody knows when it ended");
        assert!(lately.shows(&[complete("True", -1)]), "the other clock is ahead");
    }
}

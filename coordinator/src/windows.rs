//! When an evacuation may stop VMs: the one thing that is about the wall clock, and therefore decided here.
//!
//! ```text
//!   opens ≤ now < closes           of the same day, or from a day into the next one; `days` are those on which it opens
//! ```
//!
//! In the evacuation's own time zone: a window of a night is of that night when clocks change, too.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use somersault_coordinator_core::io::Requests;
use somersault_crd::evacuation::{self as evac, Day};

/// When VMs may be stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    opens: Time,
    closes: Time,
    /// None: every day.
    days: Vec<Weekday>,
    zone: TimeZone,
}

/// What is wrong with a window.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WindowError {
    /// No time of day.
    #[error("{field} is {text:?}, and must be a time of day such as 22:00")]
    Time {
        /// Which field.
        field: &'static str,
        /// What it says.
        text: String,
    },
    /// No such zone.
    #[error("timeZone is {0:?}, and there is no such time zone; such as Europe/Berlin, or absent for UTC")]
    Zone(String),
}

impl TryFrom<&evac::Window> for Window {
    type Error = WindowError;

    fn try_from(window: &evac::Window) -> Result<Self, WindowError> {
        let time = |field, text: &String| {
            Time::strptime("%H:%M", text).map_err(|_| WindowError::Time { field, text: text.clone() })
        };
        let zone = match &window.time_zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| WindowError::Zone(name.clone()))?,
        };
        Ok(Self {
            opens: time("opens", &window.opens)?,
            closes: time("closes", &window.closes)?,
            days: window.days.iter().copied().map(weekday).collect(),
            zone,
        })
    }
}

impl Window {
    /// Whether it is open at this time.
    pub fn is_open(&self, at: Timestamp) -> bool {
        let now = at.to_zoned(self.zone.clone());
        let (time, today) = (now.time(), now.weekday());
        let opens_on = |day: Weekday| self.days.is_empty() || self.days.contains(&day);
        if self.opens < self.closes {
            return opens_on(today) && (self.opens..self.closes).contains(&time);
        }
        (time >= self.opens && opens_on(today)) || (time < self.closes && opens_on(today.previous()))
    }
}

/// The names of those that are open at this time.
pub fn open(windows: &BTreeMap<String, Window>, at: Timestamp) -> BTreeSet<String> {
    windows.iter().filter(|(_, window)| window.is_open(at)).map(|(name, _)| name.clone()).collect()
}

/// The requests, with what is noted of windows that are open.
pub fn note(requests: &Requests, open: &BTreeSet<String>) -> Requests {
    let mut requests = requests.clone();
    for (name, spec) in &mut requests.evacuations {
        spec.window_open = open.contains(name);
    }
    requests
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(opens: &str, closes: &str, days: &[Day], zone: Option<&str>) -> Window {
        let written = evac::Window {
            opens: opens.into(),
            closes: closes.into(),
            days: days.to_vec(),
            time_zone: zone.map(str::to_owned),
        };
        Window::try_from(&written).unwrap()
    }

    fn is_open(window: &Window, at: &str) -> bool {
        window.is_open(at.parse().unwrap())
    }

    #[test]
    fn a_window_of_a_day_is_open_from_its_first_minute_to_before_its_last() {
        let noon = window("11:00", "13:00", &[], None);
        for (at, expected) in [("10:59", false), ("11:00", true), ("12:59", true), ("13:00", false)] {
            assert_eq!(is_open(&noon, &format!("2026-06-01T{at}:00Z")), expected, "{at}");
        }
    }

    /// 2026-06-05 is a Friday.
    #[test]
    fn a_window_of_a_night_belongs_to_the_day_on_which_it_opens() {
        let night = window("22:00", "04:00", &[Day::Fri], None);
        for (at, expected) in [
            ("2026-06-05T03:00", false),
            ("2026-06-05T22:00", true),
            ("2026-06-06T03:59", true),
            ("2026-06-06T04:00", false),
            ("2026-06-06T22:30", false),
        ] {
            assert_eq!(is_open(&night, &format!("{at}:00Z")), expected, "{at}");
        }
    }

    #[test]
    fn one_that_closes_when_it_opens_is_open_for_a_day() {
        let day = window("08:00", "08:00", &[Day::Sat], None);
        assert!(is_open(&day, "2026-06-06T08:00:00Z") && is_open(&day, "2026-06-07T07:59:00Z"));
        assert!(!is_open(&day, "2026-06-06T07:59:00Z") && !is_open(&day, "2026-06-07T08:00:00Z"));
    }

    /// Clocks in Berlin are two hours ahead of UTC in summer, and one in winter.
    #[test]
    fn it_is_of_its_own_time_zone_in_summer_and_in_winter() {
        let night = window("02:00", "03:00", &[], Some("Europe/Berlin"));
        assert!(is_open(&night, "2026-07-01T00:30:00Z") && !is_open(&night, "2026-07-01T01:30:00Z"));
        assert!(is_open(&night, "2026-01-01T01:30:00Z") && !is_open(&night, "2026-01-01T00:30:00Z"));
    }

    #[test]
    fn what_is_no_window_is_named() {
        let of = |opens: &str, zone: Option<&str>| {
            let written = evac::Window {
                opens: opens.into(),
                closes: "04:00".into(),
                days: Vec::new(),
                time_zone: zone.map(str::to_owned),
            };
            Window::try_from(&written).unwrap_err().to_string()
        };
        for wrong in ["", "24:00", "7", "noon"] {
            assert!(of(wrong, None).starts_with("opens is"), "{wrong}");
        }
        assert!(of("22:00", Some("Europe/Atlantis")).contains("no such time zone"));
    }
}

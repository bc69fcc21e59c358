//! Sizes and times as people read them.

use jiff::Timestamp;

/// Bytes with a binary unit and at most three digits: `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (u128::from(count) * 10, 0);
    // In tenths, so that no float is needed and 1023.96 KiB becomes 1.0 MiB.
    while value >= 10_235 && unit + 1 < UNITS.len() {
        value = (value + 512) / 1024;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{count} B"),
        (_, 1000..) => format!("{} {}", (value + 5) / 10, UNITS[unit]),
        _ => format!("{}.{} {}", value / 10, value % 10, UNITS[unit]),
    }
}

/// The time since then in its largest unit, as kubectl writes ages: `45s`, `12m`, `3h`, `9d`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Seconds as people tell how long something will take: `40 s`, `3 min`, `2.5 h`.
pub fn about(seconds: u64) -> String {
    match seconds {
        0 => "1 s".to_owned(),
        1..=90 => format!("{seconds} s"),
        91..=5_400 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{}.{} h", seconds / 3_600, seconds % 3_600 / 360),
    }
}

/// Milliseconds as seconds with one decimal: `7.0 s`.
pub fn seconds(ms: u64) -> String {
    let tenths = ms.saturating_add(50) / 100;
    format!("{}.{} s", tenths / 10, tenths % 10)
}

/// Done of all in percent, rounded down so that 100 means all; `None` while unknown.
pub fn percent(done: u64, total: u64) -> Option<u64> {
    let percent = (u128::from(done.min(total)) * 100).checked_div(u128::from(total))?;
    u64::try_from(percent).ok()
}

/// A part of the whole in percent, rounded down, and beyond 100 where it is more than the whole; `None` of nothing.
pub fn share(part: u64, whole: u64) -> Option<u64> {
    let percent = (u128::from(part) * 100).checked_div(u128::from(whole))?;
    Some(u64::try_from(percent).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_few_digits() {
        let gib = 1 << 30;
        for (count, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (gib - 1, "1.0 GiB"),
            (gib * 3 / 2, "1.5 GiB"),
            (gib * 150, "150 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
    }

    #[test]
    fn ages_use_one_unit() {
        let then = Timestamp::UNIX_EPOCH;
        let at = |seconds| Timestamp::from_second(seconds).expect("in range");
        assert_eq!(age(then, at(0)), "0s");
        assert_eq!(age(then, at(119)), "119s");
        assert_eq!(age(then, at(600)), "10m");
        assert_eq!(age(then, at(3 * 86_400)), "3d");
        assert_eq!(age(at(10), then), "0s", "a clock that was set back");
    }

    #[test]
    fn percents_never_claim_too_much() {
        assert_eq!(percent(999, 1_000), Some(99));
        assert_eq!(percent(2_000, 1_000), Some(100));
        assert_eq!(percent(u64::MAX, u64::MAX), Some(100));
        assert_eq!(percent(0, 0), None);
        assert_eq!(share(3, 2), Some(150));
        assert_eq!(share(u64::MAX, 1), Some(u64::MAX));
        assert_eq!(share(1, 0), None);
    }

    #[test]
    fn seconds_have_one_decimal() {
        assert_eq!(seconds(6_960), "7.0 s");
        assert_eq!(seconds(40), "0.0 s");
    }
}

//! Every grade and reason is reached from its signal; worse at once, better only after a clean while.

use proptest::prelude::*;

use super::*;
use crate::health::{Access, DeviceState, FilesystemErrors, FilesystemSample, IoSample};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// A grader and a clock that the test moves.
struct Bench {
    grader: Grader,
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        Self { grader: Grader::new(Thresholds::default()), now: HOUR }
    }

    fn kernel(&mut self, signals: &Signals) -> Assessment {
        self.grader.observe(self.now, signals);
        self.grader.assess(self.now)
    }

    fn smart(&mut self, state: SmartState) -> Assessment {
        self.grader.observe_smart(self.now, SmartReport::without_identity(state));
        self.grader.assess(self.now)
    }

    fn values(&mut self, values: SmartValues) -> Assessment {
        self.smart(SmartState::Values(Box::new(values)))
    }

    /// Repeats a kernel sample every 5 s, as the shell does.
    fn kernel_for(&mut self, time: Duration, signals: &Signals) -> Assessment {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_secs(5);
            self.grader.observe(self.now, signals);
        }
        self.grader.assess(self.now)
    }
}

fn filesystem(access: Access, errors: Option<(u64, Option<Duration>)>) -> Signals {
    let errors = errors.map(|(count, last_age)| FilesystemErrors { count, last_age });
    Signals {
        filesystems: BTreeMap::from([(
            "/data".to_owned(),
            FilesystemSample { access, errors, device_errors: None },
        )]),
        ..Signals::default()
    }
}

fn io(in_flight: u64, completed: u64) -> Signals {
    Signals { io: Some(IoSample { in_flight, completed }), ..Signals::default() }
}

fn healthy() -> SmartValues {
    SmartValues::default()
}

#[test]
fn each_reason_of_a_single_smart_reading_is_reached() {
    let nvme = |bit: u8| SmartValues { nvme_critical_warning: 1 << bit, ..healthy() };
    let table = [
        (SmartValues { failing_now: true, ..healthy() }, Grade::Failing, vec![Reason::SmartFailingNow]),
        (nvme(0), Grade::Failing, vec![Reason::NvmeSpareLow]),
        (nvme(1), Grade::Warning, vec![Reason::NvmeTemperature]),
        (nvme(2), Grade::Failing, vec![Reason::NvmeDegraded]),
        (nvme(3), Grade::Failing, vec![Reason::NvmeReadOnly]),
        (nvme(4), Grade::Warning, vec![Reason::VolatileBackupFailed]),
        (nvme(5), Grade::Ok, vec![]),
        (SmartValues { pending: Some(15), ..healthy() }, Grade::Warning, vec![Reason::SectorDefects]),
        (
            SmartValues { pending: Some(16), ..healthy() },
            Grade::Failing,
            vec![Reason::PendingSectors, Reason::SectorDefects],
        ),
        (
            SmartValues { offline_uncorrectable: Some(3), ..healthy() },
            Grade::Failing,
            vec![Reason::PendingSectors, Reason::SectorDefects],
        ),
        (SmartValues { reallocated: Some(69), ..healthy() }, Grade::Warning, vec![Reason::SectorDefects]),
        (
            SmartValues { reallocated: Some(70), ..healthy() },
            Grade::Failing,
            vec![Reason::Reallocated, Reason::SectorDefects],
        ),
        (
            SmartValues { reported_uncorrectable: Some(1), ..healthy() },
            Grade::Warning,
            vec![Reason::SectorDefects],
        ),
        (SmartValues { grown_defects: Some(260), ..healthy() }, Grade::Warning, vec![Reason::SectorDefects]),
        (SmartValues { media_errors: Some(7), ..healthy() }, Grade::Warning, vec![Reason::MediaErrors]),
        (SmartValues { uncorrected: Some(1), ..healthy() }, Grade::Warning, vec![Reason::MediaErrors]),
        (SmartValues { wear_percent: Some(99), ..healthy() }, Grade::Ok, vec![]),
        (SmartValues { wear_percent: Some(100), ..healthy() }, Grade::Warning, vec![Reason::WearExhausted]),
        (SmartValues { link_errors: Some(9), ..healthy() }, Grade::Ok, vec![]),
        (healthy(), Grade::Ok, vec![]),
    ];
    for (values, grade, reasons) in table {
        let assessment = Bench::new().values(values.clone());
        assert_eq!((assessment.grade, assessment.reasons), (grade, reasons), "{values:?}");
        assert!(assessment.smart_supported);
    }
}

#[test]
fn growth_needs_more_than_one_look() {
    let mut bench = Bench::new();
    for (pending, growing) in [(1, false), (2, false), (3, true)] {
        let seen = bench.values(SmartValues { pending: Some(pending), ..healthy() });
        assert_eq!(seen.reasons.contains(&Reason::UncorrectableGrowing), growing, "{pending}");
        bench.now += 10 * MINUTE;
    }
    let mut bench = Bench::new();
    bench.values(SmartValues { reallocated: Some(20), link_errors: Some(1), ..healthy() });
    bench.now += HOUR;
    let seen = bench.values(SmartValues { reallocated: Some(30), link_errors: Some(2), ..healthy() });
    assert_eq!(seen.reasons, [Reason::Reallocated, Reason::SectorDefects, Reason::LinkErrorsGrowing]);
}

#[test]
fn slow_growth_over_days_is_not_growth() {
    let mut bench = Bench::new();
    for pending in 1..=5 {
        let seen = bench.values(SmartValues { pending: Some(pending), ..healthy() });
        assert_eq!(seen.grade, Grade::Warning, "{pending}");
        bench.now += 25 * HOUR;
    }
}

#[test]
fn each_reason_of_the_kernel_is_reached() {
    let hour_ago = Some(HOUR);
    let just_now = Some(Duration::from_secs(3));
    let table = [
        (Signals { device: DeviceState::Gone, ..Signals::default() }, Some(Reason::DeviceGone)),
        (Signals { device: DeviceState::Offline, ..Signals::default() }, Some(Reason::DeviceOffline)),
        (Signals { device: DeviceState::Dead, ..Signals::default() }, Some(Reason::NvmeDead)),
        (Signals { degraded: true, ..Signals::default() }, Some(Reason::RaidDegraded)),
        (Signals { probe_stuck: true, ..Signals::default() }, Some(Reason::ProbeStuck)),
        (filesystem(Access::EmergencyReadOnly, None), Some(Reason::ReadOnlyAfterError)),
        (filesystem(Access::ReadOnly, None), None),
        (filesystem(Access::ReadWrite, Some((0, None))), None),
        (filesystem(Access::ReadWrite, Some((4, hour_ago))), Some(Reason::HistoricErrors)),
        (filesystem(Access::ReadWrite, Some((4, just_now))), Some(Reason::FilesystemErrorsGrowing)),
    ];
    for (signals, reason) in table {
        let assessment = Bench::new().kernel(&signals);
        assert_eq!(assessment.reasons, Vec::from_iter(reason), "{signals:?}");
        assert_eq!(assessment.grade, reason.map_or(Grade::Unknown, Reason::grade));
    }
}

#[test]
fn a_filesystem_that_turns_read_only_has_failed() {
    let mut bench = Bench::new();
    bench.kernel(&filesystem(Access::ReadWrite, None));
    bench.now += MINUTE;
    let seen = bench.kernel(&filesystem(Access::ReadOnly, None));
    assert_eq!((seen.grade, seen.reasons), (Grade::Failed, vec![Reason::ReadOnlyAfterError]));
    let seen = Bench::new().kernel(&filesystem(Access::ReadOnly, Some((1, Some(HOUR)))));
    assert_eq!(seen.grade, Grade::Failed, "a restarted agent knows it by the recorded errors");
}

#[test]
fn ext4_errors_count_when_they_grow() {
    let mut bench = Bench::new();
    assert_eq!(bench.kernel(&filesystem(Access::ReadWrite, Some((4, None)))).grade, Grade::Warning);
    let seen = bench.kernel_for(MINUTE, &filesystem(Access::ReadWrite, Some((5, None))));
    assert_eq!(seen.grade, Grade::Failing);
    let seen = bench.kernel_for(31 * MINUTE, &filesystem(Access::ReadWrite, Some((5, None))));
    assert_eq!((seen.grade, seen.reasons), (Grade::Warning, vec![Reason::HistoricErrors]));
}

fn btrfs(device_errors: u64) -> Signals {
    let sample =
        FilesystemSample { access: Access::ReadWrite, errors: None, device_errors: Some(device_errors) };
    Signals { filesystems: BTreeMap::from([("/data".to_owned(), sample)]), ..Signals::default() }
}

/// They stay until somebody clears them.
#[test]
fn btrfs_errors_count_when_they_grow() {
    let mut bench = Bench::new();
    assert_eq!(bench.kernel(&btrfs(0)).reasons, []);
    let seen = bench.kernel_for(MINUTE, &btrfs(1));
    assert_eq!(
        (seen.grade, seen.reasons),
        (Grade::Failing, vec![Reason::BtrfsDeviceErrors, Reason::HistoricErrors])
    );
    let seen = bench.kernel_for(31 * MINUTE, &btrfs(1));
    assert_eq!((seen.grade, seen.reasons), (Grade::Warning, vec![Reason::HistoricErrors]));
    assert_eq!(Bench::new().kernel(&btrfs(7)).grade, Grade::Warning, "of before the agent started");
    assert_eq!(bench.kernel_for(31 * MINUTE, &btrfs(0)).reasons, [], "cleared");
}

#[test]
fn failed_requests_are_worth_a_look_when_they_become_more() {
    let with = |count| Signals { io_errors: Some(count), ..Signals::default() };
    let mut bench = Bench::new();
    assert_eq!(bench.kernel(&with(31)).reasons, [], "since the device came");
    assert_eq!(bench.kernel_for(MINUTE, &with(32)).reasons, [Reason::IoErrorsGrowing]);
    assert_eq!(bench.kernel_for(31 * MINUTE, &with(32)).reasons, []);
}

/// Nothing that can be said is never said: each reason is reached by a test of this file, by its name.
#[test]
fn no_reason_is_without_its_test() {
    let tests = include_str!("tests.rs");
    for reason in Reason::ALL {
        let name = format!("Reason::{}", reason.as_str());
        assert!(tests.contains(&name), "{name} is reached by no test");
    }
}

#[test]
fn a_stall_grows_from_warning_to_failed() {
    let mut bench = Bench::new();
    for (time, reason) in [
        (25, None),
        (10, Some(Reason::IoStalling)),
        (80, Some(Reason::IoStalling)),
        (10, Some(Reason::IoStalled)),
    ] {
        let seen = bench.kernel_for(Duration::from_secs(time), &io(3, 100));
        assert_eq!(seen.reasons.first().copied(), reason, "{:?}", seen.stalled_for);
    }
}

#[test]
fn a_disk_that_completes_or_idles_does_not_stall() {
    let mut bench = Bench::new();
    for completed in 0..100 {
        bench.kernel_for(Duration::from_secs(10), &io(64, completed));
    }
    let seen = bench.kernel_for(HOUR, &io(0, 100));
    assert_eq!((seen.grade, seen.stalled_for), (Grade::Unknown, Duration::ZERO));
}

#[test]
fn a_machine_that_stood_still_has_no_stalled_disk() {
    let mut bench = Bench::new();
    bench.kernel(&io(1, 100));
    bench.now += 10 * HOUR;
    assert_eq!(bench.kernel(&io(1, 100)).stalled_for, Thresholds::default().kernel_gap_max);
}

#[test]
fn unsupported_smart_is_unknown_and_never_unhealthy() {
    let states = [
        (SmartState::Unsupported, Reason::SmartUnsupported),
        (SmartState::Disabled, Reason::SmartDisabled),
        (SmartState::Unreadable("no".into()), Reason::SmartUnreadable),
        (SmartState::Asleep, Reason::SmartStale),
    ];
    for (state, reason) in states {
        let mut bench = Bench::new();
        bench.kernel(&filesystem(Access::ReadWrite, Some((0, None))));
        let seen = bench.smart(state.clone());
        assert_eq!((seen.grade, seen.reasons), (Grade::Unknown, vec![reason]), "{state:?}");
        assert!(!seen.smart_supported);
    }
    assert_eq!(Bench::new().grader.assess(HOUR).grade, Grade::Unknown, "before any reading");
}

#[test]
fn an_old_healthy_reading_is_not_served_as_new() {
    let mut bench = Bench::new();
    assert_eq!(bench.values(healthy()).grade, Grade::Ok);
    bench.now += HOUR;
    let seen = bench.grader.assess(bench.now);
    assert_eq!((seen.grade, seen.reasons), (Grade::Unknown, vec![Reason::SmartStale]));
    bench.values(healthy());
    let seen = bench.smart(SmartState::Unsupported);
    assert_eq!((seen.grade, seen.reasons), (Grade::Unknown, vec![Reason::SmartUnreadable]), "it vanished");
}

#[test]
fn a_sleeping_disk_keeps_its_fresh_reading() {
    let mut bench = Bench::new();
    bench.values(healthy());
    bench.now += 10 * MINUTE;
    assert_eq!(bench.smart(SmartState::Asleep).grade, Grade::Ok);
    bench.now += HOUR;
    assert_eq!(bench.smart(SmartState::Asleep).grade, Grade::Unknown);
}

#[test]
fn a_finding_outlives_a_reading_that_fails() {
    let mut bench = Bench::new();
    bench.values(SmartValues { failing_now: true, ..healthy() });
    for _ in 0..20 {
        bench.now += 10 * MINUTE;
        let seen = bench.smart(SmartState::Unreadable("timeout".into()));
        assert_eq!(seen.reasons, [Reason::SmartFailingNow, Reason::SmartUnreadable]);
    }
}

#[test]
fn improvement_takes_thirty_clean_minutes_of_the_same_source() {
    let mut bench = Bench::new();
    bench.values(SmartValues { nvme_critical_warning: 2, ..healthy() });
    assert_eq!(bench.kernel_for(HOUR / 2, &io(0, 1)).grade, Grade::Warning, "another source is no witness");
    let mut bench = Bench::new();
    bench.values(SmartValues { nvme_critical_warning: 2, ..healthy() });
    for (minutes, grade) in [(10, Grade::Warning), (20, Grade::Warning), (30, Grade::Ok)] {
        bench.now = HOUR + minutes * MINUTE;
        assert_eq!(bench.values(healthy()).grade, grade, "after {minutes} min");
    }
}

#[test]
fn a_replaced_disk_starts_anew() {
    let mut bench = Bench::new();
    let report = |serial: &str, failing_now| SmartReport {
        identity: Identity { model: "M".into(), serial: serial.into() },
        device_type: None,
        state: SmartState::Values(Box::new(SmartValues { failing_now, ..healthy() })),
    };
    bench.grader.observe_smart(bench.now, report("OLD", true));
    bench.grader.observe_smart(bench.now, report("NEW", false));
    let seen = bench.grader.assess(bench.now);
    assert_eq!((seen.grade, seen.identity.serial.as_str()), (Grade::Ok, "NEW"));
}

#[test]
fn names_are_unique_and_every_grade_but_ok_has_a_reason() {
    let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for grade in [Grade::Unknown, Grade::Warning, Grade::Failing, Grade::Failed] {
        assert!(Reason::ALL.iter().any(|reason| reason.grade() == grade), "{grade:?}");
    }
}

proptest! {
    /// Whatever comes in whatever order: the grade is that of the worst reason, and `Ok` needs a fresh reading.
    #[test]
    fn the_grade_follows_from_the_reasons(
        steps in proptest::collection::vec((0..6_u8, 0..40_u64, any::<u8>()), 1..60)
    ) {
        let mut bench = Bench::new();
        let mut read_at = None;
        for (kind, minutes, x) in steps {
            bench.now += MINUTE * u32::try_from(minutes).unwrap_or(0);
            let seen = match kind {
                0 => bench.kernel(&io(u64::from(x % 2), u64::from(x / 64))),
                1 => bench.kernel(&filesystem(Access::ReadWrite, Some((u64::from(x / 32), None)))),
                2 => bench.smart(SmartState::Unsupported),
                3 => bench.smart(SmartState::Asleep),
                4 => bench.smart(SmartState::Unreadable(String::new())),
                _ => {
                    read_at = Some(bench.now);
                    bench.values(SmartValues { pending: Some(u64::from(x / 8)), ..healthy() })
                }
            };
            let worst = seen.reasons.iter().map(|reason| reason.grade()).max();
            match seen.grade {
                Grade::Ok => {
                    prop_assert!(seen.reasons.is_empty());
                    let age = bench.now.saturating_sub(read_at.expect("Ok without a reading"));
                    prop_assert!(age < Thresholds::default().smart_stale);
                }
                grade => prop_assert!(worst.is_none_or(|worst| worst == grade)),
            }
        }
    }
}

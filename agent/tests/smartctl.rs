//! The smartctl runner against real processes that behave as badly as smartctl, a wrapper or a disk can.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use somersault_agent::probe::smartctl::{Run, Smartctl};
use somersault_agent_core::smart::{SmartReport, SmartState};
use tempfile::TempDir;

const HEALTHY: &str = r#"{"json_format_version":[1,0],"smartctl":{"exit_status":0},"device":{"type":"sat","protocol":"ATA"},"model_name":"DISK","serial_number":"S1","smart_status":{"passed":true},"ata_smart_attributes":{"table":[]}}"#;

/// A smartctl that is a shell script.
struct Fake {
    folder: TempDir,
}

impl Fake {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Self { folder };
        let text = script.replace("HERE", &fake.path("").display().to_string());
        write_script(&fake.path("smartctl"), &text);
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn smartctl(&self, disk: &str) -> Smartctl {
        Smartctl::new(&self.path("smartctl"), disk)
    }

    async fn state(&self) -> SmartState {
        ended(self.smartctl("sda").run().await).state
    }
}

fn ended(run: Run) -> SmartReport {
    match run {
        Run::Ended(report) => report,
        other => panic!("expected an end, got {other:?}"),
    }
}

fn prints(json: &str, exit: i32) -> String {
    format!("cat <<'END'\n{json}\nEND\nexit {exit}")
}

fn alive(pid_file: &Path) -> bool {
    let pid = fs::read_to_string(pid_file).expect("a process id");
    // A process that was killed and not yet reaped by its new parent is dead, too.
    fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Written by a child: a program cannot be started while any process holds it open for writing, and a test of
/// another thread may fork while this one writes.
fn write_script(path: &Path, text: &str) {
    let shell = format!("cat > '{0}' && chmod 755 '{0}'", path.display());
    let mut child =
        Command::new("sh").args(["-c", &shell]).stdin(Stdio::piped()).spawn().expect("a shell starts");
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(format!("#!/bin/sh\n{text}\n").as_bytes()).expect("written");
    drop(stdin);
    assert!(child.wait().expect("a shell ends").success());
}

#[tokio::test]
async fn a_report_is_read_with_its_exit_status() {
    let SmartState::Values(values) = Fake::new(&prints(HEALTHY, 0)).state().await else {
        panic!("no values")
    };
    assert!(!values.failing_now);
    let SmartState::Values(values) = Fake::new(&prints(HEALTHY, 24)).state().await else {
        panic!("no values")
    };
    assert!(values.failing_now);
}

#[tokio::test]
async fn what_is_no_report_is_unreadable_and_never_healthy() {
    let truncated = &HEALTHY[..HEALTHY.len() / 2];
    for script in [
        "exit 0".to_owned(),
        "echo 'smartctl: command line garbage {{{' ; exit 0".to_owned(),
        prints(truncated, 0),
        "head -c 100000 /dev/urandom".to_owned(),
    ] {
        let state = Fake::new(&script).state().await;
        assert!(matches!(state, SmartState::Unreadable(_)), "{script}: {state:?}");
    }
}

#[tokio::test]
async fn a_flood_is_cut_off() {
    let fake = Fake::new(&format!("head -c 2000000 /dev/zero; {}", prints(HEALTHY, 0)));
    assert!(matches!(fake.state().await, SmartState::Unreadable(_)));
    let endless = Fake::new("exec cat /dev/zero");
    let began = Instant::now();
    assert!(matches!(endless.state().await, SmartState::Unreadable(_)));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn one_that_ignores_being_asked_to_end_is_killed_with_its_children() {
    let fake = Fake::new(
        "trap '' TERM INT HUP\nsleep 600 &\necho $! > HEREchild\necho $$ > HEREself\nwait\nsleep 600",
    );
    let began = Instant::now();
    let run = fake.smartctl("sda").with_run_max(Duration::from_millis(300)).run().await;
    assert!(matches!(run, Run::Overdue(SmartReport { state: SmartState::Unreadable(_), .. })), "{run:?}");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!alive(&fake.path("self")));
    // The child is reaped by init, a moment later.
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        !alive(&fake.path("child"))
    });
    assert!(gone);
}

#[tokio::test]
async fn one_that_dies_by_a_signal_is_unreadable() {
    let fake = Fake::new(&format!("cat <<'END'\n{HEALTHY}\nEND\nkill -SEGV $$"));
    assert!(matches!(fake.state().await, SmartState::Unreadable(_)));
}

#[tokio::test]
async fn no_smartctl_is_unsupported_and_a_broken_one_unreadable() {
    let mut none = Smartctl::new(Path::new("/nonexistent/smartctl"), "sda");
    assert_eq!(ended(none.run().await).state, SmartState::Unsupported);
    let fake = Fake::new("exit 0");
    fs::set_permissions(fake.path("smartctl"), fs::Permissions::from_mode(0o644)).expect("made plain");
    assert!(matches!(fake.state().await, SmartState::Unreadable(_)));
}

#[tokio::test]
async fn a_sleeping_disk_is_left_asleep_and_its_type_is_remembered() {
    let fake = Fake::new(&format!("echo \"$@\" >> HEREargs\n{}", prints(HEALTHY, 0)));
    let mut smartctl = fake.smartctl("sda");
    ended(smartctl.run().await);
    ended(smartctl.run().await);
    ended(fake.smartctl("nvme0n1").run().await);
    ended(fake.smartctl("cciss!c0d0").run().await);
    let args = fs::read_to_string(fake.path("args")).expect("arguments");
    assert_eq!(
        args.lines().collect::<Vec<_>>(),
        [
            "--json=c -i -H -A -n standby,3 /dev/sda",
            "--json=c -i -H -A -n standby,3 -d sat /dev/sda",
            "--json=c -i -H -A /dev/nvme0n1",
            "--json=c -i -H -A -n standby,3 /dev/cciss/c0d0",
        ]
    );
    assert_eq!(Fake::new(&prints(HEALTHY, 3)).state().await, SmartState::Asleep);
}

#[tokio::test]
async fn a_type_that_no_longer_fits_is_forgotten() {
    let script = format!("echo \"$@\" >> HEREargs\n[ -e HEREreplaced ] && exit 2\n{}", prints(HEALTHY, 0));
    let fake = Fake::new(&script);
    let mut smartctl = fake.smartctl("sda");
    ended(smartctl.run().await);
    fs::write(fake.path("replaced"), "").expect("written");
    ended(smartctl.run().await);
    ended(smartctl.run().await);
    let args = fs::read_to_string(fake.path("args")).expect("arguments");
    assert_eq!(args.lines().map(|line| line.contains("-d sat")).collect::<Vec<_>>(), [false, true, false]);
}

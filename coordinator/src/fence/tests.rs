//! Real programs as fence agents, well-behaved and not: only an `off` that `status` confirms is a proof.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::sleep;

use super::config::{AgentSpec, OptionValue};
use super::*;

/// A folder with a fence agent in it: a shell script that keeps what it is told in files.
struct Device {
    folder: TempDir,
}

impl Device {
    /// The script sees `$action` and `$folder`; each run's stdin is kept in `$folder/ACTION`.
    fn new(body: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let place = folder.path().display();
        let script = format!(
            "#!/bin/sh\nfolder={place}\ninput=$(cat)\naction=$(printf '%s\\n' \"$input\" | sed -n 's/^action=//p')\n\
             printf '%s\\n' \"$input\" > $folder/$action\necho $action >> $folder/log\n{body}\n"
        );
        let source = folder.path().join("source");
        fs::write(&source, script).unwrap();
        // By another process: a file that this one has open for writing, even for a moment, cannot be executed.
        let mut install = Command::new("install");
        install.args(["-m", "755"]).arg(&source).arg(folder.path().join("agent"));
        assert!(install.status().unwrap().success());
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn agents(&self, options: &[(&str, &str)], deadline_ms: u64) -> FenceAgents {
        let agent = FenceAgent {
            program: self.path("agent"),
            options: options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            password_file: self.path("password").exists().then(|| self.path("password")),
            deadline: Duration::from_millis(deadline_ms),
            retry_wait: Duration::from_millis(10),
            revision: AgentRevision::default(),
        };
        FenceAgents { agents: BTreeMap::from([("n1".into(), agent)]) }
    }

    async fn fence(&self, options: &[(&str, &str)], deadline_ms: u64) -> FenceResult {
        self.agents(options, deadline_ms).fence(&"n1".into(), Duration::from_mins(1)).await
    }

    async fn status(&self, deadline_ms: u64) -> FenceAnswer {
        self.agents(&[], deadline_ms).status(&"n1".into(), Duration::from_mins(1)).await
    }

    async fn fails(&self, options: &[(&str, &str)], deadline_ms: u64) -> String {
        match self.fence(options, deadline_ms).await {
            FenceResult::Failed(why) => why,
            FenceResult::ConfirmedOff => panic!("was taken for a proof"),
        }
    }
}

const WELL: &str = "[ $action = off ] && exit 0; exit 2";
const AMPLE_MS: u64 = 20_000;

#[tokio::test]
async fn off_and_status_together_are_a_proof() {
    let device = Device::new(WELL);
    assert_eq!(
        device.fence(&[("ip", "10.0.9.1"), ("plug", "n1")], AMPLE_MS).await,
        FenceResult::ConfirmedOff
    );
    assert_eq!(device.read("log"), "off\nstatus\n");
    assert_eq!(device.read("off"), "ip=10.0.9.1\nplug=n1\nnodename=n1\naction=off\n");
}

#[tokio::test]
async fn a_node_without_an_agent_is_no_proof() {
    assert!(matches!(
        FenceAgents::default().fence(&"n1".into(), Duration::from_mins(1)).await,
        FenceResult::Failed(_)
    ));
}

#[tokio::test]
async fn off_that_status_contradicts_is_no_proof() {
    let why = Device::new("exit 0").fails(&[], AMPLE_MS).await;
    assert!(why.contains("still on"), "{why}");
}

#[tokio::test]
async fn off_that_cannot_be_read_back_is_no_proof() {
    let why = Device::new("[ $action = off ] && exit 0; exit 1").fails(&[], AMPLE_MS).await;
    assert!(why.contains("cannot be read back") && why.contains("exit code 1"), "{why}");
}

#[tokio::test]
async fn a_device_that_tells_late_is_asked_again() {
    let device =
        Device::new("[ $action = off ] && exit 0; [ $(grep -c status $folder/log) -ge 3 ] && exit 2; exit 0");
    assert_eq!(device.fence(&[], AMPLE_MS).await, FenceResult::ConfirmedOff);
    assert_eq!(device.read("log"), "off\nstatus\nstatus\nstatus\n");
}

#[tokio::test]
async fn off_is_tried_twice_and_no_more() {
    let second =
        Device::new("[ $action = status ] && exit 2; [ $(grep -c off $folder/log) -ge 2 ] && exit 0; exit 1");
    assert_eq!(second.fence(&[], AMPLE_MS).await, FenceResult::ConfirmedOff);
    // Even though status would say off: what off itself did is unknown.
    let never = Device::new("[ $action = status ] && exit 2; exit 1");
    assert!(never.fails(&[], AMPLE_MS).await.contains("exit code 1"));
    assert_eq!(never.read("log"), "off\noff\n");
}

#[tokio::test]
async fn a_program_that_hangs_and_ignores_signals_is_killed_with_its_children() {
    let device = Device::new("trap '' TERM\nsleep 600 &\necho $! > $folder/child\nwait; wait; sleep 600");
    let start = Instant::now();
    let why = device.fails(&[], 1500).await;
    assert!(why.contains("did not end within"), "{why}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let child: i32 = device.read("child").trim().parse().unwrap();
    assert!(dies(child).await, "{}", stat(child));
}

/// Whether the process ends. A signal that nobody can ignore is on its way: on a machine that has much to do the
/// process gets its last turn a little later, and whoever adopted it may not have reaped it yet.
async fn dies(pid: i32) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if kill(Pid::from_raw(pid), None).is_err() || stat(pid).contains(") Z ") {
            return true;
        }
        sleep(Duration::from_millis(5)).await;
    }
    false
}

fn stat(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()
}

#[tokio::test]
async fn output_without_end_is_neither_kept_nor_in_the_way() {
    let device = Device::new("head -c 20000000 /dev/zero | tr '\\0' x\n[ $action = off ] && exit 0; exit 2");
    assert_eq!(device.fence(&[], AMPLE_MS).await, FenceResult::ConfirmedOff);
    let loud = Device::new("head -c 20000000 /dev/zero | tr '\\0' x >&2; exit 1");
    let why = loud.fails(&[], AMPLE_MS).await;
    assert!(why.len() < 1000 && why.contains("xxx"), "{} bytes", why.len());
}

#[tokio::test]
async fn a_pipe_held_open_by_a_stranger_delays_nothing() {
    let device = Device::new(&format!("setsid sleep 5 &\n{WELL}"));
    let start = Instant::now();
    assert_eq!(device.fence(&[], AMPLE_MS).await, FenceResult::ConfirmedOff);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_program_that_does_not_read_its_options_is_judged_by_its_exit() {
    let device = Device::new("");
    fs::write(device.path("source"), "#!/bin/sh\nexit 1\n").unwrap();
    let copied = Command::new("install")
        .args(["-m", "755"])
        .arg(device.path("source"))
        .arg(device.path("agent"))
        .status();
    assert!(copied.unwrap().success());
    let long = "x".repeat(4000);
    let options: Vec<(String, &str)> = (0..40).map(|index| (format!("o{index}"), long.as_str())).collect();
    let options: Vec<(&str, &str)> = options.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert!(device.fails(&options, AMPLE_MS).await.contains("exit code 1"));
}

#[tokio::test]
async fn a_program_that_has_gone_is_told() {
    let device = Device::new(WELL);
    fs::remove_file(device.path("agent")).unwrap();
    let why = device.fails(&[], AMPLE_MS).await;
    assert!(why.contains("still installed"), "{why}");
}

#[tokio::test]
async fn passwords_are_never_told() {
    let options = [("passwd", "hunter2"), ("api_token", "hunter2-and-more"), ("ip", "10.0.9.1")];
    let leaks = "echo \"login hunter2-and-more failed; hunter2 for 10.0.9.1\" >&2; exit 1";
    let why = Device::new(leaks).fails(&options, AMPLE_MS).await;
    assert!(why.contains("login <redacted> failed; <redacted> for 10.0.9.1"), "{why}");
    let verbose = [options[0], ("verbose", "1")];
    let why = Device::new(leaks).fails(&verbose, AMPLE_MS).await;
    assert!(!why.contains("login"), "{why}");
    let printed = format!(
        "{:?}",
        AgentSpec {
            agent: "a".into(),
            options: text("passwd", "hunter2"),
            deadline_ms: None,
            password_file: None
        }
    );
    assert!(!printed.contains("hunter2"), "{printed}");
}

#[tokio::test]
async fn what_an_agent_says_last_is_shown_and_no_half_of_a_secret() {
    let loud =
        Device::new("head -c 200000 /dev/zero | tr '\\0' x >&2; echo ' Connection refused' >&2; exit 1");
    let why = loud.fails(&[], AMPLE_MS).await;
    assert!(why.ends_with("Connection refused") && why.len() < 1000, "{why}");
    // 8192 bytes are kept: the first of the three is cut in the middle.
    let secret = "s".repeat(3_000);
    let options = [("passwd", secret.as_str())];
    let why = Device::new(&format!("printf '%s\\n' {secret} {secret} {secret} >&2; exit 1"))
        .fails(&options, AMPLE_MS)
        .await;
    assert!(!why.contains("sss"), "{why}");
}

#[tokio::test]
async fn a_status_says_on_off_or_why_not_and_switches_nothing() {
    for (code, answer) in [(0, FenceAnswer::On), (2, FenceAnswer::Off)] {
        let device = Device::new(&format!("exit {code}"));
        assert_eq!(device.status(AMPLE_MS).await, answer);
        assert_eq!(device.read("log"), "status\n");
    }
    for body in ["echo no route >&2; exit 1", "echo no route >&2; kill -9 $$"] {
        let FenceAnswer::Failed(why) = Device::new(body).status(AMPLE_MS).await else { panic!("{body}") };
        assert!(why.contains("no route"), "{why}");
    }
    let FenceAnswer::Failed(why) = Device::new("sleep 600").status(300).await else { panic!("hangs") };
    assert!(why.contains("did not end within"), "{why}");
}

#[tokio::test]
async fn a_password_in_a_file_is_read_for_each_run_and_never_told() {
    let device = Device::new("[ $action = off ] && exit 0; exit 2");
    fs::write(device.path("password"), "hunter2\n").unwrap();
    assert_eq!(device.fence(&[], AMPLE_MS).await, FenceResult::ConfirmedOff);
    assert!(
        device.read("off").contains("\npassword=hunter2\n")
            || device.read("off").starts_with("password=hunter2\n")
    );
    fs::write(device.path("password"), "changed").unwrap();
    assert_eq!(device.fence(&[], AMPLE_MS).await, FenceResult::ConfirmedOff);
    assert!(device.read("off").contains("password=changed\n"));

    let leaks = Device::new("echo login with hunter2 failed >&2; exit 1");
    fs::write(leaks.path("password"), "hunter2\n").unwrap();
    let why = leaks.fails(&[], AMPLE_MS).await;
    assert!(why.contains("login with <redacted> failed"), "{why}");
    for bad in ["", "\n", "two\naction=on\n"] {
        fs::write(leaks.path("password"), bad).unwrap();
        let why = leaks.fails(&[], AMPLE_MS).await;
        assert!(why.contains("cannot use the password"), "{bad:?}: {why}");
    }
}

#[test]
fn the_revision_tells_another_machine_and_not_another_password() {
    let revision = |options: &[(&str, &str)]| {
        let options =
            options.iter().map(|(name, value)| ((*name).to_owned(), OptionValue::Text((*value).to_owned())));
        let agents =
            FenceAgents::checked(spec("sh", options.collect(), None), Path::new(""), Duration::from_mins(1));
        agents.unwrap().revisions()[&NodeName::from("n1")].clone()
    };
    let one = revision(&[("ip", "10.0.9.1"), ("passwd", "a")]);
    assert_eq!(one, revision(&[("ip", "10.0.9.1"), ("passwd", "b")]));
    assert_ne!(one, revision(&[("ip", "10.0.9.2"), ("passwd", "a")]));
}

/// One machine would be switched for both nodes, and a living one taken for dead.
#[test]
fn two_nodes_with_the_same_machine_are_refused() {
    let folder = TempDir::new().unwrap();
    let agent = folder.path().join("fence_any");
    fs::write(&agent, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&agent, PermissionsExt::from_mode(0o755)).unwrap();
    let read = |program: &str, machines: [&str; 2]| {
        let file = folder.path().join("fence.yaml");
        let line = |(node, machine)| {
            format!(
                "  {node}: {{agent: {program}, options: {{ip: 10.0.9.1, plug: {machine}, passwd: {node}}}}}\n"
            )
        };
        let lines: String = ["n1", "n2"].into_iter().zip(machines).map(line).collect();
        fs::write(&file, format!("nodes:\n{lines}")).unwrap();
        FenceAgents::read(&file, Duration::from_mins(1)).map(drop).map_err(|error| error.to_string())
    };
    let agent = agent.display().to_string();
    let why = read(&agent, ["3", "3"]).unwrap_err();
    assert!(why.contains("n1 and n2 have the same fence agent for the same machine"), "{why}");
    assert_eq!(read(&agent, ["3", "4"]), Ok(()));
    // One's own program may go by the node's name.
    assert_eq!(read("sh", ["3", "3"]), Ok(()));
}

#[test]
fn a_password_file_stands_beside_the_configuration_and_must_be_there() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("fence.yaml");
    fs::write(&file, "nodes:\n  n1:\n    agent: sh\n    passwordFile: n1-password\n").unwrap();
    let missing = FenceAgents::read(&file, Duration::from_mins(1)).unwrap_err().to_string();
    assert!(missing.contains("n1-password"), "{missing}");
    fs::write(folder.path().join("n1-password"), "x").unwrap();
    let agents = FenceAgents::read(&file, Duration::from_mins(1)).unwrap();
    assert_eq!(agents.agents[&NodeName::from("n1")].password_file, Some(folder.path().join("n1-password")));
}

/// As the kubelet swaps a mounted Secret: a link to another folder.
#[tokio::test(start_paused = true)]
async fn a_changed_configuration_is_taken_and_a_broken_one_is_not() {
    let folder = TempDir::new().unwrap();
    let swap = |generation: &str, yaml: Option<&str>| {
        let place = folder.path().join(generation);
        fs::create_dir(&place).unwrap();
        if let Some(yaml) = yaml {
            fs::write(place.join("fence.yaml"), yaml).unwrap();
        }
        std::os::unix::fs::symlink(generation, folder.path().join("..data_tmp")).unwrap();
        fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    };
    std::os::unix::fs::symlink("..data/fence.yaml", folder.path().join("fence.yaml")).unwrap();
    let live = LiveAgents::read_or_wait(&folder.path().join("fence.yaml"), Duration::from_mins(1));
    let mut roster = live.roster();
    assert!(roster.borrow().agents.is_empty() && roster.borrow().problem.is_some());
    let stop = tokio_util::sync::CancellationToken::new();
    let (follow, stopped) = (live.clone(), stop.clone());
    let following = tokio::spawn(async move { follow.follow(stopped).await });
    let mut next = async |wanted: &dyn Fn(&FenceRoster) -> bool| {
        let found =
            tokio::time::timeout(Duration::from_mins(1), roster.wait_for(|roster| wanted(roster))).await;
        found.expect("in time").expect("alive").clone()
    };

    swap("1", Some("nodes: {n1: {agent: sh}}\n"));
    let first = next(&|roster| roster.agents.len() == 1 && roster.problem.is_none()).await;
    swap("2", Some("nodes: {n1: {agent: no-such-agent}, n2: {agent: sh}}\n"));
    let broken = next(&|roster| roster.problem.is_some()).await;
    assert_eq!(broken.agents, first.agents);
    assert!(broken.problem.unwrap().contains("no-such-agent"));
    assert_eq!(live.agents().nodes().count(), 1);
    swap("3", None);
    let gone = next(&|roster| roster.problem.as_ref().is_some_and(|why| why.contains("cannot read"))).await;
    assert_eq!(gone.agents, first.agents);
    swap("4", Some("nodes: {n1: {agent: sh}, n2: {agent: sh}}\n"));
    next(&|roster| roster.agents.len() == 2 && roster.problem.is_none()).await;
    stop.cancel();
    following.await.unwrap();
}

#[tokio::test]
async fn a_dropped_run_leaves_no_process_behind() {
    let device = Device::new("sleep 600 &\necho $! > $folder/child\nwait");
    let run = device.fence(&[], AMPLE_MS);
    let appeared = async {
        while device.read("child").trim().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = run => panic!("ended by itself"),
        () = appeared => {}
    }
    let child = device.read("child").trim().to_owned();
    let gone = async {
        while fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the child lives on");
}

fn text(name: &str, value: &str) -> BTreeMap<String, OptionValue> {
    BTreeMap::from([(name.to_owned(), OptionValue::Text(value.to_owned()))])
}

fn spec(agent: &str, options: BTreeMap<String, OptionValue>, deadline_ms: Option<u64>) -> FenceSpec {
    FenceSpec {
        nodes: BTreeMap::from([(
            "n1".to_owned(),
            AgentSpec { agent: agent.to_owned(), options, deadline_ms, password_file: None },
        )]),
    }
}

fn refused(spec: FenceSpec) -> String {
    FenceAgents::checked(spec, Path::new(""), Duration::from_mins(1)).unwrap_err().to_string()
}

#[test]
fn a_file_is_read_with_the_values_that_yaml_makes() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("fence.yaml");
    let yaml = "nodes:\n  n1:\n    agent: sh\n    options: {ip: 10.0.9.1, ipport: 8000, ssl_insecure: true}\n    deadlineMs: 9000\n";
    fs::write(&file, yaml).unwrap();
    let agents = FenceAgents::read(&file, Duration::from_mins(1)).unwrap();
    let agent = &agents.agents[&NodeName::from("n1")];
    assert!(agent.program.is_absolute());
    assert_eq!(agent.deadline, Duration::from_secs(9));
    let expected = [("ip", "10.0.9.1"), ("ipport", "8000"), ("ssl_insecure", "1")];
    assert_eq!(agent.options, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn a_value_cannot_smuggle_an_option_in() {
    for hostile in ["10.0.9.1\naction=on", "a\rb", "a\0b"] {
        let why = refused(spec("sh", text("ip", hostile), None));
        assert!(why.contains("`ip`") && why.contains("n1"), "{why}");
    }
    for name in ["action", "nodename", "a=b", "", "a\nb", "#"] {
        let why = refused(spec("sh", text(name, "x"), None));
        assert!(why.contains("option"), "{name:?}: {why}");
    }
}

#[test]
fn a_program_that_is_not_there_is_refused_at_start() {
    for agent in ["no-such-fence-agent", "/no/such/agent", "", "./relative", "/etc/passwd"] {
        let why = refused(spec(agent, BTreeMap::new(), None));
        assert!(why.contains("n1"), "{agent:?}: {why}");
    }
}

#[test]
fn a_deadline_beyond_the_policy_is_refused_with_both_values() {
    for deadline in [0, 60_001] {
        let why = refused(spec("sh", BTreeMap::new(), Some(deadline)));
        assert!(why.contains(&deadline.to_string()) && why.contains("60000"), "{why}");
    }
}

#[test]
fn a_broken_file_is_named_and_its_secrets_are_not_shown() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("fence.yaml");
    let read = |yaml: &str| {
        fs::write(&file, yaml).unwrap();
        FenceAgents::read(&file, Duration::from_mins(1)).unwrap_err().to_string()
    };
    for yaml in [
        "nodes:\n  n1:\n    agent: sh\n    options: {passwd: hunter2}\n    unknown: 1\n",
        "nodes:\n  n1:\n    agent: sh\n    options: {passwd: hunter2\n",
        "nodes:\n  n1:\n    agent: sh\n    options: {passwd: [hunter2]}\n",
    ] {
        let why = read(yaml);
        assert!(why.contains("fence.yaml") && !why.contains("hunter2"), "{why}");
    }
    let missing = FenceAgents::read(Path::new("/no/such/file"), Duration::from_mins(1)).unwrap_err();
    assert!(missing.to_string().contains("/no/such/file"));
}

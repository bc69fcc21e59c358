//! The whole agent, over real connections, against a coordinator that a test controls.

mod support;

use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, SystemTime};

use somersault_agent::beat::{BeatConfig, Beats};
use somersault_proto::model::{
    FailureReason, FromAgent, Grade, Progress, ProgressState, Reachability, Report,
};
use somersault_proto::tls::TlsSource;
use somersault_proto::token::Claims;
use somersault_proto::v1;
use somersault_proto::v1::order::Kind;
use support::dead_mount::DeadMount;
use support::{Coordinator, FakeSmartctl, Heard, Manner, PATIENCE, World, fixture_host, free_address};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

const LEADS: Manner = Manner { grants: Some(Duration::from_millis(50)), epoch: 7, refuses: false };
const FOLLOWS: Manner = Manner { grants: None, epoch: 3, refuses: false };

fn probe(node: &str, address: &str, timeout_ms: u32) -> Kind {
    Kind::Probe(v1::Probe { node: node.to_owned(), address: address.to_string(), timeout_ms })
}

async fn probed(coordinator: &mut Coordinator, id: &str) -> Reachability {
    coordinator
        .said(|message| match message {
            FromAgent::Probe(answer) if answer.order == id => Some(answer.reachability),
            _ => None,
        })
        .await
}

fn reason(state: ProgressState) -> FailureReason {
    match state {
        ProgressState::Failed { reason, .. } => reason,
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_beats_at_the_granted_pace_and_says_goodbye() {
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, LEADS).await;
    let agent = world.agent("n1", &[coordinator.address]).start();
    let (began, first) = coordinator.beat().await;
    assert_eq!((first.node.as_str(), first.sequence, first.goodbye), ("n1", 1, false));
    assert_eq!(first.boot_id.as_str(), "3c9f6c1e-55a4-4f0e-9d8b-2f3a0c5d7e11");
    let mut last = first.sequence;
    let mut at = began;
    for _ in 0..20 {
        let (heard_at, beat) = coordinator.beat().await;
        assert_eq!(beat.sequence, last + 1);
        (last, at) = (beat.sequence, heard_at);
    }
    // 20 beats of 50 ms, where the agent's own pace would have taken 20 s.
    assert!(at - began < Duration::from_secs(10), "{:?}", at - began);
    assert!(at - began > Duration::from_millis(900), "{:?}", at - began);
    agent.stop().await.expect("a clean end");
    let goodbye = coordinator.hear(|_, heard| match heard {
        Heard::Beat(beat) if beat.goodbye => Some(beat),
        _ => None,
    });
    assert!(goodbye.await.sequence > last);
}

#[tokio::test(flavor = "multi_thread")]
async fn beats_go_on_without_grants_and_past_a_dead_replica() {
    let world = World::new();
    let mut follower = Coordinator::start(&world, FOLLOWS).await;
    let agent = world.agent("n1", &[free_address(), follower.address]).start();
    for sequence in 1..=3 {
        assert_eq!(follower.beat().await.1.sequence, sequence);
    }
    agent.stop().await.expect("a clean end");
}

/// A replica that is no more gets no goodbye: should it still lead, the node would count as stopped for minutes.
#[tokio::test(flavor = "multi_thread")]
async fn beats_follow_the_replicas() {
    let world = World::new();
    let (mut old, mut new) =
        (Coordinator::start(&world, LEADS).await, Coordinator::start(&world, LEADS).await);
    world.agent("n1", &[]);
    let (tell, coordinators) = tokio::sync::watch::channel(vec![old.address]);
    let beats = Beats::start(BeatConfig {
        node: "n1".parse().expect("a name"),
        boot_id: "3c9f6c1e-55a4-4f0e-9d8b-2f3a0c5d7e11".parse().expect("a boot id"),
        coordinators,
        lost: std::sync::Arc::default(),
        tls: TlsSource::read(&world.folder.path().join("n1")).expect("certificates"),
    })
    .expect("a thread");
    old.beat().await;
    tell.send_replace(vec![old.address, new.address]);
    assert_eq!(new.beat().await.1.sequence, 1);
    old.beat().await;
    tell.send_replace(vec![new.address]);
    let followed = async {
        while beats.shared().links().into_keys().ne([new.address]) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, followed).await.expect("one link");
    tokio::task::spawn_blocking(|| beats.stop()).await.expect("stopped");
    new.hear(|_, heard| matches!(heard, Heard::Beat(beat) if beat.goodbye).then_some(())).await;
    while let Ok((_, heard)) = old.heard.try_recv() {
        assert!(matches!(&heard, Heard::Beat(beat) if !beat.goodbye), "{heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_refuses_beats_is_asked_ever_more_slowly() {
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, Manner { refuses: true, ..LEADS }).await;
    let agent = world.agent("n1", &[coordinator.address]).start();
    let mut knocks = Vec::new();
    while knocks.len() < 8 {
        let knock = coordinator.hear(|at, heard| matches!(heard, Heard::Refused).then_some(at));
        knocks.push(knock.await);
    }
    // Pauses of 50, 100, 200, 400 and then 500 ms.
    assert!(knocks[7] - knocks[0] > Duration::from_millis(2200), "{:?}", knocks[7] - knocks[0]);
    agent.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_returns_to_a_coordinator_that_died() {
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, LEADS).await;
    let address = coordinator.address;
    let agent = world.agent("n1", &[address]).start();
    coordinator.beat().await;
    coordinator.kill();
    let mut again = Coordinator::start_at(&world, LEADS, address).await;
    let began = tokio::time::Instant::now();
    // Either may be back first.
    let (mut first_beat, mut session) = (None, false);
    while first_beat.is_none() || !session {
        match again.hear(|_, heard| Some(heard)).await {
            Heard::Beat(beat) if first_beat.is_none() => first_beat = Some(beat.sequence),
            Heard::Said(FromAgent::Hello(_)) => session = true,
            _ => {}
        }
    }
    assert_eq!(first_beat, Some(1), "a new stream counts anew");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    agent.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_tells_volumes_disks_and_the_host_and_follows_changes() {
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, LEADS).await;
    let agent = world.agent("n1", &[coordinator.address]).start();
    let hello = coordinator.session().await;
    assert_eq!(hello.address.as_str(), agent.address.to_string());
    let first = coordinator.report(|report| !report.disks.is_empty()).await;
    assert_eq!((first.roots.len(), first.volumes.len()), (1, 0));
    assert_eq!(first.roots[0].storage_class, "local-path");
    assert_eq!(first.roots[0].disk.as_deref(), Some("sda"));
    assert!(first.host.memory_total_bytes > 0);
    std::fs::create_dir(agent.root.join("pvc-1")).expect("created");
    std::fs::write(agent.root.join("pvc-1/disk.img"), [1; 5000]).expect("written");
    let second = coordinator.report(|report| !report.volumes.is_empty()).await;
    assert_eq!(second.volumes[0].path.as_str(), agent.root.join("pvc-1").to_str().expect("a path"));
    assert!(second.roots[0].size_bytes > 0 && !second.roots[0].read_only);
    agent.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_starts_to_fail_is_reported_at_once() {
    const HEALTHY: &str = r#"{"smartctl":{"exit_status":0},"device":{"type":"sat","protocol":"ATA"},"model_name":"DISK","serial_number":"S1","smart_status":{"passed":true}}"#;
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, LEADS).await;
    let smartctl = FakeSmartctl::new(HEALTHY);
    let program = smartctl.program();
    let agent = world
        .agent("n1", &[coordinator.address])
        .with("--smartctl", program.to_str().expect("a path"))
        .start();
    // The mount of the fixture that the root lies in has no ext4 counters, so the disk's word decides.
    let healthy = coordinator.report(|report| report.disks.iter().any(|disk| disk.grade == Grade::Ok)).await;
    assert_eq!((healthy.disks[0].name.as_str(), healthy.disks[0].serial.as_str()), ("sda", "S1"));
    smartctl.say(&HEALTHY.replace("\"passed\":true", "\"passed\":false"));
    let failing = coordinator.report(|report| report.disks[0].grade == Grade::Failing).await;
    assert_eq!(failing.disks[0].reasons, ["SmartFailingNow"]);
    agent.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_signal_of_the_kernel_reaches_the_report() {
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, LEADS).await;
    let host = world.folder.path().join("host");
    let copied = Command::new("cp").arg("-a").arg(fixture_host()).arg(&host).status().expect("cp runs");
    assert!(copied.success());
    let counter = host.join("sys/fs/ext4/sda2/errors_count");
    std::fs::create_dir_all(counter.parent().expect("a folder")).expect("created");
    std::fs::write(&counter, "0\n").expect("written");
    let part = |name: &str| host.join(name).to_str().expect("a path").to_owned();
    let agent = world.agent("n1", &[coordinator.address]);
    let agent = agent.with("--proc-root", &part("proc")).with("--sys-root", &part("sys")).start();
    let reasons = |report: &Report| report.disks.first().map(|disk| (disk.grade, disk.reasons.join(" ")));
    let shown = |grade, text: &str| Some((grade, format!("{text} SmartUnsupported")));

    coordinator.report(|report| reasons(report) == Some((Grade::Unknown, "SmartUnsupported".into()))).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_secs();
    std::fs::write(counter.with_file_name("last_error_time"), now.to_string()).expect("written");
    std::fs::write(&counter, "2\n").expect("written");
    coordinator.report(|r| reasons(r) == shown(Grade::Failing, "FilesystemErrorsGrowing")).await;
    let mountinfo = host.join("proc/self/mountinfo");
    let text = std::fs::read_to_string(&mountinfo).expect("read");
    std::fs::write(&mountinfo, text.replace("/dev/sda2 rw,", "/dev/sda2 rw,emergency_ro,")).expect("written");
    let both = "ReadOnlyAfterError FilesystemErrorsGrowing";
    coordinator.report(|r| reasons(r) == shown(Grade::Failed, both)).await;
    std::fs::remove_file(host.join("sys/dev/block/8:2")).expect("removed");
    let all = "DeviceGone ReadOnlyAfterError FilesystemErrorsGrowing";
    coordinator.report(|r| reasons(r) == shown(Grade::Failed, all)).await;
    agent.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_mount_delays_neither_beats_nor_reports() {
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, LEADS).await;
    let agent = world.agent("n1", &[coordinator.address]);
    let dead = world.folder.path().join("dead");
    std::fs::create_dir(&dead).expect("created");
    let Some(_mount) = DeadMount::new(&dead) else { return };
    std::fs::create_dir(agent.root.join("pvc-1")).expect("created");
    let flag = format!("nfs={}", dead.display());
    let agent = agent.with("--shared-root", &flag).start();
    let report = coordinator.report(|report| !report.volumes.is_empty()).await;
    let sizes: Vec<_> = report.roots.iter().map(|root| root.size_bytes > 0).collect();
    assert_eq!(sizes, [true, false], "the dead root has no room");
    let first = coordinator.beat().await.1.sequence;
    assert_eq!(coordinator.beat().await.1.sequence, first + 1);
    agent.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_pulled_on_order_and_its_end_is_remembered() {
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, LEADS).await;
    // A report comes after the Welcome, and with it the key that tokens are checked by.
    let source = world.agent("n1", &[coordinator.address]).start();
    coordinator.report(|_| true).await;
    let target = world.agent("n2", &[coordinator.address]).start();
    coordinator.report(|report| report.roots[0].path.as_str() == target.root.to_str().expect("a path")).await;
    let volume = source.root.join("pvc-1");
    std::fs::create_dir(&volume).expect("created");
    let image = std::fs::File::create(volume.join("disk.img")).expect("created");
    image.set_len(64 << 20).expect("grown");
    image.write_all_at(&vec![7; 3 << 20], 32 << 20).expect("written");

    let claims = Claims {
        job: "m1-disk".to_owned(),
        source_node: "n1".parse().expect("a name"),
        target_node: "n2".parse().expect("a name"),
        source_path: volume.to_str().expect("a path").parse().expect("a path"),
        exp: u64::MAX >> 12,
    };
    let pull = v1::Pull {
        transfer: claims.job.clone(),
        source_node: "n1".to_owned(),
        source_address: source.address.to_string(),
        source_path: claims.source_path.to_string(),
        target_path: target.root.join("pvc-1").display().to_string(),
        token: coordinator.signer.sign(&claims).expect("signed"),
        r#final: true,
        rate_limit_bytes_per_s: 0,
        accept_unreadable: false,
    };
    // Orders go to every session here; the source refuses, since it is not the node that the token names.
    coordinator.order("pull-1", Kind::Pull(pull.clone()));
    let done = coordinator
        .said(|message| match message {
            FromAgent::Progress(Progress { order, state: state @ ProgressState::Done { .. } })
                if order == "pull-1" =>
            {
                Some(state)
            }
            _ => None,
        })
        .await;
    let copy = std::fs::read(target.root.join("pvc-1/disk.img")).expect("the copy");
    assert!(copy == std::fs::read(volume.join("disk.img")).expect("the original"), "the copy differs");
    coordinator.order("pull-1", Kind::Pull(pull));
    let again = coordinator
        .said(|message| match message {
            FromAgent::Progress(Progress { state: state @ ProgressState::Done { .. }, .. }) => Some(state),
            _ => None,
        })
        .await;
    assert_eq!(again, done);
    source.stop().await.expect("a clean end");
    target.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_tells_the_agent_the_kernel_and_silence_apart() {
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, LEADS).await;
    let one = world.agent("n1", &[coordinator.address]).start();
    coordinator.session().await;
    let two = world.agent("n2", &[free_address()]).start();
    // n2 may still be starting; the order is new each time, since a repeated one is answered from the book.
    let mut answer = Reachability::Silent;
    for attempt in 0..100 {
        let id = format!("alive-{attempt}");
        coordinator.order(&id, probe("n2", &two.address.to_string(), 5000));
        answer = probed(&mut coordinator, &id).await;
        if answer == Reachability::Agent {
            break;
        }
    }
    assert_eq!(answer, Reachability::Agent);
    coordinator.order("wrong-name", probe("n3", &two.address.to_string(), 5000));
    assert_eq!(probed(&mut coordinator, "wrong-name").await, Reachability::Kernel, "its certificate says n2");
    coordinator.order("closed", probe("n2", &free_address().to_string(), 5000));
    assert_eq!(probed(&mut coordinator, "closed").await, Reachability::Kernel);
    let (deaf, _queue) = deaf_address().await;
    coordinator.order("nowhere", probe("n2", &deaf.to_string(), 200));
    assert_eq!(probed(&mut coordinator, "nowhere").await, Reachability::Silent);
    one.stop().await.expect("a clean end");
    two.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_refused_with_a_reason_and_repeated_ones_answered() {
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, LEADS).await;
    let agent = world.agent("n1", &[coordinator.address]).start();
    coordinator.session().await;
    let stop = || Kind::StopLaunchers(v1::StopLaunchers { pod_uids: vec!["uid-1".to_owned()] });
    for _ in 0..2 {
        coordinator.order("stop", stop());
        assert_eq!(reason(coordinator.outcome("stop").await).to_string(), "NotSupported");
    }
    coordinator.order_of(LEADS.epoch - 1, "old", stop());
    assert_eq!(reason(coordinator.outcome("old").await), FailureReason::StaleEpoch);
    coordinator.order("senseless", probe("n2", "no address", 1000));
    assert_eq!(reason(coordinator.outcome("senseless").await), FailureReason::OrderRefused);
    let pull = v1::Pull {
        transfer: "t1".to_owned(),
        source_node: "n2".to_owned(),
        source_address: "127.0.0.1:1".to_owned(),
        source_path: "/srv/v".to_owned(),
        target_path: "/etc/passwd".to_owned(),
        token: "a.b.c".to_owned(),
        r#final: true,
        rate_limit_bytes_per_s: 0,
        accept_unreadable: false,
    };
    coordinator.order("pull", Kind::Pull(pull));
    let outcome = coordinator.outcome("pull").await;
    assert_eq!(reason(outcome), FailureReason::OrderRefused, "its token is none");
    agent.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_disturbs_nobody() {
    let world = World::new();
    let mut coordinator = Coordinator::start(&world, LEADS).await;
    let admin = free_address();
    let agent = world.agent("n1", &[coordinator.address]).with("--admin-listen", &admin.to_string()).start();
    coordinator.session().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &vec![0xff; 100_000], b"\x16\x03\x01\xff\xff"] {
        let mut stream = TcpStream::connect(agent.address).await.expect("connected");
        // The agent may hang up before it has read everything.
        let _sent = stream.write_all(garbage).await;
        let _ended = timeout(Duration::from_millis(200), stream.read(&mut [0; 64])).await;
    }
    let page = get(admin, "/metrics").await;
    assert!(page.contains("somersault_agent_beat_connected{node=\"n1\",coordinator=\""), "{page}");
    assert!(
        page.contains("somersault_device_health_status{node=\"n1\",disk=\"sda\",status=\"Unknown\"} 1"),
        "{page}"
    );
    assert!(page.contains("# EOF"), "{page}");
    let health = get(admin, "/healthz").await;
    assert!(health.ends_with("ok\n"), "{health}");
    let before = coordinator.beat().await.1.sequence;
    assert!(coordinator.beat().await.1.sequence > before);
    agent.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_foreign_certificate_does_not_start() {
    let world = World::new();
    let other = world.agent("n2", &[free_address()]);
    let certs = world.folder.path().join("n2");
    drop(other);
    let agent = world.agent("n1", &[free_address()]).with("--certs", certs.to_str().expect("a path")).start();
    let error = agent.stop().await.expect_err("refused").to_string();
    assert!(error.contains("n1") && error.contains("n2.node.somersault"), "{error}");
}

/// An address that answers nothing, like that of a dead machine: its queue of connections is full.
async fn deaf_address() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let listener = socket.listen(1).expect("listens");
    let address = listener.local_addr().expect("an address");
    let mut queue = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
        queue.push(stream);
    }
    (address, (listener, queue))
}

async fn get(address: SocketAddr, path: &str) -> String {
    let asking = async {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut page = String::new();
        stream.read_to_string(&mut page).await.expect("read");
        page
    };
    timeout(PATIENCE, asking).await.expect("an answer")
}

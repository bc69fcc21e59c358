//! Kill anything at any moment: the next order goes on, sends little again, and ends exact.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use somersault_agent::transfer::{PullProgress, PullRequest, TransferConfig, Transfers};
use somersault_agent_core::transfer::{Leaf, replay};
use somersault_proto::tls::TlsSource;
use tokio::sync::watch;

use super::world::*;

const SIZE: u64 = 256 * MIB;

/// Slow enough to be stopped in the middle.
fn slow(order: PullRequest) -> PullRequest {
    PullRequest { rate_limit_bytes_per_s: Some(SIZE / 2), ..order }
}

/// What is sent again may be 2 % of the volume.
fn assert_resumed(sent_bytes: u64, done_before: u64) {
    assert!(
        sent_bytes <= SIZE - done_before + SIZE / 50,
        "{sent_bytes} sent, {done_before} of {SIZE} were done"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_copy_goes_on() {
    for base in bases() {
        let world = World::on(&base, &quick());
        make_volume(&world.source.path("pvc-1"), SIZE, &[(0, SIZE)], 1);
        let done = world.pull_part(slow(world.order("t1", "pvc-1")), SIZE / 4).await;
        let more = world.pull_part(slow(world.order("t1", "pvc-1")), done + SIZE / 8).await;
        let last = world.pull(world.order("t1", "pvc-1")).await.expect("copied");
        assert_resumed(last.sent_bytes, more);
        assert_same(&world.source.path("pvc-1"), &world.target.path("pvc-1"));
    }
}

/// What a child process is told in [`CHILD`].
#[derive(Serialize, Deserialize)]
struct Task {
    node: String,
    certs: PathBuf,
    root: PathBuf,
    key: [u8; 32],
    /// A target with its order, else a source.
    pull: Option<Pull>,
}

#[derive(Serialize, Deserialize)]
struct Pull {
    transfer: String,
    source_address: String,
    source_path: String,
    target_path: String,
    token: String,
    final_copy: bool,
}

const CHILD: &str = "SOMERSAULT_TRANSFER_TEST_CHILD";

/// Runs only as a child of the tests below: an agent in a process of its own, to be killed.
#[test]
#[ignore = "a process that other tests start"]
fn child() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let task: Task = serde_json::from_str(&task).expect("a task");
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        let tls = TlsSource::read(&task.certs).expect("certificates");
        let config = TransferConfig {
            roots: vec![(task.root, 1)],
            pods: None,
            tls: tls.clone(),
            node: node(&task.node),
        };
        let transfers = Transfers::with_limits(config, quick());
        transfers.set_token_key("c0", task.key);
        let Some(pull) = task.pull else {
            let (address, server) = serve(&tls, transfers.service());
            println!("serves {address}");
            server.await.expect("serves until it is killed");
            return;
        };
        let order = slow(PullRequest {
            transfer: pull.transfer,
            source_node: node("n1"),
            source_address: pull.source_address.parse().expect("an address"),
            source_path: pull.source_path.parse().expect("a path"),
            target_path: pull.target_path.parse().expect("a path"),
            token: pull.token,
            final_copy: pull.final_copy,
            rate_limit_bytes_per_s: None,
            accept_unreadable: false,
        });
        let (told, mut progress) = watch::channel(PullProgress::default());
        let copy = tokio::spawn(transfers.pull(order, told));
        while progress.changed().await.is_ok() {
            println!("done {}", progress.borrow().done_bytes);
        }
        match copy.await.expect("ran") {
            Ok(_) => println!("copied"),
            Err(error) => println!("failed {}: {}", error.reason(), error.message()),
        }
    });
}

/// Starts a child and reads its lines.
fn spawn(task: &Task) -> (Child, impl Iterator<Item = String>) {
    spawn_by(Command::new(std::env::current_exe().expect("this test")), task)
}

fn spawn_by(mut command: Command, task: &Task) -> (Child, impl Iterator<Item = String>) {
    let mut child = command
        .args(["--exact", "resume::child", "--ignored", "--nocapture"])
        .env(CHILD, serde_json::to_string(task).expect("text"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    (child, lines.map_while(Result::ok))
}

fn kill(mut child: Child) {
    child.kill().expect("killed");
    child.wait().expect("reaped");
}

fn number(line: &str) -> Option<u64> {
    line.strip_prefix("done ")?.parse().ok()
}

/// The target of this order as a child.
fn pulling(world: &World, order: &PullRequest) -> Task {
    Task {
        node: "n2".into(),
        certs: world.certs.path().join("n2"),
        root: world.target.root.path().to_owned(),
        key: world.signer.public_key(),
        pull: Some(Pull {
            transfer: order.transfer.clone(),
            source_address: order.source_address.to_string(),
            source_path: order.source_path.to_string(),
            target_path: order.target_path.to_string(),
            token: order.token.clone(),
            final_copy: order.final_copy,
        }),
    }
}

/// As on an NFS export that squashes root: found out before anybody stops a VM for the final copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_takes_no_owner_fails_the_pre_copy_already() {
    let world = World::new();
    let volume = world.source.path("pvc-1");
    make_volume(&volume, 4 * MIB, &[(0, 4 * MIB)], 1);
    std::os::unix::fs::chown(volume.join("disk.img"), Some(107), Some(107)).expect("changed");
    let task = pulling(&world, &world.pre_copy("t1", "pvc-1"));
    let failed = tokio::task::block_in_place(|| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-chown", "--inh-caps=-chown", "--"]);
        command.arg(std::env::current_exe().expect("this test"));
        let (child, mut lines) = spawn_by(command, &task);
        let end = lines.find(|line| line.starts_with("failed") || line.starts_with("copied")).expect("ends");
        kill(child);
        end
    });
    assert!(failed.contains("cannot set the owner") && failed.contains("no_root_squash"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_target_goes_on() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), SIZE, &[(0, SIZE)], 3);
    let order = world.order("t1", "pvc-1");
    let task = pulling(&world, &order);
    let done = tokio::task::block_in_place(|| {
        let (child, mut lines) = spawn(&task);
        let done = lines.find_map(|line| number(&line).filter(|done| *done > SIZE / 4)).expect("goes on");
        kill(child);
        done
    });
    assert!(!world.target.path("pvc-1").exists());
    let last = world.pull(order).await.expect("copied");
    assert_resumed(last.sent_bytes, done);
    assert_same(&world.source.path("pvc-1"), &world.target.path("pvc-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_source_is_met_again_in_its_next_life() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), SIZE, &[(0, SIZE)], 4);
    let task = Task {
        node: "n1".into(),
        certs: world.certs.path().join("n1"),
        root: world.source.root.path().to_owned(),
        key: world.signer.public_key(),
        pull: None,
    };
    let start = || {
        let (child, mut lines) = spawn(&task);
        // The test harness may have begun the line.
        let address = lines.find_map(|line| Some(line.split_once("serves ")?.1.to_owned())).expect("serves");
        let mut order = world.order("t1", "pvc-1");
        order.source_address = address.parse().expect("an address");
        (child, order)
    };
    let (first, order) = tokio::task::block_in_place(start);
    let (told, mut progress) = watch::channel(PullProgress::default());
    let copy = tokio::spawn(world.target.transfers.pull(slow(order), told));
    let done = progress.wait_for(|seen| seen.done_bytes > SIZE / 4).await.expect("goes on").done_bytes;
    kill(first);
    assert_eq!(copy.await.expect("ended").expect_err("broken").reason(), "SourceUnreachable");
    let (second, order) = tokio::task::block_in_place(start);
    let last = world.pull(order).await.expect("copied");
    kill(second);
    assert_resumed(last.sent_bytes, done);
    assert_same(&world.source.path("pvc-1"), &world.target.path("pvc-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_another_source_is_not_believed() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), 32 * MIB, &[(0, 32 * MIB)], 1);
    make_volume(&world.source.path("pvc-2"), 32 * MIB, &[(0, 32 * MIB)], 2);
    world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
    let mut order = world.order("t1", "pvc-2");
    order.target_path = text(&world.target.path("new")).parse().expect("a path");
    world.pull(order).await.expect("copied");
    assert_same(&world.source.path("pvc-2"), &world.target.path("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_lost_what_was_written_is_found_out() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), 64 * MIB, &[(0, 64 * MIB)], 1);
    world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
    // Behind the journal's back, and with the old times: only reading tells.
    scribble(&world.target.path(".somersault-t1.partial/data/disk.img"), 3, 9);
    let done = world.pull(world.order("t1", "pvc-1")).await.expect("copied");
    assert!(done.sent_bytes > 0 && done.sent_bytes <= 6 * MIB, "{done:?}");
    assert_same(&world.source.path("pvc-1"), &world.target.path("pvc-1"));
}

/// Where a filesystem's holes are not trusted, only the journal tells that what was in a chunk is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_became_a_hole_is_one_in_the_journal_too() {
    let world = World::new();
    let volume = world.source.path("pvc-1");
    make_volume(&volume, 8 * MIB, &[(0, 8 * MIB)], 1);
    world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
    std::fs::remove_dir_all(&volume).expect("removed");
    make_volume(&volume, 8 * MIB, &[(0, 2 * MIB), (5 * MIB, 3 * MIB)], 1);
    world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
    let journal = std::fs::read(world.target.path(".somersault-t1.partial/journal")).expect("there");
    let image = replay(&journal).expect("valid").take(b"disk.img").expect("noted").held;
    let holes: Vec<u64> = (0..8).filter(|chunk| image.leaf(*chunk) == Leaf::ZERO).collect();
    assert_eq!(holes, [2, 3, 4]);
    assert!((0..8).all(|chunk| image.is_read_back(chunk)), "all of it was read back");
}

/// What happens to a partial copy while nobody looks.
#[derive(Clone, Debug)]
enum Damage {
    FlipJournal(prop::sample::Index, u8),
    CutJournal(prop::sample::Index),
    GrowJournal(Vec<u8>),
    RemoveJournal,
    FlipData(prop::sample::Index, u8),
    ResizeData(u64),
    RemoveData,
    StrangeData,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, flip)| Damage::FlipJournal(at, flip)),
        any::<prop::sample::Index>().prop_map(Damage::CutJournal),
        prop::collection::vec(any::<u8>(), 1..100).prop_map(Damage::GrowJournal),
        Just(Damage::RemoveJournal),
        (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, flip)| Damage::FlipData(at, flip)),
        (0..20 * MIB).prop_map(Damage::ResizeData),
        Just(Damage::RemoveData),
        Just(Damage::StrangeData),
    ]
}

fn flip(path: &Path, at: prop::sample::Index, mask: u8) {
    let file = std::fs::File::options().read(true).write(true).open(path).expect("open");
    let size = usize::try_from(file.metadata().expect("there").len()).expect("small");
    let at = at.index(size) as u64;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ mask], at).expect("written");
}

fn inflict(partial: &Path, damage: &Damage) {
    let (journal, data) = (partial.join("journal"), partial.join("data"));
    let image = data.join("disk.img");
    let open = |path| std::fs::File::options().write(true).open(path).expect("open");
    match damage {
        Damage::FlipJournal(at, mask) => flip(&journal, *at, *mask),
        Damage::CutJournal(at) => {
            let size = std::fs::metadata(&journal).expect("there").len();
            open(&journal).set_len(at.index(usize::try_from(size).expect("small")) as u64).expect("cut");
        }
        Damage::GrowJournal(bytes) => {
            let size = std::fs::metadata(&journal).expect("there").len();
            open(&journal).write_all_at(bytes, size).expect("written");
        }
        Damage::RemoveJournal => std::fs::remove_file(&journal).expect("removed"),
        Damage::FlipData(at, mask) => flip(&image, *at, *mask),
        Damage::ResizeData(size) => open(&image).set_len(*size).expect("set"),
        Damage::RemoveData => std::fs::remove_dir_all(&data).expect("removed"),
        Damage::StrangeData => {
            std::fs::remove_file(&image).expect("removed");
            std::os::unix::fs::symlink("/etc/passwd", &image).expect("linked");
            std::fs::create_dir(data.join("stranger")).expect("made");
            std::os::unix::fs::symlink("/etc", data.join("stranger/etc")).expect("linked");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_damaged_partial_copy_still_ends_exact(damage in damage(), changes in any::<bool>(), of_final in any::<bool>()) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let world = World::new();
            let volume = world.source.path("pvc-1");
            make_volume(&volume, 12 * MIB + 99, &[(0, 4 * MIB), (7 * MIB, 5 * MIB + 99)], 1);
            if of_final {
                let mut slow = world.order("t1", "pvc-1");
                slow.rate_limit_bytes_per_s = Some(16 * MIB);
                world.pull_part(slow, MIB).await;
            } else {
                world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
            }
            let partial = world.target.path(".somersault-t1.partial");
            inflict(&partial, &damage);
            if changes {
                scribble(&volume.join("disk.img"), 2, 3);
            }
            world.pull(world.order("t1", "pvc-1")).await.expect("copied");
            assert_same(&volume, &world.target.path("pvc-1"));
        });
    }
}

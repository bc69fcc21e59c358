//! What arrives is what was there, and no more crosses the wire or lands on the disk than must.

use std::num::NonZeroU64;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, mknodat};
use somersault_agent::transfer::{Limits, PullProgress, PullRequest};
use somersault_proto::model::CopyRates;
use tokio::sync::watch;

use super::world::*;

fn set_owner(path: &Path, uid: u32) {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(uid), Some(uid)).expect("changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_arrives_exactly_with_its_metadata() {
    for base in bases() {
        let world = World::on(&base, &quick());
        let volume = world.source.path("pvc-1");
        make_volume(&volume, 37 * MIB + 4321, &[(0, 3 * MIB), (20 * MIB + 5, 2 * MIB), (37 * MIB, 4321)], 1);
        std::fs::create_dir_all(volume.join("deep/er")).expect("made");
        std::fs::write(volume.join("deep/er/note"), "a note").expect("written");
        std::fs::write(volume.join("deep/empty"), "").expect("written");
        std::fs::set_permissions(volume.join("disk.img"), PermissionsExt::from_mode(0o660)).expect("set");
        std::fs::set_permissions(volume.join("deep"), PermissionsExt::from_mode(0o2751)).expect("set");
        set_owner(&volume.join("disk.img"), 107);
        set_owner(&volume.join("deep/er/note"), 1000);
        let done = world.pull(world.order("t1", "pvc-1")).await.expect("copied");
        assert_same(&volume, &world.target.path("pvc-1"));
        assert!(done.sent_bytes <= 8 * MIB, "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_and_zeroes_cost_nothing() {
    for base in bases() {
        let world = World::on(&base, &quick());
        let volume = world.source.path("pvc-1");
        make_volume(&volume, 1024 * MIB, &[(0, 4096), (500 * MIB + 77, 100_000), (1023 * MIB, MIB)], 2);
        // Allocated, and yet nothing but zeroes.
        let zeroes = vec![0; usize::try_from(16 * MIB).expect("small")];
        let file = std::fs::File::options().write(true).open(volume.join("disk.img")).expect("open");
        std::os::unix::fs::FileExt::write_all_at(&file, &zeroes, 100 * MIB).expect("written");
        let done = world.pull(world.order("t1", "pvc-1")).await.expect("copied");
        assert_same(&volume, &world.target.path("pvc-1"));
        assert!(done.sent_bytes <= 5 * MIB, "{done:?}");
        let (there, here) = (volume.join("disk.img"), world.target.path("pvc-1").join("disk.img"));
        assert!(allocated(&here) <= allocated(&there), "{} of {}", allocated(&here), allocated(&there));
        assert!(allocated(&here) <= 4 * MIB);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_volume_and_an_empty_file_arrive() {
    let world = World::new();
    std::fs::create_dir(world.source.path("pvc-1")).expect("made");
    world.pull(world.order("t1", "pvc-1")).await.expect("copied");
    assert_same(&world.source.path("pvc-1"), &world.target.path("pvc-1"));
    make_volume(&world.source.path("pvc-2"), 0, &[], 1);
    // A provisioner may have made the folder already.
    std::fs::create_dir(world.target.path("pvc-2")).expect("made");
    world.pull(world.order("t2", "pvc-2")).await.expect("copied");
    assert_same(&world.source.path("pvc-2"), &world.target.path("pvc-2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_final_copy_sends_what_the_guest_wrote_since() {
    for base in bases() {
        let world = World::on(&base, &quick());
        let volume = world.source.path("pvc-1");
        make_volume(&volume, 200 * MIB, &[(0, 128 * MIB)], 3);
        let first = world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
        assert_eq!(first.sent_bytes, 128 * MIB);
        assert!(!world.target.path("pvc-1").exists(), "a pre-copy publishes nothing");
        scribble(&volume.join("disk.img"), 3, 4);
        let second = world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
        assert!(
            (1..=6 * BLOCK).contains(&second.sent_bytes),
            "each place is in one block or two: {second:?}"
        );
        let third = world.pull(world.order("t1", "pvc-1")).await.expect("copied");
        assert_eq!(third.sent_bytes, 0, "{third:?}");
        assert_same(&volume, &world.target.path("pvc-1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hashes_of_blocks_that_are_lost_or_wrong_only_cost_whole_chunks() {
    let spoil: [fn(&Path); 3] = [
        |kept| std::fs::remove_file(kept).expect("removed"),
        |kept| scribble(kept, 1000, 7),
        |kept| std::fs::write(kept, "short").expect("written"),
    ];
    for spoil in spoil {
        let world = World::new();
        let volume = world.source.path("pvc-1");
        make_volume(&volume, 40 * MIB, &[(0, 30 * MIB)], 3);
        world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
        let partial = std::fs::read_dir(world.target.path(".somersault-t1.partial")).expect("there");
        let kept = partial.map(|item| item.expect("listed").path());
        let kept = kept.filter(|path| path.to_str().is_some_and(|path| path.contains("blocks-")));
        spoil(&kept.last().expect("one file of hashes"));
        scribble(&volume.join("disk.img"), 3, 4);
        let last = world.pull(world.order("t1", "pvc-1")).await.expect("copied");
        assert!((1..=6 * MIB).contains(&last.sent_bytes), "{last:?}");
        assert_same(&volume, &world.target.path("pvc-1"));
        let left = std::fs::read_dir(world.target.path(".somersault-t1.partial")).expect("there");
        let left: Vec<_> = left.map(|item| item.expect("listed").file_name()).collect();
        assert_eq!(left, ["journal"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn growth_shrinking_new_and_removed_files_are_followed() {
    let world = World::new();
    let volume = world.source.path("pvc-1");
    make_volume(&volume, 20 * MIB + 500, &[(0, 20 * MIB + 500)], 5);
    std::fs::write(volume.join("gone"), "soon").expect("written");
    std::fs::create_dir(volume.join("turns")).expect("made");
    std::fs::write(volume.join("turns/file"), "x").expect("written");
    world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
    let sizes = [9 * MIB + 17, 33 * MIB + 1, 33 * MIB, 12 * MIB + 4096];
    for (round, size) in sizes.into_iter().enumerate() {
        let file = std::fs::File::options().write(true).open(volume.join("disk.img")).expect("open");
        file.set_len(size).expect("set");
        scribble(&volume.join("disk.img"), 2, 6);
        std::fs::write(volume.join(format!("new-{round}")), vec![7; 100 * round]).expect("written");
        if round == 0 {
            std::fs::remove_file(volume.join("gone")).expect("removed");
            std::fs::remove_dir_all(volume.join("turns")).expect("removed");
            std::fs::write(volume.join("turns"), "a file now").expect("written");
        }
        world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
    }
    world.pull(world.order("t1", "pvc-1")).await.expect("copied");
    assert_same(&volume, &world.target.path("pvc-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_became_a_hole_is_a_hole_here_too() {
    let world = World::new();
    let volume = world.source.path("pvc-1");
    make_volume(&volume, 64 * MIB, &[(0, 64 * MIB)], 5);
    world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
    let file = std::fs::File::options().write(true).open(volume.join("disk.img")).expect("open");
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, MIB + 5, 40 * MIB).expect("punched");
    world.pull(world.order("t1", "pvc-1")).await.expect("copied");
    assert_same(&volume, &world.target.path("pvc-1"));
    assert!(allocated(&world.target.path("pvc-1").join("disk.img")) <= 26 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_order_is_done_at_once() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), 16 * MIB, &[(0, 16 * MIB)], 6);
    let first = world.pull(world.order("t1", "pvc-1")).await.expect("copied");
    let again = world.pull(world.order("t1", "pvc-1")).await.expect("done");
    assert_eq!((again.root_hash, again.sent_bytes), (first.root_hash, 0));
    // Another transfer, or a lost journal: the content itself is compared.
    let other = world.pull(world.order("t2", "pvc-1")).await.expect("done");
    assert_eq!((other.root_hash, other.sent_bytes), (first.root_hash, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_copy_that_became_stale_is_made_anew() {
    let world = World::new();
    let volume = world.source.path("pvc-1");
    make_volume(&volume, 32 * MIB, &[(0, 32 * MIB)], 6);
    world.pull(world.order("t1", "pvc-1")).await.expect("copied");
    scribble(&volume.join("disk.img"), 1, 7);
    let again = world.pull(world.order("t1", "pvc-1")).await.expect("copied");
    assert!(again.sent_bytes <= 2 * MIB, "{again:?}");
    assert_same(&volume, &world.target.path("pvc-1"));
    assert_eq!(
        world.pull(world.pre_copy("t1", "pvc-1")).await.expect_err("refused").reason(),
        "TargetExists"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_at_the_target_is_ever_overwritten() {
    let world = World::new();
    let (there, here) = (world.source.path("pvc-1"), world.target.path("pvc-1"));
    make_volume(&there, 8 * MIB, &[(0, 8 * MIB)], 6);
    make_volume(&here, 8 * MIB, &[(0, 8 * MIB)], 7);
    let error = world.pull(world.order("t1", "pvc-1")).await.expect_err("refused");
    assert_eq!(error.reason(), "TargetExists");
    // Published by us, and written to since by the VM that was started on it.
    make_volume(&world.source.path("pvc-2"), 8 * MIB, &[(0, 8 * MIB)], 8);
    world.pull(world.order("t2", "pvc-2")).await.expect("copied");
    scribble(&world.target.path("pvc-2").join("disk.img"), 1, 9);
    scribble(&world.source.path("pvc-2").join("disk.img"), 1, 10);
    let before = std::fs::read(world.target.path("pvc-2").join("disk.img")).expect("read");
    let error = world.pull(world.order("t2", "pvc-2")).await.expect_err("refused");
    assert_eq!(error.reason(), "TargetExists");
    assert!(std::fs::read(world.target.path("pvc-2").join("disk.img")).expect("read") == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_lost_fails_with_its_path() {
    let world = World::new();
    let volume = world.source.path("pvc-1");
    make_volume(&volume, MIB, &[(0, MIB)], 1);
    let odd = volume.join("odd");
    let refused = async |what: &str| {
        let error = world.pull(world.order("t1", "pvc-1")).await.expect_err(what);
        assert_eq!(error.reason(), "SourceUnsupported", "{what}: {error}");
        assert!(error.message().contains("odd"), "{what}: {error}");
        std::fs::remove_file(&odd).expect("removed");
    };
    drop(std::os::unix::net::UnixListener::bind(&odd).expect("bound"));
    refused("a socket").await;
    let outside = world.source.path("outside");
    std::fs::write(&odd, "shared").expect("written");
    std::fs::hard_link(&odd, &outside).expect("linked");
    refused("a name outside of the volume").await;
    if rustix::process::geteuid().is_root() {
        let device = rustix::fs::makedev(1, 3);
        mknodat(rustix::fs::CWD, &odd, rustix::fs::FileType::CharacterDevice, Mode::RUSR, device)
            .expect("made");
        refused("a device node").await;
    }
    assert!(!world.target.path("pvc-1").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_written_to_fails_a_final_copy_and_not_a_pre_copy() {
    let world = World::new();
    let volume = world.source.path("pvc-1");
    make_volume(&volume, 48 * MIB, &[(0, 48 * MIB)], 1);
    let image = volume.join("disk.img");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seed = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                seed += 1;
                scribble(&image, 1, seed);
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                world.pull(world.pre_copy("t1", "pvc-1")).await.expect("copied");
                let error = world.pull(world.order("t1", "pvc-1")).await.expect_err("changing");
                assert_eq!(error.reason(), "SourceChanged", "{error}");
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            });
        });
    });
    assert!(!world.target.path("pvc-1").exists());
    world.pull(world.order("t1", "pvc-1")).await.expect("copied");
    assert_same(&volume, &world.target.path("pvc-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_sources_and_paths_outside_the_roots_are_refused() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), MIB, &[(0, MIB)], 1);
    assert_eq!(world.pull(world.order("t", "gone")).await.expect_err("missing").reason(), "SourceMissing");
    let mut order = world.order("t", "pvc-1");
    order.target_path = "/etc/pvc-1".parse().expect("a path");
    assert_eq!(world.pull(order).await.expect_err("outside").reason(), "PathNotAllowed");
    let mut order = world.order("t", "pvc-1");
    order.source_path = "/etc/ssl".parse().expect("a path");
    let claims =
        somersault_proto::token::Claims { source_path: order.source_path.clone(), ..world.claims("t", "x") };
    order.token = world.signer.sign(&claims).expect("signed");
    let error = world.pull(order).await.expect_err("outside");
    assert_eq!(error.reason(), "SourceRefused");
    assert!(error.message().contains("storage root"), "{error}");
    for transfer in ["", "a/b", "..\0", &"x".repeat(300)] {
        let order = world.order(transfer, "pvc-1");
        assert_eq!(world.pull(order).await.expect_err(transfer).reason(), "OrderRefused", "{transfer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_lie_deeper_are_copied_from_there_and_removed_and_no_copy_is_put_there() {
    let world = World::new();
    let deep = format!("{DEEP}/claim/pvc-1");
    make_volume(&world.source.path(&deep), 3 * MIB, &[(0, MIB)], 1);
    std::fs::create_dir_all(world.target.path(DEEP).join("claim")).expect("made");
    let order = world.order("t", &deep);
    assert_eq!(world.pull(order.clone()).await.expect_err("no copy there").reason(), "PathNotAllowed");
    let target_path = text(&world.target.path("pvc-1")).parse().expect("a path");
    world.pull(PullRequest { target_path, ..order }).await.expect("copied");
    assert_same(&world.source.path(&deep), &world.target.path("pvc-1"));

    let path = text(&world.source.path(&deep));
    world.source.transfers.remove(&path).await.expect("removed");
    assert!(!world.source.path(&deep).exists());
    std::fs::remove_dir(world.source.path(&deep).parent().expect("the claim's")).expect("empty");
    world.source.transfers.remove(&path).await.expect("is gone already, with the folder around it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_copy_tells_its_progress_and_can_be_cancelled() {
    let world = World::on(&std::env::temp_dir(), &Limits::default());
    make_volume(&world.source.path("pvc-1"), 256 * MIB, &[(0, 256 * MIB)], 1);
    let mut order = world.order("t1", "pvc-1");
    order.rate_limit_bytes_per_s = Some(16 * MIB);
    let (told, mut progress) = watch::channel(PullProgress::default());
    let copy = tokio::spawn(world.target.transfers.pull(order.clone(), told));
    progress.wait_for(|seen| seen.done_bytes >= 4 * MIB).await.expect("goes on");
    let seen = *progress.borrow();
    assert_eq!(seen.total_bytes, 256 * MIB);
    assert!(seen.rate_bytes_per_s > 0 && seen.done_bytes < 128 * MIB, "{seen:?}");
    let asked = std::time::Instant::now();
    world.target.transfers.cancel("t1", false, None).await.expect("told");
    assert_eq!(copy.await.expect("ended").expect_err("cancelled").reason(), "Cancelled");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let partial = world.target.path(".somersault-t1.partial");
    assert!(partial.join("journal").exists());

    // What had arrived is not sent again.
    order.rate_limit_bytes_per_s = None;
    let done = world.pull(order).await.expect("copied");
    assert!(done.sent_bytes <= 252 * MIB, "{done:?}");
    world.target.transfers.cancel("t1", true, None).await.expect("removed");
    assert!(!partial.exists(), "the journal of a published copy can go");
    assert_same(&world.source.path("pvc-1"), &world.target.path("pvc-1"));
}

/// A limit that comes while a copy runs slows it down, on either side, and one that goes lets it run.
#[tokio::test(flavor = "multi_thread")]
async fn limits_change_while_a_copy_runs() {
    let slow = NonZeroU64::new(8 * MIB);
    let (node, copy) = (CopyRates { node: slow, copy: None }, CopyRates { node: None, copy: slow });
    for (name, at_source, rates) in [("t1", true, node), ("t2", false, node), ("t3", false, copy)] {
        let world = World::on(&std::env::temp_dir(), &Limits::default());
        make_volume(&world.source.path("pvc-1"), 256 * MIB, &[(0, 256 * MIB)], 1);
        let limited = if at_source { &world.source.transfers } else { &world.target.transfers };
        limited.set_rates(rates);
        let (told, mut progress) = watch::channel(PullProgress::default());
        let copy = tokio::spawn(world.target.transfers.pull(world.order(name, "pvc-1"), told));
        progress.wait_for(|seen| seen.done_bytes >= 4 * MIB).await.expect("goes on");
        let (began, before) = (std::time::Instant::now(), progress.borrow().done_bytes);
        progress.wait_for(|seen| seen.done_bytes >= before + 16 * MIB).await.expect("goes on");
        // Two seconds by the limit, less what may be in flight.
        assert!(began.elapsed() > Duration::from_millis(500), "{name}: {:?}", began.elapsed());
        limited.set_rates(CopyRates::default());
        let done = copy.await.expect("ended").expect("copied");
        assert!(done.elapsed < Duration::from_secs(25), "{name}: the limit would have taken 32 s: {done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_copies_run_at_once_and_those_that_wait_can_be_cancelled() {
    let world = World::on(&std::env::temp_dir(), &Limits { pulls_max: 1, ..quick() });
    make_volume(&world.source.path("pvc-1"), 64 * MIB, &[(0, 64 * MIB)], 1);
    make_volume(&world.source.path("pvc-2"), MIB, &[(0, MIB)], 1);
    let mut slow = world.order("t1", "pvc-1");
    slow.rate_limit_bytes_per_s = Some(8 * MIB);
    let (told, mut progress) = watch::channel(PullProgress::default());
    let first = tokio::spawn(world.target.transfers.pull(slow, told));
    progress.wait_for(|seen| seen.done_bytes >= MIB).await.expect("goes on");
    let mut second = Box::pin(world.pull(world.order("t2", "pvc-2")));
    assert!(futures::poll!(&mut second).is_pending(), "it waits for the first");
    world.target.transfers.cancel("t2", false, None).await.expect("told");
    assert_eq!(second.await.expect_err("cancelled").reason(), "Cancelled");
    assert!(!world.target.path("pvc-2").exists());
    world.target.transfers.cancel("t1", true, None).await.expect("told");
    assert_eq!(first.await.expect("ended").expect_err("cancelled").reason(), "Cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_order_of_the_same_transfer_takes_over() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), 128 * MIB, &[(0, 128 * MIB)], 1);
    let mut slow = world.order("t1", "pvc-1");
    slow.rate_limit_bytes_per_s = Some(16 * MIB);
    let (told, mut progress) = watch::channel(PullProgress::default());
    let first = tokio::spawn(world.target.transfers.pull(slow, told));
    let done = progress.wait_for(|seen| seen.done_bytes >= 4 * MIB).await.expect("goes on").done_bytes;
    let second = world.pull(world.order("t1", "pvc-1")).await.expect("copied");
    assert_eq!(first.await.expect("ended").expect_err("superseded").reason(), "Cancelled");
    assert!(second.sent_bytes <= 128 * MIB - done, "{second:?}");
    assert_same(&world.source.path("pvc-1"), &world.target.path("pvc-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_copy_can_be_removed() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), 64 * MIB, &[(0, 64 * MIB)], 1);
    let mut order = world.order("t1", "pvc-1");
    order.rate_limit_bytes_per_s = Some(8 * MIB);
    let (told, mut progress) = watch::channel(PullProgress::default());
    let copy = tokio::spawn(world.target.transfers.pull(order, told));
    progress.wait_for(|seen| seen.done_bytes >= 2 * MIB).await.expect("goes on");
    world.target.transfers.cancel("t1", true, None).await.expect("told");
    assert_eq!(copy.await.expect("ended").expect_err("cancelled").reason(), "Cancelled");
    assert_eq!(std::fs::read_dir(world.target.root.path()).expect("listed").count(), 0);
}

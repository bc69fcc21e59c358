//! The loop on a simulated clock: order of effects, slow stores, its own lateness, sessions.

use std::num::NonZeroU64;
use std::sync::Arc;

use somersault_coordinator_core::fencing::FenceStage;
use somersault_coordinator_core::io::FenceResult;
use somersault_coordinator_core::names::{BootId, NodeName as CoreName};
use somersault_coordinator_core::policy::{CopiesSpec, Policy, PolicySpec, Profile};
use somersault_coordinator_core::view::NodeState;
use somersault_proto::model::{Address, Hello, NodeName as WireName, ProbeAnswer, Reachability};
use somersault_proto::token::TokenSigner;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::agents::BeatStream;
use crate::effects::Tools;
use crate::inbox::Inbox;
use crate::leader::{self, Epoch};
use crate::testkit::{FakeClock, FakeCluster, FakeFencer, Log, Silence};

const NODES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];
const BOOT: &str = "0f4a3b7e-8f0d-4d8e-9a54-0123456789ab";

/// A coordinator in the fast profile with a leader, on a cluster that does as it is told.
struct World {
    clock: Arc<FakeClock>,
    cluster: Arc<FakeCluster>,
    inbox: Inbox,
    views: watch::Receiver<Arc<View>>,
    policies: watch::Sender<Arc<Policy>>,
    stop: CancellationToken,
    driver: JoinHandle<()>,
    beating: Vec<JoinHandle<()>>,
}

impl World {
    async fn start(commit_takes: Duration) -> Self {
        let cluster = FakeCluster::new(&NODES, commit_takes);
        let clock = FakeClock::new();
        let (inbox, events) = Inbox::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let (metrics, epoch, stop) =
            (Arc::new(Metrics::default()), Epoch::default(), CancellationToken::new());
        let fencer = FakeFencer {
            log: cluster.log.clone(),
            takes: Duration::from_millis(100),
            result: FenceResult::ConfirmedOff,
        };
        let tools = Tools {
            cluster: Arc::clone(&cluster),
            fencer: Arc::new(fencer),
            prober: Arc::new(Silence),
            inbox: inbox.clone(),
            epoch: epoch.clone(),
            metrics: Arc::clone(&metrics),
        };
        let mut spec = PolicySpec { profile: Profile::Fast, ..PolicySpec::default() };
        spec.fencing.nodes = NODES.iter().map(|name| CoreName::from(*name)).collect();
        let (views, seen) = watch::channel(Arc::new(View::default()));
        let policy = Policy::try_from(spec).unwrap();
        let (policies, policy_changes) = watch::channel(Arc::new(policy.clone()));
        let driver = Driver::new(Parts {
            core: Coordinator::new(policy),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            events,
            snapshots: cluster.snapshots(),
            policies: policy_changes,
            effects: Effects::new(tools),
            orders: Orders::new(TokenSigner::generate().unwrap()),
            views,
            turned: watch::channel(BootTime::ZERO).0,
            metrics: Arc::clone(&metrics),
        });
        let driver = tokio::spawn(driver.run(stop.clone()));
        tokio::spawn(leader::run(
            Arc::clone(&cluster),
            "me".into(),
            epoch,
            inbox.clone(),
            metrics,
            stop.clone(),
        ));
        let mut world =
            Self { clock, cluster, inbox, views: seen, policies, stop, driver, beating: Vec::new() };
        for name in NODES {
            world.beat_on(name);
        }
        sleep(Duration::from_secs(5)).await;
        world
    }

    fn log(&self) -> &Log {
        &self.cluster.log
    }

    fn beat_on(&mut self, name: &str) {
        let (inbox, node) = (self.inbox.clone(), CoreName::from(name));
        self.beating.push(tokio::spawn(async move {
            for sequence in 1.. {
                let boot_id = BootId::from(BOOT);
                inbox.input(Input::Beat { node: node.clone(), boot_id, sequence }).await;
                sleep(Duration::from_millis(200)).await;
            }
        }));
    }

    fn silence(&self, index: usize) {
        self.beating[index].abort();
    }

    fn state(&self, name: &str) -> NodeState {
        self.views.borrow().nodes[&CoreName::from(name)].state
    }

    async fn open_session(&self, name: &str, id: u64) -> mpsc::Receiver<Result<FromCoordinator, Status>> {
        let (orders, received) = mpsc::channel(16);
        let node: WireName = name.parse().unwrap();
        let address: Address = "10.0.0.9:7444".parse().unwrap();
        let hello =
            Hello { node: node.clone(), boot_id: BOOT.parse().unwrap(), version: "0".into(), address };
        let session = Session { id, hello, orders, end: CancellationToken::new() };
        self.inbox.send(Event::SessionOpened { node, session }).await.unwrap();
        received
    }
}

async fn next<T>(received: &mut mpsc::Receiver<T>) -> T {
    timeout(Duration::from_secs(5), received.recv()).await.expect("nothing came").expect("the stream ended")
}

#[tokio::test(start_paused = true)]
async fn each_step_of_fencing_is_stored_before_it_is_done() {
    let world = World::start(Duration::from_millis(20)).await;
    world.silence(0);
    sleep(Duration::from_secs(3)).await;
    let told = world.log().of("");
    let at = |what: &str| {
        told.iter()
            .position(|entry| entry.starts_with(what))
            .unwrap_or_else(|| panic!("no {what} in {told:#?}"))
    };
    let (declared, ordered) = (at("commit n1 Declared"), at("commit n1 PowerOrdered"));
    let (fenced, proven) = (at("fence n1"), at("commit n1 Fenced"));
    assert!(declared < ordered && ordered < fenced && fenced < proven, "{told:#?}");
    assert_eq!(world.log().of("fence").len(), 1, "{told:#?}");
    assert!(told.iter().all(|entry| !entry.contains(" n2 ")), "{told:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_delays_nobody_elses_grants() {
    let world = World::start(Duration::from_mins(1)).await;
    let (grants, mut received) = mpsc::channel(64);
    let stream = BeatStream { id: 1, grants, end: CancellationToken::new() };
    world.inbox.send(Event::BeatsOpened { node: "n2".parse().unwrap(), stream }).await.unwrap();
    world.silence(0);
    let mut last = 0;
    for _ in 0..40 {
        let grant = timeout(Duration::from_millis(250), received.recv()).await.expect("a grant is late");
        let sequence = grant.unwrap().unwrap().sequence;
        assert!(sequence > last);
        last = sequence;
    }
    assert_eq!(world.log().of("commit"), Vec::<String>::new(), "the store is still busy");
    assert_eq!(world.log().of("fence"), Vec::<String>::new(), "and nothing is done before it is stored");
}

#[tokio::test(start_paused = true)]
async fn a_suspended_machine_suspects_nobody() {
    let world = World::start(Duration::ZERO).await;
    world.clock.jump(Duration::from_mins(10));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.log().of("event NodeSuspect"), Vec::<String>::new());
    assert_eq!(world.state("n1"), NodeState::Healthy);
    // And it is not blind afterwards.
    world.silence(0);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.log().of("event NodeSuspect").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn beats_that_lay_in_the_queue_are_no_silence() {
    let world = World::start(Duration::ZERO).await;
    world.silence(0);
    sleep(Duration::from_millis(300)).await;
    // An event that is as old as this tells that others may lie behind it: the beats of n1, say.
    let at = world.clock.now().saturating_sub(Duration::from_millis(700));
    let event = Event::Input(Input::KubeletRenewed { node: CoreName::from("n2") });
    world.inbox.send_stamped(Stamped { at, event }).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(world.log().of("event NodeSuspect"), Vec::<String>::new(), "suspicion starts anew");
    sleep(Duration::from_millis(300)).await;
    assert_eq!(world.log().of("event NodeSuspect").len(), 1, "and does not end");
}

#[tokio::test(start_paused = true)]
async fn a_changed_policy_counts_at_once_and_suspects_nobody() {
    let world = World::start(Duration::ZERO).await;
    let (grants, mut received) = mpsc::channel(64);
    let stream = BeatStream { id: 1, grants, end: CancellationToken::new() };
    world.inbox.send(Event::BeatsOpened { node: "n2".parse().unwrap(), stream }).await.unwrap();
    assert_eq!(next(&mut received).await.unwrap().beat_interval, Duration::from_millis(200));
    let safe = Policy::try_from(PolicySpec::default()).unwrap();
    world.policies.send_replace(Arc::new(safe));
    sleep(Duration::from_millis(50)).await;
    while received.try_recv().is_ok() {}
    assert_eq!(next(&mut received).await.unwrap().beat_interval, Duration::from_secs(1));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.log().of("event NodeSuspect"), Vec::<String>::new());
    assert_eq!(world.log().of("event PolicyChanged").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_renews_its_lease_is_no_dead_node() {
    // A Lease that we see for the first time says nothing: it may be from before.
    for (stamps, kubelet_lives) in [(["first", "second"], true), (["first", "first"], false)] {
        let world = World::start(Duration::ZERO).await;
        world.silence(0);
        while world.log().of("event NodeSuspect").is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        for stamp in stamps {
            world.cluster.renew_lease("n1", stamp);
            sleep(Duration::from_millis(20)).await;
        }
        sleep(Duration::from_secs(3)).await;
        assert_eq!(world.state("n1") == NodeState::AgentSilent, kubelet_lives, "{stamps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_welcomed_with_the_epoch_and_ends_with_it() {
    let world = World::start(Duration::ZERO).await;
    let mut first = world.open_session("n2", 1).await;
    let Ok(FromCoordinator::Welcome(welcome)) = next(&mut first).await else { panic!("no welcome") };
    assert_eq!(welcome.epoch, 1);
    let mut second = world.open_session("n2", 2).await;
    assert_eq!(next(&mut first).await.unwrap_err().code(), tonic::Code::Aborted, "the newest wins");
    assert!(next(&mut second).await.is_ok());
    world.cluster.depose();
    assert_eq!(next(&mut second).await.unwrap_err().code(), tonic::Code::Unavailable);
    sleep(Duration::from_secs(3)).await;
    let mut third = world.open_session("n2", 3).await;
    let Ok(FromCoordinator::Welcome(welcome)) = next(&mut third).await else { panic!("no welcome") };
    assert_eq!(welcome.epoch, 2);
}

/// Agents are told how fast copies may be when they greet, and when that changes.
#[tokio::test(start_paused = true)]
async fn the_rates_of_copies_are_told_when_they_change() {
    let world = World::start(Duration::ZERO).await;
    let mut session = world.open_session("n2", 1).await;
    let Ok(FromCoordinator::Welcome(welcome)) = next(&mut session).await else { panic!("no welcome") };
    assert_eq!(welcome.rates, CopyRates::default());
    let mut spec = PolicySpec { profile: Profile::Fast, ..PolicySpec::default() };
    spec.copies = CopiesSpec { node_mib_per_s: Some(100), copy_mib_per_s: None };
    world.policies.send_replace(Arc::new(Policy::try_from(spec).unwrap()));
    let Ok(FromCoordinator::Welcome(changed)) = next(&mut session).await else { panic!("no word of it") };
    assert_eq!(changed.rates, CopyRates { node: NonZeroU64::new(100 << 20), copy: None });
    assert_eq!(Welcome { rates: CopyRates::default(), ..changed }, welcome);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reaches_the_suspect_saves_it() {
    let world = World::start(Duration::ZERO).await;
    let mut sessions = Vec::new();
    for (id, name) in (0..).zip(NODES) {
        let mut session = world.open_session(name, id).await;
        next(&mut session).await.unwrap();
        sessions.push((name, session));
    }
    world.silence(0);
    for (name, mut session) in sessions {
        let inbox = world.inbox.clone();
        tokio::spawn(async move {
            while let Some(Ok(FromCoordinator::Order(order))) = session.recv().await {
                let answer = ProbeAnswer {
                    order: order.id,
                    node: "n1".parse().unwrap(),
                    reachability: Reachability::Agent,
                };
                inbox.send(Event::ProbeAnswered { peer: name.parse().unwrap(), answer }).await.unwrap();
            }
        });
    }
    sleep(Duration::from_secs(4)).await;
    assert_eq!(world.state("n1"), NodeState::Partitioned);
    assert_eq!(world.log().of("commit"), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn stopping_lets_the_commit_in_hand_end() {
    let mut world = World::start(Duration::from_secs(3)).await;
    world.silence(0);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.log().of("commit"), Vec::<String>::new(), "it is under way");
    world.stop.cancel();
    (&mut world.driver).await.unwrap();
    assert_eq!(world.log().of("commit").len(), 1);
    assert!(world.log().of("commit")[0].contains(&format!("{:?}", FenceStage::Declared)));
    assert_eq!(world.log().of("fence"), Vec::<String>::new(), "and nothing new begins");
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_ran_out_does_nothing_before_it_is_told() {
    let world = World::start(Duration::from_millis(500)).await;
    let (grants, mut received) = mpsc::channel(64);
    let stream = BeatStream { id: 1, grants, end: CancellationToken::new() };
    world.inbox.send(Event::BeatsOpened { node: "n2".parse().unwrap(), stream }).await.unwrap();
    let mut session = world.open_session("n2", 1).await;
    next(&mut session).await.unwrap();
    next(&mut received).await.unwrap();
    world.silence(0);
    while world.log().of("commit n1 PowerOrdered").is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    // The very moment before the fence agent runs.
    world.cluster.stood_still.store(true, std::sync::atomic::Ordering::SeqCst);
    let before = world.log().of("");
    while received.try_recv().is_ok() {}
    sleep(Duration::from_secs(3)).await;
    assert!(received.try_recv().is_err(), "a beat was answered");
    let began =
        |log: &[String]| log.iter().filter(|entry| !entry.starts_with("event")).cloned().collect::<Vec<_>>();
    assert_eq!(began(&world.log().of("")), began(&before), "something was begun");
}

//! The world: its events in their order, and what each of them does to machines, network and objects. What a
//! coordinator's shell does is in `shell`, what goes wrong in `chaos`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use somersault_coordinator_core::io::{Action, Effect, Input};
use somersault_coordinator_core::names::{BootId, NodeName, Uid};
use somersault_coordinator_core::policy::{Policy, PolicySpec, Profile};

use crate::check::{self, Broken};
use crate::clock::Clock;
use crate::cluster::Api;
use crate::guard::Guard;
use crate::machine::Machine;
use crate::net::{End, Net};
use crate::process::Process;
use crate::{Mutant, Options, Summary};

/// How much clocks may differ in speed, as the policy says.
const DRIFT: f64 = 0.01;
/// Lines of the log that a failure shows.
const LOG_LINES: usize = 120;
/// How long everything may take to recover once all is mended: a storm's minute, a lease's minute, a quarantine's
/// minute, fence agents' retries, and several times over for nodes that have to be rebooted by hand.
const RECOVERY_MAX: Duration = Duration::from_mins(20);

/// Something that is due.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A node's agent beats.
    Beat(NodeName),
    /// A beat arrives.
    BeatArrives { to: usize, node: NodeName, boot: BootId, sequence: u64, held: Option<u64> },
    /// A grant arrives.
    GrantArrives { node: NodeName, sequence: u64 },
    /// Something else arrives at a coordinator, if it is still in this session, where that matters.
    Arrives { to: usize, session: Option<u64>, input: Box<Input> },
    /// A peer is asked to probe a node.
    PeerProbes { to: usize, peer: NodeName, node: NodeName, timeout: Duration },
    /// A node is told to stop launchers.
    StopLaunchers { node: NodeName, pods: Vec<Uid> },
    /// A coordinator wakes up.
    Wake { to: usize, id: u64 },
    /// A coordinator looks after the leader's lease.
    Elect(usize),
    /// A coordinator reads the records again.
    Relist(usize),
    /// A coordinator reads the cluster.
    Read(usize),
    /// A question of a coordinator's arrives at the API server.
    Api { from: usize, session: u64, effect: Box<Effect>, tries: u32 },
    /// A fence agent does what it does.
    Fence { by: usize, node: NodeName, epoch: u64 },
    /// A fence agent is asked for its status.
    FenceStatus { by: usize, node: NodeName },
    /// The power goes off late, after the fence agent said that it failed.
    LateOff { node: NodeName, boot: BootId },
    /// A coordinator goes on.
    Resume(usize),
    /// KubeVirt's controllers and the scheduler look.
    KubeVirt,
    /// A node's kubelet looks.
    Kubelet(NodeName),
    /// A node's guard looks.
    Guard(NodeName),
    /// A machine gets power, and boots.
    PowerOn(NodeName),
    /// A paused machine goes on.
    Unpause(NodeName),
    /// A node's agent starts again.
    AgentStarts(NodeName),
    /// This end of the network is mended.
    Mend(End),
    /// The next fault.
    Chaos,
    /// People and clouds look at machines.
    People,
}

/// The world.
pub struct World {
    pub(crate) options: Options,
    pub(crate) rng: StdRng,
    pub(crate) now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    pub(crate) machines: BTreeMap<NodeName, Machine>,
    pub(crate) processes: Vec<Process>,
    pub(crate) api: Api,
    pub(crate) net: Net,
    /// What the coordinators go by.
    pub(crate) policy: Policy,
    pub(crate) chaos_left: u32,
    pub(crate) mended_at: Option<Duration>,
    pub(crate) summary: Summary,
    pub(crate) broken: Option<Broken>,
    log: VecDeque<String>,
}

impl World {
    /// A world in which everything is well.
    pub fn new(options: Options) -> Self {
        let mut rng = StdRng::seed_from_u64(options.seed);
        let nodes = rng.random_range(3..=6);
        let (coordinators, vms) = (rng.random_range(1..=3), rng.random_range(2..=5));
        let names: Vec<NodeName> = (1..=nodes).map(|index| NodeName(format!("n{index}"))).collect();
        let enrolled: BTreeSet<NodeName> =
            if rng.random_bool(0.4) { names.iter().cloned().collect() } else { BTreeSet::new() };
        let (policy, guards) = policies(&mut rng, &names, &enrolled, options.mutant);
        let guard = || {
            let lease = &guards.lease;
            Guard::new(lease.lease, lease.watchdog)
        };
        let machines = names.iter().map(|name| {
            let guard = enrolled.contains(name).then(guard);
            (name.clone(), Machine::new(name.clone(), Clock::new(&mut rng, DRIFT), guard))
        });
        let machines: BTreeMap<NodeName, Machine> = machines.collect();
        let processes = (0..coordinators).map(|_| Process::new(Clock::new(&mut rng, DRIFT), policy.clone()));
        let mut world = Self {
            options,
            processes: processes.collect(),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            next_event: 0,
            machines,
            api: Api::new(nodes, vms),
            net: Net::default(),
            policy,
            chaos_left: options.steps,
            mended_at: None,
            summary: Summary::default(),
            broken: None,
            log: VecDeque::new(),
            rng,
        };
        world.begin(&names);
        world
    }

    fn begin(&mut self, names: &[NodeName]) {
        let title = format!(
            "{} nodes, {} coordinators, {:?} profile, fence agents {:?}, watchdogs {}",
            names.len(),
            self.processes.len(),
            self.policy.profile,
            self.policy.fencing.nodes,
            !self.policy.watchdog_fencing.is_empty(),
        );
        self.note(|| title);
        for name in names {
            let start = self.within_ms(1_000);
            self.at(start, Event::Beat(name.clone()));
            self.at(start, Event::Kubelet(name.clone()));
            if !self.policy.watchdog_fencing.is_empty() {
                self.at(start, Event::Guard(name.clone()));
            }
        }
        for index in 0..self.processes.len() {
            let start = self.within_ms(1_000);
            self.at(start, Event::Read(index));
            self.at(start + Duration::from_millis(10), Event::Elect(index));
        }
        self.at(Duration::ZERO, Event::KubeVirt);
        self.at(Duration::from_secs(10), Event::People);
        // Everybody has started, and beaten for a while, before anything goes wrong.
        self.at(Duration::from_secs(25), Event::Chaos);
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Result<(), Broken> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.summary.events += 1;
            self.happen(event);
            if let Some(broken) = self.broken.take() {
                return Err(broken);
            }
            check::active_once(&self.machines)?;
            if let Some(mended) = self.mended_at {
                let open = check::unrecovered(&self.machines, &self.api);
                match open {
                    None => break,
                    Some(what) if at > mended + RECOVERY_MAX => return Err(Broken::NotRecovered { what }),
                    Some(_) => {}
                }
            }
        }
        self.summary.elapsed = self.now;
        Ok(())
    }

    /// The moment, in the world's own time.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// What was seen.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// The last events.
    pub fn log_tail(&self) -> String {
        self.log.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>9.3} {}", self.now.as_secs_f64(), line());
        if self.options.verbose {
            println!("{line}");
        }
        self.log.push_back(line);
        if self.log.len() > LOG_LINES {
            self.log.pop_front();
        }
    }

    pub(crate) fn within_ms(&mut self, ms: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(0..ms * 1_000))
    }

    pub(crate) fn at(&mut self, delay: Duration, event: Event) {
        self.next_event += 1;
        self.queue.insert((self.now + delay, self.next_event), event);
    }

    pub(crate) fn send(&mut self, from: &End, to: &End, event: &Event) {
        for delay in self.net.send(&mut self.rng, from, to) {
            self.at(delay, event.clone());
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Beat(node) => self.beat(&node),
            Event::BeatArrives { to, node, boot, sequence, held } => {
                if let Some(sequence) = held {
                    self.give(to, Input::GrantHeld { node: node.clone(), boot_id: boot.clone(), sequence });
                }
                self.give(to, Input::Beat { node, boot_id: boot, sequence });
            }
            Event::GrantArrives { node, sequence } => self.grant_arrives(&node, sequence),
            Event::Arrives { to, session, input } => {
                if session.is_none_or(|session| session == self.processes[to].session) {
                    self.give(to, *input);
                }
            }
            Event::PeerProbes { to, peer, node, timeout } => self.peer_probes(to, &peer, node, timeout),
            Event::StopLaunchers { node, pods } => self.stop_launchers(&node, &pods),
            Event::Wake { to, id } => {
                if self.processes[to].wake_id == id {
                    self.give(to, Input::Tick);
                }
            }
            Event::Elect(index) => self.elect(index),
            Event::Relist(index) => self.look_after_lease(index),
            Event::Read(index) => self.read(index),
            Event::Api { from, session, effect, tries } => self.api_call(from, session, *effect, tries),
            Event::Fence { by, node, epoch } => self.fence(by, &node, epoch),
            Event::FenceStatus { by, node } => self.fence_status(by, node),
            Event::LateOff { node, boot } => self.late_off(&node, &boot),
            Event::Resume(index) => self.resume(index),
            Event::KubeVirt => self.kubevirt(),
            Event::Kubelet(node) => self.kubelet(&node),
            Event::Guard(node) => self.guard(&node),
            Event::PowerOn(node) => self.power_on(&node),
            Event::Unpause(node) => self.unpause(&node),
            Event::AgentStarts(node) => self.machine(&node).agent = true,
            Event::Mend(end) => self.net.mend(&end),
            Event::Chaos => self.chaos(),
            Event::People => self.people(),
        }
    }

    pub(crate) fn machine(&mut self, node: &NodeName) -> &mut Machine {
        self.machines.get_mut(node).expect("machines are never taken away")
    }

    /// Deletes a pod on behalf of a coordinator, under the eyes of the checks.
    pub(crate) fn delete_pod(&mut self, pod: &Uid) {
        if let Err(broken) = check::may_delete(&self.machines, &self.api, pod) {
            self.broken = Some(broken);
        }
        self.api.delete_pod(pod);
        self.summary.deletions += 1;
    }

    /// Performs an action at the API server.
    pub(crate) fn perform(&mut self, action: &Action) {
        use somersault_coordinator_core::fleet::{FENCING_TAINT, SavedStart};
        match action {
            Action::Taint { node } => self.api.taint(node, FENCING_TAINT, true),
            Action::Untaint { node } => self.api.taint(node, FENCING_TAINT, false),
            Action::OutOfService { proof } => {
                self.check(check::may_call_out_of_service(&self.machines, proof.node()));
                self.api.call_out_of_service(proof.node(), true);
            }
            Action::InService { node } => self.api.call_out_of_service(node, false),
            Action::DeletePod { uid, .. } => self.delete_pod(uid),
            Action::StopVm { vm, .. } => self.api.set_running(vm, false),
            Action::RestoreStart { vm, start, .. } => {
                self.api.set_running(vm, *start == SavedStart::Running(true));
            }
            Action::RetainVolume { volume } => {
                if let Some(volume) = self.api.fleet.volumes.get_mut(volume) {
                    volume.retained = true;
                }
            }
            Action::ReimportClaim { claim, uid, .. } => {
                self.check(check::may_reimport(&self.machines, &self.api, claim, uid));
                let kept = self.api.delete_claim(claim, uid);
                self.check(kept.then_some(()).ok_or_else(|| Broken::DiskLost { claim: claim.clone() }));
                self.summary.reimports += 1;
            }
            other => unreachable!("nobody asked for a migration here: {other:?}"),
        }
    }

    fn check(&mut self, kept: Result<(), Broken>) {
        if let Err(broken) = kept {
            self.broken = Some(broken);
        }
    }
}

/// What the coordinators go by, and what the guards go by: the same, unless a mutant says otherwise.
fn policies(
    rng: &mut StdRng,
    names: &[NodeName],
    enrolled: &BTreeSet<NodeName>,
    mutant: Option<Mutant>,
) -> (Policy, Policy) {
    let profile = if rng.random_bool(0.5) { Profile::Fast } else { Profile::Safe };
    let mut spec = PolicySpec { profile, ..PolicySpec::default() };
    spec.recovery.concurrent_max = rng.random_range(1..4);
    spec.fencing.nodes = names.iter().filter(|_| rng.random_bool(0.6)).cloned().collect();
    // Faults come often here, and a lab does not wait an hour for its people.
    spec.fencing.timeout_ms = 20_000;
    spec.fencing.reminder_ms = 60_000;
    spec.recovery.out_of_service = rng.random_bool(0.3);
    let build = |spec: PolicySpec| {
        Policy::try_from(spec).expect("the simulation's policy holds").with_watchdog_fencing(enrolled.clone())
    };
    let guards = build(spec.clone());
    if mutant == Some(Mutant::ShortLease) {
        spec.lease.lease_ms = 24_000;
        spec.lease.watchdog_ms = 1_000;
        spec.lease.io_ms = 1;
    }
    (build(spec), guards)
}

//! A coordinator with its surroundings, for tests: nodes that beat or not, a store that answers at once, a cluster
//! that does what it is told and starts a VM elsewhere when its launcher is gone. Every step is watched.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::BootTime;
use crate::coordinator::Coordinator;
use crate::decision::testkit::{World, key, nfs, node, on_host, running_vm};
use crate::fencing::agents::FenceAnswer;
use crate::fleet::{
    Attachment, FENCING_TAINT, Fleet, Instance, OUT_OF_SERVICE_OURS, OUT_OF_SERVICE_TAINT, RunStrategy,
    SavedStart, Taint,
};
use crate::invariants::Watch;
use crate::io::{
    Action, Effect, FenceResult, Input, Notice, OpenRecovery, Prober, Reachability, Record, RecordKey,
    Requests,
};
use crate::names::{BootId, Key, NodeName, Uid};
use crate::policy::{Policy, PolicySpec, Profile};
use crate::view::{NodeState, View};

/// Between two moments of the bench.
const STEP: Duration = Duration::from_millis(100);

pub(crate) struct Bench {
    pub c: Coordinator,
    pub now: BootTime,
    pub fleet: Fleet,
    pub requests: Requests,
    pub store: BTreeMap<RecordKey, Record>,
    /// Nodes whose beats arrive, with their boot.
    pub beating: BTreeMap<NodeName, BootId>,
    /// What probes of a silent node find: ours, and those of its peers.
    pub reach: BTreeMap<NodeName, (Reachability, Reachability)>,
    /// What the fence agents answer; one without an answer hangs.
    pub fence: BTreeMap<NodeName, FenceResult>,
    /// What they answer when they are asked for the status; one without an answer hangs.
    pub status: BTreeMap<NodeName, FenceAnswer>,
    /// The store answers, and the cluster does what it is told.
    pub store_answers: bool,
    pub cluster_answers: bool,
    pub effects: Vec<(BootTime, Effect)>,
    /// Commits and actions after which our process dies, before it hears of the last one.
    pub dies_after: Option<usize>,
    /// What a process that died had shown.
    open: Vec<OpenRecovery>,
    watch: Watch,
    next_beat: BootTime,
    sequence: u64,
    epoch: u64,
}

/// The fast profile, with fence agents for these nodes.
pub(crate) fn fast(fence_agents: &[&str]) -> PolicySpec {
    let mut spec = PolicySpec { profile: Profile::Fast, ..PolicySpec::default() };
    spec.fencing.nodes = fence_agents.iter().map(|&node| node.into()).collect();
    spec
}

pub(crate) fn boot(node: &str, number: u32) -> BootId {
    BootId(format!("{node}-boot{number}"))
}

impl Bench {
    /// n1..n6 in zones a, a, b, b, c, c; on n1 run `net` (disk on NFS) and `local` (disk on n1). We lead with
    /// epoch 1, and everybody has beaten for a while.
    pub fn new(spec: PolicySpec) -> Self {
        Self::with_policy(Policy::try_from(spec).expect("the policy holds"))
    }

    pub fn with_policy(policy: Policy) -> Self {
        let mut bench = Self::cold_with(policy);
        bench.show_fleet();
        bench.show_requests();
        bench.lead(1);
        bench.run_ms(2_000);
        bench
    }

    /// The same, but we have neither read the cluster nor led yet, and have heard nobody.
    pub fn cold(spec: PolicySpec) -> Self {
        Self::cold_with(Policy::try_from(spec).expect("the policy holds"))
    }

    fn cold_with(policy: Policy) -> Self {
        let mut world = World::bare();
        for (name, zone) in [("n3", "b"), ("n4", "b"), ("n5", "c"), ("n6", "c")] {
            world.fleet.nodes.insert(name.into(), node(name, zone));
        }
        for vm in ["net", "local"] {
            world.fleet.vms.insert(key(vm), running_vm(vm, "n1"));
        }
        world.add_disk("net", "data", nfs(), None);
        world.add_disk("local", "data", crate::decision::testkit::host_path(), on_host(&["n1"]));
        let names = world.fleet.nodes.keys().cloned();
        let mut bench = Self {
            c: Coordinator::new(policy),
            now: Duration::from_secs(1_000),
            beating: names.map(|name| (name.clone(), boot(name.as_str(), 1))).collect(),
            fleet: world.fleet,
            requests: Requests::default(),
            store: BTreeMap::new(),
            reach: BTreeMap::new(),
            fence: BTreeMap::new(),
            status: BTreeMap::new(),
            store_answers: true,
            cluster_answers: true,
            effects: Vec::new(),
            dies_after: None,
            open: Vec::new(),
            watch: Watch::default(),
            next_beat: BootTime::ZERO,
            sequence: 0,
            epoch: 1,
        };
        for (name, node) in &mut bench.fleet.nodes {
            node.boot_id = Some(boot(name.as_str(), 1));
        }
        bench
    }

    pub fn lead(&mut self, epoch: u64) {
        self.epoch = epoch;
        let records = self.store.values().cloned().collect();
        let recoveries = std::mem::take(&mut self.open);
        self.give(Input::Leading { epoch, records, recoveries });
    }

    pub fn show_fleet(&mut self) {
        self.give(Input::Fleet(Box::new(self.fleet.clone())));
    }

    pub fn show_requests(&mut self) {
        self.give(Input::Requests(Box::new(self.requests.clone())));
    }

    pub fn silence(&mut self, nodes: &[&str]) {
        for &node in nodes {
            self.beating.remove(&NodeName::from(node));
        }
    }

    pub fn beat(&mut self, node: &str, number: u32) {
        self.beating.insert(node.into(), boot(node, number));
    }

    pub fn taint(&mut self, node: &str, taint: &str) {
        let taints = &mut self.fleet.nodes.get_mut(&NodeName::from(node)).expect("there").taints;
        taints.push(Taint { key: taint.to_owned(), value: String::new(), effect: "NoExecute".to_owned() });
        self.show_fleet();
    }

    pub fn status_boot(&mut self, node: &str, number: u32) {
        self.fleet.nodes.get_mut(&NodeName::from(node)).expect("there").boot_id = Some(boot(node, number));
        self.show_fleet();
    }

    pub fn attest(&mut self, node: &str, number: u32, by: &str) {
        let (boot_id, at) = (boot(node, number), Some(format!("{:?}", self.now)));
        let word = crate::io::Attestation { boot_id, by: by.to_owned(), at };
        self.requests.attestations.insert(node.into(), word);
        self.show_requests();
    }

    pub fn run_ms(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.now < end {
            let due = self.c.next_deadline().filter(|at| *at > self.now).unwrap_or(end);
            let beat = self.next_beat.max(self.now);
            self.now = (self.now + STEP).min(due).min(beat.max(self.now + Duration::from_nanos(1))).min(end);
            if self.now >= self.next_beat {
                self.next_beat = self.now + self.c.policy().detection.beat;
                for (node, boot_id) in self.beating.clone() {
                    self.sequence += 1;
                    self.give(Input::Beat { node, boot_id, sequence: self.sequence });
                }
            }
            if self.c.next_deadline().is_some_and(|at| at <= self.now) {
                self.give(Input::Tick);
            }
        }
    }

    pub fn give(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            self.watch.input(&input).expect("the bench keeps the rules");
            let effects = self.c.step(self.now, input);
            let enrolled = self.c.policy().watchdog_fencing.clone();
            let kept = self.watch.effects(&effects, &self.c.view(), |node| enrolled.contains(node));
            kept.unwrap_or_else(|broken| panic!("{broken} at {:?}\n{}", self.now, self.tail()));
            for effect in effects {
                let answers = self.perform(&effect);
                let changes = matches!(effect, Effect::Commit(_) | Effect::Act(_));
                self.effects.push((self.now, effect));
                if changes && let Some(left) = &mut self.dies_after {
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        return self.restart();
                    }
                }
                inputs.splice(0..0, answers.into_iter().rev());
            }
        }
    }

    /// Our process died; another one leads, with what is stored and nothing else.
    pub fn restart(&mut self) {
        self.dies_after = None;
        self.open = self.c.view().open_recoveries();
        self.c = Coordinator::new(self.c.policy().clone());
        self.watch = Watch::default();
        self.epoch += 1;
        self.show_fleet();
        self.show_requests();
        self.lead(self.epoch);
    }

    fn perform(&mut self, effect: &Effect) -> Vec<Input> {
        match effect {
            Effect::Commit(record) if self.store_answers => {
                self.store.insert(record.key(), record.clone());
                vec![Input::Committed(record.key())]
            }
            Effect::Probe { node, by, .. } => {
                let alive = self.beating.contains_key(node);
                let (ours, theirs) = self.reach.get(node).copied().unwrap_or(if alive {
                    (Reachability::Agent, Reachability::Agent)
                } else {
                    (Reachability::Silent, Reachability::Silent)
                });
                let answer = if *by == Prober::Coordinator { ours } else { theirs };
                vec![Input::Probed { node: node.clone(), by: by.clone(), answer }]
            }
            Effect::AskFence { node, .. } => {
                let answer = self.status.get(node).cloned();
                let said = |answer| Input::FenceAnswered { node: node.clone(), answer };
                answer.map(said).into_iter().collect()
            }
            Effect::RunFence { node, epoch, .. } => {
                let result = self.fence.get(node).cloned();
                let ended = |result| Input::FenceEnded { node: node.clone(), epoch: *epoch, result };
                result.map(ended).into_iter().collect()
            }
            Effect::Act(action) if self.cluster_answers => {
                self.act(action);
                vec![Input::Acted(action.clone()), Input::Fleet(Box::new(self.fleet.clone()))]
            }
            _ => Vec::new(),
        }
    }

    /// Does this to the cluster, and shows it.
    pub fn do_by_hand(&mut self, action: &Action) {
        self.act(action);
        self.show_fleet();
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Taint { node } => {
                let taint =
                    Taint { key: FENCING_TAINT.into(), value: String::new(), effect: "NoSchedule".into() };
                self.fleet.nodes.get_mut(node).expect("there").taints.push(taint);
            }
            Action::Untaint { node } => {
                let taints = &mut self.fleet.nodes.get_mut(node).expect("there").taints;
                taints.retain(|taint| taint.key != FENCING_TAINT);
            }
            Action::DeletePod { uid, .. } => self.start_elsewhere(uid),
            Action::DeleteAttachment { attachment, uid, .. } => {
                let is_it = |found: &Attachment| found.uid == *uid;
                if self.fleet.attachments.get(attachment).is_some_and(is_it) {
                    self.fleet.attachments.remove(attachment);
                }
            }
            Action::OutOfService { proof } => {
                let taints = &mut self.fleet.nodes.get_mut(proof.node()).expect("there").taints;
                taints.push(Taint {
                    key: OUT_OF_SERVICE_TAINT.into(),
                    value: OUT_OF_SERVICE_OURS.into(),
                    effect: "NoExecute".into(),
                });
            }
            Action::InService { node } => {
                let taints = &mut self.fleet.nodes.get_mut(node).expect("there").taints;
                taints.retain(|taint| !taint.is_our_out_of_service());
            }
            Action::RetainVolume { volume } => {
                self.fleet.volumes.get_mut(volume).expect("there").retained = true;
            }
            Action::StopVm { vm, .. } => self.stop(vm),
            Action::RestoreStart { vm, start, .. } => self.start(vm, start),
            Action::ReimportClaim { claim, uid, data_volume, .. } => self.reimport(claim, uid, data_volume),
            other => panic!("not in this bench: {other:?}"),
        }
    }

    fn stop(&mut self, vm: &Key) {
        let vm = self.fleet.vms.get_mut(vm).expect("there");
        (vm.run, vm.start) = (RunStrategy::Halted, SavedStart::RunStrategy("Halted".to_owned()));
        if vm.pods.is_empty() {
            vm.instance = None;
        }
    }

    /// A VM whose disk is not filled yet waits for that; another one runs on n3 at once.
    fn start(&mut self, key: &Key, start: &SavedStart) {
        let vm = self.fleet.vms.get_mut(key).expect("there");
        (vm.run, vm.start) = (RunStrategy::Always, start.clone());
        if vm.instance.is_none() {
            vm.instance = Some(Instance {
                uid: Uid(format!("{}-vmi-anew", key.name)),
                node: None,
                phase: "Pending".to_owned(),
                has_run: false,
                migrating: None,
                paused: None,
                not_migratable: None,
                claims: BTreeSet::new(),
                agent_connected: false,
                has_address: false,
            });
        }
    }

    fn reimport(&mut self, claim: &Key, uid: &Uid, data_volume: &str) {
        let namespace = claim.namespace.clone();
        let Some(found) = self.fleet.claims.get_mut(claim).filter(|found| found.uid == *uid) else { return };
        (found.uid, found.phase) = (Uid(format!("{uid}-anew")), "Pending".to_owned());
        let volume = found.volume.take().expect("it was bound");
        let volume = self.fleet.volumes.get_mut(&volume).expect("there");
        assert!(volume.retained, "the old content goes with the claim");
        "Released".clone_into(&mut volume.phase);
        let data_volume = self.fleet.data_volumes.get_mut(&Key::new(namespace, data_volume)).expect("there");
        assert!(!data_volume.pre_populated, "nobody makes the claim anew");
        "WaitForFirstConsumer".clone_into(&mut data_volume.phase);
    }

    /// The image is imported, and the VM that waited for it runs on n3.
    pub fn import_ends(&mut self, vm: &str) {
        let name = format!("{vm}-system");
        let data_volume = self.fleet.data_volumes.get_mut(&key(&name));
        "Succeeded".clone_into(&mut data_volume.expect("there").phase);
        let vm = self.fleet.vms.get_mut(&key(vm)).expect("there");
        let instance = vm.instance.as_mut().expect("started");
        (instance.node, instance.phase) = (Some("n3".into()), "Running".to_owned());
        self.show_fleet();
    }

    fn start_elsewhere(&mut self, uid: &Uid) {
        for vm in self.fleet.vms.values_mut() {
            if vm.run == RunStrategy::Halted {
                vm.pods.retain(|pod| pod.uid != *uid);
                vm.instance.take_if(|_| vm.pods.is_empty());
                continue;
            }
            let Some(pod) = vm.pods.iter_mut().find(|pod| pod.uid == *uid) else { continue };
            let (instance, fresh) = (Uid(format!("{uid}-vmi")), Uid(format!("{uid}-next")));
            (pod.uid, pod.node, pod.instance) = (fresh, Some("n3".into()), Some(instance.clone()));
            let vmi = vm.instance.as_mut().expect("it ran");
            (vmi.uid, vmi.node) = (instance, Some("n3".into()));
        }
    }

    pub fn view(&self) -> View {
        self.c.view()
    }

    pub fn state(&self, node: &str) -> NodeState {
        self.c.view().nodes[&NodeName::from(node)].state
    }

    pub fn deleted(&self) -> BTreeSet<String> {
        let pod = |(_, effect): &(BootTime, Effect)| match effect {
            Effect::Act(Action::DeletePod { pod, .. }) => Some(pod.name.clone()),
            _ => None,
        };
        self.effects.iter().filter_map(pod).collect()
    }

    pub fn count(&self, wanted: impl Fn(&Effect) -> bool) -> usize {
        self.effects.iter().filter(|(_, effect)| wanted(effect)).count()
    }

    pub fn notices(&self, reason: &str) -> usize {
        self.count(|effect| matches!(effect, Effect::Notify(Notice { reason: said, .. }) if *said == reason))
    }

    /// What was said for this reason.
    pub fn messages(&self, reason: &str) -> Vec<&str> {
        let of_it = self.effects.iter().filter_map(|(_, effect)| match effect {
            Effect::Notify(notice) if notice.reason == reason => Some(notice.message.as_str()),
            _ => None,
        });
        of_it.collect()
    }

    pub fn is_tainted(&self, node: &str) -> bool {
        self.fleet.nodes[&NodeName::from(node)].has_taint(FENCING_TAINT)
    }

    fn tail(&self) -> String {
        let last = self.effects.iter().rev().take(20).rev();
        let lines: Vec<String> = last.map(|(at, effect)| format!("{at:?} {effect:?}")).collect();
        lines.join("\n")
    }
}

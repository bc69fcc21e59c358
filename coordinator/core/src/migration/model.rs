//! A model of what surrounds migrations, for tests: an API server with its binder, agents that copy, a `KubeVirt` that
//! starts and stops, a Wukong that re-creates missing claims blank. A guest writes one more generation to all of its
//! disks in every round that it runs; the generations tell whether a disk was mixed, lost a write or booted blank.
//! Rounds may pass in which nobody leads, and a VM may be started and stopped in between two looks of the same leader.

mod api;
mod objects;
mod others;
mod staged;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use self::objects::hostname;
use self::staged::{CSI, PODS};
use super::{
    Context, Destination, DryRun, DryRunAnswer, GuestQuestion, LOCK_FOLDER, MigrationRecord,
    MigrationRequest, MigrationSpec, Migrations, NewClaim, NoAnswer, OldVolume, Phase, Quota, Unreadable,
    Verdict, WhichDisks,
};
use crate::BootTime;
use crate::evacuation::{EvacuationRecord, Evacuations};
use crate::fleet::{
    ClaimRef, Disk, DiskSource, Fleet, Instance, LiveMigration, LiveMigrationState, Pod, RunStrategy,
    SavedStart, StorageClass, Volume, VolumeSource,
};
use crate::io::{
    Action, ClaimTemplate, Effect, Input, NewVolume, Order, OrderState, Record, RecordKey, Requests,
};
use crate::names::{Key, NodeName, OrderId, Uid, VolumeName};
use crate::policy::Policy;

pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";
const ROOT: &str = "/var/lib/volumes";
/// Root of class `nfs`, the same on every node.
const SHARED_ROOT: &str = "/mnt/nfs";
/// What every node sees, as a place of contents.
const EVERYWHERE: &str = "every node";
/// The node of a lock: there is none of this name.
const NOWHERE: &str = "nowhere";

/// The end of an order that copies nothing.
const NOTHING_COPIED: OrderState = OrderState::Done {
    root_hash: [0; 32],
    total_bytes: 0,
    sent_bytes: 0,
    elapsed: Duration::ZERO,
    unreadable: None,
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "faults that happen independently of each other")]
pub(crate) struct Faults {
    /// Wukong re-creates a missing claim blank, at once.
    pub wukong_recreates: bool,
    /// Copies that fail before one succeeds.
    pub failing_copies: u32,
    /// Rounds until a change of a start field takes effect, is answered and is seen.
    pub slow_starts: u32,
    /// Live migrations are refused.
    pub live_refused: bool,
    /// A guest that starts has no agent and no address.
    pub guest_silent: bool,
    /// Folders that cannot be removed before one can, each for this reason.
    pub failing_removals: (u32, &'static str),
    /// No claim can be made: the namespace is being deleted.
    pub claims_refused: bool,
    /// This claim cannot be made for its new volume.
    pub swap_refused: Option<&'static str>,
    /// No holder gets its volume mounted.
    pub nothing_mounts: bool,
    /// Claims of ours are bound to volumes that were there before.
    pub static_volumes: bool,
    /// No kubelet ends the holders that were deleted.
    pub target_dead: bool,
    /// Kubernetes has taken what holders have mounted from their node by force.
    pub taken_by_force: bool,
    /// Copies begin and do not end.
    pub copies_hang: bool,
    /// No source can be read everywhere.
    pub bad_sectors: bool,
    /// No agent does anything, or says anything: they are killed, or their nodes are off.
    pub agents_silent: bool,
    /// The API server takes nothing.
    pub api_away: bool,
    /// Rounds until a claim of ours and its pod are made, or deleted.
    pub slow_stages: u32,
    /// Questions that a guest does not answer as it should before it does.
    pub failing_answers: u32,
    /// Questions or answers that get lost before one does not.
    pub lost_answers: u32,
    /// No address of a launcher is known.
    pub no_addresses: bool,
    /// The API server refuses Jobs of users' templates.
    pub jobs_refused: bool,
    /// The API server refuses to make a claim for a new volume.
    pub claims_not_admitted: bool,
    /// The user's Job fails.
    pub job_fails: bool,
    /// Dry runs to which the API server cannot say anything before it can.
    pub failing_dry_runs: u32,
    /// Dry runs whose answer gets lost before one does not.
    pub lost_dry_runs: u32,
}

pub(crate) struct World {
    pub fleet: Fleet,
    pub requests: Requests,
    pub policy: Policy,
    pub usable: BTreeSet<NodeName>,
    pub dead: BTreeSet<NodeName>,
    pub machine: Migrations,
    pub evacuations: Evacuations,
    pub evacuation_store: BTreeMap<String, EvacuationRecord>,
    pub store: BTreeMap<Key, MigrationRecord>,
    pub faults: Faults,
    pub now: BootTime,
    pub epoch: u64,
    /// Generation of each volume's content, by path; a blank disk has none.
    pub content: BTreeMap<String, u64>,
    /// Last generation that each VM wrote.
    pub generations: BTreeMap<Key, u64>,
    pub effects: Vec<Effect>,
    inbox: Vec<Input>,
    /// Changes of start fields on their way, in order, each with the rounds that it still takes.
    late: VecDeque<(u32, Action)>,
    copies: BTreeMap<OrderId, (NodeName, Order)>,
    /// Volumes whose objects somebody has deleted.
    deleted: BTreeSet<VolumeName>,
    /// What claims of ours ask, by their names.
    templates: BTreeMap<String, ClaimTemplate>,
    /// Volumes that have an alias, by its name.
    aliases: BTreeMap<String, VolumeName>,
    order_ids: BTreeSet<OrderId>,
    next_uid: u32,
    /// Quotas of the namespace; what is used is counted when it is asked.
    pub quotas: Vec<Quota>,
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("default", name)
}

/// To network storage, where the VM may run on any node: on its old one too, beside its old disks.
pub(crate) fn to_class(vm: &str, class: &str) -> MigrationSpec {
    MigrationSpec { destination: Destination::Class(class.to_owned()), ..to_node(vm, "") }
}

/// Back from network storage, or from one to another.
pub(crate) fn all_to_class(vm: &str, class: &str) -> MigrationSpec {
    MigrationSpec { disks: WhichDisks::All, ..to_class(vm, class) }
}

pub(crate) fn to_node(vm: &str, node: &str) -> MigrationSpec {
    MigrationSpec {
        vm: Some(vm.to_owned()),
        claim: None,
        destination: Destination::Node(node.into()),
        pre_copy_only: false,
        cancelled: false,
        remove_old: false,
        unreadable: Unreadable::Fail,
        disks: WhichDisks::Local,
        probe: None,
        evacuation: None,
    }
}

impl World {
    /// Nodes n1..n3, and VM `vm` of a Wukong with two local disks on n2.
    pub fn new() -> Self {
        let mut world = Self {
            fleet: Fleet::default(),
            requests: Requests::default(),
            policy: Policy::default(),
            usable: BTreeSet::new(),
            dead: BTreeSet::new(),
            machine: Migrations::default(),
            evacuations: Evacuations::default(),
            evacuation_store: BTreeMap::new(),
            store: BTreeMap::new(),
            faults: Faults::default(),
            now: Duration::from_secs(1000),
            epoch: 0,
            content: BTreeMap::new(),
            generations: BTreeMap::new(),
            effects: Vec::new(),
            inbox: Vec::new(),
            late: VecDeque::new(),
            copies: BTreeMap::new(),
            deleted: BTreeSet::new(),
            templates: BTreeMap::new(),
            aliases: BTreeMap::new(),
            order_ids: BTreeSet::new(),
            next_uid: 0,
            quotas: Vec::new(),
        };
        let class = StorageClass {
            provisioner: "rancher.io/local-path".into(),
            waits_for_consumer: true,
            ..Default::default()
        };
        world.fleet.classes.insert("local-path".into(), class);
        for (class, driver) in [("nfs", "nfs.csi.k8s.io"), ("ceph", "rbd.csi.ceph.com")] {
            let mut class_of = StorageClass { provisioner: driver.into(), ..StorageClass::default() };
            if class == "nfs" {
                class_of.parameters =
                    ["server", "share"].map(|name| (name.to_owned(), "x".to_owned())).into();
            }
            world.fleet.classes.insert(class.into(), class_of);
        }
        for name in ["n1", "n2", "n3"] {
            world.add_node(name);
        }
        world.add_vm("vm", "n2", &["system", "data"]);
        world.take_over();
        world
    }

    /// A new leader: memory is gone, the store is not.
    pub fn take_over(&mut self) {
        self.epoch += 1;
        self.machine = Migrations::default();
        self.evacuations = Evacuations::default();
        self.list_again();
    }

    /// The same leader reads the records anew; answers to what it asked before are dropped.
    pub fn list_again(&mut self) {
        self.inbox.clear();
        let migrations = self.store.values().map(|record| Record::Migration(Box::new(record.clone())));
        let evacuations = self.evacuation_store.values().map(|record| Record::Evacuation(record.clone()));
        let records = migrations.chain(evacuations).collect();
        let epoch = self.epoch;
        self.input(Input::Leading { epoch, records, recoveries: Vec::new() });
    }

    /// Somebody creates a `VolumeMigration`: an object of its own, even where one of its name was before.
    pub fn ask(&mut self, name: &str, spec: MigrationSpec) {
        self.next_uid += 1;
        let uid = Uid(format!("m-uid-{}", self.next_uid));
        self.store.remove(&key(name));
        self.requests.migrations.insert(key(name), MigrationRequest { uid, spec });
    }

    /// What it asks.
    pub fn spec(&mut self, name: &str) -> &mut MigrationSpec {
        &mut self.requests.migrations.get_mut(&key(name)).expect("asked").spec
    }

    /// Somebody deletes it.
    pub fn delete(&mut self, name: &str) {
        self.requests.migrations.remove(&key(name));
        self.store.remove(&key(name));
    }

    pub fn phase(&self, name: &str) -> Phase {
        self.store.get(&key(name)).map_or(Phase::Pending, |record| record.phase)
    }

    /// One round: the machine looks, one waiting message arrives, the others do their part.
    pub fn round(&mut self) {
        self.now += Duration::from_secs(1);
        self.input(Input::Tick);
        if !self.inbox.is_empty() {
            let input = self.inbox.remove(0);
            self.input(input);
        }
        self.late_changes();
        for (name, spec) in &mut self.requests.evacuations {
            spec.complete = self.evacuation_store.get(name).is_some_and(|record| record.complete);
        }
        self.provisioners();
        self.agents();
        self.kubevirt();
        self.check();
    }

    /// Rounds in which nobody leads, or in which the leader does not look: the others go on.
    pub fn unseen(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.now += Duration::from_secs(1);
            self.late_changes();
            self.provisioners();
            self.agents();
            self.kubevirt();
            self.check();
        }
    }

    /// Somebody starts the VM, lets it run, and stops it, while nobody looks. Its owner's field is as before.
    pub fn run_unseen(&mut self, name: &str) {
        let before = self.set_run(name, RunStrategy::Always);
        self.unseen(2);
        self.set_run(name, before);
        self.unseen(1);
    }

    /// Somebody starts or stops a VM; says how it was.
    pub fn set_run(&mut self, name: &str, run: RunStrategy) -> RunStrategy {
        std::mem::replace(&mut self.fleet.vms.get_mut(&key(name)).expect("there").run, run)
    }

    pub fn rounds(&mut self, count: usize) {
        (0..count).for_each(|_| self.round());
    }

    pub fn run(&mut self, rounds: usize, name: &str) -> Phase {
        for _ in 0..rounds {
            if self.phase(name).is_final()
                && self.machine.record(&key(name)).is_some_and(|record| record.phase.is_final())
            {
                break;
            }
            self.round();
        }
        self.phase(name)
    }

    #[allow(clippy::needless_pass_by_value)] // reads better where it is called
    pub fn input(&mut self, input: Input) {
        let ctx = Context {
            fleet: &self.fleet,
            requests: &self.requests,
            policy: &self.policy,
            epoch: self.epoch,
            usable: &self.usable,
            dead: &self.dead,
        };
        let mut effects = self.machine.step(self.now, &input, &ctx);
        effects.extend(self.evacuations.step(self.now, &input, &ctx, &self.machine));
        for effect in effects {
            self.effects.push(effect.clone());
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Commit(Record::Migration(record)) => {
                let key = RecordKey::Migration(record.key.clone());
                let object = self.requests.migrations.get(&record.key);
                if self.faults.api_away || object.is_none_or(|object| object.uid != record.uid) {
                    self.inbox.push(Input::CommitRefused(key));
                } else {
                    self.inbox.push(Input::Committed(key));
                    self.store.insert(record.key.clone(), *record);
                }
            }
            Effect::Commit(Record::Evacuation(record)) => {
                self.inbox.push(Input::Committed(RecordKey::Evacuation(record.name.clone())));
                self.evacuation_store.insert(record.name.clone(), record);
            }
            Effect::Act(action) if self.faults.api_away => {
                let why = "the API server does not answer".to_owned();
                self.inbox.push(Input::ActionFailed { action, why });
            }
            Effect::Act(action @ (Action::StopVm { .. } | Action::RestoreStart { .. }))
                if self.faults.slow_starts > 0 =>
            {
                self.late.push_back((self.faults.slow_starts, action));
            }
            Effect::Act(action @ (Action::Stage(_) | Action::Unstage { .. }))
                if self.faults.slow_stages > 0 =>
            {
                self.late.push_back((self.faults.slow_stages, action));
            }
            Effect::Act(action) => {
                let answer = match self.act(&action) {
                    Ok(()) => Input::Acted(action),
                    Err(why) => Input::ActionFailed { action, why },
                };
                self.inbox.push(answer);
            }
            Effect::AskGuest { question, .. } => self.ask_guest(question),
            Effect::DryRun(question) => self.dry_run(question),
            Effect::Order { node, id, order } => {
                assert!(self.order_ids.insert(id.clone()), "order id {id} is used twice");
                self.copies.insert(id, (node, order));
            }
            _ => {}
        }
    }

    /// It is asked while it runs on its new volumes, where it runs, and once at a time.
    fn ask_guest(&mut self, question: GuestQuestion) {
        let vm = self.requests.migrations[&question.migration].spec.vm.as_ref().expect("a VM is asked");
        let instance = self.fleet.vms[&key(vm)].instance.as_ref().expect("it runs");
        let address = launcher_address(instance.node.as_ref().expect("somewhere"));
        assert_eq!((&question.instance, question.address), (&instance.uid, address));
        assert_eq!(self.phase(&question.migration.name), Phase::Confirming);
        let out = |input: &Input| matches!(input, Input::GuestAnswered { question: other, .. } if other.migration == question.migration);
        assert!(!self.inbox.iter().any(out), "asked twice at once");
        if self.faults.lost_answers > 0 {
            self.faults.lost_answers -= 1;
            return;
        }
        let answer = if self.faults.failing_answers > 0 {
            self.faults.failing_answers -= 1;
            Err("connection refused".into())
        } else if self.faults.job_fails {
            Err(NoAnswer { why: "Job web-1 has failed".into(), is_final: true })
        } else {
            Ok("it accepts a connection".to_owned())
        };
        self.inbox.push(Input::GuestAnswered { question, answer });
    }

    /// Asked before the VM is stopped, and never after.
    fn dry_run(&mut self, question: DryRun) {
        let stored = self.store.get(&question.migration).filter(|record| record.uid == question.uid);
        assert!(
            stored.is_none_or(|record| record.phase.is_before_stop()),
            "asked after the stop: {stored:?}"
        );
        if self.faults.lost_dry_runs > 0 {
            self.faults.lost_dry_runs -= 1;
            return;
        }
        let answer = if self.faults.failing_dry_runs > 0 {
            self.faults.failing_dry_runs -= 1;
            Err("a webhook does not answer".to_owned())
        } else {
            let refused = || Verdict::Refused("jobs.batch is forbidden".into());
            let verdict = || if self.faults.jobs_refused { refused() } else { Verdict::Admitted };
            Ok(DryRunAnswer {
                claims: self.admitted(&question),
                quotas: self.quotas.iter().map(|quota| self.counted(quota)).collect(),
                job: question.job.as_ref().map(|_| verdict()),
            })
        };
        self.inbox.push(Input::DryRunAnswered { question, answer });
    }

    fn late_changes(&mut self) {
        if let Some((left, _)) = self.late.front_mut() {
            *left -= 1;
        }
        if let Some((_, action)) = self.late.pop_front_if(|(left, _)| *left == 0) {
            let answer = match self.act(&action) {
                Ok(()) => Input::Acted(action),
                Err(why) => Input::ActionFailed { action, why },
            };
            self.inbox.push(answer);
        }
    }

    /// What must hold in every round: once a claim was touched, its old volume stays, until its removal was asked for, and
    /// stored.
    fn check(&self) {
        for record in self.store.values() {
            let asked =
                self.requests.migrations.get(&record.key).is_some_and(|request| request.spec.remove_old);
            for disk in &record.disks {
                let given_up = |effect: &Effect| matches!(effect, Effect::Act(Action::DeleteReleased { volume, .. }) if *volume == disk.old);
                if asked && (disk.old_volume != OldVolume::Kept || self.effects.iter().any(given_up)) {
                    continue;
                }
                let claim = self.fleet.claims.get(&disk.claim);
                if claim.is_some_and(|claim| claim.uid == disk.claim_uid) || self.deleted.contains(&disk.old)
                {
                    continue;
                }
                let old = self.fleet.volumes.get(&disk.old);
                assert!(
                    old.is_some_and(|old| old.retained),
                    "{:?}: {} must stay, on Retain",
                    record.phase,
                    disk.old
                );
                let claim = old.and_then(|old| old.claim.as_ref());
                assert!(
                    claim.is_some_and(|claim| claim.key == disk.claim),
                    "the old volume's claimRef was nulled"
                );
            }
        }
    }
}

fn launcher(instance: &Instance, no_address: bool) -> Pod {
    let node = instance.node.clone();
    Pod {
        name: "virt-launcher".into(),
        uid: Uid(format!("pod-of-{}", instance.uid.0)),
        address: node.as_ref().map(launcher_address).filter(|_| !no_address),
        node,
        phase: "Running".into(),
        instance: Some(instance.uid.clone()),
        claims: instance.claims.clone(),
    }
}

/// One for each node.
fn launcher_address(node: &NodeName) -> IpAddr {
    Ipv4Addr::new(10, 42, 0, *node.0.as_bytes().last().expect("a name")).into()
}

fn place(node: &str, path: &str) -> String {
    format!("{node}:{path}")
}

/// The one node of a volume, where there is one, and its path.
type Place = (Option<String>, String);

/// `None` where a guest cannot reach it from anywhere: a lock.
fn place_of_volume(volume: &Volume) -> Option<Place> {
    let node = volume.node_affinity.as_ref().map(|affinity| affinity.terms[0][0].values[0].clone());
    if let VolumeSource::Csi { handle, .. } = &volume.source {
        return Some((node, format!("{CSI}{handle}")));
    }
    let path = volume.source.path()?.to_owned();
    (node.is_some() || path.starts_with(SHARED_ROOT)).then_some((node, path))
}

fn place_of(node: Option<&str>, path: &str) -> String {
    place(node.unwrap_or(EVERYWHERE), path)
}

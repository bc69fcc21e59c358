//! VMs whose storage is broken while their nodes live: noticed, and told to people. Nothing is ever acted upon.
//!
//! ```text
//!   broken ──► suspected ── held for SETTLE, and where an agent told it: ──► NeedsPerson ◄── broken again ──┐
//!                 │         listed anew since it was suspected                │                              │
//!                 └ sound: forgotten                                          └ sound for SETTLE ──► Recovered
//!
//!   a node incident takes the VM over, or the VM is gone ──► forgotten: the incident's decision names the same reasons
//!   the VM is rebuilt, or a migration changes its disks  ──► nothing new is found out, what is told stays
//! ```
//!
//! Three things keep this from crying wolf:
//! - Controllers and people delete claims to make them anew, and watches of claims and volumes race: a finding must
//!   hold for [`SETTLE`].
//! - An agent lists its folders once a minute, so a volume that was made since is in no listing: a finding that rests
//!   on an agent's word needs a listing that was made after it was first suspected, when its volume was there for sure.
//! - Silence clears nothing: an agent that has just started has listed nothing yet, and does not make a lost folder
//!   sound.
//!
//! The cost: a look at every VM when the cluster or a report changed, at most once in [`LOOK_EVERY`]. Most disks cost
//! five lookups by name (see `decision/storage`); only VMs that look broken are decided upon.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::BootTime;
use crate::decision::{BrokenDisk, Decider, Decision, DecisionKind, Reason, Told, broken_disks};
use crate::fleet::{self, DiskImage, Fleet, Grade, NodeReport, Vm, VolumeMode};
use crate::io::{Effect, Severity};
use crate::locality::{self, Likely};
use crate::names::{Key, NodeName, Uid};
use crate::runbook::{storage_over, storage_runbook};
use crate::scene::{Scene, tell_vm};
use crate::view::{RecoveryCause, RecoveryProgress, RecoveryView};

/// How long a finding, or its absence, must hold. A claim that its controller makes anew is back within a second or
/// two, the swap of a claim by hand or by CDI takes a few; people who have lost a disk are not helped by the seconds.
const SETTLE: Duration = Duration::from_secs(10);
/// Between two looks. A person waits for more than that anyway, and a look at ten thousand VMs takes a tenth of a second
/// in a build that is not even optimized.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A report may have been under way for this long: its listing is that much older than its age tells. A session that
/// stalls is closed after ten seconds by its keep-alive; this is twice that.
const REPORT_DELAY_MAX: Duration = Duration::from_secs(20);
/// So long after the beginning of a term every agent that lives has reported, has listed anew (once a minute) and has
/// reported that: what is not suspected then is sound, and what leaders before us have told of it is over.
const KNOWN_AFTER: Duration = Duration::from_mins(3);
/// VMs that are decided upon in one look, and shown. Where more are broken at once, it is the cluster that is, and a
/// runbook for each more VM helps nobody; the next ones come when these are sound.
const CASES_MAX: usize = 1_000;

/// Folders of a node of which it is remembered that they are gone: as many as a root may have volumes and more.
const GONE_MAX: usize = 10_000;

/// What is broken of a VM, and since when.
type Faults = BTreeMap<BrokenDisk, BootTime>;

/// Watches the storage of every VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct StorageWatch {
    /// The cluster or a report changed since the last look.
    changed: bool,
    looked: Option<BootTime>,
    /// Since when we lead.
    since: Option<BootTime>,
    /// When each storage root was last listed, by our clock.
    listed: BTreeMap<NodeName, BTreeMap<String, BootTime>>,
    /// What we have seen of each VM; also while we do not lead.
    memory: BTreeMap<Key, Memory>,
    suspects: BTreeMap<Key, Faults>,
    cases: BTreeMap<Key, Case>,
}

/// What was seen of a VM's claims.
#[derive(Clone, Debug)]
struct Memory {
    /// Which VM of this name.
    vm: Uid,
    /// Claims that were bound some time.
    bound: BTreeSet<String>,
    /// By the claim's uid: another claim may be given the same folder, emptied.
    images: BTreeMap<Uid, Image>,
}

/// The image of a claim.
#[derive(Clone, Debug)]
struct Image {
    /// When the claim was first seen bound: an older listing may tell of what the folder held for another claim.
    since: BootTime,
    /// Where a listing since then found it.
    seen: Option<(NodeName, String)>,
}

impl Memory {
    /// Claims that are made anew, plugged and unplugged for years must not add up.
    fn forget_others(&mut self, fleet: &Fleet, key: &Key, vm: &Vm) {
        if self.bound.len() > vm.disks.len() {
            self.bound.retain(|bound| vm.claim_names().any(|name| name == bound));
        }
        if self.images.len() > vm.disks.len() {
            let uid = |claim: &Key| fleet.claims.get(claim).map(|claim| &claim.uid);
            self.images.retain(|image, _| vm.claims(&key.namespace).any(|claim| uid(&claim) == Some(image)));
        }
    }
}

/// A VM of which people were told.
#[derive(Clone, Debug)]
struct Case {
    decision: Decision,
    runbook: String,
    /// What it was opened for, or last decided anew for.
    faults: BTreeSet<BrokenDisk>,
    progress: RecoveryProgress,
    /// Since when nothing is broken.
    sound_since: Option<BootTime>,
}

/// Folders that were listed and are not any more. Of a root that was not listed anew nothing is known anew.
fn gone(old: &NodeReport, new: &NodeReport) -> BTreeSet<String> {
    let looked = |path: &&String| {
        new.root_of(path).is_none_or(|root| root.listed_age.is_some()) && !new.usage.contains_key(*path)
    };
    let kept = old.gone.iter().filter(|path| !new.usage.contains_key(*path));
    // The newest first: volumes come and go for years.
    old.usage.keys().filter(looked).chain(kept).take(GONE_MAX).cloned().collect()
}

/// Which VMs are looked after elsewhere.
pub(crate) struct Elsewhere<'a> {
    /// In a node's incident: its case here ends.
    pub incident: &'a dyn Fn(&Key) -> bool,
    /// Rebuilt: left as it is.
    pub rebuilt: &'a dyn Fn(&Key) -> bool,
    /// Claims that a migration gives another volume just now: their VMs are left as they are.
    pub switching: BTreeSet<&'a Key>,
}

impl Elsewhere<'_> {
    fn is_busy(&self, fleet: &Fleet, key: &Key) -> bool {
        (self.rebuilt)(key) || (!self.switching.is_empty() && self.is_switching(fleet, key))
    }

    fn is_switching(&self, fleet: &Fleet, key: &Key) -> bool {
        let mut claims = fleet.vms.get(key).into_iter().flat_map(|vm| vm.claims(&key.namespace));
        claims.any(|claim| self.switching.contains(&claim))
    }
}

impl StorageWatch {
    /// The cluster was read anew.
    pub fn fleet_read(&mut self) {
        self.changed = true;
    }

    /// An agent reported. Marks what the last look has found to have vanished, until the next one looks.
    pub fn reported(
        &mut self,
        now: BootTime,
        node: &NodeName,
        old: Option<&NodeReport>,
        new: &mut NodeReport,
    ) {
        self.changed = true;
        let at = |root: &fleet::StorageRoot| Some((root.path.clone(), now.checked_sub(root.listed_age?)?));
        self.listed.insert(node.clone(), new.roots.iter().filter_map(at).collect());
        if let Some(old) = old {
            new.gone = gone(old, new);
        }
        let vanished = old.into_iter().flat_map(|old| &old.usage);
        for (path, _) in vanished.filter(|(_, usage)| usage.disk_image == DiskImage::Vanished) {
            if let Some(usage) = new.usage.get_mut(path).filter(|usage| usage.disk_image == DiskImage::Absent)
            {
                usage.disk_image = DiskImage::Vanished;
            }
        }
    }

    /// The node is gone.
    pub fn forget(&mut self, node: &NodeName) {
        self.listed.remove(node);
    }

    /// We lead: everything is found out anew. What was seen of the VMs stays.
    pub fn begin_leading(&mut self, now: BootTime) {
        self.stop_leading();
        (self.since, self.looked, self.changed) = (Some(now), None, true);
    }

    /// We lead no more.
    pub fn stop_leading(&mut self) {
        self.since = None;
        self.suspects.clear();
        self.cases.clear();
    }

    /// Node incidents began or ended: a VM that is in one is told of there.
    pub fn hand_over(&mut self, incident: impl Fn(&Key) -> bool) {
        self.cases.retain(|key, _| !incident(key));
        self.suspects.retain(|key, _| !incident(key));
    }

    /// Whether a look is due.
    pub fn is_due(&self, now: BootTime) -> bool {
        self.due_at().is_some_and(|at| now >= at)
    }

    fn due_at(&self) -> Option<BootTime> {
        let next = self.looked.map_or(BootTime::ZERO, |at| at + LOOK_EVERY);
        if self.changed {
            return Some(next);
        }
        // Without a change only time settles things.
        let suspected = self.suspects.values().flat_map(Faults::values);
        let sound = self.cases.values().filter_map(|case| case.sound_since.as_ref());
        let settles = suspected.chain(sound).map(|since| *since + SETTLE);
        let looked = self.looked?;
        settles.filter(|at| *at > looked).min().map(|at| at.max(next))
    }

    /// When time alone changes something.
    pub fn next_deadline(&self) -> Option<BootTime> {
        self.since.and(self.due_at())
    }

    /// Remembers what is there, leader or not. Returns images that are not there any more, to be marked.
    pub fn remember(&mut self, now: BootTime, fleet: &Fleet) -> Vec<(NodeName, String)> {
        (self.changed, self.looked) = (false, Some(now));
        self.memory.retain(|key, memory| fleet.vms.get(key).is_some_and(|vm| vm.uid == memory.vm));
        let mut vanished = Vec::new();
        for (key, vm) in &fleet.vms {
            let memory = self.memory.entry(key.clone()).or_insert_with(|| Memory {
                vm: vm.uid.clone(),
                bound: BTreeSet::new(),
                images: BTreeMap::new(),
            });
            for name in vm.claim_names() {
                let claim_key = Key::new(&key.namespace, name);
                let Ok((claim, _, volume)) = locality::bound_volume(fleet, &claim_key) else { continue };
                if !memory.bound.contains(name) {
                    memory.bound.insert(name.clone());
                }
                let Some(path) = volume.source.path().filter(|_| volume.mode == VolumeMode::Filesystem)
                else {
                    continue;
                };
                let Likely::Node(node) = locality::likely_node(fleet, volume) else { continue };
                let path = fleet::folder(path);
                let usage = fleet.reports.get(node).and_then(|report| report.usage.get(path));
                if !memory.images.contains_key(&claim.uid) {
                    memory.images.insert(claim.uid.clone(), Image { since: now, seen: None });
                }
                let Some(image) = memory.images.get_mut(&claim.uid) else { continue };
                let known = image.seen.as_ref().is_some_and(|(at, was)| at == node && was == path);
                match usage.map(|usage| usage.disk_image) {
                    Some(DiskImage::Present)
                        if !known && is_listed_since(&self.listed, node, path, image.since) =>
                    {
                        image.seen = Some((node.clone(), path.to_owned()));
                    }
                    Some(DiskImage::Absent) if known => vanished.push((node.clone(), path.to_owned())),
                    _ => {}
                }
            }
            memory.forget_others(fleet, key, vm);
        }
        vanished
    }

    /// Looks at every VM, and tells what has settled.
    pub fn look(&mut self, scene: &Scene<'_>, elsewhere: &Elsewhere<'_>, fx: &mut Vec<Effect>) {
        let fleet = &scene.facts.fleet;
        let there = |key: &Key| fleet.vms.contains_key(key) && !(elsewhere.incident)(key);
        self.cases.retain(|key, _| there(key));
        // Whatever was suspected before its disks changed hands is worth nothing afterwards.
        self.suspects.retain(|key, _| there(key) && !elsewhere.is_busy(fleet, key));
        let mut decider = None;
        let mut count = 0;
        let ours = |key: &&Key| !(elsewhere.incident)(key) && !elsewhere.is_busy(fleet, key);
        for key in fleet.vms.keys().filter(ours) {
            let found = self.find(scene, key);
            if found.is_empty() {
                self.suspects.remove(key);
                self.sound(scene, key, fx);
                continue;
            }
            if !self.suspects.contains_key(key) && self.suspects.len() >= CASES_MAX {
                continue;
            }
            let settled = self.settled(scene.now, key, found);
            if settled.is_empty() {
                self.unsettled(scene, key, fx);
                continue;
            }
            if count >= CASES_MAX {
                continue;
            }
            count += 1;
            self.expect_images(fleet, key, &settled);
            let overrides = &scene.facts.policy.class_overrides;
            let decider = decider.get_or_insert_with(|| Decider::new(fleet, overrides));
            let counts = |disk: &str, reason: Reason| {
                settled.iter().any(|fault| fault.disk == disk && fault.reason == reason)
            };
            let decision = decider.decide_storage(key, &counts);
            self.broken(scene, key, settled, decision, fx);
        }
    }

    /// What is broken of a VM now, with what was and of which nobody says anything now.
    fn find(&self, scene: &Scene<'_>, key: &Key) -> BTreeSet<BrokenDisk> {
        let fleet = &scene.facts.fleet;
        let mut found: BTreeSet<BrokenDisk> =
            broken_disks(fleet, &scene.facts.policy.class_overrides, key).into_iter().collect();
        found.retain(|fault| fault.reason != Reason::ClaimMissing || self.was_there(fleet, key, fault));
        if let Some(case) = self.cases.get(key) {
            let unsaid = case.faults.iter().filter(|fault| is_unsaid(fleet, fault));
            found.extend(unsaid.cloned());
        }
        found
    }

    /// A VM that was just made waits for the claim that CDI is about to make.
    fn was_there(&self, fleet: &Fleet, key: &Key, fault: &BrokenDisk) -> bool {
        let started = fleet.vms.get(key).is_some_and(|vm| vm.instance.is_some());
        let bound = fault.claim.as_ref().zip(self.memory.get(key));
        started || bound.is_some_and(|(claim, memory)| memory.bound.contains(&claim.name))
    }

    /// Notes since when each fault is there; returns those that have settled.
    fn settled(&mut self, now: BootTime, key: &Key, found: BTreeSet<BrokenDisk>) -> BTreeSet<BrokenDisk> {
        let told = self.cases.get(key).filter(|case| case.progress == RecoveryProgress::NeedsPerson);
        let faults = self.suspects.entry(key.clone()).or_default();
        faults.retain(|fault, _| found.contains(fault));
        for fault in found {
            faults.entry(fault).or_insert(now);
        }
        let listed = &self.listed;
        let has_settled = |fault: &BrokenDisk, since: BootTime| {
            let listed_anew = |told: &Told| is_listed_since(listed, &told.node, &told.path, since);
            now >= since + SETTLE && fault.by_listing().is_none_or(listed_anew)
        };
        let settled = faults.iter().filter(|(fault, since)| {
            told.is_some_and(|case| case.faults.contains(fault)) || has_settled(fault, **since)
        });
        settled.map(|(fault, _)| fault.clone()).collect()
    }

    /// Nothing that was told is broken any more, but something else may be: sound only once that has had its time. It may
    /// never settle, where an agent cannot list all of its folders.
    fn unsettled(&mut self, scene: &Scene<'_>, key: &Key, fx: &mut Vec<Effect>) {
        let mut suspected = self.suspects.get(key).into_iter().flat_map(Faults::values);
        if suspected.all(|since| scene.now >= *since + KNOWN_AFTER) {
            self.sound(scene, key, fx);
        } else if let Some(case) = self.cases.get_mut(key) {
            case.sound_since = None;
        }
    }

    /// An image that is known to be lost stays lost when the VM that ran with it is stopped.
    fn expect_images(&mut self, fleet: &Fleet, key: &Key, settled: &BTreeSet<BrokenDisk>) {
        let Some(memory) = self.memory.get_mut(key) else { return };
        for fault in settled.iter().filter(|fault| fault.reason == Reason::DiskImageMissing) {
            let claim = fault.claim.as_ref().and_then(|claim| fleet.claims.get(claim));
            let image = claim.and_then(|claim| memory.images.get_mut(&claim.uid));
            if let (Some(image), Some(told)) = (image, &fault.told) {
                image.seen = Some((told.node.clone(), told.path.clone()));
            }
        }
    }

    fn broken(
        &mut self,
        scene: &Scene<'_>,
        key: &Key,
        faults: BTreeSet<BrokenDisk>,
        decision: Decision,
        fx: &mut Vec<Effect>,
    ) {
        // Nothing says any more what was told before: it stays as it was told.
        if decision.kind != DecisionKind::ManualRecovery {
            if let Some(case) = self.cases.get_mut(key) {
                case.sound_since = None;
            }
            return;
        }
        let open = self.cases.get(key).filter(|case| case.progress == RecoveryProgress::NeedsPerson);
        let news = open.is_none_or(|case| !case.faults.is_superset(&faults));
        if !self.cases.contains_key(key) && self.cases.len() >= CASES_MAX {
            // Those that are over make room; where there is none left, the next look tries again.
            self.cases.retain(|_, case| case.progress == RecoveryProgress::NeedsPerson);
            if self.cases.len() >= CASES_MAX {
                return;
            }
        }
        if news {
            tell_failed(fx, &decision);
        }
        let runbook = storage_runbook(&scene.facts.fleet, &scene.facts.policy.class_overrides, &decision);
        let progress = RecoveryProgress::NeedsPerson;
        let case = Case { decision, runbook, faults, progress, sound_since: None };
        self.cases.insert(key.clone(), case);
    }

    fn sound(&mut self, scene: &Scene<'_>, key: &Key, fx: &mut Vec<Effect>) {
        let Some(case) = self.cases.get_mut(key) else { return };
        if case.progress != RecoveryProgress::NeedsPerson {
            return;
        }
        let since = *case.sound_since.get_or_insert(scene.now);
        if scene.now >= since + SETTLE {
            case.progress = RecoveryProgress::Recovered;
            case.runbook = storage_over(&scene.facts.fleet, &case.decision);
            let message = format!("No disk of {key} is broken any more.");
            tell_vm(fx, Severity::Info, key, "StorageSound", message);
        }
    }

    /// What to show.
    pub fn views<'a>(&'a self, fleet: &'a Fleet) -> impl Iterator<Item = (Key, RecoveryView)> + 'a {
        self.cases.iter().map(move |(key, case)| {
            let view = RecoveryView {
                cause: RecoveryCause::StorageFailed,
                node: node_of(fleet, key, case),
                decision: case.decision.clone(),
                progress: case.progress,
                proof: None,
                ended: false,
                runbook: Some(case.runbook.clone()),
            };
            (key.clone(), view)
        })
    }

    /// VMs that are neither sound nor told of yet; `None` before enough is known to say so of the others.
    pub fn in_doubt(&self, now: BootTime) -> Option<BTreeSet<Key>> {
        let known = self.since.is_some_and(|since| now >= since + KNOWN_AFTER) && self.looked.is_some();
        known.then(|| self.suspects.keys().cloned().collect())
    }
}

/// The agent made a complete listing after this moment.
fn is_listed_since(
    listed: &BTreeMap<NodeName, BTreeMap<String, BootTime>>,
    node: &NodeName,
    path: &str,
    since: BootTime,
) -> bool {
    let roots = listed.get(node).into_iter().flatten();
    let below =
        |root: &str| path.strip_prefix(root.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'));
    let root = roots.filter(|(root, _)| below(root)).max_by_key(|(root, _)| root.len());
    root.is_some_and(|(_, at)| *at >= since + REPORT_DELAY_MAX)
}

/// The agent says nothing now of what it has told before, of the same volume.
fn is_unsaid(fleet: &Fleet, fault: &BrokenDisk) -> bool {
    let (Some(told), Some(claim)) = (&fault.told, &fault.claim) else { return false };
    let Ok((_, volume, _)) = locality::bound_volume(fleet, claim) else { return false };
    if *volume != told.volume {
        return false;
    }
    let Some(report) = fleet.reports.get(&told.node) else { return true };
    let Some(root) = report.root_of(&told.path) else { return false };
    match fault.reason {
        Reason::DiskFailed => {
            let disk = root.disk.as_ref().and_then(|name| report.disks.get(name));
            disk.is_none_or(|disk| disk.grade == Grade::Unknown)
        }
        Reason::DiskImageMissing => {
            let usage = report.usage.get(&told.path);
            let image = usage.map(|usage| usage.disk_image);
            image.map_or(root.listed_age.is_none(), |image| image == DiskImage::Untold)
        }
        _ => root.listed_age.is_none(),
    }
}

/// Where the VM runs, else where its broken disk is, else where any disk of it is.
fn node_of(fleet: &Fleet, key: &Key, case: &Case) -> Option<NodeName> {
    let runs_on = fleet.vms.get(key).and_then(|vm| vm.node().cloned());
    let told = case.faults.iter().find_map(|fault| fault.told.as_ref()).map(|told| told.node.clone());
    runs_on.or(told).or_else(|| case.decision.local_nodes().next().cloned())
}

fn tell_failed(fx: &mut Vec<Effect>, decision: &Decision) {
    let key = &decision.vm;
    let message = format!(
        "{key}: {}. What to do: {}. Nothing of it is touched.",
        decision.details.join("; "),
        decision.remedy
    );
    tell_vm(fx, Severity::Warning, key, "StorageFailed", message);
}

#[cfg(test)]
mod tests;

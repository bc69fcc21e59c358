//! The VMs of one dead node.

use std::collections::{BTreeMap, BTreeSet};

use super::Trouble;
use super::by_hand::{self, Steps};
use super::rebuild::Rebuild;
use crate::BootTime;
use crate::decision::{Decision, DecisionKind};
use crate::fencing::{FenceProof, ProofKind};
use crate::fleet::{Fleet, Pod, RunStrategy, Vm};
use crate::io::{Action, Effect, Severity};
use crate::names::{Key, NodeName, Uid, VolumeName};
use crate::rebuild::DeadPod;
use crate::runbook::{Progress, Standing, begun_by_hand, runbook, shell_word};
use crate::scene::{Scene, tell_vm};
use crate::view::{RecoveryCause, RecoveryProgress, RecoveryView};

/// An attachment that is asked to go does so within seconds; one that stays is asked again.
const DETACH_RETRY: BootTime = BootTime::from_secs(10);

/// The VMs of one dead node.
#[derive(Clone, Debug, Default)]
pub(super) struct Incident {
    pub vms: BTreeMap<Key, VmCase>,
    /// The node's taint was set by us, whatever an older reading of the cluster says.
    pub tainted: bool,
    /// A VM was acted upon.
    pub acted: bool,
    /// Launchers that were deleted, or are about to be.
    pub superseded: BTreeSet<Uid>,
    /// What proved that the node is dead, whoever stored it.
    pub proof: Option<ProofKind>,
    /// Pods that had run when the proof was stored; `None` before that.
    died: Option<BTreeSet<Uid>>,
    /// Attachments to the node whose VM goes on elsewhere, by name, as the cluster was last read.
    left_behind: Vec<(String, Uid)>,
    /// Attachments whose deletion was asked for, and when it may be asked for again.
    detaching: BTreeMap<Action, BootTime>,
}

/// One VM of a dead node.
#[derive(Clone, Debug)]
pub(super) struct VmCase {
    pub decision: Option<Decision>,
    pub progress: RecoveryProgress,
    /// A leader before us has shown it: it is told to its end, whatever is decided now.
    inherited: bool,
    /// It was told that the VM runs away from its disks.
    strayed: bool,
    runbook: Option<String>,
    /// What a person may do, as it was written last before anything was done, its node proven dead.
    steps: Steps,
    /// Its launcher must not be deleted, whatever is decided: it may not be dead.
    hands_off: bool,
    /// Deletions that have not been performed yet.
    left: BTreeSet<Action>,
    attempts: u32,
    /// When it entered its progress.
    pub since: BootTime,
    /// When deletions without an answer are tried again.
    retry_at: Option<BootTime>,
}

impl Incident {
    /// VMs that have not been acted upon, and about which is therefore decided anew.
    pub fn open_vms(&self) -> Vec<Key> {
        let open = |(_, case): &(&Key, &VmCase)| {
            (case.is_untouched() || case.progress == RecoveryProgress::Unaffected) && !case.hands_off
        };
        self.vms.iter().filter(open).map(|(key, _)| key.clone()).collect()
    }

    /// VMs about which nothing was decided here.
    pub fn undecided_vms(&self) -> Vec<Key> {
        let undecided = |(_, case): &(&Key, &VmCase)| case.decision.is_none();
        self.vms.iter().filter(undecided).map(|(key, _)| key.clone()).collect()
    }

    /// The node is proven dead: what had run there until now died with its boot, and nothing of it can start again.
    pub fn proven(&mut self, scene: &Scene<'_>, node: &NodeName, proof: ProofKind) {
        self.proof = Some(proof);
        let ran = |vm: &&Vm| vm.instance.as_ref().is_some_and(|instance| instance.has_run);
        let pods = scene.facts.fleet.vms.values().filter(ran).flat_map(|vm| &vm.pods);
        self.died =
            Some(pods.filter(|pod| pod.node.as_ref() == Some(node)).map(|pod| pod.uid.clone()).collect());
    }

    /// Takes in VMs that are new on the node (unless it is back, and alive), forgets those that are gone, notices those that run elsewhere.
    /// VMs that are being rebuilt are not its own any more.
    pub fn look(
        &mut self,
        scene: &Scene<'_>,
        node: &NodeName,
        away: bool,
        rebuilds: &BTreeMap<Key, Rebuild>,
        fx: &mut Vec<Effect>,
    ) {
        self.left_behind = left_behind(&scene.facts.fleet, node);
        let vms = &scene.facts.fleet.vms;
        self.vms.retain(|key, _| vms.contains_key(key) && !rebuilds.contains_key(key));
        for (key, vm) in vms.iter().filter(|(key, _)| !rebuilds.contains_key(*key)) {
            let here = vm.node() == Some(node) || vm.pods.iter().any(|pod| pod.node.as_ref() == Some(node));
            if away && here && !self.vms.contains_key(key) {
                self.vms.insert(key.clone(), VmCase::new(scene.now));
            }
        }
        for (key, case) in &mut self.vms {
            let vm = &vms[key];
            if case.progress == RecoveryProgress::Acting {
                // Their answers may have been lost with a crash of ours.
                case.left.retain(|action| {
                    uid_of(action).is_some_and(|uid| vm.pods.iter().any(|pod| pod.uid == uid))
                });
                case.pods_deleted(scene.now);
            }
            let waiting = matches!(
                case.progress,
                RecoveryProgress::Restarting | RecoveryProgress::NeedsPerson | RecoveryProgress::Unaffected
            );
            if let Some(other) = running_elsewhere(vm, node).filter(|_| waiting) {
                case.enter(RecoveryProgress::Recovered, scene.now);
                case.steps = Steps::Unwritten;
                tell_recovered(fx, key, other);
            }
            case.look_for_stray(&scene.facts.fleet, key, vm, node, fx);
        }
    }

    /// A VM was decided upon, for the first time or anew.
    pub fn decided(&mut self, scene: &Scene<'_>, node: &NodeName, decision: Decision, fx: &mut Vec<Effect>) {
        let Some(case) = self.vms.get_mut(&decision.vm) else { return };
        let fleet = &scene.facts.fleet;
        case.steps.look(fleet, case.decision.as_ref(), &decision);
        if case.steps.are_followed() {
            if case.progress != RecoveryProgress::NeedsPerson {
                case.enter(RecoveryProgress::NeedsPerson, scene.now);
            }
            return;
        }
        if case.inherited && case.decision.is_none() && by_hand::is_claim_missing(fleet, &decision) {
            // It stays as that leader has shown it.
            return;
        }
        if decision.kind == DecisionKind::NothingToDo {
            if case.decision.is_none() && !case.inherited {
                self.vms.remove(&decision.vm);
                return;
            }
            return case.unconcerned(scene, node, decision, fx);
        }
        if case.decision.as_ref().map(|old| old.kind) != Some(decision.kind) {
            tell_decision(fx, node, &decision);
        }
        let progress = match decision.kind {
            DecisionKind::Recreate | DecisionKind::Rebuild => RecoveryProgress::AwaitingProof,
            _ => RecoveryProgress::NeedsPerson,
        };
        case.decision = Some(decision);
        if case.progress != progress {
            case.enter(progress, scene.now);
        }
    }

    /// The node is back: what was not touched is its own again.
    pub fn node_returned(&mut self, scene: &Scene<'_>, node: &NodeName, fx: &mut Vec<Effect>) {
        for case in self.vms.values_mut() {
            case.steps.node_returned(&scene.facts.fleet, case.decision.as_ref());
        }
        // One of which nothing was decided is left as a leader before us has shown it.
        let is_its_own =
            |case: &VmCase| case.is_untouched() && case.decision.is_some() && !case.steps.are_followed();
        for (key, case) in self.vms.iter_mut().filter(|(_, case)| is_its_own(case)) {
            case.enter(RecoveryProgress::NodeReturned, scene.now);
            let run = scene.facts.fleet.vms.get(key).map(|vm| vm.run);
            let starts = match run {
                Some(RunStrategy::Always | RunStrategy::RerunOnFailure) => {
                    "KubeVirt starts it again by itself"
                }
                _ => "its run strategy does not start it by itself: start it where it should run",
            };
            let message = format!("{node} is back and {key} was not touched: {starts}.");
            tell_vm(fx, Severity::Info, key, "NodeReturned", message);
        }
    }

    /// What to show of each VM, and since when it is so.
    pub fn views<'a>(&'a self, node: &NodeName) -> impl Iterator<Item = (BootTime, &'a Key, RecoveryView)> {
        self.vms.iter().filter_map(move |(key, case)| Some((case.since, key, case.view(node, self.proof)?)))
    }

    /// Writes every runbook anew: what a person may do follows from what is proven and from how far the recovery is.
    /// `returned` says that the node is back, and `over` that nothing changes any more.
    pub fn write_runbooks(
        &mut self,
        fleet: &Fleet,
        proven: &BTreeMap<NodeName, ProofKind>,
        returned: bool,
        over: bool,
    ) {
        let proof_holds = !returned && !over;
        let mut standing = Standing { proven: proven.clone(), over, ..Standing::default() };
        for case in self.vms.values_mut() {
            standing.progress = case.stands();
            if let Steps::Followed(steps) = &case.steps
                && proof_holds
            {
                case.runbook = Some(begun_by_hand(steps));
                continue;
            }
            let decision = case.decision.as_ref().filter(|of| of.kind != DecisionKind::Recreate);
            case.runbook = decision.map(|decision| runbook(fleet, decision, &standing));
            if standing.progress == Progress::Untouched && self.proof.is_some() {
                case.steps = case.runbook.clone().map_or(Steps::Unwritten, Steps::Written);
            }
        }
    }

    /// How many of the VMs that may be recreated at the same time are these.
    pub fn places_taken(&self, scene: &Scene<'_>) -> usize {
        let limit = scene.facts.policy.recovery.restart_timeout;
        let busy = |case: &&VmCase| match case.progress {
            RecoveryProgress::Acting => true,
            RecoveryProgress::Restarting => scene.now < case.since + limit,
            _ => false,
        };
        self.vms.values().filter(busy).count()
    }

    /// Deletes pods of VMs that are to be recreated, while there are places.
    pub fn act(
        &mut self,
        scene: &Scene<'_>,
        proof: &FenceProof,
        trouble: &Trouble,
        places: &mut usize,
        begun: &mut Vec<(Key, Rebuild)>,
        fx: &mut Vec<Effect>,
    ) {
        self.detach(scene, proof, fx);
        let Some(died) = &self.died else { return };
        for (key, case) in &mut self.vms {
            if case.progress == RecoveryProgress::Acting && case.retry_at.is_some_and(|at| scene.now >= at) {
                case.attempt(scene, fx);
                continue;
            }
            if *places == 0 || case.progress != RecoveryProgress::AwaitingProof || !case.is_proven(trouble) {
                continue;
            }
            let Some(vm) = scene.facts.fleet.vms.get(key) else { continue };
            let here = vm.pods.iter().filter(|pod| pod.node.as_ref() == Some(proof.node()));
            let (dead, other): (Vec<_>, Vec<_>) = here.partition(|pod| died.contains(&pod.uid));
            if !other.is_empty() || dead.is_empty() {
                case.leave_alone(scene, key, proof.node(), fx);
                continue;
            }
            if case.kind() == Some(DecisionKind::Rebuild) {
                let pods = dead.iter().map(|pod| DeadPod { name: pod.name.clone(), uid: pod.uid.clone() });
                let rebuild = case
                    .decision
                    .clone()
                    .and_then(|decision| Rebuild::begin(scene, proof, vm, pods.collect(), decision));
                if let Some(rebuild) = rebuild {
                    self.superseded.extend(dead.iter().map(|pod| pod.uid.clone()));
                    *places -= 1;
                    begun.push((key.clone(), rebuild));
                }
                continue;
            }
            case.left.extend(dead.into_iter().map(|pod| Action::DeletePod {
                pod: Key::new(&key.namespace, &pod.name),
                uid: pod.uid.clone(),
                proof: proof.clone(),
            }));
            // Asked for is as good as done: an agent that turns out to live must stop them.
            self.superseded.extend(case.left.iter().filter_map(uid_of));
            self.acted = true;
            *places -= 1;
            case.enter(RecoveryProgress::Acting, scene.now);
            case.attempt(scene, fx);
        }
        for (key, _) in &*begun {
            self.vms.remove(key);
        }
    }

    /// Deletes the attachments of volumes whose VM goes on elsewhere, again and again until the cluster shows it. The
    /// cluster alone says which: a leader that takes over need not know who recreated the VM.
    fn detach(&mut self, scene: &Scene<'_>, proof: &FenceProof, fx: &mut Vec<Effect>) {
        let wanted = self.left_behind.iter().map(|(name, uid)| Action::DeleteAttachment {
            attachment: name.clone(),
            uid: uid.clone(),
            proof: proof.clone(),
        });
        let wanted: BTreeSet<Action> = wanted.collect();
        self.detaching.retain(|action, _| wanted.contains(action));
        for action in wanted {
            if self.detaching.get(&action).is_none_or(|again| scene.now >= *again) {
                self.detaching.insert(action.clone(), scene.now + DETACH_RETRY);
                fx.push(Effect::Act(action));
            }
        }
    }

    /// Every launcher here was deleted so that its VM is recreated: the taint, which deletes every pod, finds none that
    /// waits for its turn or for a person.
    pub fn is_all_recreated(&self) -> bool {
        let recreated = |case: &VmCase| {
            let gone = matches!(case.progress, RecoveryProgress::Restarting | RecoveryProgress::Recovered);
            case.kind() == Some(DecisionKind::Recreate) && gone
        };
        // One that is not concerned has no launcher here.
        let concerned = |case: &&VmCase| {
            case.progress != RecoveryProgress::Unaffected && case.kind() != Some(DecisionKind::NothingToDo)
        };
        let mut concerned = self.vms.values().filter(concerned).peekable();
        concerned.peek().is_some() && concerned.all(recreated)
    }

    /// A deletion was performed.
    pub fn deleted(&mut self, scene: &Scene<'_>, action: &Action, fx: &mut Vec<Effect>) {
        for (key, case) in self.vms.iter_mut().filter(|(_, case)| case.left.contains(action)) {
            case.left.remove(action);
            if case.pods_deleted(scene.now) {
                let message =
                    format!("The dead launcher of {key} is deleted; KubeVirt starts the VM on another node.");
                tell_vm(fx, Severity::Info, key, "VmRecreating", message);
            }
        }
    }

    /// A deletion failed for good.
    pub fn delete_failed(&mut self, scene: &Scene<'_>, action: &Action, why: &str, fx: &mut Vec<Effect>) {
        let limits = &scene.facts.policy.recovery;
        if let Some(again) = self.detaching.get_mut(action) {
            // Kubernetes detaches the volume itself in the end: slow, and no reason to ask a person.
            *again = scene.now + DETACH_RETRY;
            return;
        }
        for (key, case) in self.vms.iter_mut().filter(|(_, case)| case.left.contains(action)) {
            if case.attempts < limits.attempts_max {
                case.retry_at = Some(scene.now + limits.retry);
                continue;
            }
            case.left.clear();
            case.retry_at = None;
            case.enter(RecoveryProgress::NeedsPerson, scene.now);
            let message = format!(
                "The dead launcher of {key} cannot be deleted: {why}. Its node is proven dead, so it is safe to delete \
                 the pod by hand while the node is off: `kubectl delete pod --force --grace-period=0`."
            );
            tell_vm(fx, Severity::Critical, key, "VmRecoveryFailed", message);
        }
    }

    /// When time alone changes something.
    pub fn next_deadline(&self, scene: &Scene<'_>) -> Option<BootTime> {
        let limit = scene.facts.policy.recovery.restart_timeout;
        let at = |case: &VmCase| match case.progress {
            RecoveryProgress::Acting => case.retry_at,
            RecoveryProgress::Restarting => Some(case.since + limit),
            _ => None,
        };
        let detaching = self.detaching.values().copied();
        self.vms.values().filter_map(at).chain(detaching).filter(|at| *at > scene.now).min()
    }
}

impl VmCase {
    /// One that a leader before us has shown.
    pub fn inherited(now: BootTime) -> Self {
        Self { inherited: true, ..Self::new(now) }
    }

    fn new(now: BootTime) -> Self {
        Self {
            decision: None,
            inherited: false,
            strayed: false,
            progress: RecoveryProgress::NeedsPerson,
            runbook: None,
            steps: Steps::Unwritten,
            hands_off: false,
            left: BTreeSet::new(),
            attempts: 0,
            since: now,
            retry_at: None,
        }
    }

    /// What to show; nothing before it was decided.
    fn view(&self, node: &NodeName, proof: Option<ProofKind>) -> Option<RecoveryView> {
        Some(RecoveryView {
            cause: RecoveryCause::NodeDied,
            node: Some(node.clone()),
            decision: self.decision.clone()?,
            progress: self.progress,
            proof,
            ended: false,
            runbook: self.runbook.clone(),
        })
    }

    fn kind(&self) -> Option<DecisionKind> {
        self.decision.as_ref().map(|decision| decision.kind)
    }

    /// Decided to be recreated or rebuilt.
    pub fn is_automatic(&self) -> bool {
        matches!(self.kind(), Some(DecisionKind::Recreate | DecisionKind::Rebuild))
    }

    /// Decided to be recreated or rebuilt, with every node proven on which it may still run.
    fn is_proven(&self, trouble: &Trouble) -> bool {
        let decision = self.decision.as_ref().filter(|_| self.is_automatic());
        decision.is_some_and(|decision| decision.nodes.iter().all(|node| trouble.proven.contains_key(node)))
    }

    /// It waits for its node, and the scheduler does not know that its disks are there.
    pub fn is_unpinned(&self) -> bool {
        let waits = matches!(self.progress, RecoveryProgress::NeedsPerson | RecoveryProgress::NodeReturned);
        waits && self.decision.as_ref().is_some_and(Decision::is_unpinned)
    }

    fn is_untouched(&self) -> bool {
        matches!(self.progress, RecoveryProgress::AwaitingProof | RecoveryProgress::NeedsPerson)
            && self.attempts == 0
    }

    /// The same as its progress, as far as it matters to a person.
    fn stands(&self) -> Progress {
        match self.progress {
            RecoveryProgress::AwaitingProof => Progress::Untouched,
            RecoveryProgress::NeedsPerson if self.steps.are_followed() => Progress::ByHand,
            RecoveryProgress::NeedsPerson if self.attempts == 0 => Progress::Untouched,
            RecoveryProgress::NeedsPerson => Progress::Stuck,
            RecoveryProgress::Acting | RecoveryProgress::Restarting => Progress::UnderWay,
            RecoveryProgress::Recovered => Progress::Elsewhere,
            RecoveryProgress::Unaffected => Progress::Unaffected,
            RecoveryProgress::NodeReturned => Progress::NodeBack,
        }
    }

    fn enter(&mut self, progress: RecoveryProgress, now: BootTime) {
        self.progress = progress;
        self.since = now;
    }

    /// The dead node is no concern of the VM, or not any more. What was decided before stays: it says what there was to
    /// do, and which volumes are left.
    fn unconcerned(&mut self, scene: &Scene<'_>, node: &NodeName, decision: Decision, fx: &mut Vec<Effect>) {
        let key = decision.vm.clone();
        let elsewhere = scene.facts.fleet.vms.get(&key).and_then(|vm| running_elsewhere(vm, node));
        self.decision.get_or_insert(decision);
        if let Some(other) = elsewhere {
            self.enter(RecoveryProgress::Recovered, scene.now);
            tell_recovered(fx, &key, other);
        } else if self.progress != RecoveryProgress::Unaffected {
            self.enter(RecoveryProgress::Unaffected, scene.now);
        }
    }

    /// A VM that nothing ties to its disks was started away from them, once its node was back, or by somebody who has emptied
    /// the dead one (as Kubernetes does upon the out-of-service taint): nobody could keep it from that, and somebody must
    /// know.
    fn look_for_stray(&mut self, fleet: &Fleet, key: &Key, vm: &Vm, node: &NodeName, fx: &mut Vec<Effect>) {
        let away = matches!(self.progress, RecoveryProgress::NodeReturned | RecoveryProgress::Recovered);
        let untied = |decision: &Decision| decision.is_unpinned_still(fleet);
        let strays = away && !self.strayed && self.decision.as_ref().is_some_and(untied);
        let other = running_elsewhere(vm, node).filter(|_| strays);
        if let Some(other) = other {
            self.strayed = true;
            let message = format!(
                "{key} runs on {other} and its disks were on {node}: nothing ties it to them, and it may have booted a blank \
                 disk. The old one is unharmed. What to do: kubectl somersault runbook {}",
                shell_word(&key.to_string())
            );
            tell_vm(fx, Severity::Critical, key, "VmStartedAwayFromDisks", message);
        }
    }

    fn leave_alone(&mut self, scene: &Scene<'_>, key: &Key, node: &NodeName, fx: &mut Vec<Effect>) {
        self.hands_off = true;
        self.enter(RecoveryProgress::NeedsPerson, scene.now);
        let message = format!(
            "{key} has a launcher on {node} that had not run when the node was proven dead. It is left alone, since it \
             may start the moment the machine is switched on."
        );
        tell_vm(fx, Severity::Warning, key, "LauncherLeftAlone", message);
    }

    /// Sends what is left to do; without an answer it is sent again.
    fn attempt(&mut self, scene: &Scene<'_>, fx: &mut Vec<Effect>) {
        self.attempts += 1;
        self.retry_at = Some(scene.now + scene.facts.policy.recovery.restart_timeout);
        fx.extend(self.left.iter().cloned().map(Effect::Act));
    }

    /// Whether the last pod has just been deleted.
    fn pods_deleted(&mut self, now: BootTime) -> bool {
        let done = self.progress == RecoveryProgress::Acting && self.left.is_empty();
        if done {
            self.retry_at = None;
            self.enter(RecoveryProgress::Restarting, now);
        }
        done
    }
}

fn uid_of(action: &Action) -> Option<Uid> {
    match action {
        Action::DeletePod { uid, .. } => Some(uid.clone()),
        _ => None,
    }
}

/// It has an instance or a launcher, and nothing of it is on the node.
fn goes_on_elsewhere(vm: &Vm, node: &NodeName) -> bool {
    let instance = vm.instance.as_ref();
    let here = vm.pods.iter().any(|pod| pod.node.as_ref() == Some(node))
        || instance.is_some_and(|instance| instance.node.as_ref() == Some(node));
    !here && (instance.is_some() || !vm.pods.is_empty())
}

/// Attachments to this node whose VM goes on elsewhere. It takes a look at every VM, so it is asked only when the cluster
/// was read anew.
fn left_behind(fleet: &Fleet, node: &NodeName) -> Vec<(String, Uid)> {
    let here = fleet.attachments.iter().filter(|(_, at)| at.node == *node && !at.deleting);
    // Most nodes have none, and the VMs are many.
    if here.clone().next().is_none() {
        return Vec::new();
    }
    let elsewhere = fleet.vms.iter().filter(|(_, vm)| goes_on_elsewhere(vm, node));
    let volumes: BTreeSet<&VolumeName> = elsewhere.flat_map(|(key, vm)| volumes_of(fleet, key, vm)).collect();
    let left = here.filter(|(_, at)| at.volume.as_ref().is_some_and(|volume| volumes.contains(volume)));
    left.map(|(name, at)| (name.clone(), at.uid.clone())).collect()
}

fn volumes_of<'a>(fleet: &'a Fleet, key: &'a Key, vm: &'a Vm) -> impl Iterator<Item = &'a VolumeName> {
    vm.claims(&key.namespace).filter_map(move |claim| fleet.claims.get(&claim)?.volume.as_ref())
}

/// The other node where it runs, with nothing of the same instance on this one: the launcher of a live migration that is left
/// here must go before KubeVirt starts the VM anew.
fn running_elsewhere<'a>(vm: &'a Vm, node: &NodeName) -> Option<&'a NodeName> {
    let instance = vm.instance.as_ref().filter(|instance| instance.phase == "Running")?;
    let is_of_it =
        |pod: &Pod| pod.instance.as_ref() == Some(&instance.uid) && pod.node.as_ref() == Some(node);
    instance.node.as_ref().filter(|other| *other != node && !vm.pods.iter().any(is_of_it))
}

fn tell_recovered(fx: &mut Vec<Effect>, vm: &Key, node: &NodeName) {
    tell_vm(fx, Severity::Info, vm, "VmRecovered", format!("{vm} runs on {node} now."));
}

fn tell_decision(fx: &mut Vec<Effect>, node: &NodeName, decision: &Decision) {
    let (severity, what) = match decision.kind {
        DecisionKind::Recreate => (Severity::Info, "is started elsewhere once the node is proven dead"),
        DecisionKind::Rebuild => (
            Severity::Warning,
            "is rebuilt from its image elsewhere once the node is proven dead; its old system disk is kept",
        ),
        _ => (Severity::Warning, "needs a person, see its runbook; it is not touched"),
    };
    let why = decision.details.first().map(|why| format!(": {why}")).unwrap_or_default();
    let message =
        format!("{node} is unreachable. {} {what}{why}. {}", decision.vm, decision.remedy_while_dead(false));
    tell_vm(fx, severity, &decision.vm, "RecoveryDecided", message.trim_end().to_owned());
}

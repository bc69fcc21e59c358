//! Those who act besides: agents that copy and remove, `KubeVirt`, guests that write.

use super::*;

/// What agents say of a disk that cannot be read everywhere.
const BAD: &str = "4096 bytes cannot be read: disk.img bytes 0..4096";

impl World {
    pub(super) fn agents(&mut self) {
        if self.faults.agents_silent {
            return;
        }
        for (order, (node, what)) in std::mem::take(&mut self.copies) {
            let state = match &what {
                Order::Pull { .. } if self.faults.copies_hang => {
                    OrderState::Running { done_bytes: 1, total_bytes: 2, rate_bytes_per_s: 1 }
                }
                Order::Pull { unreadable: Unreadable::Fail, .. } if self.faults.bad_sectors => {
                    OrderState::Failed { reason: "SourceReadFailed".into(), message: BAD.into() }
                }
                Order::Pull { source_node, source_path, target_path, .. }
                    if self.faults.failing_copies == 0 =>
                {
                    match self.read_from(&source_node.0, source_path) {
                        Some(from) => {
                            let generation = *self.content.get(&from).expect("the source is there");
                            self.copied(&node, target_path, generation)
                        }
                        None => OrderState::Failed {
                            reason: "SourceMissing".into(),
                            message: "nobody has it mounted".into(),
                        },
                    }
                }
                Order::Pull { .. } => {
                    self.faults.failing_copies -= 1;
                    OrderState::Failed { reason: "SourceGone".into(), message: "a test says so".into() }
                }
                Order::RemoveVolume { .. } if self.faults.failing_removals.0 > 0 => {
                    self.faults.failing_removals.0 -= 1;
                    let reason = self.faults.failing_removals.1.into();
                    OrderState::Failed { reason, message: "a test says so".into() }
                }
                Order::RemoveVolume { path } => {
                    let volumes = self.fleet.volumes.iter();
                    let mut named = volumes.filter(|(_, volume)| volume.source.path() == Some(path));
                    let has =
                        |name| self.fleet.claims.values().any(|claim| claim.volume.as_ref() == Some(name));
                    let had =
                        |volume: &Volume| volume.claim.as_ref().and_then(|of| of.uid.as_ref()).is_some();
                    let kept =
                        named.any(|(name, volume)| has(name) || had(volume) && !name.0.starts_with("smst-"));
                    assert!(!kept, "{path} is removed while a volume names it that somebody has or had");
                    self.content.remove(&place(&node.0, path));
                    self.fleet.reports.get_mut(&node).expect("node exists").usage.remove(path);
                    NOTHING_COPIED
                }
                _ => NOTHING_COPIED,
            };
            self.inbox.push(Input::Progress { node, order, state });
        }
    }

    pub(super) fn copied(&mut self, node: &NodeName, path: &str, generation: u64) -> OrderState {
        let at = if path.starts_with(PODS) {
            let Some(place) = self.mounted(&node.0, path) else {
                return OrderState::Failed { reason: "NotMounted".into(), message: "no holder runs".into() };
            };
            place
        } else {
            self.report_usage(node, path);
            place(if path.starts_with(SHARED_ROOT) { EVERYWHERE } else { &node.0 }, path)
        };
        self.content.insert(at, generation);
        OrderState::Done {
            root_hash: [1; 32],
            total_bytes: 1,
            sent_bytes: 1,
            elapsed: Duration::from_secs(1),
            unreadable: self.faults.bad_sectors.then(|| BAD.to_owned()),
        }
    }

    pub(super) fn kubevirt(&mut self) {
        let keys: Vec<Key> = self.fleet.vms.keys().cloned().collect();
        for vm_key in keys {
            let places = self.places(&vm_key);
            let vm = self.fleet.vms.get_mut(&vm_key).expect("listed");
            if vm.run == RunStrategy::Halted {
                vm.instance = None;
                vm.pods.clear();
                continue;
            }
            let Some(places) = places else { continue };
            let pinned: BTreeSet<&str> = places.iter().filter_map(|(node, _)| node.as_deref()).collect();
            let node = pinned.first().copied().unwrap_or("n1");
            let reached = pinned.len() <= 1 && self.fleet.nodes.contains_key(&NodeName::from(node));
            if vm.instance.is_none() && reached {
                let uid = Uid(format!("vmi-{}", self.now.as_secs()));
                let claims = vm.claims(&vm_key.namespace).map(|claim| claim.name).collect();
                let phase = "Running".into();
                vm.instance = Some(Instance {
                    uid,
                    node: Some(node.into()),
                    phase,
                    has_run: true,
                    migrating: None,
                    paused: None,
                    not_migratable: None,
                    claims,
                    agent_connected: !self.faults.guest_silent,
                    has_address: !self.faults.guest_silent,
                });
            }
            if let Some(instance) = &vm.instance {
                vm.pods = vec![launcher(instance, self.faults.no_addresses)];
                self.write(&vm_key, &places);
            }
        }
    }

    /// A guest that runs: what it reads must be what it wrote last, on all disks, and these all old or all new.
    pub(super) fn write(&mut self, vm: &Key, places: &[Place]) {
        let generation = self.generations.get(vm).copied().unwrap_or_default();
        let places: Vec<String> = places.iter().map(|(node, path)| place_of(node.as_deref(), path)).collect();
        let new = places.iter().filter(|place| place.contains("/smst-")).count();
        assert!(new == 0 || new == places.len(), "{vm} runs on a mix: {places:?}");
        for place in &places {
            let found = self.content.get(place).copied();
            assert_eq!(found, Some(generation), "{place} is blank, old or of another disk's age");
            assert!(!self.is_staged(place), "{place} is written while an agent may write to it");
            assert!(!self.is_read(place), "{place} is written while we have it mounted");
        }
        self.generations.insert(vm.clone(), generation + 1);
        for place in places {
            self.content.insert(place, generation + 1);
        }
    }

    /// Its claim has a volume now whose content is as new at least.
    pub(super) fn has_newer(&self, volume: &Volume) -> bool {
        let content = |volume: &Volume| {
            let (node, path) = place_of_volume(volume)?;
            self.content.get(&place_of(node.as_deref(), &path)).copied()
        };
        let claim = volume.claim.as_ref().and_then(|claim| self.fleet.claims.get(&claim.key));
        let now = claim.and_then(|claim| self.fleet.volumes.get(claim.volume.as_ref()?));
        now.is_some_and(|now| content(now) >= content(volume))
    }

    /// Where its disks are; `None` where a claim has no volume.
    pub(super) fn places(&self, vm: &Key) -> Option<Vec<Place>> {
        let place = |disk: &Disk| {
            let DiskSource::Claim { name, .. } = &disk.source else { return None };
            place_of_volume(self.fleet.volumes.get(self.fleet.claims.get(&key(name))?.volume.as_ref()?)?)
        };
        self.fleet.vms[vm].disks.iter().map(place).collect()
    }
}

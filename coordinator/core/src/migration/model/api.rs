//! What the API server, its binder and CDI make of the core's actions.

use super::*;

impl World {
    pub(super) fn act(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::CreateVolume(new) => self.create_volume(new),
            Action::RetainVolume { volume } => {
                self.fleet.volumes.get_mut(volume).ok_or("no volume")?.retained = true;
            }
            Action::Stage(_) | Action::Unstage { .. } | Action::DiscardVolume { .. } => {
                return self.act_on_staged(action);
            }
            Action::CreateLock { volume, claim, template } => {
                self.create_volume(&NewVolume {
                    name: volume.clone(),
                    class: template.class.clone(),
                    node: Some(NOWHERE.into()),
                    path: LOCK_FOLDER.into(),
                    capacity_bytes: template.requested_bytes,
                    access_modes: template.access_modes.clone(),
                    mode: template.mode,
                    claim: claim.clone(),
                });
            }
            Action::ForgetVolume { volume } => {
                let bound = self.fleet.claims.values().find(|claim| claim.volume.as_ref() == Some(volume));
                if bound.is_some() {
                    return Err("a claim is bound to it".into());
                }
                let gone = self.fleet.volumes.remove(volume).ok_or("no volume")?;
                assert!(
                    gone.node_affinity == Some(hostname(NOWHERE))
                        || gone.phase == "Available"
                        || self.has_newer(&gone),
                    "a volume that held data is forgotten: {volume}"
                );
            }
            Action::DeleteReleased { volume, claim_uid } => {
                let Some(found) = self.fleet.volumes.get(volume) else { return Ok(()) };
                let of = found.claim.as_ref().and_then(|claim| claim.uid.as_ref());
                if found.phase != "Released" || of != Some(claim_uid) {
                    return Err("not Released by it".into());
                }
                assert!(self.has_newer(found), "the last good disk is given up: {volume}");
                self.fleet.volumes.remove(volume);
            }
            Action::StopVm { vm, .. } => {
                let vm = self.fleet.vms.get_mut(vm).ok_or("no VM")?;
                vm.run = RunStrategy::Halted;
                // What a stop changes is the field that a start gives back.
                vm.start = SavedStart::WukongStartStrategy(Some(r#"{"autoStart":false}"#.into()));
            }
            Action::RestoreStart { vm, start, .. } => {
                let vm = self.fleet.vms.get_mut(vm).ok_or("no VM")?;
                vm.run = RunStrategy::Always;
                vm.start = start.clone();
            }
            Action::DeleteClaim { claim, uid } => return self.delete_claim(claim, uid),
            Action::PrebindVolume { volume, claim } => {
                if self.is_staged(&place(EVERYWHERE, &format!("{CSI}{volume}"))) {
                    return Err("a claim of ours is bound to it".into());
                }
                let volume = self.fleet.volumes.get_mut(volume).ok_or("no volume")?;
                volume.claim = Some(ClaimRef { key: claim.clone(), uid: None });
                volume.phase = "Available".into();
            }
            Action::CreateClaim { claim, template, volume } => {
                return self.create_on(claim, template, volume);
            }
            Action::CreateMigration { key, spec } => {
                if !self.requests.migrations.contains_key(key) {
                    self.ask(&key.name, spec.clone());
                }
            }
            Action::LiveMigrate { .. } if self.faults.live_refused => return Err("as the test asked".into()),
            Action::LiveMigrate { key, vm, .. } => {
                let migration = LiveMigration { vm: vm.clone(), state: LiveMigrationState::UnderWay };
                self.fleet.live_migrations.entry(key.clone()).or_insert(migration);
            }
            Action::CancelMigration { key } => {
                self.requests.migrations.get_mut(key).ok_or("no migration")?.spec.cancelled = true;
            }
            Action::ProceedMigration { key } => {
                self.requests.migrations.get_mut(key).ok_or("no migration")?.spec.pre_copy_only = false;
            }
            Action::CreateEvacuation { name, spec } => {
                self.requests.evacuations.entry(name.clone()).or_insert_with(|| spec.clone());
            }
            other => return Err(format!("neither of a migration nor of an evacuation: {other:?}")),
        }
        Ok(())
    }

    /// A claim on the volume that is pre-bound to it.
    pub(super) fn create_on(
        &mut self,
        claim: &Key,
        template: &ClaimTemplate,
        volume: &VolumeName,
    ) -> Result<(), String> {
        if self.faults.claims_refused {
            return Err("the namespace is being terminated".into());
        }
        if self.fleet.claims.contains_key(claim) {
            return Err("exists".into());
        }
        let to_new = volume.0.starts_with("smst-") && !volume.0.ends_with("-lock");
        if to_new && self.faults.swap_refused == Some(claim.name.as_str()) {
            return Err("as the test asked".into());
        }
        if let Some(why) = self.over_quota(template) {
            return Err(why);
        }
        if !self.is_prebound(volume, claim) {
            return Err("not pre-bound".into());
        }
        self.create_claim(claim, Some(volume.clone()));
        let made = self.fleet.claims.get_mut(claim).expect("just made");
        made.class.clone_from(&template.class);
        made.labels.clone_from(&template.labels);
        made.annotations.extend(template.annotations.clone());
        Ok(())
    }

    /// What a dry run of each claim says, beside the claims that are there.
    pub(super) fn admitted(&self, question: &DryRun) -> Vec<Verdict> {
        let verdict = |claim: &NewClaim| {
            let new = claim.volume.0.starts_with("smst-") && !claim.volume.0.ends_with("-lock");
            if self.faults.claims_not_admitted && new {
                Verdict::Refused("a policy says no".into())
            } else {
                self.over_quota(&claim.template).map_or(Verdict::Admitted, Verdict::OverQuota)
            }
        };
        question.claims.iter().flatten().map(verdict).collect()
    }

    /// As the API server counts now.
    pub(super) fn counted(&self, quota: &Quota) -> Quota {
        let used = |resource: &String| {
            let of_class = resource.split_once(".storageclass.storage.k8s.io/");
            let (class, what) =
                of_class.map_or((None, resource.as_str()), |(class, what)| (Some(class), what));
            let counts =
                self.fleet.claims.values().filter(|claim| class.is_none_or(|class| claim.class == class));
            let bytes = what == "requests.storage";
            let used = counts.map(|claim| if bytes { claim.requested_bytes } else { 1 }).sum();
            (resource.clone(), used)
        };
        Quota { used: quota.hard.keys().map(used).collect(), ..quota.clone() }
    }

    fn over_quota(&self, template: &ClaimTemplate) -> Option<String> {
        self.quotas.iter().map(|quota| self.counted(quota)).find_map(|quota| {
            quota.hard.iter().find_map(|(resource, hard)| {
                let (class, what) = match resource.split_once(".storageclass.storage.k8s.io/") {
                    Some((class, what)) => (class, what),
                    None => (template.class.as_str(), resource.as_str()),
                };
                let adds = if what == "requests.storage" { template.requested_bytes } else { 1 };
                let over = class == template.class && quota.used[resource] + adds > *hard;
                over.then(|| format!("exceeded quota: {}", quota.name))
            })
        })
    }

    pub fn delete_claim(&mut self, claim: &Key, uid: &Uid) -> Result<(), String> {
        let Some(found) = self.fleet.claims.get(claim) else { return Ok(()) };
        if found.uid != *uid {
            return Err("another uid".into());
        }
        for (key, vm) in &self.fleet.vms {
            if vm.instance.is_some() && vm.claims(&key.namespace).any(|used| used == *claim) {
                return Err("a pod uses it".into());
            }
        }
        let name = found.volume.clone().expect("bound");
        if let Some(volume) = self.fleet.volumes.get_mut(&name) {
            assert!(volume.retained, "claim {claim} is deleted while its volume is on reclaim policy Delete");
            volume.phase = "Released".into();
        }
        self.fleet.claims.remove(claim);
        self.let_deleted_go();
        if self.faults.wukong_recreates {
            self.create_claim(claim, None);
        }
        Ok(())
    }
}

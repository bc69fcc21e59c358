//! Whether a namespace's quotas let claims be made anew in place of those that are there.
//!
//! The API server counts a claim until it is gone, and the next of its name is made after that. A dry run beside the old claim
//! would count both, and a quota that is exactly full would refuse what it will not refuse. So it is reckoned: what is used,
//! without the old claims, with the new ones. All at once, since no moment in between takes up more: each claim goes before
//! the next one of its name comes.

use std::collections::BTreeMap;

/// A quota of the namespace, as the API server counts it: whole units, pieces or bytes, by resource. Those that count certain
/// objects only (by scopes) are none of these: of claims they count those with a `VolumeAttributesClass`, which ours have not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Its name.
    pub name: String,
    /// `status.hard`.
    pub hard: BTreeMap<String, u64>,
    /// `status.used`.
    pub used: BTreeMap<String, u64>,
}

/// What one claim takes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    class: String,
    bytes: u64,
}

impl Charge {
    /// A claim of this class that requests this much.
    pub fn new(class: &str, bytes: u64) -> Self {
        Self { class: class.to_owned(), bytes }
    }

    /// By the resources of a quota that count claims.
    fn resources(&self) -> [(String, u64); 5] {
        let of_class = |resource: &str| format!("{}.storageclass.storage.k8s.io/{resource}", self.class);
        [
            ("persistentvolumeclaims".to_owned(), 1),
            ("count/persistentvolumeclaims".to_owned(), 1),
            ("requests.storage".to_owned(), self.bytes),
            (of_class("persistentvolumeclaims"), 1),
            (of_class("requests.storage"), self.bytes),
        ]
    }
}

fn sums(charges: &[Charge]) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (resource, amount) in charges.iter().flat_map(Charge::resources) {
        let sum: &mut u64 = sums.entry(resource).or_default();
        *sum = sum.saturating_add(amount);
    }
    sums
}

/// Which quota the new claims would exceed when the old ones are gone, and by how much. One that is over its limit already,
/// since somebody has lowered it, refuses whatever adds to it, and to put a claim back in the place of another adds to it.
pub(super) fn exceeded(quotas: &[Quota], old: &[Charge], new: &[Charge]) -> Option<String> {
    let (old, new) = (sums(old), sums(new));
    quotas.iter().find_map(|quota| {
        new.iter().find_map(|(resource, charged)| {
            let hard = *quota.hard.get(resource)?;
            let used = quota.used.get(resource).copied().unwrap_or_default();
            let freed = old.get(resource).copied().unwrap_or_default();
            let then = used.saturating_sub(freed).saturating_add(*charged);
            (then > hard).then(|| {
                format!(
                    "quota {} has {resource}={hard}, of which {used} are used, and would be at {then}",
                    quota.name
                )
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn quota(resource: &str, hard: u64, used: u64) -> Vec<Quota> {
        let of = |amount| BTreeMap::from([(resource.to_owned(), amount), ("pods".to_owned(), 0)]);
        vec![Quota { name: "disks".into(), hard: of(hard), used: of(used) }]
    }

    /// Two disks of 4 GiB that go from one class to another, or stay in theirs.
    fn refused(resource: &str, hard: u64, used: u64, to: &str) -> Option<String> {
        let disks = |class: &str| vec![Charge::new(class, 4 * GIB), Charge::new(class, 4 * GIB)];
        exceeded(&quota(resource, hard, used), &disks("local"), &disks(to))
    }

    #[test]
    fn a_quota_that_is_exactly_full_holds() {
        for to in ["local", "ceph"] {
            assert_eq!(refused("persistentvolumeclaims", 2, 2, to), None);
            assert_eq!(refused("count/persistentvolumeclaims", 5, 5, to), None);
            assert_eq!(refused("requests.storage", 8 * GIB, 8 * GIB, to), None);
        }
        assert_eq!(
            refused("local.storageclass.storage.k8s.io/requests.storage", 8 * GIB, 8 * GIB, "local"),
            None
        );
        assert_eq!(refused("local.storageclass.storage.k8s.io/persistentvolumeclaims", 2, 2, "ceph"), None);
        assert_eq!(refused("pods", 0, 0, "ceph"), None, "claims are no pods");
        assert_eq!(exceeded(&[], &[], &[Charge::new("a", 1)]), None);
    }

    #[test]
    fn a_class_that_has_no_room_refuses_all_disks_together() {
        let bytes = "ceph.storageclass.storage.k8s.io/requests.storage";
        assert_eq!(refused(bytes, 8 * GIB, 0, "ceph"), None);
        let why = refused(bytes, 8 * GIB, 1, "ceph").expect("one byte too many");
        assert!(
            why.starts_with("quota disks has ceph.storageclass.storage.k8s.io/requests.storage="),
            "{why}"
        );
        let count = "ceph.storageclass.storage.k8s.io/persistentvolumeclaims";
        assert!(refused(count, 1, 0, "ceph").is_some(), "each alone would fit");
        assert_eq!(refused(count, 1, 0, "nfs"), None);
    }

    /// Somebody lowered it: the API server refuses every claim from then on.
    #[test]
    fn a_quota_that_is_over_its_limit_refuses() {
        assert!(refused("persistentvolumeclaims", 2, 3, "local").is_some());
        assert!(refused("requests.storage", GIB, 8 * GIB, "ceph").is_some());
    }
}

//! A `ResourceQuota`, as far as it counts claims.

use std::collections::BTreeMap;

use serde_json::Value;
use somersault_coordinator_core::migration::Quota;

use crate::cluster::ClusterError;
use crate::cluster::error::refused;
use crate::cluster::manifest::{ObjectId, quantity};

/// What it limits and what is used of that; `None` where it counts certain objects only.
pub(in crate::cluster) fn read(id: &ObjectId, object: &Value) -> Result<Option<Quota>, ClusterError> {
    let scopes = object["spec"]["scopes"].as_array().is_some_and(|scopes| !scopes.is_empty());
    if scopes || object["spec"]["scopeSelector"].is_object() {
        return Ok(None);
    }
    let amounts = |field: &str| {
        let amounts = object["status"][field].as_object().into_iter().flatten();
        let storage = amounts.filter(|(resource, _)| {
            resource.contains("persistentvolumeclaims") || resource.ends_with("requests.storage")
        });
        storage
            .map(|(resource, amount)| {
                let amount = quantity::units(amount.as_str().unwrap_or_default());
                let amount =
                    amount.map_err(|why| refused(id, format!("status.{field}.{resource}: {why}")))?;
                Ok((resource.clone(), amount))
            })
            .collect::<Result<BTreeMap<_, _>, ClusterError>>()
    };
    Ok(Some(Quota { name: id.name.clone(), hard: amounts("hard")?, used: amounts("used")? }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use somersault_coordinator_core::names::Key;

    use super::*;

    #[test]
    fn reads_what_counts_claims() {
        let id = ObjectId::namespaced("ResourceQuota", &Key::new("shop", "disks"));
        let amounts =
            json!({ "requests.storage": "20Gi", "persistentvolumeclaims": "3", "limits.cpu": "1500m" });
        let mut object = json!({ "spec": { "hard": amounts }, "status": { "hard": amounts, "used": { "persistentvolumeclaims": "1" } } });
        let quota = read(&id, &object).expect("readable").expect("it counts claims");
        assert_eq!(
            quota.hard,
            BTreeMap::from([("persistentvolumeclaims".into(), 3), ("requests.storage".into(), 20 << 30)])
        );
        assert_eq!(quota.used, BTreeMap::from([("persistentvolumeclaims".into(), 1)]));
        object["spec"]["scopes"] = json!(["NotTerminating"]);
        assert_eq!(read(&id, &object).expect("readable"), None);
    }
}

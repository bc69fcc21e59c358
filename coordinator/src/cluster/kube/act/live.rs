//! Live migrations, which `KubeVirt` does.

use somersault_coordinator_core::names::{Key, NodeName};

use super::{Api, create_once};
use crate::cluster::ClusterError;
use crate::cluster::change::{live, volume};
use crate::cluster::error::not_found;
use crate::cluster::manifest::ObjectId;

/// Asks for one, once.
pub(super) async fn migrate(
    api: &Api,
    key: &Key,
    vm: &str,
    node: Option<&NodeName>,
) -> Result<(), ClusterError> {
    let id = live::id(key);
    let wanted = match node {
        None => live::migration(&id, vm, None),
        Some(node) => {
            let at = ObjectId::cluster("Node", node.as_str());
            let object = api.get(&at).await?.ok_or_else(|| not_found(&at))?;
            let wanted = live::migration(&id, vm, Some(volume::hostname(&at, &object)?));
            if let Some(accepted) = api.try_create(&wanted).await? {
                live::check_kept(&id, &accepted)?;
            }
            wanted
        }
    };
    create_once(api, &id, &wanted, |stored| live::check_same(&id, stored, vm)).await
}

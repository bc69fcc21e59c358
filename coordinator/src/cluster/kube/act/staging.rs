//! Claims and pods of ours by which a class's own provisioner makes a volume for a migration, or by which an alias of an old
//! one is read.

use somersault_coordinator_core::io::Staging;
use somersault_coordinator_core::names::{Key, Uid, VolumeName};

use super::{Api, create_once, only, volumes};
use crate::cluster::ClusterError;
use crate::cluster::change::{is_going, staging, uid, volume};
use crate::cluster::error::{conflict, not_found};
use crate::cluster::kube::LEASE_NAME;
use crate::cluster::manifest::{ObjectId, staging_namespace};

/// Creates the alias where one is asked for, the claim, then the pod: what is there stays, but for a pod that has ended.
pub(super) async fn stage(api: &Api, wanted: &Staging) -> Result<(), ClusterError> {
    let namespace = staging_namespace(api.namespace());
    // The Deployment of the coordinator has the name of its lease.
    let ours = ObjectId::namespaced("Deployment", &Key::new(api.namespace(), LEASE_NAME));
    let template = api.get(&ours).await?.ok_or_else(|| not_found(&ours))?["spec"]["template"].take();
    if let Some(volume) = &wanted.alias_of {
        let id = volume::id(volume);
        let of = api.get(&id).await?.ok_or_else(|| not_found(&id))?;
        let alias = staging::alias(&namespace, wanted, &id, &of)?;
        let id = volume::id(&wanted.name.as_str().into());
        let check_same = |stored: &_| staging::check_same_alias(&namespace, &id, stored, &alias);
        create_once(api, &id, &alias, check_same).await?;
    }
    let claim = staging::claim(&namespace, wanted);
    let id = staging::claim_id(&namespace, &wanted.name);
    create_once(api, &id, &claim, |stored| staging::check_same(&id, stored, &claim)).await?;
    let holder = staging::holder(&namespace, wanted, &template);
    let id = staging::holder_id(&namespace, &wanted.name);
    if let Some(stored) = api.get(&id).await?.filter(staging::has_ended) {
        staging::check_ours(&id, &stored)?;
        api.delete(&id, only(uid(&stored)), Some(0)).await?;
    }
    create_once(api, &id, &holder, |stored| staging::check_same(&id, stored, &holder)).await
}

/// Deletes all of it: the alias is gone when its claim is, and that when the pod is. A volume that is to stay must be on
/// Retain.
pub(super) async fn unstage(
    api: &Api,
    name: &str,
    claim_uid: Option<&Uid>,
    volume_goes: bool,
) -> Result<(), ClusterError> {
    let namespace = staging_namespace(api.namespace());
    let (pod, claim) = (staging::holder_id(&namespace, name), staging::claim_id(&namespace, name));
    let stored = api.get(&claim).await?;
    if let Some(stored) = &stored {
        staging::check_ours(&claim, stored)?;
        if claim_uid.is_none_or(|wanted| wanted.as_str() != uid(stored)) {
            return Err(conflict(&claim, "it is another claim than the one that was seen"));
        }
        if let Some(name) = stored["spec"]["volumeName"].as_str().filter(|_| !volume_goes) {
            let volume = api.get(&volume::id(&name.into())).await?;
            staging::check_kept(&claim, stored, volume.as_ref())?;
        }
    }
    if let Some(holder) = api.get(&pod).await?.filter(|holder| !is_going(holder)) {
        staging::check_ours(&pod, &holder)?;
        api.delete(&pod, only(uid(&holder)), None).await?;
    }
    if let Some(stored) = stored.filter(|stored| !is_going(stored)) {
        api.delete(&claim, only(uid(&stored)), None).await?;
    }
    volumes::delete_alias(api, &namespace, name).await
}

/// Lets a volume go with the claim of ours that it was made for.
pub(super) async fn discard(api: &Api, name: &VolumeName, claim_uid: &Uid) -> Result<(), ClusterError> {
    let id = volume::id(name);
    match api.modify(&id, |object| staging::discard(&id, object, claim_uid)).await {
        // Gone already.
        Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

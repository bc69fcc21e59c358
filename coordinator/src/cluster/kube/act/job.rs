//! Jobs of users' own that look at a guest.

use serde_json::Value;
use somersault_coordinator_core::migration::{CronJobName, GuestAnswer, GuestQuestion};

use super::Api;
use crate::cluster::ClusterError;
use crate::cluster::change::job::ProbeJob;
use crate::cluster::error::{conflict, not_found};

/// Makes the Job where it is not there yet, and says how it stands. It is made once: where it is gone again it has ended, and
/// is made anew only as long as its answer is wanted.
pub(in crate::cluster::kube) async fn answer(
    api: &Api,
    question: &GuestQuestion,
    template: &CronJobName,
) -> Result<GuestAnswer, ClusterError> {
    let job = ProbeJob::answering(question, template);
    let id = job.id();
    if let Some(stored) = api.get(&id).await? {
        return job.answer(&stored);
    }
    match api.create(&manifest(api, &job).await?).await? {
        Some(made) => job.answer(&made),
        None => Err(conflict(&id, "it was made by somebody else at this moment")),
    }
}

/// The Job's manifest, of the `CronJob` as it is now.
pub(super) async fn manifest(api: &Api, job: &ProbeJob<'_>) -> Result<Value, ClusterError> {
    let id = job.template_id();
    let cron_job = api.get(&id).await?.ok_or_else(|| not_found(&id))?;
    job.of(&cron_job)
}

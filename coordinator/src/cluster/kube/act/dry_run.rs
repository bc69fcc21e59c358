//! What the API server would say to objects that are to be made: asked as a dry run, which makes nothing.

use somersault_coordinator_core::migration::{CronJobName, DryRun, DryRunAnswer, Verdict};

use super::Api;
use crate::cluster::ClusterError;
use crate::cluster::change::job::ProbeJob;
use crate::cluster::error::not_found;

/// Asks about all of it.
pub(in crate::cluster::kube) async fn answer(
    api: &Api,
    question: &DryRun,
) -> Result<DryRunAnswer, ClusterError> {
    let job = match &question.job {
        Some(template) => Some(verdict(job(api, question, template).await)?),
        None => None,
    };
    Ok(DryRunAnswer { job })
}

async fn job(api: &Api, question: &DryRun, template: &CronJobName) -> Result<(), ClusterError> {
    let job = ProbeJob::to_try(question, template);
    let template_id = job.template_id();
    let cron_job = api.get(&template_id).await?.ok_or_else(|| not_found(&template_id))?;
    api.try_create(&job.of(&cron_job)?).await.map(drop)
}

/// Trouble on the way is no verdict.
fn verdict(tried: Result<(), ClusterError>) -> Result<Verdict, ClusterError> {
    match tried {
        Ok(()) => Ok(Verdict::Admitted),
        Err(error @ ClusterError::Io { .. }) => Err(error),
        Err(error) => Ok(Verdict::Refused(error.to_string())),
    }
}

//! What the API server would say to objects that are to be made: asked as a dry run, which makes nothing.
//!
//! ```text
//!   create CLAIM, dry run ──► defaults, webhooks, policies, limits ──► quotas ──► is one of this name there?
//!                                         │                              │                  │
//!                                      refused                       over quota        409: admitted
//! ```
//!
//! In this order the API server looks at an object (measured on Kubernetes 1.36; the test of it is among those on a real one):
//! the claim can be asked about as it will be, under its own name, while its predecessor is there.

use somersault_coordinator_core::migration::{CronJobName, DryRun, DryRunAnswer, NewClaim, Quota, Verdict};

use super::Api;
use crate::cluster::ClusterError;
use crate::cluster::change::job::ProbeJob;
use crate::cluster::change::{claim, quota};

/// What the API server says where a quota would not hold: `exceeded quota: NAME, requested: …, used: …, limited: …`.
const OVER_QUOTA: &str = "exceeded quota: ";
/// What it says where a webhook changes something besides and cannot leave that for a dry run.
const NO_DRY_RUN: &str = "does not support dry run";

/// Asks about all of it.
pub(in crate::cluster::kube) async fn answer(
    api: &Api,
    question: &DryRun,
) -> Result<DryRunAnswer, ClusterError> {
    let mut claims = Vec::new();
    for NewClaim { claim, template, volume } in question.claims.iter().flatten() {
        let object = claim::new_claim(claim, template, volume);
        claims.push(verdict(api.try_create(&object).await.map(drop))?);
    }
    let quotas = api.list("ResourceQuota", Some(&question.migration.namespace)).await?;
    let quotas: Result<Vec<Option<Quota>>, ClusterError> =
        quotas.iter().map(|(id, object)| quota::read(id, object)).collect();
    let job = match &question.job {
        Some(template) => Some(verdict(job(api, question, template).await)?),
        None => None,
    };
    Ok(DryRunAnswer { claims, quotas: quotas?.into_iter().flatten().collect(), job })
}

async fn job(api: &Api, question: &DryRun, template: &CronJobName) -> Result<(), ClusterError> {
    let job = super::job::manifest(api, &ProbeJob::to_try(question, template)).await?;
    api.try_create(&job).await.map(drop)
}

/// Trouble on the way is no verdict.
fn verdict(tried: Result<(), ClusterError>) -> Result<Verdict, ClusterError> {
    match tried {
        Ok(()) => Ok(Verdict::Admitted),
        Err(error @ ClusterError::Io { .. }) => Err(error),
        Err(error) => {
            let said = error.to_string();
            Ok(if said.contains(OVER_QUOTA) {
                Verdict::OverQuota(said)
            } else if said.contains(NO_DRY_RUN) {
                Verdict::NotAsked(said)
            } else {
                Verdict::Refused(said)
            })
        }
    }
}

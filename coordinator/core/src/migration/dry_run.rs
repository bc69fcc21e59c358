//! What a migration will ask of the API server once it cannot turn back without a cost to the VM, asked before, as a dry
//! run: quotas, policies, webhooks and missing rights are heard of while the VM runs.
//!
//! ```text
//!   Checking ──► asked ──► admitted ──► Provisioning ──► PreCopying ──► asked ──► admitted ──► Stopping
//!                  │                                                      │
//!                  └──► refused: Failed, nothing was touched              └──► refused: put back, the VM was never stopped
//! ```
//!
//! Each claim is asked about as it will be made, under its own name. One of that name is there until the swap, which the API
//! server says last, after everything that may refuse the claim; only a quota sees both, so that is reckoned here (see
//! `quota`).
//!
//! It is asked twice: at first, so that nobody waits for a copy that can never be used; and again right before the stop,
//! since hours may lie between the two. Nothing is stored; a new leader asks again.

use std::time::Duration;

use super::guest::{CronJobName, GuestProbe};
use super::quota::{self, Charge, Quota};
use super::{Check, Context, DiskMove, MigrationRecord, MigrationSpec, Refusal, checks, claims};
use crate::BootTime;
use crate::io::{ClaimTemplate, Effect};
use crate::names::{Key, Uid, VolumeName};

/// An answer that has not come by then, a few calls of the shell's limit each, got lost.
const LOST_AFTER: Duration = Duration::from_secs(20);
/// Where the API server could not say, it is asked this often.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// What was admitted may not be any more after this.
const COUNTS_FOR: Duration = Duration::from_mins(1);
/// Longer than an API server or a webhook takes to start again. What they cannot say then, they would not do either.
const WAIT_MAX: Duration = Duration::from_mins(2);

/// Objects that a migration is going to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    /// The migration.
    pub migration: Key,
    /// Its uid.
    pub uid: Uid,
    /// The VM; empty for a claim alone.
    pub vm: String,
    /// The claims, each set in place of the one before: first those that lock, then those that are used.
    pub claims: [Vec<NewClaim>; 2],
    /// What the claims take up that are there now.
    pub now: Vec<Charge>,
    /// A Job of this template.
    pub job: Option<CronJobName>,
}

/// A claim that is made anew under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClaim {
    /// Its name.
    pub claim: Key,
    /// What it asks.
    pub template: ClaimTemplate,
    /// The volume that is kept for it.
    pub volume: VolumeName,
}

/// What the API server says to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It would make it.
    Admitted,
    /// It would not, in its own words.
    Refused(String),
    /// A quota would not hold with the object beside the one that it replaces. Nothing else refuses it.
    OverQuota(String),
    /// It could not be asked without being made: a webhook that knows no dry run.
    NotAsked(String),
}

/// What the API server says to all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRunAnswer {
    /// To the claims, in their order.
    pub claims: Vec<Verdict>,
    /// The quotas of the namespace.
    pub quotas: Vec<Quota>,
    /// To the Job, where one was asked about.
    pub job: Option<Verdict>,
}

/// What was asked, and what came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct DryRuns {
    last: Option<Asked>,
    /// Since when an answer is wanted and none has come.
    since: Option<BootTime>,
}

#[derive(Clone, Debug)]
struct Asked {
    question: DryRun,
    at: BootTime,
    /// `None` while it is out; why the API server could not say is no answer.
    answer: Option<Result<DryRunAnswer, String>>,
}

impl DryRun {
    /// What is to be made for the migration of these disks.
    pub(super) fn of(
        record: &MigrationRecord,
        spec: &MigrationSpec,
        disks: &[DiskMove],
        ctx: &Context<'_>,
    ) -> Self {
        let there = disks.iter().filter_map(|disk| ctx.fleet.claims.get(&disk.claim));
        Self {
            migration: record.key.clone(),
            uid: record.uid.clone(),
            vm: spec.vm.clone().unwrap_or_default(),
            claims: claims::to_make(&record.key, disks, ctx),
            now: there.map(|claim| Charge::new(&claim.class, claim.requested_bytes)).collect(),
            job: spec.probe.as_ref().and_then(GuestProbe::job).cloned(),
        }
    }

    /// The checks, where all of it is admitted; else the refusal, and the checks up to it.
    pub fn judge(&self, answer: &DryRunAnswer) -> Result<Vec<Check>, (Refusal, Vec<Check>)> {
        let mut found = Vec::new();
        let answers = [
            ("ClaimsAdmitted", Some(claims_admitted(self, answer))),
            ("QuotasHold", Some(quotas_hold(self, answer))),
            ("ProbeJobAdmitted", job(self, answer)),
        ];
        for (name, answer) in answers {
            match answer {
                None => {}
                Some(Ok(said)) => found.push(checks::passed(name, said)),
                Some(Err(refusal)) => {
                    found.push(checks::failed(name, &refusal));
                    return Err((refusal, found));
                }
            }
        }
        Ok(found)
    }
}

impl DryRuns {
    /// Asks, unless it is asked already or was just now.
    pub fn ask(&mut self, now: BootTime, question: DryRun) -> Option<Effect> {
        if let Some(last) = self.last.as_ref().filter(|last| last.question == question) {
            let wait = if last.answer.is_none() { LOST_AFTER } else { ASK_EVERY };
            if now.saturating_sub(last.at) < wait {
                return None;
            }
        }
        self.since.get_or_insert(now);
        self.last = Some(Asked { question: question.clone(), at: now, answer: None });
        Some(Effect::DryRun(question))
    }

    /// Takes an answer; one to any other question than the one that is out changes nothing.
    pub fn answered(&mut self, question: &DryRun, answer: &Result<DryRunAnswer, String>) {
        if let Some(last) = self.last.as_mut().filter(|last| last.question == *question) {
            last.answer = Some(answer.clone());
            if answer.is_ok() {
                self.since = None;
            }
        }
    }

    /// The checks, where all of it is admitted. A transient refusal is to be asked again.
    pub fn outcome(&self, now: BootTime, question: &DryRun) -> Result<Vec<Check>, (Refusal, Vec<Check>)> {
        let waits = self.since.is_none_or(|since| now.saturating_sub(since) < WAIT_MAX);
        let not_said = |message: String| {
            Err((Refusal { transient: waits, ..Refusal::new("DryRunFailed", message) }, Vec::new()))
        };
        let counts = |last: &&Asked| last.question == *question && now.saturating_sub(last.at) < COUNTS_FOR;
        match self.last.as_ref().filter(counts).and_then(|last| last.answer.as_ref()) {
            Some(Ok(answer)) => question.judge(answer),
            Some(Err(why)) => not_said(format!(
                "the API server could not say whether it would make what the migration needs: {why}"
            )),
            None => not_said(
                "the API server did not say whether it would make what the migration needs".to_owned(),
            ),
        }
    }
}

fn claims_admitted(question: &DryRun, answer: &DryRunAnswer) -> Result<String, Refusal> {
    let mut unasked = Vec::new();
    for (claim, verdict) in question.claims.iter().flatten().zip(&answer.claims) {
        match verdict {
            Verdict::Admitted | Verdict::OverQuota(_) => {}
            Verdict::NotAsked(why) => unasked.push(format!("{}: {why}", claim.claim)),
            Verdict::Refused(why) => {
                let message = format!(
                    "claim {} could not be made anew for its new volume, so that the VM is not stopped: {why}. Change what \
                     refuses it, or move the disk elsewhere, and create another VolumeMigration",
                    claim.claim
                );
                return Err(Refusal::new("ClaimWouldBeRefused", message));
            }
        }
    }
    if unasked.is_empty() {
        return Ok("the API server would make each claim anew".to_owned());
    }
    unasked.dedup();
    Ok(format!(
        "nothing is known to refuse the claims, but not everybody could be asked: {}",
        unasked.join("; ")
    ))
}

fn quotas_hold(question: &DryRun, answer: &DryRunAnswer) -> Result<String, Refusal> {
    for claims in &question.claims {
        let charges: Vec<Charge> = claims
            .iter()
            .map(|claim| Charge::new(&claim.template.class, claim.template.requested_bytes))
            .collect();
        if let Some(exceeded) = quota::exceeded(&answer.quotas, &question.now, &charges) {
            let message = format!(
                "{exceeded}, so that the claims could not be made anew and the VM is not stopped: raise the quota or free what \
                 it counts, and create another VolumeMigration"
            );
            return Err(Refusal::new("QuotaWouldBeExceeded", message));
        }
    }
    Ok(match answer.quotas.len() {
        0 => "the namespace has no quota".to_owned(),
        count => format!("{count} quotas hold when each claim has been made anew in place of its old one"),
    })
}

fn job(question: &DryRun, answer: &DryRunAnswer) -> Option<Result<String, Refusal>> {
    let (template, verdict) = (question.job.as_ref()?.as_str(), answer.job.as_ref()?);
    Some(match verdict {
        Verdict::Admitted => Ok(format!("a Job of CronJob {template} can be made")),
        Verdict::NotAsked(why) => {
            Ok(format!("whether a Job of CronJob {template} can be made is not known: {why}"))
        }
        Verdict::OverQuota(why) | Verdict::Refused(why) => {
            let message = format!(
                "no Job of CronJob {template} can be made to look at the guest after the move, so that nothing is begun: {why}"
            );
            Err(Refusal::new("ProbeJobRefused", message))
        }
    })
}

//! What receivers of alerts have in common: what they are given, whether they work, and how long one that does not is left alone.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use jiff::{SignedDuration, Timestamp};
use somersault_coordinator_core::BootTime;
use somersault_coordinator_core::alerts::told::Outgoing;
use tokio::sync::watch;

use super::config::{AlertPlan, Pace, SecretError};
use super::http::PostError;
use super::template::TemplateError;
use crate::clock::Clock;
use crate::leader::Epoch;
use crate::metrics::{Metrics, Sent};

/// What is to be told at this moment, in the epoch in which it was found; `None` where it is not ours to tell. Each receiver
/// takes the newest when it is ready, so that none keeps anybody waiting, and nothing queues.
pub type Newest = watch::Receiver<Option<Arc<(u64, Outgoing)>>>;

/// What every receiver needs. Cheap to share.
#[derive(Clone)]
pub struct Common {
    /// Where alerts go, and how often.
    pub plan: Arc<AlertPlan>,
    /// Our clock.
    pub clock: Arc<dyn Clock>,
    /// Whether we lead.
    pub epoch: Epoch,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Why something was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It was not taken.
    #[error(transparent)]
    Post(#[from] PostError),
    /// A file of its configuration.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// What is in the file is no URL.
    #[error("the URL of the webhook cannot be used")]
    Url(#[from] super::http::BadUrl),
    /// It cannot be written as JSON.
    #[error("the message cannot be written")]
    Json(#[from] serde_json::Error),
    /// The template for Slack.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl SendError {
    fn outcome(&self) -> Sent {
        match self {
            Self::Post(PostError::Refused { .. }) => Sent::Refused,
            Self::Post(PostError::Late(_)) => Sent::Late,
            _ => Sent::Failed,
        }
    }
}

/// Whether a receiver works: told in the log when that changes, and counted each time.
pub struct Health {
    receiver: String,
    /// Which part of it.
    at: String,
    metrics: Arc<Metrics>,
    pace: Pace,
    backoff: Option<ExponentialBackoff>,
}

impl Health {
    /// Of the receiver that people and metrics know by this name, which is no secret.
    pub fn new(receiver: &str, at: &str, common: &Common) -> Self {
        Self {
            receiver: receiver.to_owned(),
            at: at.to_owned(),
            metrics: Arc::clone(&common.metrics),
            pace: common.plan.pace.clone(),
            backoff: None,
        }
    }

    /// It has taken a message.
    pub fn works(&mut self) {
        self.metrics.alert_sent(&self.receiver, Sent::Taken);
        self.recovers();
    }

    /// What failed does so no more.
    pub fn recovers(&mut self) {
        if self.backoff.take().is_some() {
            tracing::info!(receiver = self.receiver, at = self.at, "alerts can be sent again");
        }
    }

    /// It has not. Returns how long to leave it alone.
    pub fn fails(&mut self, error: &SendError) -> Duration {
        self.metrics.alert_sent(&self.receiver, error.outcome());
        if self.backoff.is_none() {
            let error = error as &dyn std::error::Error;
            tracing::warn!(
                receiver = self.receiver,
                at = self.at,
                error,
                "alerts were not sent; trying again and again"
            );
        }
        let pace = &self.pace;
        let begin = || {
            ExponentialBuilder::default()
                .with_min_delay(pace.retry_first)
                .with_max_delay(pace.retry_max)
                .without_max_times()
                .with_jitter()
                .build()
        };
        self.backoff.get_or_insert_with(begin).next().unwrap_or(pace.retry_max)
    }
}

/// The time of day of a reading of our clock.
pub fn time_of_day(clock: &dyn Clock, at: BootTime) -> Timestamp {
    let ago = clock.now().saturating_sub(at);
    let ago = SignedDuration::try_from(ago).unwrap_or(SignedDuration::ZERO);
    let now = Timestamp::now();
    now.checked_sub(ago).unwrap_or(now)
}

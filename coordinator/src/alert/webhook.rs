//! A webhook: told of each alert that begins or ends, and seldom of those that last.
//!
//! ```text
//!   what fires ──► what it has not heard ── nothing ──► wait for the next look
//!        ▲                   └── news ──► template ──► POST ── taken ──► heard
//!        │                                               └── not ──► wait, longer each time, and look at what fires then
//!        └───────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! All news of one look is one message: a chat that takes one a second takes those of a node with a hundred VMs.

use bytes::Bytes;
use somersault_coordinator_core::alerts::Alert;
use somersault_coordinator_core::alerts::told::{Heard, News};
use tokio::time::sleep;

use super::config::{if_there, read_secret, read_small};
use super::http::{Endpoint, Message, PostError};
use super::receiver::{Common, Health, Newest, SendError, time_of_day};
use super::template::{self, Line, TEMPLATE_BYTES_MAX, Told};

/// Label of its metrics: its URL is a secret.
const NAME: &str = "webhook";

/// Tells the webhook, for ever.
pub async fn follow(mut newest: Newest, common: Common) {
    let mut health = Health::new(NAME, "the address in its file", &common);
    let (mut heard, mut of_epoch) = (Heard::default(), None);
    loop {
        let now = newest.borrow_and_update().clone();
        if let Some(now) = now.filter(|now| common.epoch.current() == Some(now.0)) {
            let (epoch, outgoing) = &*now;
            if of_epoch.replace(*epoch) != Some(*epoch) {
                heard = Heard::default();
            }
            let at = common.clock.now();
            let news = heard.news(at, outgoing, common.plan.pace.remind);
            if !news.is_empty() {
                match post(&news, &common).await {
                    Ok(true) => {
                        health.works();
                        heard.told(at, &news);
                    }
                    // Nobody has said where it is.
                    Ok(false) => {}
                    Err(error) => {
                        sleep(health.fails(&error)).await;
                        continue;
                    }
                }
            }
        }
        if newest.changed().await.is_err() {
            return;
        }
    }
}

/// Whether there is anybody to tell.
async fn post(news: &News, common: &Common) -> Result<bool, SendError> {
    let plan = &common.plan;
    let Some(url) = read_secret(plan.webhook.as_deref()).await? else { return Ok(false) };
    let endpoint = Endpoint::parse(&url)?;
    let token = read_secret(plan.webhook_token.as_deref()).await?;
    let told = told(news, common);
    let text = message(&told, common).await?;
    let message = Message { content_type: template::content_type(&text), token, body: Bytes::from(text) };
    let mut last = PostError::Late(plan.pace.within);
    // Each of its addresses is the same receiver: the first that takes it is enough.
    for address in endpoint.resolve(plan.pace.within).await? {
        match endpoint.post(address, if_there(plan.ca.as_deref()), message.clone(), plan.pace.within).await {
            Ok(()) => return Ok(true),
            Err(refused @ PostError::Refused { .. }) => return Err(refused.into()),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

/// By the template of the user, and where that cannot be used by ours: an alert in another shape is better than none.
async fn message(told: &Told, common: &Common) -> Result<String, SendError> {
    let own = match common.plan.webhook_template.as_deref() {
        None => Ok(None),
        Some(file) => read_small(file, TEMPLATE_BYTES_MAX).await,
    };
    let rendered = match own {
        Ok(None) => return Ok(template::render(None, told)?),
        Ok(Some(own)) => template::render(Some(&own), told).map_err(SendError::from),
        Err(error) => Err(error.into()),
    };
    match rendered {
        Ok(message) => Ok(message),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "the template of --webhook-template cannot be used; sending what Slack takes"
            );
            Ok(template::render(None, told)?)
        }
    }
}

fn told(news: &News, common: &Common) -> Told {
    let lines = |alerts: &[Alert]| alerts.iter().map(|alert| line(alert, common)).collect();
    Told { firing: lines(&news.firing), still: lines(&news.still), ended: lines(&news.ended) }
}

fn line(alert: &Alert, common: &Common) -> Line {
    let own = common.plan.labels.iter().map(|(name, value)| (name.clone(), value.clone()));
    let labels = alert.id.labels().into_iter().map(|(name, value)| (name.to_owned(), value));
    Line {
        name: alert.id.name.as_str(),
        severity: alert.id.name.severity().as_str(),
        labels: own.chain(labels).collect(),
        summary: alert.id.summary(),
        description: alert.description.clone(),
        starts_at: time_of_day(common.clock.as_ref(), alert.since),
    }
}

//! What a webhook is sent: the news, by a template.
//!
//! A template has `text` (everything in a few lines), `firing`, `still` and `ended` (lists of alerts with `name`, `severity`,
//! `labels`, `summary`, `description`, `starts_at`) and `status` (`firing` where any of the first two is not empty, else
//! `resolved`). It can do nothing but make text, and is stopped where that takes long.

use std::collections::BTreeMap;

use jiff::Timestamp;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

/// What Slack, Mattermost, Rocket.Chat and their like take. In their text, these three are markup.
const SLACK: &str =
    "{\"text\": {{ text | replace('&', '&amp;') | replace('<', '&lt;') | replace('>', '&gt;') | tojson }}}";
/// A template is a screen or two.
pub const TEMPLATE_BYTES_MAX: u64 = 64 << 10;
/// Slack cuts a message after 40,000 letters, others sooner; with a template of one's own every alert may be in it whole.
const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// Steps of a template: many times what naming every label of every alert takes.
const FUEL: u64 = 2_000_000;
/// Alerts that are told in full in `text`: what is left of a message after that, nobody reads.
const TEXT_ALERTS_MAX: usize = 20;

/// One alert, as templates see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its name.
    pub name: &'static str,
    /// Its severity.
    pub severity: &'static str,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// One line.
    pub summary: String,
    /// What to do.
    pub description: String,
    /// Since when, RFC 3339.
    pub starts_at: Timestamp,
}

/// What is to be told.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Told {
    /// Fires now.
    pub firing: Vec<Line>,
    /// Fires still.
    pub still: Vec<Line>,
    /// Has ended.
    pub ended: Vec<Line>,
}

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It is none, or says something that is not there.
    #[error("the template cannot be used")]
    Template(#[from] minijinja::Error),
    /// It makes too much.
    #[error("what the template makes is longer than {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
}

/// A message, by this template or the one for Slack.
pub fn render(template: Option<&str>, told: &Told) -> Result<String, TemplateError> {
    #[derive(Serialize)]
    struct All<'a> {
        status: &'static str,
        text: String,
        #[serde(flatten)]
        told: &'a Told,
    }
    let mut templates = Environment::new();
    // What is not there is a mistake, and must not become nothing at night.
    templates.set_undefined_behavior(UndefinedBehavior::Strict);
    templates.set_fuel(Some(FUEL));
    let fires = !(told.firing.is_empty() && told.still.is_empty());
    let all = All { status: if fires { "firing" } else { "resolved" }, text: text(told), told };
    let message = templates.render_str(template.unwrap_or(SLACK), Serde(all))?;
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(TemplateError::TooLong);
    }
    Ok(message)
}

/// `Content-Type` of a message.
pub fn content_type(message: &str) -> &'static str {
    if serde_json::from_str::<serde::de::IgnoredAny>(message).is_ok() {
        "application/json"
    } else {
        "text/plain; charset=utf-8"
    }
}

/// Everything in a few lines.
fn text(told: &Told) -> String {
    let firing = told.firing.iter().map(|line| ("FIRING", line, true));
    let still = told.still.iter().map(|line| ("STILL FIRING", line, true));
    let ended = told.ended.iter().map(|line| ("RESOLVED", line, false));
    let all = firing.chain(still).chain(ended);
    let more = all.clone().count().saturating_sub(TEXT_ALERTS_MAX);
    let mut lines: Vec<String> = all
        .take(TEXT_ALERTS_MAX)
        .map(|(what, line, fires)| {
            let Line { name, severity, summary, description, .. } = line;
            let head = format!("[{what}] {severity} {name}: {summary}");
            if fires { format!("{head}\n{description}") } else { head }
        })
        .collect();
    if more > 0 {
        lines.push(format!("and {more} more: kubectl somersault status"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(vm: &str) -> Line {
        Line {
            name: "VmNotRunning",
            severity: "critical",
            labels: BTreeMap::from([("vm".to_owned(), vm.to_owned())]),
            summary: format!("VM {vm}: should run and does not"),
            description: "Look: \"kubectl\" <!channel> & more".to_owned(),
            starts_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn without_a_template_it_is_what_slack_takes() {
        let told = Told { firing: vec![line("web")], ended: vec![line("db")], ..Told::default() };
        let message = render(None, &told).expect("rendered");
        let read: serde_json::Value = serde_json::from_str(&message).expect("JSON");
        let text = read["text"].as_str().expect("a text");
        assert!(text.starts_with("[FIRING] critical VmNotRunning: VM web"), "{text}");
        assert!(text.contains("\"kubectl\" &lt;!channel&gt; &amp; more"), "{text}");
        assert!(text.ends_with("[RESOLVED] critical VmNotRunning: VM db: should run and does not"), "{text}");
        assert_eq!(content_type(&message), "application/json");
    }

    #[test]
    fn of_very_many_alerts_the_first_are_told() {
        let told = Told { firing: vec![line("web"); 500], ..Told::default() };
        let message = render(None, &told).expect("rendered");
        assert_eq!(message.matches("FIRING").count(), TEXT_ALERTS_MAX);
        assert!(message.contains("and 480 more"));
        assert!(message.len() < 40_000, "as much as Slack takes: {}", message.len());
    }

    #[test]
    fn a_template_of_ones_own_has_all_of_it() {
        let told = Told { firing: vec![line("web")], ..Told::default() };
        let template =
            "{{ status }}{% for a in firing %} {{ a.name }} {{ a.labels.vm }} {{ a.starts_at }}{% endfor %}";
        let message = render(Some(template), &told).expect("rendered");
        assert_eq!(message, "firing VmNotRunning web 1970-01-01T00:00:00Z");
        assert_eq!(content_type(&message), "text/plain; charset=utf-8");
        let every = Told { firing: vec![line("web"); 513], ended: vec![line("web"); 513], ..Told::default() };
        let template = "{% for a in firing + ended %}{{ a|tojson }}{% endfor %}";
        assert!(render(Some(template), &every).is_ok(), "as much as there can be");
    }

    #[test]
    fn a_template_that_cannot_be_used_or_runs_on_is_an_error() {
        let told = Told { firing: vec![line("web")], ..Told::default() };
        for template in [
            "{{ text",
            "{{ nothing }}",
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
        ] {
            assert!(render(Some(template), &told).is_err(), "{template}");
        }
    }
}

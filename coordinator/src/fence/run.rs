//! `off`, then `status` read back. Only both together are a proof.
//!
//! ```text
//!   off ── exit 0 ──► status ── 2 (off) ──► ConfirmedOff
//!    │                  │ └──── 0 (on) ───► asked again, a few times ──► Failed
//!    │ anything else    └────── else ─────► asked again, a few times ──► Failed
//!    ▼
//!   off once more ── anything else ──► Failed
//! ```
//!
//! Exit codes by the `FenceAgentAPI` of ClusterLabs: `off` ends with 0 only when verified, `status` with 0 for on,
//! 2 for off and 1 where the device cannot be reached. What `status` says before `off` counts nothing: nobody
//! knows what happened in between.

use std::fmt::Write as _;
use std::process::ExitStatus;
use std::time::Duration;

use somersault_coordinator_core::io::FenceResult;
use somersault_coordinator_core::names::NodeName;
use tokio::time::{Instant, sleep, timeout_at};

use super::FenceAgent;
use super::process::{self, Ended};

/// A management controller that was busy answers the second time; what fails twice is for the core's own retries.
const OFF_TRIES: u32 = 2;
/// A power supply drains within a second or two, and some controllers tell late.
const STATUS_TRIES: u32 = 8;
/// Behind the deadline: lets a run that was killed at it be cleaned up.
const CLEANUP: Duration = Duration::from_secs(1);
/// What is shown of a program's output.
const SHOWN_CHARS_MAX: usize = 300;

/// Powers the node off and reads it back, all within the agent's deadline.
pub async fn fence(node: &NodeName, agent: &FenceAgent) -> FenceResult {
    let deadline = Instant::now() + agent.deadline;
    let all = async {
        off(node, agent, deadline).await?;
        confirm(node, agent, deadline).await
    };
    match timeout_at(deadline + CLEANUP, all).await {
        Ok(Ok(())) => FenceResult::ConfirmedOff,
        Ok(Err(why)) => FenceResult::Failed(why),
        Err(_) => FenceResult::Failed(format!("no end within {:?}", agent.deadline)),
    }
}

async fn off(node: &NodeName, agent: &FenceAgent, deadline: Instant) -> Result<(), String> {
    let mut why = String::new();
    for attempt in 1..=OFF_TRIES {
        let ended = action(node, agent, "off", deadline).await?;
        if ended.status.is_some_and(|status| status.success()) {
            return Ok(());
        }
        why = told("off", agent, &ended);
        tracing::warn!(%node, attempt, %why, "a fence agent failed");
        if ended.status.is_none() || attempt == OFF_TRIES {
            break;
        }
        sleep(agent.retry_wait).await;
    }
    Err(why)
}

async fn confirm(node: &NodeName, agent: &FenceAgent, deadline: Instant) -> Result<(), String> {
    let mut why = String::new();
    for attempt in 1..=STATUS_TRIES {
        let ended = action(node, agent, "status", deadline).await?;
        match ended.status.and_then(|status| status.code()) {
            Some(2) => return Ok(()),
            Some(0) => {
                "off was reported as done, but status says that the power is still on".clone_into(&mut why);
            }
            _ => {
                why = format!(
                    "off was reported as done, but it cannot be read back: {}",
                    told("status", agent, &ended)
                );
            }
        }
        tracing::warn!(%node, attempt, %why, "power off is not confirmed yet");
        if ended.status.is_none() || attempt == STATUS_TRIES {
            break;
        }
        sleep(agent.retry_wait).await;
    }
    Err(why)
}

async fn action(
    node: &NodeName,
    agent: &FenceAgent,
    action: &str,
    deadline: Instant,
) -> Result<Ended, String> {
    process::run(&agent.program, &stdin(node, agent, action), deadline)
        .await
        .map_err(|error| format!("cannot run {}: {error}; is it still installed?", agent.program.display()))
}

/// The last of a repeated name counts, so ours come last.
fn stdin(node: &NodeName, agent: &FenceAgent, action: &str) -> String {
    let mut lines = String::new();
    for (name, value) in &agent.options {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{name}={value}");
    }
    let _ = writeln!(lines, "nodename={node}\naction={action}");
    lines
}

fn told(action: &str, agent: &FenceAgent, ended: &Ended) -> String {
    let how = ended.status.map_or_else(|| format!("did not end within {:?}", agent.deadline), of_status);
    let output = shown(agent, &ended.output);
    if output.is_empty() { format!("{action} {how}") } else { format!("{action} {how}: {output}") }
}

fn of_status(status: ExitStatus) -> String {
    status
        .code()
        .map_or_else(|| "was killed by a signal".to_owned(), |code| format!("ended with exit code {code}"))
}

/// The start of the output on one line, without any configured value that may be secret. Verbose agents print what
/// they send, encoded in ways that cannot be foreseen: of those nothing is shown.
fn shown(agent: &FenceAgent, output: &str) -> String {
    let is_verbose = |(name, value): &(String, String)| {
        matches!(name.as_str(), "verbose" | "verbose_level" | "debug" | "debug_file") && value != "0"
    };
    if agent.options.iter().any(is_verbose) {
        return String::new();
    }
    let mut secrets: Vec<&str> = agent
        .options
        .iter()
        .filter(|(name, value)| is_secret(name) && !value.is_empty())
        .map(|(_, value)| value.as_str())
        .collect();
    // Longest first: a secret that contains another one must not leave its tail behind.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    let clean = secrets.iter().fold(output.to_owned(), |text, secret| text.replace(secret, "<redacted>"));
    clean.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARS_MAX).collect()
}

/// By the names that fence agents use.
fn is_secret(option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    ["passw", "secret", "token", "key", "community", "identity", "cookie"]
        .iter()
        .any(|part| option.contains(part))
        && !option.ends_with("_script")
}

//! `off`, then `status` read back: only both together are a proof. And `status` alone, which switches nothing.
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
use std::fs;
use std::io::{self, Read};
use std::process::ExitStatus;
use std::time::Duration;

use somersault_coordinator_core::fencing::agents::FenceAnswer;
use somersault_coordinator_core::io::FenceResult;
use somersault_coordinator_core::names::NodeName;
use tokio::time::{Instant, sleep, timeout_at};

use super::FenceAgent;
use super::config::VALUE_BYTES_MAX;
use super::process::{self, Ended};

/// A management controller that was busy answers the second time; what fails twice is for the core's own retries.
const OFF_TRIES: u32 = 2;
/// A power supply drains within a second or two, and some controllers tell late.
const STATUS_TRIES: u32 = 8;
/// Behind the deadline: lets a run that was killed at it be cleaned up.
const CLEANUP: Duration = Duration::from_secs(1);
/// What is shown of a program's output.
const SHOWN_CHARS_MAX: usize = 300;
/// A password is far shorter; a file that is longer is another one.
const PASSWORD_BYTES_MAX: u64 = VALUE_BYTES_MAX as u64;

/// Powers the node off and reads it back, all within the agent's deadline.
pub async fn fence(node: &NodeName, agent: &FenceAgent) -> FenceResult {
    let deadline = Instant::now() + agent.deadline;
    let all = async {
        let agent = &with_password(agent)?;
        off(node, agent, deadline).await?;
        confirm(node, agent, deadline).await
    };
    match timeout_at(deadline + CLEANUP, all).await {
        Ok(Ok(())) => FenceResult::ConfirmedOff,
        Ok(Err(why)) => FenceResult::Failed(why),
        Err(_) => FenceResult::Failed(format!("no end within {:?}", agent.deadline)),
    }
}

/// Asks for the status, within the agent's deadline.
pub async fn status(node: &NodeName, agent: &FenceAgent) -> FenceAnswer {
    let deadline = Instant::now() + agent.deadline;
    let all = async {
        let agent = &with_password(agent)?;
        let ended = action(node, agent, "status", deadline).await?;
        match ended.status.and_then(|status| status.code()) {
            Some(0) => Ok(FenceAnswer::On),
            Some(2) => Ok(FenceAnswer::Off),
            _ => Err(told("status", agent, &ended)),
        }
    };
    match timeout_at(deadline + CLEANUP, all).await {
        Ok(answer) => answer.unwrap_or_else(FenceAnswer::Failed),
        Err(_) => FenceAnswer::Failed(format!("no end within {:?}", agent.deadline)),
    }
}

/// The password is read for each run, so that it can be changed while nobody looks.
fn with_password(agent: &FenceAgent) -> Result<FenceAgent, String> {
    let mut agent = agent.clone();
    if let Some(file) = &agent.password_file {
        let password = read_password(file)
            .map_err(|why| format!("cannot use the password in {}: {why}", file.display()))?;
        agent.options.push(("password".to_owned(), password));
    }
    Ok(agent)
}

fn read_password(file: &std::path::Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(file)?.take(PASSWORD_BYTES_MAX + 1).read_to_string(&mut text)?;
    // Editors end a file with a line break; no password does.
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() || text.len() as u64 > PASSWORD_BYTES_MAX || password.chars().any(char::is_control)
    {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not one short line"));
    }
    Ok(password.to_owned())
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
    let output = shown(agent, ended);
    if output.is_empty() { format!("{action} {how}") } else { format!("{action} {how}: {output}") }
}

fn of_status(status: ExitStatus) -> String {
    status
        .code()
        .map_or_else(|| "was killed by a signal".to_owned(), |code| format!("ended with exit code {code}"))
}

/// The end of the output on one line, without any configured value that may be secret. Verbose agents print what
/// they send, encoded in ways that cannot be foreseen: of those nothing is shown.
fn shown(agent: &FenceAgent, ended: &Ended) -> String {
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
    let clean = secrets.iter().fold(ended.output.clone(), |text, secret| text.replace(secret, "<redacted>"));
    // What was dropped may have taken the start of a secret with it, and left its end here.
    let skipped = if ended.cut { VALUE_BYTES_MAX } else { 0 };
    let shown: Vec<char> = clean.chars().skip(skipped).collect();
    let shown = &shown[shown.len().saturating_sub(SHOWN_CHARS_MAX)..];
    shown.iter().map(|c| if c.is_control() { ' ' } else { *c }).collect()
}

/// By the names that fence agents use.
pub(super) fn is_secret(option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    ["passw", "secret", "token", "key", "community", "identity", "cookie"]
        .iter()
        .any(|part| option.contains(part))
        && !option.ends_with("_script")
}

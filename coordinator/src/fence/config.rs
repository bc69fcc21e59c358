//! Which fence agent each node has, and with which options: read and checked at start, so that a typo is found
//! before a node dies.
//!
//! ```yaml
//! nodes:
//!   worker-1:
//!     agent: fence_redfish          # on PATH, or an absolute path
//!     options: { ip: 10.0.9.1, username: fence, password_script: /etc/fence/worker-1, ssl_insecure: true }
//!     deadlineMs: 30000             # for off and status together
//!     passwordFile: worker-1        # beside this file, or an absolute path; instead of password_script
//! ```

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use somersault_coordinator_core::fencing::agents::AgentRevision;
use somersault_coordinator_core::names::NodeName;
use somersault_proto::model::Malformed;

use super::machine::{self, Machine};
use super::run::is_secret;
use super::{FenceAgent, FenceAgents};

/// A file for a thousand nodes with twenty options each is below this.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Between two tries of one action: management controllers that are busy, or that tell late, need about a second,
/// and whoever waits for a VM should not wait longer than that.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// The longest option of any known agent is a path or a password.
pub(super) const VALUE_BYTES_MAX: usize = 4096;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FenceSpec {
    /// By name.
    pub nodes: BTreeMap<String, AgentSpec>,
}

/// One node's agent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentSpec {
    /// Program: a name on `PATH`, or an absolute path.
    pub agent: String,
    /// Options by the agent's own names.
    #[serde(default)]
    pub options: BTreeMap<String, OptionValue>,
    /// For `off` and `status` together; absent: the policy's `fencing.timeoutMs`.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// A file with the option `password`: beside the configuration, or an absolute path.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

impl std::fmt::Debug for AgentSpec {
    /// Without the options: they hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentSpec").field("agent", &self.agent).finish_non_exhaustive()
    }
}

/// What YAML makes of an unquoted value.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum OptionValue {
    /// `true` becomes `1`, which is how fence agents spell it.
    Bool(bool),
    /// A number.
    Integer(i64),
    /// Anything else.
    Text(String),
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FenceConfigError {
    /// It cannot be read.
    #[error("cannot read the fence configuration {}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is far too large.
    #[error("the fence configuration {} has {bytes} bytes, at most {FILE_BYTES_MAX}", file.display())]
    TooLarge {
        /// Which.
        file: PathBuf,
        /// How large it is.
        bytes: u64,
    },
    /// It is not what it should be.
    #[error("the fence configuration {} cannot be understood: {why}", file.display())]
    Syntax {
        /// Which.
        file: PathBuf,
        /// Where, and what is wrong.
        why: String,
    },
    /// One node's agent cannot work.
    #[error("the fence agent of node {node}: {why}")]
    Agent {
        /// Whose.
        node: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// One of the two is a mistake, and nobody can tell which.
    #[error(
        "nodes {one} and {other} have the same fence agent for the same machine: it would switch one for both, and take its \
         state for that of both. Give each node its own machine (ip, plug, systems_uri, ...)"
    )]
    SameMachine {
        /// One node.
        one: NodeName,
        /// The other.
        other: NodeName,
    },
}

impl FenceAgents {
    /// Reads and checks the file. No agent may take longer than `timeout`, for which whoever asked waits.
    pub fn read(file: &Path, timeout: Duration) -> Result<Self, FenceConfigError> {
        let unreadable = |source| FenceConfigError::Unreadable { file: file.to_owned(), source };
        let bytes = fs::metadata(file).map_err(unreadable)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(FenceConfigError::TooLarge { file: file.to_owned(), bytes });
        }
        let text = fs::read_to_string(file).map_err(unreadable)?;
        let spec: FenceSpec = serde_saphyr::from_str(&text).map_err(|error| FenceConfigError::Syntax {
            file: file.to_owned(),
            why: without_snippet(&error),
        })?;
        Self::checked(spec, file.parent().unwrap_or(Path::new("")), timeout)
    }

    /// Checks what the file in this folder says.
    pub fn checked(spec: FenceSpec, folder: &Path, timeout: Duration) -> Result<Self, FenceConfigError> {
        let mut agents = BTreeMap::new();
        for (node, spec) in spec.nodes {
            let wrong = |why| FenceConfigError::Agent { node: node.clone(), why };
            // As in certificates and on the wire: a name that no Node can have is a mistake.
            let name: somersault_proto::model::NodeName =
                node.parse().map_err(|error: Malformed| wrong(error.to_string()))?;
            let agent = checked(spec, folder, timeout).map_err(wrong)?;
            agents.insert(NodeName(name.into()), agent);
        }
        refuse_same_machine(&agents)?;
        Ok(Self { agents })
    }
}

fn refuse_same_machine(agents: &BTreeMap<NodeName, FenceAgent>) -> Result<(), FenceConfigError> {
    let mut seen: BTreeMap<Machine, &NodeName> = BTreeMap::new();
    for (node, agent) in agents {
        let Some(machine) = machine::of(&agent.program, &agent.options) else { continue };
        if let Some(one) = seen.insert(machine, node) {
            return Err(FenceConfigError::SameMachine { one: one.clone(), other: node.clone() });
        }
    }
    Ok(())
}

/// The first line only: what follows quotes the file, and the file holds passwords.
fn without_snippet(error: &serde_saphyr::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn checked(spec: AgentSpec, folder: &Path, timeout: Duration) -> Result<FenceAgent, String> {
    let deadline = spec.deadline_ms.map_or(timeout, Duration::from_millis);
    if deadline.is_zero() || deadline > timeout {
        return Err(format!(
            "deadlineMs is {}, but must be from 1 to {}, the policy's fencing.timeoutMs or the runner's limit",
            deadline.as_millis(),
            timeout.as_millis()
        ));
    }
    let program = find_program(&spec.agent)?;
    let mut options = Vec::with_capacity(spec.options.len());
    for (name, value) in spec.options {
        options.push((name.clone(), checked_option(&name, value)?));
    }
    let password_file = spec.password_file.map(|file| folder.join(file));
    if let Some(file) = &password_file
        && !file.is_file()
    {
        return Err(format!("passwordFile is {}, which is no file", file.display()));
    }
    let revision = revision(&program, &options);
    Ok(FenceAgent { program, options, password_file, deadline, retry_wait: RETRY_WAIT, revision })
}

/// Which machine the agent switches, as far as its options tell. Passwords are left out: they change by themselves,
/// and nobody shall guess them from this.
fn revision(program: &Path, options: &[(String, String)]) -> AgentRevision {
    let mut hash = blake3::Hasher::new();
    hash.update(program.as_os_str().as_encoded_bytes());
    for (name, value) in options.iter().filter(|(name, _)| !is_secret(name)) {
        hash.update(format!("\n{name}={value}").as_bytes());
    }
    AgentRevision(hash.finalize().to_hex()[..16].to_owned())
}

/// Options travel as `name=value` lines: a line break in a value would be a second option, `action=on` say.
fn checked_option(name: &str, value: OptionValue) -> Result<String, String> {
    let name_is_plain = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if !name_is_plain {
        return Err(format!("{name:?} is no option name: letters, digits, `_` and `-` only"));
    }
    if matches!(name, "action" | "option" | "nodename") {
        return Err(format!("the option `{name}` is set by the coordinator and cannot be configured"));
    }
    let value = match value {
        OptionValue::Bool(on) => if on { "1" } else { "0" }.to_owned(),
        OptionValue::Integer(number) => number.to_string(),
        // As the agents' own library reads it: without blanks around it.
        OptionValue::Text(text) => text.trim().to_owned(),
    };
    if value.chars().any(char::is_control) {
        return Err(format!("the value of `{name}` holds a line break or another control character"));
    }
    if value.len() > VALUE_BYTES_MAX {
        return Err(format!("the value of `{name}` has {} bytes, at most {VALUE_BYTES_MAX}", value.len()));
    }
    Ok(value)
}

fn find_program(agent: &str) -> Result<PathBuf, String> {
    if agent.starts_with('/') {
        let program = PathBuf::from(agent);
        return if is_program(&program) {
            Ok(program)
        } else {
            Err(format!("{agent} is not an executable file; is the fence agent installed?"))
        };
    }
    if agent.is_empty() || agent.contains('/') {
        return Err(format!("{agent:?} is neither a program's name nor an absolute path"));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(OsStr::new(agent)))
        .find(|program| is_program(program))
        .ok_or_else(|| {
            format!("{agent} is not on PATH; install it (Debian: fence-agents), or give its full path")
        })
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

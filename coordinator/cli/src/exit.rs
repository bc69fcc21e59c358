//! How a command ends: one meaning per exit code, so that scripts need not read text.

use std::io;
use std::process::ExitCode;

use somersault_coordinator::cluster::ClusterError;
use somersault_coordinator_core::migration::Refusal;

/// Text about the exit codes, for `--help`.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  failed: a file or the cluster could not be read or written, or what was waited for or checked failed
  2  bad usage: an unknown flag, a contradiction, no cluster named
  3  not found: no such VM, node, claim, class or object
  4  refused: it would be unsafe, or makes no sense in the present state; nothing was changed
  5  answered, but some manifests could not be read: the answer may be wrong (they are named on stderr)
  6  waited long enough: what was waited for goes on";

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Something that was named does not exist.
    NotFound = 3,
    /// It was not done, on purpose.
    Refused = 4,
    /// Done, but on manifests that could not all be read.
    BadManifests = 5,
    /// The wait was limited, and the limit is reached.
    TimedOut = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Something that was named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It was not done, on purpose.
    #[error("refused: {0}")]
    Refused(String),
    /// Something failed.
    #[error("{0}")]
    Failed(String),
    /// The API server does not answer; what was asked may be asked again.
    #[error("{0}")]
    Unreachable(String),
    /// The wait was limited, and the limit is reached.
    #[error("{0}")]
    TimedOut(String),
    /// Nobody reads our output any more, `head` for example: no failure of ours.
    #[error("the output was closed")]
    PipeClosed,
}

impl Failure {
    /// The exit code that says this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::NotFound(_) => Exit::NotFound,
            Self::Refused(_) => Exit::Refused,
            Self::Failed(_) | Self::Unreachable(_) => Exit::Failed,
            Self::TimedOut(_) => Exit::TimedOut,
            Self::PipeClosed => Exit::Ok,
        }
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::NotFound { .. } => Self::NotFound(error.to_string()),
            ClusterError::Refused { .. } => Self::Refused(error.to_string()),
            ClusterError::Conflict { .. } => Self::Refused(format!("{error}; try again")),
            ClusterError::Io { ref source, .. } => Self::Failed(format!("{error}: {source}")),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(format!("{}: {}", refusal.reason, refusal.message))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::PipeClosed,
            _ => Self::Failed(format!("cannot write the answer: {error}")),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Failed(format!("cannot turn the answer into JSON: {error}"))
    }
}

//! Why a copy failed: a closed set, each with what a person can do.

use std::io;

use somersault_agent_core::transfer::ManifestError;
use somersault_proto::model::FailureReason;
use tonic::Status;

/// The header by which a source tells its reason; gRPC codes alone are too few.
pub(super) const REASON_HEADER: &str = "somersault-reason";

/// Longest text of a source that is shown to people.
const SOURCE_TEXT_BYTES_MAX: usize = 300;

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Somebody cancelled it.
    #[error("the copy was cancelled")]
    Cancelled,
    /// Too much at once.
    #[error("{0}; the order can be repeated later")]
    Busy(&'static str),
    /// The order makes no sense here.
    #[error("{0}")]
    OrderRefused(String),
    /// A path that this agent does not serve.
    #[error(
        "{path} is not where a storage root of this node has its volumes, nor where the volume of a pod is mounted; \
         see --root, --shared-root and --pods"
    )]
    PathNotAllowed {
        /// The path.
        path: String,
    },
    /// No pod has the volume any more, or not yet.
    #[error("nothing is mounted at {path}: {why}; the order can be repeated once a pod has the volume")]
    NotMounted {
        /// The path.
        path: String,
        /// What is there instead.
        why: &'static str,
    },
    /// No connection to the source, or none any more.
    #[error("the agent of {node} does not answer: {why}")]
    SourceUnreachable {
        /// The source.
        node: String,
        /// What happened.
        why: String,
    },
    /// The source refused: token, path or caller.
    #[error("the agent of {node} refused: {why}")]
    SourceRefused {
        /// The source.
        node: String,
        /// Its words.
        why: String,
    },
    /// The volume is not at the source.
    #[error("the source volume is missing: {0}")]
    SourceMissing(String),
    /// The source's disk.
    #[error("the source cannot be read: {0}")]
    SourceReadFailed(String),
    /// Somebody writes to it.
    #[error("the source changes while it is copied: {0}; stop whatever writes to it")]
    SourceChanged(String),
    /// What would be lost or must not be copied.
    #[error("the source holds what cannot be copied without loss: {0}")]
    SourceUnsupported(String),
    /// It sent what cannot be.
    #[error("the source sent what was not asked for or cannot be: {0}")]
    SourceInvalid(String),
    /// Something else has the final name.
    #[error("{path} exists: {why}")]
    TargetExists {
        /// The final name.
        path: String,
        /// What is known of it.
        why: &'static str,
    },
    /// No room.
    #[error("no room on the target: {0}")]
    TargetFull(String),
    /// The target's disk.
    #[error("{action} {path}")]
    TargetWriteFailed {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It was to be removed.
    #[error("{path} is in use: {why}")]
    VolumeInUse {
        /// The volume.
        path: String,
        /// By what.
        why: String,
    },
    /// The device does not hold what was written.
    #[error("read back from the device, {path} differs from what was written; the disk may be failing")]
    VerificationFailed {
        /// Which file.
        path: String,
    },
}

impl TransferError {
    /// The reason's name: condition reason, Event reason and metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Cancelled => "Cancelled",
            Self::Busy(_) => "Busy",
            Self::OrderRefused(_) | Self::NotMounted { .. } => "OrderRefused",
            Self::PathNotAllowed { .. } => "PathNotAllowed",
            Self::SourceUnreachable { .. } => "SourceUnreachable",
            Self::SourceRefused { .. } => "SourceRefused",
            Self::SourceMissing(_) => "SourceMissing",
            Self::SourceReadFailed(_) => "SourceReadFailed",
            Self::SourceChanged(_) => "SourceChanged",
            Self::SourceUnsupported(_) => "SourceUnsupported",
            Self::SourceInvalid(_) => "SourceInvalid",
            Self::TargetExists { .. } => "TargetExists",
            Self::TargetFull(_) => "TargetFull",
            Self::TargetWriteFailed { .. } => "TargetWriteFailed",
            Self::VolumeInUse { .. } => "VolumeInUse",
            Self::VerificationFailed { .. } => "VerificationFailed",
        }
    }

    /// The same as the wire's type.
    pub fn failure_reason(&self) -> FailureReason {
        match self {
            Self::Cancelled => FailureReason::Cancelled,
            Self::Busy(_) => FailureReason::Busy,
            Self::OrderRefused(_) | Self::NotMounted { .. } => FailureReason::OrderRefused,
            Self::PathNotAllowed { .. } => FailureReason::PathNotAllowed,
            Self::SourceUnreachable { .. } => FailureReason::SourceUnreachable,
            Self::SourceRefused { .. } => FailureReason::SourceRefused,
            Self::SourceMissing(_) => FailureReason::SourceMissing,
            Self::SourceReadFailed(_) => FailureReason::SourceReadFailed,
            Self::SourceChanged(_) => FailureReason::SourceChanged,
            Self::SourceUnsupported(_) => FailureReason::SourceUnsupported,
            Self::SourceInvalid(_) => FailureReason::SourceInvalid,
            Self::TargetExists { .. } => FailureReason::TargetExists,
            Self::TargetFull(_) => FailureReason::TargetFull,
            Self::TargetWriteFailed { .. } => FailureReason::TargetWriteFailed,
            Self::VolumeInUse { .. } => FailureReason::VolumeInUse,
            Self::VerificationFailed { .. } => FailureReason::VerificationFailed,
        }
    }

    /// The message with its causes, in one line.
    pub fn message(&self) -> String {
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        message
    }

    /// Whether trying again may help without anybody doing anything.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::SourceUnreachable { .. })
    }

    /// A failed operation on the target; a full disk is told apart.
    pub(super) fn target(action: &'static str, path: impl Into<String>, error: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), error.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::TargetFull(format!("{action} {path}: {source}; what has arrived is kept"))
            }
            _ => Self::TargetWriteFailed { action, path, source },
        }
    }

    /// As the source tells it to the target.
    pub(super) fn into_status(self) -> Status {
        let message = self.message();
        let mut status = match self {
            Self::SourceMissing(_) => Status::not_found(message),
            Self::SourceChanged(_) => Status::aborted(message),
            Self::SourceReadFailed(_) => Status::data_loss(message),
            Self::Busy(_) => Status::resource_exhausted(message),
            Self::PathNotAllowed { .. } | Self::SourceRefused { .. } => Status::permission_denied(message),
            _ => Status::failed_precondition(message),
        };
        if let Ok(value) = self.reason().parse() {
            status.metadata_mut().insert(REASON_HEADER, value);
        }
        status
    }

    /// As the target understands what a source told.
    pub(super) fn from_status(node: &str, status: &Status) -> Self {
        let node = node.to_owned();
        let why = printable(status.message());
        let reason = status.metadata().get(REASON_HEADER).and_then(|value| value.to_str().ok());
        match (reason, status.code()) {
            (Some("SourceMissing"), _) => Self::SourceMissing(why),
            (Some("SourceReadFailed"), _) => Self::SourceReadFailed(why),
            (Some("SourceChanged"), _) => Self::SourceChanged(why),
            (Some("SourceUnsupported"), _) => Self::SourceUnsupported(why),
            (Some("Busy"), _)
            | (
                None,
                tonic::Code::Unavailable
                | tonic::Code::Unknown
                | tonic::Code::Cancelled
                | tonic::Code::DeadlineExceeded
                | tonic::Code::ResourceExhausted,
            ) => Self::SourceUnreachable { node, why: cause(status, why) },
            (None, tonic::Code::OutOfRange | tonic::Code::Internal) => Self::SourceInvalid(why),
            _ => Self::SourceRefused { node, why },
        }
    }
}

impl From<ManifestError> for TransferError {
    fn from(error: ManifestError) -> Self {
        Self::SourceInvalid(error.to_string())
    }
}

/// Tonic's own message of a broken connection is "transport error"; the cause says more.
fn cause(status: &Status, why: String) -> String {
    let mut source = std::error::Error::source(status);
    let mut text = why;
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    printable(&text)
}

/// Hostile text, safe for a terminal and a log line.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(SOURCE_TEXT_BYTES_MAX).collect()
}

//! Valid domain types of the wire messages. A peer is hostile until its message has passed here: what comes out
//! has every field present, within its limit and well formed; what does not is refused with the field's name.
//!
//! ```text
//!   v1::Beat ──TryFrom──► model::Beat ──From──► v1::Beat
//!                 └─► ModelError{field, why} ──► tonic::Status::invalid_argument
//! ```

mod enroll;
mod fence;
mod fleet;
mod names;
mod order;
mod progress;
mod report;
mod transfer;

pub use enroll::{EnrollReply, EnrollRequest};
pub use fence::{FenceEnded, FenceEvent, FenceList, FencePower, FenceRun, FenceStatus, FencedNode};
pub use fleet::{Beat, CopyRates, FromAgent, FromCoordinator, Grant, Hello, PingReply, Welcome};
pub use names::{AbsolutePath, Address, BootId, Malformed, NodeName};
pub use order::{Order, OrderKind, Pull};
pub use progress::{FailureReason, ProbeAnswer, Progress, ProgressState, Reachability};
pub use report::{Disk, Grade, Host, Report, StorageRoot, Volume};
pub use transfer::{
    BLOCKS_MAX, CHUNK_BYTES, Chunk, ChunkContent, Encoding, File, FileKind, Hashes, Have, Listing, Manifest,
    Range, TRANSFER_VERSION,
};

/// Largest message of the `Fleet` and `Peer` services. The largest honest one is a report of
/// [`limits::VOLUMES_MAX`] volumes with paths of 150 bytes, about 0.8 MiB.
pub const FLEET_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Largest message of the `Transfer` service: a manifest of [`limits::FILES_MAX`] files, or a chunk of
/// [`CHUNK_BYTES`] with its frame.
pub const TRANSFER_MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Largest request of the `Enrollment` service: [`limits::CSR_BYTES_MAX`] and [`limits::ENROLL_TOKEN_BYTES_MAX`]
/// with their frame.
pub const ENROLL_REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Largest answer of the `Enrollment` service: two texts of [`limits::PEM_BYTES_MAX`] with their frame.
pub const ENROLL_REPLY_BYTES_MAX: usize = 256 * 1024;

/// How much of anything a message may hold. Each is far above what an honest peer sends.
pub mod limits {
    /// Storage roots of a node: one for each storage class, of which a cluster has a handful.
    pub const ROOTS_MAX: usize = 64;
    /// Folders from a root down to a volume: `CLAIM/VOLUME` is the deepest that a provisioner is known to make.
    pub const DEPTH_MAX: u8 = 2;
    /// Volumes of a node: kubelets run 110 pods by default, a few disks each, and orphans.
    pub const VOLUMES_MAX: usize = 4096;
    /// Disks of a node: the densest storage servers hold about 100.
    pub const DISKS_MAX: usize = 256;
    /// Reasons of one disk's grade: the fixed set is smaller.
    pub const REASONS_MAX: usize = 32;
    /// Launchers in one stop order: as many as a node runs pods.
    pub const PODS_MAX: usize = 512;
    /// Bytes of a name or label that people read.
    pub const TEXT_BYTES_MAX: usize = 256;
    /// Bytes of a message for people.
    pub const MESSAGE_BYTES_MAX: usize = 4096;
    /// Bytes of an absolute path of a volume; provisioners' paths are below 300.
    pub const PATH_BYTES_MAX: usize = 1024;
    /// Bytes of a path inside a volume: the kernel's own `PATH_MAX`.
    pub const INNER_PATH_BYTES_MAX: usize = 4096;
    /// Files of one volume: a disk image is one file; trees up to here fit the message limit.
    pub const FILES_MAX: usize = 262_144;
    /// Data ranges of one message: 16 bytes each, so that they fit the message limit.
    pub const RANGES_MAX: usize = 500_000;
    /// Nodes with a fence agent: twice as many as Kubernetes supports in a cluster.
    pub const FENCED_NODES_MAX: usize = 10_000;
    /// Bytes of a transfer token: claims with the longest path, in base64.
    pub const TOKEN_BYTES_MAX: usize = 4096;
    /// Bytes of a request for a certificate; one for an elliptic curve has about 250, one for RSA 1,000.
    pub const CSR_BYTES_MAX: usize = 4096;
    /// Bytes of a ServiceAccount token; they have 1 to 2 KiB.
    pub const ENROLL_TOKEN_BYTES_MAX: usize = 8192;
    /// Bytes of a certificate with its chain, or of all authorities: two or three of less than 1 KiB each.
    pub const PEM_BYTES_MAX: usize = 64 * 1024;
}

/// Why a wire message is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// A field that must be set is not.
    #[error("field `{0}` is missing")]
    Missing(String),
    /// A field's value is not allowed.
    #[error("field `{field}` is invalid: {why}")]
    Invalid {
        /// Dotted path of the field in its message, e.g. `volumes[3].path`.
        field: String,
        /// What is wrong, with the value where it is short and harmless.
        why: String,
    },
}

impl ModelError {
    fn invalid(field: &str, why: impl Into<String>) -> Self {
        Self::Invalid { field: field.to_owned(), why: why.into() }
    }

    /// The same error, seen from the message that holds the field's message in `outer`.
    fn within(self, outer: &str) -> Self {
        match self {
            Self::Missing(field) => Self::Missing(format!("{outer}.{field}")),
            Self::Invalid { field, why } => Self::Invalid { field: format!("{outer}.{field}"), why },
        }
    }

    /// The dotted path of the field.
    pub fn field(&self) -> &str {
        match self {
            Self::Missing(field) | Self::Invalid { field, .. } => field,
        }
    }
}

impl From<ModelError> for tonic::Status {
    fn from(error: ModelError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// The value of a message field that must be set.
fn required<T>(field: &str, value: Option<T>) -> Result<T, ModelError> {
    value.ok_or_else(|| ModelError::Missing(field.to_owned()))
}

/// A well-formed name; an empty string is a missing field, as proto3 does not tell the two apart.
fn name<T: TryFrom<String, Error = Malformed>>(field: &str, value: String) -> Result<T, ModelError> {
    if value.is_empty() {
        return Err(ModelError::Missing(field.to_owned()));
    }
    T::try_from(value).map_err(|malformed| ModelError::invalid(field, malformed.to_string()))
}

/// Text for people or labels: bounded, and without control characters, which could forge log lines.
fn text(field: &str, value: String, bytes_max: usize) -> Result<String, ModelError> {
    if value.len() > bytes_max {
        return Err(ModelError::invalid(field, format!("{} bytes, at most {bytes_max}", value.len())));
    }
    if value.chars().any(char::is_control) {
        return Err(ModelError::invalid(
            field,
            format!("control character in {:?}", names::shortened(&value)),
        ));
    }
    Ok(value)
}

/// As [`text`], and not empty.
fn label(field: &str, value: String) -> Result<String, ModelError> {
    if value.is_empty() {
        return Err(ModelError::Missing(field.to_owned()));
    }
    text(field, value, limits::TEXT_BYTES_MAX)
}

/// Converts each element, naming the one that fails; refuses more than `count_max` before looking at any.
fn each<W, T: TryFrom<W, Error = ModelError>>(
    field: &str,
    values: Vec<W>,
    count_max: usize,
) -> Result<Vec<T>, ModelError> {
    at_most(field, values.len(), count_max)?;
    values
        .into_iter()
        .enumerate()
        .map(|(index, value)| T::try_from(value).map_err(|error| error.within(&format!("{field}[{index}]"))))
        .collect()
}

fn at_most(field: &str, count: usize, count_max: usize) -> Result<(), ModelError> {
    if count > count_max {
        return Err(ModelError::invalid(field, format!("{count} entries, at most {count_max}")));
    }
    Ok(())
}

/// Text that must be there and within its limit. Never told in an error: it may be a secret.
fn required_text(field: &str, value: String, bytes_max: usize) -> Result<String, ModelError> {
    if value.is_empty() {
        return Err(ModelError::Missing(field.to_owned()));
    }
    at_most_bytes(field, value.len(), bytes_max)?;
    Ok(value)
}

fn at_most_bytes(field: &str, bytes: usize, bytes_max: usize) -> Result<(), ModelError> {
    if bytes > bytes_max {
        return Err(ModelError::invalid(field, format!("{bytes} bytes, at most {bytes_max}")));
    }
    Ok(())
}

/// A BLAKE3 hash.
fn hash(field: &str, bytes: &[u8]) -> Result<[u8; 32], ModelError> {
    bytes
        .try_into()
        .map_err(|_| ModelError::invalid(field, format!("{} bytes, not the 32 of a hash", bytes.len())))
}

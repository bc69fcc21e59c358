//! Why a cluster did not do what was asked, and how each case is told apart: what changed in between is decided anew,
//! what is refused needs a person, and only trouble on the way is tried again.

use super::manifest::ObjectId;

/// Why the cluster did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Somebody else changed the object; read again, decide again.
    #[error("{object} changed in between: {why}")]
    Conflict {
        /// What.
        object: String,
        /// How it differs.
        why: String,
    },
    /// It is not there.
    #[error("{object} does not exist")]
    NotFound {
        /// What.
        object: String,
    },
    /// The cluster refused; retrying does not help.
    #[error("{object}: {why}")]
    Refused {
        /// What.
        object: String,
        /// Why, and what to do.
        why: String,
    },
    /// Trouble on the way; retrying may help.
    #[error("cannot reach the cluster's state at {place}")]
    Io {
        /// Where.
        place: String,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
}

/// [`ClusterError::NotFound`] of an object.
pub fn not_found(id: &ObjectId) -> ClusterError {
    ClusterError::NotFound { object: id.to_string() }
}

/// [`ClusterError::Conflict`] of an object.
pub fn conflict(id: &ObjectId, why: impl Into<String>) -> ClusterError {
    ClusterError::Conflict { object: id.to_string(), why: why.into() }
}

/// [`ClusterError::Refused`] of something.
pub fn refused(object: &(impl ToString + ?Sized), why: impl Into<String>) -> ClusterError {
    ClusterError::Refused { object: object.to_string(), why: why.into() }
}

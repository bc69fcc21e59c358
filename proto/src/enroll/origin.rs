//! Where a process has its certificate from, and what keeps it new.

use std::path::PathBuf;

use super::{Enrolment, first, keep};
use crate::tls::{Identity, TlsError, TlsSource, follow};

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Files, read again when they change.
    Folder(PathBuf, TlsSource),
    /// A coordinator, asked again before it ends.
    Enrolment(Enrolment),
}

/// Why files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// They are not what they should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// They are somebody else's.
    #[error("the certificate in {} is of {}", folder.display(), found.san())]
    Foreign {
        /// Where they are.
        folder: PathBuf,
        /// Whose they are.
        found: Identity,
    },
}

impl Origin {
    /// Files, which must be there, and be those of this one: refused now, since every peer would refuse others later.
    pub fn files(folder: PathBuf, identity: &Identity) -> Result<Self, OriginError> {
        let tls = TlsSource::read(&folder)?;
        if tls.identity() == *identity {
            return Ok(Self::Folder(folder, tls));
        }
        Err(OriginError::Foreign { folder, found: tls.identity() })
    }

    /// The first certificate. An enrolment waits until it is granted.
    pub async fn first(&self) -> TlsSource {
        match self {
            Self::Folder(_, tls) => tls.clone(),
            Self::Enrolment(enrolment) => TlsSource::new(first(enrolment).await),
        }
    }

    /// Keeps it new, for ever.
    pub async fn keep(self, tls: TlsSource) {
        match self {
            Self::Folder(folder, _) => follow(tls, folder).await,
            Self::Enrolment(enrolment) => keep(enrolment, tls).await,
        }
    }
}

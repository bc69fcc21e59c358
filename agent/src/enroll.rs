//! Where this agent's certificate comes from: the files of `--certs`, or enrolment by its pod's token; and what keeps
//! it new while the agent runs.

use std::path::PathBuf;

use somersault_proto::enroll::{self, Enrolment};
use somersault_proto::tls::{Identity, TlsSource, follow};

use crate::config::{Config, ConfigError};

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Files, read again when they change.
    Folder(PathBuf),
    /// A coordinator, asked again before it ends.
    Enrolment(Enrolment),
}

impl Origin {
    /// As the flags say.
    pub fn of(config: &Config) -> Self {
        if config.enroll.is_empty() {
            return Self::Folder(config.certs.clone());
        }
        Self::Enrolment(Enrolment {
            identity: Identity::Node(config.node.clone()),
            coordinators: config.enroll.clone(),
            token_file: config.token_file.clone(),
            bundle_file: config.ca_bundle.clone(),
        })
    }

    /// The first certificate. Files must be there; an enrolment waits until it is granted.
    pub async fn first(&self, config: &Config) -> Result<TlsSource, ConfigError> {
        match self {
            Self::Folder(folder) => {
                let tls = TlsSource::read(folder)?;
                if tls.identity() == Identity::Node(config.node.clone()) {
                    return Ok(tls);
                }
                // Refused now: every coordinator and every peer would refuse it later.
                Err(ConfigError::ForeignCertificate {
                    node: config.node.clone(),
                    identity: tls.identity(),
                    certs: folder.clone(),
                })
            }
            Self::Enrolment(enrolment) => Ok(TlsSource::new(enroll::first(enrolment).await)),
        }
    }

    /// Keeps it new, for ever.
    pub async fn keep(self, tls: TlsSource) {
        match self {
            Self::Folder(folder) => follow(tls, folder).await,
            Self::Enrolment(enrolment) => enroll::keep(enrolment, tls).await,
        }
    }
}

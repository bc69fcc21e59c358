//! Where this agent's certificate comes from: the files of `--certs`, or enrolment by its pod's token.

use somersault_proto::enroll::{Enrolment, Origin, OriginError};
use somersault_proto::tls::Identity;

use crate::config::{Config, ConfigError};

/// As the flags say. Files must be there, and be this node's.
pub fn origin(config: &Config) -> Result<Origin, ConfigError> {
    let identity = Identity::Node(config.node.clone());
    if config.enroll.is_empty() {
        return Origin::files(config.certs.clone(), &identity).map_err(|error| match error {
            OriginError::Tls(error) => ConfigError::Tls(error),
            OriginError::Foreign { folder: certs, found: identity } => {
                ConfigError::ForeignCertificate { node: config.node.clone(), identity, certs }
            }
        });
    }
    Ok(Origin::Enrolment(Enrolment {
        identity,
        coordinators: config.enroll.clone(),
        token_file: config.token_file.clone(),
        bundle_file: config.ca_bundle.clone(),
    }))
}

//! What the coordinator must be allowed to do: the very roles that `deploy/` installs.

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize;

use super::rights::{self, Right};

/// The roles, as they are applied.
const ROLES: &str = include_str!("../../../../../deploy/base/rbac.yaml");

/// A role, or a binding, which has no rules.
#[derive(Deserialize)]
struct Role {
    metadata: Metadata,
    #[serde(default)]
    rules: Vec<PolicyRule>,
}

#[derive(Deserialize)]
struct Metadata {
    /// Empty for rights everywhere.
    #[serde(default)]
    namespace: String,
}

/// Every right that the roles give the coordinator.
pub fn of_coordinator() -> Result<Vec<Right>, String> {
    let roles: Vec<Role> = serde_saphyr::from_multiple(ROLES).map_err(|error| error.to_string())?;
    Ok(roles.iter().flat_map(|role| rights::of_rules(&role.rules, &role.metadata.namespace)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roles_can_be_read_and_hold_what_matters_most() {
        let words: Vec<_> = of_coordinator().expect("our own roles").iter().map(Right::words).collect();
        for right in [
            "patch nodes",
            "delete pods",
            "patch virtualmachines.kubevirt.io",
            "update nodehealths.somersault.novasphere.dev/status",
            "update leases.coordination.k8s.io somersault-coordinator in somersault-system",
        ] {
            assert!(words.contains(&right.to_owned()), "{right}: {words:#?}");
        }
    }
}

//! Names on the command line: of VMs, nodes, claims, migrations and evacuations.
//!
//! Every answer prints the name of a namespaced object as `NAMESPACE/NAME`, so that is what people type too. Kinds are
//! written before a slash as well; a namespace that is called like one is named by `-n`, or behind the kind.

use std::str::FromStr;

use super::Global;
use crate::exit::Failure;

/// The name of a namespaced object: `NAME` or `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Named {
    /// The namespace that is named with it or by `-n`, if any is. Whoever names two means one of them, and nobody knows
    /// which.
    pub fn namespace<'a>(&'a self, global: &'a Global) -> Result<Option<&'a str>, Failure> {
        match (self.namespace.as_deref(), global.namespace.as_deref()) {
            (Some(own), Some(flag)) if own != flag => Err(Failure::Usage(format!(
                "{own}/{} is in namespace {own}, and -n says {flag}: leave one of them out",
                self.name
            ))),
            (own, flag) => Ok(own.or(flag)),
        }
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if name.is_empty() || name.contains('/') || namespace == Some("") {
            return Err("must be NAME or NAMESPACE/NAME".to_owned());
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

/// A VM or a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Whichever of the two exists.
    Either(String),
    /// A VM.
    Vm(Named),
    /// A node.
    Node(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = match text.split_once('/') {
            None if !text.is_empty() => return Ok(Self::Either(text.to_owned())),
            Some(("node" | "no", name)) if !name.is_empty() && !name.contains('/') => {
                return Ok(Self::Node(name.to_owned()));
            }
            Some(("vm" | "virtualmachine", name)) => name.parse(),
            // The name of a node has no slash.
            Some(("node" | "no", _)) => Err(String::new()),
            _ => text.parse(),
        };
        let usage = |_| "must be NAME, NAMESPACE/NAME, vm/NAME or node/NAME".to_owned();
        named.map(Self::Vm).map_err(usage)
    }
}

/// A migration or an evacuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectRef {
    /// A `VolumeMigration`.
    Migration(Named),
    /// An `Evacuation`.
    Evacuation(String),
}

impl FromStr for ObjectRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = match text.split_once('/') {
            Some(("evacuation" | "evac", name)) if !name.is_empty() && !name.contains('/') => {
                return Ok(Self::Evacuation(name.to_owned()));
            }
            Some(("migration" | "volumemigration" | "vmig", name)) => name.parse(),
            None | Some(("evacuation" | "evac", _)) => Err(String::new()),
            // An evacuation is in no namespace.
            Some(_) => text.parse(),
        };
        let usage =
            |_| "must be migration/NAME, NAMESPACE/NAME of a migration, or evacuation/NAME".to_owned();
        named.map(Self::Migration).map_err(usage)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn named(namespace: Option<&str>, name: &str) -> Named {
        Named { namespace: namespace.map(str::to_owned), name: name.to_owned() }
    }

    #[test]
    fn reads_names_with_and_without_a_namespace() {
        assert_eq!("db".parse(), Ok(named(None, "db")));
        assert_eq!("shop/db".parse(), Ok(named(Some("shop"), "db")));
        for wrong in ["", "/", "shop/", "/db", "a/b/c"] {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn reads_targets() {
        assert_eq!("n1".parse(), Ok(Target::Either("n1".into())));
        assert_eq!("vm/db".parse(), Ok(Target::Vm(named(None, "db"))));
        assert_eq!("shop/db".parse(), Ok(Target::Vm(named(Some("shop"), "db"))));
        assert_eq!("vm/vm/db".parse(), Ok(Target::Vm(named(Some("vm"), "db"))), "a namespace called vm");
        assert_eq!("node/n1".parse(), Ok(Target::Node("n1".into())));
        for wrong in ["", "vm/", "node/", "node/a/b", "vm/a/b/c"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn reads_objects_by_their_names_and_short_names() {
        assert_eq!("vmig/a".parse(), Ok(ObjectRef::Migration(named(None, "a"))));
        assert_eq!("migration/shop/a".parse(), Ok(ObjectRef::Migration(named(Some("shop"), "a"))));
        assert_eq!("shop/a".parse(), Ok(ObjectRef::Migration(named(Some("shop"), "a"))));
        assert_eq!("evacuation/b".parse(), Ok(ObjectRef::Evacuation("b".into())));
        for wrong in ["a", "", "evac/", "evac/a/b", "migration/"] {
            assert!(wrong.parse::<ObjectRef>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_flag_that_contradicts_the_name_is_refused() {
        let global = |args: &[&str]| {
            let args = ["kubectl-somersault", "status"].into_iter().chain(args.iter().copied());
            Cli::try_parse_from(args).expect("good usage").global
        };
        let (own, other) = (named(Some("shop"), "db"), named(None, "db"));
        assert_eq!(own.namespace(&global(&[])).expect("one"), Some("shop"));
        assert_eq!(own.namespace(&global(&["-n", "shop"])).expect("the same"), Some("shop"));
        assert_eq!(other.namespace(&global(&["-n", "lab"])).expect("one"), Some("lab"));
        assert_eq!(other.namespace(&global(&[])).expect("none"), None);
        let refused = own.namespace(&global(&["-n", "lab"])).expect_err("two");
        assert!(matches!(&refused, Failure::Usage(text) if text.contains("-n says lab")), "{refused}");
    }
}

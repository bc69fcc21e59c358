//! How the management controller misbehaves for one node, until told otherwise.

use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::layout::Layout;

/// How it misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It says off of a machine that is on, and switches nothing: the controller of another machine.
    Lies,
    /// It takes a request and never answers.
    Hangs,
    /// It answers that it cannot.
    Fails,
    /// Its wires lead to the next node's power cord, the last one's to the first one's: it does what it says, to the wrong one.
    Miswired,
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "lies" => Ok(Self::Lies),
            "hangs" => Ok(Self::Hangs),
            "fails" => Ok(Self::Fails),
            "miswired" => Ok(Self::Miswired),
            other => bail!("{other:?} is no fault of a controller: lies, hangs, fails, miswired"),
        }
    }
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Lies => "lies",
            Self::Hangs => "hangs",
            Self::Fails => "fails",
            Self::Miswired => "miswired",
        }
    }

    /// How it misbehaves for this node now.
    pub fn of(layout: &Layout, node: &str) -> Result<Option<Self>> {
        match std::fs::read_to_string(layout.bmc_fault(node)) {
            Ok(text) => text.trim().parse().map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading the fault of {node}")),
        }
    }

    /// From now on it misbehaves so for this node; with `None` it behaves.
    pub fn set(layout: &Layout, node: &str, fault: Option<Self>) -> Result<()> {
        let file = layout.bmc_fault(node);
        let Some(fault) = fault else {
            return match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("removing {}", file.display()))
                }
                _ => Ok(()),
            };
        };
        // In one step: the controller may be reading.
        let draft = file.with_extension("draft");
        std::fs::write(&draft, fault.name()).with_context(|| format!("writing {}", draft.display()))?;
        std::fs::rename(&draft, &file).with_context(|| format!("writing {}", file.display()))
    }
}

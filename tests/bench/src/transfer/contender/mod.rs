//! Who is compared: a server at the source, started before the clock, and a client at the target, which the clock is
//! about. Each as its users would call it for the work at hand, peers without encryption.

mod nbd;
mod ours;
mod rsync;
mod stream;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use somersault_test_support::world::command::tool;

use super::content::IMAGE;
use super::work::Work;

/// A program or a switch of ours. The names are those of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tool {
    /// The agent's engine over mutual TLS, as shipped.
    Somersault,
    /// The same without TLS, which only this bench has.
    SomersaultPlain,
    /// rsync's own daemon and client.
    Rsync,
    /// nbdkit and nbdcopy.
    Nbdcopy,
    /// nbdkit and qemu-img convert.
    QemuImg,
    /// tar through socat.
    Tar,
    /// socat.
    Socat,
}

/// Where a copy is made.
#[derive(Clone, Debug)]
pub struct Site {
    pub work: Work,
    /// Storage root of the source.
    pub source_root: PathBuf,
    /// Storage root of the target.
    pub target_root: PathBuf,
    /// Certificates and configurations.
    pub home: PathBuf,
}

/// Which copy of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// From nothing, or, for who can, from where a killed one ended.
    Whole,
    /// From nothing, while the source may still change.
    Ahead,
    /// What has changed since.
    Changes,
}

/// One of them.
pub trait Contender {
    /// Why it cannot take part here.
    fn missing(&self) -> Option<String>;

    /// The server, listening on [`super::world::PORT`] of the source; it is killed after the run.
    fn serve(&self, site: &Site) -> Result<Command>;

    /// The client at the target. Passes of one `run` belong together.
    fn copy(&self, site: &Site, pass: Pass, run: usize) -> Result<Command>;

    /// Does its client end only when the copy is durable? Who does also makes the volume's folder; for others it is made.
    fn is_durable(&self) -> bool {
        false
    }
}

/// Name of the volume's folder on both sides.
const VOLUME: &str = "volume";

impl Site {
    /// The volume.
    pub fn source(&self) -> PathBuf {
        self.source_root.join(VOLUME)
    }

    /// Its copy.
    pub fn target(&self) -> PathBuf {
        self.target_root.join(VOLUME)
    }

    fn source_image(&self) -> PathBuf {
        self.source().join(IMAGE)
    }

    fn target_image(&self) -> PathBuf {
        self.target().join(IMAGE)
    }
}

impl Tool {
    /// The contender of this name.
    pub fn contender(self, home: &Path) -> Result<Box<dyn Contender>> {
        Ok(match self {
            Self::Somersault => Box::new(ours::Ours::new(home, false)?),
            Self::SomersaultPlain => Box::new(ours::Ours::new(home, true)?),
            Self::Rsync => Box::new(rsync::Rsync),
            Self::Nbdcopy => Box::new(nbd::Client::Nbdcopy),
            Self::QemuImg => Box::new(nbd::Client::QemuImg),
            Self::Tar => Box::new(stream::Stream::Tar),
            Self::Socat => Box::new(stream::Stream::Socat),
        })
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// The first of these programs that cannot be started.
fn missing_program(programs: &[&str]) -> Option<String> {
    let starts = |program: &&&str| tool(program).arg("--version").output().is_err();
    programs.iter().find(starts).map(|program| format!("{program} is not installed"))
}

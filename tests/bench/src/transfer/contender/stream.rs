//! Streams over a plain connection: the image as it is, or the volume as a tar archive.

use std::process::Command;

use anyhow::Result;

use super::super::work::Work;
use super::super::world::{PORT, SOURCE_ADDRESS, Side};
use super::{Contender, Pass, Site, missing_program};

/// One MiB: by default socat moves 8 KiB at once.
const SOCAT: [&str; 4] = ["socat", "-u", "-b", "1048576"];

pub enum Stream {
    Tar,
    Socat,
}

impl Contender for Stream {
    fn missing(&self) -> Option<String> {
        missing_program(match self {
            Self::Tar => &["tar", "socat"],
            Self::Socat => &["socat"],
        })
    }

    fn serve(&self, site: &Site) -> Result<Command> {
        let listen = format!("TCP4-LISTEN:{PORT},bind={SOURCE_ADDRESS},reuseaddr");
        Ok(match self {
            Self::Tar => {
                let sparse = if site.work == Work::Sparse { "--sparse" } else { "" };
                let line = format!(
                    "tar --create {sparse} --directory \"$1\" . | {} STDIN {listen}",
                    SOCAT.join(" ")
                );
                let mut command = Side::Source.command("sh");
                command.args(["-c", &line, "sh"]).arg(site.source());
                command
            }
            Self::Socat => {
                let mut command = Side::Source.command(SOCAT[0]);
                command
                    .args(&SOCAT[1..])
                    .arg(format!("OPEN:{},rdonly", site.source_image().display()))
                    .arg(listen);
                command
            }
        })
    }

    fn copy(&self, site: &Site, _pass: Pass, _run: usize) -> Result<Command> {
        let connect = format!("TCP4:{SOURCE_ADDRESS}:{PORT}");
        Ok(match self {
            Self::Tar => {
                let line = format!("{} {connect} STDOUT | tar --extract --directory \"$1\"", SOCAT.join(" "));
                let mut command = Side::Target.command("sh");
                command.args(["-c", &line, "sh"]).arg(site.target());
                command
            }
            Self::Socat => {
                let mut command = Side::Target.command(SOCAT[0]);
                let image = format!("CREATE:{}", site.target_image().display());
                command.args(&SOCAT[1..]).arg(connect).arg(image);
                command
            }
        })
    }
}

//! Clients of a network block device: the image is served, read only, by nbdkit, which knows its holes.

use std::process::Command;

use anyhow::Result;

use super::super::world::{PORT, SOURCE_ADDRESS, Side};
use super::{Contender, Pass, Site, missing_program};

pub enum Client {
    Nbdcopy,
    QemuImg,
}

impl Contender for Client {
    fn missing(&self) -> Option<String> {
        missing_program(&[
            "nbdkit",
            match self {
                Self::Nbdcopy => "nbdcopy",
                Self::QemuImg => "qemu-img",
            },
        ])
    }

    fn serve(&self, site: &Site) -> Result<Command> {
        let mut command = Side::Source.command("nbdkit");
        command.args(["--foreground", "--readonly", "--ipaddr", SOURCE_ADDRESS, "--port", &PORT.to_string()]);
        command.arg("file").arg(site.source_image());
        Ok(command)
    }

    fn copy(&self, site: &Site, _pass: Pass, _run: usize) -> Result<Command> {
        let device = format!("nbd://{SOURCE_ADDRESS}:{PORT}");
        let mut command = match self {
            // Connections and threads by the cores, which is its default.
            Self::Nbdcopy => Side::Target.command("nbdcopy"),
            Self::QemuImg => {
                let mut command = Side::Target.command("qemu-img");
                // Eight requests at once, in any order, past the page cache: faster than through it.
                command.args(["convert", "-f", "raw", "-O", "raw", "-m", "8", "-W", "-t", "none"]);
                command
            }
        };
        command.arg(device).arg(site.target_image());
        Ok(command)
    }
}

//! rsync: its daemon serves the volume, its client asks for it.

use std::process::Command;

use anyhow::{Context, Result};

use super::super::work::Work;
use super::super::world::{PORT, SOURCE_ADDRESS, Side};
use super::{Contender, Pass, Site, missing_program};

pub struct Rsync;

impl Contender for Rsync {
    fn missing(&self) -> Option<String> {
        missing_program(&["rsync"])
    }

    fn serve(&self, site: &Site) -> Result<Command> {
        let file = site.home.join("rsyncd.conf");
        let volume = site.source();
        let text = format!(
            "use chroot = false\nuid = 0\ngid = 0\nread only = true\n[volume]\npath = {}\n",
            volume.display()
        );
        std::fs::write(&file, text).context("writing the configuration of rsync")?;
        let mut command = Side::Source.command("rsync");
        command.args(["--daemon", "--no-detach", "--port", &PORT.to_string(), "--address", SOURCE_ADDRESS]);
        command.arg("--config").arg(file);
        Ok(command)
    }

    fn copy(&self, site: &Site, pass: Pass, _run: usize) -> Result<Command> {
        let flags: &[&str] = match (site.work, pass) {
            // Its delta, in place: without that it writes the whole image anew, beside the old one.
            (_, Pass::Changes) => &["--no-whole-file", "--inplace", "--ignore-times"],
            (Work::Sparse, _) => &["--whole-file", "--sparse"],
            (Work::SmallFiles, _) => &[],
            (Work::SlowLink, _) => &["--compress", "--inplace"],
            // What is there is a beginning; in the end the whole file is compared.
            (Work::Killed, _) => &["--append-verify"],
            _ => &["--whole-file", "--inplace"],
        };
        let mut command = Side::Target.command("rsync");
        command.arg("--archive").args(flags);
        command.arg(format!("rsync://{SOURCE_ADDRESS}:{PORT}/volume/"));
        command.arg(format!("{}/", site.target().display()));
        Ok(command)
    }
}

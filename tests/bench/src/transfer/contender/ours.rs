//! The agent's engine: its source serves, its target makes one final copy, which it has read back from the disk when it
//! ends. Both are this program's own hidden subcommands, see `agent.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use somersault_proto::token::{Claims, TokenSigner};
use somersault_test_support::certs::CertAuthority;

use super::super::agent;
use super::super::world::{PORT, SOURCE_ADDRESS, Side};
use super::{Contender, Pass, Site};

/// Longer than any run of this bench.
const TOKEN_LIFETIME: Duration = Duration::from_hours(12);

/// With certificates and a coordinator's key of this run's own.
pub struct Ours {
    program: PathBuf,
    certs: PathBuf,
    signer: TokenSigner,
    is_plain: bool,
}

impl Ours {
    pub fn new(home: &Path, is_plain: bool) -> Result<Self> {
        let certs = home.join(if is_plain { "plain" } else { "tls" });
        let authority = CertAuthority::new()?;
        for side in Side::BOTH {
            authority.issue_node(side.name(), &certs.join(side.name()))?;
        }
        let program = std::env::current_exe().context("finding this program")?;
        Ok(Self { program, certs, signer: TokenSigner::generate()?, is_plain })
    }

    fn command(&self, side: Side, what: &str, root: &Path) -> Command {
        let mut command = side.command(&self.program);
        // As the agent's manifest has it.
        command.env("MALLOC_ARENA_MAX", "2");
        let key = blake3::Hash::from_bytes(self.signer.public_key()).to_hex();
        command.arg(what).arg("--node").arg(side.name()).arg("--root").arg(root);
        command.arg("--certs").arg(self.certs.join(side.name())).arg("--token-key").arg(key.as_str());
        if self.is_plain {
            command.arg("--plaintext");
        }
        command
    }
}

impl Contender for Ours {
    fn missing(&self) -> Option<String> {
        agent::refusal(self.is_plain).map(str::to_owned)
    }

    fn serve(&self, site: &Site) -> Result<Command> {
        let mut command = self.command(Side::Source, "transfer-source", &site.source_root);
        command.arg("--listen").arg(format!("{SOURCE_ADDRESS}:{PORT}"));
        Ok(command)
    }

    fn copy(&self, site: &Site, pass: Pass, run: usize) -> Result<Command> {
        let transfer = format!("bench-{run}");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let source_path = site.source().display().to_string();
        let claims = Claims {
            job: transfer.clone(),
            source_node: Side::Source.name().parse()?,
            target_node: Side::Target.name().parse()?,
            source_path: source_path.parse()?,
            exp: (now + TOKEN_LIFETIME).as_secs(),
        };
        let mut command = self.command(Side::Target, "transfer-target", &site.target_root);
        command.args(["--transfer", &transfer, "--token", &self.signer.sign(&claims)?]);
        command.args(["--source-node", Side::Source.name()]);
        command.args([
            "--source-address",
            &format!("{SOURCE_ADDRESS}:{PORT}"),
            "--source-path",
            &source_path,
        ]);
        command.arg("--target-path").arg(site.target());
        if pass == Pass::Ahead {
            command.arg("--pre-copy");
        }
        Ok(command)
    }

    fn is_durable(&self) -> bool {
        true
    }
}

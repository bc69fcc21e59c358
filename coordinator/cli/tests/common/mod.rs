//! Runs the real program, and gives it a cluster of its own to write to.

// Each test program uses its own part of this.
#![allow(dead_code)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs};

use anyhow::{Context, Result};
use serde_json::Value;
use somersault_coordinator::cluster::directory::Store;
use somersault_coordinator::cluster::manifest::ObjectId;
use tempfile::TempDir;

/// What the program did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Standard output as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("not JSON: {self:?}"))
    }

    /// The line of standard output that begins with this.
    pub fn line(&self, start: &str) -> &str {
        self.out.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_default()
    }
}

/// The program, without anything of this machine in its environment.
pub fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-somersault"));
    command.args(args).env("USER", "tester").env("HOME", "/nonexistent").stdin(Stdio::null());
    for name in ["SOMERSAULT_CLUSTER", "KUBECONFIG", "KUBERNETES_SERVICE_HOST"] {
        command.env_remove(name);
    }
    command
}

/// Runs it to its end.
pub fn run(args: &[&str]) -> Result<Ran> {
    ran(&program(args).output()?)
}

/// Runs it with this on its standard input.
pub fn run_with_input(args: &[&str], input: &str) -> Result<Ran> {
    let mut child =
        program(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    ran(&child.wait_with_output()?)
}

/// What a finished program did.
pub fn ran(output: &Output) -> Result<Ran> {
    Ok(Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout.clone())?,
        err: String::from_utf8(output.stderr.clone())?,
    })
}

/// Path of a fixture.
pub fn fixture(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", name].iter().collect();
    path.to_string_lossy().into_owned()
}

/// A folder with these fixtures, as a cluster that may be written to.
pub struct Cluster {
    folder: TempDir,
}

impl Cluster {
    pub fn with(fixtures: &[&str]) -> Result<Self> {
        let folder = TempDir::new()?;
        for name in fixtures {
            let target = Path::new(name).file_name().context("a fixture is a file")?;
            fs::copy(fixture(name), folder.path().join(target))?;
        }
        Ok(Self { folder })
    }

    /// A small cluster with a coordinator's words about it.
    pub fn coordinated() -> Result<Self> {
        Self::with(&["fleet.yaml", "coordinated/somersault.yaml"])
    }

    /// The same, after the incident of n1.
    pub fn calm() -> Result<Self> {
        let cluster = Self::coordinated()?;
        cluster.set_state("n1", "Healthy")?;
        Ok(cluster)
    }

    /// As the coordinator would write it.
    pub fn set_state(&self, node: &str, state: &str) -> Result<()> {
        self.store()?.patch(&ObjectId::cluster("NodeHealth", node), |object| {
            object["status"]["state"] = state.into();
            Ok(())
        })?;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn store(&self) -> Result<Store> {
        Ok(Store::open(self.folder.path())?)
    }

    /// `--cluster dir:PATH` and these arguments.
    pub fn args(&self, args: &[&str]) -> Vec<String> {
        let address = format!("dir:{}", self.folder.path().display());
        ["--cluster", &address].into_iter().chain(args.iter().copied()).map(str::to_owned).collect()
    }

    /// Runs the program on this cluster.
    pub fn run(&self, args: &[&str]) -> Result<Ran> {
        let args = self.args(args);
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs it with this on its standard input.
    pub fn run_with_input(&self, args: &[&str], input: &str) -> Result<Ran> {
        let args = self.args(args);
        run_with_input(&args.iter().map(String::as_str).collect::<Vec<_>>(), input)
    }
}

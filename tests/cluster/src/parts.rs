//! The programs that a cluster is made of, built from Go modules.
//!
//! Each is kept in `$XDG_CACHE_HOME/somersault-cluster/parts/<module>-<key>`, where the key is a hash of the
//! module's files and of Go's version: `cargo clean` does not throw away five minutes' work, and a changed
//! module is built again.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::layout;
use crate::requirements::{Missing, is_there};

/// Builds of one module that are kept: this checkout's, and those of a few other branches.
const KEPT_MAX: usize = 3;
/// How often a build that nobody sees on a terminal says that it goes on.
const NEWS_PERIOD: Duration = Duration::from_secs(30);
/// The apiserver calls itself v0.0.0 otherwise, and clients that look at the version get it wrong.
const KUBERNETES: (&str, &str, &str) = ("v1.36.3", "1", "36");

/// Paths of the built programs.
#[derive(Clone, Debug)]
pub struct Parts {
    /// etcd, the Kubernetes parts, `CoreDNS` and kubectl, by first argument.
    pub controlplane: PathBuf,
    /// rancher/local-path-provisioner.
    pub provisioner: PathBuf,
    /// `pause` and the like, for images.
    pub toolbox: PathBuf,
}

struct Module {
    name: &'static str,
    /// What is built: the module itself, or one that it depends on.
    package: &'static str,
    /// What to tell somebody who waits.
    what: &'static str,
}

const MODULES: [Module; 3] = [
    Module {
        name: "controlplane",
        package: ".",
        what: "Kubernetes, etcd and CoreDNS from their Go modules (once; five minutes on two cores)",
    },
    Module {
        name: "local-path-provisioner",
        package: "github.com/rancher/local-path-provisioner",
        what: "local-path-provisioner from its Go module (once; a minute)",
    },
    Module { name: "toolbox", package: ".", what: "the toolbox of the cluster's containers (once; seconds)" },
];

/// Builds what is not there yet.
pub fn ensure() -> Result<Parts> {
    let folder = layout::cache()?.join("parts");
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let [controlplane, provisioner, toolbox] = MODULES.each_ref().map(|module| module.ensure(&folder));
    Ok(Parts { controlplane: controlplane?, provisioner: provisioner?, toolbox: toolbox? })
}

/// Whether everything is built, or Go is there to build it.
pub fn check() -> Result<(), Missing> {
    if is_there("go") {
        return Ok(());
    }
    Err(Missing(vec![
        "Go 1.26 or later is missing, from which Kubernetes is built: https://go.dev/dl".to_owned(),
    ]))
}

impl Module {
    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(self.name)
    }

    fn ensure(&self, folder: &Path) -> Result<PathBuf> {
        let key = self.key()?;
        let home = folder.join(format!("{}-{}", self.name, &key[..16]));
        let program = home.join(self.name);
        // Two builds of the same at once would take twice as long, and `go build` writes in place.
        let lock = File::create(folder.join(format!("{}.lock", self.name))).context("creating a lock")?;
        let _lock =
            Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("locking")?;
        if program.exists() {
            // The date says which builds are in use.
            File::open(&home)
                .and_then(|file| file.set_modified(SystemTime::now()))
                .context("dating a build")?;
            return Ok(program);
        }
        std::fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        let unfinished = home.join("unfinished");
        self.build(&unfinished).with_context(|| format!("building {}", self.name))?;
        std::fs::rename(&unfinished, &program).context("keeping a finished build")?;
        self.forget_old(folder)?;
        Ok(program)
    }

    fn key(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        hash.update(go_version()?.as_bytes());
        hash.update(flags().join(" ").as_bytes());
        let source = self.source();
        let mut files: Vec<_> = std::fs::read_dir(&source)
            .with_context(|| format!("reading {}", source.display()))?
            .collect::<Result<_, _>>()
            .context("reading a folder")?;
        files.sort_by_key(std::fs::DirEntry::file_name);
        for file in files {
            let content =
                std::fs::read(file.path()).with_context(|| format!("reading {}", file.path().display()))?;
            hash.update(file.file_name().as_encoded_bytes());
            hash.update(&content.len().to_le_bytes());
            hash.update(&content);
        }
        Ok(hash.finalize().to_hex().to_string())
    }

    fn build(&self, output: &Path) -> Result<()> {
        eprintln!("== building {}", self.what);
        let began = Instant::now();
        let mut child = Command::new("go")
            .args(["build", "-v"])
            .args(flags())
            .arg("-o")
            .arg(output)
            .arg(self.package)
            .current_dir(self.source())
            // Static programs: their images have no base.
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting go (https://go.dev/dl)")?;
        let news = child.stderr.take().context("go build without an output")?;
        let complaints = follow(BufReader::new(news), began)?;
        let status = child.wait()?;
        if !status.success() {
            bail!("go build failed ({status}):\n{}", complaints.join("\n"));
        }
        eprintln!("== built in {} s", began.elapsed().as_secs());
        Ok(())
    }

    fn forget_old(&self, folder: &Path) -> Result<()> {
        let prefix = format!("{}-", self.name);
        let mut builds = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_build =
                name.to_str().and_then(|name| name.strip_prefix(&prefix)).is_some_and(|key| key.len() == 16);
            if is_build {
                builds.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        builds.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        builds.iter().skip(KEPT_MAX).try_for_each(|(_, old)| {
            std::fs::remove_dir_all(old).with_context(|| format!("removing the old build {}", old.display()))
        })
    }
}

/// Shows what `go build -v` says: a line for each module downloaded and each package compiled. Returns the lines
/// that are neither.
fn follow(news: impl BufRead, began: Instant) -> Result<Vec<String>> {
    let bar = indicatif::ProgressBar::new_spinner();
    let (mut modules, mut packages, mut complaints, mut told) = (0, 0, Vec::new(), Instant::now());
    for line in news.lines() {
        let line = line?;
        match line.as_str() {
            line if line.starts_with("go: downloading ") => modules += 1,
            line if !line.contains([' ', ':']) => packages += 1,
            _ => complaints.push(line),
        }
        let now = format!(
            "{modules} modules downloaded, {packages} packages compiled, {} s",
            began.elapsed().as_secs()
        );
        if std::io::stderr().is_terminal() {
            bar.set_message(now);
            bar.tick();
        } else if told.elapsed() > NEWS_PERIOD {
            told = Instant::now();
            eprintln!("   {now}");
        }
    }
    bar.finish_and_clear();
    Ok(complaints)
}

fn go_version() -> Result<String> {
    somersault_test_support::world::command::run("go", ["env", "GOVERSION", "GOARCH"])
}

fn flags() -> [String; 4] {
    let (version, major, minor) = KUBERNETES;
    let set = "-X k8s.io/component-base/version";
    [
        "-trimpath".to_owned(),
        "-buildvcs=false".to_owned(),
        "-ldflags".to_owned(),
        format!("-s -w {set}.gitVersion={version} {set}.gitMajor={major} {set}.gitMinor={minor}"),
    ]
}

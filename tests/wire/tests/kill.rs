//! The real programs, killed with SIGKILL in the middle of a copy: first the agent that pulls, then the coordinator.
//!
//! ```text
//!   copy ──20 %──► kill -9 agent n2 ──again──► 50 % ──► kill -9 coordinator ──again──► Succeeded
//! ```
//!
//! The migration must end as if nothing had happened: the copy equals the source, the source is as it was, and the
//! claim, under its name, has the new volume.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use somersault_coordinator::cluster::directory::store::Store;
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::names::Key;
use somersault_crd::node_health::NodeState;
use somersault_crd::volume_migration::{Phase, VolumeMigrationStatus};
use somersault_crd::{NodeHealth, VolumeMigration};
use somersault_test_support::certs::CertAuthority;
use tempfile::TempDir;

/// Longest wait for anything; nothing waits for it to pass. A debug build on a machine with other work.
const PATIENCE: Duration = Duration::from_mins(2);
const MIB: usize = 1 << 20;
/// The image is as many times a piece of data and a hole; some seconds of copying in a debug build.
const PIECES: u64 = 40;
const DATA_BYTES: usize = 16 * MIB;
const HOLE_BYTES: usize = 4 * MIB;
const CLAIM: &str = "data";
const MIGRATION: &str = "data-to-n2";
const OLD_VOLUME: &str = "pv-old";

#[test]
fn a_migration_survives_the_killing_of_its_target_and_of_its_coordinator() -> Result<()> {
    let place = Place::new()?;
    survive(&place).with_context(|| place.last_words())
}

fn survive(place: &Place) -> Result<()> {
    let source = place.make_image()?;
    let before = Fingerprint::of(&source)?;
    let store = Store::open(place.path("cluster"))?;

    let mut coordinator = place.coordinator()?;
    let _source_agent = place.agent("n1")?;
    let mut target_agent = place.agent("n2")?;
    until("both agents have reported", || {
        Ok((reported(&store, "n1")? && reported(&store, "n2")?).then_some(()))
    })?;
    store.create(json!({
        "apiVersion": "somersault.novasphere.dev/v1alpha1",
        "kind": "VolumeMigration",
        "metadata": {"name": MIGRATION, "namespace": "default"},
        "spec": {"claim": CLAIM, "destination": {"node": "n2"}},
    }))?;

    let first = place.until_copied(&store, 20)?;
    target_agent.kill()?;
    let kept = place.copied_percent()?;
    ensure!(kept < 80, "{kept} % were copied when the agent was dead: it was killed too late to tell");
    ensure!(phase(&store)? < Phase::Swapping, "the copy was over before the agent was killed");
    let _target_agent = place.agent("n2")?;

    let second = place.until_copied(&store, kept + 30)?;
    coordinator.kill()?;
    // Nobody else writes the phase.
    ensure!(phase(&store)? < Phase::Swapping, "the copy was over before the coordinator was killed");
    println!("the agent was killed at {first} %, the coordinator at {second} %");
    let _coordinator = place.coordinator()?;

    let status = until("the migration has ended", || {
        let status = status(&store)?;
        ensure!(
            !matches!(
                status.phase,
                Phase::Failed | Phase::RollingBack | Phase::RolledBack | Phase::Cancelled
            ),
            "{:?}: {}",
            status.phase,
            status.message
        );
        Ok((status.phase == Phase::Succeeded).then_some(status))
    })?;
    ensure!(Fingerprint::of(&source)? == before, "the source was touched");
    assert_moved(place, &store, &status, &before)
}

/// The claim has the new volume under its name, and the new volume is on `n2` and holds what the old one held.
fn assert_moved(
    place: &Place,
    store: &Store,
    status: &VolumeMigrationStatus,
    before: &Fingerprint,
) -> Result<()> {
    let [disk] = &status.disks[..] else { bail!("not one disk: {status:?}") };
    let copy = Path::new(&disk.new_volume.path);
    ensure!(copy.starts_with(place.root("n2")), "{} is not on n2", copy.display());
    let after = Fingerprint::of(&copy.join("disk.img"))?;
    ensure!((after.hash, after.length) == (before.hash, before.length), "the copy differs from the source");
    ensure!(after.allocated_bytes <= before.allocated_bytes + 8 * MIB as u64, "the holes are filled");
    ensure!(
        place.partials()?.iter().all(|folder| !folder.join("data").exists()),
        "a second copy is left over"
    );

    let new = disk.new_volume.name.as_str();
    let claim = store.get(&claim_id())?.context("the claim is gone")?;
    ensure!(new != OLD_VOLUME && claim["spec"]["volumeName"] == new, "{claim}");
    ensure!(claim["status"]["phase"] == "Bound", "{claim}");
    let volume = store.get(&ObjectId::cluster("PersistentVolume", new))?.context("no new volume")?;
    ensure!(volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"], "{volume} is not of {claim}");
    let old =
        store.get(&ObjectId::cluster("PersistentVolume", OLD_VOLUME))?.context("the old volume is gone")?;
    ensure!(old["spec"]["persistentVolumeReclaimPolicy"] == "Retain", "{old}");
    Ok(())
}

fn claim_id() -> ObjectId {
    ObjectId::namespaced("PersistentVolumeClaim", &Key::new("default", CLAIM))
}

/// Before, every migration is refused.
fn reported(store: &Store, node: &str) -> Result<bool> {
    let Some(object) = store.get(&ObjectId::cluster("NodeHealth", node))? else { return Ok(false) };
    let status = serde_json::from_value::<NodeHealth>(object)?.status.unwrap_or_default();
    Ok(status.state == NodeState::Healthy && !status.roots.is_empty())
}

fn status(store: &Store) -> Result<VolumeMigrationStatus> {
    let id = ObjectId::namespaced("VolumeMigration", &Key::new("default", MIGRATION));
    let object = store.get(&id)?.context("the migration is gone")?;
    Ok(serde_json::from_value::<VolumeMigration>(object)?.status.unwrap_or_default())
}

fn phase(store: &Store) -> Result<Phase> {
    Ok(status(store)?.phase)
}

fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        sleep(Duration::from_millis(10));
    }
    bail!("waited {PATIENCE:?}, but not: {what}")
}

/// A file, down to when it was last written or its inode changed.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    hash: blake3::Hash,
    length: u64,
    allocated_bytes: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(file: &Path) -> Result<Self> {
        let opened = File::open(file).with_context(|| format!("opening {}", file.display()))?;
        let metadata = opened.metadata()?;
        Ok(Self {
            hash: blake3::Hasher::new().update_reader(opened)?.finalize(),
            length: metadata.len(),
            allocated_bytes: allocated_bytes(&metadata),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// `st_blocks` counts 512 bytes on Linux, whatever the filesystem.
fn allocated_bytes(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

/// Two nodes and a coordinator in one folder.
struct Place {
    folder: TempDir,
    coordinator: SocketAddr,
    agents: [(&'static str, SocketAddr); 2],
}

impl Place {
    fn new() -> Result<Self> {
        let folder = roomy_folder()?;
        let place = Self {
            folder,
            coordinator: free_address()?,
            agents: [("n1", free_address()?), ("n2", free_address()?)],
        };
        let authority = CertAuthority::new()?;
        authority.issue_coordinator(&place.path("coordinator-certs"))?;
        for (node, _) in place.agents {
            authority.issue_node(node, &place.path(node).join("certs"))?;
            fs::create_dir(place.root(node))?;
            // All run on one kernel, but a node has a boot of its own.
            let boot = format!("00000000-0000-4000-8000-00000000000{}\n", &node[1..]);
            fs::write(place.path(node).join("boot_id"), boot)?;
        }
        fs::create_dir_all(place.volume())?;
        fs::create_dir(place.path("cluster"))?;
        // JSON is YAML.
        fs::write(place.path("cluster").join("objects.yaml"), objects(&place.volume()).to_string())?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn root(&self, node: &str) -> PathBuf {
        self.path(node).join("volumes")
    }

    fn volume(&self) -> PathBuf {
        self.root("n1").join(OLD_VOLUME)
    }

    /// Pseudo-random data with holes between.
    fn make_image(&self) -> Result<PathBuf> {
        let path = self.volume().join("disk.img");
        let image = File::create(&path)?;
        let stride = (DATA_BYTES + HOLE_BYTES) as u64;
        let mut random = blake3::Hasher::new().finalize_xof();
        let mut data = vec![0; DATA_BYTES];
        for piece in 0..PIECES {
            random.fill(&mut data);
            image.write_all_at(&data, piece * stride)?;
        }
        image.set_len(PIECES * stride)?;
        image.sync_all()?;
        Ok(path)
    }

    fn coordinator(&self) -> Result<Program> {
        let cluster = format!("dir:{}", self.path("cluster").display());
        let mut command = Command::new(program("somersault-coordinator")?);
        command.args(["--cluster", &cluster, "--listen", &self.coordinator.to_string()]);
        command.args(["--admin-listen", "127.0.0.1:0"]).arg("--certs").arg(self.path("coordinator-certs"));
        self.start(command, "coordinator")
    }

    fn agent(&self, node: &'static str) -> Result<Program> {
        let (_, address) = self.agents.iter().find(|(name, _)| *name == node).context("no such node")?;
        let (address, coordinator) = (address.to_string(), self.coordinator.to_string());
        let root = format!("local-path={}", self.root(node).display());
        let mut command = Command::new(program("somersault-agent")?);
        command.args(["--node", node, "--coordinator", &coordinator, "--listen", &address]);
        command.args(["--advertise", &address, "--root", &root]);
        command.arg("--certs").arg(self.path(node).join("certs"));
        command.arg("--boot-id-file").arg(self.path(node).join("boot_id"));
        self.start(command, node)
    }

    fn start(&self, mut command: Command, name: &str) -> Result<Program> {
        let log = File::options().create(true).append(true).open(self.log(name))?;
        let child = command
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Program { child })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.log"))
    }

    /// Waits until at least so much lies in the unfinished copy, and says how much. More precise than the progress
    /// that is told, which comes in steps.
    fn until_copied(&self, store: &Store, percent: u64) -> Result<u64> {
        until(&format!("{percent} % are copied"), || {
            let copied = self.copied_percent()?;
            if copied < percent {
                let status = status(store)?;
                ensure!(status.phase < Phase::Swapping, "{:?} too early: {}", status.phase, status.message);
            }
            Ok((copied >= percent).then_some(copied))
        })
    }

    /// How much of the data lies in the unfinished copy on `n2`.
    fn copied_percent(&self) -> Result<u64> {
        let images = self.partials()?.into_iter().map(|folder| folder.join("data").join("disk.img"));
        let copied: u64 =
            images.filter_map(|image| fs::metadata(image).ok()).map(|file| allocated_bytes(&file)).sum();
        Ok(copied * 100 / (PIECES * DATA_BYTES as u64))
    }

    /// The folders of copies on `n2`, by the agent's documented name for them.
    fn partials(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.root("n2"))?.collect::<Result<Vec<_>, _>>()?;
        let paths = entries.into_iter().map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|suffix| suffix == "partial")).collect())
    }

    /// The ends of all logs.
    fn last_words(&self) -> String {
        let tail = |name: &str| {
            let log = fs::read_to_string(self.log(name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            format!("\n--- {name}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
        };
        ["coordinator", "n1", "n2"].map(tail).concat()
    }
}

/// In memory, where there is enough of it: what fills this machine's disk is no node's room, and a migration onto a
/// root that is nearly full is refused.
fn roomy_folder() -> Result<TempDir> {
    // Source and copy, and a copy that was begun.
    const NEEDED_BYTES: u64 = 3 * PIECES * DATA_BYTES as u64;
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |room| room.f_bavail * room.f_frsize);
    let folder = if free > NEEDED_BYTES { TempDir::new_in(memory) } else { TempDir::new() };
    folder.context("making a folder for two nodes")
}

/// A running program, killed when dropped.
struct Program {
    child: Child,
}

impl Program {
    /// SIGKILL, while it runs.
    fn kill(&mut self) -> Result<()> {
        ensure!(self.child.try_wait()?.is_none(), "it ended before it was killed");
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already gone: all the better.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A program of the workspace, in the folder of this test's own profile. Testing the whole workspace builds it there.
fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test.ancestors().nth(2).context("a test lies in PROFILE/deps")?;
    let path = profile.join(name);
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "-p", "somersault-coordinator", "-p", "somersault-agent"]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        ensure!(build.status()?.success() && path.exists(), "{} cannot be built", path.display());
    }
    Ok(path)
}

/// Free a moment ago. Where another process is faster, the start fails and its log says so.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Two nodes, a class, and a claim bound to a local volume of `n1`.
fn objects(volume: &Path) -> Value {
    let node = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"kubernetes.io/hostname": name}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        })
    };
    let requirement = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]});
    let items = json!([
        node("n1"),
        node("n2"),
        {
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": "local-path", "uid": "uid-class"},
            "provisioner": "rancher.io/local-path",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        {
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": OLD_VOLUME, "uid": "uid-volume"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "1Gi"},
                "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": CLAIM, "uid": "uid-claim"},
                "local": {"path": volume},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}},
                "persistentVolumeReclaimPolicy": "Delete",
                "storageClassName": "local-path",
                "volumeMode": "Filesystem",
            },
            "status": {"phase": "Bound"},
        },
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "namespace": "default", "uid": "uid-claim"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
                "storageClassName": "local-path",
                "volumeMode": "Filesystem",
                "volumeName": OLD_VOLUME,
            },
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        },
    ]);
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

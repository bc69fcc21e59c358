//! Two nodes with real certificates, servers on 127.0.0.1 and storage roots of their own.

use std::convert::Infallible;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use somersault_agent::transfer::{
    Limits, PullDone, PullProgress, PullRequest, TransferConfig, TransferError, Transfers,
};
use somersault_proto::model::{AbsolutePath, NodeName};
use somersault_proto::tls::{ConnectionLimits, TlsSource};
use somersault_proto::token::{Claims, TokenSigner};
use somersault_test_support::certs::CertAuthority;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tower_service::Service;

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 64 << 10;
const CONNECTIONS: ConnectionLimits = ConnectionLimits { total: 64, strangers_per_host: 64 };

/// Limits that make a test of retries short.
pub fn quick() -> Limits {
    Limits {
        retry_min: Duration::from_millis(5),
        retry_max: Duration::from_millis(20),
        retries_max: 3,
        lock_patience: Duration::from_secs(10),
        ..Limits::default()
    }
}

pub fn node(name: &str) -> NodeName {
    name.parse().expect("a node's name")
}

/// One node: a storage root, a kubelet's folder, and a server.
pub struct Node {
    pub name: NodeName,
    pub root: TempDir,
    pub pods: TempDir,
    pub transfers: Transfers,
    pub address: String,
}

impl Node {
    pub fn path(&self, volume: &str) -> PathBuf {
        self.root.path().join(volume)
    }

    /// Where the kubelet mounts a CSI driver's volume for a pod.
    pub fn mount_path(&self, pod: &str, volume: &str) -> PathBuf {
        self.pods.path().join(pod).join("volumes/kubernetes.io~csi").join(volume).join("mount")
    }
}

pub struct World {
    pub signer: TokenSigner,
    pub certs: TempDir,
    pub source: Node,
    pub target: Node,
}

/// A folder on the filesystem that `make test` runs on, and on tmpfs where there is one.
pub fn bases() -> Vec<PathBuf> {
    let mut bases = vec![std::env::temp_dir()];
    let memory = Path::new("/dev/shm");
    if memory.is_dir() && tempfile::tempdir_in(memory).is_ok() {
        bases.push(memory.to_owned());
    }
    bases
}

impl World {
    /// Must be called within a tokio runtime, as all of this.
    pub fn new() -> Self {
        Self::on(&std::env::temp_dir(), &quick())
    }

    pub fn on(base: &Path, limits: &Limits) -> Self {
        let authority = CertAuthority::new().expect("an authority");
        let signer = TokenSigner::generate().expect("a key");
        let certs = tempfile::tempdir().expect("a folder");
        for name in ["n1", "n2", "n3"] {
            authority.issue_node(name, &certs.path().join(name)).expect("issued");
        }
        let start = |name| {
            let root = tempfile::tempdir_in(base).expect("a folder");
            start(name, root, certs.path(), &signer, limits.clone())
        };
        let (source, target) = (start("n1"), start("n2"));
        Self { signer, certs, source, target }
    }

    pub fn claims(&self, transfer: &str, volume: &str) -> Claims {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        Claims {
            job: transfer.into(),
            source_node: self.source.name.clone(),
            target_node: self.target.name.clone(),
            source_path: text(&self.source.path(volume)).parse().expect("a path"),
            exp: now + 3600,
        }
    }

    /// An order for a final copy of a volume to the same name.
    pub fn order(&self, transfer: &str, volume: &str) -> PullRequest {
        PullRequest {
            transfer: transfer.into(),
            source_node: self.source.name.clone(),
            source_address: self.source.address.parse().expect("an address"),
            source_path: text(&self.source.path(volume)).parse().expect("a path"),
            target_path: text(&self.target.path(volume)).parse().expect("a path"),
            token: self.signer.sign(&self.claims(transfer, volume)).expect("signed"),
            final_copy: true,
            rate_limit_bytes_per_s: None,
            accept_unreadable: false,
        }
    }

    /// The same from any path to any path.
    pub fn order_between(&self, transfer: &str, from: &Path, to: &Path) -> PullRequest {
        let source_path: AbsolutePath = text(from).parse().expect("a path");
        let claims = Claims { source_path: source_path.clone(), ..self.claims(transfer, "any") };
        PullRequest {
            source_path,
            target_path: text(to).parse().expect("a path"),
            token: self.signer.sign(&claims).expect("signed"),
            ..self.order(transfer, "any")
        }
    }

    pub fn pre_copy(&self, transfer: &str, volume: &str) -> PullRequest {
        PullRequest { final_copy: false, ..self.order(transfer, volume) }
    }

    pub async fn pull(&self, order: PullRequest) -> Result<PullDone, TransferError> {
        self.target.transfers.pull(order, watch::channel(PullProgress::default()).0).await
    }

    /// Pulls until so many bytes are done, then drops the copy as a crash would. Returns the bytes that were done.
    pub async fn pull_part(&self, order: PullRequest, until_bytes: u64) -> u64 {
        let (told, mut progress) = watch::channel(PullProgress::default());
        let copy = tokio::spawn(self.target.transfers.pull(order, told));
        let seen = progress.wait_for(|progress| progress.done_bytes >= until_bytes).await;
        let done = seen.expect("the copy goes on").done_bytes;
        copy.abort();
        assert!(copy.await.expect_err("aborted").is_cancelled());
        done
    }
}

/// A second root below the first, whose volumes lie a folder deeper.
pub const DEEP: &str = "deep";

fn start(name: &str, root: TempDir, certs: &Path, signer: &TokenSigner, limits: Limits) -> Node {
    let tls = TlsSource::read(&certs.join(name)).expect("certificates");
    let pods = tempfile::tempdir().expect("a folder");
    let roots = vec![(root.path().to_owned(), 1), (root.path().join(DEEP), 2)];
    let config =
        TransferConfig { roots, pods: Some(pods.path().to_owned()), tls: tls.clone(), node: node(name) };
    let transfers = Transfers::with_limits(config, limits);
    transfers.set_token_key("c0", signer.public_key());
    let (address, _) = serve(&tls, transfers.service());
    Node { name: node(name), root, pods, transfers, address }
}

/// Serves anything that claims to be a source.
pub fn serve<S>(tls: &TlsSource, service: S) -> (String, JoinHandle<()>)
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.set_nonblocking(true).expect("set");
    let address = listener.local_addr().expect("bound").to_string();
    let incoming = tls.accept(TcpListener::from_std(listener).expect("a listener"), CONNECTIONS);
    let server = Server::builder().add_service(service);
    let task = tokio::spawn(async move {
        // Ends when the task is aborted.
        let _ = server.serve_with_incoming(incoming).await;
    });
    (address, task)
}

pub fn text(path: &Path) -> String {
    path.to_str().expect("plain").to_owned()
}

/// A folder with a `disk.img` of this size, in which these ranges (in bytes) hold random data.
pub fn make_volume(path: &Path, size_bytes: u64, data: &[(u64, u64)], seed: u64) {
    std::fs::create_dir_all(path).expect("made");
    let file = std::fs::File::create(path.join("disk.img")).expect("made");
    file.set_len(size_bytes).expect("set");
    let mut random = StdRng::seed_from_u64(seed);
    for (offset, length) in data {
        let mut bytes = vec![0; usize::try_from(*length).expect("small")];
        random.fill_bytes(&mut bytes);
        file.write_all_at(&bytes, *offset).expect("written");
    }
}

/// Writes a few bytes into so many places of a file.
pub fn scribble(file: &Path, places: usize, seed: u64) {
    let file = std::fs::File::options().write(true).open(file).expect("open");
    let size = file.metadata().expect("there").len();
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..places {
        let at = random.random_range(0..size - 8);
        file.write_all_at(&random.random::<[u8; 8]>(), at).expect("written");
    }
}

/// Bytes that a file takes on its disk.
pub fn allocated(path: &Path) -> u64 {
    std::fs::File::open(path).expect("open").sync_all().expect("synced");
    std::fs::metadata(path).expect("there").blocks() * 512
}

/// Equal in everything that a copy keeps.
pub fn assert_same(a: &Path, b: &Path) {
    assert_alike(a, b, &(list(a), list(b)));
}

/// The same, with mounts among them: what lies beside a volume there is not looked at.
pub fn assert_same_mounted(a: &Path, b: &Path) {
    let volume = |path: &Path| {
        let mut found = list(path);
        found.retain(|path, _| {
            !path.starts_with("lost+found") && !path.to_string_lossy().starts_with(".somersault-")
        });
        found
    };
    assert_alike(a, b, &(volume(a), volume(b)));
}

fn assert_alike(a: &Path, b: &Path, (left, right): &(Listing, Listing)) {
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
    for (path, ours) in left {
        assert_eq!(*ours, right[path], "{}", path.display());
        if a.join(path).is_file() {
            assert!(same_content(&a.join(path), &b.join(path)), "content of {}", path.display());
        }
    }
}

type Kept = (u32, u32, u32, i64, i64, u64);
type Listing = std::collections::BTreeMap<PathBuf, Kept>;

fn list(root: &Path) -> Listing {
    let mut found = Listing::new();
    let mut folders = vec![root.to_owned()];
    while let Some(path) = folders.pop() {
        let stat = std::fs::symlink_metadata(&path).expect("there");
        let size = if stat.is_dir() { 0 } else { stat.len() };
        let kept = (stat.mode(), stat.uid(), stat.gid(), stat.mtime(), stat.mtime_nsec(), size);
        found.insert(path.strip_prefix(root).expect("below").to_owned(), kept);
        if stat.is_dir() {
            let items = std::fs::read_dir(&path).expect("listed");
            folders.extend(items.map(|item| item.expect("listed").path()));
        }
    }
    found
}

fn same_content(a: &Path, b: &Path) -> bool {
    let (a, b) = (std::fs::File::open(a).expect("open"), std::fs::File::open(b).expect("open"));
    let size = a.metadata().expect("there").len();
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < size {
        let step = usize::try_from((size - at).min(1 << 20)).expect("small");
        a.read_exact_at(&mut left[..step], at).expect("read");
        b.read_exact_at(&mut right[..step], at).expect("read");
        if left[..step] != right[..step] {
            return false;
        }
        at += step as u64;
    }
    true
}

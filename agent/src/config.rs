//! What the agent is told at its start. A configuration that cannot work is refused here, with the flag's name.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand};
use somersault_agent_core::health::{Thresholds, ThresholdsError};
use somersault_agent_core::replicas::REPLICAS_MAX;
use somersault_proto::model::limits::{DEPTH_MAX, ROOTS_MAX};
use somersault_proto::model::{AbsolutePath, Address, BootId, Malformed, NodeName};
use somersault_proto::tls::{Identity, TlsError};

/// The agent, or what else its binary can be.
#[derive(Debug, Parser)]
#[command(
    name = "somersault-agent",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// What to be instead of an agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The agent.
    #[command(flatten)]
    pub agent: Option<Config>,
}

/// What else this binary can be.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hand a block device of this pod to the agent of the node, until told to stop.
    Hold {
        /// The device, as the container sees it.
        device: PathBuf,
        /// Where the agent asks for it: a folder that it reaches too.
        folder: PathBuf,
    },
}

/// Somersault's agent: runs on every node, tells the coordinator that the node lives and how its disks are, and
/// copies volumes when ordered to.
#[derive(Clone, Debug, Parser)]
#[command(name = "somersault-agent", version)]
pub struct Config {
    /// Name of this node, as Kubernetes knows it and as the certificate says.
    #[arg(long, env = "NODE_NAME")]
    pub node: NodeName,

    /// A coordinator; repeat it for each replica. A name that has several addresses, as that of a headless
    /// Service, stands for all of them, and is looked up again and again.
    #[arg(long = "coordinator", value_name = "HOST:PORT", required = true)]
    pub coordinators: Vec<Address>,

    /// Folder with ca.crt, tls.crt and tls.key, read again when they change.
    #[arg(long, value_name = "DIR", default_value = "/etc/somersault/tls")]
    pub certs: PathBuf,

    /// Where coordinators give certificates: enrol there instead of reading --certs; repeatable. The key stays in
    /// memory.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "certs")]
    pub enroll: Vec<Address>,

    /// The pod's ServiceAccount token with audience somersault.novasphere.dev, for --enroll.
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/somersault/token")]
    pub token_file: PathBuf,

    /// The authorities to trust (key ca.crt of ConfigMap somersault-ca-bundle), for --enroll.
    #[arg(long, value_name = "FILE", default_value = "/etc/somersault/ca/ca.crt")]
    pub ca_bundle: PathBuf,

    /// Where to serve other agents.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:7444")]
    pub listen: SocketAddr,

    /// Where other agents and the coordinator reach this agent [default: the port of --listen on --host-ip].
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "host_ip")]
    pub advertise: Option<Address>,

    /// Address of this node.
    #[arg(long, env = "HOST_IP", value_name = "ADDR")]
    pub host_ip: Option<IpAddr>,

    /// A folder whose subfolders are local volumes of a storage class; repeatable. With /* at its end the volumes lie
    /// one folder deeper (PATH/CLAIM/VOLUME): they are copied from there, and no copy is put there.
    #[arg(long = "root", value_name = "CLASS=PATH[/*]")]
    pub roots: Vec<RootFlag>,

    /// The same for a folder that shows the same content on every node, as a mounted NFS export does.
    #[arg(long = "shared-root", value_name = "CLASS=PATH[/*]")]
    pub shared_roots: Vec<RootFlag>,

    /// Where the kubelet mounts the volumes of pods, /var/lib/kubelet/pods: volumes that no storage root reaches are
    /// copied from and to there. Without it none are.
    #[arg(long, value_name = "DIR", value_parser = folder)]
    pub pods: Option<AbsolutePath>,

    /// The host's /proc.
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub proc_root: PathBuf,

    /// The host's /sys.
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    pub sys_root: PathBuf,

    /// The smartctl program; a bare name is looked up on PATH. Without it disks have no SMART.
    #[arg(long, value_name = "PATH", default_value = "smartctl")]
    pub smartctl: PathBuf,

    /// JSON file with limits of the disks' grades that differ from the defaults; what is not named keeps its default.
    #[arg(long, value_name = "FILE")]
    pub thresholds: Option<PathBuf>,

    /// File with the kernel's boot id [default: sys/kernel/random/`boot_id` below --proc-root].
    #[arg(long, value_name = "FILE")]
    pub boot_id_file: Option<PathBuf>,

    /// Serve /metrics and /healthz there, unencrypted. Not served without this flag.
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,

    /// How often the kernel's disk counters are read.
    #[arg(long, value_name = "MS", default_value = "5000", value_parser = millis::<100, 60_000>)]
    pub kernel_period_ms: Duration,

    /// How often each disk is asked for its SMART values.
    #[arg(long, value_name = "MS", default_value = "600000", value_parser = millis::<100, 3_600_000>)]
    pub smart_period_ms: Duration,

    /// How often volumes are counted, at most; long scans make it rarer.
    #[arg(long, value_name = "MS", default_value = "60000", value_parser = millis::<100, 86_400_000>)]
    pub inventory_period_ms: Duration,
}

/// `CLASS=PATH`, with `/*` at its end where a folder lies between the root and each volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFlag {
    class: String,
    path: AbsolutePath,
    depth: u8,
}

/// A folder that holds volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageRoot {
    /// The storage class whose volumes live there.
    pub class: String,
    /// The folder.
    pub path: AbsolutePath,
    /// How many folders deep its volumes lie: 1 to [`DEPTH_MAX`].
    pub depth: u8,
    /// Every node with this root sees the same content.
    pub shared: bool,
}

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Too many replicas.
    #[error("--coordinator is given {0} times; a coordinator has at most {REPLICAS_MAX} replicas")]
    TooManyCoordinators(usize),
    /// Too many places to enrol.
    #[error("--enroll is given {0} times; a coordinator has at most {REPLICAS_MAX} replicas")]
    TooManyEnrolments(usize),
    /// Too many roots.
    #[error("--root and --shared-root are given {0} times, at most {ROOTS_MAX} are possible")]
    TooManyRoots(usize),
    /// The limits cannot be read.
    #[error("--thresholds {}: cannot be read", path.display())]
    ThresholdsUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The limits are no limits.
    #[error("--thresholds {}: {why}", path.display())]
    Thresholds {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: ThresholdsError,
    },
    /// A path given twice would be counted twice.
    #[error("the storage root {0} is given twice")]
    DuplicateRoot(AbsolutePath),
    /// A volume would lie in two roots.
    #[error("the storage root {inner} lies below the storage root {outer}")]
    NestedRoots {
        /// The one above.
        outer: AbsolutePath,
        /// The one below.
        inner: AbsolutePath,
    },
    /// A volume would be a root's and a pod's.
    #[error("--pods {pods} and the storage root {root} do not lie apart")]
    PodsNotApart {
        /// What `--pods` says.
        pods: AbsolutePath,
        /// The root.
        root: AbsolutePath,
    },
    /// Nobody could reach the agent.
    #[error("--host-ip with the port of --listen is no address, and --advertise is not given: {0}")]
    NoAddress(Malformed),
    /// The certificates cannot be used.
    #[error("--certs: {0}")]
    Tls(#[from] TlsError),
    /// The certificate is somebody else's.
    #[error("--node is {node}, but the certificate in {} is that of {}", certs.display(), identity.san())]
    ForeignCertificate {
        /// What `--node` says.
        node: NodeName,
        /// Whose certificate it is.
        identity: Identity,
        /// Where it was read.
        certs: PathBuf,
    },
    /// No boot id, no beats: fencing must know which boot it fences.
    #[error("cannot read the boot id from {}: {why}; --boot-id-file names another file", file.display())]
    BootId {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Config {
    /// From when on a disk's signals count.
    pub fn thresholds(&self) -> Result<Thresholds, ConfigError> {
        let Some(path) = &self.thresholds else { return Ok(Thresholds::default()) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::ThresholdsUnreadable { path: path.clone(), source })?;
        Thresholds::from_json(&text).map_err(|why| ConfigError::Thresholds { path: path.clone(), why })
    }

    /// All storage roots, or what is wrong with them.
    pub fn storage_roots(&self) -> Result<Vec<StorageRoot>, ConfigError> {
        let local = self.roots.iter().map(|flag| flag.root(false));
        let roots: Vec<_> = local.chain(self.shared_roots.iter().map(|flag| flag.root(true))).collect();
        if roots.len() > ROOTS_MAX {
            return Err(ConfigError::TooManyRoots(roots.len()));
        }
        for (at, root) in roots.iter().enumerate() {
            for other in &roots[..at] {
                check_apart(&root.path, &other.path)?;
            }
            if let Some(pods) = &self.pods {
                let (pods, root) = (pods.clone(), root.path.clone());
                check_apart(&pods, &root).map_err(|_| ConfigError::PodsNotApart { pods, root })?;
            }
        }
        Ok(roots)
    }

    /// Checks what clap cannot.
    pub fn check_coordinators(&self) -> Result<(), ConfigError> {
        match (self.coordinators.len(), self.enroll.len()) {
            (count, _) if count > REPLICAS_MAX => Err(ConfigError::TooManyCoordinators(count)),
            (_, count) if count > REPLICAS_MAX => Err(ConfigError::TooManyEnrolments(count)),
            _ => Ok(()),
        }
    }

    /// Where others reach this agent.
    pub fn advertised(&self) -> Result<Address, ConfigError> {
        match (&self.advertise, self.host_ip) {
            (Some(address), _) => Ok(address.clone()),
            (None, host_ip) => {
                let host = host_ip.unwrap_or_else(|| self.listen.ip());
                let address = SocketAddr::new(host, self.listen.port()).to_string();
                address.parse().map_err(ConfigError::NoAddress)
            }
        }
    }

    /// The boot in which this agent runs.
    pub fn boot_id(&self) -> Result<BootId, ConfigError> {
        let default = || self.proc_root.join("sys/kernel/random/boot_id");
        let file = self.boot_id_file.clone().unwrap_or_else(default);
        let read = std::fs::read_to_string(&file).map_err(|error| error.to_string());
        read.and_then(|text| text.trim().parse().map_err(|malformed: Malformed| malformed.to_string()))
            .map_err(|why| ConfigError::BootId { file, why })
    }
}

impl RootFlag {
    fn root(&self, shared: bool) -> StorageRoot {
        StorageRoot { class: self.class.clone(), path: self.path.clone(), depth: self.depth, shared }
    }
}

impl FromStr for RootFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (class, path) =
            text.split_once('=').ok_or("expected CLASS=PATH, e.g. local-path=/srv/volumes")?;
        if class.is_empty() || class.len() > 253 || class.chars().any(char::is_control) {
            return Err("the storage class before `=` must be the name of a StorageClass".to_owned());
        }
        let (path, depth) = match path.strip_suffix("/*") {
            Some(path) => (path, DEPTH_MAX),
            None => (path, 1),
        };
        if path.contains('*') {
            return Err("a `*` stands at the end of the path only, and once, as in /srv/volumes/*".to_owned());
        }
        Ok(Self { class: class.to_owned(), path: folder(path)?, depth })
    }
}

/// A folder's path; a slash at its end is forgiven.
fn folder(path: &str) -> Result<AbsolutePath, String> {
    let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
    path.parse().map_err(|malformed: Malformed| malformed.to_string())
}

fn check_apart(one: &AbsolutePath, other: &AbsolutePath) -> Result<(), ConfigError> {
    let (a, b) = (Path::new(one.as_str()), Path::new(other.as_str()));
    if a == b {
        return Err(ConfigError::DuplicateRoot(one.clone()));
    }
    let (outer, inner) = if a.starts_with(b) { (other, one) } else { (one, other) };
    if Path::new(inner.as_str()).starts_with(outer.as_str()) {
        return Err(ConfigError::NestedRoots { outer: outer.clone(), inner: inner.clone() });
    }
    Ok(())
}

fn millis<const LEAST: u64, const MOST: u64>(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(value) if (LEAST..=MOST).contains(&value) => Ok(Duration::from_millis(value)),
        _ => Err(format!("expected whole milliseconds, {LEAST} to {MOST}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &[&str]) -> Result<Config, clap::Error> {
        let base = ["agent", "--node", "n1", "--coordinator", "c:7443", "--advertise", "10.0.0.1:7444"];
        Config::try_parse_from(base.iter().chain(extra))
    }

    #[test]
    fn the_flags_of_the_manual_are_understood() {
        let config = parse(&[
            "--root",
            "local-path=/srv/a/",
            "--shared-root",
            "nfs=/srv/b",
            "--root",
            "hostpath=/srv/c/*",
            "--smart-period-ms",
            "1000",
        ])
        .expect("parsed");
        let roots = config.storage_roots().expect("roots");
        let shown: Vec<_> =
            roots.iter().map(|r| (r.class.as_str(), r.path.as_str(), r.depth, r.shared)).collect();
        let expected = [
            ("local-path", "/srv/a", 1, false),
            ("hostpath", "/srv/c", 2, false),
            ("nfs", "/srv/b", 1, true),
        ];
        assert_eq!(shown, expected);
        assert_eq!(config.smart_period_ms, Duration::from_secs(1));
    }

    #[test]
    fn nonsense_is_refused_by_the_flag_that_holds_it() {
        for flags in [
            ["--root", "/srv/a"],
            ["--root", "=/srv/a"],
            ["--root", "class=srv"],
            ["--root", "class=/srv/../etc"],
            ["--root", "class=/"],
            ["--root", "class=/*"],
            ["--root", "class=/srv/*/*"],
            ["--root", "class=/srv/*/b"],
            ["--pods", "var/lib/kubelet/pods"],
            ["--pods", "/var/../pods"],
            ["--pods", "/"],
            ["--smart-period-ms", "5"],
            ["--listen", "nowhere"],
            ["--node", "No_Name"],
            ["--unknown", "x"],
        ] {
            let message = parse(&flags).expect_err(flags[1]).to_string();
            assert!(message.contains(flags[0]), "{flags:?}: {message}");
        }
    }

    #[test]
    fn roots_must_lie_apart() {
        let error = |paths: [&str; 2]| {
            let flags = [format!("a={}", paths[0]), format!("b={}", paths[1])];
            parse(&["--root", &flags[0], "--shared-root", &flags[1]]).expect("parsed").storage_roots()
        };
        assert!(matches!(error(["/srv/a", "/srv/a/"]), Err(ConfigError::DuplicateRoot(_))));
        assert!(matches!(error(["/srv/a/b", "/srv/a"]), Err(ConfigError::NestedRoots { .. })));
        assert!(matches!(error(["/srv/a", "/srv/a/b"]), Err(ConfigError::NestedRoots { .. })));
        assert!(error(["/srv/a", "/srv/ab"]).is_ok());
    }

    #[test]
    fn the_volumes_of_pods_lie_apart_from_every_root() {
        let roots = |pods: &str| {
            parse(&["--root", "a=/srv/a", "--root", "b=/srv/b/*", "--pods", pods])
                .expect("parsed")
                .storage_roots()
        };
        for pods in ["/srv/a", "/srv/a/pods", "/srv", "/srv/b/x/y"] {
            assert!(matches!(roots(pods), Err(ConfigError::PodsNotApart { .. })), "{pods}");
        }
        assert!(roots("/srv/pods").is_ok());
        assert_eq!(parse(&[]).expect("parsed").pods, None);
        let config = parse(&["--pods", "/var/lib/kubelet/pods/"]).expect("parsed");
        assert_eq!(config.pods.expect("given").as_str(), "/var/lib/kubelet/pods");
    }

    #[test]
    fn the_host_s_address_is_advertised_where_no_other_is_given() {
        let advertised = |flags: &[&str]| {
            let base = ["agent", "--node", "n1", "--coordinator", "c:7443"];
            let config = Config::try_parse_from(base.iter().chain(flags)).expect("parsed");
            config.advertised().map(|address| address.to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(advertised(&["--host-ip", "10.0.0.1"]).as_deref(), Ok("10.0.0.1:7444"));
        let flags = ["--host-ip", "fd00::1", "--listen", "[::]:7000"];
        assert_eq!(advertised(&flags).as_deref(), Ok("[fd00::1]:7000"));
        let flags = ["--host-ip", "10.0.0.1", "--advertise", "n1.example.com:1"];
        assert_eq!(advertised(&flags).as_deref(), Ok("n1.example.com:1"));
        assert!(advertised(&["--host-ip", "10.0.0.1", "--listen", "0.0.0.0:0"]).is_err());
    }

    #[test]
    fn only_so_many_replicas() {
        let many = parse(&["--coordinator", "d:1", "--coordinator", "e:1", "--coordinator", "f:1"]);
        assert!(many.expect("parsed").check_coordinators().is_err());
        let many = parse(&["--enroll", "c:1", "--enroll", "d:1", "--enroll", "e:1", "--enroll", "f:1"]);
        assert!(many.expect("parsed").check_coordinators().is_err());
    }

    #[test]
    fn certificates_come_from_files_or_from_enrolment() {
        assert!(parse(&["--enroll", "c:7445"]).is_ok());
        assert!(parse(&["--certs", "/etc/tls"]).is_ok());
        assert!(parse(&["--enroll", "c:7445", "--certs", "/etc/tls"]).is_err());
    }
}

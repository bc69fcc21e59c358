//! What a machine must have to hold a cluster, and what to do where it is missing.

use std::path::Path;
use std::process::Stdio;

use nix::unistd::Uid;
use somersault_test_support::world::command::tool;

/// Command, and Debian's package that has it.
const PROGRAMS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("nft", "nftables"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
];
/// So many of them, from the first one, are needed where there are no nodes.
const API_PROGRAMS: usize = 3;
/// Where distributions put the network plugins; Debian's place first.
const CNI_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
const CNI_PLUGINS: [&str; 3] = ["ptp", "host-local", "loopback"];

/// This machine cannot hold a cluster.
#[derive(Debug, thiserror::Error)]
#[error("this machine cannot hold a cluster:\n  {}", .0.join("\n  "))]
pub struct Missing(pub Vec<String>);

/// Looks for everything, and names all that is missing at once.
pub fn check() -> Result<(), Missing> {
    let mut missing: Vec<_> = no_namespaces().into_iter().collect();
    if missing.is_empty() && !Path::new("/dev/loop-control").exists() {
        missing.push("it has no loop devices: `modprobe loop`; in a container, --privileged".to_owned());
    }
    let mut packages = packages_of(&PROGRAMS);
    if cni_folder().is_none() {
        packages.push("containernetworking-plugins");
    }
    all(missing, packages)
}

/// The same for a cluster without nodes, which needs neither disks nor containers.
pub fn check_api() -> Result<(), Missing> {
    all(no_namespaces().into_iter().collect(), packages_of(&PROGRAMS[..API_PROGRAMS]))
}

fn no_namespaces() -> Option<String> {
    if !Uid::effective().is_root() {
        Some("it needs root, for loop devices, network namespaces and containers: use sudo".to_owned())
    } else if can_unshare() {
        None
    } else {
        Some("it may not make namespaces: in a container, start that one with --privileged".to_owned())
    }
}

fn packages_of(programs: &[(&'static str, &'static str)]) -> Vec<&'static str> {
    programs.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect()
}

fn all(mut missing: Vec<String>, mut packages: Vec<&str>) -> Result<(), Missing> {
    packages.dedup();
    if !packages.is_empty() {
        missing.push(format!("programs are missing: apt-get install {}", packages.join(" ")));
    }
    if missing.is_empty() { Ok(()) } else { Err(Missing(missing)) }
}

/// For tests: `true` when this machine can hold a cluster. Else it says that `test` is skipped and why; where
/// `CI` is set, nothing may be skipped.
///
/// # Panics
/// In CI, when something is missing.
pub fn usable_or_skip(test: &str) -> bool {
    run_or_skip(test, check())
}

/// The same for a cluster without nodes.
///
/// # Panics
/// In CI, when something is missing.
pub fn api_usable_or_skip(test: &str) -> bool {
    run_or_skip(test, check_api())
}

fn run_or_skip(test: &str, checked: Result<(), Missing>) -> bool {
    let Err(missing) = checked.and_then(|()| crate::parts::check()) else { return true };
    assert!(std::env::var_os("CI").is_none(), "{test} must run in CI, but {missing}");
    eprintln!("SKIPPED {test}: {missing}");
    false
}

/// Where the network plugins are.
pub fn cni_folder() -> Option<&'static str> {
    CNI_FOLDERS
        .into_iter()
        .find(|folder| CNI_PLUGINS.iter().all(|plugin| Path::new(folder).join(plugin).exists()))
}

/// Whether a program can be started.
pub fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

fn can_unshare() -> bool {
    tool("unshare")
        .args(["--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--mount-proc", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

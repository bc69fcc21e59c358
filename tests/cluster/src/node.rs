//! A node: its disks and configuration, written when the cluster is built, and its boot, from the inside.
//!
//! ```text
//!   /var                         system.ext4: images, containers, the kubelet's state, logs
//!   /opt/local-path-provisioner  data.ext4, or data.xfs on every second node: local volumes
//!   /mnt/network                 a folder that all nodes see: stands for network storage
//!   /run, /opt, /mnt             of this boot only
//! ```
//!
//! The disks are loop-mounted: the power cord takes the mounts away with the namespace, and the filesystem is
//! found after the next boot as a power failure left it.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use somersault_test_support::world::command::run;
use somersault_test_support::world::network::GATEWAY;
use somersault_test_support::world::node::{NodeSpec, settle_in};

use crate::addresses::{self, DNS_SERVICE, PODS};
use crate::cgroups;
use crate::cluster::TOOLBOX_IMAGE;
use crate::layout::Layout;
use crate::parts::Parts;
use crate::requirements::cni_folder;
use crate::supervisor::{Control, Program, supervise};

/// Apparent size of each disk, in bytes; images are sparse.
const DISK_BYTES: u64 = 8 << 30;
const SYSTEM_MOUNT: &str = "/var";
const DATA_MOUNT: &str = "/opt/local-path-provisioner";
const IMAGES_LOADED: &str = "/run/images-loaded";

/// What a node's first process needs to know beyond its [`NodeSpec`].
#[derive(Serialize, Deserialize)]
struct Boot {
    system: PathBuf,
    data: PathBuf,
    programs: Vec<Program>,
    control: PathBuf,
    socket: PathBuf,
}

/// Builds the node with this number: files and disks only.
pub fn build(layout: &Layout, parts: &Parts, number: u8) -> Result<()> {
    let name = addresses::node_name(number);
    let home = layout.node(&name);
    std::fs::create_dir_all(home.join("cni")).with_context(|| format!("creating {}", home.display()))?;
    let write = |file: &str, text: String| {
        std::fs::write(home.join(file), text).with_context(|| format!("writing {name}'s {file}"))
    };
    write("cni/10-pods.conflist", network_configuration(number))?;
    write("containerd.toml", containerd_configuration(layout, &name)?)?;
    write("kubelet.yaml", kubelet_configuration(layout, &name, number))?;
    let boot = Boot {
        system: home.join("system.ext4"),
        data: layout.data_disk(&name),
        programs: programs(layout, parts, &name, number),
        control: home.clone(),
        socket: layout.containerd_socket(&name),
    };
    write("boot.json", serde_json::to_string_pretty(&boot)?)?;
    make_disk(&boot.system)?;
    make_disk(&boot.data)?;
    specification(layout, &name, number).write(&spec_file(layout, &name))
}

/// Where the node's specification is; its path also tells the node's first process from all others.
pub fn spec_file(layout: &Layout, node: &str) -> PathBuf {
    layout.node(node).join("node.json")
}

/// The node's first process.
pub fn boot(spec_file: &Path) -> Result<Infallible> {
    let spec = NodeSpec::read(spec_file)?;
    let text = std::fs::read(spec_file.with_file_name("boot.json")).context("reading how to boot")?;
    let boot: Boot = serde_json::from_slice(&text).context("understanding how to boot")?;
    nix::unistd::sethostname(&spec.name).context("naming the node")?;
    // As systemd has it: pods that ask for mount propagation are refused otherwise.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
        .context("sharing mounts within the node")?;
    settle_in(&spec)?;
    forget_pods()?;
    for place in ["/run", "/opt"] {
        mount(Some("node"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .with_context(|| format!("mounting {place}"))?;
    }
    mount_disk(&boot.system, SYSTEM_MOUNT)?;
    mount_disk(&boot.data, DATA_MOUNT)?;
    furnish(&boot)?;
    supervise(boot.programs, &Control(boot.control))
}

/// A machine that boots has no interface of a pod. Ours keeps its network namespace: the kernel takes those of dead pods
/// away in its own time, and with an old one goes the route to the new pod of the same address.
fn forget_pods() -> Result<()> {
    for pod in pods_interfaces()? {
        // Gone meanwhile is as good.
        if let Err(error) = run("ip", ["link", "delete", &pod]) {
            ensure!(!pods_interfaces()?.contains(&pod), "{error:#}");
        }
    }
    Ok(())
}

fn pods_interfaces() -> Result<Vec<String>> {
    let links = run("ip", ["-oneline", "link", "show", "type", "veth"])?;
    Ok(links.lines().filter_map(pods_interface).map(str::to_owned).collect())
}

/// The interface's name, in a line of `ip -oneline link`, where it leads to a pod.
fn pods_interface(line: &str) -> Option<&str> {
    let name = line.split(": ").nth(1)?.split('@').next()?;
    name.starts_with("veth").then_some(name)
}

/// Gives the node's containerd every image that it does not have yet; then lets the kubelet start.
pub fn load_images(layout: &Layout, node: &str) -> Result<()> {
    let socket = layout.containerd_socket(node).display().to_string();
    crate::wait::until("containerd answers", std::time::Duration::from_secs(30), &[], || {
        run("ctr", ["-a", &socket, "version"]).map(Some)
    })?;
    let loaded = Path::new(SYSTEM_MOUNT).join("lib/somersault-images");
    std::fs::create_dir_all(&loaded).context("creating the list of images")?;
    for archive in archives(layout)? {
        let mark = loaded.join(archive.file_name().context("an archive without a name")?);
        // An archive that is newer than its mark has been built again.
        let is_loaded = mark.exists() && mark.metadata()?.modified()? >= archive.metadata()?.modified()?;
        if !is_loaded {
            import(&socket, &archive)?;
            std::fs::write(&mark, "").context("noting an image")?;
        }
    }
    std::fs::write(IMAGES_LOADED, "").context("letting the kubelet start")
}

/// Imports an archive into the containerd that listens there.
pub fn import(socket: &str, archive: &Path) -> Result<()> {
    let archive = archive.display().to_string();
    run("ctr", ["-a", socket, "-n", "k8s.io", "images", "import", &archive]).map(drop)
}

/// Gives an image that containerd has a second name.
pub fn tag(socket: &str, reference: &str, as_well: &str) -> Result<()> {
    run("ctr", ["-a", socket, "-n", "k8s.io", "images", "tag", "--force", reference, as_well]).map(drop)
}

/// Sends a signal to every process of the node that this runs on, but the node's first and this one.
pub fn signal_all(signal: Signal) -> Result<()> {
    // Outside a node the same call would reach the whole machine.
    let first = std::fs::read("/proc/1/cmdline").context("looking at the node's first process")?;
    let is_node = first.split(|byte| *byte == 0).skip(1).take(2).eq([b"inside".as_slice(), b"node"]);
    ensure!(is_node && Path::new("/proc/self").exists(), "this is no node");
    kill(Pid::from_raw(-1), signal).context("signalling every process")
}

fn archives(layout: &Layout) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(layout.images()).context("reading the folder of images")?;
    let mut archives = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "tar") {
            archives.push(path);
        }
    }
    archives.sort();
    Ok(archives)
}

fn specification(layout: &Layout, name: &str, number: u8) -> NodeSpec {
    NodeSpec {
        name: name.to_owned(),
        number,
        mount_point: PathBuf::from("/mnt"),
        folders: vec![(layout.network_folder(), "network".to_owned())],
        hidden: Vec::new(),
        boot_id: layout.node(name).join("boot_id"),
        log: layout.log(name),
        init: vec![layout.program().display().to_string(), "inside".to_owned(), "node".to_owned()],
    }
}

fn programs(layout: &Layout, parts: &Parts, name: &str, number: u8) -> Vec<Program> {
    let home = layout.node(name);
    let text = |path: PathBuf| path.display().to_string();
    let part = |program: &str, flags: Vec<String>| {
        let command =
            [text(parts.controlplane.clone()), program.to_owned()].into_iter().chain(flags).collect();
        Program::new(program, command, layout.log(&format!("{name}-{program}")))
    };
    let containerd = vec!["containerd".to_owned(), "-c".to_owned(), text(home.join("containerd.toml"))];
    let load = ["inside", "load-images", layout.name(), name].map(str::to_owned);
    let load = std::iter::once(text(layout.program())).chain(load).collect();
    let kubelet = vec![
        format!("--config={}", text(home.join("kubelet.yaml"))),
        format!("--kubeconfig={}", text(layout.kubeconfig_inside(name))),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", addresses::node_address(number)),
    ];
    let proxy = vec![
        format!("--kubeconfig={}", text(layout.kubeconfig_inside("kube-proxy"))),
        format!("--hostname-override={name}"),
        format!("--cluster-cidr={PODS}"),
        "--proxy-mode=nftables".to_owned(),
        // Connection tracking is the machine's; a namespace may not set its limits.
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-tcp-timeout-established=0".to_owned(),
        "--conntrack-tcp-timeout-close-wait=0".to_owned(),
        "--metrics-bind-address=127.0.0.1:10249".to_owned(),
        "--healthz-bind-address=127.0.0.1:10256".to_owned(),
    ];
    vec![
        Program::new("containerd", containerd, layout.log(&format!("{name}-containerd"))),
        Program::new("load-images", load, layout.log(&format!("{name}-load-images")))
            .after(layout.containerd_socket(name))
            .once(),
        part("kubelet", kubelet).after(PathBuf::from(IMAGES_LOADED)),
        part("kube-proxy", proxy),
    ]
}

fn network_configuration(number: u8) -> String {
    let pods = addresses::node_pods(number);
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/cni-addresses",
                "ranges": [[{"subnet": pods}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
    .to_string()
}

fn containerd_configuration(layout: &Layout, name: &str) -> Result<String> {
    let socket = layout.containerd_socket(name).display().to_string();
    let plugins = cni_folder().context("the network plugins are gone")?;
    let networks = layout.node(name).join("cni").display().to_string();
    // restrict_oom_score_adj: runc fails where CAP_SYS_RESOURCE is missing and it may not lower the score.
    Ok(format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{TOOLBOX_IMAGE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{networks}"
"#
    ))
}

fn kubelet_configuration(layout: &Layout, name: &str, number: u8) -> String {
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", layout.containerd_socket(name).display()),
        "address": addresses::node_address(number),
        "readOnlyPort": 0,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": layout.pki("ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        // A node is not alone on its machine: it must neither divide its control groups nor judge its memory.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups::of_node(layout.name(), name),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
    })
    .to_string()
}

fn make_disk(image: &Path) -> Result<()> {
    std::fs::File::create_new(image)
        .and_then(|file| file.set_len(DISK_BYTES))
        .with_context(|| format!("creating {}", image.display()))?;
    let is_xfs = image.extension().is_some_and(|end| end == "xfs");
    let image = image.display().to_string();
    if is_xfs {
        run("mkfs.xfs", ["-q", &image]).map(drop)
    } else {
        // Tables are made while nobody waits: the image is sparse and reads as zeros anyway.
        run("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", &image]).map(drop)
    }
}

fn mount_disk(image: &Path, place: &str) -> Result<()> {
    std::fs::create_dir_all(place).with_context(|| format!("creating {place}"))?;
    run("mount", ["-o", "loop", &image.display().to_string(), place]).map(drop)
}

/// What programs expect of an installed system and find missing on a new disk.
fn furnish(boot: &Boot) -> Result<()> {
    for folder in ["lib/kubelet", "log/pods", "log/containers", "tmp"] {
        let folder = Path::new(SYSTEM_MOUNT).join(folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let run_link = Path::new(SYSTEM_MOUNT).join("run");
    if !run_link.exists() {
        std::os::unix::fs::symlink("/run", &run_link).context("linking /var/run")?;
    }
    // The last boot's, which nobody serves.
    match std::fs::remove_file(&boot.socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("removing an old socket");
        }
        _ => {}
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forwarding packets to pods")?;
    run("ip", ["link", "set", "lo", "up"])?;
    run("ip", ["route", "replace", "default", "via", GATEWAY]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_interface_is_told_from_the_nodes_own() {
        let pod = "5: veth1a2b3c4d@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc noqueue state UP";
        assert_eq!(pods_interface(pod), Some("veth1a2b3c4d"));
        assert_eq!(pods_interface("3: eth0@if7: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500"), None);
        assert_eq!(pods_interface(""), None);
    }
}

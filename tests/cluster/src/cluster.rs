//! A cluster, as tests and people use it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use somersault_test_support::world::network;

use crate::addresses::{NODES_MAX, node_name};
use crate::bmc::Fault;
use crate::image::Image;
use crate::layout::Layout;
use crate::parts::{self, Parts};
use crate::supervisor::{Control, Program};
use crate::wait::{Log, until};
use crate::{cgroups, control_plane, node, pki, power, requirements, world};

/// Image with the programs that pods of tests need: `pause`, `append FILE`.
pub const TOOLBOX_IMAGE: &str = "docker.io/somersault/toolbox:1";
/// The apiserver is ready about 5 s after its start on an idle machine of two cores.
const API_DEADLINE: Duration = Duration::from_secs(90);
/// A node is Ready about 10 s after its power came on.
const READY_DEADLINE: Duration = Duration::from_mins(2);
/// Stopping a program is a signal and a look.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(10);

/// How to build a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name; clusters of different names do not see each other.
    pub name: String,
    /// Number of nodes, 1 to 9. Each takes about 150 MB.
    pub nodes: u8,
    /// Whether it dies with the thread that called [`Cluster::up`], and ends with the [`Cluster`].
    pub tied: bool,
    /// The program `somersault-cluster`, which becomes the first process of the world and the nodes.
    pub program: PathBuf,
}

/// How to build a cluster of an etcd and a kube-apiserver alone: for questions about objects, of which it can hold
/// more than any number of nodes here could stand for. Nobody controls them: what a controller would make of an object
/// is up to the caller.
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// See [`Options::name`].
    pub name: String,
    /// See [`Options::tied`].
    pub tied: bool,
    /// See [`Options::program`].
    pub program: PathBuf,
    /// Whose requests are written to the log `audit`, as a policy file of the apiserver says it.
    pub audit_policy: String,
}

/// A cluster that is up.
pub struct Cluster {
    layout: Layout,
    parts: Parts,
    tied: bool,
}

impl Cluster {
    /// Builds a cluster and waits until its nodes are Ready. Whatever an earlier one of the same name has left
    /// is removed; one that is still up is an error.
    pub fn up(options: &Options) -> Result<Self> {
        requirements::check()?;
        ensure!((1..=NODES_MAX).contains(&options.nodes), "a cluster has 1 to {NODES_MAX} nodes");
        Self::raise(&options.name, options.tied, |cluster| cluster.build(options))
    }

    /// Builds a cluster without nodes and controllers, and waits until its apiserver is ready; like [`Cluster::up`]
    /// in all else.
    pub fn up_api(options: &ApiOptions) -> Result<Self> {
        requirements::check_api()?;
        Self::raise(&options.name, options.tied, |cluster| cluster.build_api(options))
    }

    fn raise(name: &str, tied: bool, build: impl FnOnce(&Self) -> Result<()>) -> Result<Self> {
        let layout = Layout::of(name)?;
        if world::init(&layout)?.is_some() {
            bail!("cluster {} is up already; `down` ends it", layout.name());
        }
        let parts = parts::ensure()?;
        remove_files(&layout)?;
        let cluster = Self { layout, parts, tied };
        match build(&cluster) {
            Ok(()) => Ok(cluster),
            Err(error) => {
                // The logs' ends are in the error already.
                if let Err(undo) = cluster.remove() {
                    eprintln!("cluster {name} is not gone: {undo:#}");
                }
                Err(error)
            }
        }
    }

    /// The cluster of this name, which is up.
    pub fn attach(name: &str) -> Result<Self> {
        let layout = Layout::of(name)?;
        world::init(&layout)?.with_context(|| format!("cluster {name} is not up"))?;
        Ok(Self { layout, parts: parts::ensure()?, tied: false })
    }

    /// Ends the cluster of this name, and removes everything that it was made of. It need not be up.
    pub fn down(name: &str) -> Result<()> {
        remove(&Layout::of(name)?)
    }

    /// Its files.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// For `KUBECONFIG`, on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// A `kubectl` for this cluster.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.parts.controlplane);
        command.arg("kubectl").env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Runs `kubectl` to its end, and returns what it printed.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl().args(arguments).output().context("starting kubectl")?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// An object, as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ask(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// Applies manifests.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        let file = self.layout.root().join("apply.yaml");
        std::fs::write(&file, manifests).with_context(|| format!("writing {}", file.display()))?;
        self.ask(&["apply", "-f", &file.display().to_string()]).map(drop)
    }

    /// Kills every process of a node at once; returns when none is left.
    pub fn power_off(&self, node: &str) -> Result<()> {
        self.check_node(node)?;
        power::off(&self.layout, node)
    }

    /// Boots a node; returns at once. Nothing happens when it is on.
    pub fn power_on(&self, node: &str) -> Result<()> {
        self.check_node(node)?;
        if self.is_on(node)? {
            return Ok(());
        }
        power::prepare(&self.layout, node)?;
        self.in_world(&["power-on", self.layout.name(), node])
    }

    /// Whether a node has power.
    pub fn is_on(&self, node: &str) -> Result<bool> {
        self.check_node(node)?;
        power::is_on(&self.layout, node)
    }

    /// From now on the node's management controller misbehaves so; with `None` it behaves. One that cannot be reached at
    /// all is `stop_program(None, "bmc")`.
    pub fn bmc_fault(&self, node: &str, fault: Option<Fault>) -> Result<()> {
        self.check_node(node)?;
        Fault::set(&self.layout, node, fault)
    }

    /// Pulls a node's network plug: packets vanish, and no connection is told.
    pub fn cut(&self, node: &str) -> Result<()> {
        self.check_node(node)?;
        self.in_world(&["cut", node])
    }

    /// Puts it back.
    pub fn mend(&self, node: &str) -> Result<()> {
        self.check_node(node)?;
        self.in_world(&["mend", node])
    }

    /// Whether the node's network plug is in.
    pub fn is_plugged(&self, node: &str) -> Result<bool> {
        let init = world::init(&self.layout)?.context("the cluster is not up any more")?;
        let link = network::plug(node);
        let output = world::nsenter(init)
            .args(["ip", "-json", "link", "show", "dev", &link])
            .output()
            .context("starting nsenter")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "looking at {link}: {}", text.trim());
        let links: Value = serde_json::from_slice(&output.stdout).context("understanding ip")?;
        let flags = links[0]["flags"].as_array().with_context(|| format!("{link} without flags"))?;
        Ok(flags.iter().any(|flag| flag == "UP"))
    }

    /// Stops every process of a node, as a hypervisor that pauses a machine does; they hold what they hold.
    pub fn freeze(&self, node: &str) -> Result<()> {
        let init = self.node_init(node)?;
        self.on_node(node, &["freeze"])?;
        kill(init, Signal::SIGSTOP).context("stopping the node's first process")
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self, node: &str) -> Result<()> {
        kill(self.node_init(node)?, Signal::SIGCONT).context("waking the node's first process")?;
        self.on_node(node, &["freeze", "--thaw"])
    }

    /// Kills a program of a node (`kubelet`, `containerd`, `kube-proxy`), or with `None` of the control plane
    /// (`kube-apiserver`, …), and keeps it from running.
    pub fn stop_program(&self, node: Option<&str>, program: &str) -> Result<()> {
        let control = self.control(node)?;
        control.hold(program)?;
        until(&format!("{program} has ended"), PROGRAM_DEADLINE, &[], || {
            Ok((!control.is_running(program)).then_some(()))
        })
    }

    /// Lets it run again.
    pub fn start_program(&self, node: Option<&str>, program: &str) -> Result<()> {
        self.control(node)?.release(program)
    }

    /// A path on a node that is on, as this machine's programs can open it.
    pub fn path_on(&self, node: &str, path: &str) -> Result<PathBuf> {
        let init = self.node_init(node)?;
        Ok(PathBuf::from(format!("/proc/{init}/root")).join(path.trim_start_matches('/')))
    }

    /// A command that runs a program of this machine on a node, in all of the node's namespaces.
    pub fn command_on(&self, node: &str) -> Result<Command> {
        Ok(world::nsenter(self.node_init(node)?))
    }

    /// Gives every node an image archive, now where it has power, else at its next boot.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let name = archive.file_stem().context("an archive without a name")?;
        let kept = self.layout.images().join(name).with_extension("tar");
        std::fs::copy(archive, &kept).with_context(|| format!("copying {}", archive.display()))?;
        for node in self.layout.nodes() {
            if self.is_on(&node)? {
                node::import(&self.layout.containerd_socket(&node).display().to_string(), &kept)?;
            }
        }
        Ok(())
    }

    /// Gives an image that every node has a second name, which is another image to Kubernetes. Every node must have power.
    pub fn tag_image(&self, reference: &str, as_well: &str) -> Result<()> {
        self.layout.nodes().iter().try_for_each(|node| {
            node::tag(&self.layout.containerd_socket(node).display().to_string(), reference, as_well)
        })
    }

    /// Waits until the node is Ready, by a kubelet of its present boot.
    pub fn wait_ready(&self, node: &str) -> Result<()> {
        let boot_id = self.layout.node(node).join("boot_id");
        let logs = ["", "-containerd", "-load-images", "-kubelet"]
            .map(|program| Log(self.layout.log(&format!("{node}{program}"))));
        until(&format!("{node} is Ready"), READY_DEADLINE, &logs, || {
            let object = self.get(&["node", node])?;
            let boot_id = std::fs::read_to_string(&boot_id)?;
            let is_this_boot = object["status"]["nodeInfo"]["bootID"] == *boot_id.trim();
            let is_ready = condition(&object, "Ready") == Some("True");
            Ok((is_this_boot && is_ready).then_some(()))
        })
    }

    /// For people: what is on, what is plugged in, what Kubernetes says.
    pub fn status(&self) -> Result<String> {
        let mut lines = vec![format!("export KUBECONFIG={}", self.kubeconfig().display())];
        for node in self.layout.nodes() {
            let power = if self.is_on(&node)? { "on" } else { "off" };
            let says = match self.get(&["node", &node]) {
                Ok(object) => format!("Ready={}", condition(&object, "Ready").unwrap_or("?")),
                Err(error) => format!("{error:#}"),
            };
            let plug = if self.is_plugged(&node)? { "in" } else { "out" };
            lines.push(format!("{node}  power {power:<3}  plug {plug:<3}  {says}"));
        }
        Ok(lines.join("\n"))
    }

    fn build(&self, options: &Options) -> Result<()> {
        let began = Instant::now();
        let layout = &self.layout;
        self.make_home(&options.program)?;
        self.toolbox_image().write(&layout.images().join("toolbox.tar"))?;
        let names: Vec<_> = (1..=options.nodes).map(node_name).collect();
        pki::create(layout, &names)?;
        let programs = control_plane::prepare(layout, &self.parts)?;
        self.write_programs(&programs)?;
        (1..=options.nodes).try_for_each(|number| node::build(layout, &self.parts, number))?;

        self.start_world(options.tied)?;
        names.iter().try_for_each(|node| self.power_on(node))?;
        let logs = self.wait_api()?;
        until("the first objects are there", API_DEADLINE, &logs, || {
            self.apply(include_str!("../manifests/cluster.yaml")).map(Some)
        })?;
        names.iter().try_for_each(|node| self.wait_ready(node))?;
        self.wait_accounts()?;
        self.wait_settled(&programs)?;
        eprintln!("== {} nodes Ready after {:.1} s", names.len(), began.elapsed().as_secs_f32());
        Ok(())
    }

    fn build_api(&self, options: &ApiOptions) -> Result<()> {
        self.make_home(&options.program)?;
        pki::create(&self.layout, &[])?;
        let programs = control_plane::prepare_api(&self.layout, &self.parts, &options.audit_policy)?;
        self.write_programs(&programs)?;
        self.start_world(options.tied)?;
        self.wait_api()?;
        self.wait_settled(&programs)
    }

    /// The folders, and the program that becomes the world's first process.
    fn make_home(&self, program: &Path) -> Result<()> {
        let layout = &self.layout;
        for folder in [layout.images(), layout.network_folder(), layout.logs()] {
            std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        copy_program(program, &layout.program())
    }

    fn write_programs(&self, programs: &[Program]) -> Result<()> {
        std::fs::write(self.layout.control_plane("programs.json"), serde_json::to_vec(programs)?)
            .context("writing what to run")
    }

    fn start_world(&self, tied: bool) -> Result<()> {
        let layout = &self.layout;
        let port = world::start(layout, tied)?;
        pki::write_kubeconfig(layout, &layout.kubeconfig(), "admin", &format!("https://127.0.0.1:{port}"))?;
        give_to_caller(&layout.kubeconfig())
    }

    /// Returns the logs that tell why it takes long.
    fn wait_api(&self) -> Result<[Log; 2]> {
        let logs = ["etcd", "kube-apiserver"].map(|part| Log(self.layout.log(part)));
        until("the apiserver is ready", API_DEADLINE, &logs, || {
            self.ask(&["get", "--raw=/readyz"]).map(Some)
        })?;
        Ok(logs)
    }

    fn wait_settled(&self, programs: &[Program]) -> Result<()> {
        let control = self.control(None)?;
        programs.iter().try_for_each(|Program { name, log, .. }| {
            until(&format!("{name} runs"), API_DEADLINE, &[Log(log.clone())], || {
                Ok(control.is_settled(name).then_some(()))
            })
        })
    }

    /// A pod is refused as long as its namespace's account does not exist.
    fn wait_accounts(&self) -> Result<()> {
        let logs = [Log(self.layout.log("kube-controller-manager"))];
        for namespace in ["default", control_plane::PROVISIONER_NAMESPACE] {
            until("service accounts exist", API_DEADLINE, &logs, || {
                self.get(&["-n", namespace, "serviceaccount", "default"]).map(Some)
            })?;
        }
        Ok(())
    }

    fn toolbox_image(&self) -> Image {
        Image {
            reference: TOOLBOX_IMAGE.to_owned(),
            program: self.parts.toolbox.clone(),
            names: ["toolbox", "volume"].map(str::to_owned).to_vec(),
            default_arguments: vec!["pause".to_owned()],
        }
    }

    /// First process of a node that is on.
    fn node_init(&self, node: &str) -> Result<Pid> {
        self.check_node(node)?;
        world::node_init(&self.layout, node)?.with_context(|| format!("{node} is off"))
    }

    fn on_node(&self, node: &str, command: &[&str]) -> Result<()> {
        world::enter(self.node_init(node)?, &self.layout, command).with_context(|| format!("on {node}"))
    }

    fn in_world(&self, command: &[&str]) -> Result<()> {
        let init = world::init(&self.layout)?;
        world::enter(init.context("the cluster is not up any more")?, &self.layout, command)
    }

    fn check_node(&self, node: &str) -> Result<()> {
        let nodes = self.layout.nodes();
        ensure!(
            nodes.iter().any(|name| name == node),
            "there is no node {node:?}, only {}",
            nodes.join(", ")
        );
        Ok(())
    }

    fn control(&self, node: Option<&str>) -> Result<Control> {
        let Some(node) = node else { return Ok(Control(self.layout.control_plane(""))) };
        self.check_node(node)?;
        Ok(Control(self.layout.node(node)))
    }

    fn remove(&self) -> Result<()> {
        remove(&self.layout)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.tied
            && let Err(error) = self.remove()
        {
            eprintln!("cluster {} is not gone: {error:#}", self.layout.name());
        }
    }
}

/// Status of an object's condition of this type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

fn remove(layout: &Layout) -> Result<()> {
    world::end(layout)?;
    remove_files(layout)
}

fn remove_files(layout: &Layout) -> Result<()> {
    cgroups::remove_cluster(layout.name())?;
    match std::fs::remove_dir_all(layout.root()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", layout.root().display()))
        }
        _ => Ok(()),
    }
}

/// Whoever called us by sudo wants to read the kubeconfig.
fn give_to_caller(file: &Path) -> Result<()> {
    let id = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    std::os::unix::fs::chown(file, id("SUDO_UID"), id("SUDO_GID"))
        .with_context(|| format!("giving {} away", file.display()))
}

/// The program as it is now: a cluster outlives rebuilds of it.
fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a program without a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    std::fs::copy(from, to).map(drop).with_context(|| {
        format!("copying {} (build it: cargo build -p somersault-test-cluster)", from.display())
    })
}

//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use somersault_coordinator::windows::Window;
use somersault_coordinator_core::migration::GuestProbe;
use somersault_coordinator_core::names::NodeName;
use somersault_crd::evacuation::Day;

use crate::exit;

mod names;
mod storage;

pub use names::{Named, ObjectRef, Target};
pub use storage::{DisksArgs, TopArgs, VolumesArgs};

/// Virtual machines on node-local disks: what would become of them, what becomes of them, and moving them.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-somersault",
    bin_name = "kubectl somersault",
    version,
    after_help = exit::HELP,
    arg_required_else_help = true,
    subcommand_required = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command knows.
#[derive(Debug, Args)]
pub struct Global {
    /// A folder of manifests (`dir:PATH`) instead of an API server, as the coordinator's own `--cluster dir:PATH`
    #[arg(long, env = "SOMERSAULT_CLUSTER", global = true, value_name = "dir:PATH")]
    pub cluster: Option<ClusterAddress>,
    /// The kubeconfig; without it KUBECONFIG, then `~/.kube/config`, then, in a pod, its account
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// Its context; without it the current one
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "cluster")]
    pub context: Option<String>,
    /// Namespace; commands that list look into every namespace without it, the others into the context's
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How to print the answer
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// How to print an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For machines
    Json,
}

/// Where a cluster is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterAddress {
    /// A folder of manifests.
    Directory(PathBuf),
}

impl FromStr for ClusterAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("dir:") {
            Some("") => Err("a path must follow `dir:`".to_owned()),
            Some(path) => Ok(Self::Directory(path.into())),
            None => Err("must be `dir:PATH`, a folder of manifests".to_owned()),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Who is where: nodes with their state and proof, VMs, volumes, migrations
    Status(StatusArgs),
    /// Would each VM survive the death of its node: how, how soon, what is missing, what to do
    #[command(after_help = FROM_HELP)]
    Report(SourceArgs),
    /// What would happen if a node died: to one VM, or to every VM of a node, and because of which disk
    #[command(after_help = FROM_HELP)]
    Explain(ExplainArgs),
    /// Every physical disk: how well it is and why, what is on it, how old its agent's last word is; the worst first
    Disks(DisksArgs),
    /// Every local volume: what it takes of what it asks; how far requests go beyond each storage root; folders that no
    /// volume names
    Volumes(VolumesArgs),
    /// What takes most now, what grows (by a second look), and how busy each node is
    Top(TopArgs),
    /// Move the local disks of a VM, or a claim that no VM uses; the claims keep their names
    Migrate(MigrateArgs),
    /// Move every local volume off a node, or off one of its disks
    Evacuate(EvacuateArgs),
    /// End a migration or an evacuation; what has not been swapped yet is put back as it was (old volumes stay on Retain)
    Cancel(ObjectArgs),
    /// Let a migration or an evacuation that has copied ahead stop the VMs and finish
    Proceed(ObjectArgs),
    /// Remove old volumes of migrations that succeeded a while ago, objects and folders: shows them first, and asks
    Cleanup(CleanupArgs),
    /// Give a folder that no volume names to the claim that lost it (a disk in another machine, a node with a new name);
    /// without a folder, list them
    Adopt(AdoptArgs),
    /// Give your word that nothing on a node runs or writes any more
    Attest(AttestArgs),
    /// End a storm hold: nodes that are still silent are then judged one by one
    ReleaseHold(ReleaseHoldArgs),
    /// What becomes, or became, of the VMs of dead nodes
    Recoveries(SourceArgs),
    /// What a person has to do to bring a VM back, step by step
    Runbook(RunbookArgs),
    /// Is everything there, of one version, allowed to do what it must, and awake? Each failure with what to do
    Check(CheckArgs),
    /// Give back what was taken (start fields, taints, policies), then remove Somersault; volumes are never touched
    Uninstall(UninstallArgs),
}

const FROM_HELP: &str = "\
Without a cluster:
  kubectl get nodes,pv,pvc,sc,vm,vmi,pods -A -o yaml > dump.yaml
  kubectl somersault report --from dump.yaml
Add dv and wukongs to the list where they exist. A dump never leaves this machine.";

/// Where objects are read from.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Read this file or folder of manifests instead of the cluster; `-` is standard input
    // No conflict with --cluster: that one may come from the environment, where nobody thinks of it.
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// The coordinator's policy file; without it the cluster's `RecoveryPolicy` named default counts
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    /// Draw it again every second until interrupted; large clusters less often
    #[arg(short, long, conflicts_with = "from")]
    pub watch: bool,
    /// Also migrations and evacuations that ended more than a day ago
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A VM, as NAME or NAMESPACE/NAME, or a node; `vm/NAME` or `node/NAME` where one name is both
    #[arg(value_name = "VM|NODE")]
    pub target: Target,
    #[command(flatten)]
    pub source: SourceArgs,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("subject").args(["vm", "claim"]).required(true)))]
#[command(group(clap::ArgGroup::new("destination").args(["to_node", "to_class"])))]
#[command(group(clap::ArgGroup::new("whereto").args(["to_node", "to_class", "live"]).multiple(true).required(true)))]
pub struct MigrateArgs {
    /// The VM whose local disks move together, as NAME or NAMESPACE/NAME
    pub vm: Option<Named>,
    /// A claim that no VM uses, as NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    pub claim: Option<Named>,
    /// To this node; the storage class stays
    #[arg(long, visible_alias = "target-node", value_name = "NODE")]
    pub to_node: Option<String>,
    /// To this storage class
    #[arg(long, value_name = "CLASS")]
    pub to_class: Option<String>,
    /// Disks on network storage too, from a storage root that nodes share or where kubelets mount them: the way back to local
    /// ones
    #[arg(long, requires = "to_class")]
    pub include_network_disks: bool,
    /// Copy while the VM runs and keep the copy fresh; `proceed` then stops the VM and finishes
    #[arg(long)]
    pub pre_copy_only: bool,
    /// Move the VM itself while it runs, by KubeVirt's own migration: for VMs with no disk on their node. Without a node
    /// KubeVirt chooses one
    #[arg(long, conflicts_with_all = ["claim", "to_class", "include_network_disks", "pre_copy_only", "probe", "unreadable"])]
    pub live: bool,
    /// Ask the guest this once it runs on its new disks, at its launcher pod: to accept a connection (`tcp:5432`), or to answer
    /// a GET without an error (`http:8080/healthz`), or to satisfy a Job of yours, the template of a `CronJob` of the VM's
    /// namespace with the label `somersault.novasphere.dev/probe=true` (`job:check-orders`). Unanswered for ten minutes, it is told of, and the old volumes are kept
    #[arg(long, value_name = "tcp:PORT|http:PORT[/PATH]|job:CRONJOB", conflicts_with = "claim")]
    pub probe: Option<GuestProbe>,
    /// What becomes of what the old disk cannot read, block by block, in a second try either: the copy fails and says where it
    /// is, or it has zeroes there and its status says where
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub unreadable: Unreadable,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// What becomes of what a disk cannot read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Unreadable {
    /// Nothing is moved
    #[default]
    Fail,
    /// What was there is lost to the guest
    Zeroes,
}

/// Waiting for what was asked.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Wait for the end, and show progress
    #[arg(long)]
    pub wait: bool,
    /// Stop waiting after this time (such as 90s or 2h); what was asked goes on
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub timeout: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let time: jiff::SignedDuration =
        text.parse().map_err(|_| "must be a time such as 90s, 10m or 2h".to_owned())?;
    Duration::try_from(time).map_err(|_| "must not be negative".to_owned())
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("destination").args(["to_node", "to_class"])))]
pub struct EvacuateArgs {
    /// The node to empty
    pub node: String,
    /// Only volumes on this physical disk of it, by the kernel's name
    #[arg(long, value_name = "NAME")]
    pub disk: Option<String>,
    /// To this node; without a destination to any node that fits, in the same storage class
    #[arg(long, value_name = "NODE")]
    pub to_node: Option<String>,
    /// To this storage class
    #[arg(long, value_name = "CLASS")]
    pub to_class: Option<String>,
    /// Stop each VM for its final copy at once, instead of copying ahead and waiting for `proceed`
    #[arg(long)]
    pub now: bool,
    /// Stop VMs for their final copies between these times of day only, such as 22:00-04:00; copies ahead until then
    #[arg(long, value_name = "HH:MM-HH:MM", conflicts_with = "now")]
    pub window: Option<TimesOfDay>,
    /// Days on which the window opens, such as Sat,Sun; every day where none is named
    #[arg(long, value_name = "DAYS", value_delimiter = ',', requires = "window", value_parser = day)]
    pub days: Vec<Day>,
    /// Time zone of the window, such as Europe/Berlin; UTC where none is named
    #[arg(long, value_name = "ZONE", requires = "window")]
    pub time_zone: Option<String>,
    /// Only show what would be moved (waits for the coordinator's plan, and leaves nothing behind)
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// From when to when, in hours and minutes of a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimesOfDay {
    /// When it opens.
    pub opens: String,
    /// When it closes; not after the other: on the next day.
    pub closes: String,
}

impl FromStr for TimesOfDay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (opens, closes) = text.split_once('-').ok_or("must be HH:MM-HH:MM, such as 22:00-04:00")?;
        let window = somersault_crd::evacuation::Window {
            opens: opens.to_owned(),
            closes: closes.to_owned(),
            ..Default::default()
        };
        Window::try_from(&window).map_err(|error| error.to_string())?;
        Ok(Self { opens: window.opens, closes: window.closes })
    }
}

fn day(text: &str) -> Result<Day, String> {
    serde_json::from_value(text.into()).map_err(|_| "must be Mon, Tue, Wed, Thu, Fri, Sat or Sun".to_owned())
}

#[derive(Debug, Args)]
pub struct ObjectArgs {
    /// `migration/NAME` or `evacuation/NAME`; a migration's may be NAMESPACE/NAME, with or without its kind before it
    #[arg(value_name = "KIND/NAME")]
    pub object: ObjectRef,
}

#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Of this migration only, as NAME or NAMESPACE/NAME
    #[arg(value_name = "MIGRATION")]
    pub migration: Option<Named>,
    /// Only old volumes on this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Keep those of migrations that ended within this time (such as 12h); 0s keeps none for that
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub older_than: Duration,
    /// Only show what would be removed, and what is kept for which reason
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// The folder, as it is listed
    #[arg(value_name = "NODE:FOLDER")]
    pub folder: Option<FolderOfNode>,
    /// The claim, as NAME or NAMESPACE/NAME; without it the one that the folder's name tells of
    #[arg(long, value_name = "NAME", requires = "folder")]
    pub claim: Option<Named>,
    /// Only show what would be done
    #[arg(long, requires = "folder")]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long, requires = "folder")]
    pub yes: bool,
}

/// A folder of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderOfNode {
    /// The node.
    pub node: NodeName,
    /// Absolute path there.
    pub path: String,
}

impl FromStr for FolderOfNode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((node, path)) if !node.is_empty() && path.starts_with('/') => {
                Ok(Self { node: node.into(), path: path.to_owned() })
            }
            _ => {
                Err("must be NODE:FOLDER, such as n2:/var/lib/rancher/k3s/storage/pvc-1_default_data"
                    .to_owned())
            }
        }
    }
}

#[derive(Debug, Args)]
pub struct AttestArgs {
    /// The node
    pub node: String,
    /// Do not ask; for scripts whose author has read what attesting implies
    #[arg(long)]
    pub yes: bool,
    /// Who gives the word; without it your user name in the cluster, or your login name for a folder
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

#[derive(Debug, Args)]
pub struct ReleaseHoldArgs {
    /// Who releases it; without it your user name in the cluster, or your login name for a folder
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

#[derive(Debug, Args)]
pub struct RunbookArgs {
    /// The VM, as NAME or NAMESPACE/NAME
    pub vm: Named,
    #[command(flatten)]
    pub source: SourceArgs,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Look again until nothing is wrong, for this time at most (5m where none is given)
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "5m",
          value_parser = duration)]
    pub wait: Option<Duration>,
}

// Each is a word of its own on the command line, and any may go with any.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Only show what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Go on although an incident or a migration is under way: its VMs are then left as they are
    #[arg(long)]
    pub force: bool,
    /// Remove the definitions too, and with them every Recovery, fence record and migration
    #[arg(long)]
    pub delete_crds: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn reads_times() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_mins(90)));
        assert!(duration("-1s").is_err());
        assert!(duration("soon").is_err());
    }

    #[test]
    fn reads_windows() {
        let read = "22:00-04:00".parse::<TimesOfDay>();
        assert_eq!(read, Ok(TimesOfDay { opens: "22:00".to_owned(), closes: "04:00".to_owned() }));
        for wrong in ["22:00", "22-4", "25:00-04:00", "22:00-", ""] {
            assert!(wrong.parse::<TimesOfDay>().is_err(), "{wrong}");
        }
        assert_eq!(day("Sat"), Ok(Day::Sat));
        assert!(day("Samstag").is_err());
    }

    #[test]
    fn reads_probes_and_says_what_is_wrong_with_them() {
        let read = |more: &[&str]| {
            let args = ["kubectl-somersault", "migrate", "--to-node", "n3"].iter().chain(more);
            match Cli::try_parse_from(args).map(|cli| cli.command) {
                Ok(Command::Migrate(args)) => Ok(args.probe.map(|probe| probe.to_string())),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.to_string()),
            }
        };
        assert_eq!(read(&["db"]), Ok(None));
        assert_eq!(read(&["db", "--probe", "tcp:5432"]), Ok(Some("tcp:5432".to_owned())));
        assert_eq!(read(&["db", "--probe", "http:80"]), Ok(Some("http:80/".to_owned())));
        assert_eq!(read(&["db", "--probe", "job:check"]), Ok(Some("job:check".to_owned())));
        for (wrong, told) in [
            ("5432", "must be tcp:PORT, http:PORT/PATH or job:CRONJOB"),
            ("tcp:0", "a number from 1 to 65535"),
            ("http:80/a b", "the path must begin with /"),
        ] {
            let error = read(&["db", "--probe", wrong]).expect_err("wrong");
            assert!(error.contains(told), "{wrong}: {error}");
        }
        assert!(read(&["--claim", "spare", "--probe", "tcp:22"]).is_err(), "a claim has no guest");
        assert!(read(&["db", "--live", "--probe", "tcp:22"]).is_err(), "nothing is asked after that");
    }

    #[test]
    fn reads_folders_of_nodes() {
        let read = "n2:/data/a:b".parse::<FolderOfNode>();
        assert_eq!(read, Ok(FolderOfNode { node: "n2".into(), path: "/data/a:b".to_owned() }));
        for wrong in ["n2", "n2:", ":/data", "n2:data", "/data"] {
            assert!(wrong.parse::<FolderOfNode>().is_err(), "{wrong}");
        }
    }
}

//! `kubectl somersault` on a real API server: what it reads, what it writes and in whose name, what it says to whom may
//! not, and that it takes itself away. No image is needed: a coordinator's words are written by hand.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use somersault_crd::VolumeMigrationStatus;
use somersault_crd::common::ObjectKey;
use somersault_crd::volume_migration::{DiskMove, NewVolume, Phase};
use somersault_test_cluster::{Cluster, Options, until, usable_or_skip};

const NAME: &str = "test-cli";
/// Custom resources go with their definitions within a second or two.
const DELETED_WITHIN: Duration = Duration::from_secs(30);
const KUBEVIRT: &str = include_str!("../../kubevirt/manifests/crds.yaml");
const OBJECTS: &str = include_str!("cli.yaml");
/// What somebody has said before.
const POLICY: &str = "{apiVersion: somersault.novasphere.dev/v1alpha1, kind: RecoveryPolicy, metadata: {name: default}, \
                      spec: {profile: Fast, storageClasses: {tin: Local}}}";
/// Stands for an answer in what `check` prints.
const ANSWER: &str = "<Network|Local>";
/// No machine behind it: an object to name as a destination.
const SECOND_NODE: &str = "{apiVersion: v1, kind: Node, metadata: {name: n2}}";

#[test]
fn the_command_line_serves_a_real_api_server() -> Result<()> {
    if !usable_or_skip("the_command_line_serves_a_real_api_server") {
        return Ok(());
    }
    let bed = Bed::up()?;
    bed.asks_before_anything_is_installed()?;
    bed.install()?;
    bed.tells_what_the_objects_say()?;
    bed.declares_a_class_and_nothing_else()?;
    bed.asks_for_a_migration_once()?;
    bed.gives_a_word_in_the_name_of_its_user()?;
    bed.tells_who_may_not()?;
    bed.checks()?;
    bed.goes_away()
}

struct Bed {
    cluster: Cluster,
    plugin: PathBuf,
}

/// What the program did.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn says(&self, words: &str) -> Result<()> {
        ensure!(self.out.contains(words) || self.err.contains(words), "it does not say {words:?}: {self:#?}");
        Ok(())
    }

    fn ends_with(&self, code: i32) -> Result<()> {
        ensure!(self.code == Some(code), "it does not end with {code}: {self:#?}");
        Ok(())
    }
}

impl Bed {
    fn up() -> Result<Self> {
        Cluster::down(NAME).context("removing what an earlier run has left")?;
        let program = built("somersault-cluster", "somersault-test-cluster")?;
        let plugin = built("kubectl-somersault", "kubectl-somersault")?;
        let cluster = Cluster::up(&Options { name: NAME.to_owned(), nodes: 1, tied: true, program })?;
        Ok(Self { cluster, plugin })
    }

    fn run(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = Command::new(&self.plugin);
        command.args(arguments).env("KUBECONFIG", self.cluster.kubeconfig()).env_remove("SOMERSAULT_CLUSTER");
        let output = command.output().context("starting kubectl-somersault")?;
        Ok(Ran {
            code: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let ran = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&ran.out).with_context(|| format!("no JSON: {ran:#?}"))
    }

    fn asks_before_anything_is_installed(&self) -> Result<()> {
        let ran = self.run(&["status"])?;
        ran.ends_with(0)?;
        ran.says("NoAgent (Ready)")?;
        ran.says("this cluster has no KubeVirt")?;
        ran.says("Somersault's definitions are not in this cluster")?;
        let ran = self.run(&["check"])?;
        ran.ends_with(1)?;
        ran.says("✗ the definitions are installed")
    }

    fn install(&self) -> Result<()> {
        let definitions = [env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds"].concat();
        for entry in std::fs::read_dir(&definitions).with_context(|| definitions.clone())? {
            let text = std::fs::read_to_string(entry?.path())?;
            if text.contains("kind: CustomResourceDefinition") {
                self.cluster.apply(&text)?;
            }
        }
        self.cluster.apply(KUBEVIRT)?;
        self.cluster.ask(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
        self.cluster.apply(OBJECTS)?;
        self.cluster.ask(&["wait", "--for=jsonpath={.status.phase}=Bound", "pvc/gold", "--timeout=30s"])?;
        let health = json!({
            "state": "AwaitingProof",
            "bootID": "boot-1",
            "proofsPossible": ["HumanAttested"],
            "fence": { "epoch": 3, "stage": "Declared", "bootID": "boot-1" },
        });
        self.patch_status(&["nodehealth", "n1"], &health)?;
        self.patch_status(&["nodehealth", "ghost"], &json!({ "state": "StormHold" }))?;
        self.patch_status(&["vmi", "db"], &json!({ "phase": "Running", "nodeName": "n1" }))?;
        let moved = DiskMove {
            claim: ObjectKey { namespace: "default".to_owned(), name: "db".to_owned() },
            old_volume: "pv-old".to_owned(),
            new_volume: NewVolume { name: "pv-db".to_owned(), ..NewVolume::default() },
            ..DiskMove::default()
        };
        let done = VolumeMigrationStatus {
            phase: Phase::Succeeded,
            epoch: 2,
            disks: vec![moved],
            ..VolumeMigrationStatus::default()
        };
        self.patch_status(&["volumemigration", "done"], &json!(done))
    }

    fn patch_status(&self, object: &[&str], status: &Value) -> Result<()> {
        let patch = json!({ "status": status }).to_string();
        let patch = ["--type=merge", "-p", &patch];
        // Of KubeVirt's kinds the instance has none.
        let subresource: &[&str] = if object[0] == "vmi" { &[] } else { &["--subresource=status"] };
        self.cluster.ask(&[&["patch"], object, subresource, &patch].concat()).map(drop)
    }

    fn tells_what_the_objects_say(&self) -> Result<()> {
        let status = self.json(&["status"])?;
        ensure!(status["coordinatorLeads"] == false, "{status:#}");
        ensure!(status["stormHold"] == "ghost", "{status:#}");
        ensure!(status["nodes"][1]["state"] == "AwaitingProof", "{status:#}");
        ensure!(status["vms"][0]["running"] == "in doubt (was Running)", "{status:#}");
        let explained = self.json(&["explain", "db"])?;
        ensure!(explained[0]["decision"] == "ManualRecovery", "{explained:#}");
        let report = self.json(&["report"])?;
        ensure!(report["vms"][0]["survives"] == "ByHand", "{report:#}");
        self.run(&["runbook", "db"])?.says("# Runbook: VM `default/db`")?;
        self.run(&["recoveries"])?.says("No VM had to be recovered")
    }

    /// The command that `check` prints, run by a shell as a person would: unanswered it is refused; answered it declares
    /// the class, and leaves what somebody has said in the policy with `kubectl apply`.
    fn declares_a_class_and_nothing_else(&self) -> Result<()> {
        let command = self.command_that_declares()?;
        ensure!(command.contains("kubectl create"), "there is no policy: {command}");
        ensure!(self.shell(&command).is_err(), "unanswered it is taken: {command}");
        self.shell(&command.replace(ANSWER, "Network"))?;
        let spec = self.cluster.get(&["recoverypolicy", "default"])?["spec"].take();
        ensure!(spec["storageClasses"] == json!({ "gold": "Network" }), "{spec:#}");
        self.cluster.ask(&["delete", "recoverypolicy", "default"])?;

        self.cluster.apply(POLICY)?;
        let command = self.command_that_declares()?;
        ensure!(command.contains("kubectl patch"), "there is a policy: {command}");
        ensure!(self.shell(&command).is_err(), "unanswered it is taken: {command}");
        self.shell(&command.replace(ANSWER, "Local"))?;
        let declared = json!({ "profile": "Fast", "storageClasses": { "tin": "Local", "gold": "Local" } });
        let spec = self.cluster.get(&["recoverypolicy", "default"])?["spec"].take();
        ensure!(spec == declared, "{spec:#}");
        self.cluster.apply(POLICY)?;
        let spec = self.cluster.get(&["recoverypolicy", "default"])?["spec"].take();
        ensure!(spec == declared, "what was declared does not outlive the next apply: {spec:#}");
        ensure!(self.command_that_declares().is_err(), "it asks for what was answered");
        self.cluster.ask(&["delete", "recoverypolicy", "default"]).map(drop)
    }

    /// What `check` says is to be pasted for the class `gold`.
    fn command_that_declares(&self) -> Result<String> {
        let answer = self.json(&["check"])?;
        let sections = answer["sections"].as_array().into_iter().flatten();
        let findings = sections.filter_map(|section| section["findings"].as_array()).flatten();
        let advice = findings
            .filter(|finding| finding["what"] == "the place of volumes of class gold is known")
            .find_map(|finding| finding["whatToDo"].as_str());
        let advice = advice.with_context(|| format!("class gold is not asked for: {answer:#}"))?;
        let (_, command) = advice.rsplit_once("then: ").context("no command")?;
        Ok(command.to_owned())
    }

    /// Runs a line as a person's shell does.
    fn shell(&self, line: &str) -> Result<()> {
        let kubectl = self.cluster.kubectl();
        let line = format!("kubectl() {{ {} kubectl \"$@\"; }}; {line}", kubectl.get_program().display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).env("KUBECONFIG", self.cluster.kubeconfig());
        let output = shell.output().context("starting sh")?;
        ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn asks_for_a_migration_once(&self) -> Result<()> {
        let ask = ["migrate", "db", "--to-class", "elsewhere"];
        self.run(&ask)?.says("there is no StorageClass elsewhere")?;
        let refused = self.run(&["migrate", "db", "--to-node", "n1"])?;
        refused.ends_with(4)?;
        refused.says("NothingToMove")?;
        // Nobody can copy off a dead node; and one to copy to has to be there.
        let ask = ["migrate", "db", "--to-node", "n2"];
        self.cluster.apply(SECOND_NODE)?;
        self.run(&ask)?.says("is dead, so nothing can be copied from it")?;
        self.patch_status(&["nodehealth", "n1"], &json!({ "state": "Healthy" }))?;
        self.run(&ask)?.ends_with(0)?;
        self.run(&ask)?.ends_with(4)?;
        self.patch_status(&["nodehealth", "n1"], &json!({ "state": "AwaitingProof" }))?;
        self.cluster.ask(&["delete", "node", "n2"])?;
        let ended = self.run(&["cancel", "migration/db-to-n2"])?;
        ended.ends_with(0)?;
        let object = self.cluster.get(&["volumemigration", "db-to-n2", "--show-managed-fields"])?;
        ensure!(object["spec"]["cancelled"] == true, "{object:#}");
        ensure!(object["metadata"]["managedFields"][0]["manager"] == "kubectl-somersault", "{object:#}");
        self.run(&["cancel", "migration/none"])?.ends_with(3)
    }

    fn gives_a_word_in_the_name_of_its_user(&self) -> Result<()> {
        self.run(&["attest", "n1"])?.ends_with(4)?;
        self.run(&["attest", "n1", "--yes"])?.ends_with(0)?;
        let health = self.cluster.get(&["nodehealth", "n1"])?;
        let word = &health["spec"]["attestation"];
        ensure!(word["bootID"] == "boot-1" && word["by"] == "admin" && word["at"].is_string(), "{health:#}");
        self.run(&["release-hold", "--by", "on-call"])?.ends_with(0)?;
        let policy = self.cluster.get(&["recoverypolicy", "default"])?;
        let word = policy["spec"]["holdRelease"].as_str().unwrap_or_default().to_owned();
        ensure!(word.ends_with(" by on-call (admin)"), "{policy:#}");
        self.run(&["release-hold"])?.ends_with(0)
    }

    /// A user of whom no role speaks: told what is missing, and that nothing was seen.
    fn tells_who_may_not(&self) -> Result<()> {
        let token = self.cluster.ask(&["create", "token", "nobody"])?;
        let file = self.cluster.layout().root().join("nobody.kubeconfig");
        std::fs::copy(self.cluster.kubeconfig(), &file)?;
        let file = file.display().to_string();
        let configured = ["--kubeconfig", file.as_str(), "config"];
        let token = format!("--token={}", token.trim());
        self.cluster.ask(&[&configured[..], &["set-credentials", "nobody", &token]].concat())?;
        self.cluster.ask(&[&configured[..], &["set-context", "--current", "--user=nobody"]].concat())?;
        let run = |arguments: &[&str]| self.run(&[&["--kubeconfig", &file], arguments].concat());
        let ran = run(&["status"])?;
        ran.ends_with(1)?;
        ran.says("you may not list nodes, persistentvolumes")?;
        run(&["cancel", "migration/db-to-n2"])?.says("cannot get resource \"volumemigrations\"")?;
        let ran = run(&["check"])?;
        ran.ends_with(1)?;
        ran.says("? the coordinator may do what it must")?;
        ran.says("you may do none of it")
    }

    fn checks(&self) -> Result<()> {
        let answer = self.json(&["check"])?;
        let sections = answer["sections"].as_array().context("no sections")?;
        let findings: Vec<_> =
            sections.iter().filter_map(|section| section["findings"].as_array()).flatten().collect();
        let grade = |what: &str| {
            let finding = findings
                .iter()
                .find(|finding| finding["what"].as_str().is_some_and(|text| text.contains(what)));
            finding.and_then(|finding| finding["grade"].as_str()).map(str::to_owned).unwrap_or_default()
        };
        for (what, wanted) in [
            ("the definitions are installed", "Ok"),
            // What the API server has stored is what this program was built with.
            ("the definitions are those of this program", "Ok"),
            ("you may do what the commands need", "Ok"),
            ("the coordinator may do what it must", "Failed"),
            ("a coordinator leads", "Failed"),
            ("the agents run", "Failed"),
        ] {
            ensure!(grade(what) == wanted, "{what}: {answer:#}");
        }
        Ok(())
    }

    /// What is under way keeps it from going; forced, it leaves nothing that is in anybody's way.
    fn goes_away(&self) -> Result<()> {
        let taint = json!({ "spec": { "taints": [
            { "key": "somersault.novasphere.dev/unreachable", "effect": "NoSchedule" },
            { "key": "node.kubernetes.io/out-of-service", "value": "somersault", "effect": "NoExecute" },
            { "key": "example.org/mine", "effect": "PreferNoSchedule" },
        ] } });
        self.cluster.ask(&["patch", "node", "n1", "--type=merge", "-p", &taint.to_string()])?;
        let ran = self.run(&["uninstall", "--yes"])?;
        ran.ends_with(4)?;
        ran.says("the incident of node n1 (Declared)")?;
        ran.says("VolumeMigration default/db-to-n2 (Pending)")?;
        let planned = self.json(&["uninstall", "--dry-run", "--delete-crds"])?;
        ensure!(
            planned["done"] == false && planned["steps"].to_string().contains("take our taint off node n1"),
            "{planned:#}"
        );
        ensure!(
            planned["steps"].to_string().contains("take our out-of-service taint off node n1"),
            "{planned:#}"
        );
        ensure!(planned["stays"].to_string().contains("pv-old"), "{planned:#}");
        self.run(&["uninstall", "--force", "--delete-crds"])?.ends_with(4)?;
        let node = self.cluster.get(&["node", "n1"])?;
        ensure!(
            node["spec"]["taints"].as_array().map(Vec::len) == Some(3),
            "nothing was confirmed: {node:#}"
        );

        let ran = self.run(&["uninstall", "--force", "--yes", "--delete-crds"])?;
        ran.ends_with(0)?;
        let node = self.cluster.get(&["node", "n1"])?;
        ensure!(
            node["spec"]["taints"] == json!([{ "key": "example.org/mine", "effect": "PreferNoSchedule" }]),
            "{node:#}"
        );
        let left = self.cluster.ask(&[
            "get",
            "clusterrole,configmap,service",
            "-A",
            "-l",
            "app.kubernetes.io/name=somersault",
            "-o",
            "name",
        ])?;
        ensure!(left.trim().is_empty(), "left behind: {left}");
        until("our definitions are gone", DELETED_WITHIN, &[], || {
            let left = self.cluster.ask(&["get", "crd", "-o", "name"])?;
            Ok((!left.contains("somersault.novasphere.dev")).then_some(()))
        })?;
        self.cluster.ask(&["get", "secret", "-n", "somersault-system", "somersault-fence"])?;
        self.cluster.ask(&["get", "pv", "pv-old"])?;
        let ran = self.run(&["uninstall", "--yes", "--delete-crds"])?;
        ran.ends_with(0)
    }
}

/// A program of this workspace, beside this test's.
fn built(name: &str, package: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let folder = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let path = folder.context("a program without a folder")?.join(name);
    ensure!(path.is_file(), "{} is missing; it is built by `cargo build -p {package}`", path.display());
    Ok(path)
}

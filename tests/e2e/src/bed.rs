//! A cluster with Somersault on it: brought up, looked at, put back in order between two scenarios.
//!
//! ```text
//!   up ──► stand-in for KubeVirt ──► images ──► kubectl apply -k ──► every agent Healthy ──► scenarios
//!                                                                        ▲                     │
//!                                                                        └── calm: mend, power on, untainted
//! ```

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use somersault_test_cluster::{Cluster, Hold, Log, Options, until};
use somersault_test_support::world::command::tied;

use crate::api::{Api, Kind};
use crate::programs::{Images, Programs};

/// Namespace of the product.
pub const NAMESPACE: &str = "somersault-system";
/// Namespace of the VMs.
pub const VMS: &str = "vms";
const FENCE_SECRET: &str = include_str!("../manifests/fence-secret.yaml");
const POLICY: &str = include_str!("../manifests/policy.yaml");
const FENCE_RUNNER: &str = "somersault-fence-runner";
const FENCE_RUNNER_LABEL: &str = "app.kubernetes.io/component=fence-runner";
/// As the overlay has it.
const FENCE_RUNNERS: u8 = 2;
const APISERVER: &str = "kube-apiserver";
/// It reads what etcd holds, on a busy machine.
const APISERVER_DEADLINE: Duration = Duration::from_mins(1);
const STANDIN_LOG: &str = "kubevirt-standin";
/// Pulling no image, but starting pods on a busy machine of two cores, issuing certificates, first beats.
const INSTALL_DEADLINE: Duration = Duration::from_mins(4);
/// A node boots in about ten seconds; quarantine and the removal of its taint come on top.
const CALM_DEADLINE: Duration = Duration::from_mins(4);
/// Coordinators see a change at once, and agents hear of it from them.
const POLICY_SETTLES: Duration = Duration::from_secs(5);

/// A cluster with the product and the stand-in.
pub struct Bed {
    cluster: Cluster,
    api: Api,
    programs: Programs,
    standin: Child,
    /// When the present installation began.
    installed: Mutex<SystemTime>,
    /// When somebody had ended the API server, until it was ready again.
    pauses: Mutex<Vec<Range<Timestamp>>>,
    /// Given up last.
    _hold: Hold,
}

impl Bed {
    /// Builds all of it, by the name that the caller holds. `tell` hears what is being done. The stand-in, and a cluster
    /// that is `tied`, die with the calling thread.
    pub fn up(hold: Hold, nodes: u8, images: Images, tied: bool, tell: &dyn Fn(&str)) -> Result<Self> {
        let programs = Programs::find(images)?;
        let name = hold.name();
        Cluster::down(name).context("removing what an earlier run has left")?;
        tell(&format!("a Kubernetes cluster of {nodes} nodes"));
        let options = Options { name: name.to_owned(), nodes, tied, program: programs.cluster.clone() };
        let cluster = Cluster::up(&options)?;
        tell("a stand-in for KubeVirt, CDI and Wukong");
        let standin = start_standin(&programs, &cluster)?;
        let api = Api::of(&cluster.kubeconfig())?;
        let installed = Mutex::new(SystemTime::now());
        let bed = Self { cluster, api, programs, standin, installed, pauses: Mutex::default(), _hold: hold };
        tell("the product: kubectl apply -k deploy/overlays/test-cluster-fence");
        bed.install()?;
        Ok(bed)
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Its API server.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// What the stand-in has to say when a VM does not do what it should.
    pub fn standin_log(&self) -> Log {
        Log(self.cluster.layout().log(STANDIN_LOG))
    }

    /// The node names.
    pub fn nodes(&self) -> Vec<String> {
        self.cluster.layout().nodes()
    }

    /// `kubectl somersault`, as a person would call it.
    pub fn plugin(&self, arguments: &[&str]) -> Result<String> {
        let output = self.plugin_command(arguments).output().context("starting kubectl-somersault")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "kubectl somersault {} ({}): {}{text}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(text)
    }

    /// The same, to be run by the caller.
    pub fn plugin_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.plugin);
        command.args(arguments).env("KUBECONFIG", self.cluster.kubeconfig()).env("NO_COLOR", "1");
        command
    }

    /// Installs the product, and waits until it is awake on every node.
    pub fn install(&self) -> Result<()> {
        *self.installed.lock().unwrap_or_else(PoisonError::into_inner) = SystemTime::now();
        for image in [&self.programs.image, &self.programs.fence_image] {
            self.cluster.load_image(image)?;
        }
        let overlay = self.programs.root.join("deploy/overlays/test-cluster-fence");
        self.cluster.ask(&["apply", "-k", &overlay.display().to_string()])?;
        self.cluster.apply(FENCE_SECRET)?;
        // The definition that has just come is served after a moment.
        until("the policy is taken", INSTALL_DEADLINE, &[], || self.cluster.apply(POLICY).map(Some))?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": VMS}});
        if self.api.find(Kind::NAMESPACE, "", VMS)?.is_none() {
            self.api.create(Kind::NAMESPACE, "", namespace)?;
        }
        self.wait_healthy(&self.nodes(), INSTALL_DEADLINE)?;
        self.wait_whole(INSTALL_DEADLINE)?;
        self.wait_fencing(true)
    }

    /// When the present installation began.
    pub fn installed(&self) -> SystemTime {
        *self.installed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a pod of ours at once, as a crash does.
    pub fn kill_pod(&self, name: &str) -> Result<()> {
        let kill = ["-n", NAMESPACE, "delete", "pod", name, "--grace-period=0", "--force"];
        self.cluster.ask(&kill).map(drop)
    }

    /// The same for the agent's pod of a node.
    pub fn kill_agents_pod(&self, node: &str) -> Result<()> {
        let agents = self.api.list(Kind::POD, NAMESPACE, "app.kubernetes.io/component=agent")?;
        let agent = agents.iter().find(|pod| pod["spec"]["nodeName"] == *node).context("no agent there")?;
        self.kill_pod(agent["metadata"]["name"].as_str().context("an agent without a name")?)
    }

    /// Ends the API server, and starts it again.
    pub fn restart_apiserver(&self) -> Result<()> {
        self.stop_apiserver()?;
        self.start_apiserver()
    }

    /// Ends the API server.
    pub fn stop_apiserver(&self) -> Result<()> {
        let now = Timestamp::now();
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner).push(now..Timestamp::MAX);
        self.cluster.stop_program(None, APISERVER)
    }

    /// Starts it again, and waits until it is ready.
    pub fn start_apiserver(&self) -> Result<()> {
        self.cluster.start_program(None, APISERVER)?;
        until("the API server is ready", APISERVER_DEADLINE, &[], || {
            self.cluster.ask(&["get", "--raw=/readyz"]).map(Some)
        })?;
        if let Some(pause) = self.pauses.lock().unwrap_or_else(PoisonError::into_inner).last_mut() {
            pause.end = Timestamp::now();
        }
        Ok(())
    }

    /// From when to when the API server was not ready.
    pub fn apiserver_pauses(&self) -> Vec<Range<Timestamp>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the fence runners away; they come back when the answer is dropped.
    pub fn without_fence_agents(&self) -> Result<Unfenced<'_>> {
        let unfenced = Unfenced { bed: self };
        self.scale_fence_runners(0)?;
        until("the fence runners are gone", CALM_DEADLINE, &[], || {
            let pods = self.api.list(Kind::POD, NAMESPACE, FENCE_RUNNER_LABEL)?;
            ensure!(pods.is_empty(), "{} are left", pods.len());
            Ok(Some(()))
        })?;
        self.wait_fencing(false)?;
        Ok(unfenced)
    }

    /// Changes the policy; it is as it was when the answer is dropped.
    pub fn with_policy(&self, spec: &Value) -> Result<OtherPolicy<'_>> {
        let other = OtherPolicy { bed: self };
        self.api.merge(Kind::POLICY, "", "default", &json!({ "spec": spec }))?;
        std::thread::sleep(POLICY_SETTLES);
        Ok(other)
    }

    fn scale_fence_runners(&self, replicas: u8) -> Result<()> {
        let change = json!({"spec": {"replicas": replicas}});
        self.api.merge(Kind::DEPLOYMENT, NAMESPACE, FENCE_RUNNER, &change)
    }

    /// Waits until the coordinator knows whether nodes can be switched off.
    fn wait_fencing(&self, wanted: bool) -> Result<()> {
        until("the coordinator knows whether nodes can be switched off", CALM_DEADLINE, &[], || {
            for node in self.nodes() {
                let health = self.api.get(Kind::NODE_HEALTH, "", &node)?;
                let possible = health["status"]["proofsPossible"].to_string();
                ensure!(possible.contains("PowerOffConfirmed") == wanted, "{node} could offer {possible}");
            }
            Ok(Some(()))
        })
    }

    /// What there is to see, for the message of a scenario that failed.
    pub fn situation(&self) -> String {
        let looks: [&[&str]; 5] = [
            &["get", "nodehealths,nodes"],
            &["get", "-A", "recoveries"],
            &["-n", VMS, "get", "vm,vmi,pods,pvc", "-o", "wide"],
            &["-n", NAMESPACE, "get", "pods", "-o", "wide"],
            &[
                "-n",
                NAMESPACE,
                "logs",
                "--tail=40",
                "-l",
                "app.kubernetes.io/component=coordinator",
                "--prefix",
            ],
        ];
        let answers = looks.map(|look| {
            let said = self.cluster.ask(look).unwrap_or_else(|error| format!("{error:#}"));
            format!("--- kubectl {}\n{said}\n", look.join(" "))
        });
        answers.concat()
    }

    /// Waits until the coordinator calls these nodes Healthy.
    pub fn wait_healthy(&self, nodes: &[String], deadline: Duration) -> Result<()> {
        let logs = [Log(self.cluster.layout().log("n1-kubelet"))];
        until("every node is Healthy", deadline, &logs, || {
            for node in nodes {
                let state = self.node_state(node)?;
                ensure!(state == "Healthy", "{node} is {state}");
            }
            Ok(Some(()))
        })
    }

    /// State of a node, as the coordinator publishes it.
    pub fn node_state(&self, node: &str) -> Result<String> {
        let health = self.api.find(Kind::NODE_HEALTH, "", node)?.unwrap_or_default();
        Ok(health["status"]["state"].as_str().unwrap_or("NoAgent").to_owned())
    }

    /// Mends, powers on and waits until nothing is left of a scenario's incident.
    pub fn calm(&self) -> Result<()> {
        for node in self.nodes() {
            self.cluster.power_on(&node)?;
            self.cluster.mend(&node)?;
        }
        self.nodes().iter().try_for_each(|node| self.cluster.wait_ready(node))?;
        self.wait_healthy(&self.nodes(), CALM_DEADLINE)?;
        until("no node has our taint", CALM_DEADLINE, &[], || {
            for node in self.nodes() {
                ensure!(!has_our_taint(&self.api.get(Kind::NODE, "", &node)?), "{node} has our taint");
            }
            Ok(Some(()))
        })
    }
}

/// While this lives, no node has a fence agent.
pub struct Unfenced<'a> {
    bed: &'a Bed,
}

/// While this lives, another policy counts.
pub struct OtherPolicy<'a> {
    bed: &'a Bed,
}

impl Drop for OtherPolicy<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.bed.cluster.apply(POLICY) {
            eprintln!("the policy is not as it was: {error:#}");
        }
        std::thread::sleep(POLICY_SETTLES);
    }
}

impl Drop for Unfenced<'_> {
    fn drop(&mut self) {
        if let Err(error) =
            self.bed.scale_fence_runners(FENCE_RUNNERS).and_then(|()| self.bed.wait_fencing(true))
        {
            eprintln!("the fence runners are not back: {error:#}");
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Gone already is as good.
        let _killed = self.standin.kill();
        let _reaped = self.standin.wait();
    }
}

/// Whether a Node object has the taint by which the coordinator keeps VMs away.
pub fn has_our_taint(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array();
    taints.is_some_and(|taints| taints.iter().any(|t| t["key"] == "somersault.novasphere.dev/unreachable"))
}

fn start_standin(programs: &Programs, cluster: &Cluster) -> Result<Child> {
    // So that its kinds are there when the product first looks.
    let install = Command::new(&programs.standin)
        .arg("install")
        .env("KUBECONFIG", cluster.kubeconfig())
        .output()
        .context("starting the stand-in")?;
    let said = String::from_utf8_lossy(&install.stderr).into_owned();
    ensure!(install.status.success(), "the stand-in's definitions: {said}");
    let path: PathBuf = cluster.layout().log(STANDIN_LOG);
    let log = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    tied(&programs.standin)
        .arg("run")
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("sharing a log")?)
        .stderr(log)
        .spawn()
        .context("starting the stand-in")
}

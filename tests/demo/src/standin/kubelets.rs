//! The API server's side of the kubelets: which pods should run on a node, and which do.
//!
//! A kubelet dials over its node's network, says what runs, and is told what should: one line of JSON each way.
//! When the plug is pulled it hears nothing any more, and what runs goes on running, as on a real node.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use somersault_coordinator::cluster::directory::store::Objects;
use somersault_test_support::world::network;

use super::{bound, claims, name, namespace, uid};

/// Port of an API server.
pub const PORT: u16 = 6443;
/// A node has a handful of pods here.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// Kubelets speak ten times a second.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// A pod that should run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedPod {
    /// Its uid.
    pub uid: String,
    /// The VM instance in it.
    pub instance: String,
    /// It was running already: when the kubelet does not know it, it did not survive a boot.
    pub started: bool,
    /// Folders of its volumes on the node.
    pub volumes: Vec<String>,
}

/// What a kubelet is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Counts the changes.
    pub version: u64,
    /// All pods of its node.
    pub pods: Vec<WantedPod>,
}

/// What a kubelet says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its node.
    pub node: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// [`Wanted::version`] that it has acted upon.
    pub applied: u64,
    /// By uid.
    pub pods: BTreeMap<String, PodState>,
}

/// How a pod fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodState {
    /// Its process runs.
    Running,
    /// Its process has ended, or is from before the boot.
    Ended {
        /// Exit code, where there is one.
        code: Option<i32>,
    },
}

/// What is known of a node's kubelet.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By uid.
    pub pods: BTreeMap<String, PodState>,
    /// It has acted on the newest list.
    pub settled: bool,
    /// Its boot.
    pub boot_id: String,
    /// Its connection stands, as far as TCP knows.
    pub connected: bool,
    /// Since it last spoke.
    pub silence: Duration,
}

#[derive(Default)]
struct Link {
    wanted: Wanted,
    status: Option<(Status, Instant)>,
    connected: bool,
}

/// All kubelets.
#[derive(Clone, Default)]
pub struct Kubelets {
    links: Arc<Mutex<BTreeMap<String, Link>>>,
}

impl Kubelets {
    /// Listens for kubelets.
    pub fn serve() -> Result<Self> {
        let listener = TcpListener::bind((network::GATEWAY, PORT)).context("listening for kubelets")?;
        let kubelets = Self::default();
        let serving = kubelets.clone();
        std::thread::Builder::new().name("kubelets".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let kubelets = serving.clone();
                // One thread for each of three nodes; a broken line ends its connection, and the kubelet dials
                // again.
                let _detached = std::thread::spawn(move || kubelets.attend(&stream));
            }
        })?;
        Ok(kubelets)
    }

    /// Replaces the lists of pods that should run.
    pub fn publish(&self, wanted: &BTreeMap<String, Vec<WantedPod>>) {
        let mut links = self.links();
        for node in wanted.keys() {
            links.entry(node.clone()).or_default();
        }
        for (node, link) in links.iter_mut() {
            let pods = wanted.get(node).cloned().unwrap_or_default();
            if link.wanted.pods != pods {
                link.wanted = Wanted { version: link.wanted.version + 1, pods };
            }
        }
    }

    /// What each kubelet last said.
    pub fn reports(&self) -> BTreeMap<String, Report> {
        let links = self.links();
        let known = links.iter().filter_map(|(node, link)| Some((node, link, link.status.as_ref()?)));
        known
            .map(|(node, link, (status, at))| {
                let report = Report {
                    pods: status.pods.clone(),
                    settled: status.applied == link.wanted.version,
                    boot_id: status.boot_id.clone(),
                    connected: link.connected,
                    silence: at.elapsed(),
                };
                (node.clone(), report)
            })
            .collect()
    }

    fn attend(&self, stream: &TcpStream) {
        let mut node = None;
        // A connection that breaks is what this demo is about: the kubelet dials again when it can.
        let _broken = self.converse(stream, &mut node);
        if let Some(node) = node
            && let Some(link) = self.links().get_mut(&node)
        {
            link.connected = false;
        }
    }

    fn converse(&self, stream: &TcpStream, node: &mut Option<String>) -> Result<()> {
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let status: Status = read_line(&mut reader)?;
            let answer = {
                let mut links = self.links();
                let link = links.entry(status.node.clone()).or_default();
                *node = Some(status.node.clone());
                link.connected = true;
                link.status = Some((status, Instant::now()));
                link.wanted.clone()
            };
            write_line(stream, &answer)?;
        }
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<String, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes one line of JSON.
pub fn write_line(mut stream: &TcpStream, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).context("writing a line")
}

/// Reads one line of JSON.
pub fn read_line<T: for<'a> Deserialize<'a>>(reader: &mut BufReader<TcpStream>) -> Result<T> {
    let mut line = Vec::new();
    reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).context("reading a line")?;
    if line.last() != Some(&b'\n') {
        bail!("the connection ended, or a line is longer than {LINE_BYTES_MAX} bytes");
    }
    serde_json::from_slice(&line).context("understanding a line")
}

/// The pods that should run, by node, with the folders of their volumes there.
pub(super) fn pods_that_should_run(
    objects: &Objects,
    network_volumes: &str,
) -> BTreeMap<String, Vec<WantedPod>> {
    let mut wanted: BTreeMap<String, Vec<WantedPod>> =
        objects.of_kind("Node").map(|node| (name(node).to_owned(), Vec::new())).collect();
    for pod in objects.of_kind("Pod") {
        let Some(node) = pod["spec"]["nodeName"].as_str() else { continue };
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        if !pod["metadata"]["deletionTimestamp"].is_null() || matches!(phase, "Failed" | "Succeeded") {
            continue;
        }
        let volumes: Option<Vec<_>> = claims(&pod["spec"])
            .into_iter()
            .map(|claim| mounted_at(bound(objects, namespace(pod), claim)?.1, network_volumes))
            .collect();
        let Some(volumes) = volumes else { continue };
        let instance = pod["metadata"]["labels"]["kubevirt.io/created-by"].as_str().unwrap_or_default();
        wanted.entry(node.to_owned()).or_default().push(WantedPod {
            uid: uid(pod).to_owned(),
            instance: instance.chars().take(8).collect(),
            started: phase == "Running",
            volumes,
        });
    }
    wanted
}

/// Where a volume appears on its node. NFS is mounted under the path that it is exported as, RBD images below
/// `network_volumes`.
pub fn mounted_at(volume: &serde_json::Value, network_volumes: &str) -> Option<String> {
    let spec = &volume["spec"];
    let path = ["local", "hostPath", "nfs"].into_iter().find_map(|source| spec[source]["path"].as_str());
    let attributes = &spec["csi"]["volumeAttributes"];
    match (path, attributes["share"].as_str(), attributes["subDir"].as_str()) {
        (Some(path), ..) => Some(path.to_owned()),
        (None, Some(share), Some(folder)) => Some(format!("{share}/{folder}")),
        _ => Some(format!("{network_volumes}/{}", spec["csi"]["volumeHandle"].as_str()?)),
    }
}

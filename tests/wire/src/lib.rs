//! A real coordinator on real sockets, and agents that say what a test wants them to say.

pub mod enrolment;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use somersault_coordinator::alert::config::AlertPlan;
use somersault_coordinator::app::App;
use somersault_coordinator::certificates::Certificates;
use somersault_coordinator::cluster::directory::Directory;
use somersault_coordinator::config::{Config, FenceSource};
use somersault_proto::tls::{Identity, TlsSource};
use somersault_proto::v1;
use somersault_proto::v1::fleet_client::FleetClient;
use somersault_test_support::certs::CertAuthority;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// The boot that agents of these tests tell.
pub const BOOT_ID: &str = "0f4a3b7e-8f0d-4d8e-9a54-0123456789ab";
/// Longest wait for anything: generous, since machines that test are busy. Nothing waits for it to pass.
pub const SOON: Duration = Duration::from_secs(20);

/// A coordinator on a directory cluster with two nodes.
pub struct Fleet {
    /// Certificates of this fleet.
    pub authority: CertAuthority,
    folder: TempDir,
    address: SocketAddr,
    operators: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<Result<(), somersault_coordinator::app::AppError>>,
}

impl Fleet {
    /// Starts it, and waits until it leads.
    pub async fn start() -> Result<Self> {
        let folder = TempDir::new()?;
        let authority = CertAuthority::new()?;
        let certs = folder.path().join("coordinator");
        authority.issue_coordinator(&certs)?;
        let certificates = Certificates::from_folder(&certs)?;
        Self::start_in(folder, authority, certificates).await
    }

    /// The same with certificates from elsewhere; [`Fleet::node_certs`] are of no use there.
    pub async fn start_with(certificates: Certificates) -> Result<Self> {
        Self::start_in(TempDir::new()?, CertAuthority::new()?, certificates).await
    }

    async fn start_in(folder: TempDir, authority: CertAuthority, certificates: Certificates) -> Result<Self> {
        let cluster = folder.path().join("cluster");
        fs::create_dir(&cluster)?;
        for node in ["n1", "n2"] {
            let manifest = format!(
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: {node}\n  uid: uid-{node}\nspec: {{}}\n"
            );
            fs::write(cluster.join(format!("{node}.yaml")), manifest)?;
        }
        let config = Config {
            listen: "127.0.0.1:0".parse()?,
            admin_listen: "127.0.0.1:0".parse()?,
            policy: somersault_coordinator_core::policy::Policy::default(),
            fence: FenceSource::None,
            alerts: AlertPlan::default(),
        };
        let app = App::bind(Arc::new(Directory::open(&cluster)?), config, certificates).await?;
        let (address, operators) = (app.agents_address()?, app.operators_address());
        let stop = CancellationToken::new();
        let running = tokio::spawn(app.run(stop.clone()));
        let fleet = Self { authority, folder, address, operators, stop, running };
        fleet.until("/readyz", |answer| answer.starts_with("HTTP/1.1 200")).await?;
        Ok(fleet)
    }

    /// Where agents connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificates of a node's agent.
    pub fn node_certs(&self, node: &str) -> Result<PathBuf> {
        let folder = self.folder.path().join("nodes").join(node);
        self.authority.issue_node(node, &folder)?;
        Ok(folder)
    }

    /// A connection with a node's own certificate.
    pub async fn connect(&self, node: &str) -> Result<FleetClient<Channel>> {
        Ok(FleetClient::new(connect(self.address, &self.node_certs(node)?).await?))
    }

    /// A node that beats, until the stream ends or is dropped.
    pub async fn beats(&self, node: &str) -> Result<Beats> {
        Beats::open(self.connect(node).await?).await
    }

    /// What operators read at a path, headers and all.
    pub async fn get(&self, path: &str) -> Result<String> {
        let mut socket = TcpStream::connect(self.operators).await?;
        socket
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Waits until what operators read is as wanted.
    pub async fn until(&self, path: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let seen = timeout(SOON, async {
            loop {
                let answer = self.get(path).await.unwrap_or_default();
                if wanted(&answer) {
                    return answer;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        match seen.await {
            Ok(answer) => Ok(answer),
            Err(_) => anyhow::bail!("{path} never became what it should; it is\n{}", self.get(path).await?),
        }
    }

    /// Waits until so many refusals of this reason were counted.
    pub async fn until_refused(&self, reason: &str, count: usize) -> Result<()> {
        let line = format!("somersault_refused_total{{reason=\"{reason}\"}} {count}\n");
        self.until("/metrics", |text| text.contains(&line)).await.map(drop)
    }

    /// Waits until a node is in a state.
    pub async fn until_state(&self, node: &str, state: &str) -> Result<()> {
        let line = format!("somersault_node_state{{node=\"{node}\",state=\"{state}\"}} 1\n");
        self.until("/metrics", |text| text.contains(&line)).await.map(drop)
    }

    /// Stops it, and expects a clean end.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        timeout(SOON, self.running).await.context("the coordinator did not stop")???;
        Ok(())
    }
}

/// Connects with the certificates of a folder.
pub async fn connect(address: SocketAddr, certs: &Path) -> Result<Channel> {
    connect_as(address, &TlsSource::read(certs)?).await
}

/// Connects with these certificates.
pub async fn connect_as(address: SocketAddr, tls: &TlsSource) -> Result<Channel> {
    let tls = tls.client(&Identity::Coordinator);
    Ok(Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect().await?)
}

/// A beat.
pub fn beat(node: &str, sequence: u64) -> v1::Beat {
    v1::Beat { node: node.into(), boot_id: BOOT_ID.into(), sequence, goodbye: false }
}

/// A greeting.
pub fn hello(node: &str) -> v1::FromAgent {
    let hello = v1::Hello {
        node: node.into(),
        boot_id: BOOT_ID.into(),
        version: "0.1.0".into(),
        address: "127.0.0.1:7444".into(),
    };
    v1::FromAgent { message: Some(v1::from_agent::Message::Hello(hello)) }
}

/// An open stream of beats.
pub struct Beats {
    send: mpsc::Sender<v1::Beat>,
    grants: Streaming<v1::Grant>,
}

impl Beats {
    /// Opens it.
    pub async fn open(mut client: FleetClient<Channel>) -> Result<Self> {
        let (send, beats) = mpsc::channel(4);
        let grants = client.heartbeat(ReceiverStream::new(beats)).await?.into_inner();
        Ok(Self { send, grants })
    }

    /// Sends a beat.
    pub async fn send(&self, beat: v1::Beat) -> Result<()> {
        Ok(self.send.send(beat).await?)
    }

    /// Sends a beat, and waits for its grant.
    pub async fn granted(&mut self, beat: v1::Beat) -> Result<v1::Grant> {
        let sequence = beat.sequence;
        self.send(beat).await?;
        let grant = timeout(SOON, self.grants.message()).await.context("no grant came")??;
        let grant = grant.context("the stream ended")?;
        ensure!(grant.sequence == sequence, "grant {} for beat {sequence}", grant.sequence);
        Ok(grant)
    }

    /// Waits for the stream to end, and says how.
    pub async fn end(&mut self) -> Result<Option<Status>> {
        let end = async {
            loop {
                match self.grants.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        };
        timeout(SOON, end).await.context("the stream goes on")
    }

    /// Waits for the stream to be refused with this code, and gives the words.
    pub async fn refused(&mut self, code: Code) -> Result<String> {
        let status = self.end().await?.context("the stream ended without a word")?;
        ensure!(status.code() == code, "{status:?}");
        Ok(status.message().to_owned())
    }
}

/// A wire between agent and coordinator that can be cut.
pub struct Wire {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    to: SocketAddr,
    carrying: JoinHandle<()>,
}

impl Wire {
    /// A wire to this address.
    pub async fn lay(to: SocketAddr) -> Result<Self> {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await?);
        let address = listener.local_addr()?;
        let carrying = carry(Arc::clone(&listener), to);
        Ok(Self { address, listener, to, carrying })
    }

    /// Its near end.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection, and mends the wire for new ones.
    pub async fn cut(&mut self) {
        self.carrying.abort();
        // Ended by the abort, as it should.
        drop((&mut self.carrying).await);
        self.carrying = carry(Arc::clone(&self.listener), self.to);
    }

    /// Cuts every connection, for good.
    pub async fn sever(self) {
        let Self { listener, carrying, .. } = self;
        carrying.abort();
        drop((carrying.await, listener));
    }
}

fn carry(listener: Arc<TcpListener>, to: SocketAddr) -> JoinHandle<()> {
    tokio::spawn(async move {
        // Dropped with this task, and all connections with it.
        let mut connections = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                if let Ok(mut far) = TcpStream::connect(to).await {
                    drop(copy_bidirectional(&mut near, &mut far).await);
                }
            });
        }
    })
}

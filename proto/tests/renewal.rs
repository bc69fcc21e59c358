//! Certificates that change under a running server, on real sockets: what is open goes on, what is new is new, and
//! strangers have but so many places.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use somersault_proto::tls::{ConnectionLimits, Identity, TlsSource, follow, peer_identity};
use somersault_proto::v1;
use somersault_proto::v1::peer_client::PeerClient;
use somersault_proto::v1::peer_server::{Peer, PeerServer};
use somersault_test_support::certs::CertAuthority;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

const LIMITS: ConnectionLimits = ConnectionLimits { total: 16, strangers_per_host: 4 };
/// Longer than anything takes on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Answers with the name of whoever asks.
struct Echo;

#[tonic::async_trait]
impl Peer for Echo {
    async fn ping(&self, request: Request<v1::PingRequest>) -> Result<Response<v1::PingReply>, Status> {
        let node = peer_identity(&request)?.san();
        Ok(Response::new(v1::PingReply { node, boot_id: String::new() }))
    }
}

async fn serve(tls: &TlsSource) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(PeerServer::new(Echo));
    tokio::spawn(server.serve_with_incoming(tls.accept(listener, LIMITS)));
    address
}

fn coordinator(authority: &CertAuthority, folder: &Path) -> TlsSource {
    authority.issue_coordinator(folder).unwrap();
    TlsSource::read(folder).unwrap()
}

fn agent(authority: &CertAuthority) -> TlsSource {
    let folder = TempDir::new().unwrap();
    authority.issue_node("n1", folder.path()).unwrap();
    TlsSource::read(folder.path()).unwrap()
}

async fn connect(
    address: SocketAddr,
    tls: &TlsSource,
) -> Result<PeerClient<Channel>, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?
        .tls_config(tls.client(&Identity::Coordinator))?;
    Ok(PeerClient::new(endpoint.connect().await?))
}

async fn ping(client: &mut PeerClient<Channel>) -> Result<String, Status> {
    timeout(SOON, client.ping(v1::PingRequest {})).await.unwrap().map(|reply| reply.into_inner().node)
}

/// TLS 1.3 tells a client of its refused certificate only with the first answer.
async fn is_let_in(address: SocketAddr, tls: &TlsSource) -> bool {
    match connect(address, tls).await {
        Ok(mut client) => ping(&mut client).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_renewal_is_for_the_next_connection_and_breaks_no_open_one() {
    let (old, new) = (CertAuthority::new().unwrap(), CertAuthority::new().unwrap());
    let folder = TempDir::new().unwrap();
    let tls = coordinator(&old, folder.path());
    let address = serve(&tls).await;
    let (old_agent, new_agent) = (agent(&old), agent(&new));
    let mut open = connect(address, &old_agent).await.unwrap();
    assert_eq!(ping(&mut open).await.unwrap(), "n1.node.somersault");
    assert!(!is_let_in(address, &new_agent).await);

    new.issue_coordinator(folder.path()).unwrap();
    tls.renew(TlsSource::read(folder.path()).unwrap().current().as_ref().clone());
    assert!(ping(&mut open).await.is_ok(), "an open connection goes on");
    assert!(is_let_in(address, &new_agent).await);
    assert!(!is_let_in(address, &old_agent).await);

    // And a client's own source is as live as a server's.
    old_agent.renew(new_agent.current().as_ref().clone());
    assert!(is_let_in(address, &old_agent).await);
}

#[tokio::test]
async fn two_authorities_in_one_bundle_are_both_trusted() {
    let (old, new) = (CertAuthority::new().unwrap(), CertAuthority::new().unwrap());
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    old.issue_coordinator(folder.path()).unwrap();
    new.issue_coordinator(other.path()).unwrap();
    let bundle =
        [folder.path(), other.path()].map(|folder| std::fs::read(folder.join("ca.crt")).unwrap()).concat();
    std::fs::write(folder.path().join("ca.crt"), bundle).unwrap();
    let address = serve(&TlsSource::read(folder.path()).unwrap()).await;
    assert!(is_let_in(address, &agent(&old)).await);
    // It trusts an authority that we are not certified by: the server takes it, it does not take the server.
    let both = TempDir::new().unwrap();
    new.issue_node("n1", both.path()).unwrap();
    std::fs::copy(folder.path().join("ca.crt"), both.path().join("ca.crt")).unwrap();
    assert!(is_let_in(address, &TlsSource::read(both.path()).unwrap()).await);
    assert!(!is_let_in(address, &agent(&new)).await);
}

#[tokio::test(start_paused = true)]
async fn files_that_change_are_read_again_and_broken_ones_change_nothing() {
    let authority = CertAuthority::new().unwrap();
    let folder = TempDir::new().unwrap();
    let tls = coordinator(&authority, folder.path());
    let first = tls.current();
    let mut renewals = tls.renewals();
    let following = tokio::spawn(follow(tls.clone(), folder.path().to_owned()));
    let quiet = Duration::from_mins(1);

    assert!(timeout(quiet, renewals.next()).await.is_err(), "nothing has changed");
    // Half of a renewal: a certificate without its key.
    let other = TempDir::new().unwrap();
    authority.issue_coordinator(other.path()).unwrap();
    std::fs::copy(other.path().join("tls.crt"), folder.path().join("tls.crt")).unwrap();
    assert!(timeout(quiet, renewals.next()).await.is_err(), "a broken set is not used");
    std::fs::copy(other.path().join("tls.key"), folder.path().join("tls.key")).unwrap();
    timeout(quiet, renewals.next()).await.expect("renewed");
    assert!(!tls.current().is_same_as(&first));

    authority.issue_node("n1", folder.path()).unwrap();
    assert!(timeout(quiet, renewals.next()).await.is_err(), "nobody becomes somebody else");
    following.abort();
}

#[tokio::test]
async fn strangers_of_one_host_cannot_take_every_place() {
    let authority = CertAuthority::new().unwrap();
    let folder = TempDir::new().unwrap();
    let address = serve(&coordinator(&authority, folder.path())).await;
    let mut strangers = Vec::new();
    for _ in 0..LIMITS.strangers_per_host {
        strangers.push(TcpStream::connect(address).await.unwrap());
    }
    // One more is turned away at once, long before a handshake would be given up.
    let mut turned_away = TcpStream::connect(address).await.unwrap();
    let read = timeout(Duration::from_secs(4), turned_away.read(&mut [0])).await.expect("closed at once");
    assert!(matches!(read, Ok(0) | Err(_)));
    // Whoever has shown a certificate is no stranger: more of them than strangers may be.
    drop(strangers);
    let agent = agent(&authority);
    let mut open = Vec::new();
    for _ in 0..=LIMITS.strangers_per_host {
        let connected = async {
            loop {
                // The places of the strangers become free a moment after they have gone.
                if let Ok(mut client) = connect(address, &agent).await
                    && ping(&mut client).await.is_ok()
                {
                    return client;
                }
            }
        };
        open.push(timeout(SOON, connected).await.expect("let in"));
    }
    for client in &mut open {
        assert!(ping(client).await.is_ok());
    }
}

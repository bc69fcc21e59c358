//! What the coordinator makes of honest, foreign, broken and hostile peers.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use somersault_proto::v1;
use somersault_proto::v1::fleet_client::FleetClient;
use somersault_test_support::certs::CertAuthority;
use somersault_wire_tests::{BOOT_ID, Beats, Fleet, SOON, Wire, beat, connect, hello};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::GrpcService;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Code, Streaming};

#[tokio::test]
async fn each_beat_is_granted() -> Result<()> {
    let fleet = Fleet::start().await?;
    let mut beats = fleet.beats("n1").await?;
    for sequence in 1..=3 {
        let grant = beats.granted(beat("n1", sequence)).await?;
        ensure!(grant.epoch >= 1 && grant.beat_interval_ms == 1_000 && grant.lease_ms == 30_000, "{grant:?}");
    }
    fleet.until_state("n1", "Healthy").await?;
    fleet.stop().await
}

#[tokio::test]
async fn an_agent_that_speaks_for_another_node_is_refused() -> Result<()> {
    let fleet = Fleet::start().await?;
    let mut honest = fleet.beats("n2").await?;
    honest.granted(beat("n2", 1)).await?;

    let mut liar = fleet.beats("n1").await?;
    liar.send(beat("n2", 2)).await?;
    let words = liar.refused(Code::PermissionDenied).await?;
    ensure!(words.contains("n1") && words.contains("n2"), "{words}");

    let mut session = open_session(&mut fleet.connect("n1").await?, vec![hello("n2")]).await?;
    ensure!(refused(&mut session).await?.code() == Code::PermissionDenied);
    fleet.until_refused("ForeignNode", 2).await?;

    honest.granted(beat("n2", 2)).await?;
    fleet.stop().await
}

#[tokio::test]
async fn a_coordinators_certificate_is_no_nodes() -> Result<()> {
    let fleet = Fleet::start().await?;
    let certs = TempDir::new()?;
    fleet.authority.issue_coordinator(certs.path())?;
    let client = FleetClient::new(connect(fleet.address(), certs.path()).await?);
    let status = match Beats::open(client).await {
        Err(error) => error.downcast::<tonic::Status>()?,
        Ok(_) => bail!("it was let in"),
    };
    ensure!(status.code() == Code::PermissionDenied, "{status:?}");
    fleet.until_refused("Identity", 1).await?;
    fleet.stop().await
}

#[tokio::test]
async fn strangers_do_not_get_past_the_handshake() -> Result<()> {
    let fleet = Fleet::start().await?;
    let certs = fleet.node_certs("n1")?;

    let ca = Certificate::from_pem(std::fs::read(certs.join("ca.crt"))?);
    let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("coordinator.somersault");
    let endpoint = Endpoint::from_shared(format!("https://{}", fleet.address()))?.tls_config(tls)?;
    ensure!(is_refused(endpoint.connect().await.map_err(Into::into)).await, "without a certificate");

    // The CA that it shows its own certificate with is not ours, though it knows ours.
    let foreign = TempDir::new()?;
    CertAuthority::new()?.issue_node("n1", foreign.path())?;
    std::fs::copy(certs.join("ca.crt"), foreign.path().join("ca.crt"))?;
    ensure!(is_refused(connect(fleet.address(), foreign.path()).await).await, "with a foreign certificate");

    // And an agent does not talk to a coordinator of another CA.
    let other = TempDir::new()?;
    CertAuthority::new()?.issue_node("n1", other.path())?;
    ensure!(connect(fleet.address(), other.path()).await.is_err(), "the agent trusts its own CA alone");

    fleet.beats("n1").await?.granted(beat("n1", 1)).await?;
    fleet.stop().await
}

/// TLS 1.3 tells the client of a refused certificate only with the first answer.
async fn is_refused(connected: Result<tonic::transport::Channel>) -> bool {
    let Ok(channel) = connected else { return true };
    let Ok(mut beats) = Beats::open(FleetClient::new(channel)).await else { return true };
    beats.granted(beat("n1", 1)).await.is_err()
}

#[tokio::test]
async fn a_message_of_two_gib_is_refused_by_its_length() -> Result<()> {
    let fleet = Fleet::start().await?;
    let mut honest = fleet.beats("n2").await?;
    honest.granted(beat("n2", 1)).await?;

    let mut channel = connect(fleet.address(), &fleet.node_certs("n1")?).await?;
    // Not compressed, 2 GiB long; and not one byte of them.
    let frame = Bytes::from_static(&[0, 0x80, 0, 0, 0]);
    let request = http::Request::post(format!("https://{}/somersault.v1.Fleet/Heartbeat", fleet.address()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Full::new(frame)))?;
    std::future::poll_fn(|context| channel.poll_ready(context)).await?;
    let answer = timeout(SOON, GrpcService::call(&mut channel, request)).await??;
    let trailers =
        timeout(SOON, answer.into_body().collect()).await??.trailers().cloned().context("no trailers")?;
    let status = tonic::Status::from_header_map(&trailers).context("no status")?;
    ensure!(status.code() == Code::OutOfRange && status.message().contains("1048576"), "{status:?}");
    fleet.until_refused("BrokenStream", 1).await?;

    honest.granted(beat("n2", 2)).await?;
    fleet.stop().await
}

#[tokio::test]
async fn garbage_on_the_port_disturbs_nothing() -> Result<()> {
    let fleet = Fleet::start().await?;
    let mut honest = fleet.beats("n2").await?;
    let mut sequence = 0;
    let noise: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        // A TLS record that claims more than it may, and one that never ends.
        b"\x16\x03\x01\xff\xff\x01\x00\x00",
        b"\x16\x03\x01\x00\x80\x01",
        &[0xff; 4096],
    ];
    let mut silent = Vec::new();
    for _ in 0..40 {
        // Connections that say nothing at all, kept open.
        silent.push(TcpStream::connect(fleet.address()).await?);
        for bytes in noise {
            let mut socket = TcpStream::connect(fleet.address()).await?;
            // It may be closed under our hands: that is the point.
            drop(socket.write_all(bytes).await);
        }
        sequence += 1;
        honest.granted(beat("n2", sequence)).await?;
    }
    // Whoever does not finish the handshake is put out.
    let mut first = silent.swap_remove(0);
    let put_out = timeout(SOON, first.read(&mut [0])).await.context("it may stay for ever")?;
    ensure!(matches!(put_out, Ok(0) | Err(_)), "{put_out:?}");
    honest.granted(beat("n2", sequence + 1)).await?;
    fleet.stop().await
}

#[tokio::test]
async fn an_invalid_message_is_refused_with_the_fields_name() -> Result<()> {
    let fleet = Fleet::start().await?;
    let mut beats = fleet.beats("n1").await?;
    beats.send(v1::Beat { boot_id: "yesterday".into(), ..beat("n1", 1) }).await?;
    ensure!(beats.refused(Code::InvalidArgument).await?.contains("boot_id"));

    let report = v1::Report { host: None, ..v1::Report::default() };
    let report = v1::FromAgent { message: Some(v1::from_agent::Message::Report(report)) };
    let mut session =
        open_session(&mut fleet.connect("n1").await?, vec![hello("n1"), report.clone()]).await?;
    let status = refused(&mut session).await?;
    ensure!(status.message().contains("report.host"), "{status:?}");

    let mut session = open_session(&mut fleet.connect("n1").await?, vec![report]).await?;
    ensure!(refused(&mut session).await?.code() == Code::InvalidArgument, "checked before its order is");
    let made_up = v1::Progress {
        order: "made-up".into(),
        state: Some(v1::progress::State::Running(v1::progress::Running::default())),
    };
    let early = v1::FromAgent { message: Some(v1::from_agent::Message::Progress(made_up)) };
    let mut session = open_session(&mut fleet.connect("n1").await?, vec![early.clone()]).await?;
    ensure!(refused(&mut session).await?.code() == Code::FailedPrecondition, "hello comes first");

    // Progress of an order that nobody gave ends nothing, and counts for nothing.
    let mut session = open_session(&mut fleet.connect("n1").await?, vec![hello("n1"), early]).await?;
    welcome(&mut session).await?;
    fleet.until_refused("UnknownOrder", 1).await?;
    fleet.stop().await
}

#[tokio::test]
async fn a_cut_stream_is_resumed() -> Result<()> {
    let fleet = Fleet::start().await?;
    let certs = fleet.node_certs("n1")?;
    let mut wire = Wire::lay(fleet.address()).await?;
    let mut beats = Beats::open(FleetClient::new(connect(wire.address(), &certs).await?)).await?;
    beats.granted(beat("n1", 1)).await?;
    wire.cut().await;
    beats.end().await?;

    let mut again = Beats::open(FleetClient::new(connect(wire.address(), &certs).await?)).await?;
    // A stream of its own: it counts from the start.
    again.granted(beat("n1", 1)).await?;
    again.granted(beat("n1", 2)).await?;
    fleet.until_state("n1", "Healthy").await?;
    fleet.stop().await
}

#[tokio::test]
async fn the_newest_stream_of_a_node_wins() -> Result<()> {
    let fleet = Fleet::start().await?;
    let mut old = fleet.beats("n1").await?;
    old.granted(beat("n1", 1)).await?;
    let mut new = fleet.beats("n1").await?;
    new.granted(beat("n1", 1)).await?;
    old.refused(Code::Aborted).await?;
    new.granted(beat("n1", 2)).await?;
    fleet.stop().await
}

#[tokio::test]
async fn stopping_says_so_on_every_stream() -> Result<()> {
    let fleet = Fleet::start().await?;
    let mut beats = fleet.beats("n1").await?;
    beats.granted(beat("n1", 1)).await?;
    let mut session = open_session(&mut fleet.connect("n1").await?, vec![hello("n1")]).await?;
    welcome(&mut session).await?;
    let (stopped, beats_end, session_end) = tokio::join!(fleet.stop(), beats.end(), refused(&mut session));
    stopped?;
    ensure!(beats_end?.is_some_and(|status| status.code() == Code::Unavailable));
    ensure!(session_end?.code() == Code::Unavailable);
    Ok(())
}

#[tokio::test]
async fn a_flood_of_beats_slows_down_its_sender_alone() -> Result<()> {
    let fleet = Fleet::start().await?;
    let mut honest = fleet.beats("n2").await?;
    let flood = fleet.beats("n1").await?;
    let flooding = tokio::spawn(async move {
        for sequence in 1.. {
            if flood.send(beat("n1", sequence)).await.is_err() {
                break;
            }
        }
    });
    for sequence in 1..=20 {
        let granted = timeout(Duration::from_secs(2), honest.granted(beat("n2", sequence))).await;
        granted.context("the honest node waits")??;
    }
    flooding.abort();
    fleet.stop().await
}

/// Opens a session that says all this and then stays open.
async fn open_session(
    client: &mut FleetClient<tonic::transport::Channel>,
    says: Vec<v1::FromAgent>,
) -> Result<Streaming<v1::FromCoordinator>> {
    let (send, messages) = mpsc::channel(16);
    for message in says {
        send.send(message).await?;
    }
    // Kept open by a task that waits for the other side to end it.
    tokio::spawn(async move { send.closed().await });
    Ok(client.session(ReceiverStream::new(messages)).await?.into_inner())
}

async fn welcome(session: &mut Streaming<v1::FromCoordinator>) -> Result<v1::Welcome> {
    let first = timeout(SOON, session.message()).await.context("no welcome came")??;
    match first.and_then(|first| first.message) {
        Some(v1::from_coordinator::Message::Welcome(welcome)) => {
            ensure!(welcome.token_key.len() == 32 && welcome.epoch >= 1, "{welcome:?} for {BOOT_ID}");
            Ok(welcome)
        }
        other => bail!("not a welcome: {other:?}"),
    }
}

/// Waits for the session to be refused; a welcome may come before it.
async fn refused(session: &mut Streaming<v1::FromCoordinator>) -> Result<tonic::Status> {
    let end = async {
        loop {
            match session.message().await {
                Ok(Some(_)) => {}
                Ok(None) => bail!("the session ended without a word"),
                Err(status) => return Ok(status),
            }
        }
    };
    timeout(SOON, end).await.context("the session goes on")?
}

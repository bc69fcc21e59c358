//! A source serves what a coordinator's token says, to whom it says, and opens nothing else, whoever asks how.

use std::os::unix::fs::symlink;

use somersault_proto::tls::{Identity, TlsSource};
use somersault_proto::token::{Claims, TokenSigner};
use somersault_proto::v1::transfer_client::TransferClient;
use somersault_proto::v1::{HashesRequest, Manifest, ManifestRequest, Range, ReadRequest};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::world::*;

/// A client with the certificate of a node, as an attacker would write it.
async fn client(world: &World, name: &str) -> TransferClient<Channel> {
    let tls = TlsSource::read(&world.certs.path().join(name)).expect("certificates");
    let channel = Endpoint::from_shared(format!("https://{}", world.source.address))
        .and_then(|endpoint| endpoint.tls_config(tls.client(&Identity::Node(node("n1")))))
        .expect("an endpoint")
        .connect()
        .await
        .expect("connected");
    TransferClient::new(channel)
}

async fn manifest(world: &World, name: &str, token: &str) -> Result<Manifest, Status> {
    let request = ManifestRequest { token: token.to_owned() };
    client(world, name).await.get_manifest(request).await.map(tonic::Response::into_inner)
}

/// Reads one chunk; the first error of the call or the stream.
async fn read(
    world: &World,
    token: &str,
    identity: &[u8],
    file: u32,
    range: Range,
) -> Result<Vec<u8>, Status> {
    let request = ReadRequest {
        token: token.to_owned(),
        file,
        ranges: vec![range],
        identity: identity.to_vec().into(),
        ..ReadRequest::default()
    };
    let mut stream = client(world, "n2").await.read(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await? {
        if let Some(somersault_proto::v1::chunk::Content::Data(data)) = chunk.content {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

const WHOLE: Range = Range { offset: 0, length: MIB };

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_one_volume_for_one_node() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), MIB, &[(0, MIB)], 1);
    let sign = |change: fn(&mut Claims)| {
        let mut claims = world.claims("t1", "pvc-1");
        change(&mut claims);
        world.signer.sign(&claims).expect("signed")
    };
    assert_eq!(manifest(&world, "n2", &sign(|_| {})).await.expect("served").files.len(), 2);
    let refused = async |name: &str, token: &str, why: &str| {
        let status = manifest(&world, name, token).await.expect_err(why);
        assert_eq!(status.code(), Code::PermissionDenied, "{why}: {status}");
        assert!(status.message().contains(why), "{why}: {status}");
    };
    refused("n3", &sign(|_| {}), "target_node").await;
    refused("n2", &sign(|claims| claims.source_node = node("n9")), "source_node").await;
    refused("n2", &sign(|claims| claims.exp = 1_000_000), "expired").await;
    refused("n2", "", "bytes").await;
    refused("n2", "not.a.token", "read").await;
    let other = TokenSigner::generate().expect("a key");
    refused("n2", &other.sign(&world.claims("t1", "pvc-1")).expect("signed"), "signature").await;
    for path in ["/etc/ssl", "/etc"] {
        let claims = Claims { source_path: path.parse().expect("a path"), ..world.claims("t1", "x") };
        refused("n2", &world.signer.sign(&claims).expect("signed"), "storage root").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_coordinator_replaces_its_key() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), MIB, &[(0, MIB)], 1);
    let old = world.order("t1", "pvc-1");
    let signer = TokenSigner::generate().expect("a key");
    world.source.transfers.set_token_key("c0", signer.public_key());
    let error = world.pull(old.clone()).await.expect_err("refused");
    assert_eq!(error.reason(), "SourceRefused", "{error}");
    // Another replica's key stands beside it.
    world.source.transfers.set_token_key("c1", world.signer.public_key());
    world.pull(old).await.expect("copied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_job_or_volume_does_not_carry_over() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), MIB, &[(0, MIB)], 1);
    make_volume(&world.source.path("pvc-2"), MIB, &[(0, MIB)], 2);
    let ours = world.order("t1", "pvc-1");
    for other in [world.order("t2", "pvc-1"), world.order("t1", "pvc-2")] {
        let mixed = somersault_agent::transfer::PullRequest { token: other.token.clone(), ..ours.clone() };
        assert_eq!(world.pull(mixed).await.expect_err("refused").reason(), "OrderRefused");
        // At the source: what one job listed is of no use to another.
        let listed = manifest(&world, "n2", &ours.token).await.expect("served");
        let status = read(&world, &other.token, &listed.identity, 1, WHOLE).await.expect_err("refused");
        assert_eq!(status.code(), Code::Aborted, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_swapped_in_after_the_listing_is_not_read() {
    let world = World::new();
    let volume = world.source.path("pvc-1");
    make_volume(&volume, MIB, &[(0, MIB)], 1);
    std::fs::create_dir(volume.join("sub")).expect("made");
    std::fs::write(volume.join("sub/passwd"), "inside").expect("written");
    let token = world.order("t1", "pvc-1").token;
    let listed = manifest(&world, "n2", &token).await.expect("served");
    let six = Range { offset: 0, length: 6 };
    assert_eq!(read(&world, &token, &listed.identity, 3, six).await.expect("served"), b"inside");

    std::fs::rename(volume.join("disk.img"), volume.join("old")).expect("moved");
    symlink("/etc/passwd", volume.join("disk.img")).expect("linked");
    let status = read(&world, &token, &listed.identity, 1, WHOLE).await.expect_err("a link");
    assert!(status.message().contains("symbolic link"), "{status}");
    std::fs::remove_file(volume.join("disk.img")).expect("removed");
    std::fs::write(volume.join("disk.img"), vec![1; 1 << 20]).expect("written");
    let status = read(&world, &token, &listed.identity, 1, WHOLE).await.expect_err("another file");
    assert!(status.message().contains("replaced"), "{status}");

    std::fs::remove_dir_all(volume.join("sub")).expect("removed");
    symlink("/etc", volume.join("sub")).expect("linked");
    let status = read(&world, &token, &listed.identity, 3, six).await.expect_err("a link on the way");
    assert!(status.message().contains("symbolic link"), "{status}");

    std::fs::rename(&volume, world.source.path("moved")).expect("moved");
    symlink("/etc", &volume).expect("linked");
    assert_eq!(manifest(&world, "n2", &token).await.expect_err("a link").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_are_refused() {
    let world = World::new();
    make_volume(&world.source.path("pvc-1"), 200 * MIB, &[(0, MIB)], 1);
    let token = world.order("t1", "pvc-1").token;
    let listed = manifest(&world, "n2", &token).await.expect("served");
    for range in [
        Range { offset: u64::MAX, length: 1 },
        Range { offset: 0, length: u64::MAX },
        Range { offset: 1, length: MIB },
        Range { offset: 0, length: 0 },
        Range { offset: 200 * MIB, length: MIB },
        Range { offset: 0, length: 100 * MIB },
    ] {
        let status = read(&world, &token, &listed.identity, 1, range).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{range:?}: {status}");
        let request = HashesRequest {
            token: token.clone(),
            file: 1,
            identity: listed.identity.clone(),
            ranges: vec![range, range],
        };
        let status = client(&world, "n2").await.get_hashes(request).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{range:?}: {status}");
    }
    for file in [0, 2, u32::MAX] {
        let status = read(&world, &token, &listed.identity, file, WHOLE).await.expect_err("no such file");
        assert_eq!(status.code(), Code::FailedPrecondition, "{file}: {status}");
    }
    assert!(read(&world, &token, b"another state", 1, WHOLE).await.is_err());
    // Nothing of this hurt the service.
    assert_eq!(read(&world, &token, &listed.identity, 1, WHOLE).await.expect("served").len(), 1 << 20);
}

//! A source that lies: found out each time, nothing published, nothing written outside the partial copy.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt, stream};
use somersault_agent::transfer::{Limits, PullProgress, PullRequest, TransferConfig, Transfers};
use somersault_proto::tls::TlsSource;
use somersault_proto::v1::transfer_server::{Transfer, TransferServer};
use somersault_proto::v1::{
    Changed, Chunk, Encoding, File, FileKind, Hashes, HashesRequest, Manifest, ManifestRequest, Range,
    ReadRequest, chunk::Content,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::world::*;

/// Changes an honest manifest; told how many there were before.
type ManifestLie = fn(&mut Manifest, u64);
/// Changes honest chunks.
type ChunkLie = fn(&mut Vec<Chunk>);
/// Answers for leaves.
type HashLie = fn(&HashesRequest) -> Vec<Hashes>;

/// How to lie.
#[derive(Clone, Default)]
struct Lies {
    manifest: Option<ManifestLie>,
    chunks: Option<ChunkLie>,
    /// Where the target says what it has.
    chunks_after: Option<ChunkLie>,
    hashes: Option<HashLie>,
    silent: &'static str,
    asked: Arc<AtomicU64>,
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

const CHUNKS: u64 = 4;

/// What the honest part of it serves.
fn content(offset: u64) -> Vec<u8> {
    vec![u8::try_from(offset / MIB + 1).expect("small"); 1 << 20]
}

fn honest() -> Manifest {
    // Whoever runs the test may give files to nobody else.
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let folder = File { kind: FileKind::Folder.into(), mode: 0o755, uid, gid, ..File::default() };
    let file = File {
        path: "disk.img".into(),
        size_bytes: CHUNKS * MIB,
        mode: 0o644,
        uid,
        gid,
        data: vec![Range { offset: 0, length: CHUNKS * MIB }],
        ..File::default()
    };
    Manifest { chunk_bytes: 1 << 20, files: vec![folder, file], identity: vec![7; 32].into(), version: 1 }
}

fn chunk(offset: u64) -> Chunk {
    let data = content(offset);
    let leaf = blake3::hash(&data).as_bytes().to_vec();
    Chunk { offset, content: Some(Content::Data(data.into())), leaf: leaf.into(), ..Chunk::default() }
}

fn items<T: Send + 'static>(items: Vec<T>, silent: bool) -> Response<Items<T>> {
    let items = stream::iter(items).map(Ok);
    Response::new(if silent { Box::pin(items.chain(stream::pending())) } else { Box::pin(items) })
}

#[tonic::async_trait]
impl Transfer for Lies {
    type GetHashesStream = Items<Hashes>;
    type ReadStream = Items<Chunk>;

    async fn get_manifest(&self, _: Request<ManifestRequest>) -> Result<Response<Manifest>, Status> {
        if self.silent == "manifest" {
            std::future::pending::<()>().await;
        }
        let mut manifest = honest();
        if let Some(lie) = self.manifest {
            lie(&mut manifest, self.asked.fetch_add(1, Ordering::Relaxed));
        }
        Ok(Response::new(manifest))
    }

    async fn get_hashes(&self, request: Request<HashesRequest>) -> Result<Response<Items<Hashes>>, Status> {
        let hashes = self.hashes.map_or_else(Vec::new, |lie| lie(request.get_ref()));
        Ok(items(hashes, self.silent == "hashes"))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Items<Chunk>>, Status> {
        let ReadRequest { ranges, have, .. } = request.into_inner();
        let offsets =
            ranges.iter().flat_map(|range| (range.offset..range.offset + range.length).step_by(1 << 20));
        let mut chunks: Vec<Chunk> = offsets.map(chunk).collect();
        if self.silent == "read" {
            chunks.clear();
        }
        if let Some(lie) = self.chunks {
            lie(&mut chunks);
        }
        if let Some(lie) = self.chunks_after.filter(|_| !have.is_empty()) {
            lie(&mut chunks);
        }
        Ok(items(chunks, self.silent == "read"))
    }
}

/// A target whose source lies.
struct Deceived {
    world: World,
    order: PullRequest,
}

impl Deceived {
    fn by(lies: Lies) -> Self {
        let world = World::new();
        let tls = TlsSource::read(&world.certs.path().join("n1")).expect("certificates");
        let server = TransferServer::new(lies).max_encoding_message_size(usize::MAX);
        let (address, _) = serve(&tls, server);
        let mut order = world.order("t1", "pvc-1");
        order.source_address = address.parse().expect("an address");
        Self { world, order }
    }

    /// Fails with this reason, and leaves nothing but the partial copy.
    async fn fails(&self, reason: &str, what: &str) {
        let error = self.world.pull(self.order.clone()).await.expect_err(what);
        assert_eq!(error.reason(), reason, "{what}: {}", error.message());
        let names: Vec<_> = std::fs::read_dir(self.world.target.root.path())
            .expect("listed")
            .map(|item| item.expect("listed").file_name())
            .collect();
        assert!(names.iter().all(|name| name == ".somersault-t1.partial"), "{what}: {names:?}");
        assert!(!Path::new("/tmp/somersault-escaped").exists(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_honest_part_is_copied() {
    let deceived = Deceived::by(Lies::default());
    deceived.world.pull(deceived.order.clone()).await.expect("copied");
    let image = std::fs::read(deceived.world.target.path("pvc-1").join("disk.img")).expect("there");
    assert!(image == (0..CHUNKS).flat_map(|chunk| content(chunk * MIB)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_cannot_be_are_refused() {
    let lies: Vec<(&str, ManifestLie)> = vec![
        ("a path that leaves", |manifest, _| manifest.files[1].path = "../../tmp/somersault-escaped".into()),
        ("an absolute path", |manifest, _| manifest.files[1].path = "/tmp/somersault-escaped".into()),
        ("a path through a file", |manifest, _| {
            let mut inner = manifest.files[1].clone();
            inner.path = "disk.img/x".into();
            manifest.files.push(inner);
        }),
        ("a path without its folder", |manifest, _| manifest.files[1].path = "no/such/folder".into()),
        ("no folder", |manifest, _| drop(manifest.files.remove(0))),
        ("a size that cannot be", |manifest, _| {
            manifest.files[1].size_bytes = u64::MAX;
            manifest.files[1].data.clear();
        }),
        ("overlapping ranges", |manifest, _| {
            manifest.files[1].data =
                vec![Range { offset: 0, length: 2 * MIB }, Range { offset: MIB, length: 2 * MIB }];
        }),
        ("a range that overflows", |manifest, _| {
            manifest.files[1].data = vec![Range { offset: u64::MAX - MIB + 1, length: MIB }];
        }),
        ("a range beyond the end", |manifest, _| {
            manifest.files[1].data = vec![Range { offset: 0, length: 5 * MIB }];
        }),
        ("too many files", |manifest, _| {
            let file = manifest.files.pop().expect("there");
            manifest.files.extend(
                (0..263_000).map(|number| File { path: format!("{number:06}").into(), ..file.clone() }),
            );
        }),
        ("chunks of another size", |manifest, _| manifest.chunk_bytes = 1 << 30),
        ("an identity of one byte", |manifest, _| manifest.identity = vec![1].into()),
    ];
    for (what, lie) in lies {
        let deceived = Deceived::by(Lies { manifest: Some(lie), ..Lies::default() });
        deceived.fails("SourceInvalid", what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_cannot_fit_is_refused_before_anything_is_written() {
    let deceived = Deceived::by(Lies {
        manifest: Some(|manifest, _| {
            manifest.files[1].size_bytes = 8 << 40;
            manifest.files[1].data = vec![Range { offset: 0, length: 8 << 40 }];
        }),
        ..Lies::default()
    });
    deceived.fails("TargetFull", "8 TiB").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_were_not_asked_for_are_refused() {
    let lies: Vec<(&str, ChunkLie)> = vec![
        ("a leaf of something else", |chunks| chunks[2].leaf = vec![1; 32].into()),
        ("a leaf that is none", |chunks| chunks[2].leaf = vec![0; 31].into()),
        ("a flipped bit", |chunks| {
            let mut data = content(2 * MIB);
            data[777] ^= 1;
            chunks[2].content = Some(Content::Data(data.into()));
        }),
        ("another offset", |chunks| chunks[2].offset = 3 * MIB),
        ("an offset that overflows", |chunks| chunks[2].offset = u64::MAX),
        ("a chunk twice", |chunks| chunks.insert(1, chunks[0].clone())),
        ("a chunk too many", |chunks| chunks.push(chunk(0))),
        ("a chunk too few", |chunks| drop(chunks.pop())),
        ("no chunk at all", Vec::clear),
        ("half a chunk", |chunks| chunks[1].content = Some(Content::Data(vec![1; 1 << 19].into()))),
        ("more than a chunk", |chunks| {
            chunks[1].content = Some(Content::Data(vec![1; (1 << 20) + 1].into()));
        }),
        ("a message beyond all limits", |chunks| {
            chunks[1].content = Some(Content::Data(vec![1; 3 << 20].into()));
        }),
        ("no content", |chunks| chunks[1].content = None),
        ("too many zeroes", |chunks| chunks[1].content = Some(Content::Zeroes(u64::MAX))),
        ("zeroes with the leaf of data", |chunks| chunks[1].content = Some(Content::Zeroes(MIB))),
    ];
    for (what, lie) in lies {
        let deceived = Deceived::by(Lies { chunks: Some(lie), ..Lies::default() });
        deceived.fails("SourceInvalid", what).await;
    }
}

/// What the target is told to have already is the honest content, under the final name: whether it is, leaves decide.
fn there_already(deceived: &Deceived) {
    let volume = deceived.world.target.path("pvc-1");
    std::fs::create_dir(&volume).expect("made");
    let image: Vec<u8> = (0..CHUNKS).flat_map(|chunk| content(chunk * MIB)).collect();
    std::fs::write(volume.join("disk.img"), image).expect("written");
    std::fs::set_permissions(volume.join("disk.img"), PermissionsExt::from_mode(0o644)).expect("set");
    let file = std::fs::File::open(volume.join("disk.img")).expect("open");
    file.set_modified(SystemTime::UNIX_EPOCH).expect("set");
    std::fs::set_permissions(&volume, PermissionsExt::from_mode(0o755)).expect("set");
    std::fs::File::open(&volume).expect("open").set_modified(SystemTime::UNIX_EPOCH).expect("set");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_that_were_not_asked_for_are_refused() {
    let lies: Vec<(&str, HashLie)> = vec![
        ("behind the end", |_| vec![Hashes { first_chunk: CHUNKS - 1, leaves: vec![1; 64].into() }]),
        ("far behind the end", |_| vec![Hashes { first_chunk: u64::MAX, leaves: vec![1; 64].into() }]),
        ("torn", |_| vec![Hashes { first_chunk: 0, leaves: vec![1; 33].into() }]),
        ("no hash at all", |_| vec![Hashes { first_chunk: 0, leaves: vec![0xff; 32].into() }]),
        ("no hash either", |_| vec![Hashes { first_chunk: 0, leaves: vec![0; 32].into() }]),
    ];
    for (what, lie) in lies {
        let deceived = Deceived::by(Lies { hashes: Some(lie), ..Lies::default() });
        there_already(&deceived);
        let error = deceived.world.pull(deceived.order.clone()).await.expect_err(what);
        assert_eq!(error.reason(), "SourceInvalid", "{what}: {}", error.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_that_are_left_out_prove_nothing() {
    let deceived = Deceived::by(Lies::default());
    there_already(&deceived);
    let error = deceived.world.pull(deceived.order.clone()).await.expect_err("not proven");
    assert_eq!(error.reason(), "TargetExists", "{}", error.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_ignores_what_the_target_has_only_costs_another_fetch() {
    let deceived = Deceived::by(Lies::default());
    let first = PullRequest { final_copy: false, ..deceived.order.clone() };
    deceived.world.pull(first).await.expect("copied");
    let done = deceived.world.pull(deceived.order.clone()).await.expect("copied");
    assert_eq!(done.sent_bytes, CHUNKS * MIB);
}

/// With the third chunk changed in its first block, as an honest source tells it, but for the lie.
fn changed(chunks: &mut [Chunk], blocks: u32, data: Vec<u8>, encoding: Encoding) {
    let mut whole = content(2 * MIB);
    whole[..1 << 16].fill(9);
    chunks[2].leaf = blake3::hash(&whole).as_bytes().to_vec().into();
    chunks[2].content = Some(Content::Changed(Changed { blocks, data: data.into() }));
    chunks[2].encoding = encoding.into();
}

fn packed(bytes: usize) -> Vec<u8> {
    zstd::bulk::compress(&vec![9; bytes], 1).expect("packed")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_blocks_is_held_against_what_the_target_has() {
    const BLOCK: usize = 1 << 16;
    let honest: Vec<(&str, ChunkLie)> = vec![
        ("a changed block", |chunks| changed(chunks, 1, vec![9; BLOCK], Encoding::Plain)),
        ("a changed block, packed", |chunks| changed(chunks, 1, packed(BLOCK), Encoding::Zstd)),
        ("the same", |chunks| chunks[2].content = Some(Content::Same(true))),
    ];
    let lies: Vec<(&str, ChunkLie)> = vec![
        ("the same with another leaf", |chunks| {
            chunks[2].content = Some(Content::Same(true));
            chunks[2].leaf = vec![1; 32].into();
        }),
        ("not the same", |chunks| chunks[2].content = Some(Content::Same(false))),
        ("another block", |chunks| changed(chunks, 2, vec![9; BLOCK], Encoding::Plain)),
        ("no block", |chunks| changed(chunks, 0, vec![9; BLOCK], Encoding::Plain)),
        ("no content", |chunks| changed(chunks, 0, vec![], Encoding::Plain)),
        ("blocks behind the end", |chunks| changed(chunks, 1 << 16, vec![9; BLOCK], Encoding::Plain)),
        ("a flipped bit", |chunks| changed(chunks, 1, vec![8; BLOCK], Encoding::Plain)),
        ("half a block", |chunks| changed(chunks, 1, vec![9; BLOCK / 2], Encoding::Plain)),
        ("more than a block", |chunks| changed(chunks, 1, vec![9; BLOCK + 1], Encoding::Plain)),
        ("half a block, packed", |chunks| changed(chunks, 1, packed(BLOCK / 2), Encoding::Zstd)),
        ("a bomb", |chunks| changed(chunks, 1, packed(1 << 28), Encoding::Zstd)),
        ("no frame", |chunks| changed(chunks, 1, vec![9; BLOCK], Encoding::Zstd)),
        ("an encoding that is none", |chunks| chunks[2].encoding = 7),
    ];
    let all = honest.into_iter().map(|way| (true, way)).chain(lies.into_iter().map(|way| (false, way)));
    for (is_true, (what, lie)) in all {
        let deceived = Deceived::by(Lies { chunks_after: Some(lie), ..Lies::default() });
        let first = PullRequest { final_copy: false, ..deceived.order.clone() };
        deceived.world.pull(first).await.expect("copied");
        if is_true {
            let done = deceived.world.pull(deceived.order.clone()).await.expect(what);
            assert_eq!(done.total_bytes, CHUNKS * MIB, "{what}");
        } else {
            deceived.fails("SourceInvalid", what).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_target_has_nothing_there_are_zeroes() {
    let lies: Vec<(&str, ChunkLie)> = vec![
        ("the same", |chunks| chunks[2].content = Some(Content::Same(true))),
        ("blocks of something else", |chunks| changed(chunks, 1, vec![9; 1 << 16], Encoding::Plain)),
    ];
    for (what, lie) in lies {
        let deceived = Deceived::by(Lies { chunks: Some(lie), ..Lies::default() });
        deceived.fails("SourceInvalid", what).await;
    }
    let honest: ChunkLie = |chunks| {
        let mut whole = vec![0; 1 << 20];
        whole[1 << 16..2 << 16].fill(9);
        chunks[2].leaf = blake3::hash(&whole).as_bytes().to_vec().into();
        let data = vec![9; 1 << 16].into();
        chunks[2].content = Some(Content::Changed(Changed { blocks: 2, data }));
    };
    let deceived = Deceived::by(Lies { chunks: Some(honest), ..Lies::default() });
    let done = deceived.world.pull(deceived.order.clone()).await.expect("copied");
    assert_eq!(done.sent_bytes, (CHUNKS - 1) * MIB + BLOCK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_never_is_the_same_fails_a_final_copy() {
    let lies = Lies {
        manifest: Some(|manifest, asked| {
            manifest.identity = vec![u8::try_from(asked).expect("few"); 32].into();
        }),
        ..Lies::default()
    };
    Deceived::by(lies).fails("SourceChanged", "another identity each time").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_falls_silent_is_given_up() {
    for silent in ["read", "hashes", "manifest"] {
        let deceived = Deceived::by(Lies { silent, ..Lies::default() });
        let first = PullRequest { final_copy: false, ..deceived.order.clone() };
        let patience = Duration::from_millis(300);
        let limits = Limits { stall: patience, listing: patience, ..quick() };
        let target = &deceived.world.target;
        let tls = TlsSource::read(&deceived.world.certs.path().join("n2")).expect("certificates");
        let config = TransferConfig {
            roots: vec![(target.root.path().to_owned(), 1)],
            pods: None,
            tls,
            node: target.name.clone(),
        };
        let transfers = Transfers::with_limits(config, limits);
        let pull = |order| transfers.pull(order, watch::channel(PullProgress::default()).0);
        if silent == "hashes" {
            there_already(&deceived);
        }
        let result = pull(first).await;
        assert_eq!(result.expect_err(silent).reason(), "SourceUnreachable", "{silent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_source_node_is_believed() {
    let world = World::new();
    let tls = TlsSource::read(&world.certs.path().join("n3")).expect("certificates");
    let (address, _) = serve(&tls, TransferServer::new(Lies::default()));
    let mut order = world.order("t1", "pvc-1");
    order.source_address = address.parse().expect("an address");
    assert_eq!(world.pull(order.clone()).await.expect_err("another node").reason(), "SourceUnreachable");
    // A port that nobody listens on.
    order.source_address = "127.0.0.1:1".parse().expect("an address");
    assert_eq!(world.pull(order).await.expect_err("nobody").reason(), "SourceUnreachable");
    assert_eq!(std::fs::read_dir(world.target.root.path()).expect("listed").count(), 0);
}

//! A manifest on the wire, file by file: neither side ever has all of it in memory as messages, which would be several hundred
//! bytes for each of a quarter of a million files.
//!
//! ```text
//!   Manifest ──entry by entry──► 64 KiB of File messages ──► ... ──► File messages ──entry by entry──► Manifest
//! ```
//!
//! What is sent is what tonic's codec sends and takes for one `Manifest`, byte for byte but for the order of the fields, which
//! protobuf leaves open: old and new agents understand each other.

use bytes::{Buf, BufMut, BytesMut};
use futures::stream;
use http::Response;
use prost::Message;
use prost::encoding::{
    WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint, key_len,
};
use somersault_agent_core::transfer::{
    CHUNK_BYTES, Entry, Extra, Kind, Lister, MAX_FILES_PER_READ, Manifest, Metadata, chunk_count,
};
use somersault_proto::model::{self, TRANSFER_MESSAGE_BYTES_MAX};
use somersault_proto::v1;
use tonic::Status;
use tonic::body::Body;

use super::TransferError;
use super::frames::{self, Incoming, PREFIX_BYTES};
use super::source::wire_range;

/// The method that is spoken so.
pub(super) const LIST: &str = "/somersault.v1.Transfer/GetManifest";

/// Number of the field that has the files, from transfer.proto.
const FILES: u32 = 2;

/// What is made ready at once.
const PIECE_BYTES: usize = 64 << 10;

/// Most bytes of all fields but the files, those among them that only a newer source knows.
const REST_BYTES_MAX: usize = 64 << 10;

/// Longest beginning of a field: its key and a length, or a number.
const BEGINNING_BYTES: usize = 20;

/// A volume as its source lists it.
pub(super) struct Listed {
    pub(super) manifest: Manifest,
    /// How many small files may be asked for at once.
    pub(super) files_max: usize,
}

/// All of it, for an answer.
pub(super) fn answer(manifest: Manifest) -> Result<Response<Body>, Status> {
    let head = wire_head(&manifest);
    let field = |length: usize| key_len(FILES) + encoded_len_varint(length as u64) + length;
    let files = manifest.entries().map(|entry| field(wire_file(&entry).encoded_len()));
    let length = head.encoded_len() + files.sum::<usize>();
    if length > TRANSFER_MESSAGE_BYTES_MAX {
        let why = format!("its list has {length} bytes, at most {TRANSFER_MESSAGE_BYTES_MAX} are sent");
        return Err(TransferError::SourceUnsupported(why).into_status());
    }
    let mut first = BytesMut::with_capacity(PREFIX_BYTES + head.encoded_len());
    frames::prefix(&mut first, length);
    first.put(head.encode_to_vec().as_slice());
    let mut next = 0;
    let pieces = std::iter::from_fn(move || {
        let mut piece = BytesMut::new();
        while piece.len() < PIECE_BYTES
            && let Some(entry) = manifest.entry(next)
        {
            let file = wire_file(&entry).encode_to_vec();
            encode_key(FILES, WireType::LengthDelimited, &mut piece);
            encode_varint(file.len() as u64, &mut piece);
            piece.put(file.as_slice());
            next += 1;
        }
        (!piece.is_empty()).then(|| piece.freeze())
    });
    let pieces = std::iter::once(first.freeze()).chain(pieces);
    Ok(frames::respond(stream::iter(pieces.map(|piece| Ok([piece])))))
}

/// All of it, for tonic.
pub(super) fn wire_manifest(manifest: &Manifest) -> v1::Manifest {
    let files = manifest.entries().map(|entry| wire_file(&entry)).collect();
    v1::Manifest { files, ..wire_head(manifest) }
}

fn wire_head(manifest: &Manifest) -> v1::Manifest {
    model::Manifest { identity: manifest.identity().to_vec().into(), packs: true }.into()
}

fn wire_file(entry: &Entry) -> v1::File {
    let file = model::File {
        path: entry.path.clone().into(),
        kind: match entry.kind {
            Kind::Regular => model::FileKind::Regular,
            Kind::Folder => model::FileKind::Folder,
            Kind::Symlink => model::FileKind::Symlink,
            Kind::Pipe => model::FileKind::Pipe,
            Kind::Link => model::FileKind::Link,
        },
        size_bytes: entry.size_bytes,
        mode: entry.metadata.mode,
        uid: entry.metadata.uid,
        gid: entry.metadata.gid,
        mtime_s: entry.metadata.mtime_s,
        mtime_ns: entry.metadata.mtime_ns,
        data: entry.data.iter().map(|range| wire_range(entry.size_bytes, range)).collect(),
        target: entry.target().to_vec().into(),
        attributes: entry
            .attributes()
            .iter()
            .map(|(name, value)| (name.clone().into(), value.clone().into()))
            .collect(),
    };
    file.into()
}

/// The list of an answer, as it arrives. What is wrong with its content is the inner error.
pub(super) async fn take(incoming: Incoming) -> Result<Result<Listed, TransferError>, Status> {
    let mut arriving = Arriving { incoming, left: 0, rest: BytesMut::new() };
    arriving.begin().await?;
    let (mut listing, mut lister) = (model::Listing::default(), Lister::default());
    while let Some(file) = arriving.next().await? {
        let taken = listing.file(file).map_err(|error| invalid(&error)).map(|file| entry(&file));
        if let Err(error) = taken.and_then(|entry| Ok(lister.push(&entry)?)) {
            return Ok(Err(error));
        }
    }
    let rest = arriving.end().await?;
    Ok(listing.end(rest).map_err(|error| invalid(&error)).and_then(|told| {
        let identity = <[u8; 32]>::try_from(told.identity.as_ref())
            .map_err(|_| TransferError::SourceInvalid("the identity has not 32 bytes".into()))?;
        let files_max = if told.packs { MAX_FILES_PER_READ } else { 1 };
        Ok(Listed { manifest: lister.end(identity)?, files_max })
    }))
}

fn invalid(error: &model::ModelError) -> TransferError {
    TransferError::SourceInvalid(error.to_string())
}

fn entry(file: &model::File) -> Entry {
    Entry {
        path: file.path.to_vec(),
        kind: match file.kind {
            model::FileKind::Regular => Kind::Regular,
            model::FileKind::Folder => Kind::Folder,
            model::FileKind::Symlink => Kind::Symlink,
            model::FileKind::Pipe => Kind::Pipe,
            model::FileKind::Link => Kind::Link,
        },
        size_bytes: file.size_bytes,
        metadata: Metadata {
            mode: file.mode,
            uid: file.uid,
            gid: file.gid,
            mtime_s: file.mtime_s,
            mtime_ns: file.mtime_ns,
        },
        data: file.data.iter().map(|range| range.offset / CHUNK_BYTES..chunk_count(range.end())).collect(),
        extra: Extra::of(
            file.target.to_vec(),
            file.attributes.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        ),
    }
}

/// One message, field by field.
struct Arriving {
    incoming: Incoming,
    /// Bytes of the message that were not taken yet.
    left: usize,
    /// All fields but the files.
    rest: BytesMut,
}

impl Arriving {
    async fn begin(&mut self) -> Result<(), Status> {
        loop {
            if let Some(length) = self.incoming.length()? {
                self.left = length;
                self.incoming.pieces.advance(PREFIX_BYTES);
                return Ok(());
            }
            self.more().await?;
        }
    }

    /// The next file; `None` when the message is at its end.
    async fn next(&mut self) -> Result<Option<v1::File>, Status> {
        while self.left > 0 {
            let mut beginning = [0; BEGINNING_BYTES];
            while self.incoming.pieces.remaining() < self.left.min(BEGINNING_BYTES) {
                self.more().await?;
            }
            let room = self.left.min(BEGINNING_BYTES);
            let found = self.incoming.pieces.peek_some(&mut beginning[..room]);
            let Field { number, head, length } =
                Field::of(&beginning[..found]).ok_or_else(|| wrong("is damaged"))?;
            if length > self.left {
                return Err(wrong("has a field that is longer than it"));
            }
            while self.incoming.pieces.remaining() < length {
                self.more().await?;
            }
            self.left -= length;
            if number == FILES {
                self.incoming.pieces.advance(head);
                let file = v1::File::decode((&mut self.incoming.pieces).take(length - head));
                return file.map(Some).map_err(|error| wrong(&error.to_string()));
            }
            if self.rest.len() + length > REST_BYTES_MAX {
                return Err(wrong("has more besides its files than any source tells"));
            }
            self.rest.put((&mut self.incoming.pieces).take(length));
        }
        Ok(None)
    }

    /// All that is not a file.
    async fn end(mut self) -> Result<v1::Manifest, Status> {
        if self.incoming.more().await? {
            return Err(wrong("is not the only one"));
        }
        v1::Manifest::decode(self.rest).map_err(|error| wrong(&error.to_string()))
    }

    async fn more(&mut self) -> Result<(), Status> {
        if self.incoming.more().await? { Ok(()) } else { Err(Status::internal("the list is missing")) }
    }
}

/// A field of a message by its first bytes.
struct Field {
    number: u32,
    /// Bytes before its content.
    head: usize,
    /// Of all of it.
    length: usize,
}

impl Field {
    fn of(mut bytes: &[u8]) -> Option<Self> {
        let all = bytes.len();
        let (number, kind) = decode_key(&mut bytes).ok()?;
        let content = match kind {
            WireType::Varint => {
                let head = all - bytes.len();
                decode_varint(&mut bytes).ok()?;
                return Some(Self { number, head, length: all - bytes.len() }).filter(|_| number != FILES);
            }
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut bytes).ok()?).ok()?,
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let head = all - bytes.len();
        let is_whole = number != FILES || kind == WireType::LengthDelimited;
        Some(Self { number, head, length: head.checked_add(content)? }).filter(|_| is_whole)
    }
}

fn wrong(why: &str) -> Status {
    Status::internal(format!("the message with the list {why}"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;

    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    fn manifest(names: &[u16]) -> Manifest {
        let metadata = Metadata { mode: 0o640, uid: 7, gid: 8, mtime_s: -9, mtime_ns: 10 };
        let made = |path: String, kind, size_bytes: u64| {
            let data = (size_bytes > 0).then_some(0..chunk_count(size_bytes)).into_iter().collect();
            Entry { path: path.into(), kind, size_bytes, metadata, data, extra: None }
        };
        let paths: std::collections::BTreeSet<String> =
            names.iter().map(|name| format!("f{name:05}")).collect();
        let files = paths.into_iter().map(|path| {
            let size = u64::from(path.as_bytes()[5]) * 40_000;
            made(path, Kind::Regular, size)
        });
        let folder = made(String::new(), Kind::Folder, 0);
        Manifest::new([5; 32], std::iter::once(folder).chain(files)).expect("valid")
    }

    /// The bytes of a body, and its end.
    async fn sent(response: Response<Body>) -> (Bytes, Option<http::HeaderMap>) {
        let collected = response.into_body().collect().await.expect("no error");
        let trailers = collected.trailers().cloned();
        (collected.to_bytes(), trailers)
    }

    /// An answer whose bytes arrive in pieces of this size.
    fn arriving(bytes: &Bytes, piece: usize) -> Incoming {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let pieces = bytes.chunks(piece).map(|piece| http_body::Frame::data(Bytes::copy_from_slice(piece)));
        let frames: Vec<_> =
            pieces.chain([http_body::Frame::trailers(trailers)]).map(Ok::<_, Status>).collect();
        let response = Response::new(Body::new(StreamBody::new(stream::iter(frames))));
        Incoming::new(response, TRANSFER_MESSAGE_BYTES_MAX).expect("headers")
    }

    fn framed(message: &v1::Manifest) -> Bytes {
        let mut bytes = BytesMut::new();
        frames::prefix(&mut bytes, message.encoded_len());
        bytes.put(message.encode_to_vec().as_slice());
        bytes.freeze()
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_tonic_would_send_and_what_arrives(
            names in proptest::collection::vec(any::<u16>(), 0..2000), piece in 1_usize..5000,
        ) {
            let manifest = manifest(&names);
            let (bytes, trailers) = run(async { sent(answer(manifest.clone()).expect("short")).await });
            prop_assert_eq!(&trailers.expect("an end")["grpc-status"], "0");
            let message = v1::Manifest::decode(bytes.slice(PREFIX_BYTES..)).expect("a message");
            prop_assert_eq!(&message, &wire_manifest(&manifest));
            prop_assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().expect("four")) as usize, bytes.len() - 5);
            for bytes in [bytes, framed(&message)] {
                let listed = run(take(arriving(&bytes, piece))).expect("arrived").expect("valid");
                prop_assert_eq!(&listed.manifest, &manifest);
                prop_assert_eq!(listed.files_max, MAX_FILES_PER_READ);
            }
        }

        #[test]
        fn garbage_is_refused_and_bounded(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), at in any::<proptest::sample::Index>(), flip in 1_u8..,
        ) {
            // Either it is found to be wrong, or it ends; it never hangs, and never panics.
            let _ = run(take(arriving(&bytes.into(), 7)));
            let mut damaged = framed(&wire_manifest(&manifest(&[1, 2, 3]))).to_vec();
            let at = at.index(damaged.len());
            damaged[at] ^= flip;
            let _ = run(take(arriving(&damaged.into(), 7)));
        }
    }

    #[test]
    fn what_only_a_newer_source_knows_is_left_out() {
        let manifest = manifest(&[1]);
        let mut message = wire_manifest(&manifest).encode_to_vec();
        encode_key(99, WireType::LengthDelimited, &mut message);
        encode_varint(3, &mut message);
        message.extend([1, 2, 3]);
        encode_key(98, WireType::SixtyFourBit, &mut message);
        message.extend([0; 8]);
        let mut bytes = BytesMut::new();
        frames::prefix(&mut bytes, message.len());
        bytes.put(message.as_slice());
        let listed = run(take(arriving(&bytes.freeze(), 3))).expect("arrived").expect("valid");
        assert_eq!(listed.manifest, manifest);
    }

    #[test]
    fn a_second_message_is_refused() {
        let one = framed(&wire_manifest(&manifest(&[1])));
        assert!(run(take(arriving(&[one.clone(), one].concat().into(), 11))).is_err());
    }
}

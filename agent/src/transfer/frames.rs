//! Chunks on the wire, as gRPC has them, without a copy of their content on either side.
//!
//! ```text
//!   0 | length | offset, leaf, encoding, key and length of the content      one HTTP/2 frame, with small chunks before it
//!   content                                                                 another: the buffer that was read into
//!   ... next chunk ...
//!   trailers: grpc-status
//! ```
//!
//! This is what tonic's codec sends and takes for a stream of `Chunk`, byte for byte but for the order of the fields, which
//! protobuf leaves open: old and new agents understand each other. That codec copies each message once when it is sent and once
//! when it arrives, which costs a tenth of a copy's time where two cores do everything.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{FutureExt, Stream, StreamExt, stream};
use http::{HeaderMap, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use somersault_proto::model::Chunk;
use somersault_proto::v1;
use tonic::body::Body;
use tonic::{Code, Status};

use super::sending::SMALL_BYTES;

/// The method that is spoken so.
pub(super) const READ: &str = "/somersault.v1.Transfer/Read";

/// A flag and a length stand before each message.
pub(super) const PREFIX_BYTES: usize = 5;

/// Numbers of the fields whose content is not copied, from transfer.proto.
const DATA: u32 = 2;
const CHANGED: u32 = 6;
const CHANGED_BLOCKS: u32 = 1;
const CHANGED_DATA: u32 = 2;

/// One message, for a request.
pub(super) fn request(uri: http::Uri, message: &impl Message) -> Request<Body> {
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len());
    prefix(&mut bytes, message.encoded_len());
    bytes.put(message.encode_to_vec().as_slice());
    let mut request = Request::new(Body::new(http_body_util::Full::new(bytes.freeze())));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    request.headers_mut().insert(header::TE, header::HeaderValue::from_static("trailers"));
    request.headers_mut().insert(header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    request
}

/// The message of a request, whose body has `bytes`.
pub(super) fn requested<M: Message + Default>(mut bytes: Bytes) -> Result<M, Status> {
    let wrong = |why: &str| Status::invalid_argument(format!("the request {why}"));
    if bytes.len() < PREFIX_BYTES {
        return Err(wrong("is cut"));
    }
    if bytes.get_u8() != 0 {
        return Err(wrong("is compressed, which was not agreed"));
    }
    if bytes.get_u32() as usize != bytes.len() {
        return Err(wrong("is not one message"));
    }
    M::decode(bytes).map_err(|error| wrong(&error.to_string()))
}

/// A stream of chunks, for an answer. Small ones that are ready together go together.
pub(super) fn answer(chunks: impl Stream<Item = Result<Chunk, Status>> + Send + 'static) -> Response<Body> {
    let batches = stream::unfold(Box::pin(chunks.fuse()), |mut chunks| async {
        let (mut batch, mut next) = (Batch::default(), Some(chunks.next().await?));
        let failed = loop {
            match next {
                Some(Ok(chunk)) => batch.add(chunk),
                Some(Err(status)) => break Some(Err(status)),
                None => break None,
            }
            if !batch.takes_more() {
                break None;
            }
            next = chunks.next().now_or_never().flatten();
        };
        Some((std::iter::once(Ok(batch.end())).chain(failed), chunks))
    });
    respond(batches.flat_map(stream::iter))
}

/// Small content that goes in one frame: each frame is a system call at both ends.
const BATCH_BYTES: usize = 128 << 10;

/// Chunks that go together.
#[derive(Default)]
struct Batch {
    small: BytesMut,
    large: Option<Bytes>,
}

impl Batch {
    fn add(&mut self, chunk: Chunk) {
        let [head, data] = frames(chunk);
        self.small.put(head);
        if data.len() <= SMALL_BYTES {
            self.small.put(data);
        } else {
            self.large = Some(data);
        }
    }

    /// Content that is not copied is the last.
    fn takes_more(&self) -> bool {
        self.large.is_none() && self.small.len() < BATCH_BYTES
    }

    fn end(self) -> [Bytes; 2] {
        [self.small.freeze(), self.large.unwrap_or_default()]
    }
}

/// An answer in pieces. The first error ends it. There are no empty frames in it: peers count them as a flood.
pub(super) fn respond<I>(pieces: impl Stream<Item = Result<I, Status>> + Send + 'static) -> Response<Body>
where
    I: IntoIterator<Item = Bytes> + Send + 'static,
{
    let ended = Status::ok("");
    let frames = pieces.map(Some).chain(stream::once(async { None })).scan(Some(ended), |open, pieces| {
        let frames = match (open.take(), pieces) {
            (None, _) => None,
            (Some(ended), Some(Ok(pieces))) => {
                *open = Some(ended);
                Some(pieces.into_iter().filter(|data| !data.is_empty()).map(Frame::data).collect())
            }
            (Some(_), Some(Err(status))) => Some(vec![trailers(&status)]),
            (Some(ended), None) => Some(vec![trailers(&ended)]),
        };
        async { frames }
    });
    let frames = frames.flat_map(stream::iter).map(Ok::<_, std::convert::Infallible>);
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    response
}

fn trailers(status: &Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    // A message that no header can carry is left out; the code is not.
    if status.add_header(&mut trailers).is_err() {
        let _ = Status::new(status.code(), "").add_header(&mut trailers);
    }
    Frame::trailers(trailers)
}

pub(super) fn prefix(bytes: &mut BytesMut, length: usize) {
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

/// A chunk's message in two parts, the second of which is its content.
fn frames(chunk: Chunk) -> [Bytes; 2] {
    let mut wire = v1::Chunk::from(chunk);
    let (mut key, content) = (
        BytesMut::new(),
        match wire.content.take() {
            Some(v1::chunk::Content::Data(data)) => (DATA, None, data),
            Some(v1::chunk::Content::Changed(v1::Changed { blocks, data })) => (CHANGED, Some(blocks), data),
            content => {
                wire.content = content;
                (0, None, Bytes::new())
            }
        },
    );
    let (field, blocks, data) = content;
    if let Some(blocks) = blocks {
        let mut inner = BytesMut::new();
        encode_key(CHANGED_BLOCKS, WireType::Varint, &mut inner);
        encode_varint(blocks.into(), &mut inner);
        encode_key(CHANGED_DATA, WireType::LengthDelimited, &mut inner);
        encode_varint(data.len() as u64, &mut inner);
        encode_key(field, WireType::LengthDelimited, &mut key);
        encode_varint((inner.len() + data.len()) as u64, &mut key);
        key.unsplit(inner);
    } else if field != 0 {
        encode_key(field, WireType::LengthDelimited, &mut key);
        encode_varint(data.len() as u64, &mut key);
    }
    let fields = wire.encode_to_vec();
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + fields.len() + key.len());
    prefix(&mut head, fields.len() + key.len() + data.len());
    head.put(fields.as_slice());
    head.put(key);
    [head.freeze(), data]
}

/// The chunks of an answer, as they arrive.
pub(super) struct Incoming {
    body: Body,
    /// What has arrived and was not taken yet.
    pub(super) pieces: Pieces,
    /// Longest message that is taken.
    message_bytes_max: usize,
}

impl Incoming {
    /// Of an answer whose headers are there.
    pub(super) fn new(response: Response<Body>, message_bytes_max: usize) -> Result<Self, Status> {
        if let Some(status) = status_of(response.headers().clone()).filter(|status| status.code() != Code::Ok)
        {
            return Err(status);
        }
        if response.status() != http::StatusCode::OK {
            return Err(Status::unknown(format!("the answer has HTTP status {}", response.status())));
        }
        Ok(Self { body: response.into_body(), pieces: Pieces::default(), message_bytes_max })
    }

    /// The next message; `None` once the source has said that it was the last.
    pub(super) async fn next(&mut self) -> Result<Option<v1::Chunk>, Status> {
        loop {
            let arrived = self.length()?.filter(|length| self.pieces.remaining() >= PREFIX_BYTES + length);
            if let Some(length) = arrived {
                self.pieces.advance(PREFIX_BYTES);
                let message = v1::Chunk::decode((&mut self.pieces).take(length));
                let wrong = |error: prost::DecodeError| Status::internal(error.to_string());
                return Ok(Some(message.map_err(wrong)?));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// Waits until more has arrived; false once the source has said that all was sent, and all was taken.
    pub(super) async fn more(&mut self) -> Result<bool, Status> {
        let Some(frame) = self.body.frame().await else {
            return Err(Status::unknown("the answer broke off"));
        };
        match frame?.into_data() {
            Ok(data) => {
                self.pieces.add(data);
                Ok(true)
            }
            Err(frame) => match frame.into_trailers().ok().and_then(status_of) {
                Some(status) if status.code() == Code::Ok => match self.pieces.remaining() {
                    0 => Ok(false),
                    _ => Err(Status::internal("the last message is cut")),
                },
                Some(status) => Err(status),
                None => Err(Status::unknown("the answer ended without a status")),
            },
        }
    }

    /// The length of the next message, once that has arrived.
    pub(super) fn length(&self) -> Result<Option<usize>, Status> {
        let Some([compressed, length @ ..]) = self.pieces.peek::<PREFIX_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(Status::internal("a message is compressed, which was not agreed"));
        }
        if length > self.message_bytes_max {
            let why = format!("a message of {length} bytes, at most {} are taken", self.message_bytes_max);
            return Err(Status::out_of_range(why));
        }
        Ok(Some(length))
    }
}

/// The status that headers or trailers tell. Tonic takes its details for what they say that they are, and panics where they are
/// not; ours have none.
fn status_of(mut headers: HeaderMap) -> Option<Status> {
    headers.remove("grpc-status-details-bin");
    Status::from_header_map(&headers)
}

/// Bytes that have arrived in pieces. What lies in one piece is taken out without a copy.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    remaining: usize,
}

impl Pieces {
    fn add(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.remaining += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// The first bytes; they may lie in several pieces.
    fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        let mut found = [0; N];
        (self.peek_some(&mut found) == N).then_some(found)
    }

    /// As many of the first bytes as there are, and as there is room for.
    pub(super) fn peek_some(&self, room: &mut [u8]) -> usize {
        let bytes = self.pieces.iter().flat_map(|piece| piece.iter());
        room.iter_mut().zip(bytes).map(|(slot, byte)| *slot = *byte).count()
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "no more than there is");
        self.remaining -= count;
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        match self.pieces.front_mut() {
            Some(piece) if piece.len() >= len => {
                self.remaining -= len;
                let taken = piece.split_to(len);
                if piece.is_empty() {
                    self.pieces.pop_front();
                }
                taken
            }
            _ => {
                let mut copied = BytesMut::with_capacity(len);
                copied.put(self.take(len));
                copied.freeze()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use somersault_proto::model::{ChunkContent, Encoding};

    use super::*;

    fn chunk() -> impl Strategy<Value = Chunk> {
        let data = || proptest::collection::vec(any::<u8>(), 1..300).prop_map(Bytes::from);
        let content = prop_oneof![
            data().prop_map(ChunkContent::Data),
            (1_u32..1 << 20).prop_map(ChunkContent::Zeroes),
            Just(ChunkContent::Same),
            (any::<u32>(), data()).prop_map(|(blocks, data)| ChunkContent::Changed(blocks, data)),
        ];
        (0_u64..1 << 50, content, any::<bool>(), any::<[u8; 32]>()).prop_map(
            |(offset, content, packed, leaf)| {
                let encoding = if packed { Encoding::Zstd } else { Encoding::Plain };
                Chunk { offset, content, encoding, leaf }
            },
        )
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    /// An answer whose bytes arrive cut at these places.
    fn cut(frames: Vec<Frame<Bytes>>, cuts: &[usize]) -> Response<Body> {
        let mut pieces = Vec::new();
        let mut cuts = cuts.iter().cycle();
        for frame in frames {
            match frame.into_data() {
                Ok(mut data) => {
                    while let Some(cut) = cuts.next().filter(|cut| **cut < data.len()) {
                        pieces.push(Frame::data(data.split_to(*cut)));
                    }
                    pieces.push(Frame::data(data));
                }
                Err(trailers) => pieces.push(trailers),
            }
        }
        let frames = stream::iter(pieces.into_iter().map(Ok::<_, Status>));
        Response::new(Body::new(StreamBody::new(frames)))
    }

    async fn all(response: Response<Body>) -> (Vec<v1::Chunk>, Result<(), Status>) {
        let mut incoming = Incoming::new(response, 1 << 20).expect("headers");
        let mut chunks = Vec::new();
        loop {
            match incoming.next().await {
                Ok(Some(chunk)) => chunks.push(chunk),
                Ok(None) => return (chunks, Ok(())),
                Err(status) => return (chunks, Err(status)),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_tonic_would_send_and_what_arrives(
            chunks in proptest::collection::vec(chunk(), 0..5), cuts in proptest::collection::vec(1_usize..50, 1..9),
            fails: bool,
        ) {
            let wire: Vec<v1::Chunk> = chunks.iter().cloned().map(Into::into).collect();
            for chunk in &chunks {
                let [head, data] = frames(chunk.clone());
                let message = [&head[PREFIX_BYTES..], &data].concat();
                prop_assert_eq!(head[0], 0);
                prop_assert_eq!(u32::from_be_bytes(head[1..5].try_into().expect("four")) as usize, message.len());
                prop_assert_eq!(v1::Chunk::decode(message.as_slice()).expect("a message"), chunk.clone().into());
            }
            let failure = Status::data_loss("a bad sector");
            let items: Vec<_> = chunks.into_iter().map(Ok).chain(fails.then(|| Err(failure.clone()))).collect();
            let (arrived, ended) = run(async {
                let mut body = answer(stream::iter(items)).into_body();
                let mut frames = Vec::new();
                while let Some(frame) = body.frame().await {
                    let frame = frame.expect("no error");
                    assert!(frame.data_ref().is_none_or(|data| !data.is_empty()));
                    frames.push(frame);
                }
                all(cut(frames, &cuts)).await
            });
            prop_assert_eq!(arrived, wire);
            let told = |status: Status| (status.code(), status.message().to_owned());
            prop_assert_eq!(ended.map_err(told), if fails { Err(told(failure)) } else { Ok(()) });
        }

        #[test]
        fn garbage_is_refused_and_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..200), ends: bool) {
            let mut frames = vec![Frame::data(Bytes::from(bytes))];
            if ends {
                frames.push(trailers(&Status::ok("")));
            }
            // Either it is found to be wrong, or it ends; it never hangs, and never panics.
            let _ = run(all(cut(frames, &[7])));
        }

        #[test]
        fn a_request_arrives(token in ".{0,20}", file: u32) {
            let message = v1::ReadRequest { token, file, version: 1, ..v1::ReadRequest::default() };
            let request = request(http::Uri::from_static("http://n1"), &message);
            let bytes = run(request.into_body().collect()).expect("a body").to_bytes();
            prop_assert_eq!(requested::<v1::ReadRequest>(bytes.clone()).expect("whole"), message);
            if bytes.len() > PREFIX_BYTES {
                prop_assert!(requested::<v1::ReadRequest>(bytes.slice(..bytes.len() - 1)).is_err());
            }
        }
    }

    #[test]
    fn small_chunks_that_are_ready_go_together() {
        let small = |offset| {
            let content = ChunkContent::Data(Bytes::from(vec![7; 4096]));
            Ok(Chunk { offset, content, encoding: Encoding::Plain, leaf: [1; 32] })
        };
        let (frames, chunks) = run(async {
            let mut body = answer(stream::iter((0..20).map(small))).into_body();
            let mut frames = Vec::new();
            while let Some(frame) = body.frame().await {
                frames.push(frame.expect("no error"));
            }
            (frames.len(), all(cut(frames, &[usize::MAX])).await.0)
        });
        assert_eq!((frames, chunks.len()), (2, 20), "one with all of them, and the end");
    }

    #[test]
    fn content_is_not_copied() {
        let data = Bytes::from(vec![7; SMALL_BYTES + 1]);
        let at = data.as_ptr();
        let chunk =
            Chunk { offset: 0, content: ChunkContent::Data(data), encoding: Encoding::Plain, leaf: [1; 32] };
        let (chunks, ended) = run(async {
            let mut body = answer(stream::iter([Ok(chunk)])).into_body();
            let mut frames = Vec::new();
            while let Some(frame) = body.frame().await {
                frames.push(frame.expect("no error"));
            }
            all(cut(frames, &[usize::MAX])).await
        });
        ended.expect("whole");
        match &chunks[0].content {
            Some(v1::chunk::Content::Data(data)) => assert_eq!(data.as_ptr(), at),
            content => panic!("{content:?}"),
        }
    }

    #[test]
    fn hostile_trailers_are_a_status_too() {
        let mut map = HeaderMap::new();
        map.insert("grpc-status", http::HeaderValue::from_static("7"));
        map.insert("grpc-status-details-bin", http::HeaderValue::from_static("no base64!"));
        let (_, ended) = run(all(cut(vec![Frame::trailers(map)], &[usize::MAX])));
        assert_eq!(ended.expect_err("refused").code(), Code::PermissionDenied);
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_has_arrived() {
        let mut head = BytesMut::new();
        prefix(&mut head, 1 << 30);
        let (_, ended) = run(all(cut(vec![Frame::data(head.freeze())], &[usize::MAX])));
        assert_eq!(ended.expect_err("refused").code(), Code::OutOfRange);
    }
}

//! The target's connections to a source: what is sent is asked for, what comes back is checked.

use std::ops::Range;
use std::time::Duration;

use futures::FutureExt;
use somersault_agent_core::transfer::{Leaf, chunk_count};
use somersault_proto::model::{self, Have, Pull, TRANSFER_MESSAGE_BYTES_MAX, TRANSFER_VERSION};
use somersault_proto::v1::{self, transfer_client::TransferClient};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tower_service::Service;

use super::TransferError;
use super::frames::{self, Incoming};
use super::listing::{self, Listed};
use super::source::wire_range;
use super::wire::Wire;

/// HTTP/2's default windows (64 KiB) let a connection idle for most of a round trip. These cover 10 Gbit/s at 10 ms with
/// two connections, and bound what a fast source can pile up in a slow target's memory.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// A frame is one system call and one copy; the default of 16 KiB makes 65,536 of each per GiB. The receiver sets it.
const FRAME_BYTES: u32 = 1 << 20;

/// A chunk with its frame; anything longer is no chunk.
const CHUNK_MESSAGE_BYTES_MAX: usize = super::io::CHUNK + 4096;

/// Until a host that does not answer at all is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Dead connections (a host that lost power sends no reset) are found out by HTTP/2 pings.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The agent of one node, for one transfer, and a connection to it for everything but content.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    caller: Caller,
    endpoint: Endpoint,
    channel: Channel,
}

/// A connection for content.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    caller: Caller,
    channel: Channel,
}

/// Which chunks of which file, and what is held of them.
pub(super) struct Ask<'a> {
    pub(super) file: usize,
    pub(super) identity: [u8; 32],
    pub(super) size_bytes: u64,
    pub(super) chunks: &'a [Range<u64>],
    pub(super) have: Vec<Have>,
    /// Behind them, all of these small files, and what is held of each.
    pub(super) more: Vec<(usize, Option<Have>)>,
}

/// A second try at what could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// All of it is wanted, or nothing.
    Whole,
    /// Zeroes are taken for what cannot be read even so.
    Salvage,
}

/// Who is asked, by which right, and how long is waited for an answer.
#[derive(Clone, Debug)]
struct Caller {
    node: String,
    token: String,
    stall: Duration,
}

impl Peer {
    /// Connects; the certificate at the other end must be the source node's.
    pub(super) async fn connect(pull: &Pull, wire: &Wire, stall: Duration) -> Result<Self, TransferError> {
        let caller = Caller { node: pull.source_node.to_string(), token: pull.token.clone(), stall };
        let endpoint = wire
            .endpoint(pull.source_address.as_str(), &pull.source_node)
            .map_err(|error| caller.unreachable(&error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|error| caller.unreachable(&error))?;
        Ok(Self { caller, endpoint, channel })
    }

    /// One more connection, for content. It is served by the runtime that asks for it.
    pub(super) async fn connection(&self) -> Result<Connection, TransferError> {
        let channel = self.endpoint.connect().await.map_err(|error| self.caller.unreachable(&error))?;
        Ok(Connection { caller: self.caller.clone(), channel })
    }

    /// The volume as it is now. `patience` is longer than the stall limit, since the source syncs the files first.
    pub(super) async fn manifest(&self, patience: Duration) -> Result<Listed, TransferError> {
        let request = v1::ManifestRequest { token: self.caller.token.clone() };
        let request = frames::request(http::Uri::from_static(listing::LIST), &request);
        let answer = async {
            let answer = call(self.channel.clone(), request).await?;
            listing::take(Incoming::new(answer, TRANSFER_MESSAGE_BYTES_MAX)?).await
        };
        self.caller.within(patience, answer).await?
    }

    /// Leaves of chunks of a file, batch by batch.
    pub(super) async fn hashes(
        &self,
        file: usize,
        identity: [u8; 32],
        size_bytes: u64,
        chunks: &[Range<u64>],
    ) -> Result<Hashes, TransferError> {
        let mut client = TransferClient::new(self.channel.clone());
        let request = v1::HashesRequest {
            token: self.caller.token.clone(),
            file: index(file)?,
            identity: identity.to_vec().into(),
            ranges: chunks.iter().map(|range| wire_range(size_bytes, range).into()).collect(),
        };
        let answer = client.get_hashes(Request::new(request));
        let stream = self.caller.within(self.caller.stall, answer).await?.into_inner();
        Ok(Hashes { caller: self.caller.clone(), stream })
    }
}

impl Connection {
    /// Asks for chunks, and says what is held of them.
    pub(super) async fn read(&self, ask: Ask<'_>, again: Option<Again>) -> Result<Chunks, TransferError> {
        let small = |(file, held): (usize, Option<Have>)| {
            Ok(v1::Small { file: index(file)?, held: held.map(|have| have.hashes).unwrap_or_default() })
        };
        let request = v1::ReadRequest {
            token: self.caller.token.clone(),
            file: index(ask.file)?,
            ranges: ask.chunks.iter().map(|range| wire_range(ask.size_bytes, range).into()).collect(),
            identity: ask.identity.to_vec().into(),
            have: ask.have.into_iter().map(Into::into).collect(),
            more: ask.more.into_iter().map(small).collect::<Result<_, TransferError>>()?,
            version: TRANSFER_VERSION,
            thorough: again.is_some(),
            salvage: again == Some(Again::Salvage),
        };
        let request = frames::request(http::Uri::from_static(frames::READ), &request);
        let answer =
            call(self.channel.clone(), request).map(|answer| Incoming::new(answer?, CHUNK_MESSAGE_BYTES_MAX));
        let incoming = self.caller.within(self.caller.stall, answer).await?;
        Ok(Chunks { caller: self.caller.clone(), incoming })
    }
}

/// Sends a request as frames.rs makes it; returns when the head of the answer is there.
async fn call(mut channel: Channel, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
    let answer = async {
        std::future::poll_fn(|context| channel.poll_ready(context)).await?;
        channel.call(request).await
    };
    answer.await.map_err(|error: tonic::transport::Error| Status::from_error(error.into()))
}

impl Caller {
    fn unreachable(&self, error: &tonic::transport::Error) -> TransferError {
        TransferError::SourceUnreachable { node: self.node.clone(), why: causes(error) }
    }

    /// Waits for the source, but not for ever: nothing for so long is a stall, whatever the size.
    async fn within<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, TransferError> {
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(TransferError::from_status(&self.node, &status)),
            Err(_) => Err(TransferError::SourceUnreachable {
                node: self.node.clone(),
                why: format!("it has sent nothing for {} s", patience.as_secs_f32()),
            }),
        }
    }
}

/// A stream of leaves.
pub(super) struct Hashes {
    caller: Caller,
    stream: Streaming<v1::Hashes>,
}

impl Hashes {
    /// The next batch: first chunk and leaves.
    pub(super) async fn next(&mut self, size_bytes: u64) -> Result<Option<(u64, Vec<Leaf>)>, TransferError> {
        let Some(batch) = self.caller.within(self.caller.stall, self.stream.message()).await? else {
            return Ok(None);
        };
        let batch = model::Hashes::try_from(batch)
            .map_err(|error| TransferError::SourceInvalid(error.to_string()))?;
        let leaf = |(chunk, hash): (u64, [u8; 32])| {
            Leaf::from_wire(hash, somersault_agent_core::transfer::chunk_len(size_bytes, chunk))
                .ok_or_else(|| TransferError::SourceInvalid(format!("the leaf of chunk {chunk} is no hash")))
        };
        if batch.first_chunk > chunk_count(size_bytes) {
            return Err(TransferError::SourceInvalid("leaves behind the end of the file".into()));
        }
        let leaves = (batch.first_chunk..).zip(batch.leaves).map(leaf).collect::<Result<_, _>>()?;
        Ok(Some((batch.first_chunk, leaves)))
    }
}

/// A stream of chunks.
pub(super) struct Chunks {
    caller: Caller,
    incoming: Incoming,
}

impl Chunks {
    /// The next chunk, `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Result<Option<model::Chunk>, TransferError> {
        let Some(chunk) = self.caller.within(self.caller.stall, self.incoming.next()).await? else {
            return Ok(None);
        };
        let chunk =
            model::Chunk::try_from(chunk).map_err(|error| TransferError::SourceInvalid(error.to_string()))?;
        Ok(Some(chunk))
    }
}

fn index(file: usize) -> Result<u32, TransferError> {
    u32::try_from(file).map_err(|_| TransferError::SourceInvalid("more files than can be named".into()))
}

/// An error with its causes, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

//! The transfer service as other agents call it: content goes by frames.rs, lists by listing.rs, everything else by tonic.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use prost::Message;
use somersault_proto::model::TRANSFER_MESSAGE_BYTES_MAX;
use somersault_proto::v1::transfer_server::{SERVICE_NAME, TransferServer};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::source::Source;
use super::{frames, listing};

/// Longest request for content or a list: so many chunks with what the target has of them, and a token.
const REQUEST_BYTES_MAX: usize = 256 << 10;

/// The source of this agent, to be added to its server.
#[derive(Clone, Debug)]
pub struct Serving {
    source: Source,
    rest: TransferServer<Source>,
}

impl Serving {
    pub(super) fn new(source: Source) -> Self {
        let rest = TransferServer::new(source.clone())
            .max_decoding_message_size(TRANSFER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(TRANSFER_MESSAGE_BYTES_MAX);
        Self { source, rest }
    }
}

impl NamedService for Serving {
    const NAME: &'static str = SERVICE_NAME;
}

impl tower_service::Service<Request<Body>> for Serving {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Both sides are always ready; each call waits for its own turn.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let source = self.source.clone();
        match request.uri().path() {
            frames::READ => {
                async { Ok(read(source, request).await.unwrap_or_else(Status::into_http)) }.boxed()
            }
            listing::LIST => {
                async { Ok(list(source, request).await.unwrap_or_else(Status::into_http)) }.boxed()
            }
            _ => self.rest.call(request).boxed(),
        }
    }
}

async fn read(source: Source, request: Request<Body>) -> Result<Response<Body>, Status> {
    Ok(frames::answer(source.content(asked(request).await?).await?))
}

async fn list(source: Source, request: Request<Body>) -> Result<Response<Body>, Status> {
    listing::answer(source.list(asked(request).await?).await?)
}

async fn asked<M: Message + Default>(request: Request<Body>) -> Result<tonic::Request<M>, Status> {
    let (parts, body) = request.into_parts();
    let bytes = Limited::new(body, REQUEST_BYTES_MAX).collect().await;
    let bytes = bytes.map_err(|error| Status::invalid_argument(format!("the request: {error}")))?.to_bytes();
    let mut asked = tonic::Request::new(frames::requested(bytes)?);
    *asked.extensions_mut() = parts.extensions;
    Ok(asked)
}

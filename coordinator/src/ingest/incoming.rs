//! Connections: how many at a time, and with which socket options. A failed accept (no file descriptors left,
//! say) is waited out; it never ends the server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Two for each agent of a cluster of Kubernetes' largest supported size would be 10,000; a coordinator that is
/// asked for more waits until some end. Handshakes that lead nowhere end by themselves after seconds.
const CONNECTIONS_MAX: usize = 10_000;
/// After a failed accept.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(100);

/// The connections that arrive, for ever.
pub fn connections(listener: TcpListener) -> impl Stream<Item = Result<Connection, io::Error>> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // `unfold` boxed: the server polls it unpinned.
    Box::pin(stream::unfold((listener, slots), |(listener, slots)| async move {
        let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
        let socket = accept(&listener).await;
        Some((Ok(Connection { socket, _slot: slot }), (listener, slots)))
    }))
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        let accepted = match listener.accept().await {
            // Beats are small and each counts: Nagle's algorithm would hold them back.
            Ok((socket, _)) => socket.set_nodelay(true).map(|()| socket),
            Err(error) => Err(error),
        };
        match accepted {
            Ok(socket) => return socket,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
            }
        }
    }
}

/// One connection, and its place among all.
pub struct Connection {
    socket: TcpStream,
    _slot: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.socket.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

//! Connections that arrive: how many at a time, and their handshakes, side by side. A failed accept (no file
//! descriptors left, say) is waited out; it never ends the server.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A peer that has not finished its handshake by then is not one of ours, or its network is of no use.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failed accept.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(100);

/// How many connections a server has at a time, handshakes included.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// In all. Whoever comes later waits until some end.
    pub total: usize,
    /// Of strangers from one address: a connection counts until a certificate has told whose it is. Whoever comes
    /// later is turned away, so that nobody can take every place.
    pub strangers_per_host: usize,
}

/// The connections that arrive, for ever, each with its handshake done.
pub struct Incoming {
    connections: Pin<Box<dyn Stream<Item = TlsStream<Socket>> + Send>>,
}

impl Incoming {
    /// Each connection is accepted with what `config` gives when it arrives.
    pub(super) fn new(
        listener: TcpListener,
        limits: ConnectionLimits,
        config: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static,
    ) -> Self {
        let door = Door {
            listener,
            slots: Arc::new(Semaphore::new(limits.total)),
            hosts: Hosts { most: limits.strangers_per_host, counts: Arc::default() },
        };
        let handshakes = JoinSet::new();
        let connections =
            stream::unfold((door, handshakes, config), |(door, mut handshakes, config)| async {
                let connection = loop {
                    tokio::select! {
                        Some(done) = handshakes.join_next() => {
                            if let Ok(Some(connection)) = done {
                                break connection;
                            }
                        }
                        socket = door.accept() => {
                            handshakes.spawn(shake_hands(socket, config()));
                        }
                    }
                };
                Some((connection, (door, handshakes, config)))
            });
        Self { connections: Box::pin(connections) }
    }
}

impl Stream for Incoming {
    type Item = Result<TlsStream<Socket>, io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_next_unpin(context).map(|next| next.map(Ok))
    }
}

async fn shake_hands(socket: Socket, config: Arc<ServerConfig>) -> Option<TlsStream<Socket>> {
    let from = socket.from;
    match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(socket)).await {
        Ok(Ok(mut connection)) => {
            let (socket, session) = connection.get_mut();
            if session.peer_certificates().is_some() {
                socket.place = None;
            }
            Some(connection)
        }
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "a handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(%from, "no handshake within {HANDSHAKE_TIMEOUT:?}");
            None
        }
    }
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    hosts: Hosts,
}

impl Door {
    async fn accept(&self) -> Socket {
        loop {
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
                // The semaphore is never closed.
                return std::future::pending().await;
            };
            let accepted = match self.listener.accept().await {
                // Beats are small and each counts: Nagle's algorithm would hold them back.
                Ok((stream, from)) => stream.set_nodelay(true).map(|()| (stream, from)),
                Err(error) => Err(error),
            };
            match accepted {
                Ok((stream, from)) => {
                    let place = self.hosts.enter(from.ip());
                    if place.is_some() {
                        return Socket { stream, from, _slot: slot, place };
                    }
                    tracing::debug!(%from, "turned away: too many connections of this host");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
                }
            }
        }
    }
}

/// Strangers' connections of each address.
#[derive(Clone)]
struct Hosts {
    most: usize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One stranger's place among those of its address.
struct Place {
    host: IpAddr,
    hosts: Hosts,
}

impl Hosts {
    fn enter(&self, host: IpAddr) -> Option<Place> {
        self.change(|counts| {
            let count = counts.entry(host).or_default();
            let free = *count < self.most;
            *count += usize::from(free);
            free
        })
        .then(|| Place { host, hosts: self.clone() })
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<IpAddr, usize>) -> T) -> T {
        // The map is whole after each change, so a panic elsewhere cannot have broken it.
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hosts.change(|counts| {
            if let Some(count) = counts.get_mut(&self.host) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&self.host);
                }
            }
        });
    }
}

/// One connection, and its place among all.
pub struct Socket {
    stream: TcpStream,
    from: SocketAddr,
    _slot: OwnedSemaphorePermit,
    place: Option<Place>,
}

impl Connected for Socket {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

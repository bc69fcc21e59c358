//! An address at which nobody answers, not even a kernel: where a machine without power was.
//!
//! On the loopback every closed port answers with a refusal. A listener that accepts nothing, and whose queue is full,
//! answers with silence.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// A handshake on the loopback takes microseconds; what takes this long is not answered.
const SILENCE: Duration = Duration::from_millis(300);
/// A queue of length 0 holds one or two connections.
const FILLING_MAX: usize = 8;

/// Such an address, for as long as this value lives.
pub struct Void {
    address: SocketAddr,
    _listener: TcpListener,
    _filling: Vec<TcpStream>,
}

impl Void {
    /// Opens it, and sees that it is silent.
    pub async fn open() -> Result<Self> {
        let socket = TcpSocket::new_v4().context("making a socket")?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).context("binding a socket")?;
        let listener = socket.listen(0).context("listening to nobody")?;
        let address = listener.local_addr().context("asking for our own address")?;
        let mut filling = Vec::new();
        while let Ok(connected) = timeout(SILENCE, TcpStream::connect(address)).await {
            filling.push(connected.context("filling a queue")?);
            ensure!(filling.len() < FILLING_MAX, "a listener's queue cannot be filled on this machine");
        }
        Ok(Self { address, _listener: listener, _filling: filling })
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_answers() {
        let void = Void::open().await.expect("opened");
        assert!(timeout(SILENCE, TcpStream::connect(void.address())).await.is_err());
    }
}

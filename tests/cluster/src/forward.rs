//! The door of a world: a port on this machine's loopback that leads to the apiserver.
//!
//! A socket stays in the network namespace in which it was made. The world's first process opens the door before
//! it moves into the world's network, and carries bytes from the one to the other; nothing on this machine's
//! network is changed, and the door closes with the world.

use std::net::TcpListener;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::addresses::{API_PORT, GATEWAY};

/// Watches are one connection for each client process, seldom more than a dozen.
const CONNECTIONS_MAX: usize = 512;

/// Opens the door; to be called while this process is still in the machine's own network.
pub fn open_door() -> Result<TcpListener> {
    let door = TcpListener::bind("127.0.0.1:0").context("listening on this machine's loopback")?;
    door.set_nonblocking(true).context("preparing the listener")?;
    Ok(door)
}

/// Carries bytes for ever, in a thread of its own; to be called in the world's network.
pub fn start(door: TcpListener) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    std::thread::Builder::new()
        .name("door".to_owned())
        .spawn(move || {
            if let Err(error) = runtime.block_on(serve(door)) {
                eprintln!("the door to the apiserver is closed: {error:#}");
            }
        })
        .map(drop)
        .context("starting the door's thread")
}

async fn serve(door: TcpListener) -> Result<()> {
    let door = tokio::net::TcpListener::from_std(door)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let Ok((mut client, _)) = door.accept().await else {
            // Too many open files, most likely: let some close.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        tokio::spawn(async move {
            // A refused or broken connection is closed on both sides, which is all that a client expects.
            if let Ok(mut server) = TcpStream::connect((GATEWAY, API_PORT)).await {
                let _closed = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
            drop(place);
        });
    }
}

//! Threads that a copy's content comes in by, each with a connection of its own, so that what a connection receives is
//! decrypted, hashed and written where it still is in the processor's cache.
//!
//! ```text
//!   Fetch --request--> lane 0: connection, hash, write ─┐
//!         --request--> lane 1: connection, hash, write ─┴─► Written
//! ```
//!
//! A lane's thread may block in a write for as long as a disk does; nothing else of the agent runs there.

use std::io;
use std::num::NonZero;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Most lanes of one copy: a core decrypts and hashes more than a gigabyte a second, and a node has other work than copies.
const LANES_MAX: usize = 4;

/// A thread with a runtime of its own. It ends once the lane is dropped and what runs on it has come to its next wait.
#[derive(Debug)]
pub(super) struct Lane {
    handle: Handle,
    _stop: DropGuard,
}

impl Lane {
    /// Starts one.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let stopped = stop.clone();
        std::thread::Builder::new()
            .name("copy".into())
            .spawn(move || runtime.block_on(stopped.cancelled_owned()))?;
        Ok(Self { handle, _stop: stop.drop_guard() })
    }

    /// Where its work is spawned.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// How many lanes a copy has on this machine.
pub(super) fn count() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(LANES_MAX)
}

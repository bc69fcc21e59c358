//! What an agent decides, without any IO: how healthy a disk is, whose word counts, which order is new.
//!
//! Time is an argument everywhere: a [`std::time::Duration`] since an arbitrary moment of the same boot
//! (`CLOCK_BOOTTIME`). Nothing here reads a clock, a file or a socket.

pub mod book;
pub mod health;
pub mod lease;
pub mod replicas;
pub mod smart;

pub mod transfer;

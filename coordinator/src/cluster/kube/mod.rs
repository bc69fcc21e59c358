//! The cluster behind a real API server.
//!
//! ```text
//!   watches, one for each kind ──► collect: one inventory ──► snapshots ──► coordinator
//!                                                                              │
//!   act ──────► look ──► guarded write: resourceVersion or uid    ─┐           │
//!   commit ───► read ──► compare record ──► replace the status     ├──► API server
//!   publish ──► what is due ──► server-side apply of the status    │
//!   event ────► create, or count up                                │
//!   lead ─────► election on a Lease, renewed                      ─┘
//! ```

mod act;
mod api;
mod client;
mod cluster;
mod collect;
mod election;
mod events;
mod held;
mod kinds;
mod lead;
pub mod policy;
mod publish;
mod records;
mod watch;
mod write;

pub use self::client::ConnectError;
pub use self::cluster::{Access, Kube};
pub use self::election::NOBODY;
pub use self::lead::LEASE_NAME;
pub use self::write::Writer;

//! The cluster behind a real API server.
//!
//! ```text
//!   act ──────► look ──► guarded write: resourceVersion or uid    ─┐
//!   commit ───► read ──► compare record ──► replace the status     ├──► API server
//!   publish ──► what is due ──► server-side apply of the status    │
//!   event ────► create, or count up                               ─┘
//! ```

mod act;
mod api;
mod events;
mod publish;
mod records;
mod write;

pub use self::write::Writer;

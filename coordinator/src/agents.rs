//! The agents' live streams. One of each kind per node: the newest wins, since an agent that connects again has
//! given up its old connection, though we may not know that yet.

use std::collections::BTreeMap;
use std::fmt;

use somersault_proto::model::{Address, FromCoordinator, Grant, Hello, NodeName};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Grants that may wait for a slow reader. An unread grant is worth nothing once the next one is there.
pub const GRANTS_WAITING_MAX: usize = 8;
/// Orders that may wait for a slow reader; what does not fit is sent again later.
pub const ORDERS_WAITING_MAX: usize = 256;

/// Where the grants of one node go.
#[derive(Debug)]
pub struct BeatStream {
    /// Unique in this process.
    pub id: u64,
    /// To the node.
    pub grants: mpsc::Sender<Result<Grant, Status>>,
    /// Ends the reading side.
    pub end: CancellationToken,
}

/// Where the orders of one node go.
pub struct Session {
    /// Unique in this process.
    pub id: u64,
    /// How the agent greeted.
    pub hello: Hello,
    /// To the node.
    pub orders: mpsc::Sender<Result<FromCoordinator, Status>>,
    /// Ends the reading side.
    pub end: CancellationToken,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("hello", &self.hello).finish_non_exhaustive()
    }
}

/// All live streams, and where each agent serves.
#[derive(Debug, Default)]
pub struct Agents {
    beats: BTreeMap<NodeName, BeatStream>,
    sessions: BTreeMap<NodeName, Session>,
    addresses: BTreeMap<NodeName, Address>,
}

impl Agents {
    /// Takes a node's new stream of beats.
    pub fn open_beats(&mut self, node: NodeName, stream: BeatStream) {
        if let Some(old) = self.beats.insert(node, stream) {
            old.end.cancel();
            drop(old.grants.try_send(Err(replaced())));
        }
    }

    /// Takes a node's new session.
    pub fn open_session(&mut self, node: NodeName, session: Session) {
        self.addresses.insert(node.clone(), session.hello.address.clone());
        if let Some(old) = self.sessions.insert(node, session) {
            old.end.cancel();
            drop(old.orders.try_send(Err(replaced())));
        }
    }

    /// Forgets a stream that ended, unless a newer one has taken its place.
    pub fn ended(&mut self, node: &NodeName, id: u64) {
        if self.beats.get(node).is_some_and(|stream| stream.id == id) {
            self.beats.remove(node);
        }
        if self.sessions.get(node).is_some_and(|session| session.id == id) {
            self.sessions.remove(node);
        }
    }

    /// Sends a grant; false where nobody reads.
    pub fn grant(&self, node: &NodeName, grant: Grant) -> bool {
        self.beats.get(node).is_some_and(|stream| stream.grants.try_send(Ok(grant)).is_ok())
    }

    /// Sends a message over a node's session; false where there is none, or it is choked.
    pub fn send(&self, node: &NodeName, message: FromCoordinator) -> bool {
        let Some(session) = self.sessions.get(node) else { return false };
        match session.orders.try_send(Ok(message)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                tracing::warn!(%node, "the agent does not read its orders; they are sent again later");
                false
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }

    /// Where a node's agent serves, as it last said.
    pub fn address(&self, node: &NodeName) -> Option<&Address> {
        self.addresses.get(node)
    }

    /// Nodes with a session.
    pub fn with_session(&self) -> impl Iterator<Item = &NodeName> {
        self.sessions.keys()
    }

    /// Ends all sessions: agents greet again, and learn of the new epoch.
    pub fn end_sessions(&mut self, why: &str) {
        for session in std::mem::take(&mut self.sessions).into_values() {
            drop(session.orders.try_send(Err(Status::unavailable(why))));
            session.end.cancel();
        }
    }

    /// Ends everything, saying why.
    pub fn end_all(&mut self, why: &str) {
        self.end_sessions(why);
        for stream in std::mem::take(&mut self.beats).into_values() {
            drop(stream.grants.try_send(Err(Status::unavailable(why))));
            stream.end.cancel();
        }
    }
}

fn replaced() -> Status {
    Status::aborted("a newer connection of this node has taken over")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeName {
        "n1".parse().unwrap()
    }

    fn stream(id: u64) -> (BeatStream, mpsc::Receiver<Result<Grant, Status>>) {
        let (grants, received) = mpsc::channel(1);
        (BeatStream { id, grants, end: CancellationToken::new() }, received)
    }

    fn grant(sequence: u64) -> Grant {
        Grant {
            sequence,
            epoch: 1,
            beat_interval: std::time::Duration::from_secs(1),
            lease: std::time::Duration::from_secs(30),
            watchdog: std::time::Duration::from_secs(10),
            policy_hash: 0,
        }
    }

    #[test]
    fn the_newest_stream_wins() {
        let mut agents = Agents::default();
        let (old, mut old_received) = stream(1);
        let old_end = old.end.clone();
        agents.open_beats(node(), old);
        let (new, mut new_received) = stream(2);
        agents.open_beats(node(), new);
        assert!(old_end.is_cancelled());
        assert!(old_received.try_recv().unwrap().is_err(), "the old stream is told why it ends");
        // The old stream's reader notices its end late, and must not take the new one away.
        agents.ended(&node(), 1);
        assert!(agents.grant(&node(), grant(1)));
        assert_eq!(new_received.try_recv().unwrap().unwrap().sequence, 1);
        agents.ended(&node(), 2);
        assert!(!agents.grant(&node(), grant(2)));
    }

    #[test]
    fn a_slow_reader_blocks_nobody() {
        let mut agents = Agents::default();
        let (slow, _received) = stream(1);
        agents.open_beats(node(), slow);
        assert!(agents.grant(&node(), grant(1)));
        assert!(!agents.grant(&node(), grant(2)), "the second does not fit and is dropped");
    }
}

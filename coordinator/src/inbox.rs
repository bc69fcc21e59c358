//! What reaches the driver: one bounded queue, each entry with the time at which it was put in.

use std::sync::Arc;

use somersault_coordinator_core::{BootTime, Input};
use somersault_proto::model::{NodeName, ProbeAnswer, Progress};
use tokio::sync::mpsc;

use crate::agents::{BeatStream, Session};
use crate::clock::Clock;

/// Entries that may wait: three seconds of beats of 250 nodes in the fast profile. Whoever finds the queue full
/// waits, and the driver learns from the entries' age that it is late.
const QUEUE_MAX: usize = 4096;

/// Something for the driver.
#[derive(Debug)]
pub enum Event {
    /// For the core as it is.
    Input(Input),
    /// A node opened its stream of beats.
    BeatsOpened {
        /// Who, by its certificate.
        node: NodeName,
        /// Where grants go.
        stream: BeatStream,
    },
    /// A node opened its session and said hello.
    SessionOpened {
        /// Who, by its certificate.
        node: NodeName,
        /// Where orders go.
        session: Session,
    },
    /// A stream of either kind ended.
    StreamEnded {
        /// Whose.
        node: NodeName,
        /// Which.
        id: u64,
    },
    /// An agent tells how an order fares.
    Progress {
        /// Who.
        node: NodeName,
        /// What.
        progress: Progress,
    },
    /// An agent answers a probe order.
    ProbeAnswered {
        /// Who was asked.
        peer: NodeName,
        /// What it found.
        answer: ProbeAnswer,
    },
}

/// An event and when it happened.
#[derive(Debug)]
pub struct Stamped {
    /// By our own clock.
    pub at: BootTime,
    /// What.
    pub event: Event,
}

/// The driver has ended: nobody is left to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is stopping")]
pub struct Stopping;

/// The way to the driver.
#[derive(Clone)]
pub struct Inbox {
    queue: mpsc::Sender<Stamped>,
    clock: Arc<dyn Clock>,
}

impl Inbox {
    /// The queue and its reading end.
    pub fn new(clock: Arc<dyn Clock>) -> (Self, mpsc::Receiver<Stamped>) {
        let (queue, events) = mpsc::channel(QUEUE_MAX);
        (Self { queue, clock }, events)
    }

    /// Puts an event in, waiting for room.
    pub async fn send(&self, event: Event) -> Result<(), Stopping> {
        let at = self.clock.now();
        self.queue.send(Stamped { at, event }).await.map_err(|_| Stopping)
    }

    /// Puts in an event of another time.
    #[cfg(test)]
    pub async fn send_stamped(&self, stamped: Stamped) {
        self.queue.send(stamped).await.unwrap();
    }

    /// Puts an input for the core in. When nobody listens any more, nobody needs it either.
    pub async fn input(&self, input: Input) {
        self.send(Event::Input(input)).await.unwrap_or_default();
    }
}

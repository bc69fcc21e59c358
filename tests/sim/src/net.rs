//! Who reaches whom, one way at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use somersault_coordinator_core::names::NodeName;

/// An end of a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A coordinator.
    Coordinator(usize),
    /// A node, and everything on it.
    Node(NodeName),
    /// The API server.
    Api,
}

/// The network.
#[derive(Clone, Debug, Default)]
pub struct Net {
    cuts: BTreeSet<(End, End)>,
    /// Share of messages that are lost.
    pub loss: f64,
    /// Share of messages that come twice.
    pub twice: f64,
    /// Share of messages that come late.
    pub late: f64,
}

/// How late a late message is at most.
const LATE_MS_MAX: u64 = 1_500;

impl Net {
    /// Whether messages from here go there.
    pub fn open(&self, from: &End, to: &End) -> bool {
        !self.cuts.contains(&(from.clone(), to.clone()))
    }

    /// Whether a question from here to there is answered.
    pub fn both(&self, one: &End, other: &End) -> bool {
        self.open(one, other) && self.open(other, one)
    }

    /// Cuts one way.
    pub fn cut(&mut self, from: End, to: End) {
        self.cuts.insert((from, to));
    }

    /// Mends every way at this end.
    pub fn mend(&mut self, end: &End) {
        self.cuts.retain(|(from, to)| from != end && to != end);
    }

    /// Mends everything.
    pub fn mend_all(&mut self) {
        *self = Self::default();
    }

    /// When the copies of one message arrive, after now; none where it is lost.
    pub fn send(&self, rng: &mut StdRng, from: &End, to: &End) -> Vec<Duration> {
        if !self.open(from, to) || rng.random_bool(self.loss) {
            return Vec::new();
        }
        let copies = if rng.random_bool(self.twice) { 2 } else { 1 };
        let way = |rng: &mut StdRng| {
            let late = rng.random_bool(self.late);
            Duration::from_micros(rng.random_range(200..if late { LATE_MS_MAX * 1_000 } else { 5_000 }))
        };
        (0..copies).map(|_| way(rng)).collect()
    }
}

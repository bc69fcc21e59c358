//! When many nodes fall silent at once, we suspect ourselves first.
//!
//! ```text
//!        3 nodes or a whole zone in 2 s, or more than max(1, 20 %) in 60 s
//!  calm ───────────────────────────────────────────────────────────────────► hold: nothing is declared,
//!   ▲                                                                          nobody is powered off
//!   └── suspects below the limits for 30 s, or released by a person ◄──────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::BootTime;
use crate::names::NodeName;
use crate::scene::Scene;

/// Watches how many nodes are suspect.
#[derive(Clone, Debug, Default)]
pub(super) struct StormWatch {
    /// When each node last became suspect. A suspicion that proves wrong is taken out.
    suspicions: BTreeMap<NodeName, BootTime>,
    hold: Option<Hold>,
}

#[derive(Clone, Debug)]
struct Hold {
    why: String,
    /// Since when the suspects have been below the limits.
    calm_since: Option<BootTime>,
    /// What `hold_release` said when the hold began: any other word ends it.
    release_before: Option<String>,
}

impl StormWatch {
    /// Why nothing is declared, while nothing is.
    pub fn hold(&self) -> Option<&str> {
        self.hold.as_ref().map(|hold| hold.why.as_str())
    }

    /// A node became suspect. True when this begins a hold.
    pub fn suspected(&mut self, scene: &Scene<'_>, node: &NodeName, known: &BTreeSet<NodeName>) -> bool {
        let storm = &scene.facts.policy.storm;
        self.suspicions.insert(node.clone(), scene.now);
        self.suspicions.retain(|_, at| scene.now.saturating_sub(*at) <= storm.window);
        if self.hold.is_some() {
            return false;
        }
        let since = |limit| {
            let recent = move |at: &BootTime| scene.now.saturating_sub(*at) <= limit;
            self.suspicions.iter().filter(move |(_, at)| recent(at)).map(|(name, _)| name.clone())
        };
        let burst: BTreeSet<NodeName> = since(storm.burst).collect();
        let window = since(storm.window).count();
        let why = if burst.len() >= storm.burst_nodes {
            format!("{} nodes fell silent within {:?}", burst.len(), storm.burst)
        } else if let Some(zone) = whole_zone(scene, &burst, known) {
            format!("every node of zone {zone:?} fell silent within {:?}", storm.burst)
        } else if window > storm.window_nodes(known.len()) {
            format!("{window} of {} nodes fell silent within {:?}", known.len(), storm.window)
        } else {
            return false;
        };
        let release_before = scene.facts.requests.hold_release.clone();
        self.hold = Some(Hold { why, calm_since: None, release_before });
        true
    }

    /// A suspicion was wrong.
    pub fn cleared(&mut self, node: &NodeName) {
        self.suspicions.remove(node);
    }

    /// Timers start anew: what was silent while we stood still says nothing about calm.
    pub fn restart(&mut self) {
        if let Some(hold) = &mut self.hold {
            hold.calm_since = None;
        }
    }

    /// Forgets everything: another leader, another vantage point.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Given who is suspect now: says why the hold ended, where it just did.
    pub fn ended(
        &mut self,
        scene: &Scene<'_>,
        suspects: &BTreeSet<NodeName>,
        known: &BTreeSet<NodeName>,
    ) -> Option<&'static str> {
        let storm = &scene.facts.policy.storm;
        let hold = self.hold.as_mut()?;
        let release = &scene.facts.requests.hold_release;
        let over = if release.is_some() && *release != hold.release_before {
            Some("a person released it")
        } else if suspects.len() >= storm.burst_nodes
            || suspects.len() > storm.window_nodes(known.len())
            || whole_zone(scene, suspects, known).is_some()
        {
            hold.calm_since = None;
            None
        } else {
            let since = *hold.calm_since.get_or_insert(scene.now);
            (scene.now >= since + storm.calm).then_some("few enough nodes are silent")
        };
        if over.is_some() {
            // A person's or time's word settles these suspicions: they must not begin the next hold.
            *self = Self::default();
        }
        over
    }

    /// When `ended` may say something new without any input.
    pub fn next_deadline(&self, calm: BootTime) -> Option<BootTime> {
        Some(self.hold.as_ref()?.calm_since? + calm)
    }
}

/// The first zone of two known nodes or more that is silent as a whole.
fn whole_zone<'a>(
    scene: &'a Scene<'_>,
    silent: &BTreeSet<NodeName>,
    known: &BTreeSet<NodeName>,
) -> Option<&'a str> {
    let mut zones: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (name, node) in scene.facts.fleet.nodes.iter().filter(|(name, _)| known.contains(*name)) {
        let (all, gone) = zones.entry(node.zone()).or_default();
        *all += 1;
        *gone += usize::from(silent.contains(name));
    }
    zones.into_iter().find(|(_, (all, gone))| *all >= 2 && all == gone).map(|(zone, _)| zone)
}

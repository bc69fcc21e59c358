//! What receivers of alerts are told: the alerts that fire, look by look -> what each kind of receiver must hear.
//!
//! ```text
//!   Ended:  fires ──► not any more ──► told as ended for ENDED_FOR ──► forgotten        (who wants all of it, again and again)
//!   Heard:  not heard of ──► heard: fires ──► reminded ──► heard: ended ──► forgotten   (who wants each change once)
//! ```
//!
//! Both begin with nothing whenever this process begins to lead: what leaders before have told is not known. So alerts that
//! fire are told once more, and of one that ended in between nobody is told that it did.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{ALERTS_MAX, Alert, AlertId, Firing};
use crate::BootTime;

/// How long an alert is told as ended: Alertmanager's own advice to clients, so that one lost message is no matter.
const ENDED_FOR: Duration = Duration::from_mins(5);
/// Alerts that are told as ended at once: as many as may fire.
const ENDED_MAX: usize = ALERTS_MAX + 1;

/// What fires, and what has ended a short while ago.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// The most urgent first.
    pub firing: Vec<Alert>,
    /// With the moment at which each ended.
    pub ended: Vec<(Alert, BootTime)>,
    /// Fires too, and is left out: nobody may hear that it has ended.
    pub left_out: BTreeSet<AlertId>,
}

/// Follows which alerts end.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    firing: BTreeMap<AlertId, Alert>,
    ended: BTreeMap<AlertId, (Alert, BootTime)>,
}

impl Ended {
    /// After one more look.
    pub fn look(&mut self, now: BootTime, firing: Firing) -> Outgoing {
        let mut before = std::mem::take(&mut self.firing);
        for alert in &firing.alerts {
            // What is counted anew at each look begins at the first.
            let since = before.remove(&alert.id).map_or(alert.since, |before| before.since.min(alert.since));
            self.ended.remove(&alert.id);
            self.firing.insert(alert.id.clone(), Alert { since, ..alert.clone() });
        }
        self.ended.retain(|id, (_, at)| now < *at + ENDED_FOR && !firing.left_out.contains(id));
        for (id, alert) in before {
            if self.ended.len() < ENDED_MAX && !firing.left_out.contains(&id) {
                self.ended.insert(id, (alert, now));
            }
        }
        Outgoing {
            firing: self.firing.values().cloned().collect(),
            ended: self.ended.values().cloned().collect(),
            left_out: firing.left_out,
        }
    }
}

/// What a receiver that wants each change once has not heard yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Fires since it was last told.
    pub firing: Vec<Alert>,
    /// Fires still, and was told long ago.
    pub still: Vec<Alert>,
    /// Was told as firing, and is not.
    pub ended: Vec<Alert>,
}

impl News {
    /// There is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.firing.is_empty() && self.still.is_empty() && self.ended.is_empty()
    }
}

/// What such a receiver has heard.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// As it was told, and when: no more than have fired and not ended.
    alerts: BTreeMap<AlertId, (Alert, BootTime)>,
}

impl Heard {
    /// What it has not. An alert that fired and ended while it could not be reached is none of that: nobody can do anything
    /// about it any more.
    pub fn news(&self, now: BootTime, outgoing: &Outgoing, remind_every: Duration) -> News {
        let mut news = News::default();
        for alert in &outgoing.firing {
            match self.alerts.get(&alert.id) {
                None => news.firing.push(alert.clone()),
                Some((_, at)) if now >= *at + remind_every => news.still.push(alert.clone()),
                Some(_) => {}
            }
        }
        let firing: BTreeSet<&AlertId> =
            outgoing.firing.iter().map(|alert| &alert.id).chain(&outgoing.left_out).collect();
        let ended = self.alerts.values().filter(|(alert, _)| !firing.contains(&alert.id));
        news.ended = ended.map(|(alert, _)| alert.clone()).collect();
        news
    }

    /// It has heard these.
    pub fn told(&mut self, now: BootTime, news: &News) {
        for alert in &news.ended {
            self.alerts.remove(&alert.id);
        }
        for alert in news.firing.iter().chain(&news.still) {
            self.alerts.insert(alert.id.clone(), (alert.clone(), now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AlertName, AlertSubject};
    use super::*;

    const NOW: BootTime = BootTime::from_hours(10);
    const REMIND_EVERY: Duration = Duration::from_hours(4);

    fn mins(minutes: u64) -> BootTime {
        NOW + Duration::from_mins(minutes)
    }

    fn firing(nodes: &[&str], now: BootTime) -> Firing {
        let alert = |node: &&str| Alert {
            id: AlertId { name: AlertName::AgentSilent, subject: AlertSubject::Node((*node).into()) },
            since: now,
            description: "as a test says".to_owned(),
        };
        Firing { alerts: nodes.iter().map(alert).collect(), ..Firing::default() }
    }

    fn nodes<'a>(alerts: impl IntoIterator<Item = &'a Alert>) -> Vec<String> {
        alerts.into_iter().map(|alert| alert.id.labels()["node"].clone()).collect()
    }

    #[test]
    fn what_ends_is_told_as_ended_for_a_while_and_not_when_it_fires_again() {
        let mut ended = Ended::default();
        ended.look(NOW, firing(&["n1", "n2"], NOW));
        let next = ended.look(mins(1), firing(&["n2"], mins(1)));
        assert_eq!(nodes(&next.firing), ["n2"]);
        assert_eq!(next.firing[0].since, NOW, "it fires since then");
        assert_eq!(
            (nodes(next.ended.iter().map(|(alert, _)| alert)), next.ended[0].1),
            (vec!["n1".to_owned()], mins(1))
        );
        assert_eq!(ended.look(mins(5), firing(&["n2"], NOW)).ended.len(), 1);
        assert_eq!(ended.look(mins(6), firing(&["n2"], NOW)).ended, []);
        ended.look(mins(7), firing(&[], NOW));
        assert_eq!(ended.look(mins(8), firing(&["n2"], NOW)).ended, []);
    }

    #[test]
    fn what_is_left_out_has_not_ended() {
        let (mut ended, mut heard) = (Ended::default(), Heard::default());
        let both = ended.look(NOW, firing(&["n1", "n2"], NOW));
        heard.told(NOW, &heard.news(NOW, &both, REMIND_EVERY));
        let left_out = both.firing.iter().map(|alert| alert.id.clone()).take(1).collect();
        let next = ended.look(mins(1), Firing { left_out, ..firing(&["n2"], NOW) });
        assert_eq!(next.ended, []);
        assert!(heard.news(mins(1), &next, REMIND_EVERY).is_empty());
        let over = ended.look(mins(2), firing(&["n2"], NOW));
        assert_eq!(nodes(&heard.news(mins(2), &over, REMIND_EVERY).ended), ["n1"], "now it has");
    }

    #[test]
    fn each_change_is_news_until_it_was_heard() {
        let mut heard = Heard::default();
        let outgoing = |nodes: &[&str]| Outgoing { firing: firing(nodes, NOW).alerts, ..Outgoing::default() };
        let both = outgoing(&["n1", "n2"]);
        let news = heard.news(NOW, &both, REMIND_EVERY);
        assert_eq!(nodes(&news.firing), ["n1", "n2"]);
        assert_eq!(heard.news(mins(1), &both, REMIND_EVERY), news, "nobody has heard it");
        heard.told(mins(1), &news);
        assert!(heard.news(mins(240), &both, REMIND_EVERY).is_empty());

        let later = heard.news(mins(241), &outgoing(&["n2", "n3"]), REMIND_EVERY);
        assert_eq!(
            (nodes(&later.firing), nodes(&later.still), nodes(&later.ended)),
            (vec!["n3".into()], vec!["n2".into()], vec!["n1".into()])
        );
        heard.told(mins(241), &later);
        assert!(heard.news(mins(242), &outgoing(&["n2", "n3"]), REMIND_EVERY).is_empty());
        // It fired and ended while nobody could be told.
        assert!(heard.news(mins(243), &outgoing(&["n2", "n3"]), REMIND_EVERY).is_empty());
    }
}

//! A question of the user's own to the guest: does it serve again what it is there for?
//!
//! ```text
//!   the guest has all that it had before ──► asked ──► answered ──► the check has passed
//!                                             ▲  │
//!                                             │  └──► never will be: the user's Job has failed
//!                                             └── not answered, or not as it should be: again in a few seconds
//! ```
//!
//! The question is a connection, a request, or a Job of the user's own, made once for each run of the guest and then looked
//! at until it ends. The Job is the template of a `CronJob` that is there already and that says by a label that it may be
//! used so: whoever may ask for a migration does not get to run whatever they like.
//!
//! It is asked where its launcher pod is: an address that the kubelet has set. What the guest tells of itself is not for
//! us to follow, as it could name any host that we reach and it does not. One question is out at a time, and an answer
//! counts for what was asked only: this VM, since this start, at this address. Nothing is stored; a new leader asks again.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{MigrationRecord, Refusal};
use crate::BootTime;
use crate::fleet::{Instance, Pod};
use crate::io::Effect;
use crate::names::{Key, NodeName, Uid};

/// Name of the check.
pub(super) const PROBE_ANSWERED: &str = "ProbeAnswered";
/// The longest path of a question over HTTP: several times what any health check has, and part of a check's message.
pub const HTTP_PATH_LENGTH_MAX: usize = 512;
/// The longest name that Kubernetes lets a `CronJob` have.
pub const CRON_JOB_NAME_LENGTH_MAX: usize = 52;
/// What serves people answers within a fraction of this.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// A guest that boots is asked this often at most: no load for it, and no long wait for people.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// An answer that has not come by then, twice the time that the shell has for it, got lost.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// What is asked of a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GuestProbe {
    /// To accept a connection.
    Tcp {
        /// On this port.
        port: NonZeroU16,
    },
    /// To answer a GET over HTTP, and not with an error.
    Http {
        /// On this port.
        port: NonZeroU16,
        /// For this path.
        path: HttpPath,
    },
    /// To satisfy a Job of the user's own, which ends well.
    Job {
        /// Whose template it is made of.
        template: CronJobName,
    },
}

/// Name of a `CronJob` of the migration's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CronJobName(String);

/// Absolute path of a URL, with its query: of no characters that would need to be escaped, or that end a line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpPath(String);

/// Why something is no question to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadProbe {
    /// None of the three kinds.
    #[error(
        "must be tcp:PORT, http:PORT/PATH or job:CRONJOB, such as tcp:5432, http:8080/healthz or job:check-orders"
    )]
    Form,
    /// The port is none.
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// The path is none.
    #[error(
        "the path must begin with /, have {HTTP_PATH_LENGTH_MAX} characters at most, and none but those of a path and a \
         query: no spaces, no fragment"
    )]
    Path,
    /// No `CronJob` has such a name.
    #[error(
        "the name of a CronJob has {CRON_JOB_NAME_LENGTH_MAX} characters at most: lower case letters, digits, - and ., \
         beginning and ending with a letter or digit"
    )]
    CronJob,
}

impl CronJobName {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CronJobName {
    type Error = BadProbe;

    fn try_from(text: String) -> Result<Self, BadProbe> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        let ends = |byte: Option<&u8>| byte.is_some_and(|byte| !b"-.".contains(byte));
        let bytes = text.as_bytes();
        let whole = ends(bytes.first()) && ends(bytes.last()) && bytes.iter().copied().all(fits);
        if whole && text.len() <= CRON_JOB_NAME_LENGTH_MAX { Ok(Self(text)) } else { Err(BadProbe::CronJob) }
    }
}

impl From<CronJobName> for String {
    fn from(name: CronJobName) -> Self {
        name.0
    }
}

impl HttpPath {
    /// As it is written in a request.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HttpPath {
    type Error = BadProbe;

    fn try_from(text: String) -> Result<Self, BadProbe> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._~!$&()*+,;=:@%/?-".contains(&byte);
        if text.starts_with('/') && text.len() <= HTTP_PATH_LENGTH_MAX && text.bytes().all(fits) {
            Ok(Self(text))
        } else {
            Err(BadProbe::Path)
        }
    }
}

impl From<HttpPath> for String {
    fn from(path: HttpPath) -> Self {
        path.0
    }
}

impl GuestProbe {
    /// The template, where the question is a Job.
    pub(super) fn job(&self) -> Option<&CronJobName> {
        match self {
            Self::Job { template } => Some(template),
            Self::Tcp { .. } | Self::Http { .. } => None,
        }
    }
}

impl FromStr for GuestProbe {
    type Err = BadProbe;

    fn from_str(text: &str) -> Result<Self, BadProbe> {
        let port = |text: &str| text.parse().map_err(|_| BadProbe::Port);
        match text.split_once(':') {
            Some(("tcp", rest)) => Ok(Self::Tcp { port: port(rest)? }),
            Some(("http", rest)) => {
                let (number, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let path = if path.is_empty() { "/" } else { path };
                Ok(Self::Http { port: port(number)?, path: path.to_owned().try_into()? })
            }
            Some(("job", name)) => Ok(Self::Job { template: name.to_owned().try_into()? }),
            _ => Err(BadProbe::Form),
        }
    }
}

impl fmt::Display for GuestProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { port } => write!(f, "tcp:{port}"),
            Self::Http { port, path } => write!(f, "http:{port}{}", path.as_str()),
            Self::Job { template } => write!(f, "job:{}", template.as_str()),
        }
    }
}

/// A question to one run of a VM. Whoever answers gives it back, so that no answer is taken for that to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestQuestion {
    /// The migration that wants to know.
    pub migration: Key,
    /// Its uid: another one of its name asks anew.
    pub uid: Uid,
    /// The VM, of the same namespace.
    pub vm: String,
    /// The instance, which each start of a VM makes anew: every migration of it starts it once.
    pub instance: Uid,
    /// Address of its launcher pod.
    pub address: IpAddr,
    /// What is asked.
    pub probe: GuestProbe,
}

/// What a guest said, or whoever was sent to look at it; for people.
pub type GuestAnswer = Result<String, NoAnswer>;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAnswer {
    /// For people.
    pub why: String,
    /// There will be none, however often it is asked.
    pub is_final: bool,
}

impl From<String> for NoAnswer {
    /// It may still come.
    fn from(why: String) -> Self {
        Self { why, is_final: false }
    }
}

impl From<&str> for NoAnswer {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

/// The question to an instance that runs on this node.
pub(super) fn question(
    record: &MigrationRecord,
    vm: &str,
    probe: &GuestProbe,
    node: &NodeName,
    instance: &Instance,
    pods: &[Pod],
) -> Result<GuestQuestion, Refusal> {
    let runs_it = |pod: &&Pod| {
        pod.instance.as_ref() == Some(&instance.uid)
            && pod.node.as_ref() == Some(node)
            && pod.phase == "Running"
    };
    let address = pods.iter().filter(runs_it).find_map(|pod| pod.address).ok_or_else(|| {
        let message = format!(
            "the guest was not asked {probe}: no address of its launcher pod on node {node} is known"
        );
        Refusal::not_yet("NoLauncherAddress", message)
    })?;
    Ok(GuestQuestion {
        migration: record.key.clone(),
        uid: record.uid.clone(),
        vm: vm.to_owned(),
        instance: instance.uid.clone(),
        address,
        probe: probe.clone(),
    })
}

/// What a guest was asked, and what it said.
#[derive(Clone, Debug, Default)]
pub(super) struct Asking {
    last: Option<Asked>,
}

#[derive(Clone, Debug)]
struct Asked {
    question: GuestQuestion,
    at: BootTime,
    /// Its answer has not come.
    open: bool,
    /// The last one, of this question.
    answer: Option<GuestAnswer>,
}

impl Asking {
    /// Asks, unless a question is out or one was asked just now.
    pub fn ask(&mut self, now: BootTime, question: GuestQuestion) -> Option<Effect> {
        let mut answer = None;
        if let Some(last) = &self.last {
            let wait = if last.open { LOST_AFTER } else { ASK_EVERY };
            if now.saturating_sub(last.at) < wait {
                return None;
            }
            answer = last.answer.clone().filter(|_| last.question == question);
        }
        self.last = Some(Asked { question: question.clone(), at: now, open: true, answer });
        Some(Effect::AskGuest { question, timeout: ASK_TIMEOUT })
    }

    /// Takes an answer; one to any other question than the one that is out changes nothing.
    pub fn answered(&mut self, question: &GuestQuestion, answer: &GuestAnswer) {
        if let Some(last) = self.last.as_mut().filter(|last| last.open && last.question == *question) {
            (last.open, last.answer) = (false, Some(answer.clone()));
        }
    }

    /// What is known of the answer to a question.
    pub fn answer(&self, question: &GuestQuestion) -> Result<String, Refusal> {
        let GuestQuestion { address, probe, .. } = question;
        let last = self.last.as_ref().filter(|last| last.question == *question);
        match last.and_then(|last| last.answer.as_ref()) {
            Some(Ok(found)) => Ok(format!("the guest answers {probe} at {address}: {found}")),
            Some(Err(NoAnswer { why, is_final })) => {
                let message = format!("the guest does not answer {probe} at {address}: {why}");
                Err(Refusal { transient: !is_final, ..Refusal::new("NoAnswer", message) })
            }
            None => Err(Refusal::not_yet(
                "NoAnswer",
                format!("the guest has not answered {probe} at {address} yet"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(text: &str) -> GuestProbe {
        text.parse().expect("a question")
    }

    fn asked(probe: &str, instance: &str) -> GuestQuestion {
        GuestQuestion {
            migration: Key::new("shop", "m"),
            uid: "u".into(),
            vm: "web".into(),
            instance: instance.into(),
            address: "10.42.0.7".parse().expect("an address"),
            probe: self::probe(probe),
        }
    }

    #[test]
    fn reads_questions_and_writes_them_as_they_were() {
        for text in [
            "tcp:22",
            "tcp:65535",
            "http:8080/",
            "http:80/healthz?deep=1&for=a%20b",
            "http:1/a//b;c=(d)",
            "job:a.b-1",
        ] {
            assert_eq!(probe(text).to_string(), text);
        }
        assert_eq!(probe("http:80"), probe("http:80/"));
    }

    #[test]
    fn refuses_what_is_no_question() {
        for (text, why) in [
            ("", BadProbe::Form),
            ("22", BadProbe::Form),
            ("https:443/", BadProbe::Form),
            ("http://host/", BadProbe::Port),
            ("tcp:", BadProbe::Port),
            ("tcp:0", BadProbe::Port),
            ("tcp:65536", BadProbe::Port),
            ("tcp:-1", BadProbe::Port),
            ("tcp:22/", BadProbe::Port),
            ("http:80x/", BadProbe::Port),
            ("http:/healthz", BadProbe::Port),
            ("http:80/a b", BadProbe::Path),
            ("http:80/a\r\nHost: b", BadProbe::Path),
            ("http:80/#top", BadProbe::Path),
            ("http:80/ä", BadProbe::Path),
            ("job:", BadProbe::CronJob),
            ("job:Check", BadProbe::CronJob),
            ("job:a/../b", BadProbe::CronJob),
            ("job:-a", BadProbe::CronJob),
            ("job:a.", BadProbe::CronJob),
        ] {
            assert_eq!(text.parse::<GuestProbe>(), Err(why), "{text:?}");
        }
        let long = |length: usize| HttpPath::try_from(format!("/{}", "a".repeat(length - 1)));
        assert!(long(HTTP_PATH_LENGTH_MAX).is_ok());
        assert_eq!(long(HTTP_PATH_LENGTH_MAX + 1), Err(BadProbe::Path));
        let named = |length: usize| CronJobName::try_from("a".repeat(length));
        assert!(named(CRON_JOB_NAME_LENGTH_MAX).is_ok());
        assert_eq!(named(CRON_JOB_NAME_LENGTH_MAX + 1), Err(BadProbe::CronJob));
    }

    /// Where a stored one was written by something else, it is looked at as well.
    #[test]
    fn a_path_that_is_none_is_not_read_back() {
        let read = |path: &str| serde_json::from_value::<HttpPath>(path.into());
        assert!(read("/a").is_ok());
        assert!(read("a").is_err() && read("/a b").is_err());
    }

    #[test]
    fn one_question_is_out_at_a_time_and_a_lost_one_is_asked_again() {
        let (mut asking, at) = (Asking::default(), Duration::from_secs);
        assert!(asking.ask(at(100), asked("tcp:1", "a")).is_some());
        assert!(asking.ask(at(101), asked("tcp:1", "a")).is_none());
        assert!(asking.ask(at(109), asked("tcp:2", "b")).is_none(), "the first one is out");
        assert!(asking.ask(at(110), asked("tcp:1", "a")).is_some(), "it got lost");
        asking.answered(&asked("tcp:1", "a"), &Err("refused".into()));
        assert!(asking.ask(at(114), asked("tcp:1", "a")).is_none(), "just now");
        assert!(asking.ask(at(115), asked("tcp:1", "a")).is_some());
        let why = asking.answer(&asked("tcp:1", "a")).expect_err("not yet");
        assert!(why.message.ends_with("refused"), "the last word until there is another: {why:?}");
    }

    #[test]
    fn an_answer_counts_for_its_own_question_only() {
        let mut asking = Asking::default();
        let ours = asked("tcp:1", "a");
        let ok = Ok("open".to_owned());
        asking.answered(&ours, &ok);
        assert!(asking.answer(&ours).is_err(), "nothing was asked");
        asking.ask(Duration::from_secs(100), ours.clone());
        let elsewhere = GuestQuestion { address: "10.42.0.8".parse().expect("an address"), ..ours.clone() };
        for other in [asked("tcp:2", "a"), asked("tcp:1", "b"), elsewhere] {
            asking.answered(&other, &ok);
            assert!(asking.answer(&ours).is_err() && asking.answer(&other).is_err(), "{other:?}");
        }
        asking.answered(&ours, &ok);
        assert_eq!(asking.answer(&ours).expect("answered"), "the guest answers tcp:1 at 10.42.0.7: open");
        asking.answered(&ours, &Err("a late one, of a question that was taken for lost".into()));
        assert!(asking.answer(&ours).is_ok());
        assert!(asking.answer(&asked("tcp:1", "b")).is_err(), "started anew since");
    }

    #[test]
    fn it_is_asked_where_its_launcher_runs() {
        let pod = |instance: &str, node: &str, phase: &str, address: Option<&str>| Pod {
            name: "p".into(),
            uid: "p".into(),
            node: Some(node.into()),
            phase: phase.into(),
            instance: Some(instance.into()),
            address: address.map(|address| address.parse().expect("an address")),
            claims: [].into(),
        };
        let instance = Instance {
            uid: "i".into(),
            node: Some("n1".into()),
            phase: "Running".into(),
            has_run: true,
            migrating: None,
            paused: None,
            not_migratable: None,
            claims: std::collections::BTreeSet::new(),
            agent_connected: false,
            has_address: true,
        };
        let of = |pods: &[Pod]| {
            let record = MigrationRecord::new(Key::new("shop", "m"), "u".into(), 1);
            question(&record, "web", &probe("tcp:1"), &"n1".into(), &instance, pods)
                .map(|question| question.address.to_string())
        };
        let others = [
            pod("i", "n2", "Running", Some("10.0.0.1")),
            pod("earlier", "n1", "Running", Some("10.0.0.2")),
            pod("i", "n1", "Succeeded", Some("10.0.0.3")),
            pod("i", "n1", "Running", None),
        ];
        assert_eq!(of(&others).expect_err("no address").reason, "NoLauncherAddress");
        let with_ours = [others.as_slice(), &[pod("i", "n1", "Running", Some("fd00::4"))]].concat();
        assert_eq!(of(&with_ours).expect("there"), "fd00::4");
    }
}

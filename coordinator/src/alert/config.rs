//! Flags about alerts: where they go. What is secret is in files, read again whenever something is sent, so that a Secret that
//! is made or changed later counts. A file that is not there is one that nobody wants: its receiver is off.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::http::{BadUrl, Endpoint};

/// A URL or a token is a few hundred letters.
const SECRET_BYTES_MAX: u64 = 8 << 10;
/// Alertmanagers that are named; each may stand for several replicas.
const ALERTMANAGERS_MAX: usize = 8;
/// Labels of one's own: the name of the cluster, the team.
const LABELS_MAX: usize = 16;

/// Where alerts go, beside metrics.
#[derive(Debug, Default, clap::Args)]
pub struct AlertArgs {
    /// URL of an Alertmanager (0.22 or later), without /api/v2; repeatable. Each address of its name is taken for a replica, and
    /// gets every alert.
    #[arg(
        long,
        env = "SOMERSAULT_ALERTMANAGER",
        value_name = "URL",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub alertmanager: Vec<String>,

    /// File with a bearer token for the Alertmanagers; may be missing.
    #[arg(long, env = "SOMERSAULT_ALERTMANAGER_TOKEN_FILE", value_name = "FILE")]
    pub alertmanager_token_file: Option<PathBuf>,

    /// File with the URL of a webhook, which hears of each alert that begins or ends, and every four hours of those that
    /// last; may be missing, and be there later.
    #[arg(long, env = "SOMERSAULT_WEBHOOK_FILE", value_name = "FILE")]
    pub webhook_file: Option<PathBuf>,

    /// File with a bearer token for the webhook; may be missing.
    #[arg(long, env = "SOMERSAULT_WEBHOOK_TOKEN_FILE", value_name = "FILE")]
    pub webhook_token_file: Option<PathBuf>,

    /// File with a Jinja template of what the webhook is sent; where it is missing, what Slack and its like take: {"text": "…"}.
    #[arg(long, env = "SOMERSAULT_WEBHOOK_TEMPLATE", value_name = "FILE")]
    pub webhook_template: Option<PathBuf>,

    /// File with the certificate authorities (PEM) that https receivers are trusted by; where it is missing, the system's.
    #[arg(long, env = "SOMERSAULT_ALERT_CA", value_name = "FILE")]
    pub alert_ca: Option<PathBuf>,

    /// A label on every alert, such as cluster=berlin; repeatable.
    #[arg(long, env = "SOMERSAULT_ALERT_LABEL", value_name = "NAME=VALUE", value_delimiter = ',')]
    pub alert_label: Vec<String>,

    /// How often Alertmanagers are told again of what fires; one that has heard nothing for four times as long takes it for ended.
    #[arg(
        long, env = "SOMERSAULT_ALERT_RESEND_S", value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(10..=3_600)
    )]
    pub alert_resend_s: u64,

    /// Also tell of VMs with local disks of which no VolumeSnapshot is known.
    #[arg(long, env = "SOMERSAULT_ALERT_NO_BACKUP")]
    pub alert_no_backup: bool,
}

/// The same, checked.
#[derive(Clone, Debug)]
pub struct AlertPlan {
    /// `/api/v2/alerts` of each Alertmanager.
    pub alertmanagers: Vec<Endpoint>,
    /// File with their token.
    pub alertmanager_token: Option<PathBuf>,
    /// File with the webhook's URL.
    pub webhook: Option<PathBuf>,
    /// File with its token.
    pub webhook_token: Option<PathBuf>,
    /// File with its template.
    pub webhook_template: Option<PathBuf>,
    /// File with the authorities that are trusted.
    pub ca: Option<PathBuf>,
    /// On every alert.
    pub labels: BTreeMap<String, String>,
    /// Whether VMs without a known snapshot are told of.
    pub backups: bool,
    /// How often and how long.
    pub pace: Pace,
}

impl Default for AlertPlan {
    /// Nobody is told.
    fn default() -> Self {
        Self {
            alertmanagers: Vec::new(),
            alertmanager_token: None,
            webhook: None,
            webhook_token: None,
            webhook_template: None,
            ca: None,
            labels: BTreeMap::new(),
            backups: false,
            pace: Pace::default(),
        }
    }
}

/// How often things are done, and how long they may take. But for `resend` nobody sets these: tests have no hours.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Between two looks at what fires.
    pub look: Duration,
    /// How long we lead before we send: agents have come and reported, and the view has what records say.
    pub settle: Duration,
    /// Between two tellings of an Alertmanager.
    pub resend: Duration,
    /// Between two reminders of a webhook.
    pub remind: Duration,
    /// Between two looks at which addresses a name has.
    pub resolve: Duration,
    /// For one message, from the connection to the answer.
    pub within: Duration,
    /// Before the first try after a failure; then twice as long each time.
    pub retry_first: Duration,
    /// The longest time between two tries.
    pub retry_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            // A person needs longer than that to get up; and a look at ten thousand VMs takes some milliseconds.
            look: Duration::from_secs(5),
            settle: Duration::from_secs(30),
            resend: Duration::from_mins(1),
            // As Alertmanager's own repeat_interval.
            remind: Duration::from_hours(4),
            // A replica that is moved has another address, and the others have heard meanwhile.
            resolve: Duration::from_secs(30),
            // Receivers answer within a second; one that is far and busy within a few.
            within: Duration::from_secs(10),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_mins(1),
        }
    }
}

/// Why alerts cannot be sent as the flags say.
#[derive(Debug, thiserror::Error)]
pub enum AlertConfigError {
    /// A URL that is none. It is not told, since it may hold a secret.
    #[error("URL {number} of --alertmanager cannot be used")]
    Url {
        /// Which one, from 1.
        number: usize,
        /// Why not.
        #[source]
        source: BadUrl,
    },
    /// Too many.
    #[error("more than {ALERTMANAGERS_MAX} of --alertmanager: a name stands for all of its addresses")]
    TooMany,
    /// A label that Alertmanager would refuse.
    #[error(
        "--alert-label {label}: expected NAME=VALUE, with letters, digits and _ in a NAME that begins with no digit and is none that \
         alerts have, and {LABELS_MAX} of them at most"
    )]
    Label {
        /// Which.
        label: String,
    },
}

impl TryFrom<&AlertArgs> for AlertPlan {
    type Error = AlertConfigError;

    fn try_from(args: &AlertArgs) -> Result<Self, Self::Error> {
        // An optional variable that is set to nothing names none.
        let urls: Vec<&String> = args.alertmanager.iter().filter(|url| !url.trim().is_empty()).collect();
        if urls.len() > ALERTMANAGERS_MAX {
            return Err(AlertConfigError::TooMany);
        }
        let read = |(number, url): (usize, &&String)| {
            let read = Endpoint::parse(url);
            read.map(|url| url.below("/api/v2/alerts"))
                .map_err(|source| AlertConfigError::Url { number, source })
        };
        let labels = args
            .alert_label
            .iter()
            .map(|label| own_label(label).ok_or_else(|| AlertConfigError::Label { label: label.clone() }));
        let labels: BTreeMap<String, String> = labels.collect::<Result<_, _>>()?;
        if labels.len() > LABELS_MAX {
            return Err(AlertConfigError::Label { label: args.alert_label.join(",") });
        }
        Ok(Self {
            alertmanagers: (1..).zip(&urls).map(read).collect::<Result<_, _>>()?,
            alertmanager_token: args.alertmanager_token_file.clone(),
            webhook: args.webhook_file.clone(),
            webhook_token: args.webhook_token_file.clone(),
            webhook_template: args.webhook_template.clone(),
            ca: args.alert_ca.clone(),
            labels,
            backups: args.alert_no_backup,
            pace: Pace { resend: Duration::from_secs(args.alert_resend_s), ..Pace::default() },
        })
    }
}

/// Labels that tell alerts apart.
const RESERVED: [&str; 9] =
    ["alertname", "severity", "node", "disk", "namespace", "vm", "migration", "evacuation", "__name__"];

fn own_label(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let good = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.starts_with(|c: char| !c.is_ascii_digit())
        && !RESERVED.contains(&name)
        && !value.is_empty();
    good.then(|| (name.to_owned(), value.to_owned()))
}

/// Why a file with a secret cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", file.display())]
pub struct SecretError {
    file: PathBuf,
    #[source]
    source: io::Error,
}

/// What is in a small file, without the space around it; `None` where the file is not there or holds nothing.
pub async fn read_secret(file: Option<&Path>) -> Result<Option<String>, SecretError> {
    let Some(file) = file else { return Ok(None) };
    read_small(file, SECRET_BYTES_MAX).await.map(|text| {
        let text = text?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    })
}

/// What is in a file of limited size; `None` where it is not there.
pub async fn read_small(file: &Path, bytes_max: u64) -> Result<Option<String>, SecretError> {
    let read = async {
        let opened = match tokio::fs::File::open(file).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut text = String::new();
        opened.take(bytes_max + 1).read_to_string(&mut text).await?;
        if text.len() as u64 > bytes_max {
            return Err(io::Error::other(format!("more than {bytes_max} bytes")));
        }
        Ok(Some(text))
    };
    read.await.map_err(|source| SecretError { file: file.to_owned(), source })
}

/// A file that need not be there: where it is not, another one counts, or none.
pub fn if_there(file: Option<&Path>) -> Option<&Path> {
    file.filter(|file| file.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(urls: &[&str], labels: &[&str]) -> AlertArgs {
        AlertArgs {
            alertmanager: urls.iter().map(|&url| url.to_owned()).collect(),
            alert_label: labels.iter().map(|&label| label.to_owned()).collect(),
            alert_resend_s: 60,
            ..AlertArgs::default()
        }
    }

    #[test]
    fn a_url_that_cannot_be_used_is_told_by_its_place_alone() {
        let error = AlertPlan::try_from(&args(&["http://am:9093", "http://me:word@am"], &[]))
            .expect_err("a password");
        let told = format!("{error}: {}", std::error::Error::source(&error).expect("why"));
        assert!(told.contains("URL 2") && !told.contains("word@"), "{told}");
        let plan = AlertPlan::try_from(&args(&["", "http://am:9093/"], &["cluster=a=b"])).expect("good");
        assert_eq!(plan.alertmanagers.len(), 1, "what is empty names none");
        assert_eq!(plan.labels["cluster"], "a=b");
        assert!(matches!(AlertPlan::try_from(&args(&["http://am"; 9], &[])), Err(AlertConfigError::TooMany)));
    }

    #[test]
    fn a_label_that_alertmanager_would_refuse_is_refused() {
        for label in ["cluster", "cluster=", "=x", "1st=x", "a-b=x", "vm=x", "severity=x"] {
            let refused = AlertPlan::try_from(&args(&[], &[label]));
            assert!(matches!(refused, Err(AlertConfigError::Label { .. })), "{label}");
        }
    }

    #[tokio::test]
    async fn a_secret_that_is_not_there_is_none_and_one_that_is_too_large_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("url");
        assert!(read_secret(Some(&file)).await.expect("none").is_none());
        std::fs::write(&file, " http://x/ \n").expect("written");
        assert_eq!(read_secret(Some(&file)).await.expect("read").as_deref(), Some("http://x/"));
        std::fs::write(&file, "\n").expect("written");
        assert!(read_secret(Some(&file)).await.expect("nothing").is_none());
        std::fs::write(&file, "x".repeat(9 << 10)).expect("written");
        assert!(read_secret(Some(&file)).await.is_err());
    }
}

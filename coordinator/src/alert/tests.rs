//! Receivers that record, hang, refuse and come back, over real sockets; time is that of the clock on the wall, and short.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use jiff::Timestamp;
use serde_json::Value;
use somersault_coordinator_core::policy::Policy;
use somersault_coordinator_core::view::View;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::config::{AlertPlan, Pace};
use super::http::Endpoint;
use super::{Sources, run};
use crate::clock::BootClock;
use crate::cluster::{Lasts, Snapshot};
use crate::leader::Epoch;
use crate::metrics::Metrics;

/// Nothing waits so long but what fails.
const SOON: Duration = Duration::from_secs(30);

/// A pace for tests: nobody hangs for more than `within`.
fn quick() -> Pace {
    let ms = Duration::from_millis;
    Pace {
        look: ms(20),
        settle: Duration::ZERO,
        resend: ms(200),
        remind: Duration::from_hours(4),
        resolve: ms(200),
        within: Duration::from_secs(5),
        retry_first: ms(20),
        retry_max: ms(100),
    }
}

/// A receiver that takes POSTs, and answers each by the status that comes next, the last one again and again.
struct Fake {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<String>>>,
    heads: Arc<Mutex<Vec<HeaderMap>>>,
    asked: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Fake {
    async fn at(ip: Ipv4Addr, port: u16, path: &str, statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind((IpAddr::V4(ip), port)).await.expect("a port");
        let address = listener.local_addr().expect("it has one");
        let (bodies, heads, asked) = (
            Arc::<Mutex<Vec<String>>>::default(),
            Arc::<Mutex<Vec<_>>>::default(),
            Arc::<AtomicUsize>::default(),
        );
        let (into, head_into, count) = (Arc::clone(&bodies), Arc::clone(&heads), Arc::clone(&asked));
        let taken = move |head: HeaderMap, body: String| async move {
            let nth = count.fetch_add(1, Ordering::SeqCst);
            let status = statuses.get(nth).or(statuses.last()).copied().unwrap_or(200);
            if status < 300 {
                into.lock().unwrap().push(body);
                head_into.lock().unwrap().push(head);
            }
            (StatusCode::from_u16(status).expect("a status"), "as the test says")
        };
        let routes = Router::new().route(path, post(taken));
        let stop = CancellationToken::new();
        let ended = stop.clone().cancelled_owned();
        tokio::spawn(async move { axum::serve(listener, routes).with_graceful_shutdown(ended).await });
        Self { address, bodies, heads, asked, _stop: stop.drop_guard() }
    }

    async fn alertmanager(statuses: &'static [u16]) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, 0, "/api/v2/alerts", statuses).await
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::parse(&format!("http://{}", self.address)).expect("a URL").below("/api/v2/alerts")
    }

    fn bodies(&self) -> Vec<String> {
        self.bodies.lock().unwrap().clone()
    }

    /// Every alert of every message that was taken.
    fn alerts(&self) -> Vec<Value> {
        let bodies = self.bodies();
        let read = bodies.iter().map(|body| serde_json::from_str::<Vec<Value>>(body).expect("a list"));
        read.flatten().collect()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = async {
            while !holds(self) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(SOON, waited).await.is_ok(), "{what}: {:?}", self.bodies());
    }
}

/// One that accepts and says nothing.
async fn hanging() -> (Endpoint, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).await.expect("a port");
    let endpoint =
        Endpoint::parse(&format!("http://{}", listener.local_addr().expect("one"))).expect("a URL");
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            kept.push(socket);
        }
    });
    (endpoint, accepted)
}

/// A coordinator, as far as alerts go: it is in storm hold, or not.
struct Teller {
    views: watch::Sender<Arc<View>>,
    epoch: Epoch,
    metrics: Arc<Metrics>,
    _snapshots: watch::Sender<Arc<Snapshot>>,
    _policies: watch::Sender<Arc<Policy>>,
    _stop: DropGuard,
}

impl Teller {
    fn start(plan: AlertPlan) -> Self {
        let (views, seen) = watch::channel(Arc::new(View::default()));
        let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let (policy, policies) = watch::channel(Arc::new(Policy::default()));
        let (epoch, metrics, stop) =
            (Epoch::default(), Arc::new(Metrics::default()), CancellationToken::new());
        epoch.begin(1, Lasts::until_told());
        let sources = Sources {
            snapshots,
            views: seen,
            policies,
            clock: Arc::new(BootClock),
            epoch: epoch.clone(),
            metrics: Arc::clone(&metrics),
        };
        tokio::spawn(run(plan, sources, stop.clone()));
        Self { views, epoch, metrics, _snapshots: sender, _policies: policy, _stop: stop.drop_guard() }
    }

    fn hold(&self, holds: bool) {
        let storm_hold = holds.then(|| "as a test says".to_owned());
        self.views.send_replace(Arc::new(View { storm_hold, ..View::default() }));
    }

    fn metric(&self, line: &str) -> bool {
        self.metrics.text().expect("text").contains(line)
    }
}

fn to(alertmanagers: Vec<Endpoint>) -> AlertPlan {
    AlertPlan {
        alertmanagers,
        labels: [("cluster".to_owned(), "test".to_owned())].into(),
        pace: quick(),
        ..AlertPlan::default()
    }
}

fn time(alert: &Value, field: &str) -> Timestamp {
    alert[field].as_str().expect("a time").parse().expect("RFC 3339")
}

#[tokio::test]
async fn what_fires_is_told_again_and_again_and_what_ends_with_its_end() {
    let fake = Fake::alertmanager(&[200]).await;
    let teller = Teller::start(to(vec![fake.endpoint()]));
    sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.asked.load(Ordering::SeqCst), 0, "there is nothing to tell");
    teller.hold(true);
    fake.until("told three times", |fake| fake.bodies().len() >= 3).await;
    let alert = fake.alerts().remove(0);
    let labels = serde_json::json!({ "alertname": "StormHold", "severity": "critical", "cluster": "test" });
    assert_eq!(alert["labels"], labels);
    assert!(alert["annotations"]["description"].as_str().is_some_and(|said| said.contains("as a test says")));
    assert!(alert["annotations"]["summary"].as_str().is_some_and(|said| said.starts_with("Cluster: ")));
    let ahead = time(&alert, "endsAt").duration_since(Timestamp::now());
    assert!(ahead.as_millis() < 4 * 200 && time(&alert, "endsAt") > time(&alert, "startsAt"), "{alert}");
    assert!(teller.metric(r#"somersault_alerts_firing{alertname="StormHold",severity="critical"} 1"#));

    let before = fake.bodies().len();
    teller.hold(false);
    let ended =
        |fake: &Fake| fake.alerts().iter().filter(|alert| time(alert, "endsAt") <= Timestamp::now()).count();
    // Those of before end by themselves in the end: only of the new ones it says something.
    fake.until("told more than once that it ended", |fake| {
        fake.bodies().len() >= before + 4 && ended(fake) > 0
    })
    .await;
    let told = fake.alerts();
    let (last, one_before) = (&told[told.len() - 1], &told[told.len() - 2]);
    assert!(time(last, "endsAt") <= Timestamp::now());
    assert!(
        time(last, "endsAt").duration_since(time(one_before, "endsAt")).as_millis().abs() < 50,
        "the same end"
    );
    assert!(!teller.metric("StormHold"));
    let counted = format!(
        r#"somersault_alerts_sent_total{{receiver="alertmanager {}",outcome="Taken"}}"#,
        fake.address
    );
    assert!(teller.metric(&counted), "{}", teller.metrics.text().expect("text"));
}

#[tokio::test]
async fn a_receiver_that_hangs_or_fails_holds_up_no_other() {
    let (stuck, accepted) = hanging().await;
    let failing = Fake::alertmanager(&[500]).await;
    let good = Fake::alertmanager(&[200]).await;
    let folder = TempDir::new().expect("a folder");
    let url = folder.path().join("url");
    std::fs::write(&url, format!("http://{}/secret", stuck.authority())).expect("written");
    let plan =
        AlertPlan { webhook: Some(url), ..to(vec![stuck.clone(), failing.endpoint(), good.endpoint()]) };
    let teller = Teller::start(plan);
    teller.hold(true);
    let begun = Instant::now();
    good.until("told", |fake| !fake.bodies().is_empty()).await;
    assert!(begun.elapsed() < quick().within, "{:?}", begun.elapsed());
    good.until("told on", |fake| fake.bodies().len() >= 5).await;
    assert!(begun.elapsed() < quick().within, "{:?}", begun.elapsed());
    let open = accepted.load(Ordering::SeqCst);
    assert!((1..=2).contains(&open), "one message at a time from each: {open}");
    assert!(failing.asked.load(Ordering::SeqCst) > 1, "it is tried again");
    let refused = format!(
        r#"somersault_alerts_sent_total{{receiver="alertmanager {}",outcome="Refused"}}"#,
        failing.address
    );
    assert!(teller.metric(&refused));
    let late = r#"somersault_alerts_sent_total{receiver="webhook",outcome="Late"}"#;
    let waited = async {
        while !teller.metric(late) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(SOON, waited).await.is_ok(), "it is given up");
    assert!(!teller.metric("secret"), "its URL is one");
}

#[tokio::test]
async fn one_that_fails_once_is_told_when_it_is_back() {
    let fake = Fake::alertmanager(&[500, 503, 200]).await;
    let teller = Teller::start(to(vec![fake.endpoint()]));
    teller.hold(true);
    fake.until("told", |fake| !fake.bodies().is_empty()).await;
    assert!(fake.asked.load(Ordering::SeqCst) >= 3);
}

#[tokio::test]
async fn every_replica_is_told_and_one_that_comes_back_too() {
    let first = Fake::alertmanager(&[200]).await;
    let second = Fake::alertmanager(&[200]).await;
    let teller = Teller::start(to(vec![first.endpoint(), second.endpoint()]));
    teller.hold(true);
    for fake in [&first, &second] {
        fake.until("told", |fake| !fake.bodies().is_empty()).await;
    }
    let address = second.address;
    drop(second);
    sleep(Duration::from_millis(300)).await;
    let again = Fake::at(Ipv4Addr::LOCALHOST, address.port(), "/api/v2/alerts", &[200]).await;
    again.until("told", |fake| !fake.bodies().is_empty()).await;
    let alert = again.alerts().remove(0);
    assert!(
        time(&alert, "startsAt").duration_since(Timestamp::now()).as_millis() < -250,
        "since it began: {alert}"
    );
}

/// Whatever the resolver of this machine says of it.
#[tokio::test]
async fn a_name_that_stands_for_several_addresses_means_each() {
    let addresses =
        Endpoint::parse("http://localhost:1").expect("a URL").resolve(SOON).await.expect("resolved");
    let fakes = addresses.iter().filter_map(|address| match address.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    });
    let mut told = Vec::new();
    let mut port = 0;
    for ip in fakes {
        let fake = Fake::at(ip, port, "/api/v2/alerts", &[200]).await;
        port = fake.address.port();
        told.push(fake);
    }
    let endpoint =
        Endpoint::parse(&format!("http://localhost:{port}")).expect("a URL").below("/api/v2/alerts");
    let teller = Teller::start(to(vec![endpoint]));
    teller.hold(true);
    for fake in &told {
        fake.until("told", |fake| !fake.bodies().is_empty()).await;
    }
}

#[tokio::test]
async fn who_does_not_lead_says_nothing_and_whoever_leads_next_says_all() {
    let fake = Fake::alertmanager(&[200]).await;
    let teller = Teller::start(to(vec![fake.endpoint()]));
    teller.epoch.end();
    teller.hold(true);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(fake.asked.load(Ordering::SeqCst), 0);
    assert!(!teller.metric("StormHold"));
    teller.epoch.begin(2, Lasts::until_told());
    fake.until("told", |fake| !fake.bodies().is_empty()).await;
    teller.epoch.end();
    sleep(Duration::from_millis(500)).await;
    let told = fake.asked.load(Ordering::SeqCst);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(fake.asked.load(Ordering::SeqCst), told, "not even that it has ended: it has not");
}

#[tokio::test]
async fn a_leader_says_nothing_before_it_knows_what_is_so() {
    let fake = Fake::alertmanager(&[200]).await;
    let settle = Duration::from_millis(400);
    let plan = AlertPlan { pace: Pace { settle, ..quick() }, ..to(vec![fake.endpoint()]) };
    let begun = Instant::now();
    let teller = Teller::start(plan);
    teller.hold(true);
    fake.until("told", |fake| !fake.bodies().is_empty()).await;
    assert!(begun.elapsed() >= settle);
}

/// A webhook whose files are in this folder.
fn to_webhook(folder: &TempDir) -> AlertPlan {
    let file = |name: &str| -> Option<PathBuf> { Some(folder.path().join(name)) };
    AlertPlan {
        webhook: file("url"),
        webhook_token: file("token"),
        webhook_template: file("template"),
        ca: file("ca.crt"),
        ..to(Vec::new())
    }
}

#[tokio::test]
async fn a_webhook_hears_of_each_change_once_and_is_reminded() {
    let fake = Fake::at(Ipv4Addr::LOCALHOST, 0, "/hook", &[500, 200]).await;
    let folder = TempDir::new().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    let plan = to_webhook(&folder);
    let plan = AlertPlan { pace: Pace { remind: Duration::from_secs(2), ..quick() }, ..plan };
    let teller = Teller::start(plan);
    teller.hold(true);
    sleep(Duration::from_millis(200)).await;
    // The Secret is made later than the pod.
    write("url", &format!("http://{}/hook\n", fake.address));
    fake.until("told", |fake| fake.bodies().len() == 1).await;
    assert!(
        fake.bodies()[0].starts_with(r#"{"text": "[FIRING] critical StormHold: Cluster"#),
        "{:?}",
        fake.bodies()
    );
    assert_eq!(fake.heads.lock().unwrap()[0][header::CONTENT_TYPE], "application/json");
    assert!(!fake.heads.lock().unwrap()[0].contains_key(header::AUTHORIZATION));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(fake.bodies().len(), 1, "once");
    write("token", "word\n");
    write("template", "{{ status }}: {{ (firing + still + ended)[0].labels.cluster }}");
    fake.until("reminded", |fake| fake.bodies().len() == 2).await;
    assert_eq!(fake.bodies()[1], "firing: test");
    assert_eq!(fake.heads.lock().unwrap()[1][header::AUTHORIZATION], "Bearer word");
    write("template", "{{ broken");
    teller.hold(false);
    fake.until("told that it ended", |fake| fake.bodies().len() == 3).await;
    assert!(
        fake.bodies()[2].contains("[RESOLVED] critical StormHold"),
        "what Slack takes: {:?}",
        fake.bodies()
    );
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(fake.bodies().len(), 3, "of what has ended nobody is reminded");
}

mod over_tls {
    //! Over TLS, trusting one authority.

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A receiver with a certificate for `localhost`, and its authority.
    async fn fake() -> (u16, String, Arc<Mutex<String>>) {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let leaf = leaf.signed_by(&key, &authority).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .expect("a server");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("one").port();
        let read = Arc::<Mutex<String>>::default();
        let into = Arc::clone(&read);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(socket).await else { continue };
                let mut head = [0; 8 << 10];
                while !into.lock().unwrap().contains("]}") && !into.lock().unwrap().contains("}]") {
                    let Ok(more @ 1..) = stream.read(&mut head).await else { break };
                    into.lock().unwrap().push_str(&String::from_utf8_lossy(&head[..more]));
                }
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await);
                drop(stream.shutdown().await);
            }
        });
        (port, authority.pem(), read)
    }

    #[tokio::test]
    async fn only_an_authority_that_is_trusted_counts() {
        let (port, authority, read) = fake().await;
        let folder = TempDir::new().expect("a folder");
        let ca = folder.path().join("ca.crt");
        let (_, other, _) = fake().await;
        std::fs::write(&ca, other).expect("written");
        let url = format!("https://localhost:{port}");
        let endpoint = Endpoint::parse(&url).expect("a URL").below("/api/v2/alerts");
        let plan = AlertPlan { ca: Some(ca.clone()), ..to(vec![endpoint]) };
        let teller = Teller::start(plan);
        teller.hold(true);
        let failed = r#"outcome="Failed"} "#;
        let waited = async {
            while !teller.metric(failed) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(SOON, waited).await.is_ok());
        assert_eq!(*read.lock().unwrap(), "", "nothing was told to a stranger");
        // It is mended: read again.
        std::fs::write(&ca, authority).expect("written");
        let told = async {
            while !teller.metric(r#"outcome="Taken"} "#) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(SOON, told).await.is_ok());
        let read = read.lock().unwrap().clone();
        assert!(read.starts_with("POST /api/v2/alerts HTTP/1.1\r\n") && read.contains("StormHold"), "{read}");
    }
}

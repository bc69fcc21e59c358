//! Our alerts in a real Alertmanager: it takes them, keeps them while we say so, tells its receiver when they end, and ends them
//! itself when we are gone.
//!
//! The program is the one that `SOMERSAULT_TEST_ALERTMANAGER` names, or `prometheus-alertmanager` or `alertmanager` of the
//! path (`make test` fetches Debian's). Where there is none, nothing is tested, and it is said.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::routing::post;
use serde_json::Value;
use somersault_coordinator::alert::config::{AlertArgs, AlertPlan};
use somersault_coordinator::alert::{Sources, run};
use somersault_coordinator::clock::BootClock;
use somersault_coordinator::cluster::{Lasts, Snapshot};
use somersault_coordinator::leader::Epoch;
use somersault_coordinator::metrics::Metrics;
use somersault_coordinator_core::policy::Policy;
use somersault_coordinator_core::view::View;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Longest wait for anything; nothing waits for it to pass.
const SOON: Duration = Duration::from_mins(1);
/// How often it is told again here: what we do not say again ends after four times as long.
const RESEND: Duration = Duration::from_secs(1);

fn program() -> Option<PathBuf> {
    let named = env::var_os("SOMERSAULT_TEST_ALERTMANAGER").map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .flat_map(|folder| ["prometheus-alertmanager", "alertmanager"].map(|name| folder.join(name)));
    named.into_iter().chain(found).find(|program| program.is_file())
}

/// Ended with the test.
struct Alertmanager {
    process: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Alertmanager {
    async fn start(program: &Path, receiver: SocketAddr) -> Result<Self> {
        let folder = TempDir::new()?;
        let config = folder.path().join("alertmanager.yml");
        fs::write(
            &config,
            format!(
                "route: {{receiver: fake, group_wait: 0s, group_interval: 1s, group_by: ['...']}}\n\
                 receivers:\n- name: fake\n  webhook_configs: [{{url: 'http://{receiver}/', send_resolved: true}}]\n"
            ),
        )?;
        // A port that was free a moment ago.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?;
        let process = Command::new(program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| program.display().to_string())?;
        let started = Self { process, address, _folder: folder };
        until("it is ready", async || Ok(started.get("/-/ready").await.is_ok())).await?;
        Ok(started)
    }

    async fn get(&self, path: &str) -> Result<String> {
        let mut socket = TcpStream::connect(self.address).await?;
        socket.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        ensure!(head.split_whitespace().nth(1) == Some("200"), "{head}");
        Ok(body.to_owned())
    }

    /// Alerts that it takes for firing.
    async fn active(&self) -> Result<Vec<Value>> {
        Ok(serde_json::from_str(&self.get("/api/v2/alerts").await?)?)
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let waited = async {
        while !holds().await? {
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    timeout(SOON, waited).await.with_context(|| format!("not within {SOON:?}: {what}"))?
}

/// What Alertmanager tells its own receiver.
async fn receiver() -> Result<(SocketAddr, Arc<Mutex<Vec<Value>>>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let told = Arc::<Mutex<Vec<Value>>>::default();
    let into = Arc::clone(&told);
    let take = move |body: String| async move {
        into.lock().unwrap().push(serde_json::from_str(&body).unwrap_or_default());
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", post(take))).await });
    Ok((address, told))
}

#[tokio::test]
async fn an_alertmanager_takes_keeps_and_ends_our_alerts() -> Result<()> {
    let Some(program) = program() else {
        println!("SKIPPED: no Alertmanager on this machine (Debian: prometheus-alertmanager)");
        return Ok(());
    };
    let (address, told) = receiver().await?;
    let alertmanager = Alertmanager::start(&program, address).await?;

    let args = AlertArgs {
        alertmanager: vec![format!("http://{}/", alertmanager.address)],
        alert_label: vec!["cluster=test".to_owned()],
        alert_resend_s: RESEND.as_secs(),
        ..AlertArgs::default()
    };
    let mut plan = AlertPlan::try_from(&args)?;
    (plan.pace.look, plan.pace.settle) = (Duration::from_millis(100), Duration::ZERO);
    let (views, seen) = watch::channel(Arc::new(View::default()));
    let (_snapshots, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let (_policies, policies) = watch::channel(Arc::new(Policy::default()));
    let (epoch, metrics, stop) = (Epoch::default(), Arc::new(Metrics::default()), CancellationToken::new());
    epoch.begin(1, Lasts::until_told());
    let clock = Arc::new(BootClock);
    let sources = Sources { snapshots, views: seen, policies, clock, epoch, metrics: Arc::clone(&metrics) };
    let running = tokio::spawn(run(plan, sources, stop.clone()));
    let hold = |why: Option<&str>| {
        let storm_hold = why.map(str::to_owned);
        views.send_replace(Arc::new(View { storm_hold, ..View::default() }));
    };

    hold(Some("as a test says"));
    until("it fires", async || Ok(alertmanager.active().await?.len() == 1)).await?;
    let alert = alertmanager.active().await?.remove(0);
    let labels = serde_json::json!({ "alertname": "StormHold", "severity": "critical", "cluster": "test" });
    ensure!(alert["labels"] == labels, "{alert}");
    ensure!(alert["annotations"]["summary"].as_str().is_some_and(|said| said.contains("silent")), "{alert}");
    // For longer than one telling holds it.
    for _ in 0..6 {
        sleep(RESEND).await;
        ensure!(alertmanager.active().await?.len() == 1, "it is told again in time");
    }
    let told_as = |status: &str| told.lock().unwrap().iter().filter(|sent| sent["status"] == status).count();
    until("its receiver hears of it", async || Ok(told_as("firing") == 1)).await?;
    ensure!(told_as("resolved") == 0, "{:?}", told.lock().unwrap());

    hold(None);
    until("it ends", async || Ok(alertmanager.active().await?.is_empty())).await?;
    until("its receiver hears that it ended", async || Ok(told_as("resolved") == 1)).await?;

    hold(Some("once more"));
    until("it fires again", async || Ok(alertmanager.active().await?.len() == 1)).await?;
    // The leader is gone, and nobody follows it.
    stop.cancel();
    running.await?;
    until("it ends by itself", async || Ok(alertmanager.active().await?.is_empty())).await?;
    until("its receiver hears of that too", async || Ok(told_as("resolved") == 2)).await?;
    let text = metrics.text()?;
    ensure!(!text.contains("Refused") && !text.contains("Failed"), "{text}");
    Ok(())
}

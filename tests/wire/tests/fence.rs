//! A fence runner on real sockets, with real programs as fence agents: who may call it, and what becomes of runs that
//! are repeated, cut off, that hang, lie, fail or flood.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use somersault_coordinator::cluster::Lasts;
use somersault_coordinator::config::LogFormat;
use somersault_coordinator::fence::runner::{Runner, RunnerArgs, RunnerError};
use somersault_coordinator::fence::{FenceOrder, Fencer, RemoteFencer};
use somersault_coordinator::leader::Epoch;
use somersault_coordinator_core::fencing::agents::{FenceAnswer, FenceRoster};
use somersault_coordinator_core::io::FenceResult;
use somersault_proto::tls::{Identity, TlsSource};
use somersault_proto::v1;
use somersault_proto::v1::fence_client::FenceClient;
use somersault_test_support::certs::CertAuthority;
use somersault_wire_tests::enrolment::{Enrolling, NAMESPACE, Token};
use somersault_wire_tests::{Fleet, SOON, Wire};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// `off` succeeds, and `status` says off.
const WELL: &str = "[ $action = off ] && exit 0; exit 2";

/// A place for runners and callers, with one authority.
struct Place {
    folder: TempDir,
    authority: CertAuthority,
}

/// A runner that runs.
struct Running {
    address: SocketAddr,
    operators: SocketAddr,
    stop: CancellationToken,
    ended: JoinHandle<Result<(), RunnerError>>,
}

impl Place {
    fn new() -> Result<Self> {
        Ok(Self { folder: TempDir::new()?, authority: CertAuthority::new()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A runner whose agent for n1 is this script. The script sees `$action` and `$folder`, its own; each run adds its
    /// action to `$folder/log`.
    async fn runner(&self, name: &str, script: &str) -> Result<Running> {
        let home = self.path(name);
        fs::create_dir_all(&home)?;
        let place = home.display();
        let text = format!(
            "#!/bin/sh\nfolder={place}\naction=$(sed -n 's/^action=//p')\necho $action >> $folder/log\n{script}\n"
        );
        fs::write(home.join("source"), text)?;
        // By another process: a file that this one has open for writing, even for a moment, cannot be executed.
        let install = ["-m", "755"].map(PathBuf::from).into_iter();
        let status = Command::new("install")
            .args(install)
            .arg(home.join("source"))
            .arg(home.join("agent"))
            .status()?;
        ensure!(status.success(), "install failed");
        self.configure(
            name,
            &format!("nodes:\n  n1:\n    agent: {place}/agent\n    options: {{ ip: 10.0.9.1 }}\n"),
        )?;
        self.start(name, "127.0.0.1:0".parse()?).await
    }

    async fn start(&self, name: &str, listen: SocketAddr) -> Result<Running> {
        let home = self.path(name);
        self.authority.issue_fence_runner(&home.join("certs"))?;
        let runner = Runner::bind(&RunnerArgs {
            listen,
            admin_listen: "127.0.0.1:0".parse()?,
            certs: Some(home.join("certs")),
            enroll: Vec::new(),
            token_file: PathBuf::new(),
            ca_bundle: PathBuf::new(),
            fence_config: home.join("fence.yaml"),
            log_format: LogFormat::Text,
        })
        .await?;
        let (address, operators) = (runner.address()?, runner.operators_address()?);
        let stop = CancellationToken::new();
        let ended = tokio::spawn(runner.run(stop.clone()));
        Ok(Running { address, operators, stop, ended })
    }

    fn configure(&self, name: &str, yaml: &str) -> Result<()> {
        let draft = self.path(name).join("draft");
        fs::write(&draft, yaml)?;
        Ok(fs::rename(&draft, self.path(name).join("fence.yaml"))?)
    }

    fn log(&self, name: &str) -> Vec<String> {
        let log = fs::read_to_string(self.path(name).join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// What a coordinator uses, with the roster read.
    async fn fencer(&self, addresses: &[SocketAddr]) -> Result<RemoteFencer> {
        let fencer = self.unread_fencer(addresses)?;
        let follow = fencer.clone();
        tokio::spawn(async move { follow.follow(CancellationToken::new()).await });
        until(&fencer, |roster| roster.away.is_none() && !roster.agents.is_empty()).await?;
        Ok(fencer)
    }

    fn unread_fencer(&self, addresses: &[SocketAddr]) -> Result<RemoteFencer> {
        let certs = self.path("coordinator");
        self.authority.issue_coordinator(&certs)?;
        let epoch = Epoch::default();
        epoch.begin(1, Lasts::until_told());
        let addresses = addresses.iter().map(ToString::to_string).collect();
        Ok(RemoteFencer::new(addresses, TlsSource::read(&certs)?, epoch))
    }

    /// A bare caller with a coordinator's certificate.
    async fn caller(&self, runner: &Running) -> Result<Caller> {
        let certs = self.path("caller");
        self.authority.issue_coordinator(&certs)?;
        let mut client = connect(runner.address, &certs).await?;
        let list = client.list(v1::ListRequest { epoch: 0 }).await?.into_inner();
        let revision = list.nodes.first().context("no node has an agent")?.revision.clone();
        Ok(Caller { client, revision })
    }
}

/// Calls by hand.
#[derive(Clone)]
struct Caller {
    client: FenceClient<Channel>,
    revision: String,
}

impl Caller {
    fn request(&self, epoch: u64, run: &str) -> v1::RunRequest {
        let (node, run, revision) = ("n1".to_owned(), run.to_owned(), self.revision.clone());
        v1::RunRequest { node, epoch, run, deadline_ms: 20_000, revision }
    }

    /// How the run ended; or the code and words of a refusal.
    async fn run(&self, epoch: u64, run: &str) -> Result<Result<v1::run_ended::Result, (Code, String)>> {
        let mut events = match self.client.clone().run(self.request(epoch, run)).await {
            Ok(events) => events.into_inner(),
            Err(status) => return Ok(Err((status.code(), status.message().to_owned()))),
        };
        while let Some(event) = timeout(SOON, events.message()).await.context("no event")?? {
            if let Some(v1::run_event::Event::Ended(ended)) = event.event {
                ensure!(
                    (ended.node.as_str(), ended.epoch, ended.run.as_str()) == ("n1", epoch, run),
                    "{ended:?}"
                );
                return Ok(Ok(ended.result.context("an end without a result")?));
            }
        }
        bail!("the stream ended without a result")
    }

    async fn confirmed(&self, epoch: u64, run: &str) -> Result<()> {
        let ended = self.run(epoch, run).await?;
        ensure!(matches!(ended, Ok(v1::run_ended::Result::ConfirmedOff(_))), "{ended:?}");
        Ok(())
    }
}

async fn connect(address: SocketAddr, certs: &Path) -> Result<FenceClient<Channel>> {
    let tls = TlsSource::read(certs)?.client(&Identity::FenceRunner);
    let channel = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect().await?;
    Ok(FenceClient::new(channel))
}

fn order(run: &str, timeout: Duration) -> FenceOrder {
    FenceOrder { node: "n1".into(), epoch: 1, run: run.to_owned(), timeout }
}

async fn until(fencer: &RemoteFencer, wanted: impl Fn(&FenceRoster) -> bool) -> Result<FenceRoster> {
    let mut roster = fencer.roster();
    let seen = timeout(SOON, roster.wait_for(wanted)).await;
    match seen {
        Ok(seen) => Ok(seen?.clone()),
        Err(_) => bail!("the roster is {:?}", *fencer.roster().borrow()),
    }
}

async fn appears(file: &Path) -> Result<()> {
    let wait = async {
        while !file.exists() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait).await.with_context(|| format!("{} does not appear", file.display()))
}

fn why(result: FenceResult) -> Result<String> {
    match result {
        FenceResult::Failed(why) => Ok(why),
        FenceResult::ConfirmedOff => bail!("was taken for a proof"),
    }
}

#[tokio::test]
async fn off_read_back_is_a_proof_and_status_switches_nothing() -> Result<()> {
    let place = Place::new()?;
    let runner = place.runner("a", WELL).await?;
    let fencer = place.fencer(&[runner.address]).await?;
    assert_eq!(fencer.status("n1".into(), SOON).await, FenceAnswer::Off);
    assert_eq!(place.log("a"), ["status"]);
    assert_eq!(fencer.fence(order("r", SOON)).await, FenceResult::ConfirmedOff);
    assert_eq!(place.log("a"), ["status", "off", "status"]);
    let other = FenceOrder { node: "n2".into(), ..order("s", SOON) };
    assert!(why(fencer.fence(other).await)?.contains("for this node"));
    runner.stop.cancel();
    timeout(SOON, runner.ended).await???;
    Ok(())
}

#[tokio::test]
async fn only_coordinators_may_call() -> Result<()> {
    let place = Place::new()?;
    let runner = place.runner("a", WELL).await?;
    let revision = place.caller(&runner).await?.revision;
    let (node, other) = (place.path("n1"), place.path("other-runner"));
    place.authority.issue_node("n1", &node)?;
    place.authority.issue_fence_runner(&other)?;
    for certs in [node, other] {
        let mut caller =
            Caller { client: connect(runner.address, &certs).await?, revision: revision.clone() };
        let Err((code, words)) = caller.run(1, "r").await? else { bail!("it may run agents") };
        assert_eq!(code, Code::PermissionDenied, "{words}");
        let status =
            v1::StatusRequest { node: "n1".into(), epoch: 0, deadline_ms: 1_000, revision: revision.clone() };
        let refused = caller.client.status(status).await.err().context("it may ask agents")?;
        assert_eq!(refused.code(), Code::PermissionDenied);
        let refused = caller.client.list(v1::ListRequest { epoch: 99 }).await.err().context("it may list")?;
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    assert!(place.log("a").is_empty());
    // What strangers say of epochs counts nothing.
    place.caller(&runner).await?.confirmed(1, "r").await?;

    let stranger = CertAuthority::new()?;
    let certs = place.path("stranger");
    stranger.issue_coordinator(&certs)?;
    fs::copy(place.path("caller").join("ca.crt"), certs.join("ca.crt"))?;
    let called = async {
        connect(runner.address, &certs).await?.list(v1::ListRequest { epoch: 0 }).await.map_err(Into::into)
    };
    let called: Result<_> = called.await;
    assert!(called.is_err(), "another authority's certificate passes");
    Ok(())
}

#[tokio::test]
async fn a_repeated_run_is_joined_and_an_older_result_is_no_answer_to_a_new_order() -> Result<()> {
    let place = Place::new()?;
    let script = "[ $action = off ] && { while [ ! -e $folder/go ]; do sleep 0.01; done; exit 0; }; exit 2";
    let runner = place.runner("a", script).await?;
    let caller = place.caller(&runner).await?;
    let first = tokio::spawn({
        let caller = caller.clone();
        async move { caller.confirmed(3, "r").await }
    });
    appears(&place.path("a/log")).await?;
    let second = tokio::spawn({
        let caller = caller.clone();
        async move { caller.confirmed(3, "r").await }
    });
    let Err((code, _)) = caller.run(3, "another").await? else { bail!("two runs of one node at a time") };
    assert_eq!(code, Code::Aborted);
    fs::write(place.path("a/go"), "")?;
    timeout(SOON, first).await???;
    timeout(SOON, second).await???;
    caller.confirmed(3, "r").await?;
    assert_eq!(place.log("a"), ["off", "status"], "one machine is switched once");
    caller.confirmed(3, "another").await?;
    assert_eq!(place.log("a").len(), 4, "the machine may have been switched on since");
    Ok(())
}

#[tokio::test]
async fn leaders_of_the_past_are_refused() -> Result<()> {
    let place = Place::new()?;
    let runner = place.runner("a", WELL).await?;
    let mut caller = place.caller(&runner).await?;
    caller.confirmed(5, "r").await?;
    let Err((code, words)) = caller.run(4, "old").await? else { bail!("an old leader switches machines") };
    assert_eq!(code, Code::PermissionDenied);
    assert!(words.contains("epoch 4 is over"), "{words}");
    caller.client.list(v1::ListRequest { epoch: 7 }).await?;
    assert!(caller.run(6, "older than the list").await?.is_err());
    caller.confirmed(7, "new").await
}

#[tokio::test]
async fn a_newer_leaders_order_ends_the_run_of_an_older_one() -> Result<()> {
    let place = Place::new()?;
    let script = "[ -e $folder/second ] || { touch $folder/second; echo $$ > $folder/pid; sleep 600; }\n\
                  [ $action = off ] && exit 0; exit 2";
    let runner = place.runner("a", script).await?;
    let caller = place.caller(&runner).await?;
    let old = tokio::spawn({
        let caller = caller.clone();
        async move { caller.run(1, "old").await }
    });
    appears(&place.path("a/pid")).await?;
    caller.confirmed(2, "new").await?;
    let old = timeout(SOON, old).await???;
    ensure!(
        matches!(&old, Ok(v1::run_ended::Result::Failed(failed)) if failed.why.contains("newer leader")),
        "{old:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_call_that_is_cut_off_is_taken_up_again_and_the_machine_is_switched_once() -> Result<()> {
    let place = Place::new()?;
    let script = "[ $action = off ] && { while [ ! -e $folder/go ]; do sleep 0.01; done; exit 0; }; exit 2";
    let runner = place.runner("a", script).await?;
    let mut wire = Wire::lay(runner.address).await?;
    let fencer = place.fencer(&[wire.address()]).await?;
    let fencing = tokio::spawn(fencer.fence(order("r", SOON)));
    appears(&place.path("a/log")).await?;
    wire.cut().await;
    fs::write(place.path("a/go"), "")?;
    assert_eq!(timeout(SOON, fencing).await??, FenceResult::ConfirmedOff);
    assert_eq!(place.log("a"), ["off", "status"]);
    Ok(())
}

#[tokio::test]
async fn when_a_runner_dies_in_mid_run_another_one_takes_the_order() -> Result<()> {
    let place = Place::new()?;
    let script = "[ -e $folder/started ] || { touch $folder/started; sleep 600; }\n[ $action = off ] && exit 0; exit 2";
    let dies = place.runner("a", script).await?;
    let wire = Wire::lay(dies.address).await?;
    // Nobody listens there yet, so that it is the other one that gets the order.
    let lives = tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let fencer = place.fencer(&[wire.address(), lives]).await?;
    let fencing = tokio::spawn(fencer.fence(order("r", SOON)));
    appears(&place.path("a/started")).await?;
    fs::create_dir_all(place.path("b"))?;
    place.configure("b", &fs::read_to_string(place.path("a/fence.yaml"))?)?;
    let _lives = place.start("b", lives).await?;
    wire.sever().await;
    assert_eq!(timeout(SOON, fencing).await??, FenceResult::ConfirmedOff);
    assert_eq!(place.log("a"), ["off", "off", "status"]);
    Ok(())
}

#[tokio::test]
async fn agents_that_hang_lie_fail_or_flood_prove_nothing() -> Result<()> {
    for (name, script, words) in [
        ("hangs", "trap '' TERM; sleep 600", "did not end within"),
        ("lies", "exit 0", "still on"),
        ("fails", "echo 'Unable to connect/login to fencing device' >&2; exit 1", "Unable to connect"),
        ("floods", "head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1", "xxx"),
    ] {
        let place = Place::new()?;
        let runner = place.runner("a", script).await?;
        let fencer = place.fencer(&[runner.address]).await?;
        let timeout = if name == "hangs" { Duration::from_secs(2) } else { SOON };
        let start = Instant::now();
        let failed = why(fencer.fence(order("r", timeout)).await)?;
        ensure!(failed.contains(words) && failed.len() < 1_000, "{name}: {failed}");
        ensure!(start.elapsed() < SOON, "{name} took {:?}", start.elapsed());
    }
    Ok(())
}

#[tokio::test]
async fn without_a_runner_there_is_no_proof_and_the_roster_says_so() -> Result<()> {
    let place = Place::new()?;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let fencer = place.unread_fencer(&[nobody])?;
    let stop = CancellationToken::new();
    let (follow, stopped) = (fencer.clone(), stop.clone());
    let following = tokio::spawn(async move { follow.follow(stopped).await });
    let roster =
        until(&fencer, |roster| roster.away.as_ref().is_some_and(|why| why.contains("can be reached")))
            .await?;
    assert!(roster.agents.is_empty());
    assert!(why(fencer.fence(order("r", Duration::from_secs(1))).await)?.contains("for this node"));
    stop.cancel();
    following.await?;

    // One that was there, and goes away.
    let runner = place.runner("a", WELL).await?;
    let fencer = place.fencer(&[runner.address]).await?;
    runner.stop.cancel();
    timeout(SOON, runner.ended).await???;
    let failed = why(fencer.fence(order("r", Duration::from_secs(1))).await)?;
    assert!(failed.contains("can be reached"), "{failed}");
    assert!(matches!(fencer.status("n1".into(), Duration::from_secs(1)).await, FenceAnswer::Failed(_)));
    let away = until(&fencer, |roster| roster.away.is_some()).await?;
    assert_eq!(away.agents.len(), 1, "what it had is remembered");
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_is_told_and_changes_nothing() -> Result<()> {
    let place = Place::new()?;
    let runner = place.runner("a", WELL).await?;
    let fencer = place.fencer(&[runner.address]).await?;
    place.configure("a", "nodes: {n1: {agent: no-such-agent, options: {passwd: hunter2}}}\n")?;
    let roster = until(&fencer, |roster| roster.problem.is_some()).await?;
    let problem = roster.problem.context("told")?;
    ensure!(problem.contains("no-such-agent") && !problem.contains("hunter2"), "{problem}");
    assert_eq!(roster.agents.len(), 1);
    assert_eq!(fencer.fence(order("r", SOON)).await, FenceResult::ConfirmedOff, "the old one is in use");
    let metrics = get(runner.operators, "/metrics").await?;
    ensure!(metrics.contains("somersault_fence_runner_config_problem 1"), "{metrics}");
    ensure!(metrics.contains("somersault_fence_runner_runs_total{result=\"ConfirmedOff\"} 1"), "{metrics}");
    ensure!(get(runner.operators, "/readyz").await?.contains("no-such-agent"));
    Ok(())
}

#[tokio::test]
async fn an_order_for_an_entry_that_was_changed_is_refused() -> Result<()> {
    let place = Place::new()?;
    let runner = place.runner("a", WELL).await?;
    let caller = place.caller(&runner).await?;
    let fencer = place.fencer(&[runner.address]).await?;
    let before = fencer.roster().borrow().agents.clone();
    let agent = place.path("a/agent");
    place.configure(
        "a",
        &format!("nodes:\n  n1:\n    agent: {}\n    options: {{ ip: 10.0.9.2 }}\n", agent.display()),
    )?;
    until(&fencer, |roster| roster.agents != before).await?;
    let Err((code, words)) = caller.run(1, "r").await? else { bail!("another machine is switched") };
    assert_eq!(code, Code::FailedPrecondition, "{words}");
    assert!(place.log("a").is_empty());
    assert_eq!(fencer.fence(order("r", SOON)).await, FenceResult::ConfirmedOff, "which knows the new one");
    Ok(())
}

async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A runner that asks for its certificate with this token.
async fn enrolling_runner(enrolling: &Enrolling, token: &str) -> Result<Running> {
    let pod = enrolling.pod("fence-runner", token)?;
    let arguments = RunnerArgs {
        listen: "127.0.0.1:0".parse()?,
        admin_listen: "127.0.0.1:0".parse()?,
        certs: None,
        enroll: pod.coordinators,
        token_file: pod.token_file,
        ca_bundle: pod.bundle_file,
        fence_config: PathBuf::from("fence.yaml"),
        log_format: LogFormat::Text,
    };
    // Nobody has granted anything yet.
    let runner = timeout(SOON, Runner::bind(&arguments))
        .await
        .context("it waits for its certificate before it listens")??;
    let (address, operators) = (runner.address()?, runner.operators_address()?);
    let stop = CancellationToken::new();
    let ended = tokio::spawn(runner.run(stop.clone()));
    Ok(Running { address, operators, stop, ended })
}

#[tokio::test]
async fn operators_are_answered_while_the_runner_waits_for_its_certificate() -> Result<()> {
    let (enrolling, certificates) = Enrolling::start(Duration::from_hours(24)).await?;
    let fleet = Fleet::start_with(certificates).await?;
    let runner = enrolling_runner(&enrolling, "a.b.c").await?;
    ensure!(get(runner.operators, "/healthz").await?.contains(" 200 OK"));
    let answer = get(runner.operators, "/readyz").await?;
    ensure!(answer.contains(" 503 ") && answer.contains("waiting for a certificate"), "{answer}");
    let account = format!("system:serviceaccount:{NAMESPACE}:somersault-fence-runner");
    enrolling.kubernetes.issue("a.b.c", Token { account, ..Token::of_agent("n1") });
    let ready = async {
        while !get(runner.operators, "/readyz").await?.contains(" 200 OK") {
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    timeout(SOON, ready).await.context("it is never ready")??;
    runner.stop.cancel();
    timeout(SOON, runner.ended).await.context("it did not stop")???;
    fleet.stop().await
}

#[tokio::test]
async fn a_runner_that_waits_for_its_certificate_can_be_stopped() -> Result<()> {
    let (enrolling, _certificates) = Enrolling::start(Duration::from_hours(24)).await?;
    let runner = enrolling_runner(&enrolling, "nobody.knows.it").await?;
    ensure!(get(runner.operators, "/readyz").await?.contains(" 503 "));
    runner.stop.cancel();
    timeout(SOON, runner.ended).await.context("it did not stop")???;
    Ok(())
}

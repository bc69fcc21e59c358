//! Enrolment on real sockets: who gets a certificate, who does not, and that renewing it, or its authority, costs no
//! beat. The API server is a stand-in that reviews tokens and keeps a Secret.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rcgen::{CertificateParams, KeyPair};
use somersault_coordinator::ca::ROTATE_ANNOTATION;
use somersault_proto::enroll::{EnrollError, Enrolment, enroll};
use somersault_proto::tls::{Identity, TlsSource};
use somersault_proto::v1;
use somersault_proto::v1::enrollment_client::EnrollmentClient;
use somersault_proto::v1::fleet_client::FleetClient;
use somersault_wire_tests::enrolment::{Enrolling, NAMESPACE, Token};
use somersault_wire_tests::{Beats, Fleet, SOON, beat, connect_as};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};

/// No test runs so long: what is renewed meanwhile is renewed for another reason.
const LONG: Duration = Duration::from_hours(24);
/// Renewed after about four seconds: long enough for a busy machine to renew in time, short enough for a test.
const SHORT: Duration = Duration::from_secs(6);

async fn start(leaf_lifetime: Duration) -> Result<(Fleet, Enrolling)> {
    let (enrolling, certificates) = Enrolling::start(leaf_lifetime).await?;
    Ok((Fleet::start_with(certificates).await?, enrolling))
}

/// Asks with a token that is known to Kubernetes as `token`.
async fn ask(enrolling: &Enrolling, token: Token) -> Result<Result<TlsSource, EnrollError>> {
    enrolling.kubernetes.issue("a.b.c", token);
    Ok(enroll(&enrolling.pod("n1", "a.b.c")?).await.map(TlsSource::new))
}

/// Refused, in words that say nothing.
fn is_refused<T>(answer: Result<T, EnrollError>) -> Result<()> {
    match answer {
        Err(EnrollError::Refused { message, .. }) => {
            ensure!(message == "not accepted; the coordinator's log says why", "{message}");
            Ok(())
        }
        Err(other) => Err(other.into()),
        Ok(_) => bail!("it was certified"),
    }
}

/// A client of the bare service, as an attacker would write it.
async fn bare(enrolling: &Enrolling) -> Result<EnrollmentClient<Channel>> {
    let bundle = enrolling.store.bundle().context("nothing is published")?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(bundle))
        .domain_name("coordinator.somersault");
    let endpoint = Endpoint::from_shared(format!("https://{}", enrolling.address))?.tls_config(tls)?;
    Ok(EnrollmentClient::new(endpoint.connect().await?))
}

fn csr(key: &KeyPair) -> Result<Vec<u8>> {
    Ok(CertificateParams::default().serialize_request(key)?.der().to_vec())
}

#[tokio::test]
async fn an_agent_is_certified_by_its_token_and_beats() -> Result<()> {
    let (fleet, enrolling) = start(LONG).await?;
    let tls = ask(&enrolling, Token::of_agent("n1")).await??;
    ensure!(tls.identity() == Identity::Node("n1".parse()?));
    let mut beats = Beats::open(FleetClient::new(connect_as(fleet.address(), &tls).await?)).await?;
    beats.granted(beat("n1", 1)).await?;
    // And for its own node only.
    beats.send(beat("n2", 2)).await?;
    beats.refused(Code::PermissionDenied).await?;
    fleet
        .until("/metrics", |text| text.contains("somersault_enrolments_total{outcome=\"Certified\"} 1\n"))
        .await?;
    fleet.stop().await
}

#[tokio::test]
async fn an_older_api_server_leaves_the_node_to_the_pod() -> Result<()> {
    let (fleet, enrolling) = start(LONG).await?;
    let token = Token { node: None, ..Token::of_agent("n1") };
    is_refused(ask(&enrolling, token.clone()).await?).context("no such pod")?;
    enrolling.kubernetes.run_pod("agent-n1", "another-uid", "n1");
    is_refused(ask(&enrolling, token.clone()).await?).context("another pod by the same name")?;
    enrolling.kubernetes.run_pod("agent-n1", "uid-agent-n1", "n1");
    ask(&enrolling, token).await??;
    fleet.stop().await
}

#[tokio::test]
async fn the_fence_runner_is_certified_as_such_and_is_no_node() -> Result<()> {
    let (fleet, enrolling) = start(LONG).await?;
    let account = format!("system:serviceaccount:{NAMESPACE}:somersault-fence-runner");
    enrolling.kubernetes.issue("a.b.c", Token { account, ..Token::of_agent("n1") });
    let runner = Enrolment { identity: Identity::FenceRunner, ..enrolling.pod("n1", "a.b.c")? };
    let tls = TlsSource::new(enroll(&runner).await?);
    let client = FleetClient::new(connect_as(fleet.address(), &tls).await?);
    let Err(error) = Beats::open(client).await else { bail!("it may beat") };
    ensure!(error.downcast::<Status>()?.code() == Code::PermissionDenied);
    fleet.stop().await
}

#[tokio::test]
async fn tokens_that_prove_nothing_are_refused() -> Result<()> {
    let (fleet, enrolling) = start(LONG).await?;
    let good = Token::of_agent("n1");
    let others = [
        Token { audience: "https://kubernetes.default.svc".into(), ..good.clone() },
        Token { account: format!("system:serviceaccount:{NAMESPACE}:default"), ..good.clone() },
        Token { account: "system:serviceaccount:other:somersault-agent".into(), ..good.clone() },
        Token { pod: None, ..good.clone() },
        Token { ended: true, ..good.clone() },
        Token { node: Some("../n1".into()), ..good.clone() },
    ];
    for token in others {
        is_refused(ask(&enrolling, token.clone()).await?).with_context(|| format!("{token:?}"))?;
    }
    is_refused(enroll(&enrolling.pod("n1", "gar.ba.ge")?).await).context("garbage")?;
    is_refused(enroll(&enrolling.pod("n1", "not even a token")?).await).context("no token")?;
    fleet
        .until("/metrics", |text| text.contains("somersault_enrolments_total{outcome=\"Refused\"} 8\n"))
        .await?;
    ask(&enrolling, good).await??;
    fleet.stop().await
}

#[tokio::test]
async fn the_token_of_another_nodes_pod_makes_nobody_this_node() -> Result<()> {
    let (fleet, enrolling) = start(LONG).await?;
    // The agent that believes to be n1 finds out at once.
    let answer = ask(&enrolling, Token::of_agent("n2")).await?;
    ensure!(matches!(answer, Err(EnrollError::OtherIdentity { .. })), "{answer:?}");
    // And what it was given speaks for n2 alone.
    let key = KeyPair::generate()?;
    let named = CertificateParams::new(["n1.node.somersault".to_owned()])?.serialize_request(&key)?;
    let request = v1::EnrollRequest { csr_der: named.der().to_vec().into(), token: "a.b.c".into() };
    let reply = bare(&enrolling).await?.enroll(request).await?.into_inner();
    let der = rustls_pem(&reply.certificate_chain_pem)?;
    ensure!(somersault_proto::tls::identity_of(&der)? == Identity::Node("n2".parse()?));
    fleet.stop().await
}

fn rustls_pem(pem: &str) -> Result<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    Ok(rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes())?)
}

#[tokio::test]
async fn requests_that_show_no_key_are_refused() -> Result<()> {
    let (fleet, enrolling) = start(LONG).await?;
    enrolling.kubernetes.issue("a.b.c", Token::of_agent("n1"));
    let (mine, theirs) = (KeyPair::generate()?, KeyPair::generate()?);
    let good = csr(&mine)?;
    let mut stolen = good.clone();
    let public = rcgen::PublicKeyData::der_bytes(&mine);
    let at = good.windows(public.len()).position(|window| window == public).context("no key")?;
    stolen[at..at + public.len()].copy_from_slice(rcgen::PublicKeyData::der_bytes(&theirs));
    let huge = [good.clone(), vec![0; 8 * 1024]].concat();
    for (what, csr_der) in [("stolen", stolen), ("huge", huge), ("empty", vec![]), ("garbage", vec![7; 300])]
    {
        let request = v1::EnrollRequest { csr_der: csr_der.into(), token: "a.b.c".into() };
        let answer = bare(&enrolling).await?.enroll(request).await;
        ensure!(answer.is_err_and(|status| status.code() == Code::PermissionDenied), "{what}");
    }
    // Beyond the limit of a message nobody even looks at it.
    let request = v1::EnrollRequest { csr_der: vec![0; 1 << 20].into(), token: "a.b.c".into() };
    let answer = bare(&enrolling).await?.enroll(request).await;
    ensure!(answer.is_err_and(|status| status.code() == Code::OutOfRange), "a message of 1 MiB");
    let request = v1::EnrollRequest { csr_der: good.into(), token: "a.b.c".into() };
    bare(&enrolling).await?.enroll(request).await?;
    fleet.stop().await
}

#[tokio::test]
async fn a_coordinator_that_the_bundle_does_not_vouch_for_gets_no_token() -> Result<()> {
    let (fleet, enrolling) = start(LONG).await?;
    let (other, _certificates) = Enrolling::start(LONG).await?;
    let enrolment = enrolling.pod("n1", "a.b.c")?;
    std::fs::write(&enrolment.bundle_file, other.store.bundle().context("nothing is published")?)?;
    let answer = enroll(&enrolment).await;
    ensure!(matches!(answer, Err(EnrollError::Unreachable { .. })), "{answer:?}");
    fleet.stop().await
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_named() -> Result<()> {
    // A coordinator of tomorrow, which is what a node whose clock is a day late sees.
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(["coordinator.somersault".to_owned()])?;
    params.not_before = rcgen::date_time_ymd(2999, 1, 1);
    params.not_after = rcgen::date_time_ymd(3000, 1, 1);
    let certificate = params.self_signed(&key)?.pem();
    let folder = tempfile::tempdir()?;
    for (name, text) in
        [("ca.crt", &certificate), ("tls.crt", &certificate), ("tls.key", &key.serialize_pem())]
    {
        std::fs::write(folder.path().join(name), text)?;
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let limits = somersault_proto::tls::ConnectionLimits { total: 4, strangers_per_host: 4 };
    let incoming = TlsSource::read(folder.path())?.accept_anybody(listener, limits);
    let handshakes = tokio::spawn(tokio_stream::StreamExt::collect::<Vec<_>>(incoming));
    std::fs::write(folder.path().join("token"), "a.b.c")?;
    let enrolment = Enrolment {
        identity: Identity::Node("n1".parse()?),
        coordinators: vec![address.to_string().parse()?],
        token_file: folder.path().join("token"),
        bundle_file: folder.path().join("ca.crt"),
    };
    let words = match enroll(&enrolment).await {
        Err(error) => error.to_string(),
        Ok(_) => bail!("certified by the future"),
    };
    ensure!(words.contains("clock") && words.contains("not good yet") && words.contains("NTP"), "{words}");
    handshakes.abort();
    Ok(())
}

#[tokio::test]
async fn a_stream_ends_with_its_certificate() -> Result<()> {
    let (fleet, enrolling) = start(SHORT).await?;
    let tls = ask(&enrolling, Token::of_agent("n1")).await??;
    let mut beats = Beats::open(FleetClient::new(connect_as(fleet.address(), &tls).await?)).await?;
    beats.granted(beat("n1", 1)).await?;
    let words = beats.refused(Code::Unauthenticated).await?;
    ensure!(words.contains("ended"), "{words}");
    // No stream is opened with it from now on, though TLS takes a certificate to the end of its last second: how many
    // attempts fall into that second is the machine's business.
    let mut turned_away = 1;
    let refused_by_tls = async {
        loop {
            let Ok(channel) = connect_as(fleet.address(), &tls).await else { return anyhow::Ok(()) };
            let Err(error) = Beats::open(FleetClient::new(channel)).await else {
                bail!("it is let in still")
            };
            let status = error.downcast::<Status>()?;
            if status.code() != Code::Unauthenticated {
                // TLS 1.3 tells a client of its refused certificate only with the first answer.
                return Ok(());
            }
            ensure!(status.message().contains("ended"), "{status:?}");
            turned_away += 1;
        }
    };
    timeout(SOON, refused_by_tls).await.context("TLS takes it still")??;
    fleet.until_refused("CertificateEnded", turned_away).await?;
    ensure!(fleet.get("/metrics").await?.contains("somersault_beats_total 1\n"), "it beat again");
    fleet.stop().await
}

/// A whole agent that enrols, with the bundle kept as the kubelet keeps it.
struct Agent {
    stop: CancellationToken,
    running: JoinHandle<Result<(), somersault_agent::run::AgentError>>,
    mounting: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start(coordinator: SocketAddr, enrolment: &Enrolment, mounting: JoinHandle<()>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let text = |path: &std::path::Path| path.display().to_string();
        let boot_id = folder.path().join("boot_id");
        std::fs::write(&boot_id, somersault_wire_tests::BOOT_ID)?;
        let config = somersault_agent::config::Config::try_parse_from([
            "agent",
            "--node",
            "n1",
            "--coordinator",
            &coordinator.to_string(),
            "--listen",
            &address,
            "--advertise",
            &address,
            "--boot-id-file",
            &text(&boot_id),
            "--enroll",
            enrolment.coordinators[0].as_str(),
            "--token-file",
            &text(&enrolment.token_file),
            "--ca-bundle",
            &text(&enrolment.bundle_file),
        ])?;
        let stop = CancellationToken::new();
        let running = tokio::spawn(somersault_agent::run::run(config, stop.clone()));
        Ok(Self { stop, running, mounting, _folder: folder })
    }

    async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.mounting.abort();
        timeout(SOON, self.running).await.context("the agent did not stop")???;
        Ok(())
    }
}

/// Watches the beats that arrive: their number, and the longest time without one.
struct Pulse {
    began: Instant,
    last: Instant,
    beats: u64,
    longest: Duration,
}

impl Pulse {
    async fn look(&mut self, fleet: &Fleet) -> Result<()> {
        let text = fleet.get("/metrics").await?;
        let number = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such metric")?;
            Ok(line.trim().parse()?)
        };
        let beats = number("somersault_beats_total ")?;
        if beats > self.beats {
            self.longest = self.longest.max(self.last.elapsed());
            (self.beats, self.last) = (beats, Instant::now());
        }
        ensure!(text.contains("somersault_node_state{node=\"n1\",state=\"Healthy\"} 1\n"), "not healthy");
        Ok(())
    }

    /// Looks until `done`.
    async fn until(fleet: &Fleet, what: &str, mut done: impl FnMut(&str) -> bool) -> Result<Self> {
        fleet.until_state("n1", "Healthy").await?;
        let now = Instant::now();
        let mut pulse = Self { began: now, last: now, beats: 0, longest: Duration::ZERO };
        let looking = async {
            loop {
                pulse.look(fleet).await?;
                if done(&fleet.get("/metrics").await?) {
                    return anyhow::Ok(());
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON * 3, looking).await.with_context(|| format!("never: {what}"))??;
        Ok(pulse)
    }

    /// The safe profile beats each second and suspects after three missed ones: not one is missing here.
    fn is_unbroken(&self) -> Result<()> {
        let (gap, seconds) = (self.longest, self.began.elapsed().as_secs());
        ensure!(gap < Duration::from_millis(1_900), "{gap:?} without a beat, {} in {seconds} s", self.beats);
        ensure!(self.beats + 1 >= seconds, "{} beats in {seconds} s", self.beats);
        Ok(())
    }
}

fn certified(metrics: &str) -> u64 {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("somersault_enrolments_total{outcome=\"Certified\"} "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_without_a_missed_beat() -> Result<()> {
    let (fleet, enrolling) = start(SHORT).await?;
    enrolling.kubernetes.issue("a.b.c", Token::of_agent("n1"));
    let enrolment = enrolling.pod("n1", "a.b.c")?;
    let mounting = tokio::spawn(enrolling.mount(enrolment.bundle_file.clone()));
    let agent = Agent::start(fleet.address(), &enrolment, mounting)?;
    // Three lives of a certificate: each stream would have ended with its own.
    let began = Instant::now();
    let pulse =
        Pulse::until(&fleet, "renewals", |metrics| certified(metrics) >= 4 && began.elapsed() > SHORT * 2)
            .await?;
    pulse.is_unbroken()?;
    ensure!(!fleet.get("/metrics").await?.contains("CertificateEnded"), "a stream outlived its certificate");
    agent.stop().await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_replaced_without_a_missed_beat() -> Result<()> {
    let (fleet, enrolling) = start(SHORT).await?;
    enrolling.kubernetes.issue("a.b.c", Token::of_agent("n1"));
    let enrolment = enrolling.pod("n1", "a.b.c")?;
    let mounting = tokio::spawn(enrolling.mount(enrolment.bundle_file.clone()));
    let agent = Agent::start(fleet.address(), &enrolment, mounting)?;
    fleet.until_state("n1", "Healthy").await?;
    let old = enrolling.store.bundle().context("nothing is published")?;
    enrolling.store.annotate(ROTATE_ANNOTATION);
    let both = enrolling.until_bundle("a second authority", |bundle| bundle.len() > old.len()).await?;
    ensure!(both.starts_with(&old), "the old one signs still");
    let new = both.strip_prefix(old.as_str()).context("the new one comes second")?.to_owned();
    let store = enrolling.store.clone();
    let pulse =
        Pulse::until(&fleet, "the old authority gone", |_| store.bundle().as_ref() == Some(&new)).await?;
    pulse.is_unbroken()?;
    ensure!(enrolling.store.secret_keys() == ["ca.crt", "ca.key"], "{:?}", enrolling.store.secret_keys());
    agent.stop().await?;
    fleet.stop().await
}

#[tokio::test]
async fn a_deleted_secret_and_a_defaced_bundle_are_put_back() -> Result<()> {
    let (fleet, enrolling) = start(Duration::from_secs(10)).await?;
    let bundle = enrolling.store.bundle().context("nothing is published")?;
    enrolling.store.deface_bundle("trust me instead");
    enrolling.until_bundle("repaired", |found| found == bundle).await?;
    enrolling.store.delete_secret();
    enrolling.store.deface_bundle("and me");
    enrolling.until_bundle("the same authority", |found| found == bundle).await?;
    ensure!(enrolling.store.secret_keys() == ["ca.crt", "ca.key"]);
    fleet.stop().await
}

#[tokio::test]
async fn replicas_that_start_together_have_one_authority() -> Result<()> {
    use somersault_coordinator::ca::{CaPolicy, Keeper};
    use somersault_wire_tests::enrolment::MemoryStore;
    let store = MemoryStore::default();
    let open = || Keeper::open(store.clone(), CaPolicy::default());
    let (one, two, three) = tokio::join!(open(), open(), open());
    let bundle = store.bundle().context("nothing is published")?;
    ensure!(bundle.matches("BEGIN CERTIFICATE").count() == 1);
    for keeper in [one, two, three] {
        let key = KeyPair::generate()?;
        let identity = Identity::Node("n1".parse()?);
        let now = jiff::Timestamp::now();
        let (_, trusted) = keeper.signer().certify(&identity, &key, now)?;
        ensure!(trusted == bundle);
    }
    Ok(())
}

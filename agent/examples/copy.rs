//! Times a verified, encrypted copy of a dense volume beside what people use today, on the same bytes.
//!
//! Both agents run in this process, over mutual TLS on 127.0.0.1. Every contender ends with its data synced; ours has
//! read it back from the device as well. Runs are interleaved, the median counts.
//!
//! Try it: cargo run --release -p somersault-agent --example copy -- --from /dev/shm --to /var/tmp

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use somersault_agent::transfer::{PullProgress, PullRequest, TransferConfig, Transfers};
use somersault_proto::tls::{ConnectionLimits, TlsSource};
use somersault_proto::token::{Claims, TokenSigner};
use somersault_test_support::certs::CertAuthority;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;

/// What to time.
#[derive(Parser)]
struct Options {
    /// Size of the volume in MiB.
    #[arg(long, default_value_t = 2048)]
    size_mib: u64,
    /// Folder for the source.
    #[arg(long, default_value = "/dev/shm")]
    from: PathBuf,
    /// Folder for the target.
    #[arg(long, default_value = "/var/tmp")]
    to: PathBuf,
    /// How often each contender runs.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Without the other programs.
    #[arg(long)]
    alone: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let from = tempfile::tempdir_in(&options.from).context("making the source's folder")?;
    let to = tempfile::tempdir_in(&options.to).context("making the target's folder")?;
    let volume = from.path().join("pvc-1");
    fill(&volume, options.size_mib)?;
    let pair = Pair::start(from.path(), to.path()).await?;

    let mut times: Vec<(&str, Vec<Duration>)> = Vec::new();
    for round in 0..options.rounds {
        let target = to.path().join("copy");
        let mut note = |name, time| match times.iter_mut().find(|(known, _)| *known == name) {
            Some((_, all)) => all.push(time),
            None => times.push((name, vec![time])),
        };
        let (unverified, verified) = pair.copy(round).await?;
        note("somersault, encrypted, synced", unverified);
        note("somersault, the same and read back from the device", verified);
        note("somersault, after a pre-copy and 1 % of change", pair.copy_of_changes(round, &volume).await?);
        for (name, program, arguments) in [
            ("cp, synced", "cp", &["-r", "--sparse=never"][..]),
            ("rsync -W --inplace, synced", "rsync", &["-r", "-W", "--inplace"]),
        ] {
            if options.alone {
                break;
            }
            let start = Instant::now();
            let run = Command::new(program)
                .args(arguments)
                .arg(&volume)
                .arg(&target)
                .stdout(Stdio::null())
                .status();
            if run.is_err() {
                continue;
            }
            ensure!(run?.success(), "{program} failed");
            ensure!(Command::new("sync").arg("-f").arg(&target).status()?.success(), "sync failed");
            note(name, start.elapsed());
            std::fs::remove_dir_all(&target)?;
        }
    }
    for (name, mut all) in times {
        all.sort();
        let (median, seconds) = (all[all.len() / 2].as_secs_f64(), |time: Duration| time.as_secs_f64());
        #[allow(clippy::cast_precision_loss)] // sizes far below 2^52
        let speed = options.size_mib as f64 / median;
        println!(
            "{name:<52} {median:>6.2} s  {:.2}..{:.2} s  {speed:>6.0} MiB/s",
            seconds(all[0]),
            seconds(all[all.len() - 1])
        );
    }
    Ok(())
}

fn fill(volume: &Path, size_mib: u64) -> Result<()> {
    std::fs::create_dir(volume)?;
    let mut file = std::fs::File::create(volume.join("disk.img"))?;
    let (mut random, mut block) = (StdRng::seed_from_u64(1), vec![0; 1 << 20]);
    for _ in 0..size_mib {
        random.fill_bytes(&mut block);
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

/// Writes one MiB in every hundred anew. (Chunks are that large: smaller writes all over would cost as many chunks.)
fn change(volume: &Path, round: usize) -> Result<()> {
    const BLOCK: usize = 1 << 20;
    let file = std::fs::File::options().write(true).open(volume.join("disk.img"))?;
    let blocks = file.metadata()?.len() / BLOCK as u64;
    let (mut random, mut block) = (StdRng::seed_from_u64(2 + round as u64), vec![0; BLOCK]);
    for at in (0..blocks).step_by(100) {
        random.fill_bytes(&mut block);
        file.write_all_at(&block, at * BLOCK as u64)?;
    }
    Ok(file.sync_all()?)
}

/// A source and a target.
struct Pair {
    target: Transfers,
    order: PullRequest,
    to: PathBuf,
    _certs: tempfile::TempDir,
    signer: TokenSigner,
    claims: Claims,
}

impl Pair {
    async fn start(from: &Path, to: &Path) -> Result<Self> {
        let certs = tempfile::tempdir()?;
        let (authority, signer) = (CertAuthority::new()?, TokenSigner::generate()?);
        let mut agents = Vec::new();
        for (name, root) in [("n1", from), ("n2", to)] {
            authority.issue_node(name, &certs.path().join(name))?;
            let tls = TlsSource::read(&certs.path().join(name))?;
            let config = TransferConfig {
                roots: vec![(root.to_owned(), 1)],
                pods: None,
                tls: tls.clone(),
                node: name.parse()?,
            };
            let transfers = Transfers::new(config);
            transfers.set_token_key("c0", signer.public_key());
            agents.push((tls, transfers));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let limits = ConnectionLimits { total: 64, strangers_per_host: 64 };
        let server = Server::builder().add_service(agents[0].1.service());
        tokio::spawn(server.serve_with_incoming(agents[0].0.accept(listener, limits)));
        let path = |folder: &Path| folder.join("pvc-1").display().to_string();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let claims = Claims {
            job: String::new(),
            source_node: "n1".parse()?,
            target_node: "n2".parse()?,
            source_path: path(from).parse()?,
            exp: now + 3600,
        };
        let order = PullRequest {
            transfer: String::new(),
            source_node: "n1".parse()?,
            source_address: address.parse()?,
            source_path: path(from).parse()?,
            target_path: path(to).parse()?,
            token: String::new(),
            final_copy: false,
            rate_limit_bytes_per_s: None,
            accept_unreadable: false,
        };
        let target = agents.remove(1).1;
        Ok(Self { target, order, to: to.to_owned(), _certs: certs, signer, claims })
    }

    /// Times a final copy that follows a pre-copy, when one part in a hundred has changed since: how long a VM stands still.
    async fn copy_of_changes(&self, round: usize, volume: &Path) -> Result<Duration> {
        let transfer = format!("bench-{round}-changes");
        let order = |final_copy| {
            let claims = Claims { job: transfer.clone(), ..self.claims.clone() };
            let token = self.signer.sign(&claims)?;
            anyhow::Ok(PullRequest { transfer: transfer.clone(), token, final_copy, ..self.order.clone() })
        };
        let pull = |order| self.target.pull(order, watch::channel(PullProgress::default()).0);
        pull(order(false)?).await?;
        change(volume, round)?;
        let start = Instant::now();
        let done = pull(order(true)?).await?;
        let time = start.elapsed();
        ensure!(done.sent_bytes < done.total_bytes / 10, "{} bytes were sent", done.sent_bytes);
        self.target.cancel(&transfer, true, None).await?;
        std::fs::remove_dir_all(self.to.join("pvc-1"))?;
        Ok(time)
    }

    /// Times a pre-copy (everything synced, nothing read back) and a final copy, each from nothing.
    async fn copy(&self, round: usize) -> Result<(Duration, Duration)> {
        let mut times = [Duration::ZERO; 2];
        for (final_copy, time) in [false, true].into_iter().zip(&mut times) {
            let transfer = format!("bench-{round}-{final_copy}");
            let claims = Claims { job: transfer.clone(), ..self.claims.clone() };
            let token = self.signer.sign(&claims)?;
            let order = PullRequest { transfer: transfer.clone(), token, final_copy, ..self.order.clone() };
            let start = Instant::now();
            let done = self.target.pull(order, watch::channel(PullProgress::default()).0).await?;
            *time = if final_copy { start.elapsed() } else { done.until_durable };
            ensure!(done.sent_bytes == done.total_bytes, "a dense volume is sent as a whole");
            self.target.cancel(&transfer, true, None).await?;
        }
        std::fs::remove_dir_all(self.to.join("pvc-1"))?;
        Ok((times[0], times[1]))
    }
}

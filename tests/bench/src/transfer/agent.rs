//! The agent's side of the bench, as processes of their own: the source serves what an agent serves to agents, the target
//! makes one copy and tells how it went in a line of JSON.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;
use somersault_agent::peer::{CONNECTIONS, server};
use somersault_agent::transfer::{PullProgress, PullRequest, TransferConfig, Transfers};
use somersault_proto::tls::TlsSource;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;

/// As many as the agent has.
const WORKER_THREADS: usize = 2;
/// Any name: it stands for the coordinator that has signed the tokens.
const COORDINATOR: &str = "bench";

/// What both sides are told.
#[derive(Clone, Debug, clap::Args)]
struct Side {
    /// Name in the certificate.
    #[arg(long)]
    node: String,
    /// Storage root.
    #[arg(long)]
    root: PathBuf,
    /// Folder with certificate and key.
    #[arg(long)]
    certs: PathBuf,
    /// Public key of the tokens' signer, in hexadecimal.
    #[arg(long)]
    token_key: blake3::Hash,
    /// Without TLS.
    #[arg(long)]
    plaintext: bool,
}

/// What the source is told.
#[derive(Clone, Debug, clap::Args)]
pub struct SourceOptions {
    #[command(flatten)]
    side: Side,
    /// Where to serve.
    #[arg(long)]
    listen: SocketAddr,
}

/// What the target is told.
#[derive(Clone, Debug, clap::Args)]
pub struct TargetOptions {
    #[command(flatten)]
    side: Side,
    /// Name of the transfer; the same one again goes on from what is there.
    #[arg(long)]
    transfer: String,
    /// For the source.
    #[arg(long)]
    token: String,
    #[arg(long)]
    source_node: String,
    #[arg(long)]
    source_address: String,
    #[arg(long)]
    source_path: String,
    #[arg(long)]
    target_path: String,
    /// A head start only: the source may still change.
    #[arg(long)]
    pre_copy: bool,
}

/// Why an engine with or without TLS cannot be run. Nothing without TLS is ever shipped, and here it is only by a feature.
pub fn refusal(is_plain: bool) -> Option<&'static str> {
    (is_plain && !cfg!(feature = "plaintext")).then_some("not built in (cargo's feature `plaintext`)")
}

/// Serves until it is killed.
pub fn serve(options: &SourceOptions) -> Result<()> {
    let (transfers, tls) = engine(&options.side)?;
    runtime()?.block_on(async {
        let listener = TcpListener::bind(options.listen).await.context("opening the source's port")?;
        let server = server().add_service(transfers.service());
        if options.side.plaintext {
            return server
                .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
                .await
                .context("serving");
        }
        server.serve_with_incoming(tls.accept(listener, CONNECTIONS)).await.context("serving")
    })
}

/// Makes one copy.
pub fn pull(options: TargetOptions) -> Result<()> {
    let (transfers, _tls) = engine(&options.side)?;
    let request = PullRequest {
        transfer: options.transfer,
        source_node: options.source_node.parse()?,
        source_address: options.source_address.parse()?,
        source_path: options.source_path.parse()?,
        target_path: options.target_path.parse()?,
        token: options.token,
        final_copy: !options.pre_copy,
        rate_limit_bytes_per_s: None,
        accept_unreadable: false,
    };
    let (progress, _nobody_looks) = watch::channel(PullProgress::default());
    let done = runtime()?.block_on(transfers.pull(request, progress))?;
    let told = json!({
        "seconds": done.elapsed.as_secs_f64(),
        "durable_seconds": done.until_durable.as_secs_f64(),
        "sent_bytes": done.sent_bytes,
        "total_bytes": done.total_bytes,
    });
    println!("{told}");
    Ok(())
}

fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(WORKER_THREADS).enable_all().build().context("cannot start threads")
}

fn engine(side: &Side) -> Result<(Transfers, TlsSource)> {
    if let Some(why) = refusal(side.plaintext) {
        bail!("{why}");
    }
    let tls = TlsSource::read(&side.certs)?;
    let config = TransferConfig {
        roots: vec![(side.root.clone(), 1)],
        pods: None,
        tls: tls.clone(),
        node: side.node.parse()?,
    };
    let transfers = if side.plaintext { in_plaintext(config)? } else { Transfers::new(config) };
    transfers.set_token_key(COORDINATOR, *side.token_key.as_bytes());
    Ok((transfers, tls))
}

#[cfg(feature = "plaintext")]
fn in_plaintext(config: TransferConfig) -> Result<Transfers> {
    use super::world::Side as End;
    let peer = End::BOTH.into_iter().find(|end| end.name() != config.node.as_str());
    let peer = peer.context("a side without another")?.name().parse()?;
    Ok(Transfers::in_plaintext_with(config, peer))
}

#[cfg(not(feature = "plaintext"))]
fn in_plaintext(_: TransferConfig) -> Result<Transfers> {
    bail!("not built in")
}

//! Asks a guest what a user wants to know: does it accept a connection, does it answer over HTTP?
//!
//! ```text
//!   TCP connect ── refused, no route, no time ─────────────► no answer
//!        ▼ connected: enough for `tcp`
//!   GET ── head of a response, status from 200 to 399 ─────► answered
//!    └──── another status, no HTTP, a head without end ────► no answer
//! ```
//!
//! A guest may say whatever it likes. Of a response its head is read, up to a limit, and nothing else; where it redirects
//! to is not asked, since that could be any host that we reach and the guest does not.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use somersault_coordinator_core::migration::HttpPath;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// What is read of a response at most: many times what any head has.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Fields of a head at most, for the same reason.
const HEADERS_MAX: usize = 64;
/// Who asks, for the guest's log.
const USER_AGENT: &str = concat!("somersault/", env!("CARGO_PKG_VERSION"));

/// Why a guest has not answered.
#[derive(Debug, Error)]
pub enum NoAnswer {
    /// Nothing came.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Late(Duration),
    /// Nobody accepts connections there.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// What came is no head of a response.
    #[error("no response over HTTP")]
    Http(#[from] hyper::Error),
    /// It cannot be asked.
    #[error("this is no request")]
    Request(#[from] hyper::http::Error),
    /// It answered, and says itself that something is wrong.
    #[error("status {0}")]
    Status(StatusCode),
}

/// Asks, and says what was answered.
/// To accept a connection is enough where no path is asked for.
pub async fn ask(at: SocketAddr, path: Option<&HttpPath>, timeout: Duration) -> Result<String, NoAnswer> {
    let asked = async {
        let stream = TcpStream::connect(at).await.map_err(NoAnswer::Connect)?;
        match path {
            None => Ok("it accepts a connection".to_owned()),
            Some(path) => get(stream, at, path.as_str()).await,
        }
    };
    tokio::time::timeout(timeout, asked).await.unwrap_or(Err(NoAnswer::Late(timeout)))
}

async fn get(stream: TcpStream, at: SocketAddr, path: &str) -> Result<String, NoAnswer> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    // Dropped with the response, whose body stays unread.
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(path)
        .header(header::HOST, at.to_string())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    if status.is_success() || status.is_redirection() {
        Ok(format!("status {}", status.as_u16()))
    } else {
        Err(NoAnswer::Status(status))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::response::Redirect;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use somersault_coordinator_core::migration::GuestProbe;

    use super::*;

    const LOCAL: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    /// Nothing here waits for it but what has to.
    const LONG: Duration = Duration::from_secs(20);

    async fn listen() -> (TcpListener, u16) {
        let listener = TcpListener::bind((LOCAL, 0)).await.expect("a port");
        let port = listener.local_addr().expect("it has one").port();
        (listener, port)
    }

    async fn asked(probe: &str, timeout: Duration) -> Result<String, NoAnswer> {
        match probe.parse().expect("a probe") {
            GuestProbe::Tcp { port } => ask((LOCAL, port.get()).into(), None, timeout).await,
            GuestProbe::Http { port, path } => ask((LOCAL, port.get()).into(), Some(&path), timeout).await,
            other @ GuestProbe::Job { .. } => panic!("{other} is not asked over the network"),
        }
    }

    /// Answers each connection by this, whatever it asks, and then by more of it for as long as somebody reads.
    async fn raw(first: &'static str, then: &'static str) -> (u16, Arc<AtomicUsize>) {
        let (listener, port) = listen().await;
        let written = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&written);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                drop(socket.read(&mut [0; 1024]).await);
                let mut next = first;
                while socket.write_all(next.as_bytes()).await.is_ok() {
                    count.fetch_add(next.len(), Ordering::SeqCst);
                    if then.is_empty() {
                        break;
                    }
                    next = then;
                }
            }
        });
        (port, written)
    }

    #[tokio::test]
    async fn a_port_that_accepts_connections_answers() {
        let (listener, port) = listen().await;
        assert_eq!(asked(&format!("tcp:{port}"), LONG).await.expect("it listens"), "it accepts a connection");
        drop(listener);
        assert!(matches!(asked(&format!("tcp:{port}"), LONG).await, Err(NoAnswer::Connect(_))));
        assert!(matches!(asked(&format!("http:{port}/"), LONG).await, Err(NoAnswer::Connect(_))));
    }

    #[tokio::test]
    async fn a_status_below_400_is_an_answer_and_no_redirect_is_followed() {
        let (listener, port) = listen().await;
        let elsewhere = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&elsewhere);
        let routes = Router::new()
            .route("/healthz", get(|| async { "ok" }))
            .route("/old", get(|| async { Redirect::to("/elsewhere") }))
            .route("/broken", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
            .route(
                "/elsewhere",
                get(move || async move {
                    count.fetch_add(1, Ordering::SeqCst);
                }),
            );
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let asked = async |path: &str| asked(&format!("http:{port}{path}"), LONG).await;
        assert_eq!(asked("/healthz?deep=1").await.expect("it is there"), "status 200");
        assert_eq!(asked("/old").await.expect("it is there"), "status 303");
        assert_eq!(elsewhere.load(Ordering::SeqCst), 0, "the redirect was followed");
        for (path, status) in [("/broken", 503), ("/missing", 404), ("", 404)] {
            let Err(NoAnswer::Status(found)) = asked(path).await else { panic!("{path} is no answer") };
            assert_eq!(found.as_u16(), status, "{path}");
        }
    }

    #[tokio::test]
    async fn a_redirect_with_302_is_an_answer() {
        let (port, _) = raw("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n", "").await;
        assert_eq!(asked(&format!("http:{port}"), LONG).await.expect("an answer"), "status 302");
    }

    #[tokio::test]
    async fn who_says_nothing_is_waited_for_no_longer_than_asked() {
        let (listener, port) = listen().await;
        let begun = Instant::now();
        let timeout = Duration::from_millis(200);
        let answer = asked(&format!("http:{port}"), timeout).await;
        assert!(matches!(answer, Err(NoAnswer::Late(_))), "{answer:?}");
        assert_eq!(answer.expect_err("late").to_string(), "no answer within 0.2 s");
        assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
        drop(listener);
    }

    #[tokio::test]
    async fn a_head_without_end_is_read_up_to_a_limit() {
        // One field that never ends, fields without end, and interim responses without end.
        for (first, then) in [
            ("HTTP/1.1 200 OK\r\nA: ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
            ("HTTP/1.1 200 OK\r\n", "A: b\r\n"),
        ] {
            let (port, _) = raw(first, then).await;
            let answer = asked(&format!("http:{port}"), LONG).await;
            assert!(matches!(answer, Err(NoAnswer::Http(_))), "{answer:?}");
        }
        let (port, _) = raw("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n").await;
        let answer = asked(&format!("http:{port}"), Duration::from_millis(200)).await;
        assert!(matches!(answer, Err(NoAnswer::Late(_) | NoAnswer::Http(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn a_body_without_end_stays_unread() {
        let (port, written) = raw("HTTP/1.1 200 OK\r\n\r\n", "0123456789abcdef").await;
        assert_eq!(asked(&format!("http:{port}"), LONG).await.expect("the head is there"), "status 200");
        // What the socket's own buffers took; then the connection is gone, and the writer stops.
        let stopped = async {
            let mut last = usize::MAX;
            while written.load(Ordering::SeqCst) != last {
                last = written.load(Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LONG, stopped).await.expect("it is read on and on");
    }

    #[tokio::test]
    async fn what_is_no_http_is_no_answer() {
        for hello in ["SSH-2.0-OpenSSH_9.6\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 ", "\0\0\0\0"] {
            let (port, _) = raw(hello, "").await;
            let answer = asked(&format!("http:{port}"), LONG).await;
            assert!(matches!(answer, Err(NoAnswer::Http(_))), "{hello:?}: {answer:?}");
        }
    }
}

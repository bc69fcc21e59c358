//! One POST over one connection, to one address of an endpoint. What receivers of alerts are reached by.
//!
//! ```text
//!   connect ─► TLS, where the URL says so ─► POST ─► status 2xx ──► taken
//!                                                └─► any other, a redirect too ──► refused, with the beginning of what it says
//! ```
//!
//! The URL of a webhook is as good as a password: nothing here prints one, whether it could be used or not.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri, body::Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// What is read of an answer's head: many times what any head has.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// What is read of the body of a refusal, and told: the first line or two.
const REFUSAL_BYTES_MAX: usize = 512;
/// A bundle of every authority of the web has a quarter of this.
const CA_BYTES_MAX: u64 = 1 << 20;
/// Addresses of one name that are used: a name that stands for more is a mistake.
pub const ADDRESSES_MAX: usize = 16;
/// Who sends, for the receiver's log.
const USER_AGENT: &str = concat!("somersault/", env!("CARGO_PKG_VERSION"));

/// Where alerts are sent: a URL of which nothing but host and port is ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    https: bool,
    host: String,
    port: u16,
    path_and_query: String,
}

/// Why a URL cannot be used. The URL itself is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// It cannot be read as one.
    #[error("this is no URL: expected http://HOST[:PORT][/PATH] or https://…")]
    Syntax,
    /// It has a user or a password in it.
    #[error("a URL must have no user or password in it: use a token file")]
    UserInfo,
}

/// Why a POST was not taken. It says nothing of the URL.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// Its host's name has no address.
    #[error("its host has no address")]
    Resolve(#[source] io::Error),
    /// Nobody accepts connections there.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// No authority can be trusted.
    #[error("no certificate authority can be read{of}")]
    Roots {
        /// From which file, where one is named.
        of: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No TLS.
    #[error("no TLS: does --alert-ca name the authority of its certificate?")]
    Tls(#[source] io::Error),
    /// What came is no answer.
    #[error("no answer over HTTP")]
    Http(#[from] hyper::Error),
    /// The request cannot be made.
    #[error("this is no request: is its token one line?")]
    Request,
    /// Nothing came in time.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Late(Duration),
    /// It does not take it.
    #[error("status {status}: {said}")]
    Refused {
        /// Status.
        status: StatusCode,
        /// The beginning of what it said.
        said: String,
    },
}

/// What is posted.
#[derive(Clone, Debug)]
pub struct Message {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Bearer token.
    pub token: Option<String>,
    /// The body.
    pub body: Bytes,
}

impl Endpoint {
    /// Reads a URL.
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        let uri: Uri = text.trim().parse().map_err(|_| BadUrl::Syntax)?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(BadUrl::Syntax),
        };
        let authority = uri.authority().ok_or(BadUrl::Syntax)?;
        if authority.as_str().contains('@') {
            return Err(BadUrl::UserInfo);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(BadUrl::Syntax);
        }
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let path_and_query = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { https, host, port, path_and_query })
    }

    /// The same with this below its path.
    #[must_use]
    pub fn below(&self, path: &str) -> Self {
        let prefix = self.path_and_query.split('?').next().unwrap_or_default().trim_end_matches('/');
        Self { path_and_query: format!("{prefix}{path}"), ..self.clone() }
    }

    /// `HOST:PORT`, which is no secret.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The addresses of its host; of very many the first.
    pub async fn resolve(&self, within: Duration) -> Result<Vec<SocketAddr>, PostError> {
        let found = tokio::time::timeout(within, tokio::net::lookup_host((self.host.as_str(), self.port)));
        let found = found.await.map_err(|_| PostError::Late(within))?.map_err(PostError::Resolve)?;
        let mut found: Vec<SocketAddr> = found.collect();
        found.sort_unstable();
        found.dedup();
        found.truncate(ADDRESSES_MAX);
        if found.is_empty() {
            return Err(PostError::Resolve(io::ErrorKind::NotFound.into()));
        }
        Ok(found)
    }

    /// Posts to the endpoint at one address of it.
    pub async fn post(
        &self,
        at: SocketAddr,
        ca: Option<&Path>,
        message: Message,
        within: Duration,
    ) -> Result<(), PostError> {
        let posted = async {
            let tls = if self.https { Some(trusting(ca.map(Path::to_owned)).await?) } else { None };
            let stream = TcpStream::connect(at).await.map_err(PostError::Connect)?;
            match tls {
                None => self.send(TokioIo::new(stream), message).await,
                Some(config) => {
                    let name = ServerName::try_from(self.host.clone())
                        .map_err(|error| PostError::Tls(io::Error::other(error)))?;
                    let stream = TlsConnector::from(config).connect(name, stream).await;
                    self.send(TokioIo::new(stream.map_err(PostError::Tls)?), message).await
                }
            }
        };
        tokio::time::timeout(within, posted).await.unwrap_or(Err(PostError::Late(within)))
    }

    async fn send<S>(&self, stream: TokioIo<S>, message: Message) -> Result<(), PostError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(stream).await?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let mut request = Request::post(&self.path_and_query)
            .header(header::HOST, self.authority())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::CONTENT_TYPE, message.content_type)
            .header(header::CONNECTION, "close");
        if let Some(token) = &message.token {
            let mut bearer =
                HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| PostError::Request)?;
            bearer.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(message.body)).map_err(|_| PostError::Request)?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        Err(PostError::Refused { status, said: said(response).await })
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("authority", &self.authority()).finish_non_exhaustive()
    }
}

/// The beginning of a refusal's body, on one line.
async fn said(response: Response<Incoming>) -> String {
    let mut body = response.into_body();
    let mut read = Vec::new();
    while read.len() < REFUSAL_BYTES_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        let data = frame.data_ref().map_or(&[][..], |data| data);
        read.extend_from_slice(&data[..data.len().min(REFUSAL_BYTES_MAX - read.len())]);
    }
    let text = String::from_utf8_lossy(&read);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim();
    if text.is_empty() { "no more was said".to_owned() } else { text.to_owned() }
}

/// TLS that trusts the authorities of this file, or else the system's. Read again each time: authorities are renewed.
async fn trusting(ca: Option<PathBuf>) -> Result<Arc<ClientConfig>, PostError> {
    let of = ca.as_ref().map_or_else(String::new, |file| format!(" of {}", file.display()));
    let failed = |source: io::Error| PostError::Roots { of: of.clone(), source };
    let roots = tokio::task::spawn_blocking(move || roots(ca.as_deref())).await;
    let roots = roots.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(io::Error::other(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn roots(ca: Option<&Path>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            if fs::metadata(file)?.len() > CA_BYTES_MAX {
                return Err(io::Error::other(format!("more than {CA_BYTES_MAX} bytes")));
            }
            let pem = fs::read(file)?;
            let found: Vec<CertificateDer<'_>> =
                CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(io::Error::other)?;
            roots.add_parsable_certificates(found);
        }
        // Of those that cannot be read there may be some; what matters is whether one is left.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    if roots.is_empty() {
        return Err(io::Error::other("there is none"));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_only_its_host_is_ever_shown() {
        let slack = Endpoint::parse("https://hooks.example/services/T0/secret?x=1\n").expect("a URL");
        assert_eq!((slack.https, slack.authority().as_str()), (true, "hooks.example:443"));
        assert_eq!(slack.path_and_query, "/services/T0/secret?x=1");
        assert!(!format!("{slack:?}").contains("secret"), "{slack:?}");
        let v6 = Endpoint::parse("http://[fd00::1]:9093/am/").expect("a URL").below("/api/v2/alerts");
        assert_eq!((v6.https, v6.authority().as_str()), (false, "[fd00::1]:9093"));
        assert_eq!(v6.path_and_query, "/am/api/v2/alerts");
        let bare = Endpoint::parse("http://alertmanager:9093").expect("a URL").below("/api/v2/alerts");
        assert_eq!(bare.path_and_query, "/api/v2/alerts");
        for (text, error) in [
            ("", BadUrl::Syntax),
            ("alertmanager:9093", BadUrl::Syntax),
            ("ftp://x/", BadUrl::Syntax),
            ("http:///path", BadUrl::Syntax),
            ("http://a b/", BadUrl::Syntax),
            ("https://user:word@host/", BadUrl::UserInfo),
        ] {
            assert_eq!(Endpoint::parse(text), Err(error), "{text}");
        }
    }
}

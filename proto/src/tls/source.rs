//! Where connections take their certificates from: always the newest set, renewed while servers run.

use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::ClientTlsConfig;

use super::identity::Identity;
use super::incoming::{ConnectionLimits, Incoming};
use super::material::{TlsError, TlsMaterial};

/// The certificates of one process, as they are now. Clones share them.
#[derive(Clone, Debug)]
pub struct TlsSource {
    current: watch::Sender<Arc<TlsMaterial>>,
}

/// Tells of each renewal.
#[derive(Clone, Debug)]
pub struct Renewals {
    current: watch::Receiver<Arc<TlsMaterial>>,
}

impl TlsSource {
    /// Begins with this set.
    pub fn new(material: TlsMaterial) -> Self {
        Self { current: watch::Sender::new(Arc::new(material)) }
    }

    /// Begins with the files of a folder; [`super::follow`] keeps up with them.
    pub fn read(folder: &Path) -> Result<Self, TlsError> {
        TlsMaterial::read(folder).map(Self::new)
    }

    /// The newest set.
    pub fn current(&self) -> Arc<TlsMaterial> {
        Arc::clone(&self.current.borrow())
    }

    /// Who we are, by our own certificate. A renewal never changes it.
    pub fn identity(&self) -> Identity {
        self.current.borrow().identity().clone()
    }

    /// Uses this set for every connection from now on.
    pub fn renew(&self, material: TlsMaterial) {
        self.current.send_replace(Arc::new(material));
    }

    /// Renewals from now on.
    pub fn renewals(&self) -> Renewals {
        Renewals { current: self.current.subscribe() }
    }

    /// For one connection to nobody but `peer`, whatever the address says.
    pub fn client(&self, peer: &Identity) -> ClientTlsConfig {
        self.current().client(peer)
    }

    /// Connections that arrive, of holders of a certificate of our authorities.
    pub fn accept(&self, listener: TcpListener, limits: ConnectionLimits) -> Incoming {
        let source = self.clone();
        Incoming::new(listener, limits, move || source.current().mutual())
    }

    /// Connections that arrive, of anybody.
    pub fn accept_anybody(&self, listener: TcpListener, limits: ConnectionLimits) -> Incoming {
        let source = self.clone();
        Incoming::new(listener, limits, move || source.current().one_sided())
    }
}

impl Renewals {
    /// Waits for the next renewal; for ever, where no more can come.
    pub async fn next(&mut self) {
        if self.current.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

//! Keeps the authorities: makes the first, rotates, publishes the bundle, and renews our own certificate.
//!
//! ```text
//!   every minute: read the Secret ──gone──► put back what we know (a deletion by mistake harms nobody)
//!        │          └──never there──► make it
//!        ▼
//!   step due? ──► store by compare-and-swap ──lost──► read again
//!        ▼
//!   publish the bundle ──► sign for ourselves, if due or if an authority changed ──► sign for others
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use rcgen::{KeyPair, PublicKeyData};
use somersault_proto::enroll::{Attempts, renewal_due};
use somersault_proto::tls::{Identity, Pem, TlsMaterial, TlsSource};
use tokio::sync::watch;
use tokio::time::sleep;

use super::authority::Certified;
use super::rotation::{Step, step};
use super::state::State;
use super::store::CaStore;
use super::{CaError, CaPolicy, secret};

/// Pause after an error: at first short, since nobody gets a certificate meanwhile.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Keeps the authorities.
pub struct Keeper<S> {
    store: S,
    policy: CaPolicy,
    state: watch::Sender<Arc<State>>,
    tls: TlsSource,
    /// When our own certificate is renewed.
    due: SystemTime,
}

/// Signs for others, with the authority of the moment.
#[derive(Clone, Debug)]
pub struct Signer {
    policy: CaPolicy,
    state: watch::Receiver<Arc<State>>,
}

fn no_attempt() -> Attempts {
    Attempts::new("the certificate authority is not as it should be", RETRY)
}

impl<S: CaStore> Keeper<S> {
    /// Reads or makes the authority, and signs our own certificate. Tries until the API server lets it, and says
    /// why it does not.
    pub async fn open(store: S, policy: CaPolicy) -> Self {
        let mut attempts = no_attempt();
        loop {
            match settle(&store, None, &policy).await {
                Ok(state) => match own(&state, &policy) {
                    Ok((material, due)) => {
                        let (state, tls) = (watch::Sender::new(Arc::new(state)), TlsSource::new(material));
                        return Self { store, policy, state, tls, due };
                    }
                    Err(error) => attempts.failed(&error).await,
                },
                Err(error) => attempts.failed(&error).await,
            }
        }
    }

    /// Our own certificate, always the newest.
    pub fn tls(&self) -> TlsSource {
        self.tls.clone()
    }

    /// Signs for others.
    pub fn signer(&self) -> Signer {
        Signer { policy: self.policy, state: self.state.subscribe() }
    }

    /// Keeps everything as it should be, for ever.
    pub async fn run(mut self) {
        let mut attempts = no_attempt();
        loop {
            sleep(self.policy.look_every()).await;
            match self.turn().await {
                Ok(()) => attempts = no_attempt(),
                Err(error) => attempts.failed(&error).await,
            }
        }
    }

    async fn turn(&mut self) -> Result<(), CaError> {
        let known = Arc::clone(&self.state.borrow());
        let settled = settle(&self.store, Some(&known), &self.policy).await;
        // Our own certificate needs no API server: an outage of that must not end it.
        let state = settled.as_ref().unwrap_or(&known).clone();
        let changed = state.bundle() != known.bundle();
        let renew = changed || SystemTime::now() >= self.due;
        let renewed = renew.then(|| own(&state, &self.policy)).transpose()?;
        if changed {
            let phase = format!("{:?}", state.timeline().phase);
            tracing::info!(stage = phase, not_after = %state.signing.anchor().not_after(), "authorities changed");
        }
        self.state.send_replace(Arc::new(state));
        if let Some((material, due)) = renewed {
            self.tls.renew(material);
            self.due = due;
        }
        settled.map(drop)
    }
}

impl Signer {
    /// Signs a certificate for whoever holds the key, and tells whom to trust.
    pub fn certify(
        &self,
        identity: &Identity,
        public_key: &impl PublicKeyData,
        now: Timestamp,
    ) -> Result<(Certified, String), CaError> {
        let state = Arc::clone(&self.state.borrow());
        Ok((state.certify(identity, public_key, now, &self.policy)?, state.bundle()))
    }

    /// Until when the authority that signs is good.
    pub fn authority_not_after(&self) -> Timestamp {
        self.state.borrow().signing.anchor().not_after()
    }
}

/// Brings Secret and ConfigMap to where they should be now, and says what they are.
async fn settle<S: CaStore>(store: &S, known: Option<&State>, policy: &CaPolicy) -> Result<State, CaError> {
    let now = Timestamp::now();
    let (mut state, metadata) = match store.read().await? {
        Some(found) => (secret::read(&found)?, found.metadata),
        None => create(store, known, policy, now).await?,
    };
    let step = step(now, &state.timeline(), policy);
    if step != Step::Rest {
        let next = state.after(step, now, policy)?;
        // Stored before anybody trusts it or gets a certificate of it.
        if !store.replace(&secret::write(&next, metadata)).await? {
            return Err(CaError::Contended(store.name().to_owned()));
        }
        tracing::info!(?step, "rotating the authority");
        state = next;
    }
    let wanted = secret::bundle(&state);
    let found = store.published().await?;
    if !found.as_ref().is_some_and(|found| secret::is_published(&wanted, found)) {
        store.publish(&wanted).await?;
        tracing::info!(config_map = super::BUNDLE_NAME, "authorities published");
    }
    Ok(state)
}

/// Makes the Secret: anew, or as it was before somebody deleted it.
async fn create<S: CaStore>(
    store: &S,
    known: Option<&State>,
    policy: &CaPolicy,
    now: Timestamp,
) -> Result<(State, ObjectMeta), CaError> {
    let state = match known {
        Some(known) => known.clone(),
        None => State::new(now, policy)?,
    };
    let metadata = ObjectMeta { name: Some(store.name().to_owned()), ..ObjectMeta::default() };
    let new: Secret = secret::write(&state, metadata);
    if !store.create(&new).await? {
        return Err(CaError::Contended(store.name().to_owned()));
    }
    if known.is_some() {
        tracing::warn!(secret = store.name(), "the Secret was deleted, and is put back as it was");
    } else {
        tracing::info!(secret = store.name(), "made a certificate authority");
    }
    // The next look takes the resource version from the API server; no step is due on a new authority, and one that
    // is due on an old one waits as long.
    match store.read().await? {
        Some(found) => Ok((secret::read(&found)?, found.metadata)),
        None => Err(CaError::Contended(store.name().to_owned())),
    }
}

/// A certificate for ourselves, over a new key, and when it is renewed.
fn own(state: &State, policy: &CaPolicy) -> Result<(TlsMaterial, SystemTime), CaError> {
    let key = KeyPair::generate()?;
    let certified = state.certify(&Identity::Coordinator, &key, Timestamp::now(), policy)?;
    let material = TlsMaterial::from_pem(
        Pem { origin: Path::new("the bundle"), text: state.bundle().as_bytes() },
        Pem { origin: Path::new("our certificate"), text: certified.pem.as_bytes() },
        Pem { origin: Path::new("our key"), text: key.serialize_pem().as_bytes() },
    )?;
    // No jitter: replicas are few.
    let due = renewal_due(SystemTime::now(), material.validity().not_after, 0.0);
    Ok((material, due))
}

//! Where our certificate comes from, and what keeps it new.
//!
//! | flag | certificate | agents get theirs |
//! |---|---|---|
//! | `--certs DIR` | from files, read again when they change | from whoever made the files |
//! | `--ca-secret NAME` | signed by our own authority | by enrolment |

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use somersault_proto::tls::{Identity, TlsError, TlsSource, follow};

use crate::app::{AppError, Part, listen};
use crate::ca::{CaPolicy, CaStore, Keeper, Signer};
use crate::enroll::{self, Accounts, Enrolling, Reviewer};
use crate::metrics::Metrics;

/// Our certificate, and the parts of the process that belong to it.
pub struct Certificates {
    /// Always the newest.
    pub tls: TlsSource,
    /// Run beside everything else.
    pub parts: Vec<Part>,
}

/// Why the files of `--certs` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// They are not what they should be.
    #[error("the certificates in --certs cannot be used")]
    Tls(#[from] TlsError),
    /// They are somebody else's.
    #[error("the certificate in {} is of {found}, not of coordinator.somersault: agents would refuse it", folder.display())]
    WrongIdentity {
        /// The folder.
        folder: PathBuf,
        /// Whose it is.
        found: String,
    },
}

/// Enrolment, as wired together by the process.
pub struct EnrolmentPlan<S, R> {
    /// Where it is served.
    pub listen: SocketAddr,
    /// How long certificates are good.
    pub policy: CaPolicy,
    /// Keeps the authority.
    pub store: S,
    /// Knows tokens.
    pub reviewer: R,
    /// Whose tokens are taken.
    pub accounts: Accounts,
}

impl Certificates {
    /// From the files of a folder.
    pub fn from_folder(folder: &Path) -> Result<Self, CertificatesError> {
        let tls = TlsSource::read(folder)?;
        if tls.identity() != Identity::Coordinator {
            let (folder, found) = (folder.to_owned(), tls.identity().san());
            return Err(CertificatesError::WrongIdentity { folder, found });
        }
        let (folder, source) = (folder.to_owned(), tls.clone());
        let following = Part::new("certificate files", |_, stop| async move {
            stop.run_until_cancelled(follow(source, folder)).await;
            Ok(())
        });
        Ok(Self { parts: vec![following, measured(&tls, None)], tls })
    }

    /// Signed by our own authority, which is made if there is none. Waits for the API server.
    pub async fn from_authority<S: CaStore, R: Reviewer>(
        plan: EnrolmentPlan<S, R>,
    ) -> Result<(Self, SocketAddr), AppError> {
        let listener = listen(plan.listen, "enrolment").await?;
        let address = listener.local_addr().unwrap_or(plan.listen);
        let keeper = Keeper::open(plan.store, plan.policy).await;
        let (tls, signer) = (keeper.tls(), keeper.signer());
        let measuring = measured(&tls, Some(signer.clone()));
        let keeping = Part::new("certificate authority", |_, stop| async move {
            stop.run_until_cancelled(keeper.run()).await;
            Ok(())
        });
        let (source, reviewer, accounts) = (tls.clone(), plan.reviewer, plan.accounts);
        let serving = Part::new("enrolment server", move |metrics, stop| async move {
            let enrolling = Enrolling { signer, reviewer, accounts, metrics };
            Ok(enroll::serve(listener, source, enrolling, stop).await?)
        });
        Ok((Self { parts: vec![keeping, serving, measuring], tls }, address))
    }
}

/// Tells for how long our own certificate is good, and our authority's.
fn measured(tls: &TlsSource, signer: Option<Signer>) -> Part {
    let tls = tls.clone();
    Part::new("certificates' measure", move |metrics: Arc<Metrics>, stop| async move {
        let mut renewals = tls.renewals();
        let measuring = async {
            loop {
                metrics.certificate_until(tls.current().validity().not_after);
                if let Some(signer) = &signer {
                    metrics.authority_until(signer.authority_not_after());
                }
                renewals.next().await;
            }
        };
        stop.run_until_cancelled(measuring).await;
        Ok(())
    })
}

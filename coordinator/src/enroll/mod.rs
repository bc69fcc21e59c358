//! Enrolment: a certificate for whoever shows a token by which Kubernetes vouches for it.
//!
//! ```text
//!   request ──► CSR: its signature shows the key ──► TokenReview, our audience ──► whose account, which pod
//!                                                                                     │
//!                certificate for that identity ◄── node: of the token, else of the pod ┘
//! ```
//!
//! Whoever asks is a stranger: messages are small, connections few and short, and an answer that says no says no
//! more. What was wrong stands in our log.

mod csr;
mod proof;
mod review;
mod service;

pub use proof::{Accounts, Refusal};
pub use review::{KubeReviewer, ReviewError, Reviewer};
pub use service::{Enrolling, serve};

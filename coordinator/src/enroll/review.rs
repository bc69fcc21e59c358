//! Asks the API server about a token, and, before Kubernetes 1.30, about the pod that it is bound to.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use somersault_proto::enroll::TOKEN_AUDIENCE;

/// Knows tokens and pods.
pub trait Reviewer: Send + Sync + 'static {
    /// What the API server says about a token, asked for our audience.
    fn review(&self, token: String) -> impl Future<Output = Result<TokenReviewStatus, ReviewError>> + Send;

    /// A pod of our namespace, if it is there.
    fn pod(&self, name: &str) -> impl Future<Output = Result<Option<Pod>, ReviewError>> + Send;
}

/// The API server gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct ReviewError {
    /// What was asked.
    pub what: &'static str,
    /// What happened.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Asks a real API server.
#[derive(Clone)]
pub struct KubeReviewer {
    reviews: Api<TokenReview>,
    pods: Api<Pod>,
}

impl KubeReviewer {
    /// Pods are looked for in our own namespace.
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self { reviews: Api::all(client.clone()), pods: Api::namespaced(client.clone(), namespace) }
    }
}

impl Reviewer for KubeReviewer {
    async fn review(&self, token: String) -> Result<TokenReviewStatus, ReviewError> {
        let spec = TokenReviewSpec { token: Some(token), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        let answer =
            answer.map_err(|source| ReviewError { what: "review a token", source: source.into() })?;
        Ok(answer.status.unwrap_or_default())
    }

    async fn pod(&self, name: &str) -> Result<Option<Pod>, ReviewError> {
        let found = self.pods.get_opt(name).await;
        found.map_err(|source| ReviewError { what: "read an agent's pod", source: source.into() })
    }
}

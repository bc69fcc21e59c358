//! How agents reach each other, and how a source knows who calls: mutual TLS, and nothing else in any build that is shipped.
//!
//! The bench measures what encryption costs by a build with the feature `plaintext`, in which both ends take the other's name
//! for granted.

use somersault_proto::model::NodeName;
use somersault_proto::tls::{Identity, TlsSource, peer_node};
use tonic::transport::Endpoint;
use tonic::{Request, Status};

/// How this agent's transfers are carried.
#[derive(Clone, Debug)]
pub(super) enum Wire {
    /// By certificates of the fleet.
    Tls(TlsSource),
    /// Without: whoever calls is this node.
    #[cfg(feature = "plaintext")]
    Plain(NodeName),
}

impl Wire {
    /// The agent of a node; whoever answers there must be that node.
    pub(super) fn endpoint(
        &self,
        address: &str,
        node: &NodeName,
    ) -> Result<Endpoint, tonic::transport::Error> {
        match self {
            Self::Tls(tls) => Endpoint::from_shared(format!("https://{address}"))?
                .tls_config(tls.client(&Identity::Node(node.clone()))),
            #[cfg(feature = "plaintext")]
            Self::Plain(_) => Endpoint::from_shared(format!("http://{address}")),
        }
    }

    /// Who calls.
    pub(super) fn caller<T>(&self, request: &Request<T>) -> Result<NodeName, Status> {
        match self {
            Self::Tls(_) => Ok(peer_node(request)?),
            #[cfg(feature = "plaintext")]
            Self::Plain(node) => Ok(node.clone()),
        }
    }
}

//! The nodes' management controller: a small Redfish service that pulls and plugs in the power cords, so that a real
//! fence agent (`fence_redfish`) can be used on this cluster as on real machines.
//!
//! ```text
//!   https://10.77.0.1:8443   TLS by the cluster's authority, basic authentication
//!   /redfish/v1 ─► /redfish/v1/Systems ─► /redfish/v1/Systems/<node>   PowerState: On | Off
//!                                              └ POST …/Actions/ComputerSystem.Reset   On | ForceOff
//! ```
//!
//! It is one program of the control plane, beside the nodes and not on them, and knows nothing but the power cords:
//! `PowerState` is looked at anew for each answer. Faults, by which tests make it lie, hang or fail for one node, are
//! files; a controller that cannot be reached at all is `somersault-cluster stop bmc`.

mod fault;
mod redfish;
mod tls;

use std::net::SocketAddr;

use anyhow::{Context, Result};

pub use self::fault::Fault;
use crate::addresses::{BMC_PORT, GATEWAY};
use crate::layout::Layout;

/// Whom the controller lets in. The world is closed: nobody else can reach it.
pub const BMC_USER: &str = "somersault";
/// See [`BMC_USER`].
pub const BMC_PASSWORD: &str = "power-cord";

/// Name of the program, of its certificate and of its log.
pub const PROGRAM: &str = "bmc";

/// Serves for ever; to be called in the world.
pub fn serve(layout: &Layout) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let address: SocketAddr = format!("{GATEWAY}:{BMC_PORT}").parse()?;
        let listener =
            tls::TlsListener::bind(address, &layout.pki("bmc.crt"), &layout.pki("bmc.key")).await?;
        axum::serve(listener, redfish::routes(layout.clone())).await.context("serving Redfish")
    })
}

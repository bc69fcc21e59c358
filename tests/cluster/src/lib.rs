//! A real Kubernetes cluster on one machine, each of whose nodes has a power cord, a network plug and disks of
//! its own.
//!
//! ```text
//!   127.0.0.1:PORT ──┐  the only thing that this machine's other programs see
//!   ┌────────────────┴────── world: network, mounts, pids; ends with its pid 1 ──────────────────────┐
//!   │ etcd  kube-apiserver  kube-controller-manager  kube-scheduler  coredns  local-path-provisioner │
//!   │ bmc: the nodes' power cords by Redfish, for fence agents                                       │
//!   │ 10.77.0.1 ── bridge ──┬─────────────────────────┬─────────────────────────┐                    │
//!   │               plug-n1 │                 plug-n2 │                 plug-n3 │  (cut, mend)       │
//!   │  ┌────────────────────┴─┐  ┌────────────────────┴─┐  ┌────────────────────┴─┐                  │
//!   │  │ n1  10.77.0.11       │  │ n2  10.77.0.12       │  │ n3  10.77.0.13       │  (power-off:     │
//!   │  │ containerd, kubelet, │  │ pods 10.78.2.0/24    │  │ pods 10.78.3.0/24    │   SIGKILL to the │
//!   │  │ kube-proxy           │  │                      │  │                      │   node's pid 1)  │
//!   │  │ /var    system.ext4  │  │                      │  │                      │                  │
//!   │  │ /opt/l… data.ext4    │  │         data.xfs     │  │         data.ext4    │                  │
//!   │  └──────────────────────┘  └──────────────────────┘  └──────────────────────┘                  │
//!   │                         /mnt/network: one folder that every node sees                          │
//!   └────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Everything in it is what runs elsewhere, built from Go modules or taken from Debian's packages; only the
//! machines are namespaces. When the world's first process dies, the kernel takes everything down with it but
//! the files and the (empty) control groups, which `down`, or the next `up`, removes.

mod addresses;
mod bmc;
mod cgroups;
mod cluster;
mod control_plane;
mod forward;
mod hold;
mod image;
mod inside;
mod layout;
mod node;
mod parts;
mod pki;
mod power;
mod processes;
mod requirements;
mod supervisor;
mod wait;
mod world;

pub use addresses::{BMC_PORT, GATEWAY, node_address};
pub use bmc::{BMC_PASSWORD, BMC_USER, Fault as BmcFault};
pub use cluster::{ApiOptions, Cluster, Options, TOOLBOX_IMAGE, condition};
pub use hold::Hold;
pub use image::Image;
pub use inside::{InsideCommand, run as run_inside};
pub use layout::Layout;

pub use requirements::{Missing, api_usable_or_skip, check as check_requirements, usable_or_skip};
pub use wait::{Log, until};

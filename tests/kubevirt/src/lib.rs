//! A stand-in for KubeVirt, CDI and the Wukong operator on a test cluster: their objects and their behaviour as far
//! as Somersault depends on it, without virtual machines. Everything below it is real: launcher pods are bound by
//! the scheduler, run by kubelets, mount their claims.
//!
//! ```text
//!   Wukong ──operator──► VM ──► VMI ──► launcher pod: `toolbox guest` ──► disk.img of each claim ──► judge
//!                        └──► DataVolume ──► claim ──► importer pod: `toolbox import` ──┘
//! ```
//!
//! [`Standin`] runs the controllers, [`builders`] make objects, [`judge`] reads what guests wrote. Each behaviour
//! names what it imitates: a file of the original (kubevirt/kubevirt 1.9, kubevirt/containerized-data-importer
//! 1.66, kuihuar/vmoperator), or what was measured on its real controllers; the README has all of them in a table.
//! What it leaves out, knowingly: webhooks (but for the rules that the CRDs state), subresources, heartbeats of
//! virt-handler, block volumes, containers beside the guest, writes on hotplugged disks, live migrations that
//! succeed, a guest that stops while it is paused.

pub mod builders;
mod change;
mod condition;
mod data_volume;
mod hotplug;
mod importer;
mod install;
pub mod judge;
mod launcher;
mod migration;
mod names;
mod objects;
mod provision;
mod standin;
mod vm;
mod vmi;
mod volumes;
mod wukong;

pub use install::{CLASSES, CRDS, install};
pub use launcher::GUEST_PORT;
pub use names::{HOLD, IMAGE, PAUSE, POPULATED_FOR, PRE_POPULATED};
pub use provision::{HOSTPATH_CLASS, NETWORK_CLASS};
pub use standin::{Standin, client, run};

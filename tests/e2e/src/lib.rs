//! Somersault on a real cluster: installed by one command, watching, recovering.
//!
//! ```text
//!   bed    the cluster, the stand-in for KubeVirt, the product installed as its README says
//!   stage  the VMs of one scenario, and what their own disks say
//!   look   what the coordinator publishes: states, decisions, times
//!   logs   what our pods say: no call of theirs is forbidden
//! ```
//!
//! Everything is real but KubeVirt, CDI and Wukong's operator (`tests/kubevirt`). The judge of every scenario is
//! the guests' disks: they tell whether a VM was active twice, lost a write or booted blank.

pub mod api;
pub mod bed;
mod logs;
pub mod look;
pub mod programs;
pub mod side_by_side;
pub mod stage;

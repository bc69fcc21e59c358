//! What goes into the core and what comes out of it.

mod action;
mod effect;
mod input;
mod record;

pub use self::action::{Action, ClaimTemplate, NewVolume, Staging};
pub use self::effect::{Effect, Notice, Order, Severity, Subject};
pub use self::input::{
    Attestation, FenceResult, Input, OpenRecovery, OrderState, Prober, Reachability, Requests,
};
pub use self::record::{Record, RecordKey};

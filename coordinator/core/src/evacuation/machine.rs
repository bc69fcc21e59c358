//! Drives every evacuation.
use std::collections::BTreeMap;

use super::EvacuationRecord;
use crate::BootTime;
use crate::io::{Effect, Input};
use crate::migration::{Context, Migrations};

/// All evacuations.
#[derive(Clone, Debug, Default)]
pub struct Evacuations {}

impl Evacuations {
    /// Takes one input, after the migrations have taken it.
    pub fn step(&mut self, _now: BootTime, _input: &Input, _ctx: &Context<'_>, _migrations: &Migrations) -> Vec<Effect> {
        Vec::new()
    }
    /// When to be called again at the latest.
    pub fn next_deadline(&self) -> Option<BootTime> {
        None
    }
    /// What to show.
    pub fn views(&self) -> BTreeMap<String, EvacuationRecord> {
        BTreeMap::new()
    }
}

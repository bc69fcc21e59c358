//! Drives every migration from phase to phase.
use std::collections::BTreeMap;

use super::Context;
use crate::io::{Effect, Input};
use crate::names::Key;
use crate::view::MigrationView;
use crate::BootTime;

/// All migrations.
#[derive(Clone, Debug, Default)]
pub struct Migrations {}

impl Migrations {
    /// Takes one input.
    pub fn step(&mut self, _now: BootTime, _input: &Input, _ctx: &Context<'_>) -> Vec<Effect> {
        Vec::new()
    }
    /// When to be called again at the latest.
    pub fn next_deadline(&self) -> Option<BootTime> {
        None
    }
    /// What to show.
    pub fn views(&self) -> BTreeMap<Key, MigrationView> {
        BTreeMap::new()
    }
}

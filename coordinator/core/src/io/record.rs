//! What is stored before anything follows from it.

use crate::evacuation::EvacuationRecord;
use crate::fencing::FenceRecord;
use crate::migration::MigrationRecord;
use crate::names::{Key, NodeName};
use crate::rebuild::RebuildRecord;

/// What must survive a crash of ours.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// How far the fencing of a node has come.
    Fence(FenceRecord),
    /// How far a migration has come.
    Migration(Box<MigrationRecord>),
    /// How far an evacuation has come.
    Evacuation(EvacuationRecord),
    /// How far the rebuilding of a VM has come.
    Rebuild(Box<RebuildRecord>),
}

/// Which record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// Of a node's fencing.
    Fence(NodeName),
    /// Of a migration.
    Migration(Key),
    /// Of an evacuation.
    Evacuation(String),
    /// Of a VM that is rebuilt.
    Rebuild(Key),
}

impl Record {
    /// Which record this is.
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Fence(record) => RecordKey::Fence(record.node.clone()),
            Self::Migration(record) => RecordKey::Migration(record.key.clone()),
            Self::Evacuation(record) => RecordKey::Evacuation(record.name.clone()),
            Self::Rebuild(record) => RecordKey::Rebuild(record.vm.clone()),
        }
    }
}

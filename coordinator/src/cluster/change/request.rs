//! Migrations and evacuations that we ask for ourselves: made once, and known again by what they ask.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use somersault_coordinator_core::evacuation::EvacuationSpec;
use somersault_coordinator_core::migration::MigrationSpec;
use somersault_crd as crd;

use super::{MANAGED_BY, MANAGER, check_stays};
use crate::cluster::ClusterError;
use crate::cluster::error::{conflict, refused};
use crate::cluster::manifest::{self, ObjectId};

/// An object of ours to make.
#[derive(Debug)]
pub(in crate::cluster) struct Request {
    /// Which.
    pub id: ObjectId,
    /// Its manifest.
    pub object: Value,
}

impl Request {
    /// A `VolumeMigration`.
    pub(in crate::cluster) fn migration(id: ObjectId, spec: &MigrationSpec) -> Result<Self, ClusterError> {
        Self::new(id, &manifest::migration_spec(spec))
    }

    /// An `Evacuation`.
    pub(in crate::cluster) fn evacuation(id: ObjectId, spec: &EvacuationSpec) -> Result<Self, ClusterError> {
        Self::new(id, &manifest::evacuation_spec(spec))
    }

    fn new(id: ObjectId, spec: &impl Serialize) -> Result<Self, ClusterError> {
        let spec = serde_json::to_value(spec).map_err(|e| refused(&id, e.to_string()))?;
        let mut object = json!({
            "apiVersion": crd::API_VERSION,
            "kind": id.kind,
            "metadata": { "name": id.name, "labels": { MANAGED_BY: MANAGER } },
            "spec": spec,
        });
        if !id.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(id.namespace);
        }
        Ok(Self { id, object })
    }

    /// Whether one of this name, which exists, is this very one. People may cancel it or let it go on meanwhile: only
    /// what it moves, and whereto, makes it the same.
    pub(in crate::cluster) fn check_same(&self, stored: &Value) -> Result<(), ClusterError> {
        check_stays(&self.id, stored)?;
        let same = if self.id.kind == "VolumeMigration" {
            let (have, want) = (self.spec(stored)?, self.spec(&self.object)?);
            let of =
                |spec: crd::VolumeMigrationSpec| (spec.vm, spec.claim, spec.destination, spec.evacuation);
            of(have) == of(want)
        } else {
            let (have, want) = (self.spec(stored)?, self.spec(&self.object)?);
            let of = |spec: crd::EvacuationSpec| (spec.node, spec.disk);
            of(have) == of(want)
        };
        if same { Ok(()) } else { Err(conflict(&self.id, "it exists and asks something else")) }
    }

    fn spec<S: DeserializeOwned>(&self, object: &Value) -> Result<S, ClusterError> {
        serde_json::from_value(object["spec"].clone()).map_err(|e| refused(&self.id, format!("spec: {e}")))
    }
}

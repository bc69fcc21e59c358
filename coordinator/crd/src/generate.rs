//! The CustomResourceDefinitions as files.
//!
//! One file per kind, named `<plural>.yaml`, each with a head that says how it was made. Kubernetes knows the
//! number formats `int32`, `int64`, `float` and `double` only and warns of others at every `apply`, therefore the
//! unsigned ones are renamed; their `minimum: 0` stays.

use kube::CustomResourceExt;
use schemars::JsonSchema;
use serde_json::Value;

use crate::explain;
use crate::{Evacuation, NodeHealth, Recovery, RecoveryPolicy, VolumeMigration};

/// Head of every generated file.
const HEAD: &str =
    "# Generated from coordinator/crd by `cargo run -p somersault-crd --bin crdgen -- deploy/crds`.\n";

/// One generated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// File name, without folder.
    pub name: String,
    /// Its whole content.
    pub content: String,
}

/// A definition that could not be written as YAML.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// It does not serialize.
    #[error("the definition of {kind} cannot be turned into JSON")]
    Json {
        /// Its kind.
        kind: String,
        /// What went wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It does not print.
    #[error("the definition of {kind} cannot be turned into YAML")]
    Yaml {
        /// Its kind.
        kind: String,
        /// What went wrong.
        #[source]
        source: serde_saphyr::ser::Error,
    },
}

/// Every definition as a file, in a fixed order.
pub fn files() -> Result<Vec<GeneratedFile>, GenerateError> {
    Ok(vec![
        file::<NodeHealth>()?,
        file::<Recovery>()?,
        file::<RecoveryPolicy>()?,
        file::<VolumeMigration>()?,
        file::<Evacuation>()?,
    ])
}

fn file<K: CustomResourceExt + JsonSchema>() -> Result<GeneratedFile, GenerateError> {
    let crd = K::crd();
    let names = crd.spec.names.clone();
    let kind = names.kind;
    let mut value =
        serde_json::to_value(crd).map_err(|source| GenerateError::Json { kind: kind.clone(), source })?;
    let schema = &mut value["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    explain::put_back(schema, &explain::raw_schema::<K>());
    tidy(schema);
    let yaml = serde_saphyr::to_string(&value)
        .map_err(|source| GenerateError::Yaml { kind: kind.clone(), source })?;
    Ok(GeneratedFile { name: format!("{}.yaml", names.plural), content: format!("{HEAD}{yaml}") })
}

/// What every object of a schema must, or had better, look like.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(format)) = map.get_mut("format") {
                match format.as_str() {
                    "uint64" | "uint" => "int64".clone_into(format),
                    "uint32" | "uint16" | "uint8" => "int32".clone_into(format),
                    _ => {}
                }
            }
            // A null is the absence of the field, as in Kubernetes' own kinds: the API server drops it, and no
            // rule has to think of it.
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            // The API server stores whole numbers without their point.
            for bound in ["minimum", "maximum", "default"] {
                if let Some(number) = map.get(bound).and_then(Value::as_f64)
                    && number.fract() == 0.0
                    && number.abs() <= f64::from(u32::MAX)
                {
                    // Exact: whole, and small enough.
                    #[allow(clippy::cast_possible_truncation)]
                    map.insert(bound.to_owned(), Value::from(number as i64));
                }
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

//! What `kubectl explain` says of a field.
//!
//! ```text
//!   types ──schemars──► raw schema:        the field's own words; each value of an enumeration with its words
//!     └──────kube─────► structural schema: what a definition may hold; the enumeration's words instead of the
//!                                          field's, and none for its values
//! ```
//!
//! Both have the same shape, so they are walked side by side, and the words are put back.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

/// The schema of a type before Kubernetes' rules are applied to it.
pub fn raw_schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// Puts the words of the raw schema into a structural one.
pub fn put_back(structural: &mut Value, raw: &Value) {
    let content = optional(raw);
    if structural["description"].is_string() {
        let text = text(raw).or_else(|| text(content)).map(unwrapped);
        let values = values(content);
        if let Some(text) = text {
            structural["description"] = Value::String(text + &values);
        }
    }
    let fields = structural.get_mut("properties").and_then(Value::as_object_mut);
    for (name, field) in fields.into_iter().flatten() {
        if let Some(raw) = content["properties"].get(name) {
            put_back(field, raw);
        }
    }
    for inner in ["items", "additionalProperties"] {
        if structural[inner].is_object() && content[inner].is_object() {
            put_back(&mut structural[inner], &content[inner]);
        }
    }
}

/// What may be absent: `T` of an `Option<T>`.
fn optional(raw: &Value) -> &Value {
    raw["anyOf"].get(0).unwrap_or(raw)
}

fn text(raw: &Value) -> Option<&str> {
    raw["description"].as_str()
}

/// The values of an enumeration, each with its words.
fn values(raw: &Value) -> String {
    let variants = raw["oneOf"].as_array().into_iter().flatten();
    let value = |variant: &Value| {
        variant["const"].as_str().or_else(|| variant["enum"][0].as_str()).map(str::to_owned)
    };
    let lines = variants
        .filter_map(|variant| Some(format!("\n- {}: {}", value(variant)?, unwrapped(text(variant)?))));
    lines.collect()
}

/// The lines of a comment as one line, as `kubectl explain` breaks them anew; paragraphs stay.
fn unwrapped(text: &str) -> String {
    let paragraphs =
        text.split("\n\n").map(|paragraph| paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

//! What the commands that write have in common: whose word it is, in which namespace, and under which name.

use std::env;

use serde::Serialize;
use somersault_coordinator::cluster::directory::Transaction;
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::names::Key;

use crate::args::Global;
use crate::exit::Failure;

/// Namespace of commands that are about one object, as with kubectl.
const DEFAULT_NAMESPACE: &str = "default";
/// The longest name that Kubernetes accepts.
const NAME_BYTES_MAX: usize = 253;
/// Objects of one subject and destination that may lie around before somebody should clean up.
const SAME_NAMES_MAX: u32 = 1_000;

/// An object that was written, for `-o json`.
#[derive(Debug, Serialize)]
pub struct Written {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace; absent for cluster-scoped kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// The namespace of the one object that a command is about.
pub fn namespace(global: &Global) -> &str {
    global.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
}

/// The key of the one object that a command is about.
pub fn key(global: &Global, name: &str) -> Key {
    Key::new(namespace(global), name)
}

/// Whose word this is: as named, else the login name.
pub fn whose_word(by: Option<&str>) -> Result<String, Failure> {
    let named = by.map(str::to_owned).or_else(|| env::var("USER").ok()).or_else(|| env::var("LOGNAME").ok());
    named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).ok_or_else(|| {
        Failure::Usage("nobody knows who you are (USER and LOGNAME are not set): use --by NAME".to_owned())
    })
}

/// The first of `stem`, `stem-2`, `stem-3`, … that no object of this kind has.
pub fn free_name(
    transaction: &Transaction<'_>,
    kind: &str,
    namespace: &str,
    stem: &str,
) -> Result<String, Failure> {
    let room = NAME_BYTES_MAX - "-1000".len();
    let end = (0..=stem.len().min(room)).rev().find(|end| stem.is_char_boundary(*end)).unwrap_or(0);
    let stem = stem[..end].trim_end_matches(['-', '.']);
    for number in 1..=SAME_NAMES_MAX {
        let name = if number == 1 { stem.to_owned() } else { format!("{stem}-{number}") };
        let id = ObjectId { kind: kind.to_owned(), namespace: namespace.to_owned(), name };
        if transaction.get(&id)?.is_none() {
            return Ok(id.name);
        }
    }
    Err(Failure::Refused(format!(
        "there are {SAME_NAMES_MAX} objects {kind} {stem}-… already; delete old ones"
    )))
}

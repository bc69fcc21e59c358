//! What the commands that write have in common: whose word it is, in which namespace, and under which name.

use std::env;

use serde::Serialize;
use somersault_coordinator::cluster::directory::Objects;
use somersault_coordinator::cluster::manifest::ObjectId;

use crate::exit::Failure;
use crate::source::Source;

/// The longest name of a person: our objects take texts of 253 characters, and some say besides when it was.
const PERSON_BYTES_MAX: usize = 200;
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

/// Whose word this is: the user of the API server, with the name that is given besides; else the login name.
pub fn whose_word(source: &Source, by: Option<&str>) -> Result<String, Failure> {
    let by = by.map(str::trim).filter(|name| !name.is_empty());
    let word = match (source.who()?, by) {
        (Some(user), Some(name)) => format!("{name} ({user})"),
        (Some(user), None) => user,
        (None, Some(name)) => name.to_owned(),
        (None, None) => login_name()?,
    };
    if word.len() > PERSON_BYTES_MAX {
        return Err(Failure::Usage(format!(
            "--by NAME: longer than {PERSON_BYTES_MAX} bytes with your user name"
        )));
    }
    Ok(word)
}

fn login_name() -> Result<String, Failure> {
    let named = env::var("USER").ok().or_else(|| env::var("LOGNAME").ok());
    named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).ok_or_else(|| {
        Failure::Usage("nobody knows who you are (USER and LOGNAME are not set): use --by NAME".to_owned())
    })
}

/// The first of `stem`, `stem-2`, `stem-3`, … that no object of this kind has.
pub fn free_name(objects: &Objects, kind: &str, namespace: &str, stem: &str) -> Result<String, Failure> {
    let room = NAME_BYTES_MAX - "-1000".len();
    let end = (0..=stem.len().min(room)).rev().find(|end| stem.is_char_boundary(*end)).unwrap_or(0);
    let stem = stem[..end].trim_end_matches(['-', '.']);
    for number in 1..=SAME_NAMES_MAX {
        let name = if number == 1 { stem.to_owned() } else { format!("{stem}-{number}") };
        let id = ObjectId { kind: kind.to_owned(), namespace: namespace.to_owned(), name };
        if objects.get(&id).is_none() {
            return Ok(id.name);
        }
    }
    Err(Failure::Refused(format!(
        "there are {SAME_NAMES_MAX} objects {kind} {stem}-… already; delete old ones"
    )))
}

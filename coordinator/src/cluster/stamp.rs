//! The time as our objects show it to people; nothing is ever decided by it.

use jiff::{Timestamp, Unit};

/// Now, to the second, as Kubernetes prints times.
pub(super) fn now_seconds() -> String {
    Timestamp::now().round(Unit::Second).unwrap_or_else(|_| Timestamp::now()).to_string()
}

//! Names and addresses: checked once, when they are made.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::limits::PATH_BYTES_MAX;

/// A name that is not well formed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?}: {why}")]
pub struct Malformed {
    /// The value, shortened.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $type:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The value as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = Malformed;

            fn try_from(value: String) -> Result<Self, Malformed> {
                match $check(&value) {
                    Ok(()) => Ok(Self(value)),
                    Err(why) => Err(Malformed { value: shortened(&value), why }),
                }
            }
        }

        impl FromStr for $type {
            type Err = Malformed;

            fn from_str(value: &str) -> Result<Self, Malformed> {
                Self::try_from(value.to_owned())
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name!(
    /// Name of a Node: a DNS subdomain (RFC 1123, lower case) that leaves room for the suffix of its
    /// certificate's SAN.
    NodeName,
    check_node_name
);
checked_name!(
    /// Kernel boot id: a lower-case UUID, as `/proc/sys/kernel/random/boot_id` shows it.
    BootId,
    check_boot_id
);
checked_name!(
    /// Absolute path of a storage root or a volume: normal components only, no trailing slash.
    AbsolutePath,
    check_absolute_path
);
checked_name!(
    /// `host:port`; an IPv6 host in brackets.
    Address,
    check_address
);

/// The start of a value, for messages.
pub(super) fn shortened(value: &str) -> String {
    const CHARS_MAX: usize = 64;
    let mut start: String = value.chars().take(CHARS_MAX).collect();
    if start.len() < value.len() {
        start.push('…');
    }
    start
}

fn check_node_name(name: &str) -> Result<(), &'static str> {
    // A DNS name has at most 253 bytes, and `.node.somersault` takes 16 of them.
    if name.len() > 253 - 16 {
        return Err("a node name has at most 237 bytes");
    }
    check_dns_name(name)
}

fn check_dns_name(name: &str) -> Result<(), &'static str> {
    let label_is_well_formed = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.split('.').all(label_is_well_formed) {
        Ok(())
    } else {
        Err("not a DNS name: labels of 1-63 lower-case letters, digits and inner hyphens, joined by dots")
    }
}

fn check_boot_id(id: &str) -> Result<(), &'static str> {
    let well_formed = id.len() == 36
        && id.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        });
    if well_formed { Ok(()) } else { Err("not a lower-case UUID") }
}

fn check_absolute_path(path: &str) -> Result<(), &'static str> {
    if path.len() > PATH_BYTES_MAX {
        return Err("a path of a volume has at most 1024 bytes");
    }
    if path.chars().any(char::is_control) {
        return Err("control character in a path");
    }
    let Some(relative) = path.strip_prefix('/') else {
        return Err("not an absolute path");
    };
    if relative.split('/').any(|component| matches!(component, "" | "." | "..")) {
        return Err("a path has no empty, `.` or `..` component and no trailing slash");
    }
    Ok(())
}

fn check_address(address: &str) -> Result<(), &'static str> {
    const WHY: &str = "not host:port with an IP address or DNS name and a port of 1-65535";
    if address.len() > 253 + 6 {
        return Err(WHY);
    }
    let (host, port) = address.rsplit_once(':').ok_or(WHY)?;
    let port_is_valid =
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    let host_is_valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok() || check_dns_name(host).is_ok(),
    };
    if port_is_valid && host_is_valid { Ok(()) } else { Err(WHY) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts<T: FromStr<Err = Malformed> + fmt::Display>(values: &[&str]) {
        for value in values {
            match value.parse::<T>() {
                Ok(parsed) => assert_eq!(parsed.to_string(), *value),
                Err(error) => panic!("{value:?} was refused: {error}"),
            }
        }
    }

    fn refuses<T: FromStr<Err = Malformed> + fmt::Debug>(values: &[&str]) {
        for value in values {
            assert!(value.parse::<T>().is_err(), "{value:?} was accepted");
        }
    }

    #[test]
    fn node_names_are_dns_names() {
        accepts::<NodeName>(&["n1", "worker-3.rack-2.example.com", "10-0-0-1", &"a".repeat(63)]);
        refuses::<NodeName>(&["", "N1", "-a", "a-", "a..b", ".a", "a.", "a b", "a/b", "../etc", "a\n", "é"]);
        refuses::<NodeName>(&[&"a".repeat(64), &vec!["a"; 200].join(".")]);
    }

    #[test]
    fn boot_ids_are_lower_case_uuids() {
        accepts::<BootId>(&["0f4a3b7e-8f0d-4d8e-9a54-0123456789ab"]);
        refuses::<BootId>(&[
            "",
            "0F4A3B7E-8F0D-4D8E-9A54-0123456789AB",
            "0f4a3b7e8f0d4d8e9a540123456789ab",
            "0f4a3b7e-8f0d-4d8e-9a54-0123456789ab\n",
            "0f4a3b7e-8f0d-4d8e-9a54-0123456789ag",
        ]);
    }

    #[test]
    fn paths_are_absolute_and_normal() {
        accepts::<AbsolutePath>(&["/srv/volumes/pvc-1_default_data", "/a", "/a/..b/.c", "/mnt/Größe"]);
        refuses::<AbsolutePath>(&[
            "", "/", "a", "/a/", "//a", "/a//b", "/a/./b", "/a/../b", "/..", "/a\0b", "/a\nb",
        ]);
        refuses::<AbsolutePath>(&[&format!("/{}", "a".repeat(PATH_BYTES_MAX))]);
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        accepts::<Address>(&["10.0.0.1:7443", "[fd00::1]:7443", "n1.example.com:1", "localhost:65535"]);
        refuses::<Address>(&[
            "",
            ":1",
            "a",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "fd00::1:7443",
            "[10.0.0.1]:1",
            "a b:1",
        ]);
        refuses::<Address>(&["http://a:1", "user@a:1", "a:1\n"]);
    }

    #[test]
    fn a_refused_value_is_shown_shortened() {
        let error = "x".repeat(5000).parse::<AbsolutePath>().unwrap_err();
        assert!(error.to_string().len() < 300, "{error}");
    }
}

//! Which machine a fence agent switches, as far as its options tell: two entries of one machine would switch it for both
//! nodes, and take its state for that of both.
//!
//! Options that say how to get there (user, password, timeouts, TLS) are left out, and the names and values that the fence
//! agents' common library takes for the same are one (`fencing.py`: `ipaddr` and `ip`, blanks around a value). What two
//! entries name in ways that only their controller knows to be one, this does not find; the coordinator looks at who falls
//! when an agent is run.

use std::ffi::OsStr;
use std::path::Path;

/// How the names of the agents begin that know a machine by their options alone. A program of one's own may go by the name
/// of the node, which it is told as well.
const BY_OPTIONS: &str = "fence_";

/// Old and new names of one option.
const ALIASES: [(&str, &str); 3] = [("ipaddr", "ip"), ("port", "plug"), ("hostname", "ip")];

/// Options that tell no machine.
const NO_MACHINE: [&str; 32] = [
    "username",
    "login",
    "user",
    "password",
    "passwd",
    "password_script",
    "passwd_script",
    "password_file",
    "identity_file",
    "command_prompt",
    "ssh",
    "ssh_options",
    "secure",
    "notls",
    "tls1.0",
    "snmp_version",
    "community",
    "inet4_only",
    "inet6_only",
    "plug_separator",
    "separator",
    "delay",
    "quiet",
    "method",
    "retry_on",
    "missing_as_off",
    "use_sudo",
    "lanplus",
    "cipher",
    "auth",
    "privlvl",
    "hexadecimal_kg",
];
/// Beginnings and ends of further ones.
const NO_MACHINE_BEGINS: [&str; 4] = ["ssl", "verbose", "debug", "snmp_"];
const NO_MACHINE_ENDS: [&str; 5] = ["_timeout", "_wait", "_path", "_sleep", "_script"];

/// Agents without plugs: whatever is given as one changes nothing.
const WITHOUT_PLUG: [&str; 2] = ["fence_redfish", IPMI];
/// One program under several names, by the controllers that it switches.
const IPMI: &str = "fence_ipmilan";
const IPMI_NAMES: [&str; 7] =
    [IPMI, "fence_idrac", "fence_ilo3", "fence_ilo4", "fence_ilo5", "fence_imm", "fence_ipmilanplus"];

/// A machine, by what names it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Machine {
    program: String,
    named: Vec<(String, String)>,
}

/// The machine of an entry. `None` for a program of one's own.
pub(super) fn of(program: &Path, options: &[(String, String)]) -> Option<Machine> {
    let program = program.file_name().and_then(OsStr::to_str)?;
    if !program.starts_with(BY_OPTIONS) {
        return None;
    }
    let program = if IPMI_NAMES.contains(&program) { IPMI } else { program };
    let mut named: Vec<(String, String)> = options
        .iter()
        .map(|(name, value)| (canonical(name), value))
        .filter(|(name, _)| tells(name) && !(name == "plug" && WITHOUT_PLUG.contains(&program)))
        .map(|(name, value)| {
            let value = place(&name, value);
            (name, value)
        })
        .collect();
    named.sort();
    named.dedup();
    Some(Machine { program: program.to_owned(), named })
}

fn canonical(name: &str) -> String {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let alias = ALIASES.iter().find(|(old, _)| *old == name);
    alias.map_or(name, |(_, new)| (*new).to_owned())
}

fn tells(name: &str) -> bool {
    !NO_MACHINE.contains(&name)
        && !NO_MACHINE_BEGINS.iter().any(|begin| name.starts_with(begin))
        && !NO_MACHINE_ENDS.iter().any(|end| name.ends_with(end))
}

/// Host names have no case, and may end in the root's dot; a path may end in a slash.
fn place(name: &str, value: &str) -> String {
    let value = value.trim();
    if name == "ip" {
        return value.trim_end_matches('.').to_ascii_lowercase();
    }
    if name.ends_with("_uri") {
        return value.trim_end_matches('/').to_owned();
    }
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REDFISH: [(&str, &str); 3] =
        [("ip", "10.0.0.9"), ("systems_uri", "/redfish/v1/Systems/n3"), ("username", "root")];

    fn machine(program: &str, options: &[(&str, &str)]) -> Option<Machine> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        of(&Path::new("/usr/sbin").join(program), &options.iter().map(owned).collect::<Vec<_>>())
    }

    #[test]
    fn how_a_machine_is_reached_makes_it_no_other() {
        let own = machine("fence_redfish", &REDFISH);
        for more in [
            ("verbose", "1"),
            ("verbose-level", "2"),
            ("power_timeout", "20"),
            ("power-wait", "3"),
            ("ssl_insecure", "true"),
            ("plug", "another"),
            ("port", "another"),
            ("password", "x"),
            ("delay", "2"),
        ] {
            assert_eq!(machine("fence_redfish", &[&REDFISH[..], &[more]].concat()), own, "{more:?}");
        }
        let spelt = [
            [("ipaddr", "10.0.0.9 "), ("systems-uri", "/redfish/v1/Systems/n3"), ("login", "root")],
            [("ip", "10.0.0.9"), ("systems_uri", " /redfish/v1/Systems/n3/ "), ("username", "admin")],
        ];
        for spelt in spelt {
            assert_eq!(machine("fence_redfish", &spelt), own, "{spelt:?}");
        }
        assert_eq!(
            machine("fence_idrac", &[("ip", "a")]),
            machine("fence_ipmilan", &[("ip", "a"), ("plug", "1")])
        );
        let host = |name| machine("fence_ipmilan", &[("ip", name)]);
        assert_eq!(host("BMC-3.Example.com."), host("bmc-3.example.com"));
    }

    #[test]
    fn another_address_plug_or_system_is_another_machine() {
        let differ = |one: &[(&str, &str)], other: &[(&str, &str)]| {
            assert_ne!(machine("fence_apc", one), machine("fence_apc", other), "{one:?} {other:?}");
        };
        differ(&[("ip", "a")], &[("ip", "b")]);
        differ(&[("ip", "a"), ("plug", "1")], &[("ip", "a"), ("port", "2")]);
        differ(&[("ip", "a"), ("ipport", "1")], &[("ip", "a"), ("ipport", "2")]);
        differ(&[("ip", "a"), ("systems_uri", "/1")], &[("ip", "a"), ("systems_uri", "/2")]);
        differ(&[("ip", "a"), ("plug", "vm"), ("zone", "z")], &[("ip", "a"), ("plug", "vm"), ("zone", "y")]);
        assert_eq!(machine("own-fencing", &[("ip", "a")]), None);
    }
}

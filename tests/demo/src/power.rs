//! The demo's power switch: a fence agent by the ClusterLabs `FenceAgentAPI`
//! (<https://github.com/ClusterLabs/fence-agents/blob/main/doc/FenceAgentAPI.md>).
//!
//! Options come on standard input as `name=value` lines; unknown ones are ignored, the last of a name counts.
//! `off` exits 0 only when no process of the node is left; `status` exits 0 for on, 2 for off, 1 for "cannot
//! tell", and counts the node's processes each time: nothing is remembered.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use somersault_test_support::world::power;

/// Name under which the demo's binary is a fence agent.
pub const PROGRAM: &str = "fence_demo";
/// Options longer than this are refused; real ones are a few hundred bytes.
const OPTIONS_BYTES_MAX: u64 = 64 * 1024;

const METADATA: &str = r#"<?xml version="1.0" ?>
<resource-agent name="fence_demo" shortdesc="Power switch of the Somersault demo">
  <longdesc>Kills every process in a node's namespaces, and counts what is left.</longdesc>
  <vendor-url>https://github.com/ClusterLabs/fence-agents</vendor-url>
  <parameters>
    <parameter name="action" required="1">
      <content type="string"/><shortdesc lang="en">off, on, status, monitor or metadata</shortdesc>
    </parameter>
    <parameter name="plug" required="1" obsoletes="port">
      <content type="string"/><shortdesc lang="en">The node</shortdesc>
    </parameter>
    <parameter name="specification" required="0">
      <content type="string"/><shortdesc lang="en">How to build the node, for on</shortdesc>
    </parameter>
  </parameters>
  <actions>
    <action name="on" automatic="0"/><action name="off"/><action name="status"/>
    <action name="monitor"/><action name="metadata"/>
  </actions>
</resource-agent>
"#;

/// What the caller learns by the exit code.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Done, or: the node is on.
    Yes,
    /// The node is off.
    Off,
}

/// Runs as fence agent.
pub fn run() -> ExitCode {
    match read_options().and_then(|options| act(&options)) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::Off) => ExitCode::from(2),
        Err(error) => {
            eprintln!("{PROGRAM}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn read_options() -> Result<BTreeMap<String, String>> {
    let mut text = String::new();
    std::io::stdin().take(OPTIONS_BYTES_MAX).read_to_string(&mut text).context("reading the options")?;
    Ok(parse(&text))
}

fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

fn act(options: &BTreeMap<String, String>) -> Result<Answer> {
    let action = options.get("action").context("option action is missing")?;
    if action == "metadata" {
        print!("{METADATA}");
        return Ok(Answer::Yes);
    }
    if action == "monitor" {
        return std::fs::metadata("/proc/self/ns/net").map(|_| Answer::Yes).context("looking at namespaces");
    }
    let node = victim(options)?;
    match action.as_str() {
        "off" => power::off(node).map(|()| Answer::Yes),
        "on" => {
            let file = options.get("specification").context("option specification is missing")?;
            power::on(Path::new(file)).map(|()| Answer::Yes)
        }
        "status" => Ok(if power::census(node)?.is_empty() { Answer::Off } else { Answer::Yes }),
        other => bail!("action {other} is not supported: off, on, status, monitor, metadata"),
    }
}

fn victim(options: &BTreeMap<String, String>) -> Result<&str> {
    let node = ["plug", "port", "nodename"]
        .into_iter()
        .find_map(|name| options.get(name))
        .context("option plug is missing")?;
    let is_name = !node.is_empty() && node.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_name { Ok(node) } else { bail!("plug {node:?} is no node's name") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_repeated_option_counts_and_the_rest_is_ignored() {
        let options = parse("# comment=1\naction=off\naction = status\nnonsense\nplug=n1\n");
        assert_eq!(options.get("action").map(String::as_str), Some("status"));
        assert_eq!(victim(&options).expect("named"), "n1");
        assert_eq!(options.len(), 2);
    }

    #[test]
    fn a_plug_that_is_a_path_is_refused() {
        assert!(victim(&parse("plug=../../etc")).is_err());
    }

    #[test]
    fn a_node_that_does_not_exist_is_an_error_and_not_off() {
        assert!(act(&parse("action=status\nplug=no-such-node")).is_err());
        assert!(act(&parse("action=off\nplug=no-such-node")).is_err());
    }
}

//! What our own pods have said, read for what must never be in it: a call that the API server has forbidden. A right
//! that is missing shows nowhere else, since whoever lacks it tries again or does without.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use jiff::Timestamp;
use serde_json::Value;

use crate::api::Kind;
use crate::bed::{Bed, NAMESPACE};

/// Every pod of ours.
const OURS: &str = "app.kubernetes.io/name=somersault";
/// Where a kubelet has the logs of its pods: `<namespace>_<pod>_<uid>/<container>/<count>.log`.
const POD_LOGS: &str = "/var/log/pods";
/// As the API server says it, in whatever case.
const FORBIDDEN: &str = "forbidden";
impl Bed {
    /// No log of ours tells of a forbidden call, of containers that have ended included, as far as they are kept.
    pub fn nothing_was_forbidden(&self) -> Result<()> {
        for pod in self.api().list(Kind::POD, NAMESPACE, OURS)? {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            // A container that has not started yet has said nothing.
            let now = [
                "-n",
                NAMESPACE,
                "logs",
                name,
                "--all-containers",
                "--ignore-errors",
                "--timestamps",
                "--tail=-1",
            ];
            match self.cluster().ask(&now) {
                Ok(said) => self.check(name, &said)?,
                // Evicted since it was listed, from a node that somebody has just made fail; its log went with it.
                Err(_) if self.is_gone(&pod)? => continue,
                Err(error) => return Err(error),
            }
            for container in restarted(&pod) {
                let before = [
                    "-n",
                    NAMESPACE,
                    "logs",
                    name,
                    "-c",
                    container,
                    "--previous",
                    "--timestamps",
                    "--tail=-1",
                ];
                // What it said is lost with its node's boot.
                if let Ok(said) = self.cluster().ask(&before) {
                    self.check(&format!("{name}, {container} before its restart"), &said)?;
                }
            }
        }
        self.nothing_on_disk_was_forbidden()
    }

    /// The same for the files on the nodes' disks: those of pods that were replaced or deleted are there for as long as the
    /// kubelet keeps them, which is a minute or so, and of containers that have ended until the pod goes.
    fn nothing_on_disk_was_forbidden(&self) -> Result<()> {
        for node in self.nodes() {
            let logs = self.cluster().path_on(&node, POD_LOGS)?;
            for file in files_of(&logs, &format!("{NAMESPACE}_"))? {
                // Whoever was uninstalled lost the rights before the pod was gone, and may say so.
                let written = std::fs::metadata(&file).and_then(|file| file.modified());
                if written.is_ok_and(|at| at < self.installed()) {
                    continue;
                }
                // Removed since it was listed.
                let Ok(said) = std::fs::read(&file) else { continue };
                let who = file.strip_prefix(&logs).unwrap_or(&file).display();
                self.check(&format!("{who} on {node}"), &String::from_utf8_lossy(&said))?;
            }
        }
        Ok(())
    }

    fn check(&self, who: &str, log: &str) -> Result<()> {
        check(who, log, &self.apiserver_pauses())
    }

    fn is_gone(&self, pod: &Value) -> Result<bool> {
        let uid = &pod["metadata"]["uid"];
        let pods = self.api().list(Kind::POD, NAMESPACE, OURS)?;
        Ok(!pods.iter().any(|other| other["metadata"]["uid"] == *uid))
    }
}

/// The log files `<pod>/<container>/<count>.log…` of the pods whose folder begins so. What goes meanwhile is left out.
fn files_of(logs: &Path, pods: &str) -> Result<Vec<PathBuf>> {
    let entries = |folder: &Path| {
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect::<Vec<_>>()
    };
    ensure!(logs.is_dir(), "{} is no folder of logs", logs.display());
    let ours =
        |folder: &PathBuf| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(pods));
    let containers = entries(logs).into_iter().filter(ours).flat_map(|pod| entries(&pod));
    Ok(containers.flat_map(|container| entries(&container)).collect())
}

/// Containers of a pod that have ended and run again.
fn restarted(pod: &Value) -> impl Iterator<Item = &str> {
    let all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    all.filter(|container| container["restartCount"].as_u64() > Some(0)).filter_map(|c| c["name"].as_str())
}

/// Each line begins with its time. An API server that has just started refuses everybody until it has read all roles and
/// bindings, which it has as soon as it says that it is ready: what was refused in such a pause tells nothing.
fn check(who: &str, log: &str, pauses: &[Range<Timestamp>]) -> Result<()> {
    let in_a_pause = |line: &str| {
        let at = line.split(' ').next().and_then(|word| word.parse::<Timestamp>().ok());
        at.is_some_and(|at| pauses.iter().any(|pause| pause.contains(&at)))
    };
    match log.lines().find(|line| line.to_lowercase().contains(FORBIDDEN) && !in_a_pause(line)) {
        Some(line) => bail!("{who} was forbidden something: {line}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_forbidden_call_is_found_in_any_case_and_its_line_is_named() {
        assert!(check("pod-1", "coordinator started\nall is well\n", &[]).is_ok());
        for line in ["nodes \"n1\" is forbidden: User cannot patch", "403 Forbidden"] {
            let error = check("pod-1", &format!("first\n{line}\nlast\n"), &[]).expect_err("found");
            assert_eq!(error.to_string(), format!("pod-1 was forbidden something: {line}"));
        }
    }

    #[test]
    fn an_api_server_that_is_not_ready_yet_forbids_nothing() {
        let at = |second: &str| format!("2026-01-02T03:04:{second}.5Z");
        let pause = [at("10").parse().expect("a time")..at("20").parse().expect("a time")];
        let refused = |at: &str| check("pod-1", &format!("{at} stderr F pods is forbidden"), &pause);
        assert!(refused(&at("09")).is_err() && refused(&at("21")).is_err() && refused("none").is_err());
        refused(&at("11")).expect("it was not ready");
    }

    #[test]
    fn the_files_of_every_pod_of_ours_are_read_those_of_ended_containers_too() {
        let logs = tempfile::tempdir().expect("a folder");
        let kept = ["ours_a_1/main/0.log", "ours_a_1/main/1.log", "ours_gone_2/main/0.log"];
        for file in kept.iter().chain(&["others_b_3/main/0.log"]) {
            let file = logs.path().join(file);
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("folders");
            std::fs::write(file, "").expect("a file");
        }
        let mut found = files_of(logs.path(), "ours_").expect("read");
        found.sort();
        assert_eq!(found, kept.map(|file| logs.path().join(file)));
        assert!(files_of(&logs.path().join("none"), "ours_").is_err());
    }

    #[test]
    fn only_containers_that_ran_before_have_earlier_logs() {
        let pod = json!({ "status": { "containerStatuses": [
            { "name": "coordinator", "restartCount": 2 }, { "name": "other", "restartCount": 0 },
        ] } });
        assert_eq!(restarted(&pod).collect::<Vec<_>>(), ["coordinator"]);
        assert_eq!(restarted(&json!({})).count(), 0);
    }
}

//! The real `fence_redfish` of ClusterLabs, run as the coordinator runs it, against somebody else's Redfish service:
//! the emulator of `OpenStack`'s sushy-tools, over TLS.
//!
//! Skipped, and said so, where one of the two is missing (Debian: fence-agents; `PyPI`: sushy-tools).

use std::env;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use somersault_coordinator::fence::FenceAgents;
use somersault_coordinator_core::fencing::agents::FenceAnswer;
use somersault_coordinator_core::io::FenceResult;
use somersault_coordinator_core::names::NodeName;
use somersault_test_support::certs::CertAuthority;
use tempfile::TempDir;

/// The emulator is a Python program with a web server in it.
const START_WITHIN: Duration = Duration::from_secs(30);
const AMPLE: Duration = Duration::from_mins(1);

fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Ended with the test, however that ends.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn fence_redfish_switches_a_machine_of_a_foreign_emulator_off() {
    let (Some(agent), Some(emulator)) = (program("fence_redfish"), program("sushy-emulator")) else {
        eprintln!(
            "SKIPPED fence_redfish_switches_a_machine_of_a_foreign_emulator_off: fence_redfish (Debian: fence-agents) or \
             sushy-emulator (`PyPI`: sushy-tools) is not on PATH"
        );
        return;
    };
    let folder = TempDir::new().unwrap();
    let certs = folder.path().join("certs");
    CertAuthority::new().unwrap().issue_node("bmc", &certs).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let child = Command::new(emulator)
        .args(["--fake", "-i", "127.0.0.1", "-p", &port.to_string()])
        .arg("--ssl-certificate")
        .arg(certs.join("tls.crt"))
        .arg("--ssl-key")
        .arg(certs.join("tls.key"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    let _emulator = Emulator(child.unwrap());

    // The emulator has one machine; without systems_uri the agent looks for it.
    let yaml = format!(
        "nodes:\n  n1:\n    agent: {}\n    passwordFile: password\n    options:\n      {{ ip: 127.0.0.1, ipport: {port}, \
         username: u, ssl_insecure: true }}\n",
        agent.display()
    );
    fs::write(folder.path().join("fence.yaml"), yaml).unwrap();
    fs::write(folder.path().join("password"), "p\n").unwrap();
    let agents = FenceAgents::read(&folder.path().join("fence.yaml"), AMPLE).unwrap();
    let n1 = NodeName::from("n1");

    let start = Instant::now();
    let mut said = agents.status(&n1, AMPLE).await;
    while matches!(said, FenceAnswer::Failed(_)) && start.elapsed() < START_WITHIN {
        said = agents.status(&n1, AMPLE).await;
    }
    let log = || fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    assert!(!matches!(said, FenceAnswer::Failed(_)), "{said:?}\n{}", log());
    switch_on(&agent, port);
    assert_eq!(agents.status(&n1, AMPLE).await, FenceAnswer::On, "{}", log());
    assert_eq!(agents.fence(&n1, AMPLE).await, FenceResult::ConfirmedOff, "{}", log());
    assert_eq!(agents.status(&n1, AMPLE).await, FenceAnswer::Off, "{}", log());
}

fn switch_on(agent: &PathBuf, port: u16) {
    use std::io::Write;
    let mut child = Command::new(agent).stdin(Stdio::piped()).spawn().unwrap();
    let options = format!("ip=127.0.0.1\nipport={port}\nusername=u\npassword=p\nssl_insecure=1\naction=on\n");
    child.stdin.take().unwrap().write_all(options.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

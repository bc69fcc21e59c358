//! The manifests in `deploy/`: they install the version that they come with, and only folders that exist.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Parser as _;
use serde_json::{Value, json};
use somersault_contract_tests::repository_file;
use somersault_coordinator_core::migration::{LOCK_LABEL, LOCKED_BY};

#[test]
fn manifests_install_the_version_that_they_come_with() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let mut seen = 0;
    for folder in ["base", "components/fence-runner"] {
        let kustomization = read(&repository_file(&format!("deploy/{folder}/kustomization.yaml")))?;
        for image in kustomization["images"].as_array().context("no images")? {
            assert_eq!(image["newTag"], version, "deploy/{folder} installs {}", image["name"]);
            seen += 1;
        }
    }
    assert_eq!(seen, 2);
    let smart = fs::read_to_string(repository_file("deploy/components/smart/kustomization.yaml"))?;
    assert!(smart.contains(&format!("agent-smart:{version}\n")), "components/smart installs another version");
    Ok(())
}

/// Each of an overlay's storage roots is mounted at the path that it has on the node, and follows later mounts.
#[test]
fn storage_roots_are_mounted_where_the_agent_looks() -> Result<()> {
    let mut roots = 0;
    for entry in fs::read_dir(repository_file("deploy/overlays"))? {
        let file = entry?.path().join("kustomization.yaml");
        let kustomization = read(&file)?;
        let patches = kustomization["patches"].as_array().into_iter().flatten();
        for patch in patches.filter(|patch| patch["target"]["kind"] == "DaemonSet") {
            let operations: Vec<Value> =
                serde_saphyr::from_str(patch["patch"].as_str().context("no patch")?)?;
            let added = |to: &str| {
                let path = format!("/spec/template/spec/{to}/-");
                let at = operations.iter().filter(move |operation| operation["path"] == path.as_str());
                at.map(|operation| operation["value"].clone()).collect::<Vec<_>>()
            };
            let (mounts, volumes) = (added("containers/0/volumeMounts"), added("volumes"));
            for argument in added("containers/0/args") {
                let argument = argument.as_str().context("no argument")?.to_owned();
                let (flag, path) = argument.rsplit_once('=').context("no flag")?;
                if flag == "--inventory-period-ms" {
                    continue;
                }
                let path = path.strip_suffix("/*").unwrap_or(path);
                assert!(flag.starts_with("--root=") || flag.starts_with("--shared-root="), "{argument}");
                let mount = mounts.iter().find(|mount| mount["mountPath"] == path);
                let mount = mount.with_context(|| format!("{}: {path} is not mounted", file.display()))?;
                assert_eq!(mount["mountPropagation"], "HostToContainer", "{path}");
                let volume =
                    volumes.iter().find(|volume| volume["name"] == mount["name"]).context("no volume")?;
                assert_eq!(volume["hostPath"]["path"], path);
                roots += 1;
            }
        }
    }
    assert_eq!(roots, 4);
    Ok(())
}

/// The coordinator marks the claims by which the policy knows what to refuse; and nothing that is wrong with it may stop
/// anything.
#[test]
fn the_claim_lock_knows_the_coordinators_marks_and_fails_open() -> Result<()> {
    let text = fs::read_to_string(repository_file("deploy/base/claim-lock.yaml"))?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let [policy, binding] = objects.as_slice() else { anyhow::bail!("{} objects", objects.len()) };
    assert_eq!(policy["spec"]["failurePolicy"], "Ignore");
    let parameters = &binding["spec"]["paramRef"];
    assert_eq!(parameters["parameterNotFoundAction"], "Allow");
    assert_eq!(parameters["selector"]["matchLabels"], json!({ LOCK_LABEL: "true" }));
    assert!(parameters["namespace"].is_null(), "it would look at one namespace only");
    let message = policy["spec"]["validations"][0]["messageExpression"].as_str().context("no message")?;
    assert!(message.contains(&format!("['{LOCKED_BY}']")), "{message}");
    assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    let rights = fs::read_to_string(repository_file("deploy/base/rbac.yaml"))?;
    let ours = policy["spec"]["matchConditions"][0]["expression"].as_str().context("no condition")?;
    let account = "{kind: ServiceAccount, name: somersault-coordinator, namespace: somersault-system}";
    assert!(rights.contains(account) && ours.contains("somersault-system:somersault-coordinator'"), "{ours}");
    Ok(())
}

fn read(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| file.display().to_string())
}

/// What the manifests give the programs is what these take: a pod whose flags are refused never runs.
#[test]
fn programs_take_the_flags_of_their_manifests() -> Result<()> {
    let flags = |file: &str, kind: &str| -> Result<Vec<String>> {
        let text = fs::read_to_string(repository_file(&format!("deploy/base/{file}")))?;
        for document in text.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document)?;
            if object["kind"] == kind {
                let arguments = &object["spec"]["template"]["spec"]["containers"][0]["args"];
                let arguments = arguments.as_array().context("no args")?;
                return Ok(arguments.iter().filter_map(|flag| flag.as_str().map(str::to_owned)).collect());
            }
        }
        anyhow::bail!("no {kind} in {file}")
    };
    let coordinator = flags("coordinator.yaml", "Deployment")?;
    let named = ["coordinator".to_owned()].into_iter().chain(coordinator);
    let read = somersault_coordinator::config::Cli::try_parse_from(named)?;
    let args = read.coordinator.context("taken for no coordinator")?;
    somersault_coordinator::config::Config::load(&args, &read.alerts)?;

    let agent = flags("agent.yaml", "DaemonSet")?;
    let named = ["agent", "--node=n1", "--host-ip=192.0.2.1"].map(str::to_owned).into_iter().chain(agent);
    somersault_agent::config::Cli::try_parse_from(named)?.agent.context("taken for no agent")?;
    Ok(())
}

//! Names of what `deploy/` installs.

/// Where the coordinator and the agents live.
pub const NAMESPACE: &str = "somersault-system";
/// The coordinator's Deployment, `ServiceAccount` and Service; its Lease bears the same name.
pub const COORDINATOR: &str = somersault_coordinator::cluster::kube::LEASE_NAME;
/// The agents' `DaemonSet` and `ServiceAccount`.
pub const AGENT: &str = "somersault-agent";
/// The fence runner's Deployment, where the component is installed.
pub const FENCE_RUNNER: &str = "somersault-fence-runner";
/// The admission policy that refuses to start a VM whose disks are between two nodes, and its binding.
pub const CLAIM_LOCK: &str = "somersault-claim-lock";
/// The admission policy that lets nobody but the coordinator write its records, and its binding.
pub const RECORDS: &str = "somersault-records";
/// Secret with our own certificate authority; the coordinator makes it.
pub const CA_SECRET: &str = "somersault-ca";
/// `ConfigMap` with the public certificate of our own authority.
pub const CA_BUNDLE: &str = "somersault-ca-bundle";
/// Key in it.
pub const CA_BUNDLE_KEY: &str = "ca.crt";
/// Secret with the fence agents' configuration; people write it.
pub const FENCE_SECRET: &str = "somersault-fence";
/// Label that everything of ours bears, and its value.
pub const NAME_LABEL: (&str, &str) = ("app.kubernetes.io/name", "somersault");
/// Label that tells the parts apart: `agent`, `coordinator`, `fence-runner`.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// What selects the objects of one part.
pub fn part(component: &str) -> String {
    let (label, value) = NAME_LABEL;
    format!("{label}={value},{COMPONENT_LABEL}={component}")
}

/// How to install.
pub const HOW: &str = "kubectl apply -k deploy/overlays/… of Somersault";

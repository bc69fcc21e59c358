//! The control plane: which programs, with which flags.
//!
//! Flags are Kubernetes' own defaults wherever a test could notice: grace periods, monitor periods, eviction
//! time-outs are those of a stock cluster.

use std::path::Path;

use anyhow::{Context, Result};

use crate::addresses::{API_PORT, GATEWAY, SERVICES};
use crate::bmc;
use crate::layout::Layout;
use crate::parts::Parts;
use crate::supervisor::Program;

/// Namespace of local-path-provisioner, its helper pods and its configuration.
pub const PROVISIONER_NAMESPACE: &str = "local-path-storage";

/// What etcd may store where there are objects only: more than its default of 2 GiB, which ten thousand VMs with the
/// revisions of a few minutes come near to; it recommends no more than this.
const STORE_BYTES_MAX: u64 = 8 << 30;

/// Writes the configuration files, and says what to run.
pub fn prepare(layout: &Layout, parts: &Parts) -> Result<Vec<Program>> {
    std::fs::create_dir_all(layout.control_plane("")).context("creating the control plane's folder")?;
    let corefile = layout.control_plane("Corefile");
    std::fs::write(&corefile, self::corefile(layout)).context("writing CoreDNS's configuration")?;
    let helper = layout.control_plane("helper-pod.yaml");
    std::fs::write(&helper, include_str!("../manifests/helper-pod.yaml"))
        .context("writing the helper pod")?;
    let config = layout.control_plane("local-path.json");
    std::fs::write(&config, include_str!("../manifests/local-path.json"))
        .context("writing the provisioner's configuration")?;

    let part = |name, flags| part(layout, parts, name, flags);
    std::fs::create_dir_all(layout.control_plane("bmc-faults")).context("creating a folder of faults")?;
    let bmc = ["inside", bmc::PROGRAM, layout.name()].map(str::to_owned);
    let bmc = std::iter::once(text(&layout.program())).chain(bmc).collect();
    let mut provisioner = vec![text(&parts.provisioner)];
    provisioner.extend(self::provisioner(layout, &config, &helper));
    Ok(vec![
        part("etcd", etcd(layout)),
        part("kube-apiserver", apiserver(layout)),
        part("kube-controller-manager", controller_manager(layout)),
        part("kube-scheduler", scheduler(layout)),
        part("coredns", vec!["-conf".to_owned(), text(&corefile)]),
        Program::new("local-path-provisioner", provisioner, layout.log("local-path-provisioner")),
        Program::new(bmc::PROGRAM, bmc, layout.log(bmc::PROGRAM)),
    ])
}

/// The same for an etcd and a kube-apiserver alone, whose requests are logged as the audit policy says.
pub fn prepare_api(layout: &Layout, parts: &Parts, audit_policy: &str) -> Result<Vec<Program>> {
    std::fs::create_dir_all(layout.control_plane("")).context("creating the control plane's folder")?;
    let policy = layout.control_plane("audit.yaml");
    std::fs::write(&policy, audit_policy).context("writing the audit policy")?;
    let mut apiserver = apiserver(layout);
    apiserver.push(format!("--audit-policy-file={}", text(&policy)));
    apiserver.push(format!("--audit-log-path={}", text(&layout.log("audit"))));
    let mut etcd = etcd(layout);
    etcd.push(format!("--quota-backend-bytes={STORE_BYTES_MAX}"));
    Ok(vec![part(layout, parts, "etcd", etcd), part(layout, parts, "kube-apiserver", apiserver)])
}

fn part(layout: &Layout, parts: &Parts, name: &str, flags: Vec<String>) -> Program {
    let command = [text(&parts.controlplane), name.to_owned()].into_iter().chain(flags).collect();
    Program::new(name, command, layout.log(name))
}

fn etcd(layout: &Layout) -> Vec<String> {
    vec![
        format!("--data-dir={}", text(&layout.control_plane("etcd"))),
        "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        // The cluster is gone when this machine loses power anyway.
        "--unsafe-no-fsync".to_owned(),
    ]
}

fn apiserver(layout: &Layout) -> Vec<String> {
    let pki = |file| text(&layout.pki(file));
    vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--secure-port={API_PORT}"),
        format!("--advertise-address={GATEWAY}"),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--kubelet-client-certificate={}", pki("apiserver.crt")),
        format!("--kubelet-client-key={}", pki("apiserver.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", pki("accounts.pub")),
        format!("--service-account-signing-key-file={}", pki("accounts.key")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged".to_owned(),
        // The control plane has no kube-proxy: webhooks and aggregated APIs are called by their endpoints.
        "--enable-aggregator-routing".to_owned(),
    ]
}

fn controller_manager(layout: &Layout) -> Vec<String> {
    let pki = |file| text(&layout.pki(file));
    let config = text(&layout.kubeconfig_inside("kube-controller-manager"));
    vec![
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
        "--use-service-account-credentials".to_owned(),
        format!("--service-account-private-key-file={}", pki("accounts.key")),
        format!("--root-ca-file={}", pki("ca.crt")),
    ]
}

fn scheduler(layout: &Layout) -> Vec<String> {
    let config = text(&layout.kubeconfig_inside("kube-scheduler"));
    vec![
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
    ]
}

fn corefile(layout: &Layout) -> String {
    format!(
        ".:53 {{\n  errors\n  ready 127.0.0.1:8181\n  cache 5\n  \
         kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {}\n  }}\n}}\n",
        layout.kubeconfig_inside("coredns").display()
    )
}

fn provisioner(layout: &Layout, config: &Path, helper: &Path) -> Vec<String> {
    vec![
        "start".to_owned(),
        format!("--kubeconfig={}", text(&layout.kubeconfig_inside("local-path-provisioner"))),
        format!("--namespace={PROVISIONER_NAMESPACE}"),
        format!("--config={}", text(config)),
        format!("--helper-pod-file={}", text(helper)),
        format!("--helper-image={}", crate::cluster::TOOLBOX_IMAGE),
        "--service-account-name=default".to_owned(),
    ]
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

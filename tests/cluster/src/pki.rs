//! The cluster's authority, its certificates, and the kubeconfigs that use them.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use crate::addresses::{API_PORT, API_SERVICE, GATEWAY};
use crate::layout::Layout;

/// Parts of the control plane, and the names by which RBAC's default bindings know them
/// (<https://kubernetes.io/docs/reference/access-authn-authz/rbac/#core-component-roles>). The two that
/// Kubernetes has no role for act as administrators.
pub const USERS: [(&str, &str, Option<&str>); 6] = [
    ("admin", "admin", Some("system:masters")),
    ("kube-controller-manager", "system:kube-controller-manager", None),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("kube-proxy", "system:kube-proxy", None),
    ("coredns", "coredns", Some("system:masters")),
    ("local-path-provisioner", "local-path-provisioner", Some("system:masters")),
];

/// Makes the authority, every certificate and every kubeconfig for use inside the world.
pub fn create(layout: &Layout, nodes: &[String]) -> Result<()> {
    std::fs::create_dir_all(layout.pki("")).context("creating the folder of certificates")?;
    let authority = Authority::new()?;
    write(&layout.pki("ca.crt"), &authority.issuer.pem())?;
    authority.issue_apiserver(layout)?;
    authority.issue_bmc(layout)?;
    // Tokens of service accounts are signed by a key of their own.
    let accounts = KeyPair::generate()?;
    write(&layout.pki("accounts.key"), &accounts.serialize_pem())?;
    write(&layout.pki("accounts.pub"), &accounts.public_key_pem())?;
    for (file, name, group) in USERS {
        authority.issue_user(layout, file, name, group)?;
    }
    for node in nodes {
        authority.issue_user(layout, node, &format!("system:node:{node}"), Some("system:nodes"))?;
    }
    Ok(())
}

/// Writes a kubeconfig for `user`, whose certificate exists already; it needs no other file.
pub fn write_kubeconfig(layout: &Layout, file: &Path, user: &str, server: &str) -> Result<()> {
    let cluster = layout.name();
    let data = |name: &str| {
        let path = layout.pki(name);
        std::fs::read(&path)
            .map(|bytes| BASE64_STANDARD.encode(bytes))
            .with_context(|| format!("reading {}", path.display()))
    };
    // JSON is YAML, and needs no library beyond the one that is here.
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {
            "server": server, "certificate-authority-data": data("ca.crt")?,
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": data(&format!("{user}.crt"))?,
            "client-key-data": data(&format!("{user}.key"))?,
        }}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    });
    write(file, &serde_json::to_string_pretty(&config)?)
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Somersault test cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)
            .context("signing the authority's own certificate")?;
        Ok(Self { issuer })
    }

    /// The apiserver's, for serving and for its calls to kubelets (logs, exec).
    fn issue_apiserver(&self, layout: &Layout) -> Result<()> {
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let mut params = CertificateParams::new(names.map(str::to_owned))?;
        for address in [GATEWAY, API_SERVICE, "127.0.0.1"] {
            params.subject_alt_names.push(SanType::IpAddress(address.parse::<IpAddr>()?));
        }
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(layout, "apiserver", params)
    }

    fn issue_bmc(&self, layout: &Layout) -> Result<()> {
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(SanType::IpAddress(GATEWAY.parse::<IpAddr>()?));
        params.distinguished_name.push(DnType::CommonName, "bmc");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(layout, "bmc", params)
    }

    fn issue_user(&self, layout: &Layout, file: &str, name: &str, group: Option<&str>) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(layout, file, params)?;
        let server = format!("https://{GATEWAY}:{API_PORT}");
        write_kubeconfig(layout, &layout.kubeconfig_inside(file), file, &server)
    }

    fn issue(&self, layout: &Layout, file: &str, mut params: CertificateParams) -> Result<()> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer).with_context(|| format!("signing for {file}"))?;
        write(&layout.pki(&format!("{file}.crt")), &leaf.pem())?;
        write(&layout.pki(&format!("{file}.key")), &key.serialize_pem())
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

//! The connection to an API server: named as kubectl names it, with limits on every wait.

use std::io;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use crate::args::Global;
use crate::exit::Failure;

/// A server that does not take a connection within this is not there, or not for us.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// The configuration that the arguments, `KUBECONFIG`, `~/.kube/config` or, in a pod, its account name.
pub async fn config(global: &Global) -> Result<Config, Failure> {
    let read = match &global.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let mut config = match read {
        Ok(file) => {
            let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(file, &options).await.map_err(|error| bad_config(&error))?
        }
        Err(error) if is_absent(&error) && global.kubeconfig.is_none() && global.context.is_none() => {
            Config::incluster().map_err(|_| {
                Failure::Usage(
                    "no cluster named: there is neither a kubeconfig (--kubeconfig, KUBECONFIG, ~/.kube/config) nor \
                     the account of a pod; a folder is named by --cluster dir:PATH, a dump by --from FILE"
                        .to_owned(),
                )
            })?
        }
        Err(error) => return Err(bad_config(&error)),
    };
    config.connect_timeout = Some(CONNECT_MAX);
    Ok(config)
}

/// A client that has not connected yet.
pub fn client(config: Config) -> Result<Client, Failure> {
    Client::try_from(config)
        .map_err(|error| Failure::Failed(format!("the kubeconfig cannot be used: {error}")))
}

fn is_absent(error: &KubeconfigError) -> bool {
    match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(source, _) => source.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

fn bad_config(error: &KubeconfigError) -> Failure {
    match error {
        KubeconfigError::CurrentContextNotSet => Failure::Usage(
            "the kubeconfig has no current context: kubectl config use-context NAME, or --context NAME"
                .to_owned(),
        ),
        KubeconfigError::LoadContext(name) => Failure::Usage(format!(
            "the kubeconfig has no context {name}; there are: kubectl config get-contexts"
        )),
        other => Failure::Usage(format!("the kubeconfig cannot be used: {other}")),
    }
}

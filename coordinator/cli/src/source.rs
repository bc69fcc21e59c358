//! Where a command's objects are: a folder of manifests, or an API server. Commands do not know the difference.
//!
//! ```text
//!              ┌─ dir:PATH ──────────────────────────► Store: one lock around looking and writing
//!   Source ────┤
//!              └─ kubeconfig, or the pod's account ──► ApiServer: what it refuses is looked at again
//! ```

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use somersault_coordinator::cluster::ClusterError;
use somersault_coordinator::cluster::directory::{self, Objects, Store};
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::Action;

use crate::args::{ClusterAddress, Global};
use crate::exit::Failure;

pub mod api;
mod connect;
pub mod install;
pub mod kinds;
mod lead;
pub mod trouble;

pub use api::ApiServer;

/// Namespace of commands that are about one object, where neither flag nor context names one, as with kubectl.
const DEFAULT_NAMESPACE: &str = "default";
/// A folder costs nothing to look at: fast enough for a bar that moves, slow enough not to be felt.
const LOOK_AT_FOLDER_EVERY: Duration = Duration::from_millis(200);
/// One object a second is less than any controller asks of an API server.
const LOOK_AT_SERVER_EVERY: Duration = Duration::from_secs(1);

/// Between two drawings of everything.
const REDRAW_EVERY: Duration = Duration::from_secs(1);
/// Reading everything from a server takes at most one part in this many of the time, however large the cluster is.
const READING_SHARE: u32 = 10;

/// A cluster.
pub enum Source {
    /// A folder of manifests.
    Directory(Store),
    /// A real API server.
    Api(Box<ApiServer>),
}

impl Source {
    /// Opens the cluster that the arguments name: a folder, else what kubectl would talk to.
    pub fn open(global: &Global) -> Result<Self, Failure> {
        match &global.cluster {
            Some(ClusterAddress::Directory(path)) => {
                Ok(Self::Directory(Store::open(path).map_err(|error| unreadable(path, error))?))
            }
            None => Ok(Self::Api(Box::new(ApiServer::open(global)?))),
        }
    }

    /// Every object that decisions are made from.
    pub fn objects(&self) -> Result<Objects, Failure> {
        match self {
            Self::Directory(store) => Ok(store.objects()?),
            Self::Api(server) => server.objects(),
        }
    }

    /// Whether a coordinator leads now; `None` where that cannot be known.
    pub fn led(&self) -> Result<Option<bool>, Failure> {
        match self {
            Self::Directory(store) => Ok(Some(directory::is_led(store.root()))),
            Self::Api(server) => server.led(),
        }
    }

    /// One object.
    pub fn get(&self, id: &ObjectId) -> Result<Option<Value>, Failure> {
        match self {
            Self::Directory(store) => Ok(store.get(id)?),
            Self::Api(server) => server.get(id),
        }
    }

    /// Creates the object that `plan` makes of what is there. Should somebody else create one of that name in
    /// between, `plan` looks again.
    pub fn create(
        &self,
        mut plan: impl FnMut(&Objects) -> Result<Value, Failure>,
    ) -> Result<ObjectId, Failure> {
        match self {
            Self::Directory(store) => store.transaction(|transaction| {
                let object = match plan(&transaction.objects()?) {
                    Ok(object) => object,
                    Err(failure) => return Ok(Err(failure)),
                };
                let id = identity(&object);
                transaction.create(object)?;
                Ok(id)
            })?,
            Self::Api(server) => server.create(plan),
        }
    }

    /// Deletes an object that we have made. That it is gone already is well.
    pub fn delete(&self, id: &ObjectId) -> Result<(), Failure> {
        match self {
            Self::Directory(store) => match store.delete(id, None) {
                Err(ClusterError::NotFound { .. }) => Ok(()),
                answer => Ok(answer?),
            },
            Self::Api(server) => server.delete(id),
        }
    }

    /// Sets the field of an object's `spec` that `decide` names, or refuses, having seen the object as it is now.
    pub fn set_spec(
        &self,
        id: &ObjectId,
        mut decide: impl FnMut(&Value) -> Result<(&'static str, Value), String>,
    ) -> Result<(), Failure> {
        match self {
            Self::Directory(store) => {
                store.patch(id, |object| {
                    let refused = |why| ClusterError::Refused { object: id.to_string(), why };
                    let (field, value) = decide(object).map_err(refused)?;
                    object["spec"][field] = value;
                    Ok(())
                })?;
                Ok(())
            }
            Self::Api(server) => server.set_spec(id, decide),
        }
    }

    /// Asks `KubeVirt` to move a VM while it runs. Nobody would in a folder.
    pub fn live_migrate(&self, action: &Action) -> Result<(), Failure> {
        match self {
            Self::Directory(_) => Err(Failure::Usage(
                "--live asks KubeVirt, and there is none in a folder of manifests".to_owned(),
            )),
            Self::Api(server) => server.act(action),
        }
    }

    /// Who we are for the cluster; nobody in particular for a folder.
    pub fn who(&self) -> Result<Option<String>, Failure> {
        match self {
            Self::Directory(_) => Ok(None),
            Self::Api(server) => server.who().map(Some),
        }
    }

    /// The namespace of the one object that a command is about: the one that is named, else the context's.
    pub fn namespace(&self, named: Option<&str>) -> String {
        let of_context = match self {
            Self::Directory(_) => DEFAULT_NAMESPACE,
            Self::Api(server) => server.namespace(),
        };
        named.unwrap_or(of_context).to_owned()
    }

    /// When everything may be looked at again, the last look having taken this long.
    pub fn redraw_after(&self, took: Duration) -> Duration {
        match self {
            Self::Directory(_) => REDRAW_EVERY,
            Self::Api(_) => rest_after(took),
        }
    }

    /// How often one object may be looked at by whoever waits for it.
    pub fn look_every(&self) -> Duration {
        match self {
            Self::Directory(_) => LOOK_AT_FOLDER_EVERY,
            Self::Api(_) => LOOK_AT_SERVER_EVERY,
        }
    }
}

/// How long to rest between two looks at everything, when the last took this long.
fn rest_after(took: Duration) -> Duration {
    REDRAW_EVERY.max(took.saturating_mul(READING_SHARE - 1))
}

/// The identity of an object of ours that is about to be written.
fn identity(object: &Value) -> Result<ObjectId, Failure> {
    ObjectId::of(object).map_err(|why| Failure::Refused(format!("{}: {why}", ObjectId::describe(object))))
}

/// A path of the command line that cannot be read.
pub fn unreadable(path: &Path, error: ClusterError) -> Failure {
    match error {
        ClusterError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Failure::NotFound(format!("{} does not exist", path.display()))
        }
        ClusterError::Io { source, .. } => {
            Failure::Failed(format!("cannot read {}: {source}", path.display()))
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_cluster_is_read_less_often() {
        assert_eq!(rest_after(Duration::from_millis(20)), Duration::from_secs(1));
        assert_eq!(rest_after(Duration::from_secs(2)), Duration::from_secs(18));
    }
}

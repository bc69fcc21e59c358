//! What a controller wants of the API server.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, PostParams, Preconditions};
use serde_json::Value;

use crate::objects::{Kind, name, namespace, uid};

/// Shorter than anything that tests wait for; a server that is away is asked again.
const DEADLINE: Duration = Duration::from_secs(5);

/// One write. Each fails when the object has changed since it was read, and is then decided anew.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A new object.
    Create(Value),
    /// The object but for its status subresource, where it has one.
    Update(Value),
    /// Its status.
    UpdateStatus(Value),
    /// Its end.
    Delete {
        /// The object.
        object: Value,
        /// Grace period of a pod; its own where absent.
        grace_seconds: Option<u32>,
    },
}

impl Change {
    /// Deletes with the object's own grace period.
    pub fn delete(object: &Value) -> Self {
        Self::Delete { object: object.clone(), grace_seconds: None }
    }

    fn object(&self) -> &Value {
        match self {
            Self::Create(object)
            | Self::Update(object)
            | Self::UpdateStatus(object)
            | Self::Delete { object, .. } => object,
        }
    }

    /// For the log.
    pub fn describe(&self) -> String {
        let object = self.object();
        let what = match self {
            Self::Create(_) => "create",
            Self::Update(_) => "update",
            Self::UpdateStatus(_) => "status of",
            Self::Delete { .. } => "delete",
        };
        let kind = object["kind"].as_str().unwrap_or_default();
        let name = object["metadata"]["generateName"].as_str().unwrap_or_else(|| name(object));
        format!("{what} {kind} {}/{name}", namespace(object))
    }

    /// Writes; returns the object as it is now, where there is one.
    pub async fn apply(&self, client: &Client) -> Result<Option<Value>> {
        tokio::time::timeout(DEADLINE, self.send(client)).await.context("no answer")?
    }

    async fn send(&self, client: &Client) -> Result<Option<Value>> {
        let object = self.object();
        let kind = Kind::of(object).context("a kind that the stand-in does not know")?;
        let resource = kind.resource();
        let api: Api<DynamicObject> = match namespace(object) {
            "" => Api::all_with(client.clone(), &resource),
            namespace => Api::namespaced_with(client.clone(), namespace, &resource),
        };
        let parameters = PostParams::default();
        let typed = || serde_json::from_value::<DynamicObject>(object.clone()).context("an object");
        let written = match self {
            Self::Create(_) => api.create(&parameters, &typed()?).await?,
            Self::Update(_) => api.replace(name(object), &parameters, &typed()?).await?,
            Self::UpdateStatus(_) => api.replace_status(name(object), &parameters, &typed()?).await?,
            Self::Delete { grace_seconds, .. } => {
                let uid = Some(uid(object).to_owned());
                let parameters = DeleteParams {
                    grace_period_seconds: *grace_seconds,
                    preconditions: Some(Preconditions { uid, resource_version: None }),
                    ..DeleteParams::default()
                };
                match api.delete(name(object), &parameters).await?.left() {
                    Some(deleting) => deleting,
                    None => return Ok(None),
                }
            }
        };
        let mut value = serde_json::to_value(written).context("an answer")?;
        // A list's items, and some answers, come without.
        value["kind"] = kind.name().into();
        value["apiVersion"] = kind.api_version().into();
        Ok(Some(value))
    }
}

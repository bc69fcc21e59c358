//! The admission policy that lets nobody but the coordinator write its records: is it what was installed? One that was
//! weakened guards nothing, and looks as if it did.

use kube::Client;
use kube::api::GetParams;
use kube::core::Request;
use serde_json::Value;

use crate::source::api::limited;
use crate::source::install;
use crate::source::trouble::Trouble;

/// API group and version of admission policies.
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
/// As it is installed: the policy, then its binding.
const INSTALLED: &str = include_str!("../../../../../deploy/base/records.yaml");

/// Whether both are there and do what they did when they were installed.
pub async fn is_intact(client: &Client) -> Result<bool, Trouble> {
    let found = policy_and_binding(client, install::RECORDS).await?;
    let installed: Result<Vec<Value>, _> = serde_saphyr::from_multiple(INSTALLED);
    let same = |(policy, binding): &(Value, Value)| match installed.as_deref() {
        Ok([own_policy, own_binding]) => is_same(own_policy, policy) && is_same(own_binding, binding),
        _ => false,
    };
    Ok(found.as_ref().is_some_and(same))
}

/// A policy and its binding, which have one name; `None` where one of them is missing. An API server that does not know
/// the kinds has neither.
pub async fn policy_and_binding(client: &Client, name: &str) -> Result<Option<(Value, Value)>, Trouble> {
    let policy = get(client, "validatingadmissionpolicies", name).await?;
    let binding = get(client, "validatingadmissionpolicybindings", name).await?;
    Ok(policy.zip(binding))
}

async fn get(client: &Client, kinds: &str, name: &str) -> Result<Option<Value>, Trouble> {
    let call = Request::new(format!("{ADMISSION}/{kinds}"))
        .get(name, &GetParams::default())
        .map_err(|error| Trouble::Kube(kube::Error::BuildRequest(error)))?;
    match limited(client.request::<Value>(call)).await {
        Err(trouble) if trouble.is_not_found() => Ok(None),
        answer => answer.map(Some),
    }
}

/// What the API server adds to a `spec` by itself: each says that nothing is left out.
fn is_default(field: &str, value: &Value) -> bool {
    match field {
        "matchPolicy" => value == "Equivalent",
        "scope" => value == "*",
        "namespaceSelector" | "objectSelector" => value.as_object().is_some_and(serde_json::Map::is_empty),
        _ => false,
    }
}

/// Whether the stored object says what ours says, and nothing more but defaults.
fn is_same(own: &Value, stored: &Value) -> bool {
    let [own, stored] = [own, stored].map(|object| {
        let mut spec = object["spec"].clone();
        without_defaults(&mut spec);
        spec
    });
    own == stored
}

fn without_defaults(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|field, value| !is_default(field, value));
            fields.values_mut().for_each(without_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(without_defaults),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn installed() -> (Value, Value) {
        let objects: Vec<Value> = serde_saphyr::from_multiple(INSTALLED).expect("our own manifest");
        let [policy, binding] = objects.as_slice() else { panic!("{} objects", objects.len()) };
        (policy.clone(), binding.clone())
    }

    /// As Kubernetes 1.36 answers.
    fn stored() -> (Value, Value) {
        let (mut policy, binding) = installed();
        let constraints = &mut policy["spec"]["matchConstraints"];
        constraints["matchPolicy"] = json!("Equivalent");
        constraints["namespaceSelector"] = json!({});
        constraints["objectSelector"] = json!({});
        constraints["resourceRules"][0]["scope"] = json!("*");
        policy["status"] = json!({ "observedGeneration": 1 });
        (policy, binding)
    }

    #[test]
    fn what_the_api_server_adds_is_no_change() {
        let ((policy, binding), (own_policy, own_binding)) = (stored(), installed());
        assert!(is_same(&own_policy, &policy) && is_same(&own_binding, &binding));
    }

    #[test]
    fn whatever_weakens_it_is_one() {
        let (own_policy, own_binding) = installed();
        let of_policy: [fn(&mut Value); 5] = [
            |spec| spec["validations"][0]["expression"] = json!("true"),
            |spec| spec["failurePolicy"] = json!("Ignore"),
            |spec| spec["matchConditions"] = json!([{ "name": "never", "expression": "false" }]),
            |spec| spec["matchConstraints"]["namespaceSelector"] = json!({ "matchLabels": { "x": "y" } }),
            |spec| spec["matchConstraints"]["resourceRules"][0]["resources"] = json!(["nodehealths/status"]),
        ];
        for change in of_policy {
            let (mut policy, _) = stored();
            change(&mut policy["spec"]);
            assert!(!is_same(&own_policy, &policy), "{}", policy["spec"]);
        }
        let of_binding: [fn(&mut Value); 2] = [
            |spec| spec["validationActions"] = json!(["Audit"]),
            |spec| {
                spec["matchResources"] = json!({ "namespaceSelector": { "matchLabels": { "x": "y" } } });
            },
        ];
        for change in of_binding {
            let (_, mut binding) = stored();
            change(&mut binding["spec"]);
            assert!(!is_same(&own_binding, &binding), "{}", binding["spec"]);
        }
    }
}

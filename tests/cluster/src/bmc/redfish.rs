//! What the management controller answers: as much of Redfish (DMTF DSP0266, `ComputerSystem` schema) as fence agents
//! ask for.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use super::fault::Fault;
use super::{BMC_PASSWORD, BMC_USER};
use crate::layout::Layout;
use crate::power;

const ROOT: &str = "/redfish/v1";
/// What `ComputerSystem.Reset` takes here. A machine that hangs shuts down by nobody's wish: no `GracefulShutdown`.
const RESETS: [&str; 2] = ["On", "ForceOff"];
/// A request is `{"ResetType": "…"}`.
const BODY_BYTES_MAX: usize = 4096;

#[derive(Clone)]
struct Controller {
    layout: Layout,
    /// One switch at a time.
    switch: Arc<Mutex<()>>,
}

/// Everything that it serves.
pub fn routes(layout: Layout) -> Router {
    let controller = Controller { layout, switch: Arc::default() };
    // The service root is open to all, as the specification demands.
    let open = Router::new().route(ROOT, get(service_root)).route("/redfish/v1/", get(service_root));
    let closed = Router::new()
        .route("/redfish/v1/Systems", get(systems))
        .route("/redfish/v1/Systems/{node}", get(system))
        .route("/redfish/v1/Systems/{node}/Actions/ComputerSystem.Reset", post(reset))
        .layer(middleware::from_fn(authenticate))
        .with_state(controller);
    open.merge(closed)
}

async fn authenticate(request: Request, next: Next) -> Response {
    if is_let_in(request.headers()) {
        return next.run(request).await;
    }
    let mut response = error(StatusCode::UNAUTHORIZED, "NoValidSession", "user or password is wrong");
    response
        .headers_mut()
        .insert(WWW_AUTHENTICATE, axum::http::HeaderValue::from_static("Basic realm=\"bmc\""));
    response
}

fn is_let_in(headers: &HeaderMap) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given
        .and_then(|value| value.strip_prefix("Basic "))
        .and_then(|text| BASE64_STANDARD.decode(text).ok());
    given.is_some_and(|given| given == format!("{BMC_USER}:{BMC_PASSWORD}").as_bytes())
}

async fn service_root() -> Response {
    document(&json!({
        "@odata.id": ROOT,
        "@odata.type": "#ServiceRoot.v1_5_0.ServiceRoot",
        "Id": "RootService",
        "Name": "Power cords of a Somersault test cluster",
        "RedfishVersion": "1.6.0",
        "Systems": {"@odata.id": format!("{ROOT}/Systems")},
    }))
}

async fn systems(State(controller): State<Controller>) -> Response {
    let nodes = controller.layout.nodes();
    let members: Vec<Value> = nodes.iter().map(|node| json!({"@odata.id": place(node)})).collect();
    document(&json!({
        "@odata.id": format!("{ROOT}/Systems"),
        "@odata.type": "#ComputerSystemCollection.ComputerSystemCollection",
        "Name": "Nodes",
        "Members@odata.count": members.len(),
        "Members": members,
    }))
}

async fn system(State(controller): State<Controller>, Path(node): Path<String>) -> Response {
    let fault = match controller.meets(&node).await {
        Ok(fault) => fault,
        Err(response) => return response,
    };
    let cord = wired(&controller.layout, &node, fault);
    let state =
        controller.clone().blocking(move |layout| power::is_on(layout, &cord).map(|on| (node, on))).await;
    let (node, is_on) = match state {
        Ok(found) => found,
        Err(response) => return response,
    };
    let power = if is_on && fault != Some(Fault::Lies) { "On" } else { "Off" };
    document(&json!({
        "@odata.id": place(&node),
        "@odata.type": "#ComputerSystem.v1_10_0.ComputerSystem",
        "Id": node,
        "Name": node,
        "SystemType": "Physical",
        "PowerState": power,
        "Actions": {"#ComputerSystem.Reset": {
            "target": format!("{}/Actions/ComputerSystem.Reset", place(&node)),
            "ResetType@Redfish.AllowableValues": RESETS,
        }},
    }))
}

async fn reset(State(controller): State<Controller>, Path(node): Path<String>, body: Bytes) -> Response {
    let fault = match controller.meets(&node).await {
        Ok(fault) => fault,
        Err(response) => return response,
    };
    let asked = (body.len() <= BODY_BYTES_MAX).then(|| serde_json::from_slice::<Value>(&body).ok()).flatten();
    let kind = asked.as_ref().and_then(|asked| asked["ResetType"].as_str()).unwrap_or_default();
    if !RESETS.contains(&kind) {
        return error(
            StatusCode::BAD_REQUEST,
            "ActionParameterNotSupported",
            &format!("ResetType {kind:?} is none of {}", RESETS.join(", ")),
        );
    }
    if fault == Some(Fault::Lies) {
        return StatusCode::NO_CONTENT.into_response();
    }
    let on = kind == "On";
    let cord = wired(&controller.layout, &node, fault);
    eprintln!("{node}: {kind}, at the cord of {cord}");
    let switched = controller
        .blocking(
            move |layout| if on { power::on_from_inside(layout, &cord) } else { power::off(layout, &cord) },
        )
        .await;
    switched.map_or_else(|response| response, |()| StatusCode::NO_CONTENT.into_response())
}

/// Whose power cord the controller of a node switches.
fn wired(layout: &Layout, node: &str, fault: Option<Fault>) -> String {
    if fault != Some(Fault::Miswired) {
        return node.to_owned();
    }
    let nodes = layout.nodes();
    let own = nodes.iter().position(|name| name == node).unwrap_or_default();
    nodes[(own + 1) % nodes.len()].clone()
}

impl Controller {
    /// A node that exists, and how the controller misbehaves for it; what to answer otherwise.
    async fn meets(&self, node: &str) -> Result<Option<Fault>, Response> {
        if !self.layout.nodes().iter().any(|name| name == node) {
            return Err(error(
                StatusCode::NOT_FOUND,
                "ResourceMissingAtURI",
                &format!("there is no node {node:?}"),
            ));
        }
        match Fault::of(&self.layout, node) {
            Ok(Some(Fault::Hangs)) => std::future::pending().await,
            Ok(Some(Fault::Fails)) => Err(error(
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceTemporarilyUnavailable",
                "a test wants it so",
            )),
            Ok(fault) => Ok(fault),
            Err(broken) => Err(internal(&broken)),
        }
    }

    async fn blocking<T: Send + 'static>(
        self,
        work: impl FnOnce(&Layout) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, Response> {
        let done = tokio::task::spawn_blocking(move || {
            let _alone = self.switch.lock().unwrap_or_else(PoisonError::into_inner);
            work(&self.layout)
        });
        match done.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(broken)) => Err(internal(&broken)),
            Err(crash) => Err(internal(&crash.into())),
        }
    }
}

fn place(node: &str) -> String {
    format!("{ROOT}/Systems/{node}")
}

fn document(document: &Value) -> Response {
    with_body(StatusCode::OK, document)
}

fn internal(broken: &anyhow::Error) -> Response {
    eprintln!("{broken:#}");
    error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &format!("{broken:#}"))
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    with_body(status, &json!({"error": {"code": format!("Base.1.8.{code}"), "message": message}}))
}

fn with_body(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json"), (ODATA_VERSION, "4.0")], body.to_string()).into_response()
}

const ODATA_VERSION: axum::http::HeaderName = axum::http::HeaderName::from_static("odata-version");

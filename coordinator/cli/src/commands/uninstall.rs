//! `uninstall`: gives back what was taken, removes what was installed, and says what stays.
//!
//! Nothing is done before it was shown, and each step may be done twice: what a broken uninstallation left is found
//! and finished by the next.

use std::thread;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde_json::json;

use crate::args::{Format, Global, UninstallArgs};
use crate::exit::{Exit, Failure};
use crate::output::{self, clean};
use crate::source::api::{FIELD_MANAGER, limited};
use crate::source::{ApiServer, Source, install};
use crate::world::World;

mod owned;
mod plan;

use plan::{Plan, Step};

/// A leader that was told to stop gives its Lease back at once; one that died loses it after 15 s, or what the policy
/// says instead, at most a minute. Pods go within their grace of 10 s, those of a dead node never.
const STOP_MAX: Duration = Duration::from_secs(90);
/// Between two looks at the Lease and the pods.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Pods of the coordinator: it has a few replicas.
const PODS_MAX: u32 = 500;

/// The answer for machines.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    done: bool,
    under_way: Vec<String>,
    steps: Vec<String>,
    stays: Vec<String>,
}

/// Runs the command.
pub fn run(global: &Global, args: &UninstallArgs) -> Result<Exit, Failure> {
    let Source::Api(server) = Source::open(global)? else {
        return Err(Failure::Usage(
            "uninstall is about an API server; from a folder nothing has to be removed".to_owned(),
        ));
    };
    let plan = look(&server, args.delete_crds)?;
    let mut answer = Answer {
        done: false,
        under_way: plan.under_way.clone(),
        steps: plan.steps.iter().map(Step::words).collect(),
        stays: plan.stays.clone(),
    };
    if args.dry_run {
        output::print(global.output, &answer, || text(&answer))?;
        if !plan.under_way.is_empty() && !args.force {
            output::note("without --force it would be refused, for what is under way");
        }
        return Ok(Exit::Ok);
    }
    if !plan.under_way.is_empty() && !args.force {
        return Err(Failure::Refused(format!(
            "these are under way, and nobody would end them:\n  {}\nWait for them, or go on in spite of it with \
             --force: VMs of a dead node then stay as they are, and one whose disks are being moved may stay stopped",
            plan.under_way.join("\n  ")
        )));
    }
    if !args.yes && !plan.steps.is_empty() {
        ask(&answer)?;
    }
    let stop = [Step::StopCoordinator];
    let stops = plan.steps.starts_with(&stop);
    perform_all(global, &server, if stops { &stop } else { &[] })?;
    // What began while the answer was awaited is given back and let go as well: from here on nothing begins any more.
    let mut rest = if stops { look(&server, args.delete_crds)? } else { plan };
    rest.steps.retain(|step| *step != Step::StopCoordinator);
    perform_all(global, &server, &rest.steps)?;
    answer.steps = stop.iter().filter(|_| stops).chain(&rest.steps).map(Step::words).collect();
    answer.stays = rest.stays;
    answer.done = true;
    output::print(global.output, &answer, || stays_text(&answer.stays))?;
    Ok(Exit::Ok)
}

fn perform_all(global: &Global, server: &ApiServer, steps: &[Step]) -> Result<(), Failure> {
    for step in steps {
        perform(server, step)?;
        if global.output == Format::Table {
            output::write_out(&format!("done: {}\n", clean(&step.words())))?;
        }
    }
    Ok(())
}

/// Looks at everything, and plans.
fn look(server: &ApiServer, delete_crds: bool) -> Result<Plan, Failure> {
    let world = World::of(&server.objects()?, None)?;
    let trouble =
        |trouble: crate::source::trouble::Trouble| trouble.failure(server.address(), "what is installed");
    let client = server.client();
    let owned = server.wait(owned::find(client)).map_err(trouble)?;
    let definitions =
        if delete_crds { Some(server.wait(owned::definitions(client)).map_err(trouble)?) } else { None };
    let deployment =
        server.wait(limited(deployments(server).get_opt(install::COORDINATOR))).map_err(trouble)?;
    Ok(plan::plan(&world, deployment.is_some(), owned, definitions))
}

fn deployments(server: &ApiServer) -> Api<Deployment> {
    Api::namespaced(server.client().clone(), install::NAMESPACE)
}

fn perform(server: &ApiServer, step: &Step) -> Result<(), Failure> {
    match step {
        Step::StopCoordinator => stop_coordinator(server),
        Step::GiveBack(action) => server.act(action),
        Step::LetGo(migration) => server.let_go(migration),
        Step::Delete(owned) => server
            .wait(owned::delete(server.client(), owned))
            .map_err(|trouble| trouble.failure(server.address(), &owned.words())),
    }
}

/// Takes the coordinator's replicas away, and waits until they are gone and nobody leads: between two of them the Lease
/// may be free for a moment. A pod that never goes is one of a dead node: its coordinator would lead by now if it could.
fn stop_coordinator(server: &ApiServer) -> Result<(), Failure> {
    let patch = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let object = format!("Deployment {}/{}", install::NAMESPACE, install::COORDINATOR);
    match server.wait(limited(deployments(server).patch(install::COORDINATOR, &parameters, &patch))) {
        Err(trouble) if trouble.is_not_found() => {}
        answer => drop(answer.map_err(|trouble| trouble.failure(server.address(), &object))?),
    }
    let begun = Instant::now();
    loop {
        let (leads, left) = (server.led()?.unwrap_or(true), coordinator_pods(server)?);
        let late = begun.elapsed() > STOP_MAX;
        match (leads, left.as_slice()) {
            (false, []) => return Ok(()),
            (false, left) if late => {
                output::note(&format!("still there, and leading nothing: {}", left.join(", ")));
                return Ok(());
            }
            _ => {}
        }
        if late {
            return Err(Failure::Failed(format!(
                "a coordinator still leads {} s after it was told to stop; see its pods, then go on with the same \
                 command: kubectl get pods -n {} -l {}=coordinator",
                STOP_MAX.as_secs(),
                install::NAMESPACE,
                install::COMPONENT_LABEL
            )));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Names of the coordinator's pods that are there.
fn coordinator_pods(server: &ApiServer) -> Result<Vec<String>, Failure> {
    let api: Api<Pod> = Api::namespaced(server.client().clone(), install::NAMESPACE);
    let labels = install::part("coordinator");
    let pods = server
        .wait(limited(api.list(&ListParams::default().labels(&labels).limit(PODS_MAX))))
        .map_err(|trouble| trouble.failure(server.address(), "the coordinator's pods"))?;
    Ok(pods.items.iter().map(|pod| format!("pod {}", pod.name_any())).collect())
}

/// Shows what would be done, and wants a yes.
fn ask(answer: &Answer) -> Result<(), Failure> {
    output::ask(&text(answer))
}

fn text(answer: &Answer) -> String {
    let list = |title: &str, lines: &[String]| {
        if lines.is_empty() {
            return String::new();
        }
        format!("{title}\n{}", lines_of(lines))
    };
    let steps = if answer.steps.is_empty() {
        "Nothing is left to remove.\n".to_owned()
    } else {
        list("This would be done, in this order:", &answer.steps)
    };
    format!("{}{steps}{}", list("Under way:", &answer.under_way), stays_text(&answer.stays))
}

fn stays_text(stays: &[String]) -> String {
    format!("This stays:\n{}", lines_of(stays))
}

fn lines_of(texts: &[String]) -> String {
    texts.iter().flat_map(|text| ["  ".into(), clean(text), "\n".into()]).collect()
}

//! `cancel` and `proceed`: a word about a migration or an evacuation that is under way.

use serde_json::{Value, json};
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::names::Key;
use somersault_crd::evacuation::Disruption;
use somersault_crd::volume_migration::Phase;
use somersault_crd::{Evacuation, VolumeMigration};

use super::{evacuate, migrate};
use crate::args::{Global, ObjectArgs, ObjectRef};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::requests::Written;
use crate::source::Source;

/// Ends a migration or an evacuation.
pub fn cancel(global: &Global, args: &ObjectArgs) -> Result<Exit, Failure> {
    change(
        global,
        &args.object,
        "will be ended; what has not been swapped yet is put back as it was, and its volumes stay on Retain",
        |object| {
            match object {
                Object::Migration(migration) => {
                    let phase = migration.status.as_ref().map_or(Phase::Pending, |status| status.phase);
                    if migrate::has_ended(phase) {
                        return Err(format!("it has ended already: {phase:?}"));
                    }
                    if phase >= Phase::Starting && phase < Phase::Succeeded {
                        return Err(
                            "its claims already point to the new volumes and its VM is being started there; \
                                the old volumes are kept"
                                .to_owned(),
                        );
                    }
                }
                Object::Evacuation(evacuation) => {
                    if evacuation.status.as_ref().is_some_and(|status| status.complete) {
                        return Err("it has ended already".to_owned());
                    }
                }
            }
            Ok(("cancelled", json!(true)))
        },
    )
}

/// Lets a migration or an evacuation that has copied ahead stop the VMs and finish.
pub fn proceed(global: &Global, args: &ObjectArgs) -> Result<Exit, Failure> {
    change(global, &args.object, "may stop the VMs now, and finish", |object| match object {
        Object::Migration(migration) => {
            let phase = migration.status.as_ref().map_or(Phase::Pending, |status| status.phase);
            if migrate::has_ended(phase) {
                return Err(format!("it has ended already: {phase:?}"));
            }
            if !migration.spec.pre_copy_only {
                return Err("it does not wait for a word".to_owned());
            }
            Ok(("preCopyOnly", json!(false)))
        }
        Object::Evacuation(evacuation) => {
            if evacuation.status.as_ref().is_some_and(|status| status.complete) {
                return Err("it has ended already".to_owned());
            }
            if evacuation.spec.disruption == Disruption::Now {
                return Err("it does not wait for a word".to_owned());
            }
            Ok(("disruption", json!(Disruption::Now)))
        }
    })
}

/// What is changed.
enum Object {
    Migration(Box<VolumeMigration>),
    Evacuation(Box<Evacuation>),
}

/// Sets one field of the object's spec, which `decide` names or refuses.
fn change(
    global: &Global,
    object: &ObjectRef,
    done: &str,
    decide: impl Fn(&Object) -> Result<(&'static str, Value), String>,
) -> Result<Exit, Failure> {
    let (source, id) = match object {
        ObjectRef::Migration(named) => {
            let namespace = named.namespace(global)?;
            let source = Source::open(global)?;
            let key = Key::new(source.namespace(namespace), named.name.as_str());
            (source, migrate::id(&key))
        }
        ObjectRef::Evacuation(name) => (Source::open(global)?, evacuate::id(name)),
    };
    source.set_spec(&id, |value| decide(&read(&id, value.clone())?))?;
    let kind = if id.namespace.is_empty() { evacuate::KIND } else { migrate::KIND };
    let namespace = (!id.namespace.is_empty()).then(|| id.namespace.clone());
    output::print(global.output, &Written { kind, namespace, name: id.name.clone() }, || {
        format!("{id} {done}.")
    })?;
    Ok(Exit::Ok)
}

fn read(id: &ObjectId, value: Value) -> Result<Object, String> {
    let unreadable = |error: serde_json::Error| format!("it cannot be read: {error}");
    if id.kind == migrate::KIND {
        serde_json::from_value(value).map(|object| Object::Migration(Box::new(object))).map_err(unreadable)
    } else {
        serde_json::from_value(value).map(|object| Object::Evacuation(Box::new(object))).map_err(unreadable)
    }
}

//! Stand-in for Wukong's operator: `spec.startStrategy.autoStart` of a Wukong becomes `spec.running` of its VM.
//! An absent start strategy means started; one without `autoStart` means stopped.

use serde_json::{Value, json};
use somersault_coordinator::cluster::directory::store::Objects;

use super::{Change, name, namespace, set};

pub(super) fn reconcile(objects: &Objects) -> Vec<Change> {
    let mut changes = Vec::new();
    for wukong in objects.of_kind("Wukong") {
        let vm_name = format!("{}-vm", name(wukong));
        let vm = objects
            .of_kind("VirtualMachine")
            .find(|vm| name(vm) == vm_name && namespace(vm) == namespace(wukong));
        if let Some(vm) = vm {
            set(&mut changes, vm, json!({"spec": {"running": should_run(wukong)}}));
        }
    }
    changes
}

fn should_run(wukong: &Value) -> bool {
    match &wukong["spec"]["startStrategy"] {
        Value::Null => true,
        strategy => strategy["autoStart"] == true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_strategy_starts_and_an_empty_one_does_not() {
        assert!(should_run(&json!({"spec": {}})));
        assert!(should_run(&json!({"spec": {"startStrategy": {"autoStart": true}}})));
        assert!(!should_run(&json!({"spec": {"startStrategy": {"autoStart": false}}})));
        assert!(!should_run(&json!({"spec": {"startStrategy": {}}})));
    }
}

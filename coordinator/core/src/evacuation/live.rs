//! VMs that leave a node while they run: what keeps one from it, what is asked of KubeVirt, and what came of it.
//!
//! ```text
//!   Waiting ─► asked for (a VirtualMachineInstanceMigration) ─► Running ─┬─► it runs elsewhere, or runs no more: Succeeded
//!      │                                                                 └─► it failed, or is gone: Failed
//!      └─► KubeVirt calls it not migratable, or it cannot go where it is wanted: Failed
//! ```

use super::{EvacuationSpec, PlanState, Planned};
use crate::fleet::{Fleet, LiveMigrationState};
use crate::io::Action;
use crate::migration::{Context, Destination};

/// Whether nothing keeps the VM from moving while it runs; else its line has failed, and says why.
pub(super) fn can_move(spec: &EvacuationSpec, line: &mut Planned, ctx: &Context<'_>) -> bool {
    let Some(why) = hindrance(spec, line, ctx) else { return true };
    line.state = PlanState::Failed;
    line.message = why;
    false
}

fn hindrance(spec: &EvacuationSpec, line: &Planned, ctx: &Context<'_>) -> Option<String> {
    let instance = ctx.fleet.vms.get(&line.subject)?.instance.as_ref()?;
    if instance.phase != "Running" {
        return Some(format!("LiveMigrationImpossible: it is {}, not Running", instance.phase));
    }
    if let Some(why) = &instance.not_migratable {
        return Some(format!(
            "NotLiveMigratable: KubeVirt cannot move it while it runs ({why}): stop it and start it again once the node is cordoned"
        ));
    }
    if let Some(Destination::Node(node)) = &spec.destination
        && !ctx.usable.contains(node)
    {
        return Some(format!("TargetNotUsable: node {node} is not healthy, or its agent is not heard from"));
    }
    None
}

/// What is asked of KubeVirt. Where it goes is KubeVirt's choice, unless somebody has chosen.
pub(super) fn action(spec: &EvacuationSpec, line: &Planned) -> Action {
    let node = match &spec.destination {
        Some(Destination::Node(node)) => Some(node.clone()),
        Some(Destination::Class(_)) | None => None,
    };
    Action::LiveMigrate { key: line.migration.clone(), vm: line.subject.name.clone(), node }
}

/// What became of it.
pub(super) fn follow(spec: &EvacuationSpec, line: &mut Planned, fleet: &Fleet) {
    if !matches!(line.state, PlanState::Waiting | PlanState::Running) {
        return;
    }
    let runs_here = fleet.vms.get(&line.subject).is_some_and(|vm| vm.node() == Some(&spec.node));
    if !runs_here {
        line.state = PlanState::Succeeded;
        line.message.clear();
        return;
    }
    match fleet.live_migrations.get(&line.migration) {
        Some(migration) if migration.vm != line.subject.name => {
            fail(line, "a VirtualMachineInstanceMigration of this name moves another VM");
        }
        Some(migration) => match &migration.state {
            // The instance tells where it runs a moment later.
            LiveMigrationState::UnderWay | LiveMigrationState::Succeeded => line.state = PlanState::Running,
            LiveMigrationState::Failed(why) if why.is_empty() => {
                fail(line, "KubeVirt gives no reason: see the events of its instance");
            }
            LiveMigrationState::Failed(why) => fail(line, why),
        },
        None if line.state == PlanState::Running => {
            fail(line, "its VirtualMachineInstanceMigration was removed");
        }
        None => {}
    }
}

/// It stays where it is, since.
pub(super) fn fail(line: &mut Planned, why: &str) {
    line.state = PlanState::Failed;
    line.message = format!("LiveMigrationFailed: {why}");
}

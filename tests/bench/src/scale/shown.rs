//! The figures, for people.

use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use super::incident::Incident;
use super::plan::Plan;
use super::rest::{Rest, Start};
use super::standin::START;

const MIB: u64 = 1 << 20;

/// Prints all of them.
pub fn print(plan: Plan, profile: &str, start: &Start, rest: &Rest, incident: &Incident) {
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    let share = |cpu: f64| format!("{:.1} % of a core", cpu * 100.0);
    let rate = |count: usize| {
        // Counts of a minute are small.
        f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / rest.during.as_secs_f64()
    };
    let requests = &rest.requests;
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        format!("{} nodes, {} VMs, profile {profile}, else the default policy", plan.nodes, plan.vms),
        String::new(),
    ]);
    let rows = [
        ("coordinator started → every object read and joined", seconds(start.synced)),
        ("coordinator started → it leads", seconds(start.leads)),
        ("coordinator started → every agent beats, every node is Healthy", seconds(start.healthy)),
        ("coordinator started → every NodeHealth says so", seconds(start.shown)),
        ("memory at rest (VmRSS)", format!("{} MiB", rest.usage.resident_bytes / MIB)),
        ("most memory until then (VmHWM)", format!("{} MiB", rest.usage.peak_bytes / MIB)),
        ("processor at rest", share(rest.cpu)),
        ("times that the deciding loop was late at rest", format!("{:.0}", rest.stalls)),
        (
            "requests at rest",
            format!(
                "{:.1} a second: {:.1} reads, {:.1} writes",
                rate(requests.all),
                rate(requests.all - requests.writes),
                rate(requests.writes)
            ),
        ),
        ("last beat → verdict", seconds(incident.silence)),
        ("verdict → proof stored", seconds(incident.proven)),
        ("verdict → first launcher deleted", seconds(incident.first_deleted)),
        ("verdict → last launcher deleted", seconds(incident.last_deleted)),
        ("verdict → last attachment deleted", seconds(incident.last_detached)),
        ("verdict → last VM runs again", seconds(incident.last_running)),
        ("verdict → the coordinator has seen it", seconds(incident.settled)),
        ("processor meanwhile", share(incident.cpu)),
        ("most memory (VmHWM)", format!("{} MiB", incident.usage.peak_bytes / MIB)),
    ];
    for (what, value) in rows {
        table.add_row([what.to_owned(), value]);
    }
    println!("{table}");
    println!(
        "{} VMs were on the dead node. A VM's start is played, and takes {} s of each.",
        plan.doomed,
        START.as_secs()
    );
    println!("Requests at rest, a second:");
    for (what, count) in &requests.by_kind {
        println!("  {:8.2}  {what}", rate(*count));
    }
}

//! Events, as people find them.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use somersault_coordinator_core::io::{Notice, Severity, Subject};

use crate::bed::{Bed, NODE, SYSTEM};
use crate::claims::shop;
use crate::records::MOVE;

fn notice(subject: Subject, reason: &'static str, message: &str) -> Notice {
    Notice { severity: Severity::Warning, subject, reason, message: message.to_owned() }
}

/// The Events about an object, as `kubectl get events` has them.
fn about(bed: &Bed, namespace: &str, name: &str) -> Result<Vec<Value>> {
    let list = bed.cluster.get(&["-n", namespace, "events"])?;
    let all = list["items"].as_array().cloned().unwrap_or_default();
    let ours = |event: &Value| event["reportingComponent"] == "somersault-coordinator";
    Ok(all.into_iter().filter(|event| event["involvedObject"]["name"] == name && ours(event)).collect())
}

pub async fn events(bed: &Bed) -> Result<()> {
    let silent = notice(Subject::Node(NODE.into()), "NodeUnreachable", "n1 is silent");
    for _ in 0..3 {
        bed.writer.event(&silent).await?;
    }
    bed.writer.event(&notice(Subject::Node(NODE.into()), "NodeUnreachable", "n1 is silent again")).await?;
    let found = about(bed, "default", NODE)?;
    ensure!(found.len() == 2, "{found:?}");
    let counted = found.iter().find(|event| event["message"] == "n1 is silent").context("not found")?;
    ensure!(counted["series"]["count"] == 3 && counted["type"] == "Warning", "{counted}");
    let uid = bed.get("Node", NODE).await?["metadata"]["uid"].clone();
    ensure!(counted["involvedObject"]["uid"] == uid && counted["reportingInstance"] == "test-0", "{counted}");
    let table = bed.cluster.ask(&["get", "events"])?;
    let line = table.lines().find(|line| line.ends_with("n1 is silent")).context("not in the table")?;
    ensure!(
        line.contains("NodeUnreachable") && line.contains("node/n1") && line.contains("Warning"),
        "{line}"
    );
    let described = bed.cluster.ask(&["describe", "node", NODE])?;
    ensure!(described.contains("n1 is silent again"), "kubectl describe does not know it");

    // A long note, cut between two characters; an object that is gone; ourselves.
    bed.writer.event(&notice(Subject::Migration(shop(MOVE)), "Long", &"ä".repeat(2_000))).await?;
    let long = about(bed, "shop", MOVE)?;
    let text = long[0]["message"].as_str().context("no message")?;
    ensure!(text.len() == 1_024 && text.chars().all(|c| c == 'ä'), "{} bytes", text.len());
    bed.writer.event(&notice(Subject::Vm(shop("gone")), "VmGone", "nobody knows where")).await?;
    let gone = about(bed, "shop", "gone")?;
    ensure!(gone.len() == 1 && gone[0]["involvedObject"].get("uid").is_none(), "{gone:?}");
    bed.writer.event(&notice(Subject::Coordinator, "StormHold", "we suspect ourselves")).await?;
    let own = about(bed, SYSTEM, "somersault-coordinator")?;
    ensure!(own.len() == 1 && own[0]["involvedObject"]["kind"] == "Deployment", "{own:?}");
    let good =
        Notice { severity: Severity::Info, ..notice(Subject::Evacuation("empty-n1".into()), "Done", "ok") };
    bed.writer.event(&good).await?;
    let good = about(bed, "default", "empty-n1")?;
    ensure!(good.len() == 1 && good[0]["type"] == json!("Normal"), "{good:?}");
    Ok(())
}

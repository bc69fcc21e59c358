//! Our taint, among those of others.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use somersault_coordinator_core::fleet::FENCING_TAINT;
use somersault_coordinator_core::io::Action;

use crate::bed::{Bed, NODE};

fn taint() -> Action {
    Action::Taint { node: NODE.into() }
}

fn untaint() -> Action {
    Action::Untaint { node: NODE.into() }
}

/// Ours, and those of others.
async fn both(bed: &Bed) -> Result<(Vec<Value>, Vec<Value>)> {
    let taints = bed.get("Node", NODE).await?["spec"]["taints"].as_array().cloned().unwrap_or_default();
    Ok(taints.into_iter().partition(|taint| taint["key"] == FENCING_TAINT))
}

pub async fn taints(bed: &Bed) -> Result<()> {
    bed.twice(&taint(), "Node", NODE).await?;
    bed.twice(&untaint(), "Node", NODE).await?;
    ensure!(both(bed).await? == (vec![], vec![]), "something is left");

    let theirs = json!([{ "key": "example.org/theirs", "effect": "NoSchedule", "value": "x" }]);
    bed.patch("Node", NODE, json!({ "spec": { "taints": theirs } })).await?;
    bed.twice(&taint(), "Node", NODE).await?;
    let (ours, others) = both(bed).await?;
    ensure!(json!(others) == theirs, "the others' are {others:?}");
    ensure!(ours.len() == 1 && ours[0]["effect"] == "NoSchedule", "ours are {ours:?}");
    ensure!(ours[0]["timeAdded"].is_string(), "since when? {ours:?}");
    bed.twice(&untaint(), "Node", NODE).await?;
    let (ours, others) = both(bed).await?;
    ensure!(ours.is_empty() && json!(others) == theirs, "{ours:?} {others:?}");
    bed.patch("Node", NODE, json!({ "spec": { "taints": null } })).await?;

    let nowhere = Action::Taint { node: "gone".into() };
    bed.refused(&nowhere, "does not exist", "Node", "gone").await?;
    bed.twice(&Action::Untaint { node: "gone".into() }, "Node", "gone").await
}

/// The kubelet and the controller manager write Nodes all the time, though never as often as this.
pub async fn taints_while_others_write(bed: &Bed) -> Result<()> {
    const ROUNDS: usize = 25;
    // Far more often than anybody writes a node, and seldom enough that one of fifteen tries comes through on a busy machine.
    const BETWEEN: Duration = Duration::from_millis(20);
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let others = async {
        while !stop.load(Ordering::SeqCst) {
            let number = writes.fetch_add(1, Ordering::SeqCst).to_string();
            let annotation = json!({ "metadata": { "annotations": { "example.org/number": number } } });
            bed.patch("Node", NODE, annotation).await?;
            tokio::time::sleep(BETWEEN).await;
        }
        Ok(())
    };
    let ours = async {
        let result = async {
            for round in 0..ROUNDS {
                bed.writer.act(&taint()).await.with_context(|| format!("round {round}"))?;
                ensure!(both(bed).await?.0.len() == 1, "round {round}: no taint");
                bed.writer.act(&untaint()).await.with_context(|| format!("round {round}"))?;
                ensure!(both(bed).await?.0.is_empty(), "round {round}: a taint");
            }
            Ok(())
        };
        let result = result.await;
        stop.store(true, Ordering::SeqCst);
        result
    };
    tokio::try_join!(others, ours)?;
    let (writes, last) = (writes.into_inner(), bed.get("Node", NODE).await?);
    eprintln!("   {writes} writes of others beside {} of ours", 2 * ROUNDS);
    let kept = &last["metadata"]["annotations"]["example.org/number"];
    ensure!(*kept == json!((writes - 1).to_string()), "the last of {writes} writes is {kept}: one was lost");
    Ok(())
}

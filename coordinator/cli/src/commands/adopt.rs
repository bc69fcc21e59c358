//! `adopt`: a folder that no volume names becomes the disk of the claim that lost it.
//!
//! ```text
//!   without a folder: every folder that no volume names, with the claim that its name tells of
//!   with one ─► shown ─► asked ─► step by step, each looked at anew: whatever breaks off is gone on with by the same command
//! ```

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use somersault_coordinator_core::adopt::{self, Adoption, Nodes, Orphan};
use somersault_coordinator_core::fleet::{self, DiskImage};
use somersault_coordinator_core::migration::Refusal;
use somersault_coordinator_core::names::{Key, NodeName};

use super::{incident, migrate};
use crate::args::{AdoptArgs, FolderOfNode, Global};
use crate::exit::{Exit, Failure};
use crate::output::{self, cell, clean, render, table};
use crate::source::{ApiServer, Source};
use crate::units;
use crate::world::{self, World};

/// Claim and volume are bound within seconds, and a claim goes within a moment once no pod uses it; what takes longer is
/// stuck.
const STEPS_MAX: Duration = Duration::from_mins(1);
/// Between two looks at what is still missing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Reason of a plan that has nothing left to do.
const DONE: &str = "AlreadyAdopted";

/// A folder that no volume names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: String,
    path: String,
    storage_class: String,
    allocated_bytes: u64,
    has_disk_image: bool,
    claim: Option<String>,
    /// What speaks against giving it to that claim now; absent where nothing does.
    because: Option<String>,
}

/// What was done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    claim: String,
    volume: String,
    node: String,
    path: String,
    dry_run: bool,
}

/// Runs the command.
pub fn run(global: &Global, args: &AdoptArgs) -> Result<Exit, Failure> {
    let source = Source::open(global)?;
    let Source::Api(server) = &source else {
        return Err(Failure::Usage(
            "adopt is about an API server; in a folder of manifests nobody binds a claim".to_owned(),
        ));
    };
    let world = World::of_cluster(&source, None)?;
    let Some(folder) = &args.folder else {
        let rows = rows(&world, global.namespace.as_deref());
        output::print(global.output, &rows, || text(&rows))?;
        return Ok(world::end(&world));
    };
    let claim = match &args.claim {
        Some(named) => Key::new(source.namespace(named.namespace(global)?), named.name.as_str()),
        None => named_by(&world, folder)?,
    };
    if world.led != Some(true) {
        return Err(Failure::Refused(
            "no coordinator leads, so that what is known of nodes and folders may be old: kubectl somersault check".to_owned(),
        ));
    }
    let adoption = ask(&world, folder, &claim)?;
    let done = |dry_run| Done {
        claim: claim.to_string(),
        volume: adoption.volume.name.to_string(),
        node: folder.node.to_string(),
        path: folder.path.clone(),
        dry_run,
    };
    if args.dry_run {
        output::print(global.output, &done(true), || words(&world, folder, &adoption))?;
        return Ok(world::end(&world));
    }
    if !args.yes {
        output::ask(&words(&world, folder, &adoption))?;
    }
    adopt(&source, server, folder, &claim)?;
    output::print(global.output, &done(false), || {
        format!(
            "Claim {claim} has folder {} of node {} now, by volume {}. Its VM can be started; it runs on that node.",
            clean(&folder.path),
            folder.node,
            adoption.volume.name
        )
    })?;
    Ok(world::end(&world))
}

/// Does what is missing, until nothing is.
fn adopt(source: &Source, server: &ApiServer, folder: &FolderOfNode, claim: &Key) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let world = World::of_cluster(source, None)?;
        let adoption = match ask(&world, folder, claim) {
            Ok(adoption) => adoption,
            Err(refusal) if refusal.reason == DONE => return Ok(()),
            Err(refusal) => return Err(refusal.into()),
        };
        // The claim's present object goes in its own time, and only then a new one can come.
        let broken = adoption.steps().iter().find_map(|step| server.act(step).err());
        match broken {
            Some(failure) if begun.elapsed() >= STEPS_MAX => return Err(failure),
            Some(Failure::Unreachable(why)) => return Err(Failure::Unreachable(why)),
            _ => thread::sleep(LOOK_EVERY),
        }
    }
}

/// What has to be done, or what speaks against it.
fn ask(world: &World, folder: &FolderOfNode, claim: &Key) -> Result<Adoption, Refusal> {
    if let Some(migration) = migrate::of_claim(world, claim) {
        let message =
            format!("VolumeMigration {migration} moves claim {claim}: wait for its end, or cancel it");
        return Err(Refusal { reason: "ClaimMoving", message, transient: true });
    }
    let (usable, proven_dead) = nodes(world);
    let nodes = Nodes { usable: &usable, proven_dead: &proven_dead };
    adopt::plan(&world.fleet, &nodes, (&folder.node, &folder.path), claim)
}

/// Nodes with a live agent, and those of which nothing runs any more.
fn nodes(world: &World) -> (BTreeSet<NodeName>, BTreeSet<NodeName>) {
    (incident::that_are(world, incident::is_healthy), incident::that_are(world, incident::is_proven))
}

fn orphans(world: &World) -> Vec<Orphan> {
    let (usable, proven_dead) = nodes(world);
    adopt::orphans(&world.fleet, &Nodes { usable: &usable, proven_dead: &proven_dead })
}

/// The claim that the folder's own name tells of.
fn named_by(world: &World, folder: &FolderOfNode) -> Result<Key, Failure> {
    let found = orphans(world)
        .into_iter()
        .find(|orphan| orphan.node == folder.node && orphan.path == fleet::folder(&folder.path));
    found.and_then(|orphan| orphan.of).ok_or_else(|| {
        Failure::Usage(
            "the folder's name does not tell whose disk it was, or it is no folder without a volume: see kubectl somersault \
             adopt, and name the claim by --claim"
                .to_owned(),
        )
    })
}

fn rows(world: &World, namespace: Option<&str>) -> Vec<Row> {
    let of_namespace = |orphan: &Orphan| {
        namespace.is_none_or(|want| orphan.of.as_ref().is_some_and(|claim| claim.namespace == want))
    };
    let orphans = orphans(world).into_iter().filter(of_namespace);
    orphans
        .map(|orphan| {
            let folder = FolderOfNode { node: orphan.node.clone(), path: orphan.path.clone() };
            let because = match &orphan.of {
                None => Some("its name tells of no claim: name one by --claim".to_owned()),
                Some(claim) => ask(world, &folder, claim).err().map(|refusal| refusal.message),
            };
            Row {
                node: orphan.node.to_string(),
                path: orphan.path,
                storage_class: orphan.class,
                allocated_bytes: orphan.usage.allocated_bytes,
                has_disk_image: orphan.usage.disk_image == DiskImage::Present,
                claim: orphan.of.map(|claim| claim.to_string()),
                because,
            }
        })
        .collect()
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "No agent sees a folder that no volume names.".to_owned();
    }
    let mut sheet = table(&["NODE", "SIZE", "DISK.IMG", "CLAIM", "ADOPT", "FOLDER", "BECAUSE"])
        .below(&["FOLDER", "BECAUSE"]);
    for row in rows {
        sheet.add_row([
            cell(&row.node),
            cell(&units::bytes(row.allocated_bytes)),
            cell(if row.has_disk_image { "yes" } else { "no" }),
            cell(row.claim.as_deref().unwrap_or_default()),
            cell(if row.because.is_none() { "can be" } else { "not now" }),
            cell(&row.path),
            cell(row.because.as_deref().unwrap_or_default()),
        ]);
    }
    format!("{}\nGive one to its claim: kubectl somersault adopt NODE:FOLDER\n", render(&sheet))
}

fn words(world: &World, folder: &FolderOfNode, adoption: &Adoption) -> String {
    let usage = world
        .fleet
        .reports
        .get(&folder.node)
        .and_then(|report| report.usage.get(fleet::folder(&folder.path)));
    let size = usage
        .map_or_else(String::new, |usage| format!(", {} with disk.img", units::bytes(usage.allocated_bytes)));
    let present = match world.fleet.claims.get(&adoption.claim) {
        None => "The claim is not there, and is made.".to_owned(),
        Some(claim) => {
            match claim.volume.as_ref().filter(|volume| world.fleet.volumes.contains_key(volume)) {
                Some(volume) => format!(
                    "Its present volume {volume} is kept, on reclaim policy Retain; the claim is made anew."
                ),
                None => "It has no volume now; the claim is made anew.".to_owned(),
            }
        }
    };
    format!(
        "Claim {} gets folder {} of node {}{size}, as volume {}. {present} No byte is copied or changed: make sure that \
         this is the newest copy of that disk, since its VM goes on from it.",
        adoption.claim,
        clean(&folder.path),
        folder.node,
        adoption.volume.name
    )
}

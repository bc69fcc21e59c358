//! What people ask of storage: disks, volumes, and what fills up.

mod common;

use std::fs;

use anyhow::Result;
use common::{Cluster, fixture, run};
use serde_json::json;

/// Columns as the header names them.
fn header(text: &str) -> Vec<&str> {
    let line = text.lines().find(|line| line.starts_with("NODE") || line.starts_with("VOLUME"));
    line.unwrap_or_default().split("  ").map(str::trim).filter(|name| !name.is_empty()).collect()
}

#[test]
fn disks_are_shown_the_worst_first_with_what_is_on_them() -> Result<()> {
    let ran = Cluster::coordinated()?.run(&["disks"])?;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
    let columns =
        ["NODE", "DISK", "GRADE", "VOLUMES", "VMS", "LAST WORD", "REASONS", "MODEL", "SERIAL", "ROOTS"];
    assert_eq!(header(&ran.out), columns, "{}", ran.out);
    let at = |start: &str| ran.out.lines().position(|line| line.starts_with(start));
    assert!(at("n2 ") < at("n1 "), "{}", ran.out);
    assert!(ran.line("n2 ").contains("Failing"), "{}", ran.out);
    assert!(ran.line("n2 ").contains("ReallocatedSectors"), "{}", ran.out);
    assert!(ran.line("n1 ").contains(", silent"), "its node is dead: {}", ran.out);
    assert!(ran.line("Unknown: ").contains("from n3."), "{}", ran.out);
    Ok(())
}

#[test]
fn disks_for_machines_name_volumes_and_vms() -> Result<()> {
    let answer = Cluster::coordinated()?.run(&["disks", "-o", "json"])?.json()?;
    let first = &answer["disks"][0];
    assert_eq!(
        (&first["node"], &first["disk"], &first["grade"]),
        (&json!("n2"), &json!("nvme0n1"), &json!("Failing"))
    );
    assert_eq!(
        (&first["volumes"], &first["vms"]),
        (&json!(["pv-batch", "pv-spare"]), &json!(["default/batch"]))
    );
    assert_eq!((&first["roots"], &first["silent"]), (&json!(["/opt/local-path"]), &json!(false)));
    assert_eq!(answer["disks"][1]["toldAt"], "2026-01-02T03:04:05Z", "when it was found silent");
    assert_eq!(answer["unheard"], json!(["n3"]));
    assert_eq!(answer["problems"], json!([]));
    Ok(())
}

#[test]
fn disks_of_one_node_and_of_none() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let answer = cluster.run(&["disks", "n1", "-o", "json"])?.json()?;
    assert_eq!(answer["disks"].as_array().map(Vec::len), Some(1), "{answer:#}");
    assert_eq!(answer["unheard"], json!([]));
    let ran = cluster.run(&["disks", "n9"])?;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.err.contains("there is no Node n9"), "{}", ran.err);
    let ran = run(&["disks", "--from", &fixture("fleet.yaml")])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("No agent has told of a physical disk."), "{}", ran.out);
    Ok(())
}

/// A dump that shows who manages which field tells how old a living agent's word is; one without does not.
#[test]
fn a_living_agents_word_has_an_age_where_the_objects_tell() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    assert!(cluster.run(&["disks", "n2"])?.line("n2 ").contains("unknown"));
    let file = cluster.path().join("somersault.yaml");
    let managed = "uid: nh-n2\n  managedFields: [{manager: somersault, operation: Apply, subresource: status, time: \
                   \"2026-01-02T03:04:05Z\"}]";
    fs::write(&file, fs::read_to_string(&file)?.replace("uid: nh-n2", managed))?;
    let answer = cluster.run(&["disks", "n2", "-o", "json"])?.json()?;
    assert_eq!(answer["disks"][0]["toldAt"], "2026-01-02T03:04:05Z", "{answer:#}");
    Ok(())
}

#[test]
fn what_a_disk_calls_itself_does_not_reach_the_terminal() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let file = cluster.path().join("somersault.yaml");
    fs::write(&file, fs::read_to_string(&file)?.replace("model: Demo 1", r#"model: "Demo\e]0;owned\a""#))?;
    let ran = cluster.run(&["disks"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("owned") && !ran.out.contains(['\u{1b}', '\u{7}']), "{:?}", ran.out);
    Ok(())
}

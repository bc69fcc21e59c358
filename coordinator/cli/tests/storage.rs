//! What people ask of storage: disks, volumes, and what fills up.

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result};
use common::{Cluster, fixture, program, ran, run};
use serde_json::json;
use somersault_coordinator::cluster::manifest::ObjectId;

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

/// The cluster, with a folder that no volume names and a volume that takes more than it asks.
fn filling_up() -> Result<Cluster> {
    let cluster = Cluster::coordinated()?;
    let file = cluster.path().join("somersault.yaml");
    let lost = "  - path: /opt/local-path/pvc-9_shop_lost\n    allocatedBytes: 4096\n    apparentBytes: 8192\n    inodes: 2\n  \
                - path: /opt/local-path/pv-batch\n";
    let text = fs::read_to_string(&file)?.replace("  - path: /opt/local-path/pv-batch\n", lost);
    fs::write(&file, text.replace("allocatedBytes: 104857600", "allocatedBytes: 3221225472"))?;
    Ok(cluster)
}

#[test]
fn volumes_are_shown_with_what_they_take_of_what_they_ask() -> Result<()> {
    let ran = filling_up()?.run(&["volumes"])?;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
    let columns = [
        "VOLUME",
        "CLAIM",
        "VM",
        "NODE",
        "CLASS",
        "REQUESTED",
        "TAKEN",
        "SHARE",
        "APPARENT",
        "LAST WORD",
        "ROOT",
    ];
    assert_eq!(header(&ran.out), columns, "{}", ran.out);
    let db = ran.line("pv-db-data");
    assert!(db.contains("default/db ") && db.contains("75 %") && db.contains(", silent"), "{}", ran.out);
    assert!(ran.line("pv-batch").contains("150 %, over"), "{}", ran.out);
    assert!(ran.line("pv-web-root").contains("shared"), "{}", ran.out);
    assert!(!ran.out.contains("pv-db-root"), "it is on a network: {}", ran.out);
    assert!(ran.line("/mnt/nfs").contains("2 share it"), "{}", ran.out);
    assert!(ran.out.contains("/opt/local-path/pvc-9_shop_lost"), "{}", ran.out);
    assert!(ran.out.contains("1 folders that no volume names take 4.0 KiB"), "{}", ran.out);
    Ok(())
}

#[test]
fn volumes_for_machines_count_what_is_shared_once() -> Result<()> {
    let answer = filling_up()?.run(&["volumes", "-o", "json"])?.json()?;
    let roots = answer["roots"].as_array().context("an array")?;
    let shared: Vec<_> = roots.iter().filter(|root| root["shared"] == true).collect();
    assert_eq!(shared.len(), 1, "{answer:#}");
    assert_eq!((&shared[0]["nodes"], &shared[0]["volumes"]), (&json!(["n1", "n2"]), &json!(1)));
    let of_n2 = roots.iter().find(|root| root["nodes"] == json!(["n2"])).context("n2")?;
    assert_eq!((&of_n2["overCommitRatio"], &of_n2["volumes"]), (&json!(0.04), &json!(2)), "{answer:#}");
    let volumes = answer["volumes"].as_array().context("an array")?;
    let web: Vec<_> = volumes.iter().filter(|row| row["volume"] == "pv-web-root").collect();
    assert_eq!(web.len(), 1, "two agents see it: {answer:#}");
    assert_eq!((&web[0]["allocatedBytes"], &web[0]["node"]), (&json!(734_003_200), &json!(null)));
    assert_eq!(web[0]["silent"], false, "one of them beats");
    let batch = volumes.iter().find(|row| row["volume"] == "pv-batch").context("batch")?;
    assert_eq!((&batch["overRequest"], &batch["vms"]), (&json!(true), &json!(["default/batch"])));
    assert_eq!(answer["totals"]["overRequest"], 1);
    let folder = &answer["folders"][0];
    assert_eq!((&folder["node"], &folder["claim"]), (&json!("n2"), &json!("shop/lost")), "{answer:#}");
    Ok(())
}

#[test]
fn volumes_of_a_namespace_or_of_a_node() -> Result<()> {
    let cluster = filling_up()?;
    let names = |args: &[&str]| -> Result<Vec<String>> {
        let answer = cluster.run(&[&["volumes", "-o", "json"], args].concat())?.json()?;
        let rows = answer["volumes"].as_array().context("an array")?;
        Ok(rows.iter().filter_map(|row| row["volume"].as_str().map(str::to_owned)).collect())
    };
    let on_n2 = names(&["--node", "n2"])?;
    assert!(on_n2.contains(&"pv-batch".to_owned()) && on_n2.contains(&"pv-web-root".to_owned()), "{on_n2:?}");
    assert!(!on_n2.contains(&"pv-db-data".to_owned()), "{on_n2:?}");
    assert_eq!(names(&["-n", "nowhere"])?, Vec::<String>::new());
    assert_eq!(cluster.run(&["volumes", "--node", "n9"])?.code, Some(3));
    let shop = cluster.run(&["volumes", "-n", "shop", "-o", "json"])?.json()?;
    assert_eq!(shop["folders"].as_array().map(Vec::len), Some(1), "by its name: {shop:#}");
    let lab = cluster.run(&["volumes", "-n", "lab", "-o", "json"])?.json()?;
    assert_eq!(lab["folders"], json!([]));
    Ok(())
}

#[test]
fn volumes_of_a_dump_without_agents_are_unknown_and_not_empty() -> Result<()> {
    let ran = run(&["volumes", "--from", &fixture("sparse.yaml")])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.line("pv-loc").contains("unknown"), "{}", ran.out);
    assert!(ran.out.contains("no agent has reported from n1, n2."), "{}", ran.out);
    Ok(())
}

#[test]
fn top_shows_what_takes_most_first_and_how_busy_nodes_are() -> Result<()> {
    let cluster = filling_up()?;
    let ran = cluster.run(&["top"])?;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
    let columns = ["VOLUME", "CLAIM", "VM", "NODE", "TAKEN", "REQUESTED", "SHARE", "LAST WORD"];
    assert_eq!(header(&ran.out), columns, "{}", ran.out);
    let at = |start: &str| ran.out.lines().position(|line| line.starts_with(start));
    assert!(at("pv-batch") < at("pv-db-data") && at("pv-db-data") < at("pv-web-root"), "{}", ran.out);
    assert!(ran.line("pv-db-data").contains("███████░░░ 75 %"), "{}", ran.out);
    let node = ran.line("n2 ");
    assert!(
        node.contains("25 %") && node.contains("50 % of 16.0 GiB") && node.contains("unknown"),
        "{}",
        ran.out
    );
    let answer = cluster.run(&["top", "-o", "json"])?.json()?;
    assert_eq!(answer["volumes"][0]["volume"], "pv-batch");
    assert_eq!(
        (&answer["nodes"][0]["cpuRatio"], &answer["nodes"][0]["ioPressureRatio"]),
        (&json!(0.25), &json!(null))
    );
    assert_eq!((&answer["intervalSeconds"], &answer["unheard"]), (&json!(null), &json!(["n3"])));
    Ok(())
}

#[test]
fn top_tells_growth_only_where_something_new_was_reported() -> Result<()> {
    let cluster = filling_up()?;
    let args = cluster.args(&["top", "--interval", "2s", "-o", "json"]);
    let mut child = program(&args.iter().map(String::as_str).collect::<Vec<_>>())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It says when it has looked for the first time.
    let mut err = BufReader::new(child.stderr.take().context("no stderr")?);
    let mut said = String::new();
    err.read_line(&mut said)?;
    assert!(said.contains("the second look is in 2 s"), "{said}");
    cluster.store()?.patch(&ObjectId::cluster("NodeHealth", "n2"), |object| {
        let volumes = object["status"]["volumes"].as_array_mut().into_iter().flatten();
        for volume in volumes.filter(|volume| volume["volume"] == "pv-batch") {
            volume["allocatedBytes"] = json!(3_221_225_472_u64 + (1 << 20));
        }
        Ok(())
    })?;
    let ran = ran(&child.wait_with_output()?)?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let answer = ran.json()?;
    assert!(
        answer["volumes"][0]["growthBytesPerDay"].as_i64().is_some_and(|bytes| bytes > 1 << 30),
        "{answer:#}"
    );
    assert!(answer["volumes"][1]["growthBytesPerDay"].is_null(), "of n1 there is nothing new: {answer:#}");
    assert_eq!(answer["unchanged"], json!(["n1"]));
    Ok(())
}

#[test]
fn top_says_that_nothing_new_was_reported() -> Result<()> {
    let ran = filling_up()?.run(&["top", "--interval", "1s"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("Nothing new was reported in between from n1, n2."), "{}", ran.out);
    assert!(ran.line("pv-batch").ends_with("unknown"), "{}", ran.out);
    let dump = run(&["top", "--interval", "1s", "--from", &fixture("fleet.yaml")])?;
    assert_eq!(dump.code, Some(2), "a dump does not change: {dump:?}");
    Ok(())
}

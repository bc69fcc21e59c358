//! Raw access to a folder of manifests: what is written, what stays, and what a killed writer leaves behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use somersault_coordinator::cluster::ClusterError;
use somersault_coordinator::cluster::directory::Store;
use somersault_coordinator::cluster::manifest::ObjectId;
use tempfile::TempDir;

/// Tells the ignored test below that it is the child, and where to write.
const WRITER_FOLDER: &str = "SOMERSAULT_TEST_WRITER_FOLDER";

fn store_of(files: &[(&str, &str)]) -> (TempDir, Store) {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(name), text).unwrap();
    }
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

fn config(name: &str) -> ObjectId {
    ObjectId { kind: "ConfigMap".into(), namespace: "a".into(), name: name.into() }
}

fn map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "a" } })
}

#[test]
fn create_gives_identity_and_a_file_of_its_own() {
    let (folder, store) = store_of(&[]);
    let node_health = json!({
        "apiVersion": "somersault.novasphere.dev/v1alpha1", "kind": "VolumeMigration",
        "metadata": { "name": "m", "namespace": "a" }, "spec": { "vm": "v" },
    });
    let made = store.create(node_health).unwrap();
    assert_eq!(made["metadata"]["resourceVersion"], "1");
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert!(made["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert!(folder.path().join("somersault/volumemigration/a_m.yaml").is_file());
    let id = ObjectId { kind: "VolumeMigration".into(), namespace: "a".into(), name: "m".into() };
    assert_eq!(store.get(&id).unwrap(), Some(made.clone()));
    assert!(matches!(store.create(made), Err(ClusterError::Conflict { .. })));
}

#[test]
fn create_refuses_names_that_lead_out_of_the_folder() {
    let (_folder, store) = store_of(&[]);
    for name in ["../up", "a/b", ".hidden", ""] {
        assert!(matches!(store.create(map(name)), Err(ClusterError::Refused { .. })), "{name:?}");
    }
}

#[test]
fn update_needs_the_stored_version_and_uid() {
    let (_folder, store) = store_of(&[]);
    let first = store.create(map("x")).unwrap();
    let mut changed = first.clone();
    changed["data"] = json!({ "k": "v" });
    let second = store.update(changed.clone()).unwrap();
    assert_eq!(second["metadata"]["resourceVersion"], "2");
    let Err(ClusterError::Conflict { why, .. }) = store.update(changed) else {
        panic!("stale update passed")
    };
    assert!(why.contains("resourceVersion"), "{why}");
    let mut foreign = second;
    foreign["metadata"]["uid"] = json!("other");
    foreign["data"]["k"] = json!("w");
    assert!(matches!(store.update(foreign), Err(ClusterError::Conflict { .. })));
    assert!(matches!(store.update(map("missing")), Err(ClusterError::NotFound { .. })));
}

#[test]
fn generation_counts_changes_of_the_spec_only() {
    let (_folder, store) = store_of(&[]);
    let mut object = map("x");
    object["spec"] = json!({ "a": 1 });
    store.create(object).unwrap();
    let touch = |field: &str, value: Value| {
        let patched = store.patch(&config("x"), |object| {
            object[field] = value;
            Ok(())
        });
        let meta = patched.unwrap()["metadata"].clone();
        (meta["resourceVersion"].clone(), meta["generation"].clone())
    };
    assert_eq!(touch("status", json!({ "p": 1 })), (json!("2"), json!(1)));
    assert_eq!(touch("spec", json!({ "a": 2 })), (json!("3"), json!(2)));
    // The same again changes nothing, and writes nothing.
    assert_eq!(touch("spec", json!({ "a": 2 })), (json!("3"), json!(2)));
}

#[test]
fn a_patch_may_refuse_and_may_not_change_identity() {
    let (folder, store) = store_of(&[]);
    store.create(map("x")).unwrap();
    let before = fs::read(folder.path().join("created/configmap/a_x.yaml")).unwrap();
    let refused = store.patch(&config("x"), |object| {
        object["data"] = json!({});
        Err(ClusterError::Refused { object: "x".into(), why: "no".into() })
    });
    assert!(matches!(refused, Err(ClusterError::Refused { .. })));
    let renamed = store.patch(&config("x"), |object| {
        object["metadata"]["name"] = json!("y");
        Ok(())
    });
    assert!(matches!(renamed, Err(ClusterError::Refused { .. })));
    let patched = store.patch(&config("x"), |object| {
        object["metadata"]["uid"] = json!("forged");
        object["data"] = json!({ "k": "v" });
        Ok(())
    });
    assert_ne!(patched.unwrap()["metadata"]["uid"], "forged");
    assert_ne!(fs::read(folder.path().join("created/configmap/a_x.yaml")).unwrap(), before);
}

#[test]
fn only_the_changed_document_changes_its_bytes() {
    let text = "# a file by hand\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, namespace: a}   # odd layout\n\
                --- # two\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: two\n  namespace: a\n  resourceVersion: \"41\"\n\
                ---\n# the last one\napiVersion: v1\nkind: ConfigMap\nmetadata: {\"name\": \"three\", namespace: a}\ndata:\n  text: |\n    a\n    --- not a separator\n";
    let (folder, store) = store_of(&[("d/m.yaml", text)]);
    let patched = store.patch(&config("two"), |object| {
        object["data"] =
            json!({ "yes": "true", "number": "0123", "null": "~", "colon": "a: b", "lines": "a\n---\nb\n" });
        Ok(())
    });
    assert_eq!(patched.unwrap()["metadata"]["resourceVersion"], "42");
    let after = fs::read_to_string(folder.path().join("d/m.yaml")).unwrap();
    let (head, tail) =
        (&text[..text.find("--- # two").unwrap()], &text[text.find("---\n# the last").unwrap()..]);
    assert!(after.starts_with(head) && after.ends_with(tail), "{after}");
    // What was written reads back the same, also by somebody who has never seen the file.
    let fresh = Store::open(folder.path()).unwrap();
    assert_eq!(fresh.get(&config("two")).unwrap().unwrap()["data"]["number"], "0123");
    assert_eq!(fresh.get(&config("two")).unwrap().unwrap()["data"]["lines"], "a\n---\nb\n");
    store.delete(&config("two"), None).unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("d/m.yaml")).unwrap(), format!("{head}{tail}"));
    store.delete(&config("one"), None).unwrap();
    store.delete(&config("three"), None).unwrap();
    assert!(!folder.path().join("d/m.yaml").exists());
}

#[test]
fn an_item_of_a_list_changes_within_its_list() {
    let list = "apiVersion: v1\nkind: ConfigMapList\nitems:\n- metadata: {name: one, namespace: a}\n- metadata: {name: two, namespace: a}\n";
    let json_text = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "three", "namespace": "a"}}]}"#;
    let (folder, store) = store_of(&[("list.yaml", list), ("list.json", json_text)]);
    for name in ["one", "three"] {
        store
            .patch(&config(name), |object| {
                object["data"] = json!({ "k": name });
                Ok(())
            })
            .unwrap();
    }
    assert_eq!(store.list("ConfigMap").unwrap().len(), 3);
    assert_eq!(store.get(&config("three")).unwrap().unwrap()["data"]["k"], "three");
    store.delete(&config("one"), None).unwrap();
    assert!(store.get(&config("one")).unwrap().is_none());
    assert!(store.get(&config("two")).unwrap().is_some());
    store.delete(&config("three"), None).unwrap();
    assert!(!folder.path().join("list.json").exists());
}

#[test]
fn delete_needs_the_uid_that_it_names() {
    let (_folder, store) = store_of(&[]);
    let made = store.create(map("x")).unwrap();
    assert!(matches!(store.delete(&config("x"), Some("other")), Err(ClusterError::Conflict { .. })));
    store.delete(&config("x"), made["metadata"]["uid"].as_str()).unwrap();
    assert!(matches!(store.delete(&config("x"), None), Err(ClusterError::NotFound { .. })));
}

#[test]
fn a_broken_document_beside_is_neither_lost_nor_in_the_way() {
    let text = "kind: [broken\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: a}\n";
    let (folder, store) = store_of(&[("m.yaml", text)]);
    store
        .patch(&config("x"), |object| {
            object["data"] = json!({ "k": "v" });
            Ok(())
        })
        .unwrap();
    assert!(fs::read_to_string(folder.path().join("m.yaml")).unwrap().starts_with("kind: [broken\n---\n"));
    assert_eq!(store.objects().unwrap().problems().len(), 1);
}

#[test]
fn an_edit_by_hand_is_seen_at_the_next_read_however_fast() {
    let (folder, store) = store_of(&[]);
    for round in 0..100_u8 {
        // The same size each time, and often the same stamp.
        let name = if round.is_multiple_of(2) { "even" } else { "odd2" };
        let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: a}}\n");
        fs::write(folder.path().join("m.yaml"), text).unwrap();
        assert!(store.get(&config(name)).unwrap().is_some(), "round {round}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_an_error_that_names_it() {
    let error = Store::open("/nonexistent/cluster").unwrap_err();
    assert!(error.to_string().contains("/nonexistent/cluster"), "{error}");
}

#[test]
fn writers_in_several_threads_lose_no_count() {
    let (_folder, store) = store_of(&[]);
    store.create(map("x")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let own = Store::open(store.root()).unwrap();
                (0..25).for_each(|_| count_up(&own));
            });
        }
    });
    assert_eq!(store.get(&config("x")).unwrap().unwrap()["data"]["count"], 100);
}

fn count_up(store: &Store) {
    let patched = store.patch(&config("x"), |object| {
        let count = object["data"]["count"].as_u64().unwrap_or(0) + 1;
        // Long enough for a torn write to show.
        object["data"] = json!({ "count": count, "again": count, "filler": "x".repeat(20_000) });
        Ok(())
    });
    patched.unwrap();
}

/// Kills a writer at many moments: every read in between and after sees whole files, the count never goes back, and
/// the lock is free again.
#[test]
fn a_killed_writer_leaves_whole_files_and_a_free_lock() {
    let (folder, store) = store_of(&[]);
    store.create(map("x")).unwrap();
    let mut last = 0;
    for round in 0..12_u64 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_that_gets_killed", "--ignored"])
            .env(WRITER_FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let mut wrote = false;
        // Long enough that it writes, and each time a little longer, so that it dies at another point of its loop.
        while !wrote || started.elapsed() < Duration::from_millis(20 + 3 * round) {
            assert!(started.elapsed() < Duration::from_secs(20), "the writer does not write");
            let count = read_count(folder.path());
            assert!(count >= last, "the count went back from {last} to {count}");
            wrote |= count > last;
            last = count;
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        last = read_count(folder.path());
        count_up(&store);
        assert_eq!(read_count(folder.path()), last + 1);
        last += 1;
    }
    store.remove_leftovers().unwrap();
    let names = fs::read_dir(folder.path().join("created/configmap")).unwrap();
    assert_eq!(names.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(), ["a_x.yaml"]);
}

/// Reads as a stranger would, without the lock and without a cache.
fn read_count(folder: &Path) -> u64 {
    let objects = Store::open(folder).unwrap().objects().unwrap();
    assert_eq!(objects.problems(), vec![]);
    let data = &objects.get(&config("x")).expect("the object is always there")["data"];
    assert_eq!(data["count"], data["again"]);
    data["count"].as_u64().unwrap_or(0)
}

#[test]
#[ignore = "the child of a_killed_writer_leaves_whole_files_and_a_free_lock: runs until it is killed"]
fn writer_that_gets_killed() {
    let Some(folder) = std::env::var_os(WRITER_FOLDER) else { return };
    let store = Store::open(folder).unwrap();
    let end = Instant::now() + Duration::from_mins(1);
    while Instant::now() < end {
        count_up(&store);
    }
}

//! A cluster that somebody uses is not taken away by a second `make try` or `make demo-cluster`.

use std::fs::File;
use std::process::Command;

#[test]
fn a_second_demo_is_refused_and_leaves_the_first_ones_files() {
    let cache = tempfile::tempdir().expect("a folder");
    let clusters = cache.path().join("somersault-cluster/clusters");
    let of_the_first = clusters.join("demo/kubeconfig");
    std::fs::create_dir_all(clusters.join("demo")).expect("folders");
    std::fs::write(&of_the_first, "").expect("a file");
    let us = std::process::id();
    std::fs::write(clusters.join("demo.held"), us.to_string()).expect("the lock's file");
    let first = File::open(clusters.join("demo.held")).expect("opened");
    first.try_lock().expect("nobody has it");
    for arguments in [&["--stay"][..], &[]] {
        let second = Command::new(env!("CARGO_BIN_EXE_somersault-demo-cluster"))
            .args(arguments)
            .env("XDG_CACHE_HOME", cache.path())
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        assert_eq!(second.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("the cluster demo is in use by process {us} (")), "{said}");
        assert!(of_the_first.exists(), "the first one's cluster was taken down");
    }
}

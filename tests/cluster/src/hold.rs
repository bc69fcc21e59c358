//! Whose cluster it is: one living process at a time holds a name, and nobody takes its cluster away by building another.
//!
//! ```text
//!   take ──► a lock on clusters/<name>.held ──► the process ends, however it ends ──► the kernel unlocks it
//!             └─ held by another process: refused, with its name and how to end it
//! ```
//!
//! The file stays when nobody holds it: one that is removed while another process waits for it is a lock of its own.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::layout::Layout;

/// While this or a clone of it lives, no other process can take the cluster of this name.
#[derive(Clone, Debug)]
pub struct Hold {
    name: String,
    /// Locked; no program that is started from here inherits it.
    _file: Arc<File>,
}

impl Hold {
    /// Takes a name, or says which process has it. Leftovers of a process that has ended hinder nobody.
    pub fn take(name: &str) -> Result<Self> {
        take(name, &Layout::of(name)?.held())
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn take(name: &str, path: &Path) -> Result<Hold> {
    let folder = path.parent().context("a lock without a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open.with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("{}", refusal(name, holder(&mut file))),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
    }
    file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).context("saying who we are")?;
    Ok(Hold { name: name.to_owned(), _file: Arc::new(file) })
}

/// The process that has written its number there; it may not have come to that yet.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.parse().ok()
}

fn refusal(name: &str, holder: Option<u32>) -> String {
    let Some(process) = holder else {
        return format!("the cluster {name} is in use by another process; end that first, then try again");
    };
    // It may have ended meanwhile.
    let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    format!(
        "the cluster {name} is in use by process {process} ({}). Only one can use it at a time: end that one first, by \
         Ctrl-C in its terminal or by `kill {process}`, which takes its cluster down; then try again",
        words.join(" ").trim_end()
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::until;

    /// A child of any other test here has the file as well, from its fork to its exec.
    fn taken(path: &Path) -> Result<Hold> {
        until("it is free", Duration::from_secs(10), &[], || take("demo", path).map(Some))
    }

    #[test]
    fn a_name_that_is_held_is_refused_with_its_holder_until_that_has_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("clusters/demo.held");
        let held = take("demo", &path).expect("nobody has it");
        let refused = take("demo", &path).expect_err("it is held").to_string();
        let us = std::process::id();
        assert!(refused.contains(&format!("by process {us} (")), "{refused}");
        assert!(refused.contains(&format!("`kill {us}`")), "{refused}");
        take("other", &folder.path().join("clusters/other.held")).expect("another cluster is nobody's");
        drop(held);
        taken(&path).expect("its holder is gone");
    }

    #[test]
    fn what_a_holder_has_started_does_not_hold_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("demo.held");
        let held = take("demo", &path).expect("nobody has it");
        let mut outlives = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        drop(held);
        let again = taken(&path);
        outlives.kill().and_then(|()| outlives.wait()).expect("sleep ends");
        again.expect("its holder is gone");
    }

    #[test]
    fn a_holder_that_has_not_said_who_it_is_is_refused_all_the_same() {
        assert!(refusal("demo", None).contains("another process"));
    }
}

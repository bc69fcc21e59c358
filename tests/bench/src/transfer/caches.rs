//! The page cache: emptied before each run, in the same way for everyone, and asked afterwards what it holds of a
//! volume's files.
//!
//! Asked by `fincore` of util-linux, file by file (`mincore(2)`): the machine's own counters would count other
//! programs' files. On tmpfs the pages are the file itself and no copy of it, and do not count; so that the source's side
//! is seen too, one run has its source on a disk, see `rounds.rs`.

use std::path::Path;

use anyhow::{Context, Result};
use somersault_test_support::world::command::run;

use super::check;

/// Files in one call: a command line has room for many more.
const FILES_PER_CALL: usize = 1_000;
/// From `linux/magic.h`.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Writes everything to the disks and empties the cache, folders and inodes too.
pub fn drop_all() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("emptying the page cache")
}

/// Bytes of the folder's files that are cached.
pub fn cached_bytes(folder: &Path) -> Result<u64> {
    if !folder.exists() || is_tmpfs(folder)? {
        return Ok(0);
    }
    let files: Vec<_> = check::files(folder)?.into_iter().map(|name| folder.join(name)).collect();
    let mut cached = 0;
    for some in files.chunks(FILES_PER_CALL) {
        let options = ["--bytes", "--noheadings", "--raw", "--output", "RES"].map(AsRef::as_ref);
        let told = run("fincore", options.into_iter().chain(some.iter().map(|file| file.as_os_str())))?;
        for line in told.lines() {
            cached += line.trim().parse::<u64>().with_context(|| format!("fincore says {line:?}"))?;
        }
    }
    Ok(cached)
}

fn is_tmpfs(place: &Path) -> Result<bool> {
    let found = rustix::fs::statfs(place).with_context(|| format!("looking at {}", place.display()))?;
    Ok(u64::try_from(found.f_type)? == TMPFS_MAGIC)
}

//! What the kernel and smartctl say of the disks below the storage roots.
//!
//! Everything but [`smartctl`] reads `/proc` and `/sys` only, which never waits for a disk. Each reader takes the
//! root of its tree, so that a container can look at its host and a test at a fixture.

pub mod btrfs;
pub mod device;
pub mod diskstats;
pub mod ext4;
pub mod mountinfo;
pub mod smartctl;
pub mod state;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Longest file of `/proc` or `/sys` that is read. A mountinfo of 10,000 mounts has about 3 MB.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A file of `/proc` or `/sys`, up to the limit; bytes that are no UTF-8 are replaced.
fn read_bounded(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(file)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

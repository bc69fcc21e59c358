//! `/sys/fs/ext4/<device>`: the errors that a mounted ext4 has recorded in its superblock.

use std::path::Path;
use std::time::{Duration, SystemTime};

use somersault_agent_core::health::FilesystemErrors;

use super::read_bounded;

/// The error counter of the ext4 on this block device; `None` where there is none.
pub fn errors(sys_root: &Path, device: &str) -> Option<FilesystemErrors> {
    let folder = sys_root.join("fs/ext4").join(device);
    let number = |name: &str| read_bounded(&folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let count = number("errors_count")?;
    // Both times are of this host's own clock; a clock that was set in between gives a wrong age, and errors
    // that look old still count as historic.
    let last_age = number("last_error_time").filter(|time| *time > 0).and_then(|time| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(time)).ok()
    });
    Some(FilesystemErrors { count, last_age })
}

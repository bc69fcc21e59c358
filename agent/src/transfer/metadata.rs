//! Owner, permissions and time: what a copy keeps of a file or a folder besides its content.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use somersault_agent_core::transfer::Metadata;

use super::TransferError;
use super::scan::{self, shown};

/// Gives it its owner. Done as soon as the file is there: a filesystem that takes none (an NFS export that squashes root) is
/// found out while the VM still runs.
pub(super) fn own(file: impl AsFd, wanted: Metadata, path: &[u8]) -> Result<(), TransferError> {
    let failed = |error: Errno| {
        let action = "cannot set the owner (agents run as root; NFS exports need no_root_squash) of";
        TransferError::target(action, shown(path), error)
    };
    let now = rustix::fs::fstat(&file).map_err(failed)?;
    if (now.st_uid, now.st_gid) != (wanted.uid, wanted.gid) {
        let owner = (Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)));
        rustix::fs::fchown(&file, owner.0, owner.1).map_err(failed)?;
    }
    Ok(())
}

/// Sets them, and syncs the file. Returns what it has then, which is what was wanted.
pub(super) fn set(file: impl AsFd, wanted: Metadata, path: &[u8]) -> Result<Stat, TransferError> {
    let failed = |error: Errno| TransferError::target("cannot set mode or time of", shown(path), error);
    own(&file, wanted, path)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(wanted.mode)).map_err(failed)?;
    set_time(&file, wanted.mtime_s, wanted.mtime_ns.into()).map_err(failed)?;
    rustix::fs::fsync(&file).map_err(failed)?;
    let now = rustix::fs::fstat(&file).map_err(failed)?;
    if scan::metadata(&now) == wanted { Ok(now) } else { Err(lost(path)) }
}

/// Sets the modification time alone.
pub(super) fn set_time(file: impl AsFd, seconds: i64, nanoseconds: i64) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    };
    rustix::fs::futimens(file, &times)
}

/// What was set is not there.
pub(super) fn lost(path: &[u8]) -> TransferError {
    let lost = io::Error::other("the filesystem did not take them, or somebody else changed them");
    TransferError::target("cannot keep owner, mode, time or size of", shown(path), lost)
}

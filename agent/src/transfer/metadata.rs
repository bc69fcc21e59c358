//! Owner, permissions, attributes and time: what a copy keeps of a file or a folder besides its content.
//!
//! In this order: a new owner takes capabilities away, an ACL is more than a mode, and whatever is set changes times.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;
use somersault_agent_core::transfer::{Attributes, Entry, Kind, Metadata};

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

/// Sets them; who calls syncs. Returns what it has then, which is what was wanted.
pub(super) fn set(
    file: impl AsFd,
    wanted: Metadata,
    attributes: &Attributes,
    path: &[u8],
) -> Result<Stat, TransferError> {
    let failed = |error: Errno| TransferError::target("cannot set mode or time of", shown(path), error);
    own(&file, wanted, path)?;
    set_attributes(&file, attributes, path)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(wanted.mode)).map_err(failed)?;
    set_time(&file, wanted.mtime_s, wanted.mtime_ns.into()).map_err(failed)?;
    let now = rustix::fs::fstat(&file).map_err(failed)?;
    if scan::metadata(&now) == wanted { Ok(now) } else { Err(lost(path)) }
}

/// Sets those that are wanted, and takes away what else a copy would have kept: a new folder inherits ACLs of the one above.
fn set_attributes(file: impl AsFd, wanted: &Attributes, path: &[u8]) -> Result<(), TransferError> {
    let now = scan::attributes_of(&file, path).unwrap_or_default();
    let failed = |name: &[u8], error: Errno| {
        let what = format!("{} of {}", name.escape_ascii(), shown(path));
        let action = match error {
            Errno::PERM => "cannot set (file capabilities need SETFCAP among the agent's own) the attribute",
            _ => "cannot set the attribute",
        };
        TransferError::target(action, what, error)
    };
    for (name, value) in wanted.iter().filter(|(name, value)| now.get(*name) != Some(value)) {
        rustix::fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty())
            .map_err(|error| failed(name, error))?;
    }
    for name in now.keys().filter(|name| !wanted.contains_key(*name)) {
        rustix::fs::fremovexattr(&file, name.as_slice()).map_err(|error| failed(name, error))?;
    }
    Ok(())
}

/// Gives a name that nobody opens (a link, a pipe) its owner, mode and time.
pub(super) fn set_unopened(folder: impl AsFd, name: &[u8], entry: &Entry) -> Result<(), TransferError> {
    let wanted = entry.metadata;
    let failed =
        |error: Errno| TransferError::target("cannot set owner, mode or time of", shown(&entry.path), error);
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
    rustix::fs::chownat(&folder, name, Some(uid), Some(gid), flags).map_err(failed)?;
    if entry.kind != Kind::Symlink {
        // It is a pipe of ours in a folder of ours: there is no link to follow.
        let mode = Mode::from_raw_mode(wanted.mode);
        rustix::fs::chmodat(&folder, name, mode, AtFlags::empty()).map_err(failed)?;
    }
    let times = times(wanted.mtime_s, wanted.mtime_ns.into());
    rustix::fs::utimensat(&folder, name, &times, flags).map_err(failed)?;
    let now = rustix::fs::statat(&folder, name, flags).map_err(failed)?;
    let found = Metadata { mode: wanted.mode, ..scan::metadata(&now) };
    if found == wanted { Ok(()) } else { Err(lost(&entry.path)) }
}

/// Sets the modification time alone.
pub(super) fn set_time(file: impl AsFd, seconds: i64, nanoseconds: i64) -> rustix::io::Result<()> {
    rustix::fs::futimens(file, &times(seconds, nanoseconds))
}

fn times(seconds: i64, nanoseconds: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    }
}

/// What was set is not there.
pub(super) fn lost(path: &[u8]) -> TransferError {
    let lost = io::Error::other("the filesystem did not take them, or somebody else changed them");
    TransferError::target("cannot keep owner, mode, time or size of", shown(path), lost)
}

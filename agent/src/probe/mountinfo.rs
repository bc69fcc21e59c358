//! `/proc/self/mountinfo`: what is mounted where, and whether the kernel still lets it be written.
//!
//! The agent's own mount namespace is the right one: its roots are paths in it, and device numbers and super
//! options are the same in every namespace.

use std::io;
use std::path::{Path, PathBuf};

use somersault_agent_core::health::Access;

use super::read_bounded;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number as the kernel writes it, `major:minor`. Major 0: no block device.
    pub device: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Filesystem type.
    pub fs_type: String,
    /// What was mounted; a path for filesystems on a block device.
    pub source: String,
    /// Whether the filesystem itself can be written. A mount of it may be read-only all the same.
    pub access: Access,
}

/// Every mount of this namespace, in the order of mounting.
pub fn read(proc_root: &Path) -> io::Result<Vec<Mount>> {
    Ok(parse(&read_bounded(&proc_root.join("self/mountinfo"))?))
}

/// Parses mountinfo, proc(5). A line that is none is left out.
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

/// The mount that a path lies in: of the longest mount points above it, the one mounted last.
pub fn containing<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let depth = |mount: &Mount| mount.mount_point.components().count();
    mounts.iter().filter(|mount| path.starts_with(&mount.mount_point)).max_by_key(|mount| depth(mount))
}

fn parse_line(line: &str) -> Option<Mount> {
    // id parent major:minor root mount-point options [optional…] - type source super-options
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ');
    let device = head.nth(2)?.to_owned();
    let mount_point = PathBuf::from(unescape(head.nth(1)?));
    let mut tail = tail.split(' ');
    let fs_type = tail.next()?.to_owned();
    let source = unescape(tail.next()?);
    let access = access(tail.next()?);
    Some(Mount { device, mount_point, fs_type, source, access })
}

fn access(super_options: &str) -> Access {
    let has = |wanted: &str| super_options.split(',').any(|option| option == wanted);
    if has("emergency_ro") {
        Access::EmergencyReadOnly
    } else if has("ro") {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    }
}

/// The kernel writes space, tab, newline, backslash and `#` as three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail
            .get(..3)
            .filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        let value = octal.map(|digits| digits.iter().fold(0_u32, |value, d| value * 8 + u32::from(d - b'0')));
        if let Some(byte) = value.and_then(|value| u8::try_from(value).ok()) {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
40 27 8:17 /sub /srv/with\\040space ro,noatime - ext4 /dev/sdb1 rw,errors=remount-ro
41 27 8:33 / /srv rw - ext4 /dev/sdc1 ro
42 27 8:49 / /srv rw - ext4 /dev/sdd1 rw,emergency_ro
43 27 0:50 / /nfs rw - nfs4 server:/export rw,vers=4.2
garbage
44 27 8:1 /
";

    #[test]
    fn lines_are_read_and_garbage_is_left_out() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 6);
        assert_eq!(mounts[2].mount_point, Path::new("/srv/with space"));
        assert_eq!((mounts[1].device.as_str(), mounts[1].source.as_str()), ("254:0", "/dev/vda"));
    }

    #[test]
    fn only_the_filesystem_counts_not_this_mount_of_it() {
        let access: Vec<_> = parse(TEXT).iter().map(|mount| mount.access).collect();
        assert_eq!(access[2], Access::ReadWrite, "a read-only bind of a writable filesystem");
        assert_eq!(access[3..5], [Access::ReadOnly, Access::EmergencyReadOnly]);
    }

    #[test]
    fn a_path_lies_in_the_deepest_and_latest_mount() {
        let mounts = parse(TEXT);
        let device = |path: &str| containing(&mounts, Path::new(path)).expect("a mount").device.as_str();
        assert_eq!(device("/srv/with space/volumes"), "8:17");
        assert_eq!(device("/srv/volumes"), "8:49", "mounted over 8:33");
        assert_eq!(device("/srvx"), "254:0");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[ -~\\n\\\\]{0,300}") {
            let _survives = parse(&text);
        }
    }
}

//! Storage roots, and how anything below them is opened: beneath a folder's descriptor, never through a link.
//!
//! What lies in a volume was written by a guest, a pod or another node. A symbolic link in it must lead nowhere,
//! not even while it is being swapped in: `openat2` checks that in the kernel, at each component.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::TransferError;

/// How the name of everything begins that a copy keeps below a storage root beside the volumes.
pub const PARTIAL_PREFIX: &str = ".somersault-";

/// The storage roots that this agent serves.
#[derive(Clone, Debug)]
pub(super) struct Roots(Vec<PathBuf>);

/// A volume's place: its root, open, and its name there.
#[derive(Debug)]
pub(super) struct Place {
    /// The root.
    pub(super) root: OwnedFd,
    /// The root's path, for messages.
    pub(super) root_path: PathBuf,
    /// The volume's name below it.
    pub(super) name: std::ffi::OsString,
}

impl Place {
    /// The volume's path, for messages.
    pub(super) fn display(&self) -> String {
        self.root_path.join(&self.name).display().to_string()
    }
}

impl Roots {
    pub(super) fn new(roots: Vec<PathBuf>) -> Self {
        Self(roots)
    }

    pub(super) fn paths(&self) -> &[PathBuf] {
        &self.0
    }

    /// Splits an absolute path into a root and a name directly below it. Opens the root only.
    pub(super) fn place(&self, path: &str) -> Result<Place, TransferError> {
        let refused = || TransferError::PathNotAllowed { path: path.to_owned() };
        let (parent, name) = path.rsplit_once('/').ok_or_else(refused)?;
        let hidden = name.starts_with(PARTIAL_PREFIX);
        if name.is_empty() || name == "." || name == ".." || hidden || name.contains('\0') {
            return Err(refused());
        }
        // As text: a path with `..`, `.` or doubled slashes equals no root.
        let same = |root: &&PathBuf| root.as_os_str().as_bytes() == parent.as_bytes();
        let root_path = self.0.iter().find(same).ok_or_else(refused)?.clone();
        let root = open_root(&root_path).map_err(|error| {
            TransferError::OrderRefused(format!(
                "cannot open the storage root {}: {error}",
                root_path.display()
            ))
        })?;
        Ok(Place { root, root_path, name: OsStr::new(name).to_owned() })
    }
}

/// Opens a root. Its path is the administrator's word, so links in it are followed.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens something below a folder: no link is followed, nothing above or on another filesystem is reached.
pub(super) fn open_beneath(
    folder: impl AsFd,
    path: impl rustix::path::Arg,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    open_with(folder, path, flags, mode, resolve)
}

/// Opens a volume's folder below its root; it may be a mount point of its own.
pub(super) fn open_volume(root: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    open_with(root, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), resolve)
}

fn open_with(
    folder: impl AsFd,
    path: impl rustix::path::Arg,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    // EAGAIN says that something was renamed meanwhile and the kernel could not tell whether the path stayed
    // beneath (openat2(2)); a volume in which that happens more often than this is not at rest.
    const ATTEMPTS: usize = 16;
    path.into_with_c_str(|path| {
        let mut result = Err(Errno::AGAIN);
        for _ in 0..ATTEMPTS {
            result =
                rustix::fs::openat2(&folder, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode, resolve);
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_directly_below_a_root_are_served() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().to_str().expect("plain").to_owned();
        let roots = Roots::new(vec![dir.path().to_owned()]);
        assert_eq!(roots.place(&format!("{root}/pvc-1")).expect("served").name, "pvc-1");
        for path in [
            format!("{root}/"),
            root.clone(),
            format!("{root}/a/b"),
            format!("{root}//a"),
            format!("{root}/.."),
            format!("{root}/x/../a"),
            format!("{root}/../{}/a", dir.path().file_name().expect("named").display()),
            format!("{root}/.somersault-x.partial"),
            "/etc/passwd".into(),
            "passwd".into(),
            String::new(),
        ] {
            assert_eq!(roots.place(&path).expect_err(&path).reason(), "PathNotAllowed", "{path}");
        }
    }

    #[test]
    fn no_link_is_followed() {
        let dir = tempfile::tempdir().expect("a folder");
        let outside = tempfile::tempdir().expect("a folder");
        std::fs::write(outside.path().join("secret"), "s").expect("written");
        std::os::unix::fs::symlink(outside.path(), dir.path().join("way")).expect("linked");
        std::os::unix::fs::symlink("plain", dir.path().join("inside")).expect("linked");
        std::fs::write(dir.path().join("plain"), "p").expect("written");
        let root = open_root(dir.path()).expect("open");
        let open = |path: &str| open_beneath(&root, path, OFlags::RDONLY, Mode::empty());
        assert!(open("plain").is_ok());
        for path in ["way", "way/secret", "inside", "../x", "/etc/passwd", "./../x"] {
            assert!(open(path).is_err(), "{path}");
        }
    }
}

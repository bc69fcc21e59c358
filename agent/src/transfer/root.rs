//! Storage roots, and how anything below them is opened: beneath a folder's descriptor, never through a link.
//!
//! What lies in a volume was written by a guest, a pod or another node. A symbolic link in it must lead nowhere,
//! not even while it is being swapped in: `openat2` checks that in the kernel, at each component.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::TransferError;

/// How the name of everything begins that a copy keeps below a storage root beside the volumes.
pub const PARTIAL_PREFIX: &str = ".somersault-";

/// The storage roots that this agent serves, each with how many folders deep its volumes lie.
#[derive(Clone, Debug)]
pub(super) struct Roots(Vec<(PathBuf, u8)>);

/// A volume's place: the folder that it lies in, open, and its name there.
#[derive(Debug)]
pub(super) struct Place {
    /// The storage root, or where volumes lie deeper the folder between.
    pub(super) root: OwnedFd,
    /// Its path, for messages.
    pub(super) root_path: PathBuf,
    /// The volume's name there.
    pub(super) name: OsString,
}

impl Place {
    /// The volume's path, for messages.
    pub(super) fn display(&self) -> String {
        self.root_path.join(&self.name).display().to_string()
    }
}

impl Roots {
    pub(super) fn new(roots: Vec<(PathBuf, u8)>) -> Self {
        Self(roots)
    }

    /// The roots that copies are put into: those whose volumes lie directly below.
    pub(super) fn of_copies(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().filter(|(_, depth)| *depth == 1).map(|(path, _)| path.as_path())
    }

    /// The place of an absolute path that is as deep below a root as its volumes are. Opens the folder around it only.
    pub(super) fn place(&self, path: &str) -> Result<Place, TransferError> {
        let refused = || TransferError::PathNotAllowed { path: path.to_owned() };
        let (root_path, folders) = self.split(path).ok_or_else(refused)?;
        let cannot_open = |what: &Path, error: io::Error| {
            TransferError::OrderRefused(format!("cannot open {}: {error}", what.display()))
        };
        let mut place = Place {
            root: open_root(root_path).map_err(|error| cannot_open(root_path, error))?,
            root_path: root_path.clone(),
            name: OsString::new(),
        };
        for name in folders {
            if !place.name.is_empty() {
                place.root_path.push(&place.name);
                place.root = open_volume(&place.root, &place.name).map_err(|error| match error {
                    Errno::NOENT => TransferError::SourceMissing(format!("{path}: {error}")),
                    error => cannot_open(&place.root_path, error.into()),
                })?;
            }
            name.clone_into(&mut place.name);
        }
        Ok(place)
    }

    /// The same for the place of a copy.
    pub(super) fn place_of_copy(&self, path: &str) -> Result<Place, TransferError> {
        let place = self.place(path)?;
        if self.of_copies().any(|root| root == place.root_path) {
            return Ok(place);
        }
        Err(TransferError::PathNotAllowed { path: path.to_owned() })
    }

    /// The root of a path, and the names from there on.
    fn split<'a>(&self, path: &'a str) -> Option<(&PathBuf, Vec<&'a OsStr>)> {
        // As text: a path with `..`, `.` or doubled slashes is below no root.
        let below = |root: &Path| path.strip_prefix(root.to_str()?)?.strip_prefix('/');
        let hostile = |name: &str| {
            matches!(name, "" | "." | "..") || name.starts_with(PARTIAL_PREFIX) || name.contains('\0')
        };
        self.0.iter().find_map(|(root, depth)| {
            let names: Vec<_> = below(root)?.split('/').collect();
            let fits = names.len() == usize::from(*depth) && !names.iter().any(|name| hostile(name));
            fits.then(|| (root, names.into_iter().map(OsStr::new).collect()))
        })
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
        let roots = Roots::new(vec![(dir.path().to_owned(), 1)]);
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
    fn where_volumes_lie_deeper_they_are_served_from_there_and_no_copy_is_put_there() {
        let (dir, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        std::fs::create_dir_all(dir.path().join("claim/pvc-1")).expect("made");
        std::os::unix::fs::symlink(outside.path(), dir.path().join("way")).expect("linked");
        let root = dir.path().to_str().expect("plain").to_owned();
        let roots = Roots::new(vec![(dir.path().to_owned(), 2)]);
        let place = roots.place(&format!("{root}/claim/pvc-1")).expect("served");
        assert_eq!((place.display(), place.name), (format!("{root}/claim/pvc-1"), "pvc-1".into()));
        for (path, reason) in [
            ("claim", "PathNotAllowed"),
            ("claim/", "PathNotAllowed"),
            ("claim/pvc-1/x", "PathNotAllowed"),
            ("claim//pvc-1", "PathNotAllowed"),
            ("../claim/pvc-1", "PathNotAllowed"),
            ("claim/..", "PathNotAllowed"),
            (".somersault-x.partial/data", "PathNotAllowed"),
            ("way/pvc-1", "OrderRefused"),
            ("nobody/pvc-1", "SourceMissing"),
        ] {
            let error = roots.place(&format!("{root}/{path}")).expect_err(path);
            assert_eq!(error.reason(), reason, "{path}: {error}");
        }
        let refused = roots.place_of_copy(&format!("{root}/claim/pvc-2")).expect_err("no copy");
        assert_eq!(refused.reason(), "PathNotAllowed");
        assert_eq!(roots.of_copies().count(), 0);
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

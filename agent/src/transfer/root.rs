//! Where volumes lie, and how anything there is opened: beneath a folder's descriptor, never through a link.
//!
//! ```text
//!   ROOT/<name>                                       below a storage root, or a folder deeper
//!   PODS/<uid>/volumes/kubernetes.io~csi/<name>/mount    mounted for a pod by a CSI driver
//!   PODS/<uid>/volumes/<plugin>/<name>                   mounted for a pod otherwise
//!   PODS/<uid>/volumes/kubernetes.io~empty-dir/somersault-device    where a pod of ours hands over a block device
//! ```
//!
//! What lies in a volume was written by a guest, a pod or another node. A symbolic link in it must lead nowhere,
//! not even while it is being swapped in: `openat2` checks that in the kernel, at each component.
//!
//! A mounted volume counts only while it is mounted. When its pod has ended, the same path is a plain folder on the
//! node's own disk: as a source it would be blank, and what is copied into it would be lost.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::TransferError;
use super::scan::Top;

/// How the name of everything begins that a copy keeps below a storage root beside the volumes.
pub const PARTIAL_PREFIX: &str = ".somersault-";

/// How the name of an unfinished copy's folder ends.
pub(super) const PARTIAL_SUFFIX: &str = ".partial";

/// The plugin of the kubelet that mounts volumes of CSI drivers, and the folder that only it mounts them in.
const CSI: &str = "kubernetes.io~csi";
const CSI_MOUNT: &str = "mount";

/// How the names of the kubelet's plugins begin.
const PLUGIN_PREFIX: &str = "kubernetes.io~";

/// What the kubelet itself fills, and mounts for a pod where it is not on the disk: none of it is a persistent volume,
/// and some of it is secret.
const NOT_PERSISTENT: [&str; 5] = ["configmap", "downward-api", "empty-dir", "projected", "secret"];

/// The folder of a pod that holds a block device: empty at first, on the node's own disk, and gone with the pod.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
const DEVICE_FOLDER: &str = "somersault-device";

/// Where this agent serves volumes.
#[derive(Clone, Debug)]
pub(super) struct Roots {
    /// The storage roots, each with how many folders deep its volumes lie.
    storage: Vec<(PathBuf, u8)>,
    /// Where the kubelet mounts the volumes of pods.
    pods: Option<PathBuf>,
}

/// A volume's place: a folder, open, and how the volume lies there.
#[derive(Debug)]
pub(super) struct Place {
    /// The storage root, or where volumes lie deeper the folder between; the volume itself where it is mounted; where a block
    /// device is handed over. Copies keep their partial folders there.
    pub(super) root: OwnedFd,
    /// Its path, for messages.
    pub(super) root_path: PathBuf,
    /// Where the volume is from there.
    pub(super) seat: Seat,
}

/// Where a volume is from the folder of its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// A folder of this name in it.
    Named(OsString),
    /// It is the folder: the root of a mount, onto which nothing can be renamed.
    Mounted,
    /// It is a block device, which the holder hands over there.
    Device,
}

impl Place {
    /// The volume's path, for messages.
    pub(super) fn display(&self) -> String {
        match &self.seat {
            Seat::Named(name) => self.root_path.join(name).display().to_string(),
            Seat::Mounted | Seat::Device => self.root_path.display().to_string(),
        }
    }

    /// Opens the volume's folder; of a block device the one where it is handed over.
    pub(super) fn open(&self) -> rustix::io::Result<OwnedFd> {
        match &self.seat {
            Seat::Named(name) => open_volume(&self.root, name),
            Seat::Mounted | Seat::Device => open_volume(&self.root, OsStr::new(".")),
        }
    }

    /// What lies at the top of the volume's folder.
    pub(super) fn top(&self) -> Top {
        if self.is_mounted() { Top::Mount } else { Top::Volume }
    }

    /// Whether the volume is the root of a mount.
    pub(super) fn is_mounted(&self) -> bool {
        self.seat == Seat::Mounted
    }

    /// Whether the volume is a block device.
    pub(super) fn is_device(&self) -> bool {
        self.seat == Seat::Device
    }
}

impl Roots {
    pub(super) fn new(storage: Vec<(PathBuf, u8)>, pods: Option<PathBuf>) -> Self {
        Self { storage, pods }
    }

    /// The roots that copies are put into: those whose volumes lie directly below.
    pub(super) fn of_copies(&self) -> impl Iterator<Item = &Path> {
        self.storage.iter().filter(|(_, depth)| *depth == 1).map(|(path, _)| path.as_path())
    }

    /// The place of a volume by its absolute path: as deep below a root as its volumes are, or where the kubelet has
    /// mounted it.
    pub(super) fn place(&self, path: &str) -> Result<Place, TransferError> {
        match self.split_mounted(path) {
            Some((pods, names)) => pods_place(pods, &names, path),
            None => self.place_below_root(path),
        }
    }

    /// The same for the place of a copy.
    pub(super) fn place_of_copy(&self, path: &str) -> Result<Place, TransferError> {
        let place = self.place(path)?;
        if place.is_mounted() || place.is_device() || self.of_copies().any(|root| root == place.root_path) {
            return Ok(place);
        }
        Err(TransferError::PathNotAllowed { path: path.to_owned() })
    }

    /// The place of a volume that is below a storage root. Opens the folder around it only.
    pub(super) fn place_below_root(&self, path: &str) -> Result<Place, TransferError> {
        let refused = || TransferError::PathNotAllowed { path: path.to_owned() };
        let (root_path, folders) = self.split(path).ok_or_else(refused)?;
        let (name, folders) = folders.split_last().ok_or_else(refused)?;
        let mut root = open_root(root_path).map_err(|error| cannot_open(root_path, &error))?;
        let mut root_path = root_path.clone();
        for folder in folders {
            root_path.push(folder);
            root = open_volume(&root, folder).map_err(|error| match error {
                Errno::NOENT => TransferError::SourceMissing(format!("{path}: {error}")),
                error => cannot_open(&root_path, &error.into()),
            })?;
        }
        Ok(Place { root, root_path, seat: Seat::Named((*name).to_owned()) })
    }

    /// The folder with the pods, and the names from there on, of a path where the kubelet mounts volumes.
    fn split_mounted<'a>(&self, path: &'a str) -> Option<(&Path, Vec<&'a str>)> {
        let pods = self.pods.as_deref()?;
        let names: Vec<_> = below(pods, path)?.split('/').collect();
        plugin_of(&names).map(|_| (pods, names))
    }

    /// The root of a path, and the names from there on.
    fn split<'a>(&self, path: &'a str) -> Option<(&PathBuf, Vec<&'a OsStr>)> {
        self.storage.iter().find_map(|(root, depth)| {
            let names: Vec<_> = below(root, path)?.split('/').collect();
            let fits = names.len() == usize::from(*depth) && !names.iter().any(|name| is_hostile(name));
            fits.then(|| (root, names.into_iter().map(OsStr::new).collect()))
        })
    }
}

/// What of a path is below a folder. As text: a path with `..`, `.` or doubled slashes is below none.
fn below<'a>(folder: &Path, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(folder.to_str()?)?.strip_prefix('/')
}

/// What of a path stays as long as a transfer's source does. A mounted volume has another path in each pod, and by another of its
/// `PersistentVolume`s another name, and each node has its pods where it wants: only the plugin remains. That a transfer has one
/// source, its name sees to.
pub(super) fn lasting(path: &str) -> &str {
    let names: Vec<_> = path.split('/').collect();
    // From the pod's uid on: the longer form is a CSI driver's.
    let plugin = |length: usize| plugin_of(&names[names.len().checked_sub(length)?..]);
    plugin(5).or_else(|| plugin(4)).unwrap_or(path)
}

/// The kubelet's plugin, of the names from a pod's uid on to a persistent volume of the pod.
fn plugin_of<'a>(names: &[&'a str]) -> Option<&'a str> {
    let (uid, plugin, name) = match *names {
        [uid, "volumes", CSI, name, CSI_MOUNT] => (uid, CSI, name),
        [uid, "volumes", EMPTY_DIR, DEVICE_FOLDER] => return is_uid(uid).then_some(EMPTY_DIR),
        [uid, "volumes", plugin, name] if plugin != CSI => (uid, plugin, name),
        _ => return None,
    };
    let kind = plugin.strip_prefix(PLUGIN_PREFIX).filter(|kind| !is_hostile(kind))?;
    (is_uid(uid) && !is_hostile(name) && !NOT_PERSISTENT.contains(&kind)).then_some(plugin)
}

/// Whether it can be a pod's.
fn is_uid(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'))
}

/// A name that no volume has: one that leads elsewhere, or is ours.
fn is_hostile(name: &str) -> bool {
    matches!(name, "" | "." | "..") || name.starts_with(PARTIAL_PREFIX) || name.contains(['/', '\0'])
}

fn cannot_open(what: &Path, error: &io::Error) -> TransferError {
    TransferError::OrderRefused(format!("cannot open {}: {error}", what.display()))
}

/// Opens what the kubelet has made for a pod; mounts may be crossed on the way down.
fn pods_place(pods: &Path, names: &[&str], path: &str) -> Result<Place, TransferError> {
    let not_mounted = |why| TransferError::NotMounted { path: path.to_owned(), why };
    let (mut root, mut root_path) =
        (open_root(pods).map_err(|error| cannot_open(pods, &error))?, pods.to_owned());
    for name in names {
        root_path.push(name);
        root = open_volume(&root, OsStr::new(name)).map_err(|error| match error {
            Errno::NOENT => not_mounted("the folder is missing"),
            error => cannot_open(&root_path, &error.into()),
        })?;
    }
    if names.ends_with(&[EMPTY_DIR, DEVICE_FOLDER]) {
        return Ok(Place { root, root_path, seat: Seat::Device });
    }
    // A kernel that cannot tell (before Linux 5.8) sets neither the attribute nor its bit in the mask.
    let stat = rustix::fs::statx(&root, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())
        .map_err(|error| cannot_open(&root_path, &error.into()))?;
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(not_mounted("the folder is a plain one of this node"));
    }
    Ok(Place { root, root_path, seat: Seat::Mounted })
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
        let roots = Roots::new(vec![(dir.path().to_owned(), 1)], None);
        assert_eq!(roots.place(&format!("{root}/pvc-1")).expect("served").seat, Seat::Named("pvc-1".into()));
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
        let roots = Roots::new(vec![(dir.path().to_owned(), 2)], None);
        let place = roots.place(&format!("{root}/claim/pvc-1")).expect("served");
        let seat = Seat::Named("pvc-1".into());
        assert_eq!((place.display(), place.seat), (format!("{root}/claim/pvc-1"), seat));
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
    fn below_the_pods_only_what_the_kubelet_mounts_is_a_place() {
        let roots = Roots::new(vec![("/srv".into(), 1)], Some("/pods".into()));
        let parsed = |path: &str| roots.split_mounted(&format!("/pods/{path}")).is_some();
        for path in [
            "0a-9f/volumes/kubernetes.io~csi/pvc-1/mount",
            "0a-9f/volumes/kubernetes.io~nfs/pvc-1",
            "0a-9f/volumes/kubernetes.io~local-volume/mount",
            "0a-9f/volumes/kubernetes.io~empty-dir/somersault-device",
        ] {
            assert!(parsed(path), "{path}");
        }
        for path in [
            "0a-9f/volumes/kubernetes.io~csi/pvc-1",
            "0a-9f/volumes/kubernetes.io~csi/pvc-1/data",
            "0a-9f/volumes/kubernetes.io~csi/pvc-1/mount/",
            "0a-9f/volumes/kubernetes.io~csi/pvc-1/mount/x",
            "0a-9f/volumes/kubernetes.io~csi/pvc-1/./mount",
            "0a-9f/volumes/kubernetes.io~csi//mount",
            "0a-9f/volumes/kubernetes.io~csi/../mount",
            "0a-9f/volumes/kubernetes.io~nfs/pvc-1/mount",
            "0a-9f/volumes/kubernetes.io~nfs/.",
            "0a-9f/volumes/kubernetes.io~nfs/..",
            "0a-9f/volumes/kubernetes.io~nfs/",
            "0a-9f/volumes/kubernetes.io~nfs/a\0b",
            "0a-9f/volumes/kubernetes.io~nfs/.somersault-t.partial",
            "0a-9f/volumes/kubernetes.io~nfs",
            "0a-9f/volumes/kubernetes.io~/pvc-1",
            "0a-9f/volumes/kubernetes.io/pvc-1",
            "0a-9f/volumes/vendor~driver/pvc-1",
            "0a-9f/volumes/kubernetes.io~secret/token",
            "0a-9f/volumes/kubernetes.io~projected/kube-api-access",
            "0a-9f/volumes/kubernetes.io~empty-dir/memory",
            "0a-9f/volume-subpaths/kubernetes.io~nfs/pvc-1",
            "0a-9f/plugins/kubernetes.io~nfs/pvc-1",
            "0A-9F/volumes/kubernetes.io~nfs/pvc-1",
            "pod_x/volumes/kubernetes.io~nfs/pvc-1",
            "../volumes/kubernetes.io~nfs/pvc-1",
            "/volumes/kubernetes.io~nfs/pvc-1",
            "./0a-9f/volumes/kubernetes.io~nfs/pvc-1",
            "0a-9f//volumes/kubernetes.io~nfs/pvc-1",
            "",
        ] {
            assert!(!parsed(path), "{path}");
            let error = roots.place(&format!("/pods/{path}")).expect_err(path);
            assert_eq!(error.reason(), "PathNotAllowed", "{path}");
        }
        let path = "/pods/0a-9f/volumes/kubernetes.io~nfs/pvc-1";
        assert!(Roots::new(Vec::new(), None).split_mounted(path).is_none(), "without --pods there are none");
        assert!(roots.split_mounted(&format!("/x{path}")).is_none());
    }

    #[test]
    fn a_mounted_volume_is_known_again_in_another_pod_and_by_another_name() {
        let path =
            |uid: &str, name: &str| format!("/var/volumes/{uid}/volumes/kubernetes.io~csi/{name}/mount");
        assert_eq!(lasting(&path("0a", "pvc-1")), "kubernetes.io~csi");
        assert_eq!(lasting(&path("0a", "pvc-1")), lasting(&path("0b", "smst-1-source")));
        assert_ne!(lasting(&path("0a", "pvc-1")), lasting("/var/volumes/0a/volumes/kubernetes.io~nfs/n"));
        assert_eq!(lasting("/srv/volumes/pvc-1"), "/srv/volumes/pvc-1");
    }

    #[test]
    fn a_folder_that_is_no_mount_is_refused_and_so_is_a_link_on_the_way() {
        let (dir, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let below = "0a/volumes/kubernetes.io~nfs";
        std::fs::create_dir_all(dir.path().join(below).join("pvc-1")).expect("made");
        std::fs::create_dir_all(outside.path().join("volumes/kubernetes.io~nfs/pvc-1")).expect("made");
        std::os::unix::fs::symlink(outside.path(), dir.path().join(below).join("way")).expect("linked");
        std::os::unix::fs::symlink(outside.path(), dir.path().join("0b")).expect("linked");
        let roots = Roots::new(Vec::new(), Some(dir.path().to_owned()));
        for (path, words) in [
            ("0a/volumes/kubernetes.io~nfs/pvc-1", "plain"),
            ("0a/volumes/kubernetes.io~nfs/pvc-2", "missing"),
            ("0c/volumes/kubernetes.io~nfs/pvc-1", "missing"),
            ("0a/volumes/kubernetes.io~nfs/way", "cannot open"),
            ("0b/volumes/kubernetes.io~nfs/pvc-1", "cannot open"),
        ] {
            let error = roots.place(&dir.path().join(path).display().to_string()).expect_err(path);
            assert_eq!(error.reason(), "OrderRefused", "{path}: {error}");
            assert!(error.message().contains(words), "{path}: {error}");
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

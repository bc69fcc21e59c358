//! A mount whose server never answers: whoever looks into it waits for ever, as with NFS and a dead server.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The mount; its end releases everybody who waits in it.
pub struct DeadMount {
    path: PathBuf,
    server: Option<File>,
}

impl DeadMount {
    /// A FUSE filesystem that nobody serves. `None`, with a sentence, where it cannot be mounted.
    pub fn new(path: &Path) -> Option<Self> {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let mounted = opened.map_err(|error| error.to_string()).and_then(|server| {
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("dead"), path, Some("fuse"), flags, Some(options.as_str()))
                .map_err(|error| error.to_string())?;
            Ok(Self { path: path.to_owned(), server: Some(server) })
        });
        mounted.map_err(|error| eprintln!("skipped: this test needs root and /dev/fuse; {error}")).ok()
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        let _gone = umount2(&self.path, MntFlags::MNT_DETACH);
        // Without a server the kernel fails whatever still waits.
        drop(self.server.take());
    }
}

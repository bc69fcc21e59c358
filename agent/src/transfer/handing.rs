//! How an agent gets a block device that only a pod may open.
//!
//! A container can open no device but those that its runtime was told of, and an agent is told of none: it would have to be
//! privileged. So the pod that has the volume, the holder, opens it, and hands it over by a socket in a folder that both see:
//!
//! ```text
//!   holder: open, listen ◄──connect── agent, where the kubelet keeps the folders of pods
//!           one byte and the device, open twice: through the cache, and around it ──►
//! ```
//!
//! What arrives is checked: it must be a block device, and the same one twice. A descriptor counts after the holder has ended
//! too, so nobody keeps one for longer than a request or a copy.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// The socket's name in the folder.
pub const SOCKET: &str = "hand";

/// How long a holder that has just started may take until it listens, and either side until it has said its part.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks for the socket.
const LOOK: Duration = Duration::from_millis(50);
/// The device, open twice.
const DESCRIPTORS: usize = 2;

/// A block device, open.
#[derive(Debug)]
pub(super) struct Handed {
    /// Through the cache; for writing too, unless the holder may only read it.
    pub(super) cached: OwnedFd,
    /// With `O_DIRECT`, where the device knows it.
    pub(super) direct: Option<OwnedFd>,
}

/// As the process of a pod that has a block device: hands it to whoever connects, until told to stop.
pub async fn hold(device: &Path, folder: &Path, stop: CancellationToken) -> io::Result<()> {
    let socket = folder.join(SOCKET);
    // Of the container's life before this one.
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let handed = open(device)?;
    let listener = UnixListener::bind(&socket)?;
    tracing::info!(device = %device.display(), socket = %socket.display(), "holding");
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted?.0.into_std()?,
        };
        // A few bytes into an empty socket: it cannot block for longer than its timeout.
        if let Err(error) = give(&stream, &handed) {
            tracing::warn!(%error, "could not hand over the device");
        }
    }
}

fn open(device: &Path) -> io::Result<Handed> {
    let open = |flags| {
        let flags = OFlags::CLOEXEC | flags;
        match rustix::fs::open(device, OFlags::RDWR | flags, Mode::empty()) {
            // The kubelet gives it read-only.
            Err(Errno::PERM | Errno::ACCESS | Errno::ROFS) => {
                rustix::fs::open(device, OFlags::RDONLY | flags, Mode::empty())
            }
            result => result,
        }
    };
    let cached = open(OFlags::empty())?;
    check(cached.as_fd())?;
    let direct = match open(OFlags::DIRECT) {
        Ok(direct) => Some(direct),
        Err(Errno::INVAL) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Handed { cached, direct })
}

/// Fails for what is no block device; returns which one it is.
fn check(file: BorrowedFd<'_>) -> io::Result<u64> {
    let stat = rustix::fs::fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        return Ok(stat.st_rdev);
    }
    Err(io::Error::other("it is no block device"))
}

fn give(stream: &UnixStream, handed: &Handed) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let descriptors: Vec<_> =
        std::iter::once(&handed.cached).chain(&handed.direct).map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    with.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(stream, &[IoSlice::new(&[1])], &mut with, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Gets the device whose holder listens in this folder.
pub(super) fn take(folder: BorrowedFd<'_>) -> io::Result<Handed> {
    let deadline = Instant::now() + PATIENCE;
    let stream = loop {
        match connect(folder) {
            Ok(stream) => break stream,
            Err(error) if is_early(&error) && Instant::now() < deadline => std::thread::sleep(LOOK),
            Err(error) => return Err(error),
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut with, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = with.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let cached = descriptors.next().ok_or_else(|| io::Error::other("its holder handed over nothing"))?;
    let direct = descriptors.next();
    let number = check(cached.as_fd())?;
    if let Some(direct) = &direct
        && check(direct.as_fd())? != number
    {
        return Err(io::Error::other("its holder handed over two devices"));
    }
    Ok(Handed { cached, direct })
}

/// The path of a socket may have 108 bytes, and one below the folders of pods has more: it is named from the open folder.
fn connect(folder: BorrowedFd<'_>) -> io::Result<UnixStream> {
    let stat = rustix::fs::statat(folder, SOCKET, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(io::Error::other("what is there is no socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

/// Whether the holder does not listen yet.
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

//! Reading and writing chunks without leaving a trace in the page cache, and without a fresh buffer each time.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Advice, FallocateFlags};
use rustix::io::{Errno, ReadWriteFlags};
use somersault_agent_core::transfer::CHUNK_BYTES;

/// A chunk's length as a buffer's.
pub(super) const CHUNK: usize = 1 << 20;
const _: () = assert!(CHUNK as u64 == CHUNK_BYTES);

/// Direct IO wants memory aligned to the device's blocks, which are 4 KiB at most.
const ALIGN: usize = 4096;

/// Unused buffers that are kept: as many as one copy has chunks in flight.
const POOL_BUFFERS: usize = 32;

/// Since Linux 6.14: pages that this call brings into the cache leave it again; others stay.
const RWF_DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Buffers of one chunk each. A fresh one per chunk costs more than reading the chunk: the allocator maps
/// and the kernel clears its pages every time.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    /// A buffer of one chunk with unspecified content.
    pub(super) fn take(&self) -> Buffer {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = kept.unwrap_or_else(|| vec![0; CHUNK + ALIGN]);
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Buffer { pool: self.clone(), memory, start, len: CHUNK }
    }
}

/// A buffer that returns to its pool.
#[derive(Debug)]
pub(super) struct Buffer {
    pool: Pool,
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Room for one chunk.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + CHUNK]
    }

    /// Only so much of it is content.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = len.min(CHUNK);
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < POOL_BUFFERS {
            kept.push(std::mem::take(&mut self.memory));
        }
    }
}

/// Places of a file at which it is asked whether they are in the cache.
const CACHE_SAMPLES: u64 = 32;
/// So many of them may be, and the file still counts as one that nobody reads: another reader of ours may have begun.
const CACHED_MAX: usize = 4;
/// Chunks between two looks behind.
const CHUNKS_PER_DROP: u64 = 16;
/// How far behind: what the kernel reads ahead for one reader, another one may have read and left already.
const DROP_BEHIND: u64 = 32 << 20;

/// A file that is read chunk by chunk.
///
/// Several of them may read one file side by side, each with the kernel reading ahead of it: into what another one has read and
/// dropped already, which then stays. Where the file was not in the cache before, that is dropped too.
#[derive(Debug)]
pub(super) struct ChunkReader {
    file: OwnedFd,
    pool: Pool,
    /// Next to nothing of the file was in the cache when it was opened.
    cold: bool,
    /// Cleared when the kernel or the filesystem does not know [`RWF_DONTCACHE`].
    dont_cache: AtomicBool,
    /// Opened with `O_DIRECT`: the cache is not touched at all.
    direct: bool,
}

impl ChunkReader {
    pub(super) fn new(file: OwnedFd, pool: Pool, direct: bool) -> Self {
        let cold = !direct && is_cold(&file);
        Self { file, pool, cold, dont_cache: AtomicBool::new(!direct), direct }
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Reads `len` bytes, at most a chunk; fails with `UnexpectedEof` where the file is shorter.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Buffer> {
        let mut buffer = self.pool.take();
        // Direct IO reads whole blocks; what lies behind the file's end is not delivered.
        let want = if self.direct { len.next_multiple_of(ALIGN).min(CHUNK) } else { len };
        let mut done = 0;
        while done < len {
            let room = &mut buffer.room()[done..want];
            match self.read_some(room, offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !self.direct && !self.dont_cache.load(Ordering::Relaxed) {
            drop_cache(&self.file, offset, len as u64);
        } else if self.cold && (offset / CHUNK_BYTES).is_multiple_of(CHUNKS_PER_DROP) {
            let behind = offset.min(DROP_BEHIND);
            if behind > 0 {
                drop_cache(&self.file, offset - behind, behind);
            }
        }
        buffer.truncate(len);
        Ok(buffer)
    }

    fn read_some(&self, room: &mut [u8], offset: u64) -> rustix::io::Result<usize> {
        if self.dont_cache.load(Ordering::Relaxed) {
            match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(room)], offset, RWF_DONTCACHE) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                    self.dont_cache.store(false, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        rustix::io::pread(&self.file, room, offset)
    }
}

impl Drop for ChunkReader {
    fn drop(&mut self) {
        if self.cold {
            let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
        }
    }
}

/// Whether a file that is large enough to matter is in the cache nowhere but in a few places. Asking reads nothing: what would
/// have to be waited for is refused.
fn is_cold(file: &OwnedFd) -> bool {
    let Ok(size) = rustix::fs::fstat(file).map(|stat| u64::try_from(stat.st_size).unwrap_or_default()) else {
        return false;
    };
    if size < CACHE_SAMPLES * CHUNK_BYTES {
        return false;
    }
    let is_cached = |place: &u64| {
        let (at, mut byte) = (place * (size / CACHE_SAMPLES), [0]);
        rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT)
            != Err(Errno::AGAIN)
    };
    (0..CACHE_SAMPLES).filter(is_cached).count() <= CACHED_MAX
}

/// Starts writing a range out, and drops what of it is clean: on Linux both are what this advice does
/// (`generic_fadvise` in mm/fadvise.c). Advice may fail without harm.
pub(super) fn drop_cache(file: impl AsFd, offset: u64, len: u64) {
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), Advice::DontNeed);
}

/// When what was written leaves the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaves {
    /// It is written out at once, and leaves the cache when it is on the disk.
    AtOnce,
    /// Many small files are synced together soon, which costs a disk less than one after the other; who does that drops it.
    WhenSynced,
}

/// Writes a chunk's data and leaves its zeroes holes. `over` says that the chunk may hold something else now.
pub(super) fn write_chunk(
    file: impl AsFd,
    offset: u64,
    data: &[u8],
    over: bool,
    leaves: Leaves,
) -> io::Result<()> {
    let mut cached = Cached::No;
    for (start, run, zero) in runs(data) {
        let at = offset + start as u64;
        if !zero {
            cached = write_all(&file, at, run, leaves)?;
        } else if over {
            punch(&file, at, run.len() as u64)?;
        }
    }
    if cached == Cached::Yes && leaves == Leaves::AtOnce {
        drop_cache(&file, offset, data.len() as u64);
    }
    Ok(())
}

/// Makes a range a hole; where the filesystem has none, writes zeroes.
pub(super) fn punch(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    match rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let mut done = 0;
            while done < len {
                let step = (len - done).min(ZEROES.len() as u64);
                let zeroes = &ZEROES[..usize::try_from(step).unwrap_or(ZEROES.len())];
                write_all(&file, offset + done, zeroes, Leaves::AtOnce)?;
                done += step;
            }
            Ok(())
        }
        result => Ok(result?),
    }
}

/// Whether what was written lies in the cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cached {
    Yes,
    No,
}

/// Writes some of it: so that it is written out at once and leaves the cache when it is on the disk, where kernel and filesystem
/// can.
fn write_some(
    file: impl AsFd,
    data: &[u8],
    offset: u64,
    leaves: Leaves,
) -> rustix::io::Result<(usize, Cached)> {
    if leaves == Leaves::WhenSynced {
        return rustix::io::pwrite(file, data, offset).map(|written| (written, Cached::Yes));
    }
    match rustix::io::pwritev2(&file, &[IoSlice::new(data)], offset, RWF_DONTCACHE) {
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
            rustix::io::pwrite(file, data, offset).map(|written| (written, Cached::Yes))
        }
        result => result.map(|written| (written, Cached::No)),
    }
}

fn write_all(file: impl AsFd, mut offset: u64, mut data: &[u8], leaves: Leaves) -> io::Result<Cached> {
    let mut cached = Cached::No;
    while !data.is_empty() {
        match write_some(&file, data, offset, leaves) {
            Ok((0, _)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok((written, how)) => {
                data = &data[written..];
                offset += written as u64;
                cached = how;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(cached)
}

/// Splits data into runs of blocks that are all zero and runs of blocks that are not. Blocks of 64 KiB: finer ones
/// cost a system call for each gap that a filesystem inside an image leaves.
fn runs(data: &[u8]) -> impl Iterator<Item = (usize, &[u8], bool)> {
    const BLOCK: usize = 1 << 16;
    static ZEROES: [u8; BLOCK] = [0; BLOCK];
    let is_zero = |block: &[u8]| block == &ZEROES[..block.len()];
    let mut start = 0;
    std::iter::from_fn(move || {
        if start >= data.len() {
            return None;
        }
        let zero = is_zero(&data[start..data.len().min(start + BLOCK)]);
        let mut end = start;
        while end < data.len() && is_zero(&data[end..data.len().min(end + BLOCK)]) == zero {
            end = data.len().min(end + BLOCK);
        }
        let run = (start, &data[start..end], zero);
        start = end;
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_cover_the_data_and_alternate(blocks in proptest::collection::vec(0_u8..2, 0..8), tail in 0_usize..70_000) {
            let mut data: Vec<u8> = blocks.iter().flat_map(|byte| vec![*byte; 1 << 16]).collect();
            data.extend(vec![3; tail]);
            let mut end = 0;
            let mut last = None;
            for (start, run, zero) in runs(&data) {
                prop_assert_eq!(start, end);
                prop_assert_ne!(Some(zero), last);
                prop_assert_eq!(run.iter().all(|byte| *byte == 0), zero);
                end = start + run.len();
                last = Some(zero);
            }
            prop_assert_eq!(end, data.len());
        }
    }

    #[test]
    fn zeroes_become_holes_over_data_too() {
        let file = tempfile::tempfile().expect("a file");
        let data = vec![7; CHUNK];
        write_chunk(&file, 0, &data, false, Leaves::WhenSynced).expect("written");
        let mut sparse = vec![0; CHUNK];
        sparse[CHUNK - 1] = 1;
        write_chunk(&file, 0, &sparse, true, Leaves::AtOnce).expect("written");
        let mut read = vec![1; CHUNK];
        file.read_exact_at(&mut read, 0).expect("read");
        assert!(read == sparse);
        file.sync_all().expect("synced");
        assert!(file.metadata().expect("there").blocks() * 512 <= 1 << 17);
    }

    #[test]
    fn a_file_that_shrank_is_noticed() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(100).expect("set");
        let reader = ChunkReader::new(file.into(), Pool::default(), false);
        assert_eq!(reader.read(0, 100).expect("read").as_ref(), &[0; 100]);
        assert_eq!(reader.read(0, 101).expect_err("short").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = Pool::default();
        let buffer = pool.take();
        let place = buffer.as_ref().as_ptr();
        assert!(place.align_offset(ALIGN) == 0 && buffer.as_ref().len() == CHUNK);
        drop(buffer);
        assert_eq!(pool.take().as_ref().as_ptr(), place);
    }
}

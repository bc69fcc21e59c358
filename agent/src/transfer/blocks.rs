//! What is kept of a file's blocks beside the journal: the hash of each, 16 of them for each chunk, at the chunk's place.
//!
//! A first copy keeps them for the copies that follow it; the last one reads them, and they go when it is published. It is
//! never synced and never trusted: hashes that do not merge to the leaf that the journal has of the chunk are as good as
//! none, and then the chunk is compared as a whole. So writing it may fail, too.

use std::fmt::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use somersault_agent_core::transfer::{BLOCK_BYTES, Blocks, Leaf, MAX_BLOCKS};

use super::root::open_beneath;

/// How the names of these files begin.
const PREFIX: &str = "blocks-";

/// Bytes of a chunk's hashes.
const SLOT: usize = 32 * MAX_BLOCKS;

/// The hashes of one file's blocks; none where they could not be kept.
#[derive(Debug)]
pub(super) struct BlockHashes {
    file: Option<OwnedFd>,
    keeps: bool,
}

/// Removes all of a partial folder. What stays costs room alone.
pub(super) fn remove(folder: &OwnedFd) {
    let names = Dir::read_from(folder).map(|items| {
        let names = items.filter_map(Result::ok).map(|item| item.file_name().to_owned());
        names.filter(|name| name.to_bytes().starts_with(PREFIX.as_bytes())).collect::<Vec<_>>()
    });
    for name in names.unwrap_or_default() {
        let _ = rustix::fs::unlinkat(folder, &name, AtFlags::empty());
    }
}

impl BlockHashes {
    /// In a partial folder. A file whose chunks all have one block needs none: its leaves say the same. A copy that nothing
    /// follows `keeps` none, and reads what there is.
    pub(super) fn open(folder: &OwnedFd, path: &[u8], size_bytes: u64, keeps: bool) -> Self {
        if size_bytes <= BLOCK_BYTES {
            return Self { file: None, keeps };
        }
        // Names in a volume have no bound that a name beside the journal could keep to.
        let mut name = PREFIX.to_owned();
        for byte in &blake3::hash(path).as_bytes()[..16] {
            let _ = write!(name, "{byte:02x}");
        }
        let how = if keeps { OFlags::RDWR | OFlags::CREATE } else { OFlags::RDONLY };
        let mode = if keeps { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
        Self { file: open_beneath(folder, name.as_str(), how | OFlags::NONBLOCK, mode).ok(), keeps }
    }

    /// Keeps what is in a chunk now.
    pub(super) fn keep(&self, chunk: u64, blocks: &Blocks) {
        if let Some(file) = self.file.as_ref().filter(|_| self.keeps) {
            let _ = rustix::io::pwrite(file, &blocks.to_bytes(), chunk * SLOT as u64);
        }
    }

    /// What was kept of a chunk with this leaf.
    pub(super) fn of(&self, chunk: u64, chunk_len: u64, leaf: Leaf) -> Option<Blocks> {
        let count =
            usize::try_from(chunk_len.div_ceil(BLOCK_BYTES)).ok().filter(|count| *count <= MAX_BLOCKS)?;
        let mut slot = [0; SLOT];
        let kept = &mut slot[..32 * count];
        let read = rustix::io::pread(self.file.as_ref()?, &mut *kept, chunk * SLOT as u64).ok()?;
        Blocks::from_bytes(kept.get(..read)?, chunk_len).filter(|blocks| blocks.leaf() == leaf)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use somersault_agent_core::transfer::CHUNK_BYTES;

    use super::super::root::open_root;
    use super::*;

    #[test]
    fn what_was_kept_is_believed_only_with_its_leaf() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = open_root(dir.path()).expect("open");
        let content = vec![7; 1 << 20];
        let blocks = Blocks::of(&content);
        let kept = BlockHashes::open(&folder, b"disk.img", 9 << 20, true);
        kept.keep(3, &blocks);
        let again = BlockHashes::open(&folder, b"disk.img", 9 << 20, false);
        assert_eq!(again.of(3, CHUNK_BYTES, blocks.leaf()), Some(blocks.clone()));
        assert_eq!(again.of(3, CHUNK_BYTES, Leaf::of(b"else")), None);
        assert_eq!(again.of(3, CHUNK_BYTES / 2, blocks.leaf()), None, "a shorter chunk");
        assert_eq!(again.of(2, CHUNK_BYTES, blocks.leaf()), None, "a hole");
        assert_eq!(again.of(4, CHUNK_BYTES, blocks.leaf()), None, "beyond the end");
        let other = BlockHashes::open(&folder, b"other.img", 9 << 20, false);
        assert_eq!(other.of(3, CHUNK_BYTES, blocks.leaf()), None);
        other.keep(3, &blocks);
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "the last copy keeps none");

        let file = std::fs::read_dir(dir.path()).expect("listed").next().expect("one").expect("read").path();
        let file = std::fs::File::options().write(true).open(file).expect("open");
        file.write_all_at(&[1], 3 * SLOT as u64 + 40).expect("written");
        assert_eq!(again.of(3, CHUNK_BYTES, blocks.leaf()), None, "a flipped bit");
        std::fs::write(dir.path().join("journal"), "").expect("written");
        remove(&folder);
        let left = std::fs::read_dir(dir.path()).expect("listed").map(|item| item.expect("read").file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["journal"]);
    }
}

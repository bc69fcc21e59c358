//! The hash of one chunk, and a table of them that costs next to nothing for holes.

use std::ops::Range;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::CHUNK_BYTES;

/// BLAKE3 of a chunk's content, except for two values that no content has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf([u8; 32]);

impl Leaf {
    /// Nothing but zeroes, whatever the chunk's length.
    pub const ZERO: Self = Self([0; 32]);
    /// Not known, or known to be wrong.
    pub const UNKNOWN: Self = Self([0xff; 32]);

    /// The leaf of this content.
    pub fn of(content: &[u8]) -> Self {
        if is_zero(content) { Self::ZERO } else { Self(*blake3::hash(content).as_bytes()) }
    }

    /// A leaf as the wire carries it. `None` for the two values that stand for something else here: nobody can
    /// find content with such a hash, so a source that sends one lies.
    pub fn from_wire(hash: [u8; 32], chunk_len: u64) -> Option<Self> {
        let leaf = Self(hash);
        if leaf == Self::ZERO || leaf == Self::UNKNOWN {
            return None;
        }
        Some(if leaf.0 == zero_hash(chunk_len) { Self::ZERO } else { leaf })
    }

    /// The leaf as the wire carries it.
    pub fn to_wire(self, chunk_len: u64) -> [u8; 32] {
        if self == Self::ZERO { zero_hash(chunk_len) } else { self.0 }
    }

    /// The bytes that enter the root.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Whether all bytes are zero. Compares blocks, which compiles to `memcmp`.
pub fn is_zero(content: &[u8]) -> bool {
    const BLOCK: [u8; 4096] = [0; 4096];
    content.chunks(BLOCK.len()).all(|block| block == &BLOCK[..block.len()])
}

fn zero_hash(len: u64) -> [u8; 32] {
    static WHOLE: LazyLock<[u8; 32]> = LazyLock::new(|| hash_zeroes(CHUNK_BYTES));
    if len == CHUNK_BYTES { *WHOLE } else { hash_zeroes(len) }
}

fn hash_zeroes(len: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let block = [0; 4096];
    let mut rest = len;
    while rest > 0 {
        let step = rest.min(block.len() as u64);
        hasher.update(&block[..usize::try_from(step).unwrap_or(block.len())]);
        rest -= step;
    }
    *hasher.finalize().as_bytes()
}

/// Leaves of a page. 1024 of them take 32 KiB and stand for 1 GiB.
const PAGE: u64 = 1024;

/// One leaf for each chunk of a file. Pages in which all leaves are equal, as in a hole, take no memory.
#[derive(Clone, Debug)]
pub struct LeafTable {
    pages: Vec<Page>,
    len: u64,
}

#[derive(Clone, Debug)]
enum Page {
    Uniform(Leaf),
    Mixed(Box<[Leaf]>),
}

impl LeafTable {
    /// A table of `len` equal leaves.
    pub fn new(len: u64, leaf: Leaf) -> Self {
        let pages = usize::try_from(len.div_ceil(PAGE)).unwrap_or(usize::MAX);
        Self { pages: vec![Page::Uniform(leaf); pages], len }
    }

    /// How many chunks.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no chunk.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The leaf of a chunk; unknown beyond the end.
    pub fn get(&self, chunk: u64) -> Leaf {
        let (page, slot) = place(chunk);
        match self.pages.get(page) {
            Some(Page::Uniform(leaf)) => *leaf,
            Some(Page::Mixed(leaves)) => leaves.get(slot).copied().unwrap_or(Leaf::UNKNOWN),
            None => Leaf::UNKNOWN,
        }
    }

    /// Sets the leaf of a chunk; ignored beyond the end.
    pub fn set(&mut self, chunk: u64, leaf: Leaf) {
        if chunk >= self.len {
            return;
        }
        let (page, slot) = place(chunk);
        let page_len = self.page_len(page);
        match &mut self.pages[page] {
            Page::Uniform(old) if *old == leaf => {}
            page @ Page::Uniform(_) => {
                let Page::Uniform(old) = *page else { return };
                let mut leaves = vec![old; page_len].into_boxed_slice();
                leaves[slot] = leaf;
                *page = Page::Mixed(leaves);
            }
            Page::Mixed(leaves) => leaves[slot] = leaf,
        }
    }

    /// Sets the leaves of a range; whole pages cost nothing.
    pub fn fill(&mut self, chunks: Range<u64>, leaf: Leaf) {
        let end = chunks.end.min(self.len);
        let mut chunk = chunks.start;
        while chunk < end {
            let behind = (chunk / PAGE + 1) * PAGE;
            if chunk.is_multiple_of(PAGE) && end >= behind.min(self.len) {
                self.pages[place(chunk).0] = Page::Uniform(leaf);
                chunk = behind;
            } else {
                self.set(chunk, leaf);
                chunk += 1;
            }
        }
    }

    /// Grows with `leaf`, or shrinks.
    pub fn resize(&mut self, len: u64, leaf: Leaf) {
        let old = self.len;
        let pages = usize::try_from(len.div_ceil(PAGE)).unwrap_or(usize::MAX);
        self.pages.resize(pages, Page::Uniform(leaf));
        self.len = len;
        // The page with the end that is nearer has another length now.
        let (edge, _) = place(old.min(len));
        let page_len = self.page_len(edge);
        if let Some(Page::Mixed(leaves)) = self.pages.get_mut(edge) {
            let mut resized = std::mem::take(leaves).into_vec();
            resized.resize(page_len, leaf);
            *leaves = resized.into_boxed_slice();
        }
        self.fill(old..len.min(old.div_ceil(PAGE) * PAGE), leaf);
    }

    /// Leaves of a page: the last one has no more than there are chunks, since there can be many files of a few chunks.
    fn page_len(&self, page: usize) -> usize {
        let rest = self.len.saturating_sub(page as u64 * PAGE);
        usize::try_from(rest.min(PAGE)).unwrap_or(0)
    }

    /// All leaves, in order.
    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = Leaf> + '_ {
        (0..self.len).map(|chunk| self.get(chunk))
    }
}

fn place(chunk: u64) -> (usize, usize) {
    let index = |number| usize::try_from(number).unwrap_or(usize::MAX);
    (index(chunk / PAGE), index(chunk % PAGE))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeroes_have_one_leaf_whatever_their_length() {
        for len in [0_u64, 1, 4095, 4096, 4097, CHUNK_BYTES] {
            let content = vec![0; usize::try_from(len).expect("small")];
            assert_eq!(Leaf::of(&content), Leaf::ZERO);
            let wire = Leaf::ZERO.to_wire(len);
            assert_eq!(&wire, blake3::hash(&content).as_bytes());
            assert_eq!(Leaf::from_wire(wire, len), Some(Leaf::ZERO));
        }
    }

    #[test]
    fn a_last_byte_that_is_not_zero_is_seen() {
        let mut content = vec![0; 8191];
        content[8190] = 1;
        assert_ne!(Leaf::of(&content), Leaf::ZERO);
    }

    #[test]
    fn markers_are_refused_from_the_wire() {
        assert_eq!(Leaf::from_wire([0; 32], CHUNK_BYTES), None);
        assert_eq!(Leaf::from_wire([0xff; 32], CHUNK_BYTES), None);
    }

    #[test]
    fn the_largest_file_of_holes_takes_little_memory() {
        let table = LeafTable::new(super::super::chunk_count(super::super::MAX_FILE_BYTES), Leaf::ZERO);
        assert!(table.pages.len() * size_of::<Page>() < 4 << 20);
    }

    proptest! {
        #[test]
        fn a_table_is_a_vector(
            len in 0_u64..3000,
            steps in proptest::collection::vec(
                (0_u64..3000, any::<u8>(), proptest::option::of(0_u64..3000), proptest::option::of(0_u64..3000)), 0..40),
        ) {
            let mut table = LeafTable::new(len, Leaf::ZERO);
            let mut model = vec![Leaf::ZERO; usize::try_from(len).expect("small")];
            for (chunk, byte, resize, fill) in steps {
                let leaf = Leaf::of(&[byte]);
                if let Some(end) = fill {
                    table.fill(chunk..end, leaf);
                    for slot in model.iter_mut().enumerate().filter(|(at, _)| (chunk..end).contains(&(*at as u64))) {
                        *slot.1 = leaf;
                    }
                }
                table.set(chunk, leaf);
                if let Some(slot) = model.get_mut(usize::try_from(chunk).expect("small")) {
                    *slot = leaf;
                }
                if let Some(len) = resize {
                    table.resize(len, Leaf::UNKNOWN);
                    model.resize(usize::try_from(len).expect("small"), Leaf::UNKNOWN);
                }
                prop_assert_eq!(table.iter().collect::<Vec<_>>(), model.clone());
            }
        }
    }
}

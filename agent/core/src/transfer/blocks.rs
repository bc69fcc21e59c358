//! The hashes of a chunk's blocks: which part of a chunk has changed, and whether the parts make the whole.
//!
//! ```text
//!   chunk (1 MiB)  = block 0 | block 1 | ... | block 15      64 KiB each; the last of a file may be short
//!                       |         |               |
//!                     hash      hash            hash         chaining values of BLAKE3's own tree
//!                       \_________|_______________/
//!                               leaf                         BLAKE3 of the chunk, by merging them
//! ```
//!
//! BLAKE3 is a tree already, so a leaf proves its blocks' hashes: what is kept of them beside a journal may be torn or old
//! and is found out, and a chunk of which only some blocks were sent is verified as a whole.

use std::sync::LazyLock;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

use super::CHUNK_BYTES;
use super::leaf::Leaf;

/// What is sent of a chunk of which only some has changed. A guest's scattered writes of 4 KiB cost a sixteenth of what
/// whole chunks would; smaller blocks gain little more (measured: 0.56 s with 16 KiB, 0.58 s with 64 KiB for a pass over 2 GiB
/// of which 1 % had changed) and cost four times as many hashes.
pub const BLOCK_BYTES: u64 = 64 << 10;

/// Most blocks of a chunk.
pub const MAX_BLOCKS: usize = 16;
const _: () = assert!(MAX_BLOCKS as u64 * BLOCK_BYTES == CHUNK_BYTES);

const BLOCK: usize = 64 << 10;

/// Bytes of a hash.
const HASH_BYTES: usize = 32;

/// Hashes of the blocks of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    hashes: Vec<ChainingValue>,
    /// Bytes of the chunk.
    len: u64,
}

/// Some of a chunk's blocks, by their bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSet(u16);

impl Blocks {
    /// Of a chunk's content, which is not empty.
    pub fn of(content: &[u8]) -> Self {
        let len = content.len() as u64;
        if content.len() <= BLOCK {
            return Self { hashes: vec![*blake3::hash(content).as_bytes()], len };
        }
        let mut offset = 0;
        let hashes = content.chunks(BLOCK).map(|block| {
            let hash = hash_of(block, offset);
            offset += BLOCK_BYTES;
            hash
        });
        Self { hashes: hashes.collect(), len }
    }

    /// Of a chunk of zeroes with so many bytes, at most those of a chunk.
    pub fn zero(len: u64) -> Self {
        static WHOLE: LazyLock<Blocks> = LazyLock::new(|| Blocks::of(&vec![0; MAX_BLOCKS * BLOCK]));
        if len == CHUNK_BYTES {
            return WHOLE.clone();
        }
        Self::of(&vec![0; usize::try_from(len.min(CHUNK_BYTES)).unwrap_or(0)])
    }

    /// From what was kept of a chunk of that length. `None` where it cannot be of one; whether it is of the right one, only
    /// [`leaf`](Self::leaf) tells.
    pub fn from_bytes(bytes: &[u8], chunk_len: u64) -> Option<Self> {
        let (hashes, rest) = bytes.as_chunks::<HASH_BYTES>();
        let fits = rest.is_empty() && hashes.len() as u64 == chunk_len.div_ceil(BLOCK_BYTES);
        (fits && !hashes.is_empty() && hashes.len() <= MAX_BLOCKS)
            .then(|| Self { hashes: hashes.to_vec(), len: chunk_len })
    }

    /// 32 bytes for each block.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.hashes.concat()
    }

    /// The leaf of the chunk that has these blocks.
    pub fn leaf(&self) -> Leaf {
        Leaf::from_wire(self.root(), self.len).unwrap_or(Leaf::UNKNOWN)
    }

    /// Those of its blocks that differ in another state of the same chunk.
    pub fn differing(&self, other: &Self) -> BlockSet {
        let pairs = self.hashes.iter().zip(&other.hashes).enumerate();
        pairs.filter(|(_, (ours, theirs))| ours != theirs).map(|(at, _)| at).collect()
    }

    /// The parts of the chunk's content that these blocks are, in order: where each begins, and how long it is. `None` where
    /// the chunk has not so many blocks.
    pub fn spans(&self, blocks: BlockSet) -> Option<Vec<(usize, usize)>> {
        let len = usize::try_from(self.len).ok()?;
        let span = |at: usize| {
            let start = at * BLOCK;
            (start < len).then(|| (start, BLOCK.min(len - start)))
        };
        blocks.iter().map(span).collect()
    }

    /// The chunk with some of its blocks replaced by these, one after the other.
    pub fn with(mut self, blocks: BlockSet, mut content: &[u8]) -> Option<Self> {
        let spans = self.spans(blocks)?;
        for (start, len) in spans {
            let (block, rest) = content.split_at_checked(len)?;
            content = rest;
            self.hashes[start / BLOCK] = match self.hashes.len() {
                1 => *blake3::hash(block).as_bytes(),
                _ => hash_of(block, start as u64),
            };
        }
        content.is_empty().then_some(self)
    }

    fn root(&self) -> [u8; 32] {
        if let [only] = self.hashes.as_slice() {
            return *only;
        }
        let (left, right) = halves(&self.hashes, self.len);
        *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
    }
}

impl BlockSet {
    /// As the wire carries it. `None` for bits beyond a chunk's last block.
    pub fn from_bits(bits: u32) -> Option<Self> {
        u16::try_from(bits).ok().map(Self)
    }

    /// Bit n is block n.
    pub fn bits(self) -> u32 {
        self.0.into()
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_BLOCKS).filter(move |at| self.0 >> at & 1 == 1)
    }
}

impl FromIterator<usize> for BlockSet {
    fn from_iter<I: IntoIterator<Item = usize>>(blocks: I) -> Self {
        Self(blocks.into_iter().filter(|at| *at < MAX_BLOCKS).fold(0, |bits, at| bits | 1 << at))
    }
}

/// Of a block that is not a whole chunk.
fn hash_of(block: &[u8], offset: u64) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(block).finalize_non_root()
}

/// The chaining values of the two halves of a tree with more than one block.
fn halves(hashes: &[ChainingValue], len: u64) -> (ChainingValue, ChainingValue) {
    let left_len = left_subtree_len(len);
    let (left, right) = hashes.split_at(usize::try_from(left_len / BLOCK_BYTES).unwrap_or(1));
    (subtree(left, left_len), subtree(right, len - left_len))
}

fn subtree(hashes: &[ChainingValue], len: u64) -> ChainingValue {
    if let [only] = hashes {
        return *only;
    }
    let (left, right) = halves(hashes, len);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Something that differs from block to block, as long as asked for.
    fn content(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|at| u8::try_from((at / 1000 + at % 251) % 256).expect("a byte") ^ seed).collect()
    }

    #[test]
    fn zeroes_have_the_leaf_of_zeroes() {
        for len in [1, 4096, BLOCK, BLOCK + 1, 16 * BLOCK] {
            assert_eq!(Blocks::of(&vec![0; len]).leaf(), Leaf::ZERO);
            assert_eq!(Blocks::zero(len as u64), Blocks::of(&vec![0; len]));
        }
    }

    #[test]
    fn what_was_kept_of_another_length_is_refused() {
        let kept = Blocks::of(&content(3 * BLOCK, 1)).to_bytes();
        assert!(Blocks::from_bytes(&kept, 3 * BLOCK_BYTES).is_some());
        for len in [0, 1, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES + 1] {
            assert!(Blocks::from_bytes(&kept, len).is_none(), "{len}");
        }
        assert!(Blocks::from_bytes(&kept[1..], 3 * BLOCK_BYTES).is_none());
        assert!(Blocks::from_bytes(&[], 0).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn blocks_have_the_leaf_of_their_chunk(len in 1_usize..=16 * BLOCK, seed in 1_u8..) {
            let content = content(len, seed);
            let blocks = Blocks::of(&content);
            prop_assert_eq!(blocks.leaf(), Leaf::of(&content));
            prop_assert_eq!(Blocks::from_bytes(&blocks.to_bytes(), len as u64), Some(blocks));
        }

        #[test]
        fn blocks_that_differ_make_the_other_chunk(
            len in 1_usize..=16 * BLOCK, changes in proptest::collection::vec(any::<proptest::sample::Index>(), 0..5),
        ) {
            let old = content(len, 3);
            let mut new = old.clone();
            for change in changes {
                new[change.index(len)] ^= 0x55;
            }
            let (before, after) = (Blocks::of(&old), Blocks::of(&new));
            let changed = after.differing(&before);
            let spans = after.spans(changed).expect("its own blocks");
            let sent: Vec<u8> = spans.iter().flat_map(|(start, len)| new[*start..start + len].to_vec()).collect();
            prop_assert!(sent.len() <= changed.iter().count() * BLOCK);
            prop_assert_eq!(before.clone().with(changed, &sent).map(|blocks| blocks.leaf()), Some(Leaf::of(&new)));
            // One byte too few or too many is none of it.
            prop_assert_eq!(before.clone().with(changed, &[sent.as_slice(), &[0]].concat()), None);
            if !sent.is_empty() {
                prop_assert_eq!(before.with(changed, &sent[1..]), None);
            }
        }

        #[test]
        fn hostile_bits_name_no_block_that_is_not_there(len in 1_u64..=16 * BLOCK_BYTES, bits: u32) {
            let count = len.div_ceil(BLOCK_BYTES);
            let blocks = Blocks { hashes: vec![[1; 32]; usize::try_from(count).expect("small")], len };
            let set = BlockSet::from_bits(bits);
            prop_assert_eq!(set.is_some(), bits <= 0xffff);
            if let Some(spans) = set.and_then(|set| blocks.spans(set)) {
                prop_assert!(spans.iter().all(|(start, size)| (*start + *size) as u64 <= len && *size > 0));
            } else {
                prop_assert!(bits >> count != 0);
            }
        }
    }
}

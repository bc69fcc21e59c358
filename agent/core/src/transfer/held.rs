//! What the target holds of one file, chunk by chunk.
//!
//! A volume can have hundreds of thousands of small files, so one that fits a chunk takes no memory of its own; larger ones have
//! tables.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{CHUNK_BYTES, Leaf, LeafTable, chunk_count};

/// What the target holds of one file.
#[derive(Clone, Debug)]
pub struct Held(Inner);

#[derive(Clone, Debug)]
enum Inner {
    /// At most one chunk.
    Small {
        size_bytes: u32,
        leaf: Leaf,
        settled: bool,
        read_back: bool,
    },
    Large(Box<Large>),
}

#[derive(Clone, Debug)]
struct Large {
    size_bytes: u64,
    leaves: LeafTable,
    settled: Bits,
    read_back: Bits,
}

/// Two of these fill a cache line; a quarter of a million, some 10 MiB.
const _: () = assert!(size_of::<Held>() <= 40);

impl Held {
    /// A new file: nothing but holes.
    pub fn fresh(size_bytes: u64) -> Self {
        Self::with(size_bytes, Leaf::ZERO)
    }

    /// A file of unknown content.
    pub fn unknown(size_bytes: u64) -> Self {
        Self::with(size_bytes, Leaf::UNKNOWN)
    }

    fn with(size_bytes: u64, leaf: Leaf) -> Self {
        let chunks = chunk_count(size_bytes);
        Self(match u32::try_from(size_bytes) {
            Ok(size_bytes) if chunks <= 1 => {
                Inner::Small { size_bytes, leaf, settled: false, read_back: false }
            }
            _ => Inner::Large(Box::new(Large {
                size_bytes,
                leaves: LeafTable::new(chunks, leaf),
                settled: Bits::new(chunks),
                read_back: Bits::new(chunks),
            })),
        })
    }

    /// Its apparent size.
    pub fn size_bytes(&self) -> u64 {
        match &self.0 {
            Inner::Small { size_bytes, .. } => u64::from(*size_bytes),
            Inner::Large(large) => large.size_bytes,
        }
    }

    /// How many chunks.
    pub fn chunks(&self) -> u64 {
        chunk_count(self.size_bytes())
    }

    /// The leaf of a chunk; unknown beyond the end.
    pub fn leaf(&self, chunk: u64) -> Leaf {
        match &self.0 {
            Inner::Small { size_bytes: 1.., leaf, .. } if chunk == 0 => *leaf,
            Inner::Small { .. } => Leaf::UNKNOWN,
            Inner::Large(large) => large.leaves.get(chunk),
        }
    }

    /// All leaves, in order.
    pub fn leaves(&self) -> impl Iterator<Item = Leaf> + '_ {
        (0..self.chunks()).map(|chunk| self.leaf(chunk))
    }

    /// Whether the chunk holds what the source had in the pass that the journal is of.
    pub fn is_settled(&self, chunk: u64) -> bool {
        match &self.0 {
            Inner::Small { settled, .. } => *settled && chunk == 0,
            Inner::Large(large) => large.settled.get(chunk),
        }
    }

    /// Whether the chunk was read back from the device, and not written to since.
    pub fn is_read_back(&self, chunk: u64) -> bool {
        match &self.0 {
            Inner::Small { read_back, .. } => *read_back && chunk == 0,
            Inner::Large(large) => large.read_back.get(chunk),
        }
    }

    /// This is in the chunk now; ignored beyond the end.
    pub(super) fn put(&mut self, chunk: u64, now: Leaf) {
        match &mut self.0 {
            Inner::Small { leaf, .. } if chunk == 0 => *leaf = now,
            Inner::Small { .. } => {}
            Inner::Large(large) => large.leaves.set(chunk, now),
        }
        self.set_read_back(chunk, false);
    }

    /// Ignored beyond the end.
    pub(super) fn set_settled(&mut self, chunk: u64, is: bool) {
        if chunk < self.chunks() {
            match &mut self.0 {
                Inner::Small { settled, .. } => *settled = is,
                Inner::Large(large) => large.settled.put(chunk, is),
            }
        }
    }

    fn set_read_back(&mut self, chunk: u64, is: bool) {
        if chunk < self.chunks() {
            match &mut self.0 {
                Inner::Small { read_back, .. } => *read_back = is,
                Inner::Large(large) => large.read_back.put(chunk, is),
            }
        }
    }

    /// All that is known to be in the file was read back.
    pub(super) fn was_read_back(&mut self) {
        for chunk in 0..self.chunks() {
            if self.leaf(chunk) != Leaf::UNKNOWN {
                self.set_read_back(chunk, true);
            }
        }
    }

    /// Of another pass, nothing is settled.
    pub(super) fn unsettle(&mut self) {
        match &mut self.0 {
            Inner::Small { settled, .. } => *settled = false,
            Inner::Large(large) => large.settled = Bits::new(large.leaves.len()),
        }
    }

    /// The filesystem says that these chunks are holes: they are zero, whatever was noted.
    pub fn holes(&mut self, chunks: Range<u64>) {
        for chunk in chunks.clone() {
            if self.leaf(chunk) != Leaf::ZERO {
                self.set_settled(chunk, false);
            }
            self.set_read_back(chunk, false);
        }
        match &mut self.0 {
            Inner::Small { leaf, .. } if chunks.contains(&0) => *leaf = Leaf::ZERO,
            Inner::Small { .. } => {}
            Inner::Large(large) => large.leaves.fill(chunks, Leaf::ZERO),
        }
    }

    /// Follows a file that is cut or extended with zeroes. The chunk that held the old end changes with it.
    pub(super) fn resize(&mut self, size_bytes: u64) {
        let before = self.size_bytes();
        if size_bytes == before {
            return;
        }
        let chunks = chunk_count(size_bytes);
        match &mut self.0 {
            Inner::Large(large) if chunks > 1 => {
                large.size_bytes = size_bytes;
                large.leaves.resize(chunks, Leaf::ZERO);
                large.settled.resize(chunks);
                large.read_back.resize(chunks);
            }
            _ => {
                let mut resized = Self::fresh(size_bytes);
                if before > 0 && chunks > 0 {
                    resized.put(0, self.leaf(0));
                    resized.set_settled(0, self.is_settled(0));
                    resized.set_read_back(0, self.is_read_back(0));
                }
                *self = resized;
            }
        }
        let edge = before.min(size_bytes) / CHUNK_BYTES;
        if self.leaf(edge) != Leaf::ZERO {
            self.put(edge, Leaf::UNKNOWN);
            self.set_settled(edge, false);
        }
    }
}

/// What a journal has noted of a file.
#[derive(Clone, Debug)]
pub struct Noted {
    /// What it held.
    pub held: Held,
    /// How the file was when it was read back last.
    pub stamp: Option<Stamp>,
}

impl Noted {
    /// The file is so now. What was read back from it counts only if that is how it was then.
    pub fn found(mut self, stamp: Stamp) -> Held {
        if self.stamp != Some(stamp) {
            for chunk in 0..self.held.chunks() {
                self.held.set_read_back(chunk, false);
            }
        }
        self.held
    }
}

/// How a file was: differs as soon as somebody has written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Which file.
    pub inode: u64,
    /// Last change of the content, in seconds and nanoseconds.
    pub modified: (i64, u64),
    /// Last change of content or metadata.
    pub changed: (i64, u64),
}

/// A set of chunk numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: u64) -> Self {
        Self(vec![0; usize::try_from(len.div_ceil(64)).unwrap_or(usize::MAX)])
    }

    fn get(&self, chunk: u64) -> bool {
        self.0.get(word(chunk)).is_some_and(|bits| bits >> (chunk % 64) & 1 == 1)
    }

    /// Puts a chunk in or takes it out.
    fn put(&mut self, chunk: u64, is: bool) {
        if let Some(bits) = self.0.get_mut(word(chunk)) {
            *bits = *bits & !(1 << (chunk % 64)) | u64::from(is) << (chunk % 64);
        }
    }

    fn resize(&mut self, len: u64) {
        self.0.resize(usize::try_from(len.div_ceil(64)).unwrap_or(usize::MAX), 0);
        if let (Some(last), true) = (self.0.last_mut(), !len.is_multiple_of(64)) {
            *last &= (1 << (len % 64)) - 1;
        }
    }
}

fn word(chunk: u64) -> usize {
    usize::try_from(chunk / 64).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = CHUNK_BYTES;

    #[test]
    fn a_file_of_one_chunk_or_none_has_nothing_beyond() {
        for size in [0, 1, MIB] {
            let mut held = Held::fresh(size);
            held.put(0, Leaf::of(b"x"));
            held.set_settled(0, true);
            held.put(1, Leaf::of(b"y"));
            held.set_settled(1, true);
            assert_eq!((held.chunks(), held.leaves().count() as u64), (size.min(1), size.min(1)));
            assert_eq!(held.leaf(0) == Leaf::of(b"x"), size > 0);
            assert_eq!((held.is_settled(0), held.is_settled(1)), (size > 0, false));
            assert_eq!(held.leaf(1), Leaf::UNKNOWN);
        }
    }

    proptest! {
        /// Small and large ones, and those that become the other, are as a file whose chunks are counted one by one.
        #[test]
        fn a_file_that_is_cut_and_extended_is_as_its_chunks(
            sizes in proptest::collection::vec(prop_oneof![0..3 * MIB, Just(MIB), Just(2 * MIB), Just(0)], 1..8),
            puts in proptest::collection::vec((0_u64..4, any::<u8>(), any::<bool>()), 0..12),
        ) {
            let mut held = Held::fresh(sizes[0]);
            let mut model: Vec<(Leaf, bool)> = vec![(Leaf::ZERO, false); usize::try_from(held.chunks()).expect("few")];
            let mut before = sizes[0];
            for (turn, size) in sizes.iter().copied().enumerate() {
                if size != before {
                    let chunks = usize::try_from(chunk_count(size)).expect("few");
                    model.resize(chunks, (Leaf::ZERO, false));
                    let edge = usize::try_from(before.min(size) / MIB).expect("few");
                    if let Some(edge) = model.get_mut(edge).filter(|edge| edge.0 != Leaf::ZERO) {
                        *edge = (Leaf::UNKNOWN, false);
                    }
                    held.resize(size);
                    before = size;
                }
                for (chunk, byte, settled) in puts.iter().skip(turn).step_by(3).copied() {
                    held.put(chunk, Leaf::of(&[byte]));
                    held.set_settled(chunk, settled);
                    if let Some(slot) = model.get_mut(usize::try_from(chunk).expect("few")) {
                        *slot = (Leaf::of(&[byte]), settled);
                    }
                }
                let found: Vec<_> = (0..held.chunks()).map(|chunk| (held.leaf(chunk), held.is_settled(chunk))).collect();
                prop_assert_eq!(held.size_bytes(), size);
                prop_assert_eq!(&found, &model);
            }
        }
    }
}

//! One pass over a volume: which chunks to compare, to fetch, to punch; what may be accepted; the root.

use std::ops::Range;

use super::{Entry, Held, Leaf, MAX_CHUNKS_PER_READ, Manifest, Record, chunk_len, span_bytes};

/// Consecutive chunks as ranges.
fn joined(chunks: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for chunk in chunks {
        match ranges.last_mut() {
            Some(last) if last.end == chunk => last.end += 1,
            _ => ranges.push(chunk..chunk + 1),
        }
    }
    ranges
}

/// Leaves of one record: 256 KiB, which is written at once.
const RECORD_LEAVES: usize = 8192;

/// What is known of a file: unknown chunks are left out, and so are zeroes that no pass has settled (the filesystem
/// tells those).
fn runs(file: usize, held: &Held) -> impl Iterator<Item = Record> + '_ {
    let mut chunk = 0;
    std::iter::from_fn(move || {
        let worth = |chunk| match held.leaf(chunk) {
            Leaf::UNKNOWN => false,
            Leaf::ZERO => held.is_settled(chunk),
            _ => true,
        };
        while chunk < held.chunks() && !worth(chunk) {
            chunk += 1;
        }
        let (first, settled) = (chunk, held.is_settled(chunk));
        let mut leaves = Vec::new();
        while chunk < held.chunks()
            && leaves.len() < RECORD_LEAVES
            && worth(chunk)
            && held.is_settled(chunk) == settled
        {
            leaves.push(held.leaf(chunk));
            chunk += 1;
        }
        let file = u32::try_from(file).ok()?;
        (!leaves.is_empty()).then_some(Record::Leaves { file, first, settled, leaves })
    })
}

/// Chunks of one file to ask for in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Index of the file in the manifest.
    pub file: usize,
    /// Chunk ranges, in order, without overlap; [`MAX_CHUNKS_PER_READ`] chunks at most.
    pub chunks: Vec<Range<u64>>,
}

/// A source sent what was not asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// More leaves than the file has chunks, or of no file.
    #[error("leaves {first}..{end} of a file with {chunks} chunks")]
    Leaves {
        /// First chunk.
        first: u64,
        /// Behind the last chunk.
        end: u64,
        /// How many the file has.
        chunks: u64,
    },
}

/// The state of a pass.
#[derive(Clone, Debug)]
pub struct Session {
    manifest: Manifest,
    held: Vec<Held>,
    settled_bytes: u64,
    cursor: (usize, u64),
}

impl Session {
    /// Begins a pass. `held` is what the target has of each entry, as its journal and its files prove; of what is missing at its
    /// end it has nothing. `same_pass` says that it was written by a pass over this very state of the source.
    pub fn begin(manifest: Manifest, mut held: Vec<Held>, same_pass: bool) -> Self {
        held.resize_with(manifest.len(), || Held::fresh(0));
        for (entry, held) in manifest.entries().zip(&mut held) {
            held.resize(entry.size_bytes);
            if !same_pass {
                held.unsettle();
            }
        }
        let mut session = Self { manifest, held, settled_bytes: 0, cursor: (0, 0) };
        session.settled_bytes = session.count_settled();
        session
    }

    /// What is being copied.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Everything that a journal of this pass must say after its head, in records of bounded size.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.held.iter().enumerate().flat_map(|(file, held)| runs(file, held))
    }

    /// What the target holds of an entry.
    pub fn held(&self, file: usize) -> Option<&Held> {
        self.held.get(file)
    }

    /// Whether the chunk must be read back from the device before the copy is believed.
    pub fn must_read_back(&self, file: usize, chunk: u64) -> bool {
        self.held.get(file).is_none_or(|held| !held.is_read_back(chunk))
    }

    /// Data bytes of the source that the target is known to hold.
    pub fn settled_bytes(&self) -> u64 {
        self.settled_bytes
    }

    /// What the target holds of a chunk that is to be fetched, by the word of an earlier pass: the source need not send what is
    /// the same. `None` where there is nothing, or nothing known.
    pub fn offer(&self, file: usize, chunk: u64) -> Option<Leaf> {
        let held = self.held.get(file).filter(|held| !held.is_settled(chunk))?;
        Some(held.leaf(chunk)).filter(|have| !matches!(*have, Leaf::ZERO | Leaf::UNKNOWN))
    }

    /// Chunks of which it is not known what the target holds.
    pub fn unknown(&self, file: usize) -> impl Iterator<Item = u64> + '_ {
        let chunks = self.held.get(file).map_or(0, Held::chunks);
        (0..chunks).filter(move |chunk| self.held[file].leaf(*chunk) == Leaf::UNKNOWN)
    }

    /// What the target was found to hold, from reading it. Settles nothing.
    pub fn learn(&mut self, file: usize, chunk: u64, leaf: Leaf) {
        if let Some(held) = self.held.get_mut(file) {
            held.put(chunk, leaf);
        }
    }

    /// Takes the source's leaves of consecutive chunks: equal ones are settled, others are to be fetched.
    pub fn compare(&mut self, file: usize, first: u64, leaves: &[Leaf]) -> Result<(), AcceptError> {
        let entry = self.manifest.entry(file);
        let chunks = entry.as_ref().map_or(0, Entry::chunks);
        let end = first.saturating_add(leaves.len() as u64);
        let Some(entry) = entry.filter(|_| end <= chunks) else {
            return Err(AcceptError::Leaves { first, end, chunks });
        };
        for (chunk, leaf) in (first..end).zip(leaves) {
            let held = &mut self.held[file];
            if held.is_settled(chunk) || !entry.may_hold_data(chunk) {
                continue;
            }
            if held.leaf(chunk) == *leaf {
                held.set_settled(chunk, true);
                self.settled_bytes += chunk_len(entry.size_bytes, chunk);
            } else if held.leaf(chunk) != Leaf::ZERO {
                held.put(chunk, Leaf::UNKNOWN);
            }
        }
        Ok(())
    }

    /// The next chunks to fetch; each chunk once until [`rewind`](Self::rewind).
    pub fn next_unit(&mut self) -> Option<Unit> {
        while self.cursor.0 < self.held.len() {
            let (file, from) = self.cursor;
            let mut chunks: Vec<Range<u64>> = Vec::new();
            let mut count = 0;
            let entry = self.manifest.entry(file)?;
            let first = entry.data.partition_point(|range| range.end <= from);
            'collect: for range in &entry.data[first..] {
                for chunk in range.start.max(from)..range.end {
                    self.cursor.1 = chunk + 1;
                    if self.held[file].is_settled(chunk) {
                        continue;
                    }
                    match chunks.last_mut() {
                        Some(last) if last.end == chunk => last.end += 1,
                        _ => chunks.push(chunk..chunk + 1),
                    }
                    count += 1;
                    if count == MAX_CHUNKS_PER_READ {
                        break 'collect;
                    }
                }
            }
            if !chunks.is_empty() {
                return Some(Unit { file, chunks });
            }
            self.cursor = (file + 1, 0);
        }
        None
    }

    /// The same, and behind a file of one chunk others of one chunk, up to so many files.
    pub fn next_units(&mut self, files_max: usize) -> Vec<Unit> {
        let mut units: Vec<Unit> = self.next_unit().into_iter().collect();
        while units.len() < files_max && units.last().is_some_and(|last| self.is_small(last)) {
            let before = self.cursor;
            match self.next_unit() {
                Some(unit) if self.is_small(&unit) => units.push(unit),
                _ => {
                    self.cursor = before;
                    break;
                }
            }
        }
        units
    }

    /// Whether it is all of a file of one chunk.
    fn is_small(&self, unit: &Unit) -> bool {
        self.held[unit.file].chunks() == 1
    }

    /// Lets [`next_unit`](Self::next_unit) start over; only when nothing is in flight.
    pub fn rewind(&mut self) {
        self.cursor = (0, 0);
    }

    /// A chunk has been verified and written.
    pub fn accept(&mut self, file: usize, chunk: u64, leaf: Leaf) {
        if let Some(held) = self.held.get_mut(file) {
            held.put(chunk, leaf);
            self.settle(file, chunk);
        }
    }

    /// The source has what was [offered](Self::offer) of a chunk: nothing was written.
    pub fn same(&mut self, file: usize, chunk: u64) {
        self.settle(file, chunk);
    }

    fn settle(&mut self, file: usize, chunk: u64) {
        let Some(entry) = self.manifest.entry(file) else { return };
        let held = &mut self.held[file];
        if entry.may_hold_data(chunk) && !held.is_settled(chunk) {
            held.set_settled(chunk, true);
            self.settled_bytes += chunk_len(entry.size_bytes, chunk);
        }
    }

    /// Ranges of chunks that are holes at the source and not, or not known to be, here.
    pub fn punches(&self, file: usize) -> Vec<Range<u64>> {
        let Some(entry) = self.manifest.entry(file) else { return Vec::new() };
        let held = &self.held[file];
        let starts = std::iter::once(0).chain(entry.data.iter().map(|range| range.end));
        let ends = entry.data.iter().map(|range| range.start).chain(std::iter::once(entry.chunks()));
        let holes = starts.zip(ends).flat_map(|(start, end)| start..end);
        joined(holes.filter(|chunk| held.leaf(*chunk) != Leaf::ZERO))
    }

    /// What [`punches`](Self::punches) asked for is done.
    pub fn punched(&mut self, file: usize, chunks: Range<u64>) {
        for chunk in chunks {
            self.held[file].put(chunk, Leaf::ZERO);
        }
    }

    /// A chunk read back from the device is not what was accepted: fetch it again.
    pub fn reject(&mut self, file: usize, chunk: u64) {
        let Some(entry) = self.manifest.entry(file) else { return };
        let held = &mut self.held[file];
        held.put(chunk, Leaf::UNKNOWN);
        if entry.may_hold_data(chunk) && held.is_settled(chunk) {
            held.set_settled(chunk, false);
            self.settled_bytes -= chunk_len(entry.size_bytes, chunk);
        }
    }

    /// Whether the target holds everything.
    pub fn is_complete(&self) -> bool {
        self.settled_bytes == self.manifest.data_bytes()
            && (0..self.held.len()).all(|file| self.punches(file).is_empty())
    }

    /// BLAKE3 over paths, kinds, metadata, sizes and leaves, in the manifest's order, with what few entries have where they have
    /// it. Numbers are little-endian; a chunk of zeroes enters as 32 zero bytes. Meaningful once the session is complete.
    pub fn root(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"somersault volume 1");
        for (entry, held) in self.manifest.entries().zip(&self.held) {
            hasher.update(&(entry.path.len() as u64).to_le_bytes());
            hasher.update(&entry.path);
            hasher.update(&[entry.kind.code()]);
            let metadata = &entry.metadata;
            for number in [metadata.mode, metadata.uid, metadata.gid, metadata.mtime_ns] {
                hasher.update(&number.to_le_bytes());
            }
            hasher.update(&metadata.mtime_s.to_le_bytes());
            hasher.update(&entry.size_bytes.to_le_bytes());
            if let Some(extra) = &entry.extra {
                let attributes = extra.attributes.iter().flat_map(|(name, value)| [name, value]);
                for bytes in std::iter::once(&extra.target).chain(attributes) {
                    hasher.update(&(bytes.len() as u64).to_le_bytes());
                    hasher.update(bytes);
                }
            }
            for leaf in held.leaves() {
                hasher.update(leaf.as_bytes());
            }
        }
        *hasher.finalize().as_bytes()
    }

    fn count_settled(&self) -> u64 {
        let settled = |(entry, held): (Entry, &Held)| -> u64 {
            let chunks = entry.data.iter().cloned().flatten().filter(|chunk| held.is_settled(*chunk));
            chunks.map(|chunk| span_bytes(entry.size_bytes, &(chunk..chunk + 1))).sum()
        };
        self.manifest.entries().zip(&self.held).map(settled).sum()
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // lists of ranges that happen to have one
mod tests;

//! One pass over a volume: which chunks to compare, to fetch, to punch; what may be accepted; the root.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{
    CHUNK_BYTES, Entry, Kind, Leaf, LeafTable, MAX_CHUNKS_PER_READ, Manifest, Record, chunk_len, span_bytes,
};

/// What the target holds of one file.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its apparent size.
    pub size_bytes: u64,
    /// Leaf of each chunk.
    pub have: LeafTable,
    /// Chunks that hold what the source had in the pass that the journal is of.
    pub settled: Bits,
}

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
        let chunks = super::chunk_count(size_bytes);
        Self { size_bytes, have: LeafTable::new(chunks, leaf), settled: Bits::new(chunks) }
    }

    /// The filesystem says that these chunks are holes: they are zero, whatever was noted.
    pub fn holes(&mut self, chunks: Range<u64>) {
        for chunk in chunks.clone() {
            if self.have.get(chunk) != Leaf::ZERO {
                self.settled.clear(chunk);
            }
        }
        self.have.fill(chunks, Leaf::ZERO);
    }

    /// Follows a file that is cut or extended with zeroes. The chunk that held the old end changes with it.
    fn resize(&mut self, size_bytes: u64) {
        if size_bytes == self.size_bytes {
            return;
        }
        let chunks = super::chunk_count(size_bytes);
        let edge = self.size_bytes.min(size_bytes) / CHUNK_BYTES;
        self.have.resize(chunks, Leaf::ZERO);
        self.settled.resize(chunks);
        if self.have.get(edge) != Leaf::ZERO {
            self.have.set(edge, Leaf::UNKNOWN);
            self.settled.clear(edge);
        }
        self.size_bytes = size_bytes;
    }
}

/// A set of chunk numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits(Vec<u64>);

impl Bits {
    fn new(len: u64) -> Self {
        Self(vec![0; usize::try_from(len.div_ceil(64)).unwrap_or(usize::MAX)])
    }

    /// Whether the chunk is in the set.
    pub fn get(&self, chunk: u64) -> bool {
        self.0.get(word(chunk)).is_some_and(|bits| bits >> (chunk % 64) & 1 == 1)
    }

    /// Puts a chunk in; ignored beyond the end.
    pub fn set(&mut self, chunk: u64) {
        if let Some(bits) = self.0.get_mut(word(chunk)) {
            *bits |= 1 << (chunk % 64);
        }
    }

    /// Takes a chunk out.
    pub fn clear(&mut self, chunk: u64) {
        if let Some(bits) = self.0.get_mut(word(chunk)) {
            *bits &= !(1 << (chunk % 64));
        }
    }

    fn resize(&mut self, len: u64) {
        self.0.resize(usize::try_from(len.div_ceil(64)).unwrap_or(usize::MAX), 0);
        if let (Some(last), true) = (self.0.last_mut(), !len.is_multiple_of(64)) {
            *last &= (1 << (len % 64)) - 1;
        }
    }
}

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
        let worth = |chunk| match held.have.get(chunk) {
            Leaf::UNKNOWN => false,
            Leaf::ZERO => held.settled.get(chunk),
            _ => true,
        };
        while chunk < held.have.len() && !worth(chunk) {
            chunk += 1;
        }
        let (first, settled) = (chunk, held.settled.get(chunk));
        let mut leaves = Vec::new();
        while chunk < held.have.len()
            && leaves.len() < RECORD_LEAVES
            && worth(chunk)
            && held.settled.get(chunk) == settled
        {
            leaves.push(held.have.get(chunk));
            chunk += 1;
        }
        let file = u32::try_from(file).ok()?;
        (!leaves.is_empty()).then_some(Record::Leaves { file, first, settled, leaves })
    })
}

fn word(chunk: u64) -> usize {
    usize::try_from(chunk / 64).unwrap_or(usize::MAX)
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
    /// Begins a pass. `held` is what the target has, by path, as its journal and its files prove; `same_pass` says
    /// that it was written by a pass over this very state of the source.
    pub fn begin(manifest: Manifest, mut held: BTreeMap<Vec<u8>, Held>, same_pass: bool) -> Self {
        let held = manifest
            .entries()
            .iter()
            .map(|entry| {
                let mut held = held.remove(&entry.path).unwrap_or_else(|| Held::fresh(entry.size_bytes));
                held.resize(entry.size_bytes);
                if !same_pass {
                    held.settled = Bits::new(entry.chunks());
                }
                held
            })
            .collect();
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

    /// The same of one file.
    pub fn records_of(&self, file: usize) -> impl Iterator<Item = Record> + '_ {
        self.held.get(file).into_iter().flat_map(move |held| runs(file, held))
    }

    /// What the target holds of an entry.
    pub fn held(&self, file: usize) -> Option<&Held> {
        self.held.get(file)
    }

    /// Data bytes of the source that the target is known to hold.
    pub fn settled_bytes(&self) -> u64 {
        self.settled_bytes
    }

    /// Data chunks of which the target holds something that no pass over this state of the source has settled: their
    /// leaves are to be compared.
    pub fn stale(&self, file: usize) -> Vec<Range<u64>> {
        let Some(entry) = self.manifest.entries().get(file) else { return Vec::new() };
        let held = &self.held[file];
        joined(entry.data.iter().cloned().flatten().filter(|chunk| {
            !held.settled.get(*chunk) && !matches!(held.have.get(*chunk), Leaf::ZERO | Leaf::UNKNOWN)
        }))
    }

    /// Chunks of which it is not known what the target holds.
    pub fn unknown(&self, file: usize) -> impl Iterator<Item = u64> + '_ {
        let chunks = self.held.get(file).map_or(0, |held| held.have.len());
        (0..chunks).filter(move |chunk| self.held[file].have.get(*chunk) == Leaf::UNKNOWN)
    }

    /// What the target was found to hold, from reading it. Settles nothing.
    pub fn learn(&mut self, file: usize, chunk: u64, leaf: Leaf) {
        if let Some(held) = self.held.get_mut(file) {
            held.have.set(chunk, leaf);
        }
    }

    /// Takes the source's leaves of consecutive chunks: equal ones are settled, others are to be fetched.
    pub fn compare(&mut self, file: usize, first: u64, leaves: &[Leaf]) -> Result<(), AcceptError> {
        let entry = self.manifest.entries().get(file);
        let chunks = entry.map_or(0, Entry::chunks);
        let end = first.saturating_add(leaves.len() as u64);
        let Some(entry) = entry.filter(|_| end <= chunks) else {
            return Err(AcceptError::Leaves { first, end, chunks });
        };
        for (chunk, leaf) in (first..end).zip(leaves) {
            let held = &mut self.held[file];
            if held.settled.get(chunk) || !entry.may_hold_data(chunk) {
                continue;
            }
            if held.have.get(chunk) == *leaf {
                held.settled.set(chunk);
                self.settled_bytes += chunk_len(entry.size_bytes, chunk);
            } else if held.have.get(chunk) != Leaf::ZERO {
                held.have.set(chunk, Leaf::UNKNOWN);
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
            let entry = &self.manifest.entries()[file];
            let first = entry.data.partition_point(|range| range.end <= from);
            'collect: for range in &entry.data[first..] {
                for chunk in range.start.max(from)..range.end {
                    self.cursor.1 = chunk + 1;
                    if self.held[file].settled.get(chunk) {
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

    /// Lets [`next_unit`](Self::next_unit) start over; only when nothing is in flight.
    pub fn rewind(&mut self) {
        self.cursor = (0, 0);
    }

    /// A chunk has been verified and written.
    pub fn accept(&mut self, file: usize, chunk: u64, leaf: Leaf) {
        let Some(entry) = self.manifest.entries().get(file) else { return };
        let held = &mut self.held[file];
        held.have.set(chunk, leaf);
        if entry.may_hold_data(chunk) && !held.settled.get(chunk) {
            held.settled.set(chunk);
            self.settled_bytes += chunk_len(entry.size_bytes, chunk);
        }
    }

    /// Ranges of chunks that are holes at the source and not, or not known to be, here.
    pub fn punches(&self, file: usize) -> Vec<Range<u64>> {
        let Some(entry) = self.manifest.entries().get(file) else { return Vec::new() };
        let held = &self.held[file];
        let starts = std::iter::once(0).chain(entry.data.iter().map(|range| range.end));
        let ends = entry.data.iter().map(|range| range.start).chain(std::iter::once(entry.chunks()));
        let holes = starts.zip(ends).flat_map(|(start, end)| start..end);
        joined(holes.filter(|chunk| held.have.get(*chunk) != Leaf::ZERO))
    }

    /// What [`punches`](Self::punches) asked for is done.
    pub fn punched(&mut self, file: usize, chunks: Range<u64>) {
        for chunk in chunks {
            self.held[file].have.set(chunk, Leaf::ZERO);
        }
    }

    /// A chunk read back from the device is not what was accepted: fetch it again.
    pub fn reject(&mut self, file: usize, chunk: u64) {
        let Some(entry) = self.manifest.entries().get(file) else { return };
        let held = &mut self.held[file];
        held.have.set(chunk, Leaf::UNKNOWN);
        if entry.may_hold_data(chunk) && held.settled.get(chunk) {
            held.settled.clear(chunk);
            self.settled_bytes -= chunk_len(entry.size_bytes, chunk);
        }
    }

    /// Whether the target holds everything.
    pub fn is_complete(&self) -> bool {
        self.settled_bytes == self.manifest.data_bytes()
            && (0..self.held.len()).all(|file| self.punches(file).is_empty())
    }

    /// BLAKE3 over paths, kinds, metadata, sizes and leaves, in the manifest's order. Numbers are little-endian;
    /// a chunk of zeroes enters as 32 zero bytes. Meaningful once the session is complete.
    pub fn root(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"somersault volume 1");
        for (entry, held) in self.manifest.entries().iter().zip(&self.held) {
            hasher.update(&(entry.path.len() as u64).to_le_bytes());
            hasher.update(&entry.path);
            hasher.update(&[u8::from(entry.kind == Kind::Folder)]);
            let metadata = &entry.metadata;
            for number in [metadata.mode, metadata.uid, metadata.gid, metadata.mtime_ns] {
                hasher.update(&number.to_le_bytes());
            }
            hasher.update(&metadata.mtime_s.to_le_bytes());
            hasher.update(&entry.size_bytes.to_le_bytes());
            for leaf in held.have.iter() {
                hasher.update(leaf.as_bytes());
            }
        }
        *hasher.finalize().as_bytes()
    }

    fn count_settled(&self) -> u64 {
        let settled = |(entry, held): (&Entry, &Held)| -> u64 {
            let chunks = entry.data.iter().cloned().flatten().filter(|chunk| held.settled.get(*chunk));
            chunks.map(|chunk| span_bytes(entry.size_bytes, &(chunk..chunk + 1))).sum()
        };
        self.manifest.entries().iter().zip(&self.held).map(settled).sum()
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // lists of ranges that happen to have one
mod tests {
    use proptest::prelude::*;

    use super::super::manifest::tests::{file, folder};
    use super::super::{Encoder, Head, replay};
    use super::*;

    fn leaf(byte: u8) -> Leaf {
        Leaf::of(&[byte])
    }

    fn manifest(size_bytes: u64, data: &[Range<u64>]) -> Manifest {
        Manifest::new([7; 32], vec![folder(""), file("disk.img", size_bytes, data)]).expect("valid")
    }

    fn all_units(session: &mut Session) -> Vec<Range<u64>> {
        let mut chunks = Vec::new();
        while let Some(unit) = session.next_unit() {
            assert_eq!(unit.file, 1);
            assert!(
                unit.chunks.iter().map(|range| range.end - range.start).sum::<u64>() <= MAX_CHUNKS_PER_READ
            );
            chunks.extend(unit.chunks);
        }
        chunks
    }

    /// The target's state as a journal of this session restores it, with a filesystem that tells its holes.
    fn held_of(session: &Session) -> BTreeMap<Vec<u8>, Held> {
        let entries = session.manifest().entries();
        let files = entries.iter().map(|entry| (entry.path.clone(), entry.size_bytes)).collect();
        let head = Head {
            transfer: "t".into(),
            source_node: "n".into(),
            source_path: "/v".into(),
            identity: session.manifest().identity(),
            final_copy: true,
            files,
        };
        let mut encoder = Encoder::default();
        let mut journal = encoder.encode(&Record::Head(head));
        journal.extend(session.records().flat_map(|record| encoder.encode(&record)));
        let mut restored = replay(&journal).expect("valid").held;
        let disk = restored.get_mut(b"disk.img".as_slice()).expect("there");
        for chunk in 0..disk.have.len() {
            if session.held(1).expect("there").have.get(chunk) == Leaf::ZERO {
                disk.holes(chunk..chunk + 1);
            }
        }
        let original = session.held(1).expect("there");
        assert!(disk.have.iter().eq(original.have.iter()) && disk.settled == original.settled);
        restored
    }

    #[test]
    fn a_first_pass_fetches_the_data_and_no_hole() {
        let mut session = Session::begin(manifest(10 << 20, &[1..3, 9..10]), BTreeMap::new(), false);
        assert!(session.stale(1).is_empty());
        assert_eq!(all_units(&mut session), vec![1..3, 9..10]);
        assert!(!session.is_complete());
        for chunk in [1, 2, 9] {
            session.accept(1, chunk, leaf(5));
        }
        assert!(session.is_complete() && session.next_unit().is_none());
    }

    #[test]
    fn the_same_pass_resumes_where_it_was() {
        let mut first = Session::begin(manifest(200 << 20, &[0..200]), BTreeMap::new(), false);
        for chunk in 0..150 {
            first.accept(1, chunk, leaf(1));
        }
        let mut second = Session::begin(manifest(200 << 20, &[0..200]), held_of(&first), true);
        assert_eq!(second.settled_bytes(), 150 << 20);
        assert!(second.stale(1).is_empty());
        assert_eq!(all_units(&mut second), vec![150..200]);
    }

    #[test]
    fn another_pass_compares_and_fetches_what_differs() {
        let mut first = Session::begin(manifest(4 << 20, &[0..4]), BTreeMap::new(), false);
        for chunk in 0..4 {
            first.accept(1, chunk, leaf(1));
        }
        let mut second = Session::begin(manifest(4 << 20, &[0..4]), held_of(&first), false);
        assert_eq!(second.stale(1), vec![0..4]);
        second.compare(1, 0, &[leaf(1), leaf(2), leaf(1), Leaf::ZERO]).expect("within");
        assert_eq!(all_units(&mut second), vec![1..2, 3..4]);
    }

    #[test]
    fn leaves_beyond_the_end_are_refused() {
        let mut session = Session::begin(manifest(2 << 20, &[0..2]), BTreeMap::new(), false);
        assert!(session.compare(1, 1, &[leaf(1), leaf(1)]).is_err());
        assert!(session.compare(1, u64::MAX, &[leaf(1)]).is_err());
        assert!(session.compare(9, 0, &[leaf(1)]).is_err());
    }

    #[test]
    fn data_that_became_a_hole_is_punched() {
        let mut first = Session::begin(manifest(4 << 20, &[0..4]), BTreeMap::new(), false);
        for chunk in 0..4 {
            first.accept(1, chunk, leaf(1));
        }
        let mut second = Session::begin(manifest(4 << 20, &[2..3]), held_of(&first), false);
        assert_eq!(second.punches(1), vec![0..2, 3..4]);
        second.compare(1, 0, &[Leaf::ZERO, Leaf::ZERO, leaf(1), Leaf::ZERO]).expect("within");
        assert!(!second.is_complete());
        second.punched(1, 0..2);
        second.punched(1, 3..4);
        assert!(second.is_complete());
    }

    #[test]
    fn a_file_that_grew_or_shrank_forgets_its_edge() {
        for (before, after) in [(2_500_000_u64, 9_000_000_u64), (9_000_000, 2_500_000)] {
            let chunks = before.div_ceil(CHUNK_BYTES);
            let mut first = Session::begin(manifest(before, &[0..chunks]), BTreeMap::new(), false);
            for chunk in 0..chunks {
                first.accept(1, chunk, leaf(1));
            }
            let next = manifest(after, &[0..after.div_ceil(CHUNK_BYTES)]);
            let second = Session::begin(next, held_of(&first), false);
            let held = second.held(1).expect("there");
            assert_eq!(held.have.get(1), leaf(1));
            assert_eq!(held.have.get(2), Leaf::UNKNOWN);
            assert!(held.have.iter().skip(3).all(|have| have == Leaf::ZERO));
        }
    }

    #[test]
    fn what_the_device_does_not_hold_is_fetched_again() {
        let mut session = Session::begin(manifest(2 << 20, &[0..2]), BTreeMap::new(), false);
        session.accept(1, 0, leaf(1));
        session.accept(1, 1, leaf(1));
        session.reject(1, 1);
        session.rewind();
        assert!(!session.is_complete());
        assert_eq!(all_units(&mut session), vec![1..2]);
    }

    #[test]
    fn the_root_sees_metadata_size_and_content() {
        let root = |entry: Entry, have: Leaf| {
            let manifest = Manifest::new([0; 32], vec![folder(""), entry]).expect("valid");
            let mut session = Session::begin(manifest, BTreeMap::new(), false);
            session.accept(1, 0, have);
            session.root()
        };
        let base = file("a", 10, &[0..1]);
        let mut roots =
            vec![root(base.clone(), leaf(1)), root(base.clone(), leaf(2)), root(base.clone(), Leaf::ZERO)];
        let change = |edit: fn(&mut Entry)| {
            let mut entry = base.clone();
            edit(&mut entry);
            root(entry, leaf(1))
        };
        roots.push(change(|entry| entry.path = b"b".to_vec()));
        roots.push(change(|entry| entry.size_bytes = 11));
        roots.push(change(|entry| entry.metadata.mode = 0o600));
        roots.push(change(|entry| entry.metadata.uid = 1));
        roots.push(change(|entry| entry.metadata.gid = 1));
        roots.push(change(|entry| entry.metadata.mtime_s = 1));
        roots.push(change(|entry| entry.metadata.mtime_ns = 1));
        let distinct: std::collections::BTreeSet<_> = roots.iter().collect();
        assert_eq!(distinct.len(), roots.len());
    }

    #[derive(Clone, Debug)]
    struct Disk(Vec<u8>);

    impl Disk {
        /// One byte stands for one chunk; zero is a zero chunk. Data ranges as a filesystem would give them.
        fn manifest(&self) -> Manifest {
            let mut data: Vec<Range<u64>> = Vec::new();
            for (chunk, byte) in (0_u64..).zip(&self.0) {
                match data.last_mut() {
                    _ if *byte == 0 => {}
                    Some(last) if last.end == chunk => last.end += 1,
                    _ => data.push(chunk..chunk + 1),
                }
            }
            manifest(self.0.len() as u64 * CHUNK_BYTES, &data)
        }
    }

    fn disk() -> impl Strategy<Value = Disk> {
        proptest::collection::vec(prop_oneof![Just(0_u8), 1_u8..4], 0..200).prop_map(Disk)
    }

    proptest! {
        #[test]
        fn every_pass_ends_with_the_sources_content(disks in proptest::collection::vec(disk(), 1..4), stop in 0_usize..50) {
            let mut target: Vec<u8> = Vec::new();
            let mut held = BTreeMap::new();
            for source in &disks {
                let mut session = Session::begin(source.manifest(), held, false);
                target.resize(source.0.len(), 0);
                for chunk in session.stale(1).into_iter().flatten() {
                    let byte = source.0[usize::try_from(chunk).expect("small")];
                    session.compare(1, chunk, &[Leaf::of(&[byte])]).expect("within");
                }
                for range in session.punches(1) {
                    for chunk in range.clone() {
                        target[usize::try_from(chunk).expect("small")] = 0;
                    }
                    session.punched(1, range);
                }
                let mut fetched = 0;
                while let Some(unit) = session.next_unit() {
                    for chunk in unit.chunks.into_iter().flatten() {
                        let at = usize::try_from(chunk).expect("small");
                        target[at] = source.0[at];
                        session.accept(1, chunk, Leaf::of(&[source.0[at]]));
                        fetched += 1;
                        if fetched == stop {
                            // What a crash and a journal would do: the same pass begins again.
                            session = Session::begin(source.manifest(), held_of(&session), true);
                        }
                    }
                }
                prop_assert!(session.is_complete());
                prop_assert_eq!(&target, &source.0);
                held = held_of(&session);
            }
        }
    }
}

//! What survives a crash of the target: which chunks of the partial copy are on the disk, and of which source.
//!
//! ```text
//!   journal := record*          the first one is a Head
//!   record  := length: u32 LE | payload (postcard) | tag: 16 bytes
//! ```
//!
//! The tag is BLAKE3 over the previous record's hash, the length and the payload: a record that is torn, flipped,
//! left out or of another journal is found out, and with it everything behind it. What came before stays true,
//! because a record is appended only after the data that it speaks of was synced.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Held, Leaf, MAX_FILE_BYTES, Noted, Packed, Stamp};

/// Longest record. The head names every file; everything else is shorter.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

const LENGTH_BYTES: usize = 4;
const TAG_BYTES: usize = 16;

/// One thing that is true. New ones go last: journals outlive the agent that began them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// What is being copied; first, and once.
    Head(Head),
    /// Consecutive chunks that are on the disk.
    Leaves {
        /// Index into the head's files.
        file: u32,
        /// First chunk.
        first: u64,
        /// Whether they are what the source had in this pass, not in an earlier one.
        settled: bool,
        /// One for each chunk.
        leaves: Vec<Leaf>,
    },
    /// Everything is verified; the next step is the rename to the final name.
    Publishing(Published),
    /// All that was noted of a file so far was read back from the device.
    ReadBack {
        /// Index into the head's files.
        file: u32,
        /// How the file was then.
        stamp: Stamp,
    },
    /// The copy that is published next has zeroes for this, which the source could not read: in words.
    Unreadable(String),
}

/// What is being copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Name of the transfer.
    pub transfer: String,
    /// Node of the source.
    pub source_node: String,
    /// Path of the volume there.
    pub source_path: String,
    /// Which state of the source.
    pub identity: [u8; 32],
    /// Whether nobody could write to the source during this pass.
    pub final_copy: bool,
    /// Path and size of each entry of the manifest, in its order.
    pub files: Packed<(Vec<u8>, u64)>,
}

/// A volume under its final name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Inode of the volume's folder, which the rename does not change.
    pub inode: u64,
    /// Over path, inode, size and times of its files: differs when somebody has written since.
    pub fingerprint: [u8; 32],
    /// Root of the content.
    pub root: [u8; 32],
}

/// Why a journal says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// No valid first record.
    #[error("the journal has no valid head")]
    NoHead,
}

/// What a journal proves.
#[derive(Clone, Debug)]
pub struct Replay {
    /// What was being copied.
    pub head: Head,
    /// What was on the disk, by the head's files.
    held: Vec<Held>,
    /// How those were that had been read back.
    stamps: BTreeMap<usize, Stamp>,
    /// Set once the copy was verified.
    pub published: Option<Published>,
    /// What of it has zeroes, since the source could not read it: in words.
    pub unreadable: Option<String>,
    /// Length of the valid part.
    pub valid_bytes: usize,
    /// Goes on behind the valid part.
    pub encoder: Encoder,
}

impl Replay {
    /// What was on the disk of the file with this path; it is handed over once.
    pub fn take(&mut self, path: &[u8]) -> Option<Noted> {
        let file = self.head.files.find(path)?;
        let held = std::mem::replace(self.held.get_mut(file)?, Held::unknown(0));
        Some(Noted { held, stamp: self.stamps.remove(&file) })
    }
}

/// Turns records into bytes; each depends on all before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoder {
    chain: [u8; 32],
}

impl Default for Encoder {
    fn default() -> Self {
        Self { chain: *blake3::hash(b"somersault journal 1").as_bytes() }
    }
}

impl Encoder {
    /// The bytes of the next record.
    pub fn encode(&mut self, record: &Record) -> Vec<u8> {
        // Serializing into memory fails for types that postcard does not know; ours are fixed at compile time.
        let mut bytes = postcard::to_extend(record, vec![0; LENGTH_BYTES])
            .expect("records are of types that postcard encodes");
        let length = u32::try_from(bytes.len() - LENGTH_BYTES).expect("records are below their limit");
        bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.chain = next(&self.chain, &bytes);
        bytes.extend_from_slice(&self.chain[..TAG_BYTES]);
        bytes
    }
}

fn next(chain: &[u8; 32], framed: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new_keyed(chain).update(framed).finalize().as_bytes()
}

/// Reads a journal as far as it is valid.
pub fn replay(bytes: &[u8]) -> Result<Replay, JournalError> {
    let mut encoder = Encoder::default();
    let Some((Record::Head(head), length)) = decode(bytes, &encoder) else {
        return Err(JournalError::NoHead);
    };
    encoder.chain = next(&encoder.chain, &bytes[..length - TAG_BYTES]);
    if head.files.iter().any(|(_, size)| size > MAX_FILE_BYTES) || head.files.len() > super::MAX_ENTRIES {
        return Err(JournalError::NoHead);
    }
    // Chunks that no record names were perhaps written, perhaps not.
    let mut files: Vec<Held> = head.files.iter().map(|(_, size)| Held::unknown(size)).collect();
    let mut stamps = BTreeMap::new();
    let (mut published, mut unreadable) = (None, None);
    let mut valid_bytes = length;
    while let Some((record, length)) = decode(&bytes[valid_bytes..], &encoder) {
        let applied = match record {
            Record::Head(_) => false,
            Record::Leaves { file, first, settled, leaves } => {
                apply(&mut files, file, first, settled, &leaves)
            }
            Record::ReadBack { file, stamp } => {
                let file = usize::try_from(file).unwrap_or(usize::MAX);
                let was_read_back = |held: &mut Held| {
                    held.was_read_back();
                    stamps.insert(file, stamp);
                };
                files.get_mut(file).map(was_read_back).is_some()
            }
            Record::Unreadable(what) => {
                unreadable = Some(what);
                true
            }
            Record::Publishing(this) => {
                published = Some(this);
                true
            }
        };
        if !applied {
            break;
        }
        encoder.chain = next(&encoder.chain, &bytes[valid_bytes..valid_bytes + length - TAG_BYTES]);
        valid_bytes += length;
    }
    Ok(Replay { head, held: files, stamps, published, unreadable, valid_bytes, encoder })
}

fn decode(bytes: &[u8], encoder: &Encoder) -> Option<(Record, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length =
        usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= MAX_RECORD_BYTES)?;
    let payload = rest.get(..length)?;
    let tag = rest.get(length..length + TAG_BYTES)?;
    if next(&encoder.chain, &bytes[..4 + length])[..TAG_BYTES] != *tag {
        return None;
    }
    Some((postcard::from_bytes(payload).ok()?, 4 + length + TAG_BYTES))
}

fn apply(files: &mut [Held], file: u32, first: u64, settled: bool, leaves: &[Leaf]) -> bool {
    let file = usize::try_from(file).ok().and_then(|file| files.get_mut(file));
    let Some(held) = file else { return false };
    let Some(end) = first.checked_add(leaves.len() as u64) else { return false };
    if end > held.chunks() {
        return false;
    }
    for (chunk, leaf) in (first..end).zip(leaves) {
        held.put(chunk, *leaf);
        held.set_settled(chunk, settled);
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(transfer: &str) -> Record {
        Record::Head(Head {
            transfer: transfer.into(),
            source_node: "n2".into(),
            source_path: "/data/pvc-1".into(),
            identity: [3; 32],
            final_copy: true,
            files: [(Vec::new(), 0), (b"disk.img".to_vec(), 100 << 20)].into_iter().collect(),
        })
    }

    fn leaves(first: u64, count: u8) -> Record {
        let leaves = (0..count).map(|byte| Leaf::of(&[byte, 1])).collect();
        Record::Leaves { file: 1, first, settled: true, leaves }
    }

    fn journal(records: &[Record]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        records.iter().flat_map(|record| encoder.encode(record)).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = journal(&[head("t"), leaves(0, 3), leaves(10, 2)]);
        let mut replay = replay(&bytes).expect("valid");
        assert_eq!(replay.valid_bytes, bytes.len());
        assert!(replay.take(b"other.img").is_none());
        let held = replay.take(b"disk.img").expect("noted").held;
        assert_eq!(held.leaf(1), Leaf::of(&[1, 1]));
        assert_eq!(held.leaf(11), Leaf::of(&[1, 1]));
        assert_eq!(held.leaf(5), Leaf::UNKNOWN);
        assert!(held.is_settled(10) && !held.is_settled(9));
    }

    #[test]
    fn what_was_read_back_counts_until_it_is_written_to_again() {
        let stamp = |inode| Stamp { inode, modified: (5, 6), changed: (5, 7) };
        let records = [
            head("t"),
            leaves(0, 3),
            Record::ReadBack { file: 1, stamp: stamp(9) },
            leaves(2, 1),
            leaves(7, 1),
        ];
        let mut replay = replay(&journal(&records)).expect("valid");
        let noted = replay.take(b"disk.img").expect("noted");
        let read_back = |held: &Held| (0..10).filter(|chunk| held.is_read_back(*chunk)).collect::<Vec<_>>();
        assert_eq!(read_back(&noted.held), [0, 1]);
        assert_eq!(read_back(&noted.clone().found(stamp(9))), [0, 1]);
        assert!(read_back(&noted.found(stamp(8))).is_empty(), "somebody has written to it");
    }

    #[test]
    fn an_encoder_goes_on_where_the_replay_ended() {
        let mut bytes = journal(&[head("t"), leaves(0, 3)]);
        let mut encoder = replay(&bytes).expect("valid").encoder;
        bytes.extend(encoder.encode(&leaves(50, 1)));
        let noted = replay(&bytes).expect("valid").take(b"disk.img").expect("noted");
        assert!(noted.held.is_settled(50));
    }

    #[test]
    fn a_record_of_another_journal_is_found_out() {
        let ours = journal(&[head("t")]);
        let other = journal(&[head("u"), leaves(0, 3)]);
        let spliced = [ours.as_slice(), &other[journal(&[head("u")]).len()..]].concat();
        assert_eq!(replay(&spliced).expect("the head").valid_bytes, ours.len());
    }

    #[test]
    fn impossible_records_end_the_journal() {
        for record in [
            leaves(99, 2),
            leaves(u64::MAX, 1),
            Record::Leaves { file: 9, first: 0, settled: true, leaves: vec![] },
            head("t"),
        ] {
            let valid = journal(&[head("t")]).len();
            assert_eq!(replay(&journal(&[head("t"), record])).expect("the head").valid_bytes, valid);
        }
        assert!(replay(&journal(&[leaves(0, 1)])).is_err());
        assert!(replay(&[]).is_err());
        assert!(replay(&[0xff; 64]).is_err());
    }

    proptest! {
        #[test]
        fn a_damaged_journal_claims_nothing_new(
            counts in proptest::collection::vec((0_u64..90, 0_u8..10), 0..6),
            at in any::<proptest::sample::Index>(), flip in 1_u8.., cut in any::<proptest::sample::Index>(),
        ) {
            let mut records = vec![head("t")];
            records.extend(counts.into_iter().map(|(first, count)| leaves(first, count)));
            let mut ends = Vec::new();
            let mut encoder = Encoder::default();
            let mut bytes = Vec::new();
            for record in &records {
                bytes.extend(encoder.encode(record));
                ends.push(bytes.len());
            }
            let at = at.index(bytes.len());
            let mut flipped = bytes.clone();
            flipped[at] ^= flip;
            let intact = ends.iter().filter(|end| **end <= at).count();
            let valid = if intact == 0 { 0 } else { ends[intact - 1] };
            prop_assert_eq!(replay(&flipped).map_or(0, |replay| replay.valid_bytes), valid);

            let cut = cut.index(bytes.len() + 1);
            let valid = ends.iter().copied().filter(|end| *end <= cut).max().unwrap_or(0);
            prop_assert_eq!(replay(&bytes[..cut]).map_or(0, |replay| replay.valid_bytes), valid);
        }

        #[test]
        fn garbage_is_no_journal(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(replay(&bytes).is_err());
        }
    }
}

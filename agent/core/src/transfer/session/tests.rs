//! A session against a model of two disks.

use proptest::prelude::*;

use super::*;
use crate::transfer::manifest::tests::{file, folder};
use crate::transfer::{CHUNK_BYTES, Encoder, Head, Noted, Stamp, replay};

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
        assert!(unit.chunks.iter().map(|range| range.end - range.start).sum::<u64>() <= MAX_CHUNKS_PER_READ);
        chunks.extend(unit.chunks);
    }
    chunks
}

/// The target's state as a journal of this session restores it, with a filesystem that tells its holes.
fn held_of(session: &Session) -> Vec<Held> {
    vec![Held::fresh(0), noted_of(session).held]
}

fn noted_of(session: &Session) -> Noted {
    let entries = session.manifest().entries();
    let files = entries.map(|entry| (entry.path, entry.size_bytes)).collect();
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
    let mut restored = replay(&journal).expect("valid");
    let mut noted = restored.take(b"disk.img").expect("there");
    let disk = &mut noted.held;
    for chunk in 0..disk.chunks() {
        if session.held(1).expect("there").leaf(chunk) == Leaf::ZERO {
            disk.holes(chunk..chunk + 1);
        }
    }
    let original = session.held(1).expect("there");
    let all = |held: &Held| -> Vec<_> {
        (0..held.chunks()).map(|chunk| (held.leaf(chunk), held.is_settled(chunk))).collect()
    };
    assert_eq!(all(disk), all(original));
    noted
}

#[test]
fn a_first_pass_fetches_the_data_and_no_hole() {
    let mut session = Session::begin(manifest(10 << 20, &[1..3, 9..10]), Vec::new(), false);
    assert!((0..10).all(|chunk| session.offer(1, chunk).is_none()));
    assert_eq!(all_units(&mut session), vec![1..3, 9..10]);
    assert!(!session.is_complete());
    for chunk in [1, 2, 9] {
        session.accept(1, chunk, leaf(5));
    }
    assert!(session.is_complete() && session.next_unit().is_none());
}

#[test]
fn the_same_pass_resumes_where_it_was() {
    let mut first = Session::begin(manifest(200 << 20, &[0..200]), Vec::new(), false);
    for chunk in 0..150 {
        first.accept(1, chunk, leaf(1));
    }
    let mut second = Session::begin(manifest(200 << 20, &[0..200]), held_of(&first), true);
    assert_eq!(second.settled_bytes(), 150 << 20);
    assert!((0..200).all(|chunk| second.offer(1, chunk).is_none()));
    assert_eq!(all_units(&mut second), vec![150..200]);
}

#[test]
fn a_chunk_that_is_written_to_must_be_read_back_again() {
    let stamp = Stamp { inode: 9, modified: (5, 6), changed: (5, 7) };
    let mut first = Session::begin(manifest(8 << 20, &[0..8]), Vec::new(), false);
    for chunk in 0..8 {
        first.accept(1, chunk, leaf(1));
    }
    let mut noted = noted_of(&first);
    noted.held.was_read_back();
    noted.stamp = Some(stamp);
    let held = vec![Held::fresh(0), noted.found(stamp)];
    let mut second = Session::begin(manifest(8 << 20, &[0..7]), held, false);
    let must =
        |session: &Session| (0..8).filter(|chunk| session.must_read_back(1, *chunk)).collect::<Vec<_>>();
    assert!(must(&second).is_empty());
    second.same(1, 0);
    second.accept(1, 1, leaf(2));
    second.reject(1, 4);
    second.punched(1, 7..8);
    assert_eq!(must(&second), [1, 4, 7]);
    let shorter = Session::begin(manifest((8 << 20) - 1, &[0..8]), held_of(&second), false);
    assert_eq!(
        must(&shorter).len(),
        8,
        "a journal without the word that it was read back says nothing of it"
    );
}

#[test]
fn another_pass_offers_what_it_has_and_settles_what_is_the_same() {
    let mut first = Session::begin(manifest(4 << 20, &[0..4]), Vec::new(), false);
    for chunk in 0..4 {
        first.accept(1, chunk, leaf(1));
    }
    let mut second = Session::begin(manifest(4 << 20, &[0..4]), held_of(&first), false);
    assert!((0..4).all(|chunk| second.offer(1, chunk) == Some(leaf(1))));
    assert_eq!(all_units(&mut second), vec![0..4]);
    second.same(1, 0);
    second.accept(1, 1, leaf(2));
    second.rewind();
    assert_eq!(all_units(&mut second), vec![2..4]);
    assert_eq!((second.offer(1, 0), second.settled_bytes()), (None, 2 << 20));
}

#[test]
fn leaves_that_are_compared_settle_what_is_equal() {
    let mut first = Session::begin(manifest(4 << 20, &[0..4]), Vec::new(), false);
    for chunk in 0..4 {
        first.accept(1, chunk, leaf(1));
    }
    let mut second = Session::begin(manifest(4 << 20, &[0..4]), held_of(&first), false);
    second.compare(1, 0, &[leaf(1), leaf(2), leaf(1), Leaf::ZERO]).expect("within");
    assert_eq!(all_units(&mut second), vec![1..2, 3..4]);
}

#[test]
fn leaves_beyond_the_end_are_refused() {
    let mut session = Session::begin(manifest(2 << 20, &[0..2]), Vec::new(), false);
    assert!(session.compare(1, 1, &[leaf(1), leaf(1)]).is_err());
    assert!(session.compare(1, u64::MAX, &[leaf(1)]).is_err());
    assert!(session.compare(9, 0, &[leaf(1)]).is_err());
}

#[test]
fn data_that_became_a_hole_is_punched() {
    let mut first = Session::begin(manifest(4 << 20, &[0..4]), Vec::new(), false);
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
        let mut first = Session::begin(manifest(before, &[0..chunks]), Vec::new(), false);
        for chunk in 0..chunks {
            first.accept(1, chunk, leaf(1));
        }
        let next = manifest(after, &[0..after.div_ceil(CHUNK_BYTES)]);
        let second = Session::begin(next, held_of(&first), false);
        let held = second.held(1).expect("there");
        assert_eq!(held.leaf(1), leaf(1));
        assert_eq!(held.leaf(2), Leaf::UNKNOWN);
        assert!(held.leaves().skip(3).all(|have| have == Leaf::ZERO));
    }
}

#[test]
fn what_the_device_does_not_hold_is_fetched_again() {
    let mut session = Session::begin(manifest(2 << 20, &[0..2]), Vec::new(), false);
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
        let mut session = Session::begin(manifest, Vec::new(), false);
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
        let mut held = Vec::new();
        for source in &disks {
            let mut session = Session::begin(source.manifest(), held, false);
            target.resize(source.0.len(), 0);
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
                    let leaf = Leaf::of(&[source.0[at]]);
                    if session.offer(1, chunk) == Some(leaf) {
                        session.same(1, chunk);
                    } else {
                        target[at] = source.0[at];
                        session.accept(1, chunk, leaf);
                    }
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

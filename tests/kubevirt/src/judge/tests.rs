//! Shows that the judge sees what it is for, on disks that the real guest wrote (`recorded/`) and on made ones.

use proptest::prelude::*;

use super::slot::{decode_all, write::encode};
use super::*;

fn recorded(name: &str) -> Disk {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded").join(name)).expect("a recorded disk")
}

fn record(instance: &str, counter: u64) -> Record {
    let time = Timestamp::from_millisecond(i64::try_from(counter).expect("small") * 100).expect("a time");
    Record { instance: instance.to_owned(), node: format!("node-of-{instance}"), counter, time }
}

fn blank(id: &str) -> Origin {
    Origin {
        origin: Source::Blank,
        id: id.to_owned(),
        instance: "a".to_owned(),
        node: "node-of-a".to_owned(),
        source: String::new(),
        time: Timestamp::UNIX_EPOCH,
    }
}

fn disk(id: &str, records: &[Record]) -> Disk {
    judge(&decode_all(&bytes(id, records), 0))
}

fn bytes(id: &str, records: &[Record]) -> Vec<u8> {
    let mut bytes = encode(&blank(id));
    for record in records {
        bytes.extend(encode(record));
    }
    bytes.resize(bytes.len() + 3 * SLOT_BYTES, 0);
    bytes
}

fn writer(instance: &str) -> Writer {
    record(instance, 1).writer()
}

fn written(instance: &str, counters: std::ops::RangeInclusive<u64>) -> Vec<Record> {
    counters.map(|counter| record(instance, counter)).collect()
}

#[test]
fn a_disk_that_two_guests_wrote_one_after_the_other_is_sound() {
    let disk = recorded("two-boots.img");
    assert_eq!(disk.faults, []);
    assert_eq!(disk.origin.as_ref().map(|origin| origin.origin), Some(Source::Blank));
    assert_eq!(disk.instances().len(), 2);
    let [first, second] = disk.runs.as_slice() else { panic!("two runs: {disk}") };
    assert_eq!((first.writer.node.as_str(), second.writer.node.as_str()), ("n1", "n2"));
    assert_eq!((first.from, second.from), (1, first.to + 1));
    assert!(disk.silence_before(1).is_some_and(|silence| silence < Duration::from_secs(5)));
}

#[test]
fn two_guests_that_wrote_at_the_same_time_are_seen() {
    let disk = recorded("ran-twice.img");
    assert!(disk.ran_twice(), "{disk}");
    assert_eq!(disk.continues(&recorded("two-boots.img")), disk.faults, "nothing else is wrong");
}

#[test]
fn an_import_over_a_disk_is_seen() {
    let (before, now) = (recorded("two-boots.img"), recorded("imported.img"));
    assert_eq!(now.origin.as_ref().map(|origin| origin.origin), Some(Source::Image));
    let faults = now.continues(&before);
    assert!(faults.iter().any(|fault| matches!(fault, Fault::Replaced { .. })), "{faults:?}");
    assert!(faults.iter().any(|fault| matches!(fault, Fault::Forgotten { counter: 1, .. })), "{faults:?}");
}

#[test]
fn a_disk_that_booted_blank_is_seen() {
    let before = disk("one", &written("a", 1..=5));
    let now = disk("two", &written("b", 1..=9));
    let replaced = Fault::Replaced { before: blank("one"), now: Some(blank("two")) };
    assert_eq!(now.continues(&before), [replaced, Fault::Forgotten { counter: 1, records: 5 }]);
    let empty = judge(&[]);
    assert_eq!(empty.faults, []);
    assert!(!empty.continues(&before).is_empty());
}

#[test]
fn a_stale_copy_is_seen() {
    let before = disk("one", &written("a", 1..=9));
    let now = disk("one", &[written("a", 1..=6), written("b", 7..=12)].concat());
    assert_eq!(now.faults, [], "by itself it looks sound");
    assert_eq!(now.continues(&before), [Fault::Forgotten { counter: 7, records: 3 }]);
}

#[test]
fn a_counter_that_jumps_is_a_lost_write() {
    let found = disk("one", &[written("a", 1..=3), written("a", 6..=7)].concat());
    assert_eq!(found.faults, [Fault::LostWrites { writer: writer("a"), after: 3, next: 6 }]);
    let found = disk("one", &[written("a", 1..=3), written("b", 5..=7)].concat());
    assert_eq!(found.faults, [Fault::LostWrites { writer: writer("b"), after: 3, next: 5 }]);
}

#[test]
fn a_zeroed_or_torn_slot_is_seen() {
    let whole = bytes("one", &written("a", 1..=9));
    let slots = |range: std::ops::Range<usize>| range.start * SLOT_BYTES..range.end * SLOT_BYTES;
    let mut hole = whole.clone();
    hole[slots(3..5)].fill(0);
    let hole = judge(&decode_all(&hole, 0));
    assert_eq!(hole.faults[0], Fault::Hole { slot: 3, until: 5 });
    assert_eq!(hole.faults[1], Fault::LostWrites { writer: writer("a"), after: 2, next: 5 });
    let mut torn = whole.clone();
    torn[9 * SLOT_BYTES + 20] ^= 1;
    assert_eq!(judge(&decode_all(&torn, 0)).faults, [Fault::Damaged { slot: 9 }]);
    let mut headless = whole;
    headless[slots(0..1)].fill(0);
    let headless = judge(&decode_all(&headless, 0)).faults;
    assert_eq!(headless, [Fault::Hole { slot: 0, until: 1 }, Fault::NoOrigin]);
}

#[test]
fn a_second_guest_that_began_while_the_first_wrote_is_seen_even_when_the_first_wrote_no_more() {
    // b read the end at 3; a wrote 4; b wrote its first.
    let found = disk("one", &[written("a", 1..=4), written("b", 4..=6)].concat());
    assert_eq!(found.faults, [Fault::RanTwice { first: writer("a"), second: writer("b") }]);
}

#[test]
fn a_sparse_file_is_read_without_its_holes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    std::fs::write(&path, bytes("one", &written("a", 1..=3000))).expect("written");
    File::options().write(true).open(&path).and_then(|file| file.set_len(1 << 40)).expect("sparse");
    let disk = read(&path).expect("read");
    assert_eq!((disk.faults.len(), disk.records.len()), (0, 3000));
}

use std::fs::File;

proptest! {
    /// Whatever guests ran one after the other, each for some records: the disk is sound, and each reading
    /// continues each earlier one.
    #[test]
    fn guests_one_after_the_other_are_sound(lengths in prop::collection::vec(1_u64..20, 1..6), cut in 0_usize..100) {
        let mut all = Vec::new();
        for (index, length) in lengths.iter().enumerate() {
            let from = all.len() as u64 + 1;
            all.extend(written(&format!("i{index}"), from..=from + length - 1));
        }
        let now = disk("one", &all);
        prop_assert_eq!(&now.faults, &[]);
        prop_assert_eq!(now.runs.len(), lengths.len());
        let earlier = disk("one", &all[..cut.min(all.len())]);
        prop_assert_eq!(now.continues(&earlier), []);
    }

    /// However two guests that both go on counting from the same end take turns: if the first writes again after
    /// the second has begun, the judge says so, and accuses nobody of losing a write.
    #[test]
    fn two_guests_by_turns_are_always_seen(turns in prop::collection::vec(any::<bool>(), 1..60)) {
        let mut records = written("a", 1..=3);
        let (mut a, mut b) = (3, 3);
        for turn in &turns {
            let (name, counter) = if *turn { ("a", &mut a) } else { ("b", &mut b) };
            *counter += 1;
            records.push(record(name, *counter));
        }
        let second_began = turns.iter().position(|turn| !turn);
        let both = second_began.is_some_and(|at| at > 0 || turns[at..].iter().any(|turn| *turn));
        let found = disk("one", &records);
        prop_assert_eq!(found.ran_twice(), both);
        let accused = found.faults.iter().any(|fault| matches!(fault, Fault::LostWrites { .. }));
        prop_assert!(!accused);
    }

    /// No bytes make the judge panic, and what is damaged is never taken for sound.
    #[test]
    fn garbage_is_never_sound(garbage in prop::collection::vec(any::<u8>(), SLOT_BYTES..4 * SLOT_BYTES)) {
        let found = judge(&decode_all(&garbage, 0));
        let has_content = garbage[..garbage.len() / SLOT_BYTES * SLOT_BYTES].iter().any(|byte| *byte != 0);
        prop_assert_eq!(!found.faults.is_empty(), has_content);
    }
}

//! What a guest writes on its disk, so that the disk itself tells whether a VM ran twice, lost a write or
//! booted blank.
//!
//! The last mebibyte of each image, behind the filesystem, is a journal of 64-byte records. A writer appends to
//! the first free slot *as it finds it on the disk*, with a number that it keeps in memory: two writers at once
//! therefore leave the same number twice, and instances that alternate.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Room for the journal at the end of an image.
pub const JOURNAL_BYTES: u64 = 1 << 20;
const RECORD: usize = 64;
const RECORDS_MAX: u64 = JOURNAL_BYTES / RECORD as u64;
const MAGIC: &str = "somersault demo journal of ";

/// One sign of life of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The VM instance (`metadata.uid`, shortened).
    pub instance: String,
    /// The node that it ran on.
    pub node: String,
    /// Grows by one with each entry, over all instances.
    pub number: u64,
    /// The machine's boot-time clock, the same in all namespaces.
    pub at_ms: u64,
}

/// Consecutive entries of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The instance.
    pub instance: String,
    /// Its node.
    pub node: String,
    /// First entry.
    pub first: u64,
    /// Last entry.
    pub last: u64,
    /// Time of the first entry.
    pub from_ms: u64,
    /// Time of the last entry.
    pub to_ms: u64,
}

/// What is wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// There is no journal: a blank disk.
    #[error("{}: this disk is blank", path.display())]
    Blank {
        /// The image.
        path: PathBuf,
    },
    /// No slot is free.
    #[error("{}: the journal is full", path.display())]
    Full {
        /// The image.
        path: PathBuf,
    },
    /// Two instances wrote, or a write is lost.
    #[error("{}: {why}", path.display())]
    Contradiction {
        /// The image.
        path: PathBuf,
        /// What the disk says.
        why: String,
    },
}

/// The journal of one image.
pub struct Journal {
    path: PathBuf,
    image: File,
    start: u64,
}

impl Journal {
    /// Makes the journal of a new image.
    pub fn create(image: &Path, vm: &str) -> Result<(), JournalError> {
        let journal = Self::at(image, true)?;
        journal.write(0, &format!("{MAGIC}{vm}"))
    }

    /// Opens the journal of an image; refused where there is none.
    pub fn open(image: &Path, write: bool) -> Result<Self, JournalError> {
        let journal = Self::at(image, write)?;
        if journal.slot(0)?.is_some_and(|text| text.starts_with(MAGIC)) {
            Ok(journal)
        } else {
            Err(JournalError::Blank { path: image.to_owned() })
        }
    }

    fn at(path: &Path, write: bool) -> Result<Self, JournalError> {
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let image = File::options().read(true).write(write).open(path).map_err(io)?;
        let size = image.metadata().map_err(io)?.len();
        let start =
            size.checked_sub(JOURNAL_BYTES).ok_or_else(|| JournalError::Blank { path: path.to_owned() })?;
        Ok(Self { path: path.to_owned(), image, start })
    }

    /// Every entry, in the order on the disk.
    pub fn entries(&self) -> Result<Vec<Entry>, JournalError> {
        let mut entries = Vec::new();
        for slot in 1..RECORDS_MAX {
            let Some(text) = self.slot(slot)? else { break };
            entries.push(parse(&text).ok_or_else(|| self.contradiction(format!("slot {slot} is torn")))?);
        }
        Ok(entries)
    }

    /// Appends to the first free slot from `slot` on, and returns the slot after it.
    pub fn append(&self, slot: u64, entry: &Entry) -> Result<u64, JournalError> {
        let mut slot = slot.max(1);
        while self.slot(slot)?.is_some() {
            slot += 1;
        }
        if slot >= RECORDS_MAX {
            return Err(JournalError::Full { path: self.path.clone() });
        }
        let Entry { instance, node, number, at_ms } = entry;
        self.write(slot, &format!("{instance} {node} {number} {at_ms}"))?;
        Ok(slot + 1)
    }

    /// The instances that ran on this disk, one after the other; an error where two ran at once, or where an
    /// entry is missing.
    pub fn runs(&self) -> Result<Vec<Run>, JournalError> {
        runs(&self.entries()?).map_err(|why| self.contradiction(why))
    }

    fn contradiction(&self, why: String) -> JournalError {
        JournalError::Contradiction { path: self.path.clone(), why }
    }

    fn slot(&self, slot: u64) -> Result<Option<String>, JournalError> {
        if slot >= RECORDS_MAX {
            return Ok(None);
        }
        let mut bytes = [0; RECORD];
        self.image
            .read_exact_at(&mut bytes, self.start + slot * RECORD as u64)
            .map_err(|source| JournalError::Io { path: self.path.clone(), source })?;
        let text = String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ', '\n']).to_owned();
        Ok((!text.is_empty()).then_some(text))
    }

    fn write(&self, slot: u64, text: &str) -> Result<(), JournalError> {
        let mut bytes = format!("{text:<63}\n").into_bytes();
        bytes.truncate(RECORD);
        self.image
            .write_all_at(&bytes, self.start + slot * RECORD as u64)
            .map_err(|source| JournalError::Io { path: self.path.clone(), source })
    }
}

fn parse(text: &str) -> Option<Entry> {
    let mut words = text.split(' ');
    let (instance, node) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (number, at_ms) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(Entry { instance, node, number, at_ms })
}

fn runs(entries: &[Entry]) -> Result<Vec<Run>, String> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let expected = index as u64 + 1;
        if entry.number != expected {
            return Err(format!(
                "entry {expected} of the disk calls itself {}: two instances wrote",
                entry.number
            ));
        }
        if let Some(run) = runs.last_mut().filter(|run| run.instance == entry.instance) {
            run.last = entry.number;
            run.to_ms = entry.at_ms;
            continue;
        }
        if runs.iter().any(|run| run.instance == entry.instance) {
            return Err(format!("instance {} wrote again after another one had begun", entry.instance));
        }
        runs.push(Run {
            instance: entry.instance.clone(),
            node: entry.node.clone(),
            first: entry.number,
            last: entry.number,
            from_ms: entry.at_ms,
            to_ms: entry.at_ms,
        });
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("disk.img");
        File::create(&path).and_then(|file| file.set_len(4 << 20)).expect("an image");
        (dir, path)
    }

    fn entry(instance: &str, number: u64) -> Entry {
        Entry { instance: instance.to_owned(), node: "n1".to_owned(), number, at_ms: number * 100 }
    }

    #[test]
    fn one_instance_after_the_other_is_two_runs() {
        let (_dir, path) = image();
        Journal::create(&path, "web").expect("made");
        let journal = Journal::open(&path, true).expect("opens");
        let mut slot = 0;
        for (instance, number) in [("a", 1), ("a", 2), ("b", 3)] {
            slot = journal.append(slot, &entry(instance, number)).expect("appended");
        }
        let runs = journal.runs().expect("consistent");
        let seen: Vec<_> = runs.iter().map(|run| (run.instance.as_str(), run.first, run.last)).collect();
        assert_eq!(seen, [("a", 1, 2), ("b", 3, 3)]);
    }

    #[test]
    fn two_instances_at_once_are_found_out() {
        let (_dir, path) = image();
        Journal::create(&path, "web").expect("made");
        let journal = Journal::open(&path, true).expect("opens");
        // Both began after the same last entry, and each counts for itself.
        let (first, second) = (entry("a", 1), entry("b", 1));
        let slot = journal.append(0, &first).expect("appended");
        journal.append(slot, &second).expect("appended");
        assert!(matches!(journal.runs(), Err(JournalError::Contradiction { .. })));
    }

    #[test]
    fn an_instance_that_comes_back_is_found_out() {
        let entries = [entry("a", 1), entry("b", 2), entry("a", 3)];
        assert!(runs(&entries).is_err());
    }

    #[test]
    fn a_lost_write_is_found_out() {
        let entries = [entry("a", 1), entry("a", 3)];
        assert!(runs(&entries).is_err());
    }

    #[test]
    fn a_blank_disk_is_no_journal() {
        let (_dir, path) = image();
        assert!(matches!(Journal::open(&path, false), Err(JournalError::Blank { .. })));
    }
}

//! The judge: what a disk that a guest of the stand-in has written says about who wrote on it.
//!
//! ```text
//!   slot 0   origin: blank (first guest) or image (importer), with an id of its own
//!   slot 1…  records {instance, node, counter, time} in the order of writing; counters go on from guest to guest
//!   rest     zeros
//! ```
//!
//! One reading tells whether two instances wrote by turns (a VM ran twice), whether writes are missing in between
//! (a counter jumps, a slot is blank or damaged) and how long nobody wrote. What a disk has forgotten altogether,
//! its last writes or its whole content, only a reading from before can tell: [`Disk::continues`]. Times are the
//! writers' own and serve for reports only; no fault depends on one.

mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;

pub use slot::{Content, Origin, Record, SLOT_BYTES, Source};

/// Ten records a second for a day: a disk with more is not one of a test.
const RECORDS_MAX: usize = 864_000;

/// What a disk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Where its content came from; `None` when nothing has ever been written.
    pub origin: Option<Origin>,
    /// Every whole record, in the order of writing.
    pub records: Vec<Record>,
    /// The records by writer: a writer that wrote again after another has a run more.
    pub runs: Vec<Run>,
    /// What must not be.
    pub faults: Vec<Fault>,
}

/// Who writes: an instance on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Writer {
    /// Uid of the `VirtualMachineInstance`.
    pub instance: String,
    /// Its node.
    pub node: String,
}

/// One writer's records without another's in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub writer: Writer,
    /// First counter.
    pub from: u64,
    /// Last counter.
    pub to: u64,
    /// When the first was written.
    pub began: Timestamp,
    /// When the last was written.
    pub ended: Timestamp,
}

/// What must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Two writers wrote by turns: the VM was active twice.
    RanTwice {
        /// Who wrote before and after.
        first: Writer,
        /// Who wrote in between.
        second: Writer,
    },
    /// Counters are missing.
    LostWrites {
        /// Whose record stands after the gap.
        writer: Writer,
        /// The last counter before the gap.
        after: u64,
        /// The first one after it.
        next: u64,
    },
    /// Slots before the last one are blank.
    Hole {
        /// The first blank one.
        slot: u64,
        /// The next one with content.
        until: u64,
    },
    /// A slot holds neither zeros nor a record.
    Damaged {
        /// Which.
        slot: u64,
    },
    /// Records without a word about where the disk came from.
    NoOrigin,
    /// The disk is not the one that was read before: it booted blank, or something was imported over it.
    Replaced {
        /// What was there.
        before: Origin,
        /// What is there now; `None` when the disk is blank.
        now: Option<Origin>,
    },
    /// Records that were read before are not there any more.
    Forgotten {
        /// Counter of the first one.
        counter: u64,
        /// How many.
        records: usize,
    },
}

/// Reads a `disk.img`.
pub fn read(path: &Path) -> Result<Disk> {
    let slots = slot::read_file(path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(slots.len() <= RECORDS_MAX, "{}: more than {RECORDS_MAX} records", path.display());
    Ok(judge(&slots))
}

/// Judges the slots of a disk that are not blank, in their order.
pub fn judge(slots: &[(u64, Content)]) -> Disk {
    let mut disk = Disk { origin: None, records: Vec::new(), runs: Vec::new(), faults: Vec::new() };
    let mut expected = 0;
    for (slot, content) in slots {
        if *slot > expected {
            disk.faults.push(Fault::Hole { slot: expected, until: *slot });
        }
        expected = slot + 1;
        match content {
            Content::Origin(origin) if *slot == 0 => disk.origin = Some(origin.clone()),
            Content::Record(record) => disk.records.push(record.clone()),
            Content::Origin(_) | Content::Damaged => disk.faults.push(Fault::Damaged { slot: *slot }),
        }
    }
    if disk.origin.is_none() && !disk.records.is_empty() {
        disk.faults.push(Fault::NoOrigin);
    }
    disk.runs = runs(&disk.records);
    disk.faults.extend(ran_twice(&disk.runs));
    disk.faults.extend(lost_writes(&disk.records));
    disk
}

fn runs(records: &[Record]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for record in records {
        match runs.last_mut() {
            Some(run) if run.writer == record.writer() => {
                run.to = record.counter;
                run.ended = record.time;
            }
            _ => runs.push(Run {
                writer: record.writer(),
                from: record.counter,
                to: record.counter,
                began: record.time,
                ended: record.time,
            }),
        }
    }
    runs
}

/// A writer that comes back after another, or one whose first counter was taken already: it had read the end of
/// the disk before the other had ended. Each pair is told once.
fn ran_twice(runs: &[Run]) -> Vec<Fault> {
    let mut told = BTreeSet::new();
    let mut faults = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let before = &runs[..index];
        let comes_back = before.iter().rposition(|earlier| earlier.writer == run.writer);
        let pair = match (comes_back, before.last()) {
            (Some(earlier), _) => (run.writer.clone(), runs[earlier + 1].writer.clone()),
            (None, Some(last)) if run.from <= last.to => (last.writer.clone(), run.writer.clone()),
            _ => continue,
        };
        let sorted = if pair.0 <= pair.1 { pair.clone() } else { (pair.1.clone(), pair.0.clone()) };
        if told.insert(sorted) {
            faults.push(Fault::RanTwice { first: pair.0, second: pair.1 });
        }
    }
    faults
}

/// Counters that nobody wrote: each record's is its writer's last one and one more, or the disk's for a new writer.
fn lost_writes(records: &[Record]) -> Vec<Fault> {
    let mut last: BTreeMap<Writer, u64> = BTreeMap::new();
    let (mut highest, mut faults) = (0, Vec::new());
    for record in records {
        let writer = record.writer();
        let after = last.get(&writer).copied().unwrap_or(highest);
        if record.counter > after.saturating_add(1) {
            faults.push(Fault::LostWrites { writer: writer.clone(), after, next: record.counter });
        }
        highest = highest.max(record.counter);
        last.insert(writer, record.counter);
    }
    faults
}

impl Disk {
    /// Whether two instances wrote by turns.
    pub fn ran_twice(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::RanTwice { .. }))
    }

    /// The instances that wrote, in the order of their first records.
    pub fn instances(&self) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !found.contains(&run.writer.instance.as_str()) {
                found.push(&run.writer.instance);
            }
        }
        found
    }

    /// How long nobody wrote before the run with this index began. Zero where clocks disagree.
    pub fn silence_before(&self, run: usize) -> Option<Duration> {
        let (before, run) = (self.runs.get(run.checked_sub(1)?)?, self.runs.get(run)?);
        Some(Duration::try_from(run.began.duration_since(before.ended)).unwrap_or_default())
    }

    /// What is wrong with this reading in itself, and as a later one of the disk that `earlier` has read: everything
    /// that was there must be there still.
    pub fn continues(&self, earlier: &Self) -> Vec<Fault> {
        let mut faults = self.faults.clone();
        if let Some(before) = &earlier.origin
            && self.origin.as_ref().map(|origin| &origin.id) != Some(&before.id)
        {
            faults.push(Fault::Replaced { before: before.clone(), now: self.origin.clone() });
        }
        let kept = earlier.records.iter().zip(&self.records).take_while(|(old, new)| old == new).count();
        if let Some(first) = earlier.records.get(kept) {
            faults.push(Fault::Forgotten { counter: first.counter, records: earlier.records.len() - kept });
        }
        faults
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.instance, self.node)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RanTwice { first, second } => {
                write!(f, "ran twice: {second} wrote while {first} was still writing")
            }
            Self::LostWrites { writer, after, next } => {
                write!(f, "writes lost: {writer} goes from {after} to {next}")
            }
            Self::Hole { slot, until } => write!(f, "a hole: slots {slot} to {} are blank", until - 1),
            Self::Damaged { slot } => write!(f, "slot {slot} is damaged"),
            Self::NoOrigin => f.write_str("records, but no word about where the disk came from"),
            Self::Replaced { before, now: Some(now) } => {
                write!(f, "replaced: it was {before}, and now is {now}")
            }
            Self::Replaced { before, now: None } => write!(f, "emptied: it was {before}"),
            Self::Forgotten { counter, records } => {
                write!(
                    f,
                    "{records} records that were there before are gone, the first with counter {counter}"
                )
            }
        }
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => writeln!(f, "{origin}")?,
            None => writeln!(f, "never written")?,
        }
        for (index, run) in self.runs.iter().enumerate() {
            if let Some(silence) = self.silence_before(index) {
                writeln!(f, "  silence of {:.1} s", silence.as_secs_f64())?;
            }
            writeln!(f, "  {}: {} to {}, {} to {}", run.writer, run.from, run.to, run.began, run.ended)?;
        }
        if self.faults.is_empty() {
            return f.write_str("sound: never active twice, nothing lost in between");
        }
        let faults: Vec<_> = self.faults.iter().map(|fault| format!("FAULT  {fault}")).collect();
        f.write_str(&faults.join("\n"))
    }
}

#[cfg(test)]
mod tests;

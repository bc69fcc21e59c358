//! What the source's disk cannot read: kept until it was tried twice, then told by file and range.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use somersault_agent_core::transfer::{Manifest, Unit};
use somersault_proto::model;

use super::TransferError;
use super::error::printable;

/// Ranges that are named to people; there can be thousands.
const NAMED_MAX: usize = 8;

/// What the source cannot read.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// By file and chunk: bytes of the file.
    chunks: BTreeMap<(usize, u64), Vec<model::Range>>,
    /// The last reason.
    why: String,
}

impl Unreadable {
    /// Of this chunk it is these bytes of the file.
    pub(super) fn note(&mut self, file: usize, chunk: u64, ranges: Vec<model::Range>, why: String) {
        self.chunks.insert((file, chunk), ranges);
        self.why = why;
    }

    /// Whether all could be read.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// All of it, to be asked for again chunk by chunk.
    pub(super) fn units(&self) -> impl Iterator<Item = Unit> {
        let one = |chunk: u64| std::iter::once(chunk..chunk + 1).collect();
        self.chunks.keys().map(move |(file, chunk)| Unit { file: *file, chunks: one(*chunk) })
    }

    /// What another pass could not read either.
    pub(super) fn add(&mut self, other: Self) {
        self.chunks.extend(other.chunks);
        if !other.why.is_empty() {
            self.why = other.why;
        }
    }

    /// For a copy that fails by it.
    pub(super) fn report(&self, manifest: &Manifest) -> TransferError {
        let what = self.words(manifest);
        TransferError::SourceReadFailed(format!(
            "{what}; all the rest has arrived and is kept, and nothing was made up for what is missing"
        ))
    }

    /// Which files, which bytes of them, and why.
    pub(super) fn words(&self, manifest: &Manifest) -> String {
        let mut ranges: Vec<(usize, Range<u64>)> = Vec::new();
        for ((file, _), bad) in &self.chunks {
            for range in bad {
                match ranges.last_mut() {
                    Some((of, last)) if of == file && last.end == range.offset => last.end = range.end(),
                    _ => ranges.push((*file, range.offset..range.end())),
                }
            }
        }
        let bytes: u64 = ranges.iter().map(|(_, range)| range.end - range.start).sum();
        let named = ranges.iter().take(NAMED_MAX).map(|(file, range)| {
            let path = manifest.entry(*file).map(|entry| entry.display()).unwrap_or_default();
            format!("{path} bytes {}..{}", range.start, range.end)
        });
        let named: Vec<String> = named.collect();
        let more = ranges.len().saturating_sub(NAMED_MAX);
        let more = if more == 0 { String::new() } else { format!(" and {more} ranges more") };
        format!("{bytes} bytes cannot be read: {}{more}: {}", named.join(", "), printable(&self.why))
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} chunks: {}", self.chunks.len(), printable(&self.why))
    }
}

//! Reads what the target holds: back from the device after a copy, or before one, where the journal knows nothing.

use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use somersault_agent_core::transfer::{CHUNK_BYTES, Entry, Leaf, Session, chunk_len};

use super::TransferError;
use super::copying::Files;
use super::extents::{data_chunks, holes_are_trusted};
use super::io::ChunkReader;
use super::meter::Meter;
use super::scan::shown;
use super::target::join;

/// Chunks of one piece of work, and how many are under way: deep enough for a disk to be busy.
const BATCH: u64 = 32;
const BATCHES: usize = 4;

/// Files that are read back side by side: of a small one there is one batch, and a disk waits between it and the next.
const FILES: usize = 4;

/// A chunk of a file.
pub(super) type Place = (usize, u64);

/// Reads back from the device everything that should hold data, and everything that does, but for what was read back
/// since it was written. Returns the chunks that are not what was accepted.
pub(super) async fn read_back(
    files: &Arc<Files>,
    session: &Session,
    meter: &Meter,
) -> Result<Vec<Place>, TransferError> {
    let files_of_content = (0..session.manifest().len())
        .filter(|file| session.held(*file).is_some_and(|held| held.size_bytes() > 0));
    let each = files_of_content.map(|file| read_back_file(files, session, file, meter));
    let mut wrong: Vec<Place> = stream::iter(each).buffer_unordered(FILES).try_concat().await?;
    wrong.sort_unstable();
    Ok(wrong)
}

async fn read_back_file(
    files: &Arc<Files>,
    session: &Session,
    file: usize,
    meter: &Meter,
) -> Result<Vec<Place>, TransferError> {
    let (Some(entry), Some(held)) = (session.manifest().entry(file), session.held(file)) else {
        return Ok(Vec::new());
    };
    let (reader, found) = open(files, &entry).await?;
    let in_found = |chunk: u64| {
        let behind = found.partition_point(|range| range.end <= chunk);
        found.get(behind).is_some_and(|range| range.start <= chunk)
    };
    // A chunk that should hold data and is a hole is read too, and found to be wrong.
    let is_data = |chunk: &u64| match held.leaf(*chunk) {
        Leaf::ZERO => in_found(*chunk),
        _ => session.must_read_back(file, *chunk),
    };
    let chunks = (0..held.chunks()).filter(is_data);
    let mut wrong = Vec::new();
    hash(&reader, &entry, ranges(chunks), |chunk, leaf| {
        meter.worked(CHUNK_BYTES);
        if leaf != held.leaf(chunk) {
            wrong.push((file, chunk));
        }
    })
    .await?;
    Ok(wrong)
}

/// Finds out what the target holds in chunks that no journal tells about.
pub(super) async fn learn(
    files: &Arc<Files>,
    session: &mut Session,
    file: usize,
    meter: &Meter,
) -> Result<(), TransferError> {
    let Some(entry) = session.manifest().entry(file) else { return Ok(()) };
    let (reader, _) = open(files, &entry).await?;
    let unknown: Vec<Range<u64>> = ranges(session.unknown(file)).collect();
    hash(&reader, &entry, unknown.into_iter(), |chunk, leaf| {
        meter.worked(CHUNK_BYTES);
        session.learn(file, chunk, leaf);
    })
    .await
}

/// Hashes chunks of a file, several batches at a time, and tells the leaves in order.
async fn hash(
    reader: &Arc<ChunkReader>,
    entry: &Entry,
    ranges: impl Iterator<Item = Range<u64>>,
    mut tell: impl FnMut(u64, Leaf),
) -> Result<(), TransferError> {
    let size_bytes = entry.size_bytes;
    let mut batches = stream::iter(ranges)
        .map(|chunks| {
            let reader = reader.clone();
            let path = shown(&entry.path);
            async move {
                let work = tokio::task::spawn_blocking(move || {
                    let leaf = |chunk: u64| leaf(&reader, size_bytes, chunk).map(|leaf| (chunk, leaf));
                    let leaves: std::io::Result<Vec<_>> = chunks.map(leaf).collect();
                    leaves.map_err(|error| TransferError::target("cannot read back", path, error))
                });
                join(work.await)
            }
        })
        .buffered(BATCHES);
    while let Some(leaves) = batches.try_next().await? {
        for (chunk, leaf) in leaves {
            tell(chunk, leaf);
        }
    }
    Ok(())
}

fn leaf(reader: &ChunkReader, size_bytes: u64, chunk: u64) -> std::io::Result<Leaf> {
    let len = usize::try_from(chunk_len(size_bytes, chunk)).unwrap_or(super::io::CHUNK);
    Ok(Leaf::of(reader.read(chunk * CHUNK_BYTES, len)?.as_ref()))
}

/// The file, and where its filesystem says that data is; nowhere where that cannot be trusted, since such a file has
/// been written as a whole.
async fn open(
    files: &Arc<Files>,
    entry: &Entry,
) -> Result<(Arc<ChunkReader>, Vec<Range<u64>>), TransferError> {
    let (files, entry) = (files.clone(), entry.clone());
    let work = tokio::task::spawn_blocking(move || {
        let reader = files.reader(&entry)?;
        let found = if holes_are_trusted(reader.file()) {
            data_chunks(reader.file(), entry.size_bytes, usize::MAX).map_err(|error| {
                TransferError::target("cannot find the holes of", shown(&entry.path), error)
            })?
        } else {
            std::iter::once(0..entry.chunks()).collect()
        };
        Ok((Arc::new(reader), found))
    });
    join(work.await)
}

/// Joins consecutive chunks, up to a batch's length.
fn ranges(chunks: impl Iterator<Item = u64>) -> impl Iterator<Item = Range<u64>> {
    let mut chunks = chunks.peekable();
    std::iter::from_fn(move || {
        let start = chunks.next()?;
        let mut end = start + 1;
        while end - start < BATCH && chunks.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_consecutive_and_bounded() {
        let chunks = (0..40).chain([50, 52, 53]);
        assert_eq!(ranges(chunks).collect::<Vec<_>>(), vec![0..32, 32..40, 50..51, 52..54]);
    }
}

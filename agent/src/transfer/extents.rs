//! Where a file may hold data, by the word of its filesystem, as far as that can be trusted.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;
use somersault_agent_core::transfer::{CHUNK_BYTES, chunk_count};

/// Filesystems whose `SEEK_DATA` reports no hole where data is, once the file has been synced; magic numbers of
/// linux/magic.h. ZFS has reported holes over dirty data (openzfs issues 11900 and 15526), and network filesystems
/// may know less than their server; those and all others are read in full.
const TRUSTED: [u64; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994];

/// Whether the holes of this file's filesystem can be believed: ext4, xfs, btrfs, tmpfs. A device has none, though its node may
/// lie on one of these.
pub(super) fn holes_are_trusted(file: impl AsFd) -> bool {
    let is_file = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !rustix::fs::fstat(&file).is_ok_and(is_file) {
        return false;
    }
    rustix::fs::fstatfs(file).is_ok_and(|stat| {
        // The type's width and sign differ between platforms; magic numbers fit 32 bits.
        u64::try_from(stat.f_type).is_ok_and(|magic| TRUSTED.contains(&magic))
    })
}

/// Chunks that may hold data, in order; at most `limit` ranges, by closing the smallest gaps. The file must have been
/// synced before.
pub(super) fn data_chunks(file: impl AsFd, size_bytes: u64, limit: usize) -> io::Result<Vec<Range<u64>>> {
    let chunks = chunk_count(size_bytes);
    if chunks == 0 {
        return Ok(Vec::new());
    }
    if !holes_are_trusted(&file) {
        return Ok(std::iter::once(0..chunks).collect());
    }
    let mut found = Vec::new();
    // Gaps below this are closed; grows when there are too many ranges.
    let mut gap = 0;
    let mut at = 0;
    while at < size_bytes {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) if start < size_bytes => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start))?.clamp(start + 1, size_bytes);
        add(&mut found, start / CHUNK_BYTES..chunk_count(end), gap);
        while found.len() > limit.max(1) {
            gap = (gap * 2).max(1);
            for range in std::mem::take(&mut found) {
                add(&mut found, range, gap);
            }
        }
        at = end;
    }
    Ok(found)
}

/// Appends a range, merged with the last one where less than or exactly `gap` chunks lie between.
fn add(found: &mut Vec<Range<u64>>, range: Range<u64>, gap: u64) {
    match found.last_mut() {
        Some(last) if range.start <= last.end.saturating_add(gap) => last.end = last.end.max(range.end),
        _ => found.push(range),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn no_data_is_taken_for_a_hole(
            size in 1_u64..40_000_000, writes in proptest::collection::vec((0_u64..40_000_000, 1_usize..9000), 0..6),
            limit in 1_usize..4,
        ) {
            let file = tempfile::tempfile().expect("a file");
            file.set_len(size).expect("set");
            let writes: Vec<_> = writes.into_iter().filter(|(at, len)| at + *len as u64 <= size).collect();
            for (at, len) in &writes {
                file.write_all_at(&vec![1; *len], *at).expect("written");
            }
            file.sync_all().expect("synced");
            for limit in [limit, 1000] {
                let found = data_chunks(&file, size, limit).expect("listed");
                prop_assert!(found.len() <= limit);
                prop_assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start));
                for (at, len) in &writes {
                    for chunk in [*at, at + *len as u64 - 1].map(|byte| byte / CHUNK_BYTES) {
                        prop_assert!(found.iter().any(|range| range.contains(&chunk)));
                    }
                }
                if writes.is_empty() && holes_are_trusted(&file) {
                    prop_assert!(found.is_empty());
                }
            }
        }
    }
}

//! What lies at the source, the same bytes in every run of the bench, and what changes in it.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use super::work::{Content, Sizes};

/// The image in its volume, as KubeVirt names it.
pub const IMAGE: &str = "disk.img";
const BLOCK: u64 = 4 << 10;
const MIB: u64 = 1 << 20;
const FOLDERS: u32 = 200;
/// One byte in this many changes: half of them in scattered blocks, half in whole MiB.
const CHANGED_SHARE: u64 = 100;
/// A vocabulary of log files and configurations.
const WORDS: usize = 4_096;

/// Fills the volume, which must not be there.
pub fn make(volume: &Path, content: Content, sizes: Sizes) -> Result<()> {
    std::fs::create_dir(volume).with_context(|| format!("creating {}", volume.display()))?;
    let image = volume.join(IMAGE);
    match content {
        Content::Dense => make_dense(&image, sizes.dense_bytes),
        Content::Sparse => make_sparse(&image, sizes),
        Content::Text => make_text(&image, sizes.text_bytes),
        Content::Files => make_files(volume, sizes.files),
    }
    .with_context(|| format!("filling {}", volume.display()))
}

fn make_dense(image: &Path, bytes: u64) -> Result<()> {
    let (mut random, mut block) = (StdRng::seed_from_u64(1), one_mib());
    let mut file = File::create_new(image)?;
    for _ in 0..bytes / MIB {
        random.fill_bytes(&mut block);
        file.write_all(&block)?;
    }
    Ok(())
}

/// A MiB of data somewhere in each ten, at the border of a block: extents as a filesystem in the image leaves them.
fn make_sparse(image: &Path, sizes: Sizes) -> Result<()> {
    let (mut random, mut block) = (StdRng::seed_from_u64(2), one_mib());
    let file = File::create_new(image)?;
    file.set_len(sizes.sparse_bytes)?;
    let slot = sizes.sparse_share * MIB;
    for start in (0..sizes.sparse_bytes).step_by(usize::try_from(slot)?) {
        random.fill_bytes(&mut block);
        let within = random.random_range(0..=(slot - MIB) / BLOCK) * BLOCK;
        file.write_all_at(&block, start + within)?;
    }
    Ok(())
}

/// Lines of a log: times, levels, words of which few are frequent, and numbers. zstd makes a quarter of it.
fn make_text(image: &Path, bytes: u64) -> Result<()> {
    const LEVELS: [&str; 4] = ["DEBUG", "INFO", "WARN", "ERROR"];
    let mut random = StdRng::seed_from_u64(3);
    let words: Vec<String> = (0..WORDS)
        .map(|_| {
            (0..random.random_range(2..10)).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
        })
        .collect();
    let mut file = BufWriter::new(File::create_new(image)?);
    let (mut left, mut line) = (bytes, Vec::new());
    for number in 0_u64.. {
        line.clear();
        write!(line, "2026-01-01T{:012}Z {} ", number, LEVELS[random.random_range(0..LEVELS.len())])?;
        for _ in 0..random.random_range(4..16) {
            // Squared twice: the first words are frequent, as in every language.
            let place = random.random::<f32>().powi(4);
            write!(line, "{} ", words[scaled(place)])?;
        }
        writeln!(line, "id={:08x} took={}us", random.random::<u32>(), random.random_range(1..100_000))?;
        let take = line.len().min(usize::try_from(left)?);
        file.write_all(&line[..take])?;
        left -= take as u64;
        if left == 0 {
            break;
        }
    }
    Ok(file.flush()?)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn scaled(place: f32) -> usize {
    ((place * WORDS as f32) as usize).min(WORDS - 1)
}

fn make_files(volume: &Path, count: u32) -> Result<()> {
    let mut random = StdRng::seed_from_u64(4);
    let mut block = vec![0; usize::try_from(BLOCK)?];
    let folder = |number: u32| -> PathBuf { volume.join(format!("folder-{:03}", number % FOLDERS)) };
    for number in 0..FOLDERS.min(count) {
        std::fs::create_dir(folder(number))?;
    }
    for number in 0..count {
        random.fill_bytes(&mut block);
        std::fs::write(folder(number).join(format!("file-{number:06}")), &block)?;
    }
    Ok(())
}

/// Writes one byte in a hundred of the image anew, other ones with each `seed`.
pub fn change(volume: &Path, seed: u64) -> Result<()> {
    let file =
        File::options().write(true).open(volume.join(IMAGE)).context("opening the image to change it")?;
    let bytes = file.metadata()?.len();
    let mut random = StdRng::seed_from_u64(seed);
    for size in [BLOCK, MIB] {
        let mut block = vec![0; usize::try_from(size)?];
        for _ in 0..(bytes / CHANGED_SHARE / 2).div_ceil(size) {
            random.fill_bytes(&mut block);
            file.write_all_at(&block, random.random_range(0..bytes / size) * size)
                .context("changing the image")?;
        }
    }
    Ok(())
}

fn one_mib() -> Vec<u8> {
    vec![0; 1 << 20]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::super::check;
    use super::*;

    const SMALL: Sizes = Sizes {
        dense_bytes: 4 * MIB,
        sparse_bytes: 40 * MIB,
        sparse_share: 10,
        text_bytes: MIB + 7,
        files: 450,
    };

    fn made(content: Content) -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().expect("a folder");
        let volume = home.path().join("volume");
        make(&volume, content, SMALL).expect("made");
        (home, volume)
    }

    #[test]
    fn images_have_the_size_that_was_asked_for() {
        for (content, bytes) in [
            (Content::Dense, SMALL.dense_bytes),
            (Content::Sparse, SMALL.sparse_bytes),
            (Content::Text, SMALL.text_bytes),
        ] {
            let (_home, volume) = made(content);
            assert_eq!(std::fs::metadata(volume.join(IMAGE)).expect("there").len(), bytes, "{content:?}");
        }
    }

    #[test]
    fn a_sparse_image_has_data_in_one_part_only() {
        let (_home, volume) = made(Content::Sparse);
        let allocated = std::fs::metadata(volume.join(IMAGE)).expect("there").blocks() * 512;
        assert!((4 * MIB..5 * MIB).contains(&allocated), "{allocated}");
    }

    #[test]
    fn files_are_spread_over_folders() {
        let (_home, volume) = made(Content::Files);
        assert_eq!(check::files(&volume).expect("read").len(), 450);
        assert_eq!(std::fs::read_dir(&volume).expect("read").count(), 200);
    }

    #[test]
    fn the_same_seed_changes_the_same_bytes() {
        let ((_home, volume), (_other_home, other)) = (made(Content::Dense), made(Content::Dense));
        let before = check::hashes(&volume).expect("read");
        for volume in [&volume, &other] {
            change(volume, 7).expect("changed");
        }
        let after = check::hashes(&volume).expect("read");
        assert_ne!(before, after);
        assert_eq!(after, check::hashes(&other).expect("read"));
    }
}

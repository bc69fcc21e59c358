//! The VMs' disks: raw sparse images with an ext4 filesystem full of files, and the guest's journal behind it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use somersault_test_support::world::command::run;

use super::layout::Layout;
use crate::guest::journal::{JOURNAL_BYTES, Journal};

const MIB: u64 = 1 << 20;

struct Disk {
    /// Node that it is on; `None` for network storage.
    node: Option<&'static str>,
    /// Folder of the volume, below the node's or the shared folder.
    volume: &'static str,
    vm: &'static str,
    size_mib: u64,
    data_mib: u64,
}

/// The volumes that `manifests/volumes.yaml` names.
const DISKS: [Disk; 6] = [
    Disk { node: None, volume: "nfs/nfs-web-root", vm: "web", size_mib: 512, data_mib: 24 },
    Disk {
        node: None,
        volume: "rbd/0001-0009-rook-ceph-0000000000000002-19b2a1de",
        vm: "queue",
        size_mib: 512,
        data_mib: 16,
    },
    Disk {
        node: Some("n1"),
        volume: "local-path/pvc-bc6fea61-cdc7-40d0-b31c-3f96ba9bef45_default_ledger-root",
        vm: "ledger",
        size_mib: 4096,
        data_mib: 32,
    },
    Disk {
        node: Some("n2"),
        volume: "local-path/pvc-5d3b7f0e-8f3c-4a44-9a39-0d52c1a9c7e2_default_wk1-system",
        vm: "wk1-vm",
        size_mib: 2048,
        data_mib: 256,
    },
    Disk {
        node: Some("n2"),
        volume: "local-path/pvc-e19c4a64-0c8a-4f0e-b6a7-7b1f4c2d9a33_default_wk1-data",
        vm: "wk1-vm",
        size_mib: 1024,
        data_mib: 96,
    },
    Disk {
        node: Some("n2"),
        volume: "hostpath/pvc-f2a0c9d1-63b7-4be2-8f16-1e5d7a8b6c44",
        vm: "desk",
        size_mib: 1024,
        data_mib: 8,
    },
];

/// Makes every disk, two at a time.
pub fn make_all(layout: &Layout) -> Result<()> {
    let (even, odd): (Vec<_>, Vec<_>) = DISKS.iter().enumerate().partition(|(index, _)| index % 2 == 0);
    std::thread::scope(|scope| {
        let work = [even, odd].map(|half| {
            scope.spawn(move || half.into_iter().try_for_each(|(index, disk)| make(layout, index, disk)))
        });
        work.into_iter().try_for_each(|half| half.join().unwrap_or_else(|_| bail!("making a disk panicked")))
    })
}

fn make(layout: &Layout, index: usize, disk: &Disk) -> Result<()> {
    let home = disk.node.map_or_else(|| layout.shared.clone(), |node| layout.node(node));
    let volume = home.join(disk.volume);
    std::fs::create_dir_all(&volume).with_context(|| format!("creating {}", volume.display()))?;
    let image = volume.join("disk.img");
    let size = disk.size_mib * MIB;
    File::create_new(&image).and_then(|file| file.set_len(size)).context("creating an image")?;

    let content = layout.work.join("content").join(index.to_string());
    write_content(&content, disk).with_context(|| format!("writing files for {}", disk.vm))?;
    let blocks = format!("{}k", (size - JOURNAL_BYTES) / 1024);
    let arguments = ["-q".as_ref(), "-F".as_ref(), "-d".as_ref(), content.as_os_str()];
    run("mkfs.ext4", arguments.into_iter().chain([image.as_os_str(), blocks.as_ref()]))?;
    Journal::create(&image, disk.vm)?;
    std::fs::remove_dir_all(&content).context("removing the files that are in the image now")
}

/// What a guest's filesystem holds: text, data that does not compress, an empty file, a link.
fn write_content(folder: &Path, disk: &Disk) -> io::Result<()> {
    let data = folder.join("var/lib/data");
    std::fs::create_dir_all(&data)?;
    std::fs::create_dir_all(folder.join("etc"))?;
    std::fs::write(folder.join("etc/hostname"), format!("{}\n", disk.vm))?;
    std::fs::write(folder.join("etc/empty"), "")?;
    std::os::unix::fs::symlink("../etc/hostname", folder.join("var/name"))?;
    let file_mib = 8;
    for number in 0..disk.data_mib / file_mib {
        let name = format!("{number:02}.bin");
        let seed = format!("{} {name}", disk.volume);
        let mut noise = blake3::Hasher::new().update(seed.as_bytes()).finalize_xof();
        let mut file = File::create(data.join(name))?;
        let mut buffer = vec![0; usize::try_from(MIB).unwrap_or(usize::MAX)];
        for _ in 0..file_mib {
            noise.fill(&mut buffer);
            file.write_all(&buffer)?;
        }
    }
    Ok(())
}

/// BLAKE3 of every file inside an image's filesystem, by path; a link counts by where it points.
///
/// # Errors
/// Where `debugfs` cannot read the filesystem.
pub fn hash_files(image: &Path, scratch: &Path) -> Result<BTreeMap<PathBuf, String>> {
    if scratch.exists() {
        std::fs::remove_dir_all(scratch).context("emptying the scratch folder")?;
    }
    std::fs::create_dir_all(scratch).context("making a scratch folder")?;
    let request = format!("rdump / {}", scratch.display());
    run("debugfs", ["-R".as_ref(), request.as_ref(), image.as_os_str()])?;
    let mut hashes = BTreeMap::new();
    hash_folder(scratch, scratch, &mut hashes).with_context(|| format!("reading {}", scratch.display()))?;
    std::fs::remove_dir_all(scratch).context("removing the scratch folder")?;
    if hashes.is_empty() {
        bail!("{}: no file in it", image.display());
    }
    Ok(hashes)
}

fn hash_folder(root: &Path, folder: &Path, hashes: &mut BTreeMap<PathBuf, String>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
        let kind = entry?;
        if kind.is_dir() {
            hash_folder(root, &path, hashes)?;
            continue;
        }
        let hash = if kind.is_symlink() {
            blake3::hash(std::fs::read_link(&path)?.as_os_str().as_encoded_bytes())
        } else {
            hash_file(&path)?
        };
        hashes.insert(path.strip_prefix(root).unwrap_or(&path).to_owned(), hash.to_hex().to_string());
    }
    Ok(())
}

fn hash_file(path: &Path) -> io::Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            read => _ = hasher.update(&buffer[..read]),
        }
    }
}

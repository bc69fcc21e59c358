//! The slots of a disk, as `toolbox guest` and `toolbox import` write them (tests/cluster/go/toolbox/disk.go): a
//! line of JSON, padded with spaces, its FNV-1a checksum, a newline; 512 bytes in all.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Writer;

/// A sector, which a disk writes as a whole.
pub const SLOT_BYTES: usize = 512;
const CHECKSUM_BYTES: usize = 16;
const CONTENT_BYTES: usize = SLOT_BYTES - CHECKSUM_BYTES - 1;
const CHUNK_BYTES: u64 = 1 << 20;

/// What a slot holds that is not blank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Where the disk came from.
    Origin(Origin),
    /// A write of a guest.
    Record(Record),
    /// Neither.
    Damaged,
}

/// Where a disk came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// How.
    pub origin: Source,
    /// Random: no two disks have the same, but for copies.
    pub id: String,
    /// Instance that found it blank.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// Its node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Name of the image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// When.
    pub time: Timestamp,
}

/// How a disk got its first content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// It had none when a guest booted on it.
    Blank,
    /// An importer wrote it.
    Image,
}

/// A write of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Uid of its instance.
    pub instance: String,
    /// Its node.
    pub node: String,
    /// One more than the one before.
    pub counter: u64,
    /// By the node's clock.
    pub time: Timestamp,
}

impl Record {
    /// Who wrote it.
    pub fn writer(&self) -> Writer {
        Writer { instance: self.instance.clone(), node: self.node.clone() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Source::Blank => {
                write!(f, "disk {}, blank when {} booted on {}", self.id, self.instance, self.node)
            }
            Source::Image => write!(f, "disk {}, imported from {}", self.id, self.source),
        }
    }
}

/// Reads a slot; `None` when it is blank.
pub fn decode(slot: &[u8; SLOT_BYTES]) -> Option<Content> {
    if slot.iter().all(|byte| *byte == 0) {
        return None;
    }
    Some(parse(slot).unwrap_or(Content::Damaged))
}

fn parse(slot: &[u8; SLOT_BYTES]) -> Option<Content> {
    let (content, rest) = slot.split_at(CONTENT_BYTES);
    let (checksum, _newline) = rest.split_at(CHECKSUM_BYTES);
    let checksum = u64::from_str_radix(std::str::from_utf8(checksum).ok()?, 16).ok()?;
    if checksum != fnv1a(content) {
        return None;
    }
    let record = serde_json::from_slice(content).map(Content::Record);
    record.or_else(|_| serde_json::from_slice(content).map(Content::Origin)).ok()
}

/// <http://www.isthe.com/chongo/tech/comp/fnv/>, 64 bits, as Go's hash/fnv has it.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Every slot of a file that is not blank. Holes are not read.
pub fn read_file(path: &Path) -> Result<Vec<(u64, Content)>> {
    let mut file = File::open(path)?;
    let mut slots = Vec::new();
    let mut at = 0;
    while let Some(data) = next_data(&file, at)? {
        at = data - data % SLOT_BYTES as u64;
        file.seek(SeekFrom::Start(at))?;
        let mut chunk = Vec::new();
        Read::by_ref(&mut file).take(CHUNK_BYTES).read_to_end(&mut chunk)?;
        slots.extend(decode_all(&chunk, at / SLOT_BYTES as u64));
        at += CHUNK_BYTES;
    }
    Ok(slots)
}

/// The slots of these bytes that are not blank; the first has this number. Bytes behind the last whole slot are
/// no slot.
pub fn decode_all(bytes: &[u8], first: u64) -> Vec<(u64, Content)> {
    let (slots, _rest) = bytes.as_chunks::<SLOT_BYTES>();
    (first..).zip(slots).filter_map(|(number, slot)| Some((number, decode(slot)?))).collect()
}

/// Where the next data is; `None` when there is none.
fn next_data(file: &File, from: u64) -> Result<Option<u64>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // A block device, all of which is data.
        Err(rustix::io::Errno::INVAL) => {
            let end = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)).context("finding the end")?;
            Ok(Some(from).filter(|from| *from < end))
        }
        Err(error) => Err(error).context("finding data"),
    }
}

#[cfg(test)]
pub mod write {
    //! Writes slots as the guest does.

    use super::*;

    /// A slot with this content.
    pub fn encode(content: &impl Serialize) -> Vec<u8> {
        let mut slot = serde_json::to_vec(content).expect("JSON");
        slot.resize(CONTENT_BYTES, b' ');
        let checksum = fnv1a(&slot);
        slot.extend_from_slice(format!("{checksum:016x}\n").as_bytes());
        slot
    }
}

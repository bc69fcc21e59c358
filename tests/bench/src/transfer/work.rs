//! The works: what lies at the source, where it goes, how it is copied, and who takes part.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use super::contender::Tool;
use super::places::Filesystem;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What is copied. The names are those of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Random data to ext4.
    DenseExt4,
    /// The same to tmpfs: no disk is in the way.
    DenseTmpfs,
    /// The same to XFS.
    DenseXfs,
    /// A large image with little in it.
    Sparse,
    /// A second copy onto the first, after one byte in a hundred has changed.
    Delta,
    /// Many files.
    SmallFiles,
    /// Text over 100 Mbit/s.
    SlowLink,
    /// The target's process is killed halfway, and started again.
    Killed,
}

/// How a work is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// From nothing, at once.
    Whole,
    /// From nothing, untimed; then the source changes, and the second pass is timed.
    Changed,
    /// Killed at half; what comes after is timed.
    Killed,
}

/// What lies at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// `disk.img`, random.
    Dense,
    /// `disk.img`, mostly holes.
    Sparse,
    /// Folders of small files.
    Files,
    /// `disk.img`, text.
    Text,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub dense_bytes: u64,
    pub sparse_bytes: u64,
    /// Of the sparse image, one part in this many is data.
    pub sparse_share: u64,
    pub text_bytes: u64,
    pub files: u32,
}

impl Sizes {
    /// Those of the results.
    pub const FULL: Self = Self {
        dense_bytes: 2 * GIB,
        sparse_bytes: 10 * GIB,
        sparse_share: 10,
        text_bytes: 256 * MIB,
        files: 200_000,
    };
    /// A few seconds in all.
    pub const QUICK: Self = Self {
        dense_bytes: 64 * MIB,
        sparse_bytes: 320 * MIB,
        sparse_share: 10,
        text_bytes: 8 * MIB,
        files: 2_000,
    };
}

impl Work {
    /// Those that were asked for, each once; all of them where none was.
    pub fn chosen(asked: &[Self]) -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied().filter(|work| asked.is_empty() || asked.contains(work))
    }

    /// Where it goes.
    pub fn filesystem(self) -> Filesystem {
        match self {
            Self::DenseTmpfs => Filesystem::Tmpfs,
            Self::DenseXfs => Filesystem::Xfs,
            _ => Filesystem::Ext4,
        }
    }

    /// What lies at the source.
    pub fn content(self) -> Content {
        match self {
            Self::Sparse => Content::Sparse,
            Self::SmallFiles => Content::Files,
            Self::SlowLink => Content::Text,
            Self::DenseExt4 | Self::DenseTmpfs | Self::DenseXfs | Self::Delta | Self::Killed => {
                Content::Dense
            }
        }
    }

    /// How it is copied.
    pub fn course(self) -> Course {
        match self {
            Self::Delta => Course::Changed,
            Self::Killed => Course::Killed,
            _ => Course::Whole,
        }
    }

    /// Is there one run besides whose source lies on a disk, for the page cache of both sides?
    pub fn is_also_from_disk(self) -> bool {
        self == Self::DenseExt4
    }

    /// Speed of the link, if it is slow.
    pub fn link_mbit(self) -> Option<u32> {
        (self == Self::SlowLink).then_some(100)
    }

    /// Is the volume one image?
    pub fn is_image(self) -> bool {
        self.content() != Content::Files
    }

    /// Who takes part. Programs that only copy streams make no sparse file; only rsync and ours go on from what is there
    /// already, and compress by themselves.
    pub fn tools(self) -> &'static [Tool] {
        use Tool::{Nbdcopy, QemuImg, Rsync, Socat, Somersault, SomersaultPlain, Tar};
        match self {
            Self::DenseExt4 | Self::DenseTmpfs | Self::DenseXfs => {
                &[Somersault, SomersaultPlain, Rsync, Nbdcopy, QemuImg, Tar, Socat]
            }
            Self::Sparse => &[Somersault, SomersaultPlain, Rsync, Nbdcopy, QemuImg, Tar],
            Self::SmallFiles => &[Somersault, SomersaultPlain, Rsync, Tar],
            Self::Delta | Self::SlowLink | Self::Killed => &[Somersault, SomersaultPlain, Rsync],
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

//! The journal's file: replaced as a whole when a pass begins, appended to while it runs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use somersault_agent_core::transfer::{Encoder, Head, Record, Replay, replay};

use super::root::open_beneath;

const NAME: &str = "journal";
const NEW_NAME: &str = "journal.new";

/// Longest journal that is read. Leaves of 8 TiB, twice over; a longer one is not of our making.
const BYTES_MAX: u64 = 512 << 20;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: OwnedFd,
    encoder: Encoder,
    end: u64,
}

/// What the journal of a folder proves; `None` where there is none, or none that can be believed.
pub(super) fn read(folder: impl AsFd) -> io::Result<Option<Replay>> {
    let file = match open_beneath(folder, NAME, OFlags::RDONLY, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let size = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
    if size > BYTES_MAX {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut std::fs::File::from(file), &mut bytes)?;
    match replay(&bytes) {
        Ok(replay) => {
            if replay.valid_bytes < bytes.len() {
                let (valid, all) = (replay.valid_bytes, bytes.len());
                tracing::warn!(
                    valid,
                    all,
                    "the journal of a partial copy is damaged; its end is not believed"
                );
            }
            Ok(Some(replay))
        }
        Err(error) => {
            tracing::warn!(%error, "the journal of a partial copy is damaged; the copy is compared anew");
            Ok(None)
        }
    }
}

impl Journal {
    /// Replaces the folder's journal by one that says this. The old one stays valid until the new one is complete.
    pub(super) fn create(
        folder: impl AsFd,
        head: Head,
        records: impl Iterator<Item = Record>,
    ) -> io::Result<Self> {
        match rustix::fs::unlinkat(&folder, NEW_NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = open_beneath(&folder, NEW_NAME, flags, Mode::RUSR | Mode::WUSR)?;
        let mut journal = Self { file, encoder: Encoder::default(), end: 0 };
        for record in std::iter::once(Record::Head(head)).chain(records) {
            journal.write(&record)?;
        }
        rustix::fs::fdatasync(&journal.file)?;
        rustix::fs::renameat(&folder, NEW_NAME, &folder, NAME)?;
        rustix::fs::fsync(&folder)?;
        Ok(journal)
    }

    /// Appends records and makes them durable. What they speak of must be durable already. After a failure the journal
    /// is as it was before: what was half written is overwritten next time, or found out by its checksum.
    pub(super) fn append(&mut self, records: impl IntoIterator<Item = Record>) -> io::Result<()> {
        let (encoder, end) = (self.encoder.clone(), self.end);
        let appended = records
            .into_iter()
            .try_for_each(|record| self.write(&record))
            .and_then(|()| Ok(rustix::fs::fdatasync(&self.file)?));
        if appended.is_err() {
            (self.encoder, self.end) = (encoder, end);
        }
        appended
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let bytes = self.encoder.encode(record);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match rustix::io::pwrite(&self.file, rest, self.end) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = &rest[written..];
                    self.end += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

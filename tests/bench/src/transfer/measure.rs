//! One run: what is done before the clock, within it and after it, the same for every contender.
//!
//! ```text
//!   target emptied, page cache dropped, server up ─► │ client ──► durable │ ─► counters, caches, hashes
//!   Changed: a first copy, the source changes ─────► │                    │
//!   Killed:  a client, killed at half of the bytes ► │                    │
//! ```

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use somersault_test_support::world::power::open_log;

use super::contender::{Contender, Pass, Site};
use super::figures::{Run, Told};
use super::work::Course;
use super::world::{Side, World};
use super::{caches, check, content, places, resident};

/// How often the bytes are looked at that decide when a client is killed: at 2 GB/s it is 2 MB late.
const KILL_PERIOD: Duration = Duration::from_millis(1);
/// Of the words of a client that has failed.
const WORDS_MAX: usize = 600;

/// A contender could not make the copy: a result, and no failure of the bench.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotCopied(String);

/// A contender's turn.
pub struct Turn<'a> {
    pub world: &'a World,
    pub contender: &'a dyn Contender,
    pub site: &'a Site,
    /// Its number; no two turns of a bench have the same.
    pub run: usize,
}

/// A contender's server, killed with this value, and whatever it has started.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = Side::Source.kill_all() {
            eprintln!("{error:#}");
        }
        // Dead already; this only takes note.
        let _reaped = self.0.wait();
    }
}

impl Turn<'_> {
    /// Copies as the work wants it. `reference`: bytes that this contender sends when it is not killed.
    pub fn take(&self, course: Course, reference: u64) -> Result<Run> {
        self.clear()?;
        let _served_until_the_end = self.serve()?;
        match course {
            Course::Whole => self.timed(Pass::Whole),
            Course::Changed => {
                self.finish(self.client(Pass::Ahead)?)?;
                content::change(&self.site.source(), self.run as u64)?;
                caches::drop_all()?;
                resident::forget()?;
                self.timed(Pass::Changes)
            }
            Course::Killed => {
                let before = self.world.sent_bytes()?;
                self.kill_at(before + reference / 2)?;
                let first = self.world.sent_bytes()? - before;
                let run = self.timed(Pass::Whole)?;
                let sent_bytes = first + run.sent_bytes;
                let sent_again = Some(share(sent_bytes.saturating_sub(reference), reference));
                Ok(Run { sent_bytes, sent_again, ..run })
            }
        }
    }

    fn clear(&self) -> Result<()> {
        places::empty(&self.site.target_root)?;
        if !self.contender.is_durable() {
            std::fs::create_dir(self.site.target()).context("making the target's folder")?;
        }
        caches::drop_all()
    }

    fn serve(&self) -> Result<Server> {
        let log = open_log(&self.site.home.join("servers.log"))?;
        let mut command = self.contender.serve(self.site)?;
        let output = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut server = Server(output.spawn().context("starting a server")?);
        let listens = self.world.wait_listening(&mut server.0);
        listens.map_err(|error| NotCopied(format!("its server: {error:#}")))?;
        Ok(server)
    }

    fn client(&self, pass: Pass) -> Result<Child> {
        let said = File::create(self.site.home.join("client.log")).context("making a log")?;
        let mut command: Command = self.contender.copy(self.site, pass, self.run)?;
        let output = command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        output.spawn().context("starting a client")
    }

    fn finish(&self, mut client: Child) -> Result<()> {
        let status = client.wait()?;
        self.succeeded(status)
    }

    fn succeeded(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        let said = self.said()?;
        let words: String = said.trim().chars().take(WORDS_MAX).collect();
        bail!(NotCopied(if words.is_empty() { status.to_string() } else { words.replace('\n', "; ") }))
    }

    fn said(&self) -> Result<String> {
        let said = std::fs::read(self.site.home.join("client.log")).context("reading what a client said")?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// The copy that counts.
    fn timed(&self, pass: Pass) -> Result<Run> {
        let (source, target) = (self.site.source(), self.site.target());
        let cached = || anyhow::Ok(caches::cached_bytes(&source)? + caches::cached_bytes(&target)?);
        let (cached_before, sent_before) = (cached()?, self.world.sent_bytes()?);
        let (time, rss_bytes) = resident::watch(|| {
            let began = Instant::now();
            self.finish(self.client(pass)?)?;
            if !self.contender.is_durable() {
                self.sync()?;
            }
            Ok(began.elapsed())
        })?;
        let told = self.said()?.lines().find_map(|line| serde_json::from_str::<Told>(line).ok());
        Ok(Run {
            time: time.saturating_sub(told.map_or(Duration::ZERO, |told| told.reading_back())),
            read_back: told.map(|_| time),
            sent_bytes: self.world.sent_bytes()? - sent_before,
            rss_bytes,
            cache_bytes: cached()?.saturating_sub(cached_before),
            allocated_bytes: self.allocated()?,
            sent_again: None,
            told,
        })
    }

    /// An image by itself, so that nobody waits for what other programs have written; for many files that would be no
    /// way to do it.
    fn sync(&self) -> Result<()> {
        let target = self.site.target();
        let folder = File::open(&target).context("opening the copy's folder")?;
        if self.site.work.is_image() {
            File::open(target.join(content::IMAGE))
                .and_then(|image| image.sync_all())
                .context("syncing the copy")?;
            return folder.sync_all().context("syncing the copy's folder");
        }
        rustix::fs::syncfs(&folder).context("syncing the copies")
    }

    /// Starts a copy and kills it once the source has sent so much.
    fn kill_at(&self, bytes: u64) -> Result<()> {
        let mut client = self.client(Pass::Whole)?;
        while self.world.sent_bytes()? < bytes {
            if let Some(status) = client.try_wait()? {
                self.succeeded(status)?;
                bail!(NotCopied("it was faster than it could be killed".to_owned()));
            }
            std::thread::sleep(KILL_PERIOD);
        }
        Side::Target.kill_all()?;
        client.wait()?;
        Ok(())
    }

    fn allocated(&self) -> Result<u64> {
        let target = self.site.target();
        let blocks = |name| Ok(std::fs::metadata(target.join(name))?.blocks() * 512);
        check::files(&target)?.into_iter().map(blocks).sum()
    }
}

#[allow(clippy::cast_precision_loss)] // volumes are far smaller than 2^52 bytes
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

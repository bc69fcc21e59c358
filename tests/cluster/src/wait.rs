//! Waiting with a deadline, and saying what was in the logs when it passed.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Short beside everything that is waited for (a second and more).
const POLL: Duration = Duration::from_millis(100);
const TAIL_BYTES: u64 = 4096;
const TAIL_LINES: usize = 12;

/// A log whose last lines belong into an error message.
pub struct Log(pub PathBuf);

/// Asks `check` until it has an answer. `Ok(None)` and errors both mean "not yet"; the last error is part of
/// the message when `deadline` has passed.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    logs: &[Log],
    mut check: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let last = match check() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if started.elapsed() >= deadline {
            let tails: String = logs.iter().map(Log::tail).collect();
            let message = format!("{what}: not within {} s{tails}", deadline.as_secs());
            return Err(match last {
                Some(error) => error.context(message),
                None => anyhow!(message),
            });
        }
        std::thread::sleep(POLL);
    }
}

impl Log {
    fn tail(&self) -> String {
        let mut text = format!("\n--- end of {}\n", self.0.display());
        match self.last_bytes() {
            Ok(bytes) => {
                let content = String::from_utf8_lossy(&bytes);
                let lines: Vec<_> = content.lines().rev().take(TAIL_LINES).collect();
                text.extend(lines.iter().rev().flat_map(|line| [line, "\n"]));
            }
            Err(error) => text.push_str(&format_args!("({error})\n").to_string()),
        }
        text
    }

    fn last_bytes(&self) -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(&self.0)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_deadline_that_passes_says_what_failed_last_and_what_the_log_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("etcd.log");
        std::fs::write(&log, "first\nlast words\n").expect("a log");
        let result: Result<()> =
            until("the store answers", Duration::ZERO, &[Log(log)], || bail!("connection refused"));
        let message = format!("{:#}", result.expect_err("it never answers"));
        for part in ["the store answers: not within 0 s", "last words", "connection refused"] {
            assert!(message.contains(part), "{part:?} is missing in {message:?}");
        }
    }

    #[test]
    fn an_answer_after_errors_is_an_answer() {
        let mut tries = 0;
        let answer = until("soon", Duration::from_secs(10), &[], || {
            tries += 1;
            if tries < 3 {
                bail!("not yet");
            }
            Ok(Some(tries))
        });
        assert_eq!(answer.expect("answered"), 3);
    }
}

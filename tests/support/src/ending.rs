//! A run that is ended in order by any signal that a person, a terminal or a supervisor sends.
//!
//! ```text
//!   a thread of its own   the work ───────────────────────────► done
//!   the calling thread    waits ──► SIGINT, SIGTERM or SIGHUP ──► clean-up, then the caller ends the process
//! ```
//!
//! SIGKILL leaves no time for a clean-up: what must not outlive the run then is started by
//! [`tied`](crate::world::command::tied), from the work's thread.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// How a run has ended.
#[derive(Debug)]
pub enum Ended<T> {
    /// By itself.
    Done(T),
    /// By this signal. The work's thread is still at work on what is not there any more: the process is to end now.
    Signalled(i32),
}

/// The signals that end a run: Ctrl-C, `kill`, a terminal that was closed.
struct Signals([(SignalKind, Signal); 3]);

impl Signals {
    fn new() -> Result<Self> {
        let one = |kind| anyhow::Ok((kind, signal(kind).context("waiting for signals")?));
        Ok(Self([one(SignalKind::interrupt())?, one(SignalKind::terminate())?, one(SignalKind::hangup())?]))
    }

    async fn next(&mut self) -> i32 {
        let [(interrupt, by_interrupt), (terminate, by_terminate), (hangup, by_hangup)] = &mut self.0;
        let kind = tokio::select! {
            _ = by_interrupt.recv() => interrupt,
            _ = by_terminate.recv() => terminate,
            _ = by_hangup.recv() => hangup,
        };
        kind.as_raw_value()
    }
}

/// Does the work on a thread of its own, until it is done or a signal comes; then cleans up.
pub fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    clean_up: impl FnOnce() -> Result<()>,
) -> Result<Ended<T>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the work begins: a signal that comes as early as that counts as well.
    let mut signals = runtime.block_on(async { Signals::new() })?;
    let (done, is_done) = oneshot::channel();
    let worker = std::thread::Builder::new()
        .name("work".to_owned())
        // Nobody waits for it any more when a signal was faster.
        .spawn(move || drop(done.send(work())))
        .context("starting a thread")?;
    let ended = runtime.block_on(async {
        tokio::select! {
            result = is_done => Ok(result),
            signal = signals.next() => Err(signal),
        }
    });
    match ended {
        Ok(Ok(result)) => Ok(Ended::Done(result)),
        Ok(Err(_)) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => anyhow::bail!("the work ended without a result"),
        },
        Err(signal) => {
            clean_up()?;
            Ok(Ended::Signalled(signal))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::process::{Child, Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;
    use crate::world::command::tied;

    /// Set in the process that the test ends.
    const INSIDE: &str = "SOMERSAULT_ENDING";
    const CLEANED: &str = "cleaned up";

    /// The run: a program tied to it that repeats what it is told.
    fn be_the_run() -> ! {
        let work = || {
            let mut child = tied("cat").spawn().expect("cat starts");
            child.wait().expect("cat ends")
        };
        let clean_up = || {
            println!("{CLEANED}");
            Ok(())
        };
        let ended = run(work, clean_up).expect("a run");
        std::process::exit(if let Ended::Signalled(signal) = ended { 128 + signal } else { 1 })
    }

    fn start_a_run() -> Child {
        let test = std::env::current_exe().expect("this program");
        Command::new(test)
            .args(["--exact", "ending::tests::whatever_ends_a_run_ends_what_is_tied_to_it", "--nocapture"])
            .env(INSIDE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the run starts")
    }

    #[test]
    fn whatever_ends_a_run_ends_what_is_tied_to_it() {
        if std::env::var_os(INSIDE).is_some() {
            be_the_run();
        }
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
            let mut run = start_a_run();
            let mut told = run.stdin.take().expect("its input");
            let mut says = BufReader::new(run.stdout.take().expect("its output"));
            told.write_all(b"up?\n").expect("told");
            let mut line = String::new();
            while line.trim_end() != "up?" {
                line.clear();
                assert!(says.read_line(&mut line).expect("its output") > 0, "it ended too early");
            }
            kill(Pid::from_raw(run.id().cast_signed()), signal).expect("signalled");
            let status = run.wait().expect("the run has ended");
            let is_ordered = signal != Signal::SIGKILL;
            assert_eq!(status.code(), is_ordered.then_some(128 + signal as i32), "{signal}");
            // Only a program that has outlived the run would take this, and repeat it.
            let _nobody_listens = told.write_all(b"outlived\n");
            drop(told);
            let mut rest = String::new();
            says.read_to_string(&mut rest).expect("its output");
            assert_eq!(rest.trim_end(), if is_ordered { CLEANED } else { "" }, "{signal}");
        }
    }

    #[test]
    fn work_that_ends_by_itself_is_not_cleaned_up_after() {
        let ended = run(|| 7, || anyhow::bail!("cleaned up after")).expect("a run");
        assert!(matches!(ended, Ended::Done(7)), "{ended:?}");
    }
}

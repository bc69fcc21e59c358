//! How far a long step is: a bar on a terminal, a line for each quarter elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const TEMPLATE: &str = "{prefix} [{bar:30}] {percent:>3} % {pos} of {len}, {eta} left";
const QUARTERS: u64 = 4;

/// Progress of one step.
pub struct Progress {
    bar: ProgressBar,
    what: &'static str,
    total: u64,
    done: AtomicU64,
    is_terminal: bool,
}

impl Progress {
    /// Of so many things.
    pub fn new(what: &'static str, total: u32) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total.into()), target).with_prefix(what);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar, what, total: total.into(), done: AtomicU64::new(0), is_terminal }
    }

    /// One more is done.
    pub fn step(&self) {
        self.bar.inc(1);
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let quarter = |done: u64| done * QUARTERS / self.total.max(1);
        if !self.is_terminal && quarter(done) > quarter(done - 1) {
            println!("  {}: {done} of {}", self.what, self.total);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish();
    }
}

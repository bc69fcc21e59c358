//! A progress bar on a terminal, a line for each quarter elsewhere.

use std::cell::Cell;
use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const TEMPLATE: &str =
    "{prefix} [{bar:30}] {percent:>3} % {bytes} of {total_bytes}, {binary_bytes_per_sec} {msg}";

/// Progress of one copy.
pub struct Progress {
    bar: ProgressBar,
    what: String,
    quarters: Cell<u64>,
}

impl Progress {
    /// Of the copy of this name.
    pub fn new(what: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target).with_prefix(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("=> "));
        }
        // Quarters are printed where there is no terminal only; four are all there are.
        Self { bar, what: what.to_owned(), quarters: Cell::new(if terminal { 4 } else { 0 }) }
    }

    /// Shows how far it is.
    pub fn show(&self, done_bytes: u64, total_bytes: u64, phase: &str) {
        if total_bytes == 0 {
            return; // not known yet; an empty total would be drawn as full
        }
        self.bar.set_length(total_bytes);
        self.bar.set_position(done_bytes);
        self.bar.set_message(phase.to_owned());
        let quarters = (done_bytes * 4).checked_div(total_bytes).unwrap_or(0);
        if quarters > self.quarters.get() {
            self.quarters.set(quarters);
            println!("{}: {} % of {} MiB, {phase}", self.what, quarters * 25, total_bytes >> 20);
        }
    }

    /// Leaves the full bar on the screen.
    pub fn finish(&self) {
        self.bar.finish();
    }
}

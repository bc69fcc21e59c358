//! The most memory that a process of either side ever had (`VmHWM`), looked up while it runs: it is gone with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use somersault_test_support::world::power;

use super::world::Side;

/// The mark only rises: what a look misses is the growth of a process's last moments.
const LOOK_PERIOD: Duration = Duration::from_millis(10);

/// Does the work, and says besides how large the largest process was meanwhile.
pub fn watch<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut largest = 0;
            while !is_done.load(Ordering::Relaxed) {
                largest = look()?.max(largest);
                std::thread::sleep(LOOK_PERIOD);
            }
            anyhow::Ok(largest)
        });
        let result = work();
        is_done.store(true, Ordering::Relaxed);
        let largest = watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((result?, largest?))
    })
}

/// Lets the marks of the source's processes start anew: what they did before is not measured.
pub fn forget() -> Result<()> {
    for pid in power::census(Side::Source.name())? {
        // 5 resets the mark, see proc(5).
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting a process's VmHWM")?;
    }
    Ok(())
}

fn look() -> Result<u64> {
    let mut largest = 0;
    for side in Side::BOTH {
        for pid in power::census(side.name())? {
            // It may have ended since.
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            largest = peak_of(&status).unwrap_or_default().max(largest);
        }
    }
    Ok(largest)
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_told_in_kib() {
        assert_eq!(peak_of("VmPeak:\t  10 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2 << 20));
        assert_eq!(peak_of("Name:\ta zombie has no memory\n"), None);
    }
}

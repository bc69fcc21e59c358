//! The one place that reads the time.

use nix::time::{ClockId, clock_gettime};
use somersault_coordinator_core::BootTime;

/// Our own monotonic time, which goes on while the machine is suspended.
pub trait Clock: Send + Sync + 'static {
    /// Time since boot.
    fn now(&self) -> BootTime;
}

/// `CLOCK_BOOTTIME`. The standard library's `Instant` stops in suspend, and a lease does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> BootTime {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had CLOCK_BOOTTIME since 2.6.39");
        BootTime::from(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_goes_forward() {
        let first = BootClock.now();
        assert!(first > BootTime::ZERO);
        assert!(BootClock.now() >= first);
    }
}

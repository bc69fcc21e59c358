//! How hard content is packed before it is sent: as hard as makes the copy faster, and not at all where the connection is
//! fast enough.
//!
//! ```text
//!                                                                  begin
//!                                                                    ▼
//!   plain ──the connection is what everything waits for, and slow──► 1 ◄──► 3 ◄──► 6 ◄──► 9 ◄──► 12
//!     ▲                                                              │   up: it still waits
//!     └──────────packing is what it waits for at the lowest level────┘   down: packing is what it waits for
//! ```
//!
//! It begins with a little, since nobody knows the connection yet: what is sent plain over a slow one is sent for seconds.
//!
//! A sender tells how long it worked for a chunk (reading, hashing, packing) and how long it then waited for the connection
//! to take it. Content that does not shrink is sent as it is, and tried again only now and then.

use std::time::Duration;

/// zstd's levels, each about half as fast as the one before. Beyond the last one little is gained for disk images.
const LEVELS: [i32; 5] = [1, 3, 6, 9, 12];

/// Packing is of no use to a sender that is this fast without it, in bytes per second: the lowest level packs several times
/// as much on one core.
const FAST_BYTES_PER_S: u64 = 60 << 20;

/// Share of the time that is waiting, in percent, above which the connection is the bottleneck, and below which packing is.
const WAITING_PERCENT: (u64, u64) = (60, 15);

/// What is looked at before the level changes: long enough not to follow one slow read.
const WINDOW: Duration = Duration::from_millis(200);

/// Chunks that are not tried after one that did not shrink.
const PAUSE: u32 = 16;

/// Of what it was, in sixteenths, that packed content may be to be worth unpacking.
const WORTH_SIXTEENTHS: usize = 14;

/// What a sender has seen of its connection.
#[derive(Clone, Debug)]
pub struct Pressure {
    /// Place in [`LEVELS`]; `None` is plain.
    level: Option<usize>,
    worked: Duration,
    waited: Duration,
    bytes: u64,
    pause: u32,
}

impl Default for Pressure {
    fn default() -> Self {
        Self { level: Some(0), worked: Duration::ZERO, waited: Duration::ZERO, bytes: 0, pause: 0 }
    }
}

impl Pressure {
    /// The level for the next chunk; `None` to send it as it is.
    pub fn level(&self) -> Option<i32> {
        self.level.filter(|_| self.pause == 0).map(|level| LEVELS[level])
    }

    /// Whether packed content is worth sending as such. Where it is not, the next chunks are not tried.
    pub fn is_worth(&mut self, plain_bytes: usize, packed_bytes: usize) -> bool {
        let worth = packed_bytes <= plain_bytes / 16 * WORTH_SIXTEENTHS;
        if !worth {
            self.pause = PAUSE;
        }
        worth
    }

    /// A chunk has been handed to the connection.
    pub fn sent(&mut self, bytes: u64, worked: Duration, waited: Duration) {
        self.pause = self.pause.saturating_sub(1);
        self.worked += worked;
        self.waited += waited;
        self.bytes += bytes;
        let spent = self.worked + self.waited;
        if spent < WINDOW {
            return;
        }
        let percent = self.waited.as_micros() * 100 / spent.as_micros().max(1);
        let percent = u64::try_from(percent).unwrap_or(100);
        let micros = u64::try_from(spent.as_micros()).unwrap_or(u64::MAX).max(1);
        let slow = self.bytes.saturating_mul(1_000_000) / micros < FAST_BYTES_PER_S;
        let (waits, works) = (percent > WAITING_PERCENT.0, percent < WAITING_PERCENT.1);
        self.level = match self.level {
            None if waits && slow => Some(0),
            Some(level) if waits => Some((level + 1).min(LEVELS.len() - 1)),
            Some(level) if works => level.checked_sub(1),
            level => level,
        };
        (self.worked, self.waited, self.bytes) = (Duration::ZERO, Duration::ZERO, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 1 << 20;

    /// A sender on a link of so many bytes per second, with packing that takes `pack` for a chunk at the lowest level, twice
    /// as long at each further one, and halves it.
    fn run(pressure: &mut Pressure, chunks: u32, link: u64, pack: Duration) -> Duration {
        let mut time = Duration::ZERO;
        for _ in 0..chunks {
            let level = pressure.level().and_then(|level| LEVELS.iter().position(|known| *known == level));
            let work = level.map_or(Duration::ZERO, |level| pack * (1 << level)) + Duration::from_micros(300);
            let on_wire = if level.is_some() { CHUNK / 2 } else { CHUNK };
            let sending = Duration::from_micros(on_wire * 1_000_000 / link);
            // Work on the next chunk goes on while one is sent.
            let wait = sending.saturating_sub(work);
            pressure.sent(CHUNK, work, wait);
            time += work + wait;
        }
        time
    }

    #[test]
    fn a_fast_connection_gets_plain_content() {
        let mut pressure = Pressure::default();
        run(&mut pressure, 2000, 1 << 30, Duration::from_millis(3));
        assert_eq!(pressure.level(), None);
    }

    #[test]
    fn a_slow_connection_gets_packed_content_soon() {
        let mut pressure = Pressure::default();
        assert_eq!(pressure.level(), Some(1));
        run(&mut pressure, 200, 12 << 20, Duration::from_millis(3));
        assert!(pressure.level() > Some(1));
    }

    #[test]
    fn packing_that_is_slower_than_the_connection_is_given_up() {
        let mut pressure = Pressure::default();
        run(&mut pressure, 50, 12 << 20, Duration::from_millis(3));
        assert!(pressure.level().is_some());
        run(&mut pressure, 5000, 1 << 30, Duration::from_millis(3));
        assert_eq!(pressure.level(), None);
    }

    #[test]
    fn content_that_does_not_shrink_is_seldom_tried() {
        let mut pressure = Pressure::default();
        run(&mut pressure, 10, 12 << 20, Duration::from_millis(3));
        assert!(pressure.is_worth(1 << 20, 1 << 19) && !pressure.is_worth(1 << 20, (1 << 20) - 9));
        let tried = (0..=PAUSE).filter(|_| {
            pressure.sent(CHUNK, Duration::ZERO, Duration::from_millis(80));
            pressure.level().is_some()
        });
        assert_eq!(tried.count(), 2, "the last ones of so many");
    }
}

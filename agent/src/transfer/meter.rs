//! What a running copy tells, and what it is told: progress, the rate limit, the word to stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use somersault_agent_core::transfer::{RateLimit, RateMeter};
use tokio_util::sync::CancellationToken;

use super::PullProgress;

/// Shared by everything that works on one copy.
#[derive(Debug)]
pub(super) struct Meter {
    start: Instant,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    worked_bytes: AtomicU64,
    /// Since the start, in microseconds.
    durable_us: AtomicU64,
    rate: Mutex<RateMeter>,
    limit: Mutex<RateLimit>,
    cancel: CancellationToken,
    drop_partial: AtomicBool,
    ended: CancellationToken,
}

impl Meter {
    pub(super) fn new(limit_bytes_per_s: u64) -> Self {
        Self {
            start: Instant::now(),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            worked_bytes: AtomicU64::new(0),
            durable_us: AtomicU64::new(0),
            rate: Mutex::default(),
            limit: Mutex::new(RateLimit::new(limit_bytes_per_s)),
            cancel: CancellationToken::new(),
            drop_partial: AtomicBool::new(false),
            ended: CancellationToken::new(),
        }
    }

    /// How much of how much the target is known to hold.
    pub(super) fn set_total(&self, total_bytes: u64) {
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    pub(super) fn set_done(&self, done_bytes: u64) {
        self.done_bytes.store(done_bytes, Ordering::Relaxed);
    }

    /// Counts bytes that were written, compared or read back: whoever watches the rate sees that the copy lives, also
    /// while nothing new arrives.
    pub(super) fn worked(&self, bytes: u64) {
        self.worked_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that crossed the wire, and waits as long as the rate limit says.
    pub(super) async fn received(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        let wait = {
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.take(self.start.elapsed(), bytes)
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Everything that has arrived is on the disk.
    pub(super) fn durable(&self) {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.durable_us.store(now, Ordering::Relaxed);
    }

    /// When it last was, since the start.
    pub(super) fn until_durable(&self) -> std::time::Duration {
        std::time::Duration::from_micros(self.durable_us.load(Ordering::Relaxed))
    }

    pub(super) fn progress(&self) -> PullProgress {
        let done_bytes = self.done_bytes.load(Ordering::Relaxed);
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        PullProgress {
            done_bytes,
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            rate_bytes_per_s: rate.sample(self.start.elapsed(), self.worked_bytes.load(Ordering::Relaxed)),
        }
    }

    pub(super) fn cancel(&self, drop_partial: bool) {
        self.drop_partial.fetch_or(drop_partial, Ordering::Relaxed);
        self.cancel.cancel();
    }

    pub(super) async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// The copy is over, however it went.
    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(super) fn is_to_be_dropped(&self) -> bool {
        self.drop_partial.load(Ordering::Relaxed)
    }
}

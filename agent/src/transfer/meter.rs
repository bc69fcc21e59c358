//! What a running copy tells, and what it is told: progress, the rate limit, the word to stop.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use somersault_agent_core::transfer::{RateLimit, RateMeter};
use somersault_proto::model::CopyRates;
use tokio_util::sync::CancellationToken;

use super::PullProgress;

/// How fast the copies of this node may be. Changed while they run.
#[derive(Debug)]
pub(super) struct Rates {
    start: Instant,
    node: Mutex<RateLimit>,
    /// Of each copy, in bytes per second; 0 means no limit.
    copy: AtomicU64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { start: Instant::now(), node: Mutex::new(RateLimit::new(0)), copy: AtomicU64::new(0) }
    }
}

impl Rates {
    pub(super) fn set(&self, rates: CopyRates) {
        let bytes_per_s = |rate: Option<NonZeroU64>| rate.map_or(0, NonZeroU64::get);
        self.node.lock().unwrap_or_else(PoisonError::into_inner).set(bytes_per_s(rates.node));
        self.copy.store(bytes_per_s(rates.copy), Ordering::Relaxed);
    }

    /// Takes bytes of content, to or from here, and returns how long to wait before the next ones.
    pub(super) fn take(&self, bytes: u64) -> Duration {
        self.node.lock().unwrap_or_else(PoisonError::into_inner).take(self.start.elapsed(), bytes)
    }
}

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
    /// What its order says; `None` for no limit of its own.
    ordered: Option<NonZeroU64>,
    limit: Mutex<RateLimit>,
    rates: Arc<Rates>,
    cancel: CancellationToken,
    drop_partial: AtomicBool,
    ended: CancellationToken,
}

impl Meter {
    pub(super) fn new(ordered_bytes_per_s: Option<u64>, rates: Arc<Rates>) -> Self {
        Self {
            start: Instant::now(),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            worked_bytes: AtomicU64::new(0),
            durable_us: AtomicU64::new(0),
            rate: Mutex::default(),
            ordered: ordered_bytes_per_s.and_then(NonZeroU64::new),
            limit: Mutex::new(RateLimit::new(0)),
            rates,
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

    /// Counts bytes that crossed the wire, and waits as long as the limits say that are in force now.
    pub(super) async fn received(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        let of_each = NonZeroU64::new(self.rates.copy.load(Ordering::Relaxed));
        let lowest = [self.ordered, of_each].into_iter().flatten().min();
        let of_this = {
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.set(lowest.map_or(0, NonZeroU64::get));
            limit.take(self.start.elapsed(), bytes)
        };
        let wait = of_this.max(self.rates.take(bytes));
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
    pub(super) fn until_durable(&self) -> Duration {
        Duration::from_micros(self.durable_us.load(Ordering::Relaxed))
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

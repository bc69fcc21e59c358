//! Waiting with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Looks again and again until it holds.
pub async fn wait(
    what: &str,
    deadline: Duration,
    pause: Duration,
    mut holds: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    while !holds().await? {
        ensure!(began.elapsed() < deadline, "waited {} s in vain until {what}", deadline.as_secs());
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

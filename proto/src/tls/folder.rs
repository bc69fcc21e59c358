//! Certificates in a folder, read again when they change.
//!
//! Looked at by reading, not by watching: a mounted Secret is replaced by renaming a symbolic link beside the files,
//! which inotify tells of in several ways, and three small files each ten seconds cost nothing.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::material::TlsMaterial;
use super::source::TlsSource;

/// How often the files are read. Renewals come hours before they are needed.
const PERIOD: Duration = Duration::from_secs(10);

/// Keeps `source` at what the folder holds, for ever. Files that cannot be used, as halfway through being written,
/// change nothing and are read again.
pub async fn follow(source: TlsSource, folder: PathBuf) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_error = String::new();
    loop {
        ticks.tick().await;
        let place = folder.clone();
        // A folder on a dead mount must not stop a worker of the runtime.
        let Ok(read) = tokio::task::spawn_blocking(move || TlsMaterial::read(&place)).await else { continue };
        let current = source.current();
        let error = match read {
            Ok(new) if new.is_same_as(&current) => String::new(),
            Ok(new) if new.identity() != current.identity() => {
                format!("they are now of {}, not of {}", new.identity().san(), current.identity().san())
            }
            Ok(new) => {
                tracing::info!(folder = %folder.display(), "certificates renewed");
                source.renew(new);
                String::new()
            }
            Err(error) => error.to_string(),
        };
        // Said once, not at every look.
        if error != last_error && !error.is_empty() {
            tracing::warn!(folder = %folder.display(), error, "the old certificates stay in use");
        }
        last_error = error;
    }
}

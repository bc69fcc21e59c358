//! How healthy a disk is, from what the kernel counts and what the disk says of itself.
//!
//! ```text
//!   mounts, stalls, ext4 counters --observe-->  kernel findings --+
//!                                                                 +--hold--> Assessment
//!   smartctl's report ------observe_smart--->   SMART findings  --+
//! ```
//!
//! A finding counts from the moment it is seen and is dropped only after its own source has been seen clean
//! for [`Thresholds::clean`]: worse at once, better slowly. Silence of a source is never taken for clean, and
//! a reading that grew old is never taken for healthy: the grade is `Unknown` then.

mod grade;
mod grader;
mod kernel;
mod rules;
mod thresholds;
mod trend;

pub use grade::{Grade, Reason};
pub use grader::{Assessment, Grader};
pub use kernel::{Access, DeviceState, FilesystemErrors, FilesystemSample, IoSample, Signals};
pub use thresholds::{Thresholds, ThresholdsError};

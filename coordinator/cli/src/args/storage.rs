//! What the commands that look at storage are asked.

use std::time::Duration;

use clap::Args;

use super::{SourceArgs, duration};

/// What `disks` is asked.
#[derive(Debug, Args)]
pub struct DisksArgs {
    /// Only disks of this node
    #[arg(value_name = "NODE")]
    pub node: Option<String>,
    #[command(flatten)]
    pub source: SourceArgs,
}

/// What `volumes` is asked.
#[derive(Debug, Args)]
pub struct VolumesArgs {
    /// Only what is on this node; a storage root that nodes share is on each of them
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    #[command(flatten)]
    pub source: SourceArgs,
}

/// What `top` is asked.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Only this node, and what is on it; a storage root that nodes share is on each of them
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Look a second time after this time (such as 5m), and show what has grown in between, for a day. Agents' figures are
    /// written once a minute: in less, little is seen. 0s is one look, without growth
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration, conflicts_with = "from")]
    pub interval: Duration,
    #[command(flatten)]
    pub source: SourceArgs,
}

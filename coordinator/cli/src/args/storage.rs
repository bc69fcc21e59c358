//! What the commands that look at storage are asked.

use clap::Args;

use super::SourceArgs;

/// What `disks` is asked.
#[derive(Debug, Args)]
pub struct DisksArgs {
    /// Only disks of this node
    #[arg(value_name = "NODE")]
    pub node: Option<String>,
    #[command(flatten)]
    pub source: SourceArgs,
}

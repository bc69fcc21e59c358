//! One module per subcommand; this one says which runs.

mod adopt;
mod attest;
mod cancel;
mod check;
mod cleanup;
mod disks;
pub mod evacuate;
mod explain;
mod hold;
mod incident;
mod live;
pub mod migrate;
mod recoveries;
mod report;
mod runbook;
mod status;
mod storage;
mod top;
mod uninstall;
pub mod verdict;
mod volumes;

use crate::args::{Cli, Command};
use crate::exit::{Exit, Failure};

/// Does what the command line says.
pub fn run(cli: &Cli) -> Result<Exit, Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Status(args) => status::run(global, args),
        Command::Report(args) => report::run(global, args),
        Command::Explain(args) => explain::run(global, args),
        Command::Disks(args) => disks::run(global, args),
        Command::Volumes(args) => volumes::run(global, args),
        Command::Top(args) => top::run(global, args),
        Command::Migrate(args) => migrate::run(global, args),
        Command::Evacuate(args) => evacuate::run(global, args),
        Command::Cancel(args) => cancel::cancel(global, args),
        Command::Proceed(args) => cancel::proceed(global, args),
        Command::Cleanup(args) => cleanup::run(global, args),
        Command::Adopt(args) => adopt::run(global, args),
        Command::Attest(args) => attest::run(global, args),
        Command::ReleaseHold(args) => hold::run(global, args),
        Command::Recoveries(args) => recoveries::run(global, args),
        Command::Runbook(args) => runbook::run(global, args),
        Command::Check(args) => check::run(global, args),
        Command::Uninstall(args) => uninstall::run(global, args),
    }
}

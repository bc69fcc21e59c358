//! `kubectl somersault`: what people ask Somersault, and what they tell it.
//!
//! ```text
//!   arguments ──► World (objects of a cluster or of a dump, read once) ──► command ──► rows ──► table or JSON
//!                                                                            │
//!                                                                            └──► an object written to the cluster
//! ```
//!
//! It never talks to the coordinator: both read and write the cluster's objects, in a folder or in an API server. Each command first builds rows that
//! serialize, so that a table never shows more than `-o json` does.

mod args;
mod commands;
mod exit;
mod output;
mod requests;
mod source;
mod units;
mod wait;
mod world;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::exit::{Exit, Failure};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match commands::run(&cli) {
        Ok(exit) => exit.into(),
        Err(Failure::PipeClosed) => Exit::Ok.into(),
        Err(failure) => {
            output::complain(&failure.to_string());
            failure.exit().into()
        }
    }
}

//! Printing: tables for people, JSON for machines, and nothing hostile for terminals.
//!
//! Names and messages come from manifests that anybody may have written: control characters in them never reach a
//! terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, Write as _};

use serde::Serialize;
use somersault_coordinator::cluster::Problem;

use crate::args::Format;
use crate::exit::{Exit, Failure};

mod sheet;

pub use sheet::{cell, mood_cell, render, table};

/// Whoever types more than this has not typed yes.
const ANSWER_BYTES_MAX: u64 = 64;
/// Problems named one by one; whoever has more of them has one cause.
const PROBLEMS_SHOWN_MAX: usize = 20;

/// Prints text for people, or rows for machines.
pub fn print(format: Format, rows: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let mut answer = match format {
        Format::Table => text(),
        Format::Json => serde_json::to_string_pretty(rows)?,
    };
    if !answer.ends_with('\n') {
        answer.push('\n');
    }
    write_out(&answer)
}

/// Writes to standard output, at once and whole.
pub fn write_out(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Says on standard error what went wrong. Nobody may be listening there; that is no failure.
pub fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "error: {}", clean_lines(message));
}

/// Shows what would be done, and does not go on before somebody has typed yes.
pub fn ask(what: &str) -> Result<(), Failure> {
    let mut err = io::stderr().lock();
    write!(err, "{what}\nDo this? Type yes: ")?;
    err.flush()?;
    let mut typed = String::new();
    io::Read::take(io::stdin().lock(), ANSWER_BYTES_MAX)
        .read_line(&mut typed)
        .map_err(|error| Failure::Failed(format!("cannot read the answer: {error}")))?;
    if typed.trim() == "yes" {
        return Ok(());
    }
    Err(Failure::Refused("yes was not typed; nothing was changed".to_owned()))
}

/// Whether nobody wants colours (<https://no-color.org>).
pub fn is_colourless() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Says on standard error what people should know besides the answer.
pub fn note(message: &str) {
    let _ = writeln!(io::stderr(), "note: {}", clean_lines(message));
}

/// Names the manifests that could not be read, and says how the command then ends.
pub fn tell_problems(problems: &[Problem]) -> Exit {
    let mut err = io::stderr().lock();
    for problem in problems.iter().take(PROBLEMS_SHOWN_MAX) {
        let _ = writeln!(err, "warning: {}", clean(&describe(problem)));
    }
    if problems.len() > PROBLEMS_SHOWN_MAX {
        let _ = writeln!(err, "warning: … and {} more", problems.len() - PROBLEMS_SHOWN_MAX);
    }
    if problems.is_empty() {
        return Exit::Ok;
    }
    let _ = writeln!(
        err,
        "warning: {} manifests could not be read; the answer is made without them and may be wrong",
        problems.len()
    );
    Exit::BadManifests
}

/// A problem in one line.
pub fn describe(problem: &Problem) -> String {
    let mut text = problem.file.clone();
    if problem.document > 0 {
        let _ = write!(text, ", document {}", problem.document);
    }
    if !problem.object.is_empty() {
        let _ = write!(text, " ({})", problem.object);
    }
    format!("{text}: {}", problem.message)
}

/// How a cell is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should be.
    Good,
    /// Somebody should look.
    Doubtful,
    /// Somebody must act.
    Bad,
    /// Neither.
    Plain,
}

/// Text without control characters, and without those that change the direction of writing: in one line.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if is_hostile(c) { '\u{fffd}' } else { c }).collect())
}

/// The same for text of several lines.
pub fn clean_lines(text: &str) -> String {
    text.split('\n').map(clean).collect::<Vec<_>>().join("\n")
}

fn is_hostile(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(clean("n1\u{1b}[2J"), "n1\u{fffd}[2J");
        assert_eq!(clean("a\u{202e}b"), "a\u{fffd}b");
        assert_eq!(clean("größe"), "größe");
        assert_eq!(clean_lines("a\nb\r"), "a\nb\u{fffd}");
    }

    #[test]
    fn a_problem_names_file_document_and_object() {
        let problem = Problem {
            file: "vms.yaml".into(),
            document: 2,
            object: "VirtualMachine default/db".into(),
            message: "spec.runStrategy: must be a string".into(),
        };
        assert_eq!(
            describe(&problem),
            "vms.yaml, document 2 (VirtualMachine default/db): spec.runStrategy: must be a string"
        );
    }
}

//! Printing: tables for people, JSON for machines, and nothing hostile for terminals.
//!
//! Names and messages come from manifests that anybody may have written: control characters in them never reach a
//! terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use somersault_coordinator::cluster::Problem;

use crate::args::Format;
use crate::exit::{Exit, Failure};

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

/// A table without lines, which `grep` and `awk` can read; wrapped to the width of a terminal, never in a pipe.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || !io::stdout().is_terminal() {
        table.force_no_tty().set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    table
}

/// The table's text, its columns two blanks apart as kubectl's, and no blanks at line ends.
pub fn render(table: &mut Table) -> String {
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A cell; `-` where there is nothing to say.
pub fn cell(text: &str) -> Cell {
    Cell::new(if text.is_empty() { Cow::Borrowed("-") } else { clean(text) })
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

/// A cell with a colour, on terminals.
pub fn mood_cell(text: &str, mood: Mood) -> Cell {
    match mood {
        Mood::Good => cell(text).fg(Color::Green),
        Mood::Doubtful => cell(text).fg(Color::Yellow),
        Mood::Bad => cell(text).fg(Color::Red),
        Mood::Plain => cell(text),
    }
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

    #[test]
    fn tables_leave_no_blanks_at_line_ends() {
        let mut table = table(&["NAME", "STATE"]);
        table.add_row([cell("n1"), cell("")]);
        assert!(render(&mut table).lines().all(|line| !line.ends_with(' ')), "{}", render(&mut table));
    }
}

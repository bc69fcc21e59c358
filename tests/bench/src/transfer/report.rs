//! The results for people and for programs: one table on the terminal and in Markdown, and a line of JSON for each work
//! and tool.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{CellAlignment, Table, TableStyle};

use super::bars;
use super::contender::Tool;
use super::figures::{Line, Outcome, find};

const MIB: u64 = 1 << 20;
const HEADER: [&str; 10] = [
    "work",
    "tool",
    "median s",
    "spread s",
    "read back s",
    "times ours",
    "sent MiB",
    "memory MiB",
    "cache grew MiB",
    "on disk MiB",
];

/// All of it.
pub fn for_terminal(lines: &[Line]) -> String {
    format!("{}\n\n{}\n{}", figures(lines, NOTHING), unmeasured(lines, ""), verdicts(lines, NOTHING))
}

/// The same, with what the columns mean.
pub fn write_markdown(file: &Path, lines: &[Line]) -> Result<()> {
    let text = format!(
        "# Copies of volumes\n\n\
         Medians; spread is the slowest run less the fastest. The clock runs from the start of the client until the target \
         is durable; read back is when ours has also read all of it from the disk again, which nobody else does. Sent: what left the source's network device. Memory: the \
         largest process of either side (VmHWM). Cache: growth of the page cache by the files of both sides, where they \
         lie on a disk (fincore).\n\n{}\n\n{}\n{}\n",
        figures(lines, ASCII_MARKDOWN),
        unmeasured(lines, "- "),
        verdicts(lines, ASCII_MARKDOWN)
    );
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// One object a line.
pub fn write_json(file: &Path, lines: &[Line]) -> Result<()> {
    let mut text = String::new();
    for line in lines {
        text += &serde_json::to_string(line)?;
        text.push('\n');
    }
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

fn figures(lines: &[Line], style: TableStyle) -> Table {
    let mut table = Table::new();
    table.load_style(style).set_header(HEADER);
    for line in lines {
        let name = [line.work.to_string(), line.tool.to_string()];
        let Outcome::Measured(figures) = &line.outcome else {
            table.add_row(name.into_iter().chain([line.outcome.words().0.to_owned()]));
            continue;
        };
        let ours = find(lines, line.work, Tool::Somersault).map(|ours| figures.median_s / ours.median_s);
        let bytes =
            [figures.sent_bytes, figures.rss_max_bytes, figures.cache_growth_bytes, figures.allocated_bytes];
        let columns = [
            format!("{:.2}", figures.median_s),
            format!("{:.2}", figures.spread_s),
            figures.read_back_median_s.map_or_else(String::new, |seconds| format!("{seconds:.2}")),
            ours.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
        ];
        let bytes = bytes.map(|bytes| bytes.div_ceil(MIB).to_string());
        table.add_row(name.into_iter().chain(columns).chain(bytes));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Why there are no figures of some; each in a line.
fn unmeasured(lines: &[Line], bullet: &str) -> String {
    let mut told = String::new();
    for line in lines.iter().filter(|line| line.figures().is_none()) {
        let (word, why) = line.outcome.words();
        // Writing into memory does not fail.
        let _ = writeln!(told, "{bullet}{}, {}: {word}: {why}", line.work, line.tool);
    }
    told
}

fn verdicts(lines: &[Line], style: TableStyle) -> Table {
    let mut table = Table::new();
    table.load_style(style).set_header(["bar", "measured", ""]);
    for judged in bars::judge(lines) {
        table.add_row([judged.bar, judged.measured, judged.verdict.to_string()]);
    }
    table
}

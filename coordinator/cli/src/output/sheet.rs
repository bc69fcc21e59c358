//! Tables that stay readable on any width.
//!
//! ```text
//!   no terminal, or wide enough ────────► one line for each row: grep and awk can read it
//!   too narrow, short columns fit ──────► the long columns below their row, wrapped and named
//!   narrower still ─────────────────────► one block for each row, a line for each column
//! ```

use std::io::{self, IsTerminal};

use comfy_table::{Attribute, Color, ContentArrangement, Table, presets};

use super::{Mood, clean};

/// Blanks before what stands below a row.
const INDENT: u16 = 4;
/// Blanks between two columns, as kubectl's.
const GAP: u16 = 2;
/// Narrower than this nobody reads; a terminal that says so is not one.
const WIDTH_MIN: u16 = 20;

/// A table.
#[derive(Debug)]
pub struct Sheet {
    header: Vec<String>,
    below: Vec<bool>,
    rows: Vec<Vec<Cell>>,
}

/// A cell.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    mood: Mood,
}

/// A table with these columns.
pub fn table(header: &[&str]) -> Sheet {
    Sheet {
        header: header.iter().map(|name| (*name).to_owned()).collect(),
        below: vec![false; header.len()],
        rows: Vec::new(),
    }
}

/// A cell; `-` where there is nothing to say.
pub fn cell(text: &str) -> Cell {
    mood_cell(text, Mood::Plain)
}

/// A cell with a colour, on terminals.
pub fn mood_cell(text: &str, mood: Mood) -> Cell {
    let text = if text.is_empty() { "-".to_owned() } else { clean(text).into_owned() };
    Cell { text, mood }
}

impl Sheet {
    /// These columns hold long texts: they go below their row where there is no room.
    pub fn below(mut self, names: &[&str]) -> Self {
        for (below, name) in self.below.iter_mut().zip(&self.header) {
            *below |= names.contains(&name.as_str());
        }
        self
    }

    /// Adds a row.
    pub fn add_row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// The text for a terminal of this width; `None` where there is no terminal.
    fn lay_out(&self, width: Option<u16>, style: bool) -> String {
        let Some(width) = width.map(|width| width.max(WIDTH_MIN)) else {
            return self.lines(|_| true, style).concat();
        };
        if self.fits(width, |_| true) {
            return self.lines(|_| true, style).concat();
        }
        let is_short = |column: usize| !self.below[column];
        if self.fits(width, is_short) {
            let mut lines = self.lines(is_short, style).into_iter();
            let mut text = lines.next().unwrap_or_default();
            for (row, line) in self.rows.iter().zip(lines) {
                text.push_str(&line);
                let said = (0..row.len()).filter(|column| self.below[*column] && row[*column].text != "-");
                text.push_str(&self.block(row, said, INDENT, width, style));
            }
            return text;
        }
        let blocks = self.rows.iter().map(|row| self.block(row, 0..row.len(), 0, width, style));
        blocks.collect::<Vec<_>>().join("\n")
    }

    /// Whether these columns fit side by side.
    fn fits(&self, width: u16, shown: impl Fn(usize) -> bool) -> bool {
        let widths = self.plain(&shown, false).column_max_content_widths();
        let gaps = usize::from(GAP) * widths.len().saturating_sub(1);
        widths.into_iter().map(usize::from).sum::<usize>() + gaps <= usize::from(width)
    }

    /// Header and rows, a line each.
    fn lines(&self, shown: impl Fn(usize) -> bool, style: bool) -> Vec<String> {
        trimmed(&mut self.plain(&shown, style))
    }

    fn plain(&self, shown: &impl Fn(usize) -> bool, style: bool) -> Table {
        let mut table = bare(style);
        let bold = |name: &String| comfy_table::Cell::new(name).add_attribute(Attribute::Bold);
        let header = self.header.iter().enumerate().filter(|(column, _)| shown(*column));
        table.set_header(header.map(|(_, name)| bold(name)));
        for row in &self.rows {
            let cells = row.iter().enumerate().filter(|(column, _)| shown(*column));
            table.add_row(cells.map(|(_, cell)| cell.coloured()));
        }
        table
    }

    /// Columns of one row, one below the other, wrapped.
    fn block(
        &self,
        row: &[Cell],
        columns: impl Iterator<Item = usize>,
        indent: u16,
        width: u16,
        style: bool,
    ) -> String {
        let mut table = bare(style);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width - indent);
        for column in columns {
            let name = self.header[column].to_lowercase();
            table.add_row([comfy_table::Cell::new(format!("{name}:")), row[column].coloured()]);
        }
        let blanks = " ".repeat(usize::from(indent));
        trimmed(&mut table).into_iter().flat_map(|line| [blanks.clone(), line]).collect()
    }
}

impl Cell {
    fn coloured(&self) -> comfy_table::Cell {
        let cell = comfy_table::Cell::new(&self.text);
        match self.mood {
            Mood::Good => cell.fg(Color::Green),
            Mood::Doubtful => cell.fg(Color::Yellow),
            Mood::Bad => cell.fg(Color::Red),
            Mood::Plain => cell,
        }
    }
}

/// The table's text.
pub fn render(sheet: &Sheet) -> String {
    let terminal = io::stdout().is_terminal();
    let width = terminal.then(|| Table::new().width()).flatten();
    sheet.lay_out(width, terminal && !super::is_colourless())
}

/// No lines, no wrapping.
fn bare(style: bool) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    if style {
        table.enforce_styling();
    }
    table
}

/// Lines with their end, and no blanks before it.
fn trimmed(table: &mut Table) -> Vec<String> {
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, GAP));
    });
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        let mut sheet = table(&["VM", "NODE", "WHAT TO DO"]).below(&["WHAT TO DO"]);
        sheet.add_row([
            cell("default/db"),
            cell("n1"),
            cell("move its disks to network storage, then look at the report again"),
        ]);
        sheet.add_row([cell("default/web"), cell(""), cell("")]);
        sheet
    }

    #[test]
    fn without_a_terminal_each_row_is_a_line() {
        let text = sheet().lay_out(None, false);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.lines().all(|line| !line.ends_with(' ')), "{text}");
        assert_eq!(sheet().lay_out(Some(200), false), text);
    }

    #[test]
    fn long_texts_go_below_their_row() {
        let text = sheet().lay_out(Some(50), false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "VM           NODE");
        assert_eq!(lines[1], "default/db   n1");
        assert!(lines[2].starts_with("    what to do:  move its disks"), "{text}");
        assert_eq!(lines.last(), Some(&"default/web  -"), "nothing to say is not said: {text}");
        assert!(lines.iter().all(|line| line.len() <= 50), "{text}");
    }

    #[test]
    fn what_fits_nowhere_becomes_a_block_for_each_row() {
        let mut sheet = table(&["VM", "NODE"]);
        sheet.add_row([cell("a-namespace-with-a-name/a-vm"), cell("worker-1.example.org")]);
        sheet.add_row([cell("default/web"), cell("n2")]);
        let text = sheet.lay_out(Some(40), false);
        assert_eq!(
            text,
            "vm:    a-namespace-with-a-name/a-vm\nnode:  worker-1.example.org\n\nvm:    default/web\nnode:  n2\n"
        );
    }

    #[test]
    fn colours_take_no_room() {
        let mut sheet = table(&["STATE", "NODE"]);
        sheet.add_row([mood_cell("Healthy", Mood::Good), cell("n1")]);
        let text = sheet.lay_out(None, true);
        assert!(text.contains("\u{1b}["), "{text:?}");
        assert_eq!(sheet.lay_out(None, false), "STATE    NODE\nHealthy  n1\n");
    }
}

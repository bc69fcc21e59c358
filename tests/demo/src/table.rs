//! Tables and headings for people; plain text in the style of the command line, so that a log reads like a
//! terminal.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

/// Where there is no terminal, or one that does not know how wide it is.
const WIDTH: u16 = 118;
/// Below this, lines that break by themselves read better than columns of a few letters.
const WIDTH_MIN: u16 = 60;

/// A table with these headings.
pub fn new(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if table.width().is_none_or(|width| width < WIDTH_MIN) {
        table.set_width(WIDTH);
    }
    table.set_header(headings);
    table
}

/// Begins a part of the demo.
pub fn heading(text: &str) {
    println!("\n━━ {text} {}", "━".repeat(100_usize.saturating_sub(text.chars().count())));
}

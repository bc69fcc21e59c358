//! Tables and headings for people; plain text in the style of the command line, so that a log reads like a
//! terminal.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

/// Narrower where the terminal is.
const WIDTH: u16 = 118;

/// A table with these headings.
pub fn new(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if table.width().is_none() {
        table.set_width(WIDTH);
    }
    table.set_header(headings);
    table
}

/// Begins a part of the demo.
pub fn heading(text: &str) {
    println!("\n━━ {text} {}", "━".repeat(100_usize.saturating_sub(text.chars().count())));
}

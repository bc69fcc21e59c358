//! What was measured, for the table at the end.

use std::time::Duration;

use crate::table;

/// Rows of the last table.
#[derive(Default)]
pub struct Summary {
    rows: Vec<[String; 3]>,
}

impl Summary {
    /// Adds a time that was measured.
    pub fn time(&mut self, what: &str, measured: Duration, remark: &str) {
        self.note(what, &seconds(measured), remark);
    }

    /// Adds something that was found.
    pub fn note(&mut self, what: &str, found: &str, remark: &str) {
        self.rows.push([what, found, remark].map(str::to_owned));
    }

    /// Prints the table.
    pub fn print(&self) {
        if self.rows.is_empty() {
            return;
        }
        table::heading("Measured in this run");
        let mut table = table::new(&["what", "measured", "remark"]);
        table.add_rows(self.rows.iter().cloned());
        println!("{table}");
    }
}

/// A duration for people.
pub fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(10) {
        format!("{:.2} s", duration.as_secs_f64())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

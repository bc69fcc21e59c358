//! Words for people and for a shell. Names and paths come from manifests: whatever they hold, they must neither
//! break out of a code span nor add a word to a command.

/// A word of a shell command, quoted where it needs to be.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    // A leading dash would be read as an option, quoted or not; no Kubernetes name and no absolute path has one.
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", visible(word).replace('\'', r"'\''"))
}

/// A name as a code span, also within a table.
pub(super) fn code(text: &str) -> String {
    format!("`{}`", visible(text).replace('`', "'").replace('|', r"\|"))
}

/// Text of others within a sentence or a table cell.
pub(super) fn plain(text: &str) -> String {
    visible(text).replace('`', "'").replace('|', r"\|").replace('<', "&lt;")
}

/// A YAML string.
pub(super) fn yaml(text: &str) -> String {
    format!("\"{}\"", visible(text).replace('\\', r"\\").replace('"', "\\\""))
}

/// Text of others within a JSON string: what YAML escapes, JSON does too.
pub(super) fn json(text: &str) -> String {
    let quoted = yaml(text);
    quoted[1..quoted.len() - 1].to_owned()
}

/// Bytes in the largest binary unit that leaves at least one, with one decimal.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (name, size) in UNITS {
        if count >= size {
            let tenths = u128::from(count) * 10 / u128::from(size);
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{count} B")
}

/// The same, or the word for what nobody told.
pub(super) fn bytes_or_unknown(count: Option<u64>) -> String {
    count.map_or_else(|| "unknown".to_owned(), bytes)
}

fn visible(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

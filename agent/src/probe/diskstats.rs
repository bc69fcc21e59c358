//! `/proc/diskstats`: requests in flight and completed, for each block device.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use somersault_agent_core::health::IoSample;

use super::read_bounded;

/// Counters by device name.
pub fn read(proc_root: &Path) -> io::Result<BTreeMap<String, IoSample>> {
    Ok(parse(&read_bounded(&proc_root.join("diskstats"))?))
}

/// Parses diskstats (Documentation/admin-guide/iostats.rst of the kernel). Discards exist since 4.18, flushes
/// since 5.5; a line that is none is left out.
pub fn parse(text: &str) -> BTreeMap<String, IoSample> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<(String, IoSample)> {
    // major minor name; then reads completed, …, 5: writes completed, 9: in flight, 12: discards, 16: flushes.
    let mut fields = line.split_whitespace().skip(2);
    let name = fields.next()?.to_owned();
    let numbers: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let in_flight = *numbers.get(8)?;
    let completed =
        [0, 4, 11, 15].iter().filter_map(|at| numbers.get(*at)).fold(0_u64, |a, b| a.wrapping_add(*b));
    Some((name, IoSample { in_flight, completed }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_age_of_the_format_is_read() {
        let stats = parse(
            "   8  0 sda 10 0 0 0 20 0 0 0 3 0 0\n\
             254  0 vda 76033 13839 9692394 30620 13647 47706 4323416 17252 0 10508 48710 8014 57 1018360 784 1029 52\n\
             8 1 sda1 x\n8\n",
        );
        assert_eq!(stats["sda"], IoSample { in_flight: 3, completed: 30 });
        assert_eq!(stats["vda"], IoSample { in_flight: 0, completed: 76033 + 13647 + 8014 + 1029 });
        assert_eq!(stats.len(), 2);
    }
}

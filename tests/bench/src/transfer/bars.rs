//! What the copy must reach on two cores, beside peers of the same run. Met or not: it is told, and never fails a run.

use std::fmt;

use super::contender::Tool;
use super::figures::{Line, find};
use super::work::Work;

const MIB: u64 = 1 << 20;
/// Of each side's largest process.
const RESIDENT_MAX: u64 = 64 * MIB;
/// Of both sides' files.
const CACHED_MAX: u64 = 64 * MIB;
/// Sent again after a kill.
const AGAIN_MAX: f64 = 0.02;

/// A bar: ours in a work is at least so many times as fast as a peer.
struct Speed(Work, Tool, f64, Tool);

const SPEEDS: [Speed; 11] = [
    Speed(Work::DenseExt4, Tool::Somersault, 0.85, Tool::Socat),
    Speed(Work::DenseExt4, Tool::Somersault, 1.3, Tool::Nbdcopy),
    Speed(Work::DenseExt4, Tool::Somersault, 1.4, Tool::Rsync),
    Speed(Work::DenseExt4, Tool::SomersaultPlain, 1.2, Tool::Socat),
    Speed(Work::DenseExt4, Tool::SomersaultPlain, 2.0, Tool::Nbdcopy),
    Speed(Work::DenseExt4, Tool::SomersaultPlain, 2.2, Tool::Rsync),
    Speed(Work::Sparse, Tool::Somersault, 1.2, Tool::Nbdcopy),
    Speed(Work::Sparse, Tool::Somersault, 8.0, Tool::Rsync),
    Speed(Work::Delta, Tool::Somersault, 8.0, Tool::Rsync),
    Speed(Work::SmallFiles, Tool::Somersault, 3.0, Tool::Rsync),
    Speed(Work::SlowLink, Tool::Somersault, 1.5, Tool::Rsync),
];

/// How a bar was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Met,
    NotMet,
    /// Something was left out, or failed.
    NotMeasured,
}

/// A bar and what came out.
#[derive(Clone, Debug)]
pub struct Judged {
    pub bar: String,
    pub measured: String,
    pub verdict: Verdict,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::NotMet => "NOT MET",
            Self::NotMeasured => "not measured",
        })
    }
}

/// All bars.
pub fn judge(lines: &[Line]) -> Vec<Judged> {
    let mut judged: Vec<_> = SPEEDS.iter().map(|bar| bar.judge(lines)).collect();
    judged.push(again(lines));
    let resident = largest(lines, |_| true, |line| line.figures().map(|figures| figures.rss_max_bytes));
    judged.push(at_most_bytes("resident memory of each side's largest process", resident, RESIDENT_MAX));
    let on_disk = |work| matches!(work, Work::DenseExt4 | Work::DenseXfs);
    let cached = largest(lines, on_disk, |line| line.figures().map(|figures| figures.cache_growth_bytes));
    judged.push(at_most_bytes("page cache growth, dense", cached, CACHED_MAX));
    judged
}

impl Speed {
    fn judge(&self, lines: &[Line]) -> Judged {
        let Self(work, ours, factor, peer) = self;
        let seconds = |tool| find(lines, *work, tool).map(|figures| figures.median_s);
        let measured = seconds(*ours).zip(seconds(*peer)).map(|(ours, peer)| peer / ours);
        Judged {
            bar: format!("{work}: {ours} at least {factor}x {peer}"),
            measured: measured.map_or_else(String::new, |times| format!("{times:.2}x")),
            verdict: verdict(measured.map(|times| times >= *factor)),
        }
    }
}

fn again(lines: &[Line]) -> Judged {
    let measured = find(lines, Work::Killed, Tool::Somersault).and_then(|figures| figures.sent_again_share);
    Judged {
        bar: format!("killed at half: at most {:.0} % sent again", AGAIN_MAX * 100.0),
        measured: measured.map_or_else(String::new, |share| format!("{:.2} %", share * 100.0)),
        verdict: verdict(measured.map(|share| share <= AGAIN_MAX)),
    }
}

/// Of ours as shipped.
fn largest(
    lines: &[Line],
    works: impl Fn(Work) -> bool,
    figure: impl Fn(&Line) -> Option<u64>,
) -> Option<u64> {
    let ours = lines.iter().filter(|line| line.tool == Tool::Somersault && works(line.work));
    ours.filter_map(figure).max()
}

fn at_most_bytes(what: &str, measured: Option<u64>, most: u64) -> Judged {
    Judged {
        bar: format!("{what}: at most {} MiB", most / MIB),
        measured: measured.map_or_else(String::new, |bytes| format!("{} MiB", bytes.div_ceil(MIB))),
        verdict: verdict(measured.map(|bytes| bytes <= most)),
    }
}

fn verdict(is_met: Option<bool>) -> Verdict {
    is_met.map_or(Verdict::NotMeasured, |met| if met { Verdict::Met } else { Verdict::NotMet })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::figures::{Figures, Outcome, Run};
    use super::*;

    fn line(work: Work, tool: Tool, ms: u64, bytes: u64) -> Line {
        let run = Run {
            read_back: None,
            time: Duration::from_millis(ms),
            sent_bytes: 1,
            rss_bytes: bytes,
            cache_bytes: bytes,
            allocated_bytes: 1,
            sent_again: (work == Work::Killed).then_some(0.03),
            told: None,
        };
        Line { work, tool, outcome: Outcome::Measured(Figures::of(&[run], None).expect("measured")) }
    }

    fn told(lines: &[Line], bar: &str) -> (String, Verdict) {
        let found = judge(lines).into_iter().find(|judged| judged.bar.starts_with(bar));
        found.map(|judged| (judged.measured, judged.verdict)).expect("such a bar")
    }

    #[test]
    fn as_many_times_as_fast_is_a_ratio_of_medians() {
        let lines = [line(Work::Delta, Tool::Somersault, 500, 0), line(Work::Delta, Tool::Rsync, 4_000, 0)];
        assert_eq!(told(&lines, "delta"), ("8.00x".to_owned(), Verdict::Met));
        let slower = [line(Work::Delta, Tool::Somersault, 501, 0), lines[1].clone()];
        assert_eq!(told(&slower, "delta").1, Verdict::NotMet);
        assert_eq!(told(&lines[..1], "delta"), (String::new(), Verdict::NotMeasured));
    }

    #[test]
    fn memory_counts_for_ours_alone_and_the_cache_where_there_is_a_disk() {
        let lines = [
            line(Work::DenseExt4, Tool::Rsync, 1, 500 * MIB),
            line(Work::DenseExt4, Tool::Somersault, 1, 64 * MIB),
            line(Work::SmallFiles, Tool::Somersault, 1, 64 * MIB + 1),
        ];
        assert_eq!(told(&lines, "resident"), ("65 MiB".to_owned(), Verdict::NotMet));
        assert_eq!(told(&lines, "page cache"), ("64 MiB".to_owned(), Verdict::Met));
    }

    #[test]
    fn what_is_sent_again_has_a_bar() {
        assert_eq!(told(&[line(Work::Killed, Tool::Somersault, 1, 0)], "killed").1, Verdict::NotMet);
    }
}

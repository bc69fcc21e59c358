//! `check`: is everything there, of one version, allowed to do what it must, and awake?
//!
//! ```text
//!   API server ──► gather: facts ──► rules: findings ──► text or JSON, exit code
//!                     ▲                    │
//!                     └── --wait: again ◄──┘ while something is wrong
//! ```

use std::io::{self, IsTerminal as _};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::args::{CheckArgs, Global};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::source::{ApiServer, Source};

mod facts;
mod finding;
mod gather;
mod guard;
mod needs;
mod rights;
mod rules;

use finding::{Finding, Grade, Section, conclusion, may_mend, worst};

/// Between two looks of `--wait`: a check is about a hundred small questions.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// The answer for machines.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    result: Grade,
    /// The last line of the text.
    conclusion: String,
    sections: &'a [Section],
}

/// Runs the command.
pub fn run(global: &Global, args: &CheckArgs) -> Result<Exit, Failure> {
    let Source::Api(server) = Source::open(global)? else {
        return Err(Failure::Usage("check is about an API server; a folder has nothing to check".to_owned()));
    };
    let begun = Instant::now();
    let sections = loop {
        let (sections, unanswered) = look(&server)?;
        let left = args.wait.unwrap_or_default().saturating_sub(begun.elapsed());
        // A server that is busy may answer in a moment; a right that is missing does not come by waiting.
        let may_mend = unanswered || may_mend(&sections);
        if !may_mend || left.is_zero() {
            break sections;
        }
        thread::sleep(LOOK_EVERY.min(left));
    };
    let result = worst(&sections);
    let colour = io::stdout().is_terminal() && !output::is_colourless();
    let answer = Answer { result, conclusion: conclusion(&sections), sections: &sections };
    output::print(global.output, &answer, || finding::text(&sections, colour))?;
    // Who could not look cannot vouch.
    Ok(if result < Grade::Unseen { Exit::Ok } else { Exit::Failed })
}

/// One look, and whether some question of it was not answered. A server that does not answer at all is a finding too:
/// the first, and the only one.
fn look(server: &ApiServer) -> Result<(Vec<Section>, bool), Failure> {
    match gather::gather(server) {
        Ok((facts, unanswered)) => Ok((rules::sections(&facts), unanswered)),
        Err(Failure::Unreachable(why)) => {
            let finding = Finding::failed(
                format!("the API server {} answers", server.address()),
                vec![why],
                "everything else was not looked at",
            );
            Ok((vec![Section { name: "kubernetes", findings: vec![finding] }], true))
        }
        Err(failure) => Err(failure),
    }
}

//! A work from its beginning to its end: the source is made, contenders take turns, each copy is checked.
//!
//! In the end, where the page cache is asked about, each makes one more copy, of a source that lies on a disk: one on
//! tmpfs has no page cache that could grow.
//!
//! Who begins changes from round to round. A contender whose copy fails or is wrong takes no more turns in this work.

use anyhow::Result;

use super::check::{self, Hashes};
use super::contender::{Contender, Site, Tool};
use super::figures::{Figures, Line, Outcome, Run};
use super::measure::{NotCopied, Turn};
use super::places::Places;
use super::work::{Course, Sizes, Work};
use super::world::World;
use super::{content, places};

/// What all works have in common.
pub struct Rounds<'a> {
    pub world: &'a World,
    pub places: &'a Places,
    pub sizes: Sizes,
    pub repetitions: usize,
    /// Only these; all where there are none.
    pub tools: &'a [Tool],
}

/// One contender in one work.
struct Entrant {
    tool: Tool,
    contender: Box<dyn Contender>,
    runs: Vec<Run>,
    /// The run whose source lay on a disk.
    from_disk: Option<Run>,
    /// Bytes that it sends when nobody kills it, once that is known.
    reference: Option<u64>,
    /// Why it takes no more turns.
    out: Option<Outcome>,
}

impl Rounds<'_> {
    /// Measures all of it.
    pub fn run(&self, work: Work) -> Result<Vec<Line>> {
        let mut entrants = self.entrants(work)?;
        if entrants.is_empty() {
            return Ok(Vec::new());
        }
        println!("{work}");
        let site = Site {
            work,
            source_root: self.places.source.clone(),
            target_root: self.places.target(work.filesystem())?,
            home: self.places.home.clone(),
        };
        content::make(&site.source(), work.content(), self.sizes)?;
        let mut original = check::hashes(&site.source())?;
        if let Some(mbit) = work.link_mbit() {
            World::limit(Some(mbit))?;
        }
        let count = entrants.len();
        for round in 0..self.repetitions {
            for turn in 0..count {
                let entrant = &mut entrants[(round + turn) % count];
                if entrant.out.is_none() {
                    entrant.take_turn(self.world, &site, round * count + turn, &mut original)?;
                }
            }
        }
        if work.is_also_from_disk() {
            self.once_more(&site, &mut entrants, &mut original)?;
        }
        if work.link_mbit().is_some() {
            World::limit(None)?;
        }
        for root in [&site.source_root, &site.target_root] {
            places::empty(root)?;
        }
        Ok(entrants.into_iter().map(|entrant| entrant.line(work)).collect())
    }

    fn once_more(&self, site: &Site, entrants: &mut [Entrant], original: &mut Hashes) -> Result<()> {
        let site = Site { source_root: self.places.on_disk()?, ..site.clone() };
        content::make(&site.source(), site.work.content(), self.sizes)?;
        println!("  once more, from a disk:");
        let first = self.repetitions * entrants.len();
        for (run, entrant) in (first..).zip(entrants).filter(|(_, entrant)| entrant.out.is_none()) {
            entrant.from_disk = entrant.attempt(self.world, &site, run, Course::Whole, original)?;
            entrant.show(entrant.from_disk.as_ref());
        }
        places::empty(&site.source_root)
    }

    fn entrants(&self, work: Work) -> Result<Vec<Entrant>> {
        let asked = |tool: &&Tool| self.tools.is_empty() || self.tools.contains(tool);
        let entrant = |tool: &Tool| {
            let contender = tool.contender(&self.places.home)?;
            let out = contender.missing().map(|skipped| Outcome::Skipped { skipped });
            Ok(Entrant { tool: *tool, contender, runs: Vec::new(), from_disk: None, reference: None, out })
        };
        work.tools().iter().filter(asked).map(entrant).collect()
    }
}

impl Entrant {
    fn take_turn(&mut self, world: &World, site: &Site, run: usize, original: &mut Hashes) -> Result<()> {
        let course = site.work.course();
        if course == Course::Killed && self.reference.is_none() {
            let whole = self.attempt(world, site, run, Course::Whole, original)?;
            self.reference = whole.map(|run| run.sent_bytes);
        }
        if self.out.is_some() {
            return Ok(());
        }
        if let Some(run) = self.attempt(world, site, run, course, original)? {
            self.show(Some(&run));
            self.runs.push(run);
        }
        Ok(())
    }

    fn show(&self, run: Option<&Run>) {
        if let Some(run) = run {
            println!("  {:<18} {:>8.2} s", self.tool.to_string(), run.time.as_secs_f64());
        }
    }

    /// A run whose copy is equal to the source; without one, `out` says why.
    fn attempt(
        &mut self,
        world: &World,
        site: &Site,
        run: usize,
        course: Course,
        original: &mut Hashes,
    ) -> Result<Option<Run>> {
        let turn = Turn { world, contender: self.contender.as_ref(), site, run };
        let taken = turn.take(course, self.reference.unwrap_or_default());
        let outcome = match taken {
            Ok(run) => {
                if course == Course::Changed {
                    *original = check::hashes(&site.source())?;
                }
                match check::difference(original, &check::hashes(&site.target())?) {
                    None => return Ok(Some(run)),
                    Some(wrong) => Outcome::Wrong { wrong },
                }
            }
            Err(error) => Outcome::Failed { failed: error.downcast::<NotCopied>()?.to_string() },
        };
        let (outcome_word, why) = outcome.words();
        println!("  {:<18} {outcome_word}: {why}", self.tool.to_string());
        self.out = Some(outcome);
        Ok(None)
    }

    fn line(self, work: Work) -> Line {
        let measured = Figures::of(&self.runs, self.from_disk.as_ref()).map(Outcome::Measured);
        let none = || Outcome::Failed { failed: "it had no turn".to_owned() };
        Line { work, tool: self.tool, outcome: self.out.or(measured).unwrap_or_else(none) }
    }
}

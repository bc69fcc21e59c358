//! `report`: would each VM survive the death of its node?

use std::fmt::Write as _;

use serde::Serialize;
use somersault_coordinator_core::decision::{DecisionKind, ReportRow, report};

use super::verdict::{Verdict, decision_mood, decision_name};
use crate::args::{Global, SourceArgs};
use crate::exit::{Exit, Failure};
use crate::output::{self, Mood, cell, mood_cell, render, table};
use crate::units;
use crate::world::{self, World};

/// Every VM.
#[derive(Debug, Serialize)]
struct Report {
    vms: Vec<Row>,
    /// Manifests that could not be read.
    problems: Vec<String>,
}

/// One VM.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(flatten)]
    verdict: Verdict,
    /// Whether, and how.
    survives: Survives,
    /// From the death of the node to the VM running elsewhere; absent where a person is needed.
    expected_ms: Option<u64>,
    /// Proofs that the node could offer.
    proofs_possible: Vec<String>,
    /// What is missing for a recovery without a person.
    missing: Vec<String>,
}

/// Whether a VM survives its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Survives {
    /// Without a person.
    Yes,
    /// When a person has attested that the node is dead.
    AfterAttest,
    /// When a person brings its data back.
    ByHand,
    /// It is meant to be stopped, or nothing of it is concerned.
    NotConcerned,
}

/// Runs the command.
pub fn run(global: &Global, args: &SourceArgs) -> Result<Exit, Failure> {
    let world = World::read(global, args)?;
    let vms: Vec<Row> =
        report(&world.fleet, &world.policy.class_overrides, &world.proofs(), &world.expected_times())
            .into_iter()
            .filter(|row| global.namespace.as_ref().is_none_or(|want| row.vm.namespace == *want))
            .map(|row| Row::of(&world, &row))
            .collect();
    let report = Report { vms, problems: world.problems.iter().map(output::describe).collect() };
    output::print(global.output, &report, || text(&report.vms))?;
    Ok(world::end(&world))
}

impl Row {
    fn of(world: &World, row: &ReportRow) -> Self {
        let survives = match row.decision.kind {
            DecisionKind::NothingToDo => Survives::NotConcerned,
            DecisionKind::ManualRecovery => Survives::ByHand,
            DecisionKind::Recreate | DecisionKind::Rebuild if row.proof_missing => Survives::AfterAttest,
            DecisionKind::Recreate | DecisionKind::Rebuild => Survives::Yes,
        };
        let verdict = Verdict::of_report(world, row);
        let by_hand =
            verdict.reasons.iter().filter(|_| survives == Survives::ByHand).map(|reason| reason.summary());
        let proof = row.proof_missing.then_some("a proof that needs no person");
        let missing = by_hand.chain(proof).map(str::to_owned).collect();
        Self {
            verdict,
            survives,
            expected_ms: row.expected_ms,
            proofs_possible: row.proofs.iter().map(|kind| format!("{kind:?}")).collect(),
            missing,
        }
    }

    fn how_long(&self) -> String {
        match (self.survives, self.expected_ms) {
            (Survives::Yes, ms) => ms.map(units::seconds).unwrap_or_default(),
            (Survives::AfterAttest, _) => "until somebody attests".to_owned(),
            (Survives::ByHand, _) => "until somebody acts".to_owned(),
            (Survives::NotConcerned, _) => String::new(),
        }
    }
}

impl Survives {
    fn words(self) -> (&'static str, Mood) {
        match self {
            Self::Yes => ("yes", Mood::Good),
            Self::AfterAttest => ("after attest", Mood::Doubtful),
            Self::ByHand => ("by hand", Mood::Bad),
            Self::NotConcerned => ("not concerned", Mood::Plain),
        }
    }
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "There is no VirtualMachine here.".to_owned();
    }
    let mut table = table(&["VM", "NODE", "SURVIVES", "HOW", "HOW LONG", "WHAT IS MISSING", "WHAT TO DO"])
        .below(&["WHAT IS MISSING", "WHAT TO DO"]);
    for row in rows {
        let (survives, mood) = row.survives.words();
        let verdict = &row.verdict;
        let missing = match row.survives {
            Survives::NotConcerned => verdict.details.first().cloned().unwrap_or_default(),
            _ => row.missing.join("; "),
        };
        table.add_row([
            cell(&format!("{}/{}", verdict.namespace, verdict.name)),
            cell(verdict.node.as_deref().unwrap_or_default()),
            mood_cell(survives, mood),
            mood_cell(decision_name(verdict.decision), decision_mood(verdict.decision)),
            cell(&row.how_long()),
            cell(&missing),
            cell(&verdict.remedy),
        ]);
    }
    let count = |wanted: Survives| rows.iter().filter(|row| row.survives == wanted).count();
    let mut text = render(&table);
    let _ = write!(
        text,
        "\nIf its node died now: {} of {} VMs would be back without a person, {} after somebody attests the death, \
         {} by hand.\n",
        count(Survives::Yes),
        rows.len() - count(Survives::NotConcerned),
        count(Survives::AfterAttest),
        count(Survives::ByHand),
    );
    let broken = rows.iter().filter(|row| !row.verdict.broken_storage.is_empty()).count();
    if broken > 0 {
        let _ = writeln!(
            text,
            "{broken} VMs have broken storage already, whether a node dies or not: kubectl somersault recoveries"
        );
    }
    text
}

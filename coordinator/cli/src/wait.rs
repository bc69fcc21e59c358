//! Waiting for a migration or an evacuation, with bars on a terminal and lines elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;
use serde_json::Value;
use somersault_coordinator::cluster::manifest::{ObjectId, display};
use somersault_coordinator_core::names::Key;
use somersault_crd::evacuation::{Disruption, EvacuationStatus, PlanState};
use somersault_crd::volume_migration::{Copied, CopyProgress, Phase, VolumeMigrationStatus};
use somersault_crd::{Evacuation, VolumeMigration};

use crate::args::Global;
use crate::commands::{evacuate, migrate};
use crate::exit::{Exit, Failure};
use crate::output::{self, cell, clean, render, table};
use crate::source::{Source, install};
use crate::units;
use crate::world::World;

/// A coordinator takes up what it is asked within a second; after this, people should know that none does, and why.
const SILENCE_TOLD_AFTER: Duration = Duration::from_secs(3);
/// Lines of progress, where there is no terminal, come at every step of this many percent.
const LINE_STEP_PERCENT: u64 = 10;

/// A bar of length 0 is drawn as full; while nobody knows how much there is, nothing is done yet.
const UNKNOWN_LENGTH: u64 = 1;

/// Waits until a migration has ended, or has copied ahead and waits for a word.
pub fn migration(global: &Global, source: &Source, key: &Key, timeout: Duration) -> Result<Exit, Failure> {
    let mut bars = Bars::new();
    let mut patience = Patience::new(source, timeout);
    loop {
        let object: VolumeMigration = patience.look(&migrate::id(key))?;
        let status = object.status.unwrap_or_default();
        bars.show(key, &status);
        if let Some(why) = waits_for(&status) {
            bars.tell_once(&format!("VolumeMigration {key} waits. {why}"));
        }
        let copied_ahead = object.spec.pre_copy_only
            && status.phase == Phase::PreCopying
            && status.progress.as_ref().is_some_and(|progress| {
                progress.total_bytes > 0 && progress.done_bytes >= progress.total_bytes
            });
        if copied_ahead || migrate::has_ended(status.phase) {
            bars.clear();
            output::print(global.output, &status, || migration_text(key, &status, copied_ahead))?;
            return match status.phase {
                Phase::Succeeded | Phase::PreCopying => Ok(Exit::Ok),
                _ => Ok(Exit::Failed),
            };
        }
        patience.rest(&format!("VolumeMigration {key}"), status != VolumeMigrationStatus::default())?;
    }
}

/// How long a coordinator is waited for that looks at what was just asked: it does so within a second, and a refusal is
/// known at once then.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);
/// Between two looks at it: one small object, for a few seconds.
const ANSWER_LOOK_EVERY: Duration = Duration::from_millis(250);

/// Waits for the first word about a migration that was just asked for: has it begun, or was it refused? Says why where
/// nobody has said anything yet; it goes on then.
pub fn first_answer(source: &Source, key: &Key) -> Result<VolumeMigrationStatus, Failure> {
    let patience = Patience::new(source, ANSWER_WAIT_MAX);
    loop {
        let object: VolumeMigration = read(source, &migrate::id(key))?;
        let status = object.status.unwrap_or_default();
        if status.phase != Phase::Pending {
            return Ok(status);
        }
        let late = patience.begun.elapsed() >= ANSWER_WAIT_MAX;
        if late || source.led()? == Some(false) {
            let why = waits_for(&status).unwrap_or_else(|| patience.why_nobody());
            output::note(&format!("VolumeMigration {key} waits. {why}"));
            return Ok(status);
        }
        thread::sleep(ANSWER_LOOK_EVERY);
    }
}

/// Waits until the old volumes of these migrations are gone, or something speaks for keeping one.
pub fn removals(
    global: &Global,
    source: &Source,
    keys: &BTreeSet<&Key>,
    timeout: Duration,
) -> Result<Exit, Failure> {
    let mut patience = Patience::new(source, timeout);
    let (mut lines, mut failed) = (Vec::new(), false);
    for key in keys {
        let (reason, message) = loop {
            let object: VolumeMigration = patience.look(&migrate::id(key))?;
            let conditions = object.status.unwrap_or_default().conditions;
            let told = conditions.iter().find(|condition| condition.type_ == display::OLD_VOLUMES_REMOVED);
            match told.filter(|condition| condition.reason != display::UNDER_WAY) {
                Some(condition) => break (condition.reason.clone(), condition.message.clone()),
                None => patience.rest(&format!("the removal for VolumeMigration {key}"), told.is_some())?,
            }
        };
        let stands = if reason == display::REMOVED {
            String::new()
        } else {
            failed = true;
            // The word stays in the object, whoever has stopped waiting.
            format!(
                ". The request stands, and is done once nothing speaks against it. To take it back: kubectl patch vmig {} -n {} \
                 --type=merge -p '{{\"spec\":{{\"removeOldVolumes\":false}}}}'",
                key.name, key.namespace
            )
        };
        lines.push(format!("VolumeMigration {key}: {}: {}{stands}", clean(&reason), clean(&message)));
    }
    output::print(global.output, &lines, || lines.join("\n"))?;
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

/// Waits until a live migration has ended.
pub fn live_migration(
    global: &Global,
    source: &Source,
    id: &ObjectId,
    timeout: Duration,
) -> Result<Exit, Failure> {
    let mut patience = Patience::new(source, timeout);
    loop {
        let object: Value = patience.look(id)?;
        let status = &object["status"];
        let phase = status["phase"].as_str().unwrap_or("Pending");
        let failed = match phase {
            "Succeeded" => false,
            "Failed" => true,
            _ => {
                // KubeVirt moves it, and no coordinator of ours.
                patience.rest(&id.to_string(), true)?;
                continue;
            }
        };
        output::print(global.output, status, || {
            let state = &status["migrationState"];
            let why = state["failureReason"]
                .as_str()
                .unwrap_or("KubeVirt gives no reason: see the events of its instance");
            if failed {
                format!("{id}: Failed: {}. The VM runs where it did.", clean(why))
            } else {
                format!(
                    "{id}: Succeeded, on node {}.",
                    clean(state["targetNode"].as_str().unwrap_or("unknown"))
                )
            }
        })?;
        return Ok(if failed { Exit::Failed } else { Exit::Ok });
    }
}

/// Waits until an evacuation has ended, or waits for a word; a dry run until its plan is there.
pub fn evacuation(global: &Global, source: &Source, name: &str, timeout: Duration) -> Result<Exit, Failure> {
    let mut bars = Bars::new();
    let mut patience = Patience::new(source, timeout);
    loop {
        let object: Evacuation = patience.look(&evacuate::id(name))?;
        let status = object.status.unwrap_or_default();
        for planned in
            status.plan.iter().filter(|planned| planned.state != PlanState::Waiting && !planned.live)
        {
            let key = Key::new(planned.migration.namespace.clone(), planned.migration.name.clone());
            // It may be made only in a moment.
            if let Ok(migration) = read::<VolumeMigration>(source, &migrate::id(&key)) {
                bars.show(&key, &migration.status.unwrap_or_default());
            }
        }
        if !status.complete {
            bars.tell_stuck(&status);
        }
        // In a window nobody has to say anything.
        let waits = object.spec.disruption == Disruption::PreCopyOnly && waits_for_word(&status);
        if status.complete || waits {
            bars.clear();
            let speed = object.spec.dry_run.then(|| Speed::seen(source)).transpose()?;
            output::print(global.output, &status, || evacuation_text(name, &status, speed, waits))?;
            let failed = status.plan.iter().any(|planned| planned.state == PlanState::Failed);
            return Ok(if failed || object.spec.cancelled { Exit::Failed } else { Exit::Ok });
        }
        patience.rest(&format!("Evacuation {name}"), status != EvacuationStatus::default())?;
    }
}

/// Everything that can be copied ahead is, and nothing more happens without a person's word.
fn waits_for_word(status: &EvacuationStatus) -> bool {
    let is = |state: PlanState| status.plan.iter().any(|planned| planned.state == state);
    is(PlanState::PreCopied) && !is(PlanState::Running) && !is(PlanState::Waiting)
}

fn read<T: DeserializeOwned>(source: &Source, id: &ObjectId) -> Result<T, Failure> {
    let value = source.get(id)?.ok_or_else(|| Failure::NotFound(format!("{id} was deleted meanwhile")))?;
    serde_json::from_value(value).map_err(|error| Failure::Failed(format!("{id} cannot be read: {error}")))
}

/// What a migration that has not begun waits for, as the coordinator tells.
pub fn waits_for(status: &VolumeMigrationStatus) -> Option<String> {
    let told = status.conditions.iter().find(|condition| condition.type_ == display::COMPLETE)?;
    (status.phase == Phase::Pending).then(|| format!("{}: {}", told.reason, told.message))
}

/// How a migration stands, for people.
pub fn migration_text(key: &Key, status: &VolumeMigrationStatus, copied_ahead: bool) -> String {
    let mut text = if copied_ahead {
        format!(
            "VolumeMigration {key} has copied ahead and keeps the copy fresh. Let it stop the VM and finish: kubectl \
             somersault proceed migration/{} -n {}\n",
            key.name, key.namespace
        )
    } else {
        format!("VolumeMigration {key}: {:?}\n", status.phase)
    };
    if let Some(reason) = &status.reason {
        let _ = writeln!(text, "  {}: {}", clean(reason), clean(&status.message));
    }
    for disk in &status.disks {
        let copied = disk.copied.as_ref().map_or_else(String::new, |copied| {
            format!(", {} of {} sent", units::bytes(copied.sent_bytes), units::bytes(copied.total_bytes))
        });
        let _ = writeln!(
            text,
            "  claim {}: {} on {} -> {} on {}{copied}",
            clean(&disk.claim.name),
            clean(&disk.old_volume),
            clean(&disk.source_node),
            clean(&disk.new_volume.name),
            clean(disk.new_volume.node.as_deref().unwrap_or("every node")),
        );
    }
    if let Some(ms) = status.downtime_ms {
        let _ = writeln!(text, "  the VM stood still for {}", units::seconds(ms));
    }
    for check in status.checks.iter().filter(|check| !check.passed) {
        let _ = writeln!(text, "  check {} failed: {}", clean(&check.name), clean(&check.message));
    }
    text
}

/// `speed` is what the times of a plan that only tells are made of.
fn evacuation_text(name: &str, status: &EvacuationStatus, speed: Option<Speed>, waits: bool) -> String {
    let dry_run = speed.is_some();
    let state = |state: PlanState| match state {
        PlanState::Waiting if dry_run => "would move".to_owned(),
        PlanState::Failed if dry_run => "cannot move".to_owned(),
        state => format!("{state:?}"),
    };
    let mut text = format!("Evacuation {name}: {}\n", clean(&status.message));
    if !status.plan.is_empty() {
        let mut plan =
            table(&["VM OR CLAIM", "BYTES", "ABOUT", "MIGRATION", "STATE", "MESSAGE"]).below(&["MESSAGE"]);
        for planned in &status.plan {
            plan.add_row([
                cell(&format!("{}/{}", planned.subject.namespace, planned.subject.name)),
                cell(&if planned.live { "none".to_owned() } else { units::bytes(planned.bytes) }),
                cell(
                    &speed
                        .filter(|_| !planned.live)
                        .map_or_else(String::new, |speed| speed.words(planned.bytes)),
                ),
                cell(&if planned.live {
                    format!("live: {}", planned.migration.name)
                } else {
                    planned.migration.name.clone()
                }),
                cell(&state(planned.state)),
                cell(&planned.message),
            ]);
        }
        text.push_str(&render(&plan));
    }
    if let Some(speed) = speed {
        let _ = writeln!(text, "{}", speed.source());
    }
    if waits {
        let _ =
            writeln!(text, "Let it stop the VMs and finish: kubectl somersault proceed evacuation/{name}");
    }
    text
}

/// How fast copies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speed {
    /// In this cluster, as copies that have ended tell.
    Seen(u64),
    /// Nobody knows: what a network of 1 Gbit/s carries.
    Supposed,
}

/// 1 Gbit/s, less what the wire itself takes.
const SUPPOSED_BYTES_PER_S: u64 = 110_000_000;
/// Smaller copies tell how long it takes to begin.
const TELLING_BYTES_MIN: u64 = 64 << 20;

impl Speed {
    fn seen(source: &Source) -> Result<Self, Failure> {
        let world = World::of_cluster(source, None)?;
        let disks = world
            .migrations
            .values()
            .filter_map(|migration| migration.status.as_ref())
            .flat_map(|s| &s.disks);
        Ok(Self::of(disks.filter_map(|disk| disk.copied.as_ref())))
    }

    fn of<'a>(copies: impl Iterator<Item = &'a Copied>) -> Self {
        let telling = copies.filter(|copied| copied.sent_bytes >= TELLING_BYTES_MIN && copied.elapsed_ms > 0);
        let (bytes, ms) = telling.fold((0, 0), |(bytes, ms), copied| {
            (bytes + u128::from(copied.sent_bytes), ms + u128::from(copied.elapsed_ms))
        });
        let per_s = (bytes * 1_000).checked_div(ms).and_then(|rate| u64::try_from(rate).ok());
        per_s.filter(|rate| *rate > 0).map_or(Self::Supposed, Self::Seen)
    }

    fn bytes_per_s(self) -> u64 {
        match self {
            Self::Seen(rate) => rate,
            Self::Supposed => SUPPOSED_BYTES_PER_S,
        }
    }

    /// How long so many bytes take.
    fn words(self, bytes: u64) -> String {
        units::about(bytes / self.bytes_per_s())
    }

    /// Where it is from.
    fn source(self) -> String {
        let rate = units::bytes(self.bytes_per_s());
        match self {
            Self::Seen(_) => {
                format!("The times are those of the copies, at {rate}/s as earlier ones went here.")
            }
            Self::Supposed => format!(
                "The times are those of the copies, at {rate}/s, a network of 1 Gbit/s: no copy here has told better yet."
            ),
        }
    }
}

/// How long we wait, and whether anybody does anything.
struct Patience<'a> {
    source: &'a Source,
    begun: Instant,
    timeout: Duration,
    told: bool,
}

impl<'a> Patience<'a> {
    fn new(source: &'a Source, timeout: Duration) -> Self {
        Self { source, begun: Instant::now(), timeout, told: false }
    }

    /// The object as it is now. A server that is away for a while ends no wait: what was asked goes on without us.
    fn look<T: DeserializeOwned>(&mut self, id: &ObjectId) -> Result<T, Failure> {
        loop {
            match read(self.source, id) {
                Err(Failure::Unreachable(why)) => {
                    if !self.told {
                        self.told = true;
                        let _ = writeln!(io::stderr(), "{}; still waiting", clean(&why));
                    }
                    self.rest(&id.to_string(), true)?;
                }
                answer => return answer,
            }
        }
    }

    fn rest(&mut self, what: &str, taken_up: bool) -> Result<(), Failure> {
        let waited = self.begun.elapsed();
        let left = self.timeout.saturating_sub(waited);
        if left.is_zero() {
            let limit = units::seconds(u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX));
            return Err(Failure::TimedOut(if taken_up {
                format!("{what} has not ended after {limit}; it goes on")
            } else {
                format!("{what} was not taken up within {limit}, and still waits. {}", self.why_nobody())
            }));
        }
        if !taken_up && !self.told && waited >= SILENCE_TOLD_AFTER {
            self.told = true;
            let _ = writeln!(io::stderr(), "{what} waits. {}", self.why_nobody());
        }
        thread::sleep(self.source.look_every().min(left));
        Ok(())
    }

    /// Why nobody takes up what was asked, and what to do.
    fn why_nobody(&self) -> String {
        match self.source.led() {
            Ok(Some(false)) => {
                "No coordinator leads at the moment; it is taken up as soon as one does. What keeps it: kubectl somersault \
                 check"
                    .to_owned()
            }
            Ok(Some(true)) => format!(
                "A coordinator leads, and has not taken it up yet. What keeps it: kubectl logs -n {} deployment/{}",
                install::NAMESPACE,
                install::COORDINATOR
            ),
            Ok(None) | Err(_) => {
                "Whether a coordinator leads cannot be seen from here: kubectl somersault check".to_owned()
            }
        }
    }
}

/// One bar for each migration on a terminal; elsewhere a line when the phase or ten percent change.
struct Bars {
    multi: MultiProgress,
    by_migration: BTreeMap<Key, ProgressBar>,
    told: BTreeMap<Key, (Phase, Option<u64>)>,
    stuck: BTreeSet<String>,
    terminal: bool,
}

impl Bars {
    fn new() -> Self {
        let terminal = io::stderr().is_terminal();
        Self {
            multi: MultiProgress::new(),
            by_migration: BTreeMap::new(),
            told: BTreeMap::new(),
            stuck: BTreeSet::new(),
            terminal,
        }
    }

    fn show(&mut self, key: &Key, status: &VolumeMigrationStatus) {
        let progress = status.progress.clone().unwrap_or_default();
        if self.terminal {
            let bar = self.by_migration.entry(key.clone()).or_insert_with(|| self.multi.add(new_bar(key)));
            update(bar, status.phase, &progress);
            return;
        }
        let percent = units::percent(progress.done_bytes, progress.total_bytes);
        let state = (status.phase, percent.map(|percent| percent / LINE_STEP_PERCENT));
        if self.told.insert(key.clone(), state) != Some(state) {
            let percent = percent.map_or_else(String::new, |percent| format!(" {percent} %"));
            let words = progress_words(&progress);
            let _ =
                writeln!(io::stderr(), "{}: {:?}{percent} {words}", clean(&key.to_string()), status.phase);
        }
    }

    /// Says once why a migration of an evacuation does not begin.
    fn tell_stuck(&mut self, status: &EvacuationStatus) {
        let stuck = status.plan.iter().filter(|p| p.state == PlanState::Waiting && !p.message.is_empty());
        for planned in stuck {
            let subject = format!("{}/{}", planned.subject.namespace, planned.subject.name);
            self.tell_once(&format!("{subject} waits: {}", planned.message));
        }
    }

    /// Says something between the bars, the first time.
    fn tell_once(&mut self, text: &str) {
        let line = clean(text).into_owned();
        if self.stuck.insert(line.clone()) {
            let _ = self.multi.println(&line);
            if !self.terminal {
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }

    fn clear(&self) {
        for bar in self.by_migration.values() {
            bar.finish_and_clear();
        }
    }
}

fn new_bar(key: &Key) -> ProgressBar {
    let bar = ProgressBar::new(UNKNOWN_LENGTH);
    let template = "{prefix:28} [{bar:30}] {percent:>3} % {msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(clean(&key.to_string()).into_owned());
    bar
}

fn update(bar: &ProgressBar, phase: Phase, progress: &CopyProgress) {
    bar.set_length(progress.total_bytes.max(UNKNOWN_LENGTH));
    bar.set_position(progress.done_bytes);
    bar.set_message(format!("{phase:?} {}", progress_words(progress)));
}

fn progress_words(progress: &CopyProgress) -> String {
    if progress.total_bytes == 0 {
        return String::new();
    }
    let mut words =
        format!("{} of {}", units::bytes(progress.done_bytes), units::bytes(progress.total_bytes));
    let left = progress.total_bytes.saturating_sub(progress.done_bytes);
    if let Some(seconds) = left.checked_div(progress.rate_bytes_per_second) {
        let _ = write!(words, ", {}/s, {seconds} s left", units::bytes(progress.rate_bytes_per_second));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_plan_are_those_of_earlier_copies_where_any_tells() {
        let copied = |sent_bytes, elapsed_ms| Copied { sent_bytes, elapsed_ms, ..Copied::default() };
        assert_eq!(Speed::of([].iter()), Speed::Supposed);
        assert_eq!(Speed::of([copied(1 << 20, 5_000), copied(1 << 30, 0)].iter()), Speed::Supposed);
        let seen = Speed::of([copied(1 << 30, 8_000), copied(1 << 30, 8_000), copied(9, 9_000)].iter());
        assert_eq!(seen, Speed::Seen(128 << 20));
        assert_eq!(seen.words(20 << 30), "3 min");
    }

    #[test]
    fn a_copy_of_unknown_size_is_not_shown_as_done() {
        let bar = new_bar(&Key::new("default", "db-to-n3"));
        update(&bar, Phase::Pending, &CopyProgress::default());
        assert!(bar.position() < bar.length().unwrap_or(0));
        let done = CopyProgress { done_bytes: 7, total_bytes: 7, ..CopyProgress::default() };
        update(&bar, Phase::PreCopying, &done);
        assert_eq!((bar.position(), bar.length()), (7, Some(7)));
    }
}

//! What a check found: a line, how bad it is, why, and what to do.

use std::fmt::Write as _;

use serde::Serialize;

use crate::output::clean;

/// Causes named one by one; whoever has more of them has one reason.
const WHY_SHOWN_MAX: usize = 10;

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Grade {
    /// As it should be.
    Ok,
    /// It works, but somebody should look.
    Warning,
    /// It could not be looked at: nobody can say.
    Unseen,
    /// Somebody must act.
    Failed,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was checked.
    pub what: String,
    /// How it is.
    pub grade: Grade,
    /// Why; nothing where it is as it should be.
    pub why: Vec<String>,
    /// What to do about it.
    pub what_to_do: Option<String>,
    /// What will not happen by itself as long as it is so, for the last line: `no node can be proven dead ...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consequence: Option<String>,
    /// It may pass by itself within seconds, though it is no failure: `--wait` waits for it too.
    #[serde(skip)]
    pub passes: bool,
}

/// Findings about one part.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// The part.
    pub name: &'static str,
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            grade: Grade::Ok,
            why: Vec::new(),
            what_to_do: None,
            consequence: None,
            passes: false,
        }
    }

    /// Somebody should look.
    pub fn warning(what: impl Into<String>, why: Vec<String>, what_to_do: impl Into<String>) -> Self {
        Self { grade: Grade::Warning, why, what_to_do: Some(what_to_do.into()), ..Self::ok(what) }
    }

    /// Somebody must act.
    pub fn failed(what: impl Into<String>, why: Vec<String>, what_to_do: impl Into<String>) -> Self {
        Self { grade: Grade::Failed, why, what_to_do: Some(what_to_do.into()), ..Self::ok(what) }
    }

    /// It could not be looked at.
    pub fn unseen(what: impl Into<String>, why: &str) -> Self {
        Self {
            grade: Grade::Unseen,
            why: vec![why.to_owned()],
            what_to_do: Some("ask for the right to look, or let somebody check who has it".to_owned()),
            ..Self::ok(what)
        }
    }

    /// With what will not happen by itself as long as it is so; nothing where it is as it should be.
    pub fn so_that(mut self, consequence: impl Into<String>) -> Self {
        if self.grade != Grade::Ok {
            self.consequence = Some(consequence.into());
        }
        self
    }

    /// It may pass by itself within seconds.
    pub fn passing(self) -> Self {
        Self { passes: true, ..self }
    }

    /// Failed for these, fine where there are none.
    pub fn failed_for(what: impl Into<String>, why: Vec<String>, what_to_do: impl Into<String>) -> Self {
        if why.is_empty() { Self::ok(what) } else { Self::failed(what, why, what_to_do) }
    }

    /// Worth a look for these, fine where there are none.
    pub fn warning_for(what: impl Into<String>, why: Vec<String>, what_to_do: impl Into<String>) -> Self {
        if why.is_empty() { Self::ok(what) } else { Self::warning(what, why, what_to_do) }
    }
}

/// The worst of all.
pub fn worst(sections: &[Section]) -> Grade {
    sections
        .iter()
        .flat_map(|section| &section.findings)
        .map(|finding| finding.grade)
        .max()
        .unwrap_or(Grade::Ok)
}

/// Whether waiting may make it better.
pub fn may_mend(sections: &[Section]) -> bool {
    let mut findings = sections.iter().flat_map(|section| &section.findings);
    findings.any(|finding| finding.passes || finding.grade >= Grade::Failed)
}

/// For people: a headline for each part, a line for each finding, why and what to do below it.
pub fn text(sections: &[Section], colour: bool) -> String {
    let mut text = String::new();
    for section in sections.iter().filter(|section| !section.findings.is_empty()) {
        let _ = writeln!(text, "{}\n{}", section.name, "-".repeat(section.name.chars().count()));
        for finding in &section.findings {
            let _ = writeln!(text, "{} {}", finding.grade.mark(colour), clean(&finding.what));
            for why in finding.why.iter().take(WHY_SHOWN_MAX) {
                let _ = writeln!(text, "    {}", clean(why));
            }
            if finding.why.len() > WHY_SHOWN_MAX {
                let _ = writeln!(text, "    … and {} more (-o json)", finding.why.len() - WHY_SHOWN_MAX);
            }
            if let Some(what_to_do) = finding.what_to_do.as_ref().filter(|_| finding.grade != Grade::Ok) {
                let _ = writeln!(text, "    → {}", clean(what_to_do));
            }
        }
        text.push('\n');
    }
    let _ = writeln!(text, "{}", clean(&conclusion(sections)));
    text
}

/// The last line: who reads no other must not take a cluster for one that brings every VM back.
pub fn conclusion(sections: &[Section]) -> String {
    let findings = || sections.iter().flat_map(|section| &section.findings);
    let count = |grade| findings().filter(|finding| finding.grade == grade).count();
    let missing: Vec<&str> = findings().filter_map(|finding| finding.consequence.as_deref()).collect();
    let mut text = match worst(sections) {
        Grade::Ok => return "Everything is as it should be.".to_owned(),
        Grade::Warning if missing.is_empty() => "It works.".to_owned(),
        Grade::Warning => format!("Installed and awake, but {}.", missing.join("; and ")),
        Grade::Unseen | Grade::Failed => {
            format!("Wrong (✗): {}. Not seen (?): {}.", count(Grade::Failed), count(Grade::Unseen))
        }
    };
    let _ = write!(text, " To look at (!): {}.", count(Grade::Warning));
    text
}

impl Grade {
    fn mark(self, colour: bool) -> &'static str {
        match (self, colour) {
            (Self::Ok, false) => "✓",
            (Self::Warning, false) => "!",
            (Self::Unseen, false) => "?",
            (Self::Failed, false) => "✗",
            (Self::Ok, true) => "\u{1b}[32m✓\u{1b}[0m",
            (Self::Warning, true) => "\u{1b}[33m!\u{1b}[0m",
            (Self::Unseen, true) => "\u{1b}[33m?\u{1b}[0m",
            (Self::Failed, true) => "\u{1b}[31m✗\u{1b}[0m",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Vec<Section> {
        let why = (0..12).map(|number| format!("pv-{number}\u{1b}[2J")).collect();
        vec![
            Section { name: "api", findings: vec![Finding::ok("it answers")] },
            Section {
                name: "storage",
                findings: vec![Finding::warning("it is placed", why, "say where it is")],
            },
        ]
    }

    #[test]
    fn the_text_says_why_and_what_to_do() {
        let text = text(&sections(), false);
        assert!(
            text.starts_with("api\n---\n✓ it answers\n\nstorage\n-------\n! it is placed\n    pv-0"),
            "{text}"
        );
        assert!(text.contains("    … and 2 more"), "{text}");
        assert!(text.contains("    → say where it is"), "{text}");
        assert!(!text.contains('\u{1b}'), "names are hostile: {text:?}");
        assert!(text.ends_with("It works. To look at (!): 1.\n"), "{text}");
    }

    #[test]
    fn the_last_line_says_what_will_not_happen() {
        let mut sections = sections();
        let warned = sections[1].findings.remove(0).so_that("no node can be proven dead");
        sections[1].findings.push(warned);
        let last = conclusion(&sections);
        assert_eq!(last, "Installed and awake, but no node can be proven dead. To look at (!): 1.");
        sections[1].findings.push(Finding::failed("it leads", Vec::new(), "look"));
        assert_eq!(conclusion(&sections), "Wrong (✗): 1. Not seen (?): 0. To look at (!): 1.");
        let fine = Finding::warning_for("a", Vec::new(), "b").so_that("c");
        assert_eq!(fine, Finding::ok("a"), "what is fine keeps nothing from happening");
    }

    #[test]
    fn the_worst_counts() {
        assert_eq!(worst(&[]), Grade::Ok);
        assert_eq!(worst(&sections()), Grade::Warning);
        assert_eq!(Finding::failed_for("x", vec![], "y"), Finding::ok("x"));
    }
}

//! Alert rules and dashboards: they name only metrics that are declared, each alert is tested, and what they say is valid to
//! Prometheus' own `promtool`, where it is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use somersault_contract_tests::repository_file;

/// What a metric's kind puts behind its name.
const SUFFIXES: [&str; 4] = ["_total", "_bucket", "_sum", "_count"];
/// How severe an alert may be: a person at once, a person today, nobody in particular.
const SEVERITIES: [&str; 3] = ["critical", "warning", "info"];

fn alerts(file: &str) -> PathBuf {
    repository_file(&format!("deploy/alerts/{file}"))
}

fn read(file: &str) -> Result<Value> {
    let text = fs::read_to_string(alerts(file)).with_context(|| file.to_owned())?;
    serde_saphyr::from_str(&text).with_context(|| file.to_owned())
}

/// Every alert with its rule.
fn rules() -> Result<BTreeMap<String, Value>> {
    let file = read("rules.yaml")?;
    let mut found = BTreeMap::new();
    for group in file["groups"].as_array().context("no groups")? {
        for rule in group["rules"].as_array().context("no rules")? {
            let name = rule["alert"].as_str().context("a rule without a name")?;
            ensure!(found.insert(name.to_owned(), rule.clone()).is_none(), "{name} is there twice");
        }
    }
    Ok(found)
}

/// Every dashboard, by its file's name.
fn dashboards() -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(repository_file("deploy/dashboards"))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.insert(name.clone(), serde_json::from_str(&text).with_context(|| name)?);
    }
    Ok(found)
}

/// The expressions of a dashboard, with its variables filled in.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let filled = |expression: &str| {
        expression.replace("$__rate_interval", "5m").replace("$namespace", ".*").replace("$node", ".*")
    };
    targets.filter_map(|target| target["expr"].as_str()).map(filled).collect()
}

fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("somersault_")).collect()
}

#[test]
fn every_metric_that_is_asked_for_is_declared() -> Result<()> {
    let coordinator = somersault_coordinator::metrics::Metrics::default();
    let declared: BTreeSet<String> =
        coordinator.names().iter().cloned().chain(somersault_agent::metrics::names()).collect();
    let is_declared = |name: &str| {
        let base = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        declared.contains(name) || declared.contains(base)
    };
    let mut asked = 0;
    let rules = fs::read_to_string(alerts("rules.yaml"))?;
    let tests = fs::read_to_string(alerts("rules-test.yaml"))?;
    let dashboards: Vec<String> = dashboards()?.values().map(Value::to_string).collect();
    for text in [&rules, &tests].into_iter().chain(&dashboards) {
        for name in metrics_in(text) {
            ensure!(is_declared(name), "{name} is declared by neither coordinator nor agent");
            asked += 1;
        }
    }
    ensure!(asked > 50, "{asked} names were found: they are looked for in the wrong way");
    Ok(())
}

#[test]
fn both_forms_of_the_rules_are_the_same() -> Result<()> {
    assert_eq!(read("prometheus-rule.yaml")?["spec"], read("rules.yaml")?);
    Ok(())
}

#[test]
fn each_alert_says_how_severe_it_is_and_what_to_do_and_is_tested_both_ways() -> Result<()> {
    let tests = read("rules-test.yaml")?;
    let named: BTreeSet<&str> = tests["tests"]
        .as_array()
        .context("no tests")?
        .iter()
        .filter_map(|test| test["name"].as_str())
        .collect();
    for (name, rule) in rules()? {
        ensure!(name.starts_with("Somersault"), "{name} may be anybody's");
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        ensure!(SEVERITIES.contains(&severity), "{name} is {severity:?}");
        for text in ["summary", "description"] {
            let said = rule["annotations"][text].as_str().unwrap_or_default();
            ensure!(said.len() > 20, "{name} has no {text}: {said:?}");
        }
        for way in ["fires", "is quiet"] {
            ensure!(named.contains(format!("{name} {way}").as_str()), "nothing tests that {name} {way}");
        }
    }
    Ok(())
}

/// Prometheus itself reads the rules, runs their tests, and reads what the dashboards ask.
#[test]
fn prometheus_takes_rules_and_dashboards() -> Result<()> {
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("SKIPPED: promtool is missing (Debian: prometheus)");
        return Ok(());
    }
    promtool(&["check", "rules"], &alerts("rules.yaml"))?;
    promtool(&["test", "rules"], &alerts("rules-test.yaml"))?;
    let asked: Vec<Value> = dashboards()?
        .iter()
        .flat_map(|(file, dashboard)| {
            let numbered = expressions(dashboard).into_iter().enumerate();
            let stem = file.trim_end_matches(".json").to_owned();
            numbered.map(move |(number, expression)| json!({ "record": format!("{stem}:{number}"), "expr": expression }))
        })
        .collect();
    ensure!(asked.len() > 30, "{} expressions were found", asked.len());
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("dashboards.yaml");
    fs::write(&file, json!({ "groups": [{ "name": "dashboards", "rules": asked }] }).to_string())?;
    promtool(&["check", "rules"], &file)
}

fn promtool(command: &[&str], file: &std::path::Path) -> Result<()> {
    let ran = Command::new("promtool").args(command).arg(file).output()?;
    let said = [ran.stdout, ran.stderr].concat();
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&said));
    Ok(())
}

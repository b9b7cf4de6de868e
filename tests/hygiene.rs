//! What the package depends on is what it uses, under licences that permit it, once each, from one place. `deny.toml` says what
//! is allowed and why; a mistake here would otherwise be found by whoever redistributes the program.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::{env, fs};

use serde::Deserialize;

mod source;

#[derive(Deserialize)]
struct Policy {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    skip: Vec<Skip>,
}

#[derive(Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    spec: String,
    reason: String,
}

/// One package that is really built, with the licence it declares.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    license: String,
}

#[test]
fn every_licence_is_allowed() {
    let found = licence_problems(&policy().licenses, &graph());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn nothing_is_built_twice_without_a_reason() {
    let found = duplicate_problems(&policy().bans, &graph());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn everything_comes_from_crates_io() {
    let lock: toml::Table = read("Cargo.lock");
    let packages = lock["package"].as_array().unwrap();
    assert!(packages.len() > 100, "only {} packages found", packages.len());
    for package in packages {
        // What lies in the repository itself has no source.
        let from = package.get("source").map_or(CRATES_IO, |source| source.as_str().unwrap());
        assert_eq!(from, CRATES_IO, "{package}");
    }
}

#[test]
fn every_dependency_is_used() {
    let manifest: toml::Table = read("Cargo.toml");
    let names =
        |table: &str| -> BTreeSet<String> { manifest[table].as_table().unwrap().keys().cloned().collect() };
    let program = words(&["src"]);
    let all = words(&["src", "tests", "examples", "benches"]);
    let mut found = usage_problems(&names("dependencies"), &program);
    found.extend(usage_problems(&names("dev-dependencies"), &all));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn licence_problems(licenses: &Licenses, graph: &BTreeSet<Package>) -> Vec<String> {
    let mut found = Vec::new();
    let mut needed = BTreeSet::new();
    for package in graph {
        if permits(&package.license, &licenses.allow) {
            continue;
        }
        match licenses.exceptions.iter().find(|exception| exception.name == package.name) {
            Some(exception) if permits(&package.license, &exception.allow) => {
                _ = needed.insert(&exception.name)
            }
            _ => found.push(format!(
                "{} {} is under {:?}, which deny.toml does not allow",
                package.name, package.version, package.license
            )),
        }
    }
    let stale = licenses.exceptions.iter().filter(|exception| !needed.contains(&exception.name));
    found.extend(
        stale.map(|exception| format!("no licence exception for {} is needed any more", exception.name)),
    );
    found
}

fn duplicate_problems(bans: &Bans, graph: &BTreeSet<Package>) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in graph {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    let is_skipped =
        |name: &str, version: &str| bans.skip.iter().any(|skip| skip.spec == format!("{name}@{version}"));
    let mut found = Vec::new();
    for (name, versions) in &versions {
        let kept: Vec<&str> = versions.iter().copied().filter(|version| !is_skipped(name, version)).collect();
        if kept.len() > 1 {
            found.push(format!(
                "{name} is built in versions {}: agree on one, or skip the others in deny.toml",
                kept.join(", ")
            ));
        }
    }
    for Skip { spec, reason } in &bans.skip {
        let (name, version) = spec.split_once('@').unwrap_or((spec, ""));
        let all = versions.get(name).map_or(&[][..], Vec::as_slice);
        if all.len() < 2 || !all.contains(&version) {
            found.push(format!("skipping {spec} in deny.toml is not needed any more"));
        }
        if reason.trim().is_empty() {
            found.push(format!("skipping {spec} in deny.toml has no reason"));
        }
    }
    found
}

fn usage_problems(names: &BTreeSet<String>, words: &BTreeSet<String>) -> Vec<String> {
    let unused = names.iter().filter(|name| !words.contains(&name.replace('-', "_")));
    unused.map(|name| format!("{name} is in Cargo.toml and not in any source: remove it")).collect()
}

/// Whether an SPDX expression can be met with these licences. `/` is the old way to write `OR`.
fn permits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    let permitted = any(&mut words, allowed);
    permitted && words.is_empty()
}

fn any(words: &mut Vec<&str>, allowed: &BTreeSet<String>) -> bool {
    let mut permitted = all(words, allowed);
    while words.last() == Some(&"OR") {
        words.pop();
        permitted |= all(words, allowed);
    }
    permitted
}

fn all(words: &mut Vec<&str>, allowed: &BTreeSet<String>) -> bool {
    let mut permitted = one(words, allowed);
    while words.last() == Some(&"AND") {
        words.pop();
        permitted &= one(words, allowed);
    }
    permitted
}

fn one(words: &mut Vec<&str>, allowed: &BTreeSet<String>) -> bool {
    match words.pop() {
        Some("(") => {
            let permitted = any(words, allowed);
            words.pop() == Some(")") && permitted
        }
        Some(license) if words.last() == Some(&"WITH") => {
            words.pop();
            let exception = words.pop().unwrap_or_default();
            allowed.contains(&format!("{license} WITH {exception}"))
        }
        Some(license) => allowed.contains(license),
        None => false,
    }
}

/// What is built on this machine, for the tests too. Cargo's tree knows which optional dependencies are really on;
/// its metadata lists more.
fn graph() -> BTreeSet<Package> {
    let output = Command::new(env::var("CARGO").unwrap_or("cargo".into()))
        .args(["tree", "--locked", "--offline", "--prefix", "none", "--format", "{p}|{l}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let graph: BTreeSet<Package> = lines.lines().map(parse_package).collect();
    assert!(graph.len() > 100, "only {} packages found", graph.len());
    graph
}

/// `serde v1.0.219|MIT OR Apache-2.0 (*)`; a path or a note may follow the version.
fn parse_package(line: &str) -> Package {
    let (package, license) = line.trim_end_matches(" (*)").split_once('|').unwrap();
    let mut parts = package.split(' ');
    let name = parts.next().unwrap().to_owned();
    let version = parts.next().unwrap().trim_start_matches('v').to_owned();
    Package { name, version, license: license.trim().to_owned() }
}

fn policy() -> Policy {
    read("deny.toml")
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Names that stand where a crate's name does: before a `::`, or after a `use`.
fn words(directories: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, text) in source::files(directories) {
        let tokens = source::tokens(&text);
        let pairs = tokens.windows(2);
        found.extend(pairs.filter_map(|pair| match [pair[0].as_str(), pair[1].as_str()] {
            [name, "::"] | ["use", name] => Some(name.to_owned()),
            _ => None,
        }));
    }
    found
}

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn planted_licences_are_caught() {
    let allowed = set(&["MIT", "Apache-2.0", "ISC"]);
    for (expression, permitted) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT/GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("ISC AND (GPL-3.0 OR Apache-2.0)", true),
        ("(GPL-3.0 OR MIT) AND OpenSSL", false),
        ("Apache-2.0 WITH LLVM-exception", false),
        ("Apache-2.0 WITH LLVM-exception OR MIT", true),
        ("", false),
        ("MIT MIT", false),
    ] {
        assert_eq!(permits(expression, &allowed), permitted, "{expression:?}");
    }
    let licenses = Licenses {
        allow: allowed,
        exceptions: vec![
            Exception { name: "copyleft".into(), allow: set(&["GPL-3.0"]) },
            Exception { name: "gone".into(), allow: set(&["GPL-3.0"]) },
        ],
    };
    let graph = ["copyleft v1.0.0|GPL-3.0", "other v1.0.0|GPL-3.0", "none v1.0.0|", "fine v1.0.0|MIT (*)"]
        .map(parse_package);
    let found = licence_problems(&licenses, &BTreeSet::from(graph)).join("\n");
    for name in ["other", "none", "gone"] {
        assert!(found.contains(name), "{name} is not in {found}");
    }
    assert_eq!(found.lines().count(), 3, "{found}");
}

#[test]
fn planted_duplicates_are_caught() {
    let graph = BTreeSet::from(
        ["a v1.0.0|MIT", "a v2.0.0|MIT", "b v1.0.0|MIT", "b v2.0.0|MIT", "c v1.0.0|MIT"].map(parse_package),
    );
    let skip = |spec: &str, reason: &str| Skip { spec: spec.into(), reason: reason.into() };
    let bans = Bans { skip: vec![skip("a@1.0.0", "old"), skip("c@1.0.0", "stale"), skip("a@2.0.0", "")] };
    let found = duplicate_problems(&bans, &graph);
    for (problem, expected) in found.iter().zip([
        "b is built",
        "c@1.0.0 in deny.toml is not needed",
        "a@2.0.0 in deny.toml has no reason",
    ]) {
        assert!(problem.contains(expected), "{expected:?} is not in {problem:?}");
    }
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn planted_unused_dependencies_are_caught() {
    let found = usage_problems(&set(&["used-a", "unused"]), &set(&["used_a"]));
    assert_eq!(found, ["unused is in Cargo.toml and not in any source: remove it"]);
}

//! The pages that are written for people name files, commands and code. What they name is there, and the code they show is code that is tested.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What the paths of ours begin with.
const OURS: [&str; 11] = [
    "src/",
    "tests/",
    "benches/",
    "docs/",
    "examples/",
    "streams/",
    "manifests/",
    "tools/",
    "docker/",
    "clients/",
    ".ci/",
];

/// A page: its path and its text.
type Page = (PathBuf, String);

#[test]
fn every_file_that_a_page_names_is_there() {
    let found: Vec<String> = pages().iter().flat_map(|(path, text)| missing_files(path, text)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_file_that_a_compose_file_names_is_there() {
    let files = listed(&["docker/*.yml"]);
    assert!(files.len() > 2, "only {files:?}");
    let missing = |file: &String| missing_mounts(Path::new(file), &fs::read_to_string(file).unwrap());
    let found: Vec<String> = files.iter().flat_map(missing).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_file_that_the_comment_of_a_script_names_is_there() {
    let mut files = listed(&["docker", "tools", ".ci", "Makefile", ".gitignore"]);
    // Taken as pages or compose files already.
    files.retain(|file| !file.ends_with(".md") && !file.ends_with(".yml"));
    assert!(files.len() > 8, "only {files:?}");
    let missing = |file: &String| missing_in_comments(Path::new(file), &fs::read_to_string(file).unwrap());
    let found: Vec<String> = files.iter().flat_map(missing).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_map_of_the_tree_is_whole() {
    let text = fs::read_to_string("CONTRIBUTING.md").unwrap();
    let named = prose(&text);
    let has = |path: &str| named.iter().any(|name| name.trim_end_matches('/') == path);
    let mut places = BTreeSet::new();
    for file in listed(&[]) {
        let parts: Vec<&str> = file.split('/').collect();
        match parts.as_slice() {
            // What is made of Rust has a row each: a module, a test binary.
            ["src" | "tests", second, ..] => _ = places.insert([parts[0], second].join("/")),
            [".ci", ..] => _ = places.insert(file.clone()),
            [directory, _, ..] => _ = places.insert((*directory).to_owned()),
            _ => {}
        }
    }
    // The contents page of the library has no story of its own.
    places.remove("src/lib.rs");
    assert!(places.len() > 20, "only {places:?}");
    let unnamed: Vec<&String> = places.iter().filter(|place| !has(place)).collect();
    assert!(unnamed.is_empty(), "not on the map of CONTRIBUTING.md: {unnamed:?}");
}

#[test]
fn every_command_that_a_page_names_is_there() {
    let makefile = fs::read_to_string("Makefile").unwrap();
    let is_name = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':').map(|(name, _)| name))
        .filter(is_name)
        .collect();
    let help = Command::new(env!("CARGO_BIN_EXE_watchpost")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, list) = help.split_once("Commands:").unwrap();
    let commands: BTreeSet<&str> =
        list.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()).collect();
    let found: Vec<String> =
        pages().iter().flat_map(|(path, text)| unknown_commands(path, text, &targets, &commands)).collect();
    assert!(found.is_empty(), "{}\nmake has {targets:?}, watchpost has {commands:?}", found.join("\n"));
}

#[test]
fn the_code_that_a_page_shows_is_tested_code() {
    for (page, tests) in
        [("README.md", "tests/server/readme.rs"), ("docs/testing.md", "tests/server/testing.rs")]
    {
        let shown = blocks(&fs::read_to_string(page).unwrap(), "rust");
        assert!(!shown.is_empty(), "{page} shows no Rust");
        let tested = fs::read_to_string(tests).unwrap();
        for block in shown {
            assert!(tested.contains(&block), "{page} shows what is not in {tests} as it stands:\n{block}");
        }
    }
    let python = fs::read_to_string("examples/follow.py").unwrap();
    for page in ["README.md", "docs/contract.md"] {
        let shown = blocks(&fs::read_to_string(page).unwrap(), "python");
        assert_eq!(shown, [python.as_str()], "examples/follow.py and {page} differ");
    }
    let lines = python.lines().filter(|line| !line.is_empty()).count();
    assert_eq!(lines, 10, "the README says that it is ten");
}

#[test]
fn planted_lies_are_caught() {
    let page = Path::new("docs/page.md");
    assert_eq!(missing_files(page, "`src/lib.rs`, `src/none.rs` and `src/processor`, `tests/*.rs`").len(), 1);
    let script = Path::new("tools/test");
    assert_eq!(missing_in_comments(script, "# See src/lib.rs, src/none.rs.\nsrc/other.rs\n").len(), 1);
    let compose = Path::new("docker/compose.yml");
    let text = "- ./nats/nats.conf:/etc:ro\n- ${X:-../none}:/x\n# ../none\nfile: \"./nats/none\"";
    assert_eq!(missing_mounts(compose, text).len(), 2);
    let (targets, commands) = (["test"].into(), ["run"].into());
    let text = "`make test`, `make tea`, makes sense\n```\nwatchpost run --nats URL\nwatchpost fly\n```\nwatchpost walks";
    assert_eq!(unknown_commands(page, text, &targets, &commands).len(), 2);
    assert_eq!(blocks("```rust\na\n```\n```\nb\n```\n", "rust"), ["a\n"]);
}

/// Every page that is kept with the sources.
fn pages() -> Vec<Page> {
    let read = |path: String| (PathBuf::from(&path), fs::read_to_string(path).unwrap());
    let pages: Vec<Page> = listed(&["*.md"]).into_iter().map(read).collect();
    assert!(pages.len() > 4, "only {} pages found", pages.len());
    pages
}

/// The files that are kept with the sources, or will be; all, or those that fit.
fn listed(patterns: &[&str]) -> Vec<String> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "--"]).args(patterns);
    let listed = String::from_utf8(git.output().unwrap().stdout).unwrap();
    // What was deleted is listed until that is committed.
    listed.lines().filter(|path| Path::new(path).exists()).map(str::to_owned).collect()
}

/// Paths between backticks that begin like one of ours and are not there.
fn missing_files(page: &Path, text: &str) -> Vec<String> {
    missing(page, &prose(text))
}

/// Words of comments that begin like a path of ours, and are not there.
fn missing_in_comments(file: &Path, text: &str) -> Vec<String> {
    let comments = text.lines().filter_map(|line| line.trim_start().strip_prefix('#'));
    let words = comments.flat_map(str::split_whitespace);
    let words = words.map(|word| word.trim_matches(|c: char| "`'\"(),.;:".contains(c)).to_owned());
    missing(file, &words.collect::<Vec<String>>())
}

fn missing(file: &Path, names: &[String]) -> Vec<String> {
    let named = names.iter().filter(|name| OURS.iter().any(|begin| name.starts_with(begin)));
    named
        .filter(|path| !path.contains(['*', '<', ' ', '{']) && !Path::new(path.as_str()).exists())
        .map(|path| format!("{}: there is no {path}", file.display()))
        .collect()
}

/// Paths that begin with `./` or `../`, by default or always, and are not there.
fn missing_mounts(file: &Path, text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words = lines.flat_map(|line| line.split(|c: char| c.is_whitespace() || "\"':}".contains(c)));
    let paths = words.map(|word| word.trim_start_matches('-'));
    let named = paths.filter(|path| path.starts_with("./") || path.starts_with("../"));
    named
        .filter(|path| !file.with_file_name(path).exists())
        .map(|path| format!("{}: there is no {path}", file.display()))
        .collect()
}

/// Commands in code that neither make nor watchpost knows.
fn unknown_commands(
    page: &Path,
    text: &str,
    targets: &BTreeSet<&str>,
    commands: &BTreeSet<&str>,
) -> Vec<String> {
    let mut code = prose(text);
    code.extend(text.split("```").skip(1).step_by(2).flat_map(str::lines).map(str::to_owned));
    let mut found = Vec::new();
    for line in code {
        let mut words = line.split_whitespace().skip_while(|word| word.contains('=') || *word == "$");
        let (Some(program), Some(word)) = (words.next(), words.next()) else { continue };
        let word = word.trim_end_matches([';', ',', '.']);
        let known = match program {
            "make" => targets.contains(word) || word.contains('='),
            "watchpost" => commands.contains(word) || word.starts_with('-'),
            _ => true,
        };
        if !known {
            found.push(format!("{}: there is no `{program} {word}`", page.display()));
        }
    }
    found
}

/// What stands between backticks outside of blocks.
fn prose(text: &str) -> Vec<String> {
    let prose: Vec<&str> = text.split("```").step_by(2).collect();
    prose.iter().flat_map(|part| part.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let all = text.split("```").skip(1).step_by(2);
    all.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).map(str::to_owned).collect()
}

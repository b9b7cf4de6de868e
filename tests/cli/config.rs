//! Whoever sets something finds out what holds and where it came from, and is told of every mistake at once.

use std::collections::BTreeSet;

use crate::program::{Program, exit_codes};

#[tokio::test]
async fn config_shows_every_value_with_its_origin_and_no_secret() {
    let program = Program::new().with("WATCHPOST_DRAIN", "20s").with("WATCHPOST_NATS_TOKEN", "s3cret");
    program.write("watchpost.toml", "drain = \"1s\"\nnats = [\"nats://a:1\", \"nats://bob:s3cret@b:2\"]\n");
    let shown = program.run(&["config", "--replicas", "3"]).await;
    shown.expect(0, &["file: watchpost.toml"]);
    for (key, value, origin) in [
        ("replicas", "3", "flag"),
        ("drain", "20s", "environment"),
        ("nats", "nats://a:1,nats://********@b:2", "watchpost.toml:2"),
        ("nats_token", "********", "environment"),
        ("patience", "30s", "default"),
    ] {
        let line = shown.out.lines().find(|line| line.split_whitespace().next() == Some(key)).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), [key, value, origin]);
    }
    assert!(!shown.out.contains("s3cret"));
}

#[tokio::test]
async fn every_mistake_in_variable_file_and_flag_is_named_at_once() {
    let program = Program::new().with("WATCHPOST_DRAIN", "soon").with("WATCHPOST_TENANTS", "Acme");
    program.write("watchpost.toml", "stor_max_size = \"1GiB\"\npatience = \"1 fortnight\"\n");
    let refused = program.run(&["run", "--replicas", "4", "--manifests", "m"]).await;
    refused.expect(
        2,
        &[
            "the environment variable WATCHPOST_DRAIN: is \"soon\", expected a time such as",
            "the environment variable WATCHPOST_TENANTS: is \"Acme\"",
            "watchpost.toml:1: stor_max_size: is no setting; did you mean store_max_size?",
            "watchpost.toml:2: patience: is \"1 fortnight\"",
            "--replicas: is not one of 1, 3 and 5",
            "nothing was started",
        ],
    );
    assert_eq!(std::fs::read_dir(program.path()).unwrap().count(), 1, "nothing was made");
}

#[tokio::test]
async fn a_variable_that_is_no_setting_is_pointed_out() {
    let program = Program::new().with("WATCHPOST_DRIAN", "1s");
    program.run(&["config"]).await.expect(0, &["the environment variable WATCHPOST_DRIAN is no setting"]);
}

#[tokio::test]
async fn every_command_explains_itself_with_examples_and_exit_codes() {
    let program = Program::new();
    let mut groups = vec![Vec::new()];
    let mut codes = BTreeSet::new();
    let mut wanting = Vec::new();
    while let Some(group) = groups.pop() {
        for name in commands(&program, &group).await {
            let command = [group.clone(), vec![name]].concat();
            let help = help(&program, &command).await;
            if help.contains("\nCommands:\n") {
                groups.push(command);
                continue;
            }
            let documented = exit_codes(&help);
            if !help.contains("Usage:")
                || !help.contains("Examples:\n")
                || !documented.is_superset(&[0, 2].into())
            {
                wanting.push(format!("{command:?} with {documented:?}"));
            }
            codes.extend(documented);
        }
    }
    assert!(wanting.is_empty(), "no usage, no example, or not what 0 and 2 mean:\n{}", wanting.join("\n"));
    let operating = include_str!("../../docs/operating.md");
    let table = operating.lines().skip_while(|line| *line != "## Exit codes").skip(4);
    let told: BTreeSet<i32> = table
        .take_while(|line| line.starts_with('|'))
        .flat_map(|line| line.split('|').nth(1).unwrap_or_default().split(','))
        .map(|code| code.trim().parse().unwrap())
        .collect();
    assert_eq!(told, codes, "docs/operating.md and the commands tell other exit codes");
}

/// The names of the commands of a group; of all for none.
async fn commands(program: &Program, group: &[String]) -> Vec<String> {
    let help = help(program, group).await;
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // What is explained at length goes on in the next line.
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let names: Vec<String> = names.map(str::to_owned).collect();
    assert!(!names.is_empty(), "{help}");
    names
}

async fn help(program: &Program, command: &[String]) -> String {
    let words: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
    let ended = program.run(&words).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.out
}

#[tokio::test]
async fn shells_get_their_completions() {
    let program = Program::new();
    for shell in ["bash", "zsh", "fish"] {
        program.run(&["completions", shell]).await.expect(0, &["watchpost", "publish"]);
    }
    program.run(&["completions", "dos"]).await.expect(2, &["dos"]);
}

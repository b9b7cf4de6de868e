//! The layers of the architecture hold: a module names only modules below its own, one module names async-nats and one names
//! heed. Without this the rule would be a wish within weeks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::path::Path;

mod source;

/// The layers from the bottom up. Modules of one layer do not name each other. `testing` may use all but the command line.
const LAYERS: [&[&str]; 8] = [
    &["contract", "clock", "fault", "plural"],
    &["nats", "store"],
    &["processor"],
    &["observe", "workflow"],
    &["runtime"],
    &["serve", "follow", "verify"],
    &["testing"],
    &["cli"],
];

/// Crates that one module alone may name, so that the rest does not depend on what they look like.
const OWNED: [(&str, &str); 2] = [("async_nats", "nats"), ("heed", "store")];

/// Flags of LMDB that trade what a power cut or a second process must not cost for speed. No module may name them.
const UNSAFE: [&str; 5] = ["NO_SYNC", "NO_META_SYNC", "WRITE_MAP", "MAP_ASYNC", "NO_LOCK"];

#[test]
fn every_module_names_only_modules_below_it() {
    let files = source::files(&["src"]);
    assert!(files.len() > 10, "only {} sources found", files.len());
    let found: Vec<String> = files.iter().flat_map(|(path, text)| violations(path, text)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// What in this file breaks the rules, one sentence each.
fn violations(path: &Path, text: &str) -> Vec<String> {
    let tokens = source::tokens(text);
    let place: Vec<String> = place(path);
    let Some(own) = place.first() else {
        // lib.rs is the contents page and main.rs the top: both may name everything.
        return Vec::new();
    };
    let Some(own_layer) = layer(own) else {
        return vec![format!(
            "{}: module {own} has no layer: give it one in tests/layering.rs",
            path.display()
        )];
    };
    let mut found = Vec::new();
    for name in modules(&tokens, place.len()) {
        let allowed = match layer(&name) {
            Some(layer) => name == *own || layer < own_layer && name != "testing",
            None => false,
        };
        if !allowed {
            found.push(format!("{}: {own} must not name {name}", path.display()));
        }
    }
    for flag in tokens.iter().filter(|token| UNSAFE.contains(&token.as_str())) {
        found.push(format!(
            "{}: nobody names {flag}: a store survives power cuts and other processes",
            path.display()
        ));
    }
    for (library, owner) in OWNED {
        if own != owner && tokens.iter().any(|token| token == library) {
            found.push(format!("{}: only {owner} names {library}", path.display()));
        }
    }
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The module path of a file: `src/store/rows.rs` is `store::rows`, `src/store/mod.rs` is `store`.
fn place(path: &Path) -> Vec<String> {
    let path = path.with_extension("");
    let mut parts: Vec<String> =
        path.iter().skip(1).map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// The top modules that these tokens name: after `crate ::`, and after so many `super ::` that they lead out of a file whose
/// module is `depth` levels down.
fn modules(tokens: &[String], depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // For every open brace whether it is an inline module's, which is one level further down.
    let mut braces: Vec<bool> = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let start = at;
        at += 1;
        match token.as_str() {
            "{" => braces.push(start >= 2 && tokens[start - 2] == "mod"),
            "}" => _ = braces.pop(),
            "crate" => {}
            "super" => {
                let is_step = |pair: &&[String]| pair == &["::", "super"];
                let ups = 1 + tokens[at..].chunks(2).take_while(is_step).count();
                at += 2 * (ups - 1);
                if ups < depth + braces.iter().filter(|inline| **inline).count() {
                    continue;
                }
            }
            _ => continue,
        }
        if ["crate", "super"].contains(&token.as_str()) && tokens.get(at).is_some_and(|token| token == "::") {
            found.extend(heads(&tokens[at + 1..]));
        }
    }
    found
}

/// The first names of what follows a `::`: one name, or those of a `{group, of::paths}`.
fn heads(tokens: &[String]) -> Vec<String> {
    let is_module =
        |token: &&String| layer(token).is_some() || token.chars().next().is_some_and(char::is_lowercase);
    match tokens.first().map(String::as_str) {
        Some("{") => {
            let mut found = Vec::new();
            let mut depth = 0;
            let mut previous = "";
            for token in tokens {
                match token.as_str() {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    _ if depth == 1 && (previous == "{" || previous == ",") => {
                        found.extend(Some(token).filter(is_module).cloned())
                    }
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
                previous = token;
            }
            found
        }
        _ => tokens.first().filter(is_module).cloned().into_iter().collect(),
    }
}

#[test]
fn planted_violations_are_caught() {
    for (path, text, caught) in [
        ("src/store/mod.rs", "use crate::nats::Error;", "store must not name nats"),
        (
            "src/nats/append.rs",
            "use crate::{contract::Name, store::{Txn, rows}};",
            "nats must not name store",
        ),
        ("src/nats/append.rs", "fn f() -> super::super::store::Txn { todo!() }", "nats must not name store"),
        (
            "src/nats/append.rs",
            "mod tests { use super::super::super::store::Txn; }",
            "nats must not name store",
        ),
        ("src/contract/mod.rs", "fn f() { super::processor::run() }", "contract must not name processor"),
        ("src/contract/key.rs", "pub(in crate::runtime) fn f() {}", "contract must not name runtime"),
        ("src/processor/fold.rs", "use crate::testing::Server;", "processor must not name testing"),
        ("src/serve/mod.rs", "use crate::follow::Handle;", "serve must not name follow"),
        ("src/testing/server.rs", "use crate::cli::Command;", "testing must not name cli"),
        ("src/runtime/mod.rs", "use async_nats::Client;", "only nats names async_nats"),
        ("src/processor/mod.rs", "fn f(txn: &heed::RwTxn<'_>) {}", "only store names heed"),
        (
            "src/store/mod.rs",
            "fn f() { unsafe { open.flags(EnvFlags::READ_ONLY | EnvFlags::NO_SYNC) } }",
            "nobody names NO_SYNC: a store survives power cuts",
        ),
        ("src/store/check.rs", "const F: EnvFlags = EnvFlags::NO_LOCK;", "NO_LOCK"),
        ("src/runtime/mod.rs", "use crate::metrics::count;", "runtime must not name metrics"),
        ("src/metrics.rs", "", "module metrics has no layer"),
    ] {
        let found = violations(Path::new(path), text);
        assert!(
            found.len() == 1 && found[0].contains(caught),
            "{path}: {text}: expected {caught:?}, found {found:?}"
        );
    }
}

#[test]
fn what_the_layers_allow_is_let_through() {
    for (path, text) in [
        ("src/lib.rs", "pub mod nats; pub use crate::follow::Handle;"),
        (
            "src/store/rows.rs",
            "use super::Error; use crate::contract::Name; use crate::store::Txn; use heed::RwTxn;",
        ),
        ("src/store/rows.rs", "//! Not for [`crate::nats`].\nconst A: &str = \"crate::nats\";"),
        ("src/testing/server.rs", "use crate::{nats, store, serve};"),
        ("src/cli/run.rs", "use crate::runtime::Runtime; mod tests { use super::*; }"),
        ("src/nats/mod.rs", "use async_nats::jetstream; macro_rules! m { () => { $crate::nats::f() } }"),
        ("src/contract/key.rs", "mod tests { fn f() { super::super::name::check() } }"),
        ("src/contract/mod.rs", "pub(crate) fn f() {} pub(super) fn g() {}"),
    ] {
        assert_eq!(violations(Path::new(path), text), Vec::<String>::new(), "{path}: {text}");
    }
}

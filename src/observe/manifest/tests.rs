//! Manifests that are broken, and what is said about them.

use super::*;

fn problems(text: &str) -> Vec<String> {
    match parse(text, "m.yaml", 16) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.to_string().lines().map(ToOwned::to_owned).collect(),
    }
}

/// Every line of `expected` is the beginning of one problem, in order, and there are no others.
#[track_caller]
fn expect(text: &str, expected: &[&str]) {
    let found = problems(text);
    let fits = found.len() == expected.len()
        && found.iter().zip(expected).all(|(f, e)| f.starts_with(&format!("m.yaml:{e}")));
    assert!(fits, "of\n{text}\nfound\n{}\nexpected\n{}", found.join("\n"), expected.join("\n"));
}

const HEAD: &str = "observer: cluster\nfeed: raft\ntables:\n";

/// A manifest with this table from line 4 on, which is indented as it stands.
fn table(lines: &str) -> String {
    format!("{HEAD}{lines}\n")
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let text = "\
observer: Cluster
feed: raft
partitions: 3
tables:
  sources: {key: source, reduce: latest}
  nodes:
    key: body.node +
    vlue: body
    reduce: latset
    reduce: latest
    deltas: 7
  sums: {key: source, reduce: sum, by: body.x}
events:
  changed: {table: node, when: \"before.x != aftr.x\"}
veiw: tables
";
    expect(
        text,
        &[
            "1:11: the observer name \"Cluster\" is refused: it must be 1 to 63 of a-z",
            "3:13: found 3 partitions, expected one of 1, 2, 4, 8, 16: the input stream numbers its sources for these",
            "5:3: the table name \"sources\" is taken",
            "7:21: not an expression: Script is incomplete",
            "8:5: unknown field vlue, did you mean value?",
            "9:13: found the text \"latset\", expected one of latest, first, last, count, sum, min, max, argmin, argmax, distinct",
            "10:5: reduce is here twice, the first is in line 9",
            "11:13: found the number 7, expected one of each, coalesced",
            "12:9: sum needs the field value",
            "12:40: only argmin and argmax have a field by",
            "14:20: there is no table \"node\", only nodes, sources, sums",
            "14:45: there is no variable aftr here, only source, feed, at, at_ms, body, key, before, after",
            "15:1: unknown field veiw, did you mean view?",
        ],
    );
}

#[test]
fn what_is_no_yaml_or_more_than_a_manifest_needs_is_refused() {
    expect("", &["1:1: the file is empty"]);
    expect("# nothing\n", &["1:1: the file is empty"]);
    expect("- a\n- b\n", &["1:1: found a list, expected a map"]);
    expect("observer: a: b\n", &["1:12: this is not YAML: mapping values are not allowed"]);
    expect("observer: [\n", &["2:1: this is not YAML: "]);
    expect("observer: \"a\n", &["1:11: this is not YAML: "]);
    expect("observer: a\0\n", &["1:12: this is not YAML: "]);
    expect(&"[".repeat(100), &["1:33: nested deeper than 32 levels"]);
    assert!(problems(&"[".repeat(100_000))[0].contains("not YAML"));
    let whole = table("  t: {key: source, reduce: count}");
    expect(&whole.replace("raft", "&x raft"), &["2:7: anchors (&name) are not part of this language"]);
    expect(&whole.replace("raft", "!!str raft"), &["2:7: tags (!name) are not part"]);
    expect(
        &whole.replace("source", "&k source").replace("count}", "count, where: *k}"),
        &["4:12: anchors", "4:45: aliases"],
    );
    expect(&format!("{whole}---\n{whole}"), &["5:1: a second document begins here"]);
    expect(&whole.replace("feed", "? [a]\n: b\nfeed"), &["2:3: a key must be text, found a list"]);
}

#[test]
fn names_follow_the_contract() {
    let long = "t".repeat(64);
    for name in ["T", "_t", "a.b", "'*'", "'>'", "'a b'", "é", "\"a\\0\"", &long] {
        let found = problems(&table(&format!("  {name}: {{key: source, reduce: count}}")));
        assert!(
            found.len() == 1 && found[0].contains(":4:3: the table name") && found[0].contains("a-z"),
            "{name}: {found:?}"
        );
    }
    expect(
        &table("  t: {key: source, reduce: count}").replace("raft", "17"),
        &["2:7: found the number 17, expected text in quotes"],
    );
    expect(
        &table("  t: {key: source, reduce: count}\nevents:\n  A: {table: t}"),
        &["6:3: the event name \"A\" is refused"],
    );
    for name in ["1", "true"] {
        assert!(
            problems(&table(&format!("  {name}: {{key: source, reduce: count}}"))).is_empty(),
            "{name} is a fine name"
        );
    }
}

#[test]
fn a_place_within_an_expression_is_its_place_in_the_file() {
    let at = |value: &str, expected: &str| {
        expect(&table(&format!("  t:\n    key: source\n    reduce: last\n    value: {value}")), &[expected])
    };
    at("body.x + nope", "7:21: there is no variable nope");
    at("  body.x + nope   # why", "7:23: there is no variable nope");
    at("\"body.x + nope\"", "7:22: there is no variable nope");
    at("'body.x + nope'", "7:22: there is no variable nope");
    at("'\"é\" + nope'", "7:19: there is no variable nope");
    at("|\n      body.x +\n        nope", "9:9: there is no variable nope");
    at("|\n\n      body.x +\n        nope", "10:9: there is no variable nope");
    at("|2\n      body.x +\n        nope", "9:9: there is no variable nope");
    // Where escapes or folded lines stand before the place, the text's beginning has to do.
    at("\"body[\\\"x\\\"] + nope\"", "7:12: there is no variable nope");
    at(">\n      body.x\n      + nope", "8:7: there is no variable nope");
    at("body.x\n      + nope", "7:12: there is no variable nope");
}

#[test]
fn a_field_without_text_is_refused_with_a_hint() {
    expect(
        &table("  t: {key: source, reduce: latest, value: #{a: 1}\n  }"),
        &["4:41: found nothing, expected text in quotes (what begins with #"],
    );
    expect(
        &table("  t: {key: source, reduce: latest, value: {a: 1}}"),
        &["4:43: found a map, expected text in quotes"],
    );
    expect(
        &table("  t: {key: source, reduce: latest, value: 1}"),
        &["4:43: found the number 1, expected text"],
    );
    expect(&table("  t: {key: '', reduce: latest}"), &["4:12: found an empty text, expected an expression"]);
    expect(&table("  t: {key: source}"), &["4:6: the field reduce is missing"]);
    expect(
        &table("  t: {reduce: argmax}"),
        &["4:6: argmax needs the field by", "4:6: the field key is missing"],
    );
    expect(
        &table("  t: {key: source, reduce: count, value: body.x}"),
        &["4:42: count counts observations: it has no field value"],
    );
    expect(&table("  t: source"), &["4:6: found the text \"source\", expected a map"]);
    expect("observer: a\nfeed: b\ntables: {}\n", &["3:9: expected at least one entry"]);
    expect("observer: a\nfeed: b\n", &["1:1: the field tables is missing"]);
}

#[test]
fn windows_must_fit() {
    let window = |window: &str, expected: &[&str]| {
        expect(&table(&format!("  t: {{key: source, reduce: count, window: {{{window}}}}}")), expected);
    };
    window("size: 1m", &[]);
    window("size: 1m, every: 15s, lateness: 90s, keep: 10", &[]);
    window("every: 1m", &["4:43: the field size is missing"]);
    window("size: 60", &["4:50: found the number 60, expected text in quotes"]);
    window(
        "size: 1 minute",
        &["4:50: found the text \"1 minute\", expected a whole number from 1 and a unit"],
    );
    window("size: 0s", &["4:50: found the text \"0s\", expected a whole number from 1"]);
    window("size: 1m, every: 7s", &["4:61: every must divide size"]);
    window("size: 1m, every: 2m", &["4:61: every must divide size"]);
    window("size: 1h, every: 1s", &["4:61: every must divide size, at most 100 times"]);
    window("size: 1m, lateness: 1m, keep: 1", &["4:74: keep is 1, but up to 2 windows are open"]);
    window("size: 1m, keep: 0", &["4:60: found the number 0, expected at least 1"]);
    window("size: 1m, kepp: 1", &["4:54: unknown field kepp, did you mean keep?"]);
    window("size: 1m, step: 1", &["4:54: unknown field step, expected one of size, every, lateness, keep"]);
}

#[test]
fn with_partitions_a_plain_key_must_be_the_source() {
    let keyed = |key: &str| {
        table(&format!("  t: {{key: {key}, reduce: count}}")).replace("tables", "partitions: 4\ntables")
    };
    expect(&keyed("source"), &[]);
    expect(&keyed("source + \"/\" + body.x"), &[]);
    expect(
        &keyed("body.room"),
        &["5:12: found the key body.room, but with 4 partitions rows must not meet: expected source"],
    );
    assert!(
        parse(&keyed("source"), "m.yaml", 6).unwrap_err().to_string().contains("expected one of 1, 2, 6: ")
    );
}

#[test]
fn the_fingerprint_follows_what_decides_the_rows_and_nothing_else() {
    let base = "observer: a\nfeed: f\ntables:\n  t: {key: source, reduce: latest, where: \"body.x > 1\"}\n  u: {key: source, reduce: count}\n";
    let print = |text: &str| parse(text, "m.yaml", 16).unwrap().spec.fingerprint;
    let same = [
        "# a comment\nfeed: f\nobserver: a\ntables:\n  u:\n    reduce: count\n    key: source\n  t: {where: \" body.x > 1 \", reduce: latest, value: body, key: 'source'}\n",
        &format!("{base}view: tables.t\nevents:\n  e: {{table: t}}\npartitions: 1\n"),
        &base.replace("count", "count, deltas: coalesced"),
    ];
    for text in same {
        assert_eq!(print(base), print(text), "{text}");
    }
    for (from, to) in [
        ("feed: f", "feed: g"),
        ("x > 1", "x > 2"),
        ("latest", "last"),
        ("u:", "v:"),
        ("feed: f", "feed: f\npartitions: 2"),
        ("count", "count, window: {size: 1m}"),
        ("reduce: count", "reduce: sum, value: body.x"),
        ("latest", "latest, value: body.x"),
    ] {
        assert_ne!(print(base), print(&base.replace(from, to)), "{from} to {to}");
    }
}

#[test]
fn a_view_asks_for_tables_that_exist() {
    let view = |view: &str, expected: &[&str]| {
        expect(&table(&format!("  nodes: {{key: source, reduce: latest}}\nview: {view}")), expected);
    };
    view("tables.nodes.a + tables.nodes.len() + tables[\"nodes\"].b", &[]);
    view("tables.keys()", &[]);
    view("tables.node.a", &["5:14: there is no table \"node\", did you mean nodes?"]);
    view("tables[\"other\"].len()", &["5:14: there is no table \"other\", only nodes"]);
    view(
        "tables.nodes.values().map(|n| tables.peers[n])",
        &["5:44: there is no table \"peers\", only nodes"],
    );
    view("tables.nodes.lenn()", &["5:20: there is no function lenn, did you mean list.len()?"]);
}

#[test]
fn a_directory_is_read_whole_and_two_observers_cannot_have_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    put("b.yaml", &table("  t: {key: source, reduce: count}"));
    put("a.yml", &table("  t: {key: source, reduce: count}").replace("cluster", "other"));
    put("notes.txt", "not: [a manifest");
    let folds = load_dir(dir.path(), 16).unwrap();
    assert_eq!(folds.iter().map(|f| f.spec.observer.as_str()).collect::<Vec<_>>(), ["other", "cluster"]);

    put("c.yaml", &table("  t: {key: source, reduce: count}"));
    put("d.yaml", "observer: D\n");
    std::fs::write(dir.path().join("e.yaml"), b"observer: \xff").unwrap();
    let problems = load_dir(dir.path(), 16).unwrap_err();
    let lines: Vec<_> = problems.to_string().lines().map(ToOwned::to_owned).collect();
    assert_eq!(lines.len(), 5, "{problems}");
    assert!(
        lines[0].contains("c.yaml: the observer cluster is already in") && lines[0].contains("b.yaml"),
        "{problems}"
    );
    assert!(lines[1].contains("d.yaml:1:1: the field feed is missing"), "{problems}");
    assert!(lines[4].contains("e.yaml: cannot be read"), "{problems}");
    let missing = load_dir(&dir.path().join("nowhere"), 16).unwrap_err().to_string();
    assert!(missing.contains("nowhere: cannot be read: No such file"), "{missing}");
}

#[test]
fn the_schema_is_a_schema_and_says_no_more_than_the_reader() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::meta::validate(&schema).unwrap();
}

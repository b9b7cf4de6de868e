//! Reads Rust sources far enough to see which names they use: identifiers and punctuation, without comments, strings and
//! character literals.

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file under these directories of the repository (those that exist), with its text, in order.
pub(crate) fn files(directories: &[&str]) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for directory in directories {
        collect(&root.join(directory), &mut found);
    }
    found.sort();
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(root).unwrap().to_owned(), text)
        })
        .collect()
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The tokens of a source: identifiers, `::`, and every other visible character for itself.
pub(crate) fn tokens(source: &str) -> Vec<String> {
    let characters: Vec<char> = source.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(&character) = characters.get(at) {
        let next = characters.get(at + 1).copied();
        at = match character {
            '/' if next == Some('/') => find(&characters, at, |c| c == '\n'),
            '/' if next == Some('*') => end_of_comment(&characters, at),
            '"' => end_of_string(&characters, at),
            '\'' => end_of_quote(&characters, at),
            c if c.is_alphabetic() || c == '_' => {
                let end = find(&characters, at, |c| !(c.is_alphanumeric() || c == '_'));
                let word: String = characters[at..end].iter().collect();
                match (word.as_str(), characters.get(end)) {
                    ("r" | "br" | "cr", Some('"' | '#')) => end_of_raw(&characters, end),
                    ("b" | "c", Some('"')) => end_of_string(&characters, end),
                    ("b", Some('\'')) => end_of_quote(&characters, end),
                    _ => {
                        found.push(word);
                        end
                    }
                }
            }
            c if c.is_numeric() => find(&characters, at, |c| !(c.is_alphanumeric() || c == '_')),
            ':' if next == Some(':') => {
                found.push("::".to_owned());
                at + 2
            }
            c if c.is_whitespace() => at + 1,
            c => {
                found.push(c.to_string());
                at + 1
            }
        };
    }
    found
}

fn find(characters: &[char], from: usize, stop: impl Fn(char) -> bool) -> usize {
    characters[from..].iter().position(|&c| stop(c)).map_or(characters.len(), |offset| from + offset)
}

fn end_of_comment(characters: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at < characters.len() {
        match (characters[at], characters.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) if depth == 1 => return at + 2,
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn end_of_string(characters: &[char], quote: usize) -> usize {
    let mut at = quote + 1;
    while at < characters.len() {
        match characters[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// A raw string, or a raw identifier: then its hash is passed over and the identifier comes next.
fn end_of_raw(characters: &[char], from: usize) -> usize {
    let open = find(characters, from, |c| c != '#');
    if characters.get(open) != Some(&'"') {
        return open;
    }
    let hashes = open - from;
    let closes = |at: usize| {
        characters[at] == '"' && characters[at + 1..].iter().take_while(|&&c| c == '#').count() >= hashes
    };
    (open + 1..characters.len()).find(|&at| closes(at)).map_or(characters.len(), |at| at + 1 + hashes)
}

/// A character literal, or the quote of a lifetime.
fn end_of_quote(characters: &[char], quote: usize) -> usize {
    match (characters.get(quote + 1), characters.get(quote + 2)) {
        (Some('\\'), _) => find(characters, quote + 3, |c| c == '\'') + 1,
        (Some(_), Some('\'')) => quote + 3,
        _ => quote + 1,
    }
}

#[test]
fn only_code_has_tokens() {
    let source = r###"
        // heed /* in a comment
        /* nested /* heed */ heed */ use crate::a; "heed \" heed" r#"heed " heed"# b"heed" b'"' '\'' '"' 'x'
        fn f<'a>(x: &'a str) -> r#type { 1_u8 }
    "###;
    let expected = "use crate :: a ; fn f < a > ( x : & a str ) - > type { }";
    assert_eq!(tokens(source).join(" "), expected);
}

//! Words that must not appear in what people read: sentences have a term of the glossary as their subject and the action as
//! their verb. The list grows: add each riddling phrase that you meet.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::path::{Path, PathBuf};

/// Words and phrases, in lower case; a dot matches the edge of a word.
const FORBIDDEN: [&str; 22] = [
    ".anew.",
    ".mend.",
    ".mends.",
    ".mended.",
    ".mending.",
    "is told",
    "are told",
    "is heard of",
    ".whoever.",
    ".somebody.",
    ".nobody.",
    "gave way",
    "gives way",
    "give way",
    ".by hand.",
    "all the same",
    "stands alone",
    "stand alone",
    "ran away",
    "goes before",
    "counts as there",
    "who asks",
];

/// Where old words are data: journals of earlier versions, and this list.
const EXCEPT: [&str; 4] = [
    "crates/deltaplane-store-sqlite/src/row.rs",
    "crates/deltaplane-store-sqlite/tests/store.rs",
    "tests/it/words.rs",
    "CHANGELOG.md",
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, found);
        } else if [".rs", ".md", ".toml", ".py", ".sh"].iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

/// A line as it is compared: words apart, in lower case, names split at their underscores.
fn words(line: &str) -> String {
    let spaced: String = line
        .to_lowercase()
        .chars()
        .map(|letter| if letter.is_alphanumeric() || letter == '\'' { letter } else { ' ' })
        .collect();
    format!(" {} ", spaced.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn texts_have_no_riddling_words() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let mut all = Vec::new();
    files(&root, &mut all);
    assert!(all.len() > 200, "{} files", all.len());
    let mut found = Vec::new();
    for path in all {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        if EXCEPT.contains(&name.as_str()) {
            continue;
        }
        for (index, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            let text = words(line);
            let hits = FORBIDDEN.iter().filter(|phrase| text.contains(&phrase.replace('.', " ")));
            found.extend(hits.map(|phrase| {
                format!("{name}:{}: {:?} in {}", index + 1, phrase.trim_matches('.'), line.trim())
            }));
        }
    }
    assert!(found.is_empty(), "{} lines need other words:\n{}", found.len(), found.join("\n"));
}

//! Every sentence that the program can say, on one page: errors, solutions, alerts, reasons, findings, log messages. A changed
//! text is a readable difference. `DELTAPLANE_WRITE_DOCS=1` writes `tests/golden/texts.txt`.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A text has at least so many words.
const LEAST_WORDS: usize = 4;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs")
            && !path.file_stem().unwrap().to_string_lossy().ends_with("tests")
        {
            found.push(path);
        }
    }
}

/// The string literals of code without its tests, in their order.
fn literals(code: &str) -> Vec<String> {
    let code = code.split("#[cfg(test)]").next().unwrap();
    let (mut found, mut letters) = (Vec::new(), code.chars().peekable());
    while let Some(letter) = letters.next() {
        match letter {
            '/' if letters.peek() == Some(&'/') => {
                letters.by_ref().find(|letter| *letter == '\n');
            }
            // A letter in quotes; a lifetime has no second quote.
            '\'' => {
                let mut ahead = letters.clone();
                let first = ahead.next();
                let second = if first == Some('\\') { ahead.nth(1) } else { ahead.next() };
                if second == Some('\'') {
                    letters = ahead;
                }
            }
            '"' => {
                let mut text = String::new();
                while let Some(letter) = letters.next() {
                    match letter {
                        '"' => break,
                        '\\' => match letters.next() {
                            // A line that goes on without its indent.
                            Some('\n') => while letters.next_if(|letter| letter.is_whitespace()).is_some() {},
                            Some('n') => text.push(' '),
                            Some(escaped) => text.push(escaped),
                            None => break,
                        },
                        other => text.push(other),
                    }
                }
                found.push(text);
            }
            _ => {}
        }
    }
    found
}

#[test]
fn every_text_of_the_program_is_on_one_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for part in ["api", "engine", "plan", "ports", "risk", "net", "store-sqlite", "types"] {
        sources(&root.join(format!("crates/deltaplane-{part}/src")), &mut files);
    }
    for part in ["fapi", "binance", "aster", "pacifica"] {
        sources(&root.join(format!("crates/deltaplane-venue-{part}/src")), &mut files);
    }
    sources(&root.join("bins/deltaplane-server/src"), &mut files);
    let mut page = String::new();
    let mut count = 0;
    for file in files {
        let texts: Vec<String> = literals(&std::fs::read_to_string(&file).unwrap())
            .into_iter()
            .filter(|text| text.split_whitespace().count() >= LEAST_WORDS)
            .collect();
        if !texts.is_empty() {
            writeln!(page, "\n{}", file.strip_prefix(&root).unwrap().display()).unwrap();
        }
        count += texts.len();
        for text in texts {
            writeln!(page, "  {}", text.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
        }
    }
    assert!(count > 400, "{count} texts");
    let path = root.join("tests/golden/texts.txt");
    if std::env::var_os("DELTAPLANE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    for (line, (before, now)) in known.lines().zip(page.lines()).enumerate() {
        assert_eq!(
            before,
            now,
            "tests/golden/texts.txt:{}: write it again with DELTAPLANE_WRITE_DOCS=1",
            line + 1
        );
    }
    assert_eq!(known.lines().count(), page.lines().count(), "write tests/golden/texts.txt again");
}

#[test]
fn literals_are_found_in_code_alone() {
    let code = r#"let a = 'x'; let b: &'static str = "one \"two\" three four"; // "not this one at all"
        let c = '"'; f("a line that \
            goes on"); "#;
    assert_eq!(literals(code), ["one \"two\" three four", "a line that goes on"]);
}

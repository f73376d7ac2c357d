//! The shell blocks of the book run against the server binary in paper mode, page by page, each page on a server of its own.
//! An answer that a page shows after a block has the fields of the real one. `DELTAPLANE_WRITE_DOCS=1` writes the answers.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::paper::Server;

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src").join(name)
}

/// The real answer as a page shows it: the first element of each array, long texts cut.
fn shown(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().take(1).map(shown).collect()),
        Value::Object(fields) => fields.iter().map(|(name, field)| (name.clone(), shown(field))).collect(),
        Value::String(text) if text.chars().count() > 90 => {
            Value::String(format!("{}…", text.chars().take(90).collect::<String>()))
        }
        other => other.clone(),
    }
}

/// Fields of the shown answer that the real one lacks.
fn missing(shown: &Value, real: &Value, at: &str, found: &mut Vec<String>) {
    match (shown, real) {
        (Value::Object(shown), Value::Object(real)) => {
            for (name, field) in shown {
                match real.get(name) {
                    Some(real) => missing(field, real, &format!("{at}/{name}"), found),
                    None => found.push(format!("{at}/{name}")),
                }
            }
        }
        (Value::Array(shown), Value::Array(real)) => {
            if let (Some(shown), Some(real)) = (shown.first(), real.first()) {
                missing(shown, real, &format!("{at}/0"), found);
            }
        }
        _ => {}
    }
}

/// Compact JSON over lines of at most 120 letters, broken after commas.
fn lines(value: &Value) -> String {
    let (mut text, mut width) = (String::new(), 0);
    let mut quoted = false;
    let compact = serde_json::to_string(value).unwrap();
    let mut parts = vec![String::new()];
    for letter in compact.chars() {
        if letter == '"' {
            quoted = !quoted;
        }
        parts.last_mut().unwrap().push(letter);
        if letter == ',' && !quoted {
            parts.push(String::new());
        }
    }
    for part in parts {
        if width > 0 && width + part.chars().count() > 118 {
            text.push_str("\n ");
            width = 1;
        }
        width += part.chars().count();
        text.push_str(&part);
    }
    text
}

/// Runs the `sh` blocks of a page in their order. Gives the page with the real answers in its `json` blocks.
async fn run(name: &str) -> (String, String, usize) {
    let folder = tempfile::tempdir().unwrap();
    let (server, exchanges) = Server::start_printing(folder.path()).await;
    let text = std::fs::read_to_string(page(name)).unwrap();
    let mut written = String::new();
    let mut rest = text.as_str();
    let (mut answer, mut operation, mut count) = (Value::Null, String::new(), 0);
    while let Some(begin) = rest.find("```") {
        let (before, block) = rest.split_at(begin);
        let end = block[3..].find("```").expect("a block ends") + 6;
        let (block, after) = block.split_at(end);
        written.push_str(before);
        if let Some(script) = block.strip_prefix("```sh\n") {
            let script = script.trim_end_matches("```").replace("http://localhost:3000", &server.url(""));
            let script =
                format!("curl() {{ command curl --fail-with-body -sS \"$@\"; echo; }}\nset -e\n{script}");
            let script_is_dry = script.contains("\"dryRun\": true");
            let mut command = Command::new("bash");
            command.arg("-c").arg(&script).env("OPERATION_ID", &operation);
            command.env("ASTER_CONTROL", &exchanges["aster"].control);
            let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{name}:\n{script}\n{printed}");
            let last = printed.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("null");
            answer = serde_json::from_str(last).unwrap_or(Value::Null);
            // The newest operation that the block tells of is the one that the next block asks for.
            let known = serde_json::from_str::<Value>(last).unwrap_or_default();
            let id = known["operationId"].as_str().or_else(|| known["operations"][0]["operationId"].as_str());
            // Dry runs are not kept.
            if let Some(id) = id.filter(|_| !script_is_dry) {
                id.clone_into(&mut operation);
            }
            count += 1;
            written.push_str(block);
        } else if let Some(documented) = block.strip_prefix("```json\n") {
            let documented = documented.trim_end_matches("```");
            if std::env::var_os("DELTAPLANE_WRITE_DOCS").is_none() {
                let documented: Value = serde_json::from_str(documented)
                    .unwrap_or_else(|error| panic!("{name}: {error}: {documented}"));
                let mut lacking = Vec::new();
                missing(&documented, &answer, "", &mut lacking);
                assert!(lacking.is_empty(), "{name}: the real answer lacks {lacking:?}:\n{answer}");
            }
            let _ = write!(written, "```json\n{}\n```", lines(&shown(&answer)));
        } else {
            written.push_str(block);
        }
        rest = after;
    }
    written.push_str(rest);
    (text, written, count)
}

async fn check(name: &str, blocks: usize) {
    let (text, written, count) = run(name).await;
    assert_eq!(count, blocks, "{name}: shell blocks that ran");
    if std::env::var_os("DELTAPLANE_WRITE_DOCS").is_some() && text.contains("```json") {
        std::fs::write(page(name), written).unwrap();
    }
}

#[tokio::test]
async fn the_start_pages_run() {
    check("start/paper.md", 1).await;
    check("start/first-hedge.md", 5).await;
}

#[tokio::test]
async fn the_guides_run() {
    check("guides/policies.md", 3).await;
    check("guides/rebalance.md", 1).await;
    check("guides/flatten-and-kill-switch.md", 3).await;
}

#[tokio::test]
async fn the_page_of_the_api_shows_real_answers() {
    check("reference/api.md", 23).await;
}

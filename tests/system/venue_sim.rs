//! One simulated exchange as a program of its own.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

fn venue_sim(venue: &str, config: &str) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients");
    let mut command = Command::new(env!("CARGO_BIN_EXE_venue-sim"));
    command.args(["--venue", venue, "--config"]).arg(folder.join(config));
    command
}

#[tokio::test]
async fn venue_sim_prints_its_addresses_and_answers_there() {
    for (venue, config, path) in [
        ("binance", "binance.toml", "/fapi/v1/ping"),
        ("aster", "aster.toml", "/fapi/v1/ping"),
        ("pacifica", "pacifica.toml", "/api/v1/info"),
    ] {
        let mut process = venue_sim(venue, config).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let url = format!("{}{path}", ready["rest"].as_str().unwrap());
        let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await;
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(answer.unwrap().status(), 200, "{venue}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let output = venue_sim("kraken", "binance.toml").output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("'kraken'") && told.contains("pacifica"), "{told}");
    let output = venue_sim("binance", "missing.toml").output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("missing.toml"), "{told}");
}

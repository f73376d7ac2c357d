//! Dependencies point down only: the table of layers, checked against the workspace as it is.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{CargoOpt, DependencyKind, MetadataCommand};

/// What each crate of ours may use of ours.
const MAY_USE: &[(&str, &[&str])] = &[
    ("deltaplane-types", &[]),
    ("deltaplane-math", &["types"]),
    ("deltaplane-plan", &["types", "math"]),
    ("deltaplane-risk", &["types", "math"]),
    ("deltaplane-market", &["types", "math"]),
    ("deltaplane-ports", &["types"]),
    ("deltaplane-engine", &["types", "math", "plan", "risk", "market", "ports"]),
    ("deltaplane-net", &["types", "ports"]),
    ("deltaplane-venue-fapi", &["types", "ports", "net"]),
    ("deltaplane-venue-binance", &["types", "ports", "net", "venue-fapi"]),
    ("deltaplane-venue-aster", &["types", "ports", "net", "venue-fapi"]),
    ("deltaplane-venue-pacifica", &["types", "ports", "net"]),
    ("deltaplane-venue-sim", &["types", "math", "ports"]),
    ("deltaplane-store-sqlite", &["types", "ports"]),
    ("deltaplane-api", &["types", "ports"]),
    ("deltaplane-testkit", &["types", "ports"]),
];

/// Crates that decide: they must never reach time, sockets, files or JSON.
const PURE: &[&str] =
    &["deltaplane-types", "deltaplane-math", "deltaplane-plan", "deltaplane-risk", "deltaplane-market"];
const IMPURE: &[&str] = &["tokio", "hyper", "reqwest", "rusqlite", "serde_json"];

/// Crates that nothing may bring in.
const BANNED: &[&str] = &["openssl-sys", "native-tls", "rustdecimal", "serde_yaml", "ring"];

#[test]
fn dependencies_point_down_only() {
    let metadata = MetadataCommand::new().features(CargoOpt::AllFeatures).exec().unwrap();
    let rules: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut broken = Vec::new();
    let mut seen = BTreeSet::new();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        if !package.manifest_path.as_str().contains("/crates/") {
            continue;
        }
        seen.insert(name.to_owned());
        let Some(allowed) = rules.get(name) else {
            broken.push(format!("{name} is missing in the table of layers"));
            continue;
        };
        for dependency in
            package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal)
        {
            if let Some(short) = dependency.name.strip_prefix("deltaplane-")
                && !allowed.contains(&short)
            {
                broken.push(format!("{name} may not use {}", dependency.name));
            }
        }
    }
    for name in rules.keys().filter(|name| !seen.contains(**name)) {
        broken.push(format!("{name} stands in the table and not in crates/"));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Names of everything that is built into a package, or into all of them.
fn built_into(what: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = std::process::Command::new(cargo)
        .args(["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(what)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn decisions_reach_no_effect() {
    for package in PURE {
        let built = built_into(&["--package", package]);
        assert!(built.contains("rust_decimal"), "{package}: {built:?}");
        let reached: Vec<&str> = IMPURE.iter().copied().filter(|name| built.contains(*name)).collect();
        assert!(reached.is_empty(), "{package} reaches {reached:?}");
    }
}

#[test]
fn nothing_banned_is_built_in() {
    let built = built_into(&["--workspace"]);
    assert!(built.contains("tokio"), "{built:?}");
    let found: Vec<&str> = BANNED.iter().copied().filter(|name| built.contains(*name)).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// A test over real sockets that lets time pass is slow on a fast machine and fails on a slow one: it waits for what is
/// to happen, with `until` of the harness. Time that is paused may pass.
#[test]
fn tests_over_sockets_wait_for_events() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut folders = vec![root.join("tests/it"), root.join("tests/system")];
    for entry in std::fs::read_dir(root.join("crates")).unwrap() {
        folders.push(entry.unwrap().path().join("tests"));
    }
    let (mut read, mut found) = (0, Vec::new());
    for folder in folders.iter().filter(|folder| folder.exists()) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().path();
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            read += 1;
            let is_paused = text.contains("start_paused = true") && !text.contains("multi_thread");
            let sleeps = |line: &str| line.contains("time::sleep") || line.contains("thread::sleep");
            if file != root.join("tests/it/layering.rs") && !is_paused {
                let lines = text.lines().enumerate().filter(|(_, line)| sleeps(line));
                found.extend(lines.map(|(index, _)| format!("{}:{}", file.display(), index + 1)));
            }
        }
    }
    assert!(read > 30, "{read} files were read");
    assert_eq!(found, Vec::<String>::new());
}

//! Kills a process at every system call of the journal's path, fills its disk and breaks it, and looks what is left.
//!
//! `cargo run -p deltaplane-tests --bin kill-sweep`; needs `strace`. Faults F50, F51, F53 and F54 of the matrix.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

use deltaplane_ports::{Answer, AnswerClaim, AnswerStore as _, Journal as _, Record};
use deltaplane_store_sqlite::{JournalReading, SqliteStore};
use deltaplane_types::Timestamp;

/// Groups that a whole run appends, two records each.
const GROUPS: u16 = 24;
/// After every so many groups a request is answered.
const ANSWERED_EVERY: u16 = 4;
/// The calls that change what is on disk.
const CALLS: [&str; 5] = ["openat", "pwrite64", "fsync", "ftruncate", "unlink"];

type Error = Box<dyn std::error::Error>;

fn answer(group: u16) -> Answer {
    Answer { status: 200, body: format!("answer {group}").into_bytes() }
}

fn at() -> Timestamp {
    Timestamp::from_millis(1_764_000_000_000)
}

/// Two records, all or none of which are there.
fn group_of(group: u16) -> Vec<Record> {
    [1, 2].map(|part| Record::RunStarted { epoch: group, next_sequence: part, at: at() }).into()
}

/// The steps during which the process is killed: each is printed once it is durable.
async fn work(folder: &Path) -> Result<(), Error> {
    let store = SqliteStore::open(folder)?;
    for group in 0..GROUPS {
        match store.append(group_of(group)).await {
            Ok(()) => println!("appended {group}"),
            Err(error) => println!("refused {group} {error}"),
        }
        if group % ANSWERED_EVERY == 0 {
            let key = group.to_string();
            if store.claim(&key, "hash", at()).await.is_ok()
                && store.complete(&key, &answer(group)).await.is_ok()
            {
                println!("answered {group}");
            }
        }
    }
    drop(store);
    println!("closed");
    Ok(())
}

/// What a process told before it ended.
struct Told {
    appended: BTreeSet<u16>,
    answered: BTreeSet<u16>,
    refused: BTreeSet<u16>,
    closed: bool,
}

fn told(output: &Output) -> Told {
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers = |word: &str| -> BTreeSet<u16> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        lines.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect()
    };
    Told {
        appended: numbers("appended"),
        answered: numbers("answered"),
        refused: numbers("refused"),
        closed: text.lines().any(|line| line == "closed"),
    }
}

fn run(folder: &Path, injection: &str) -> Result<Output, Error> {
    let call = injection.split(':').next().unwrap_or_default();
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={injection}")])
        .arg(std::env::current_exe()?)
        .arg("work")
        .arg(folder)
        .output()
        .map_err(|error| format!("strace does not start: {error}; install it, for example with apt-get"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if text.starts_with("strace:") {
        return Err(format!("strace: {text}").into());
    }
    Ok(output)
}

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(what().into()) }
}

/// Everything that was told is there, nothing is there in half, and the journal goes on.
async fn examine(folder: &Path, told: &Told) -> Result<(), Error> {
    if folder.join("journal.sqlite").exists()
        && let Ok(reading) = JournalReading::open(folder)
    {
        require(reading.bad.is_empty(), || format!("the chain is broken: {:?}", reading.bad))?;
    }
    let store = SqliteStore::open(folder)?;
    require(store.quarantined().is_none(), || "rows were set aside".to_owned())?;
    let records: Vec<Record> = store.load().await?.into_iter().map(|stored| stored.record).collect();
    let groups = told.appended.len();
    let whole = records.len() == groups * 2 || records.len() == (groups + 1) * 2;
    require(whole, || format!("{} records of {groups} groups that were told durable", records.len()))?;
    let expected = (0..GROUPS).flat_map(group_of).take(records.len());
    require(expected.eq(records.iter().cloned()), || format!("other records: {records:?}"))?;
    for group in &told.answered {
        let claim = store.claim(&group.to_string(), "hash", at()).await?;
        require(claim == AnswerClaim::Answered(answer(*group)), || format!("answer {group} is {claim:?}"))?;
    }
    store.append(group_of(GROUPS)).await?;
    require(store.load().await?.len() == records.len() + 2, || "it does not go on".to_owned())?;
    Ok(())
}

/// Breaks the k-th call for every k until a run gets through; gives how many runs were broken.
async fn sweep(call: &str, what: &str, from_then_on: bool) -> Result<u32, Error> {
    for k in 1_u32.. {
        let parent = tempfile::tempdir()?;
        let folder = parent.path().join("data");
        let then = if from_then_on { "+" } else { "" };
        let output = run(&folder, &format!("{call}:{what}:when={k}{then}"))?;
        let told = told(&output);
        let context = |error: Error| format!("{call} {what} at {k}{then}: {error}");
        if let Some(first) = told.refused.first() {
            let later = told.appended.iter().any(|group| group > first);
            require(!later, || format!("{call} {what} at {k}: appended after group {first} was refused"))?;
        }
        examine(&folder, &told).await.map_err(context)?;
        if told.closed && told.refused.is_empty() && told.appended.len() == usize::from(GROUPS) {
            // What goes wrong in closing is not told by anything, and loses nothing.
            require(k > 1, || format!("{call} is not on the journal's path"))?;
            return Ok(k - 1);
        }
    }
    unreachable!("a run ends");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [] => sweeps().await,
        [word, folder] if word == "work" => work(Path::new(folder)).await,
        _ => Err("usage: kill-sweep".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kill-sweep: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn sweeps() -> Result<(), Error> {
    for call in CALLS {
        let runs = sweep(call, "signal=SIGKILL", false).await?;
        println!("killed at {call}: {runs} places, everything told durable was there");
    }
    for (call, error) in [("pwrite64", "ENOSPC"), ("pwrite64", "EIO"), ("fsync", "EIO"), ("fsync", "ENOSPC")]
    {
        for from_then_on in [false, true] {
            let runs = sweep(call, &format!("error={error}"), from_then_on).await?;
            let kind = if from_then_on { "from then on" } else { "once" };
            println!("{error} at {call} {kind}: {runs} places, nothing was told that was not durable");
        }
    }
    Ok(())
}

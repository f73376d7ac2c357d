//! The operator's command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use deltaplane_operator::{audit, line, story};
use deltaplane_store_sqlite::JournalReading;
use deltaplane_types::OperationId;

/// Looks into what deltaplane wrote. Nothing is changed, and a server may be at work.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reads the journal.
    #[command(subcommand)]
    Journal(Journal),
}

#[derive(Subcommand)]
enum Journal {
    /// Checks the chain of hashes and the rules that every journal keeps; fails where something is wrong.
    Verify(Folder),
    /// Prints the newest rows, oldest first.
    Show {
        #[command(flatten)]
        folder: Folder,
        /// How many rows.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Tells what happened in an operation, with every order and what proved its outcome.
    Explain {
        /// The operation.
        operation: String,
        #[command(flatten)]
        folder: Folder,
    },
}

#[derive(clap::Args)]
struct Folder {
    /// The server's data folder.
    #[arg(long, default_value = "data")]
    data_dir: PathBuf,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("deltaplane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let Command::Journal(command) = arguments.command;
    match command {
        Journal::Verify(folder) => {
            let reading = JournalReading::open(&folder.data_dir)?;
            println!("{}: {} rows, head {}", reading.path.display(), reading.last, reading.head);
            let damaged = reading.bad.iter().map(|(row, reason)| format!("row {row}: {reason}"));
            let wrong: Vec<String> = damaged.chain(audit(&reading.records)).collect();
            for text in &wrong {
                println!("{text}");
            }
            if wrong.is_empty() {
                println!("the chain is whole and every rule is kept");
                return Ok(ExitCode::SUCCESS);
            }
            println!("{} findings", wrong.len());
            Ok(ExitCode::FAILURE)
        }
        Journal::Show { folder, limit } => {
            let reading = JournalReading::open(&folder.data_dir)?;
            let first = reading.records.len().saturating_sub(limit);
            for stored in reading.records.iter().skip(first) {
                println!("{}", line(stored));
            }
            Ok(ExitCode::SUCCESS)
        }
        Journal::Explain { operation, folder } => {
            let reading = JournalReading::open(&folder.data_dir)?;
            let Ok(id) = operation.parse::<OperationId>() else {
                bail!("{operation:?} is no operation id; see GET /api/v1/operations or journal show");
            };
            match story(&reading.records, &id) {
                Some(text) => println!("{text}"),
                None => bail!("the journal has no operation {id}; see journal show"),
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

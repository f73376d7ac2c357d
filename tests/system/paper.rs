//! The server binary in paper mode, with three simulated exchanges inside.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use deltaplane_tests::until_within;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;

/// How long a server may take until it is ready.
const START: Duration = Duration::from_secs(30);

/// A server on a free port; killed at the end.
pub(crate) struct Server {
    pub(crate) process: Child,
    pub(crate) address: String,
    pub(crate) client: reqwest::Client,
}

/// Where one of its exchanges listens.
pub(crate) struct PaperExchange {
    pub(crate) rest: String,
    pub(crate) control: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The server binary in a folder, with nothing that its surroundings would say.
pub(crate) fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deltaplane-server"));
    command.env_remove("DELTAPLANE_API_KEY_FILE").env("DELTAPLANE_LOG", "warn");
    command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Server {
    pub(crate) async fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[], &[]).await
    }

    pub(crate) async fn start_with(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command(folder);
        let server = Self::spawn(command.args(arguments).envs(environment.iter().copied()));
        server.is_ready().await;
        server
    }

    /// Starts one by a command that ends in the binary.
    pub(crate) async fn begin(command: &mut Command) -> Self {
        let server = Self::spawn(command);
        server.is_ready().await;
        server
    }

    /// Starts one, and gives with it where its simulated exchanges are, by their kinds.
    pub(crate) async fn start_printing(folder: &Path) -> (Self, BTreeMap<String, PaperExchange>) {
        let mut server = Self::spawn(command(folder).stdout(Stdio::piped()));
        let printed = std::io::BufReader::new(server.process.stdout.take().unwrap());
        // As "NAME on a simulated KIND at REST (control CONTROL)".
        let exchanges = printed.lines().map(Result::unwrap).filter_map(|line| {
            let (kind, places) = line.split_once(" on a simulated ")?.1.split_once(" at ")?;
            let (rest, control) = places.trim_end_matches(')').split_once(" (control ")?;
            Some((kind.to_owned(), PaperExchange { rest: rest.to_owned(), control: control.to_owned() }))
        });
        let exchanges = exchanges.take(3).collect();
        // From here on its output is not read, as behind `| head -5`.
        server.is_ready().await;
        (server, exchanges)
    }

    fn spawn(command: &mut Command) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let process = command.args(["--listen", &address, "--data-dir", "data"]).spawn().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { process, address, client }
    }

    async fn is_ready(&self) {
        until_within(START, "the server is ready", async || {
            let answer = self.client.get(self.url("/readyz")).send().await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.client.get(self.url(path)).send().await.unwrap();
        (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }

    pub(crate) async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> (u16, Value) {
        let mut request =
            self.client.post(self.url(path)).header(CONTENT_TYPE, "application/json").body(body.into());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }

    pub(crate) async fn put(&self, path: &str, body: impl Into<Vec<u8>>) -> (u16, Value) {
        let request =
            self.client.put(self.url(path)).header(CONTENT_TYPE, "application/json").body(body.into());
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }
}

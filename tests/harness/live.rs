//! The server binary in live mode, over exchanges that outlive it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use serde_json::Value;

/// The API key of these servers.
pub const KEY: &str = "admin.kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk";

/// Puts a configuration and an API key into a folder.
pub fn write_config(folder: &Path, text: &str) {
    std::fs::write(folder.join("live.toml"), text).expect("the folder can be written");
    std::fs::write(folder.join("api.key"), KEY).expect("the folder can be written");
    #[cfg(unix)]
    std::fs::set_permissions(folder.join("api.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("the file is there");
}

/// A server in live mode. Dropping it kills it.
pub struct Server {
    process: Child,
    address: String,
    client: reqwest::Client,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// Starts the binary in a folder that [`write_config`] prepared and waits until it is ready.
    pub async fn start(
        binary: &str,
        folder: &Path,
        secrets: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let address = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            free.local_addr().expect("an address").to_string()
        };
        let mut command = Command::new(binary);
        command.envs(secrets);
        let process = command
            .args(["--listen", &address, "--data-dir", "data", "--config", "live.toml", "--live"])
            .envs([("DELTAPLANE_API_KEY_FILE", "api.key"), ("DELTAPLANE_LOG", "warn")])
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a running server");
        let client = reqwest::Client::builder().no_proxy().build().expect("a running server");
        let server = Self { process, address, client };
        crate::until_within(Duration::from_secs(30), "the server is ready", async || {
            let answer = server.client.get(server.url("/readyz")).send().await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        server
    }

    /// An address of its API.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(self.url(path)).bearer_auth(KEY).send().await.expect("a running server");
        serde_json::from_str(&answer.text().await.expect("a running server")).expect("a running server")
    }

    /// Asks for something.
    ///
    /// # Errors
    ///
    /// What kept the answer from coming.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, reqwest::Error> {
        self.post_with(path, &[], body).await
    }

    /// The same with headers.
    ///
    /// # Errors
    ///
    /// What kept the answer from coming.
    pub async fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<Value, reqwest::Error> {
        let mut request = self
            .client
            .post(self.url(path))
            .bearer_auth(KEY)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let text = request.send().await?.text().await?;
        Ok(serde_json::from_str(&text).expect("JSON"))
    }

    /// Kills it, as `kill -9` does.
    pub fn kill(mut self) {
        self.process.kill().expect("a running server");
        self.process.wait().expect("a running server");
    }
}

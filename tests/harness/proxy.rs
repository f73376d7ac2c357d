//! A proxy that breaks connections at a chosen byte, and counts what was really sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Where a connection breaks, counted from the first byte of a matching request.
#[derive(Clone, Debug)]
pub enum Cut {
    /// So many bytes of the request reach the venue, then both sides are closed.
    RequestAfter(usize),
    /// The venue has the whole request; its answer never comes and the connection is closed.
    BeforeAnswer,
    /// So many bytes of the answer come, then the connection is closed.
    AnswerAfter(usize),
    /// The request does not reach the venue, and this is the answer.
    Answer(Vec<u8>),
    /// The answer comes byte by byte.
    Drip,
}

#[derive(Default)]
struct State {
    armed: Option<(String, Cut)>,
    seen: Vec<String>,
}

/// A proxy in front of one address. Dropping it ends it.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Starts in front of `http://ADDRESS`.
    pub async fn start(behind: &str) -> Self {
        let behind = behind.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let mut tasks = JoinSet::new();
        let shared = state.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client, behind.clone(), shared.clone()));
            }
        });
        Self { address, state, _tasks: tasks }
    }

    /// Where it is: `http://ADDRESS`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Breaks the next request that begins like this.
    pub fn cut(&self, begins: &str, cut: Cut) {
        lock(&self.state).armed = Some((begins.to_owned(), cut));
    }

    /// Whether the break is still to come.
    pub fn is_armed(&self) -> bool {
        lock(&self.state).armed.is_some()
    }

    /// How many requests that begin like this were sent.
    pub fn attempts(&self, begins: &str) -> usize {
        lock(&self.state).seen.iter().filter(|line| line.starts_with(begins)).count()
    }
}

async fn serve(mut client: TcpStream, behind: String, state: Arc<Mutex<State>>) {
    let Ok(mut venue) = TcpStream::connect(&behind).await else { return };
    let _ = client.set_nodelay(true);
    let (mut from_client, mut from_venue) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut drips = false;
    let mut answer_left: Option<usize> = None;
    loop {
        tokio::select! {
            biased;
            read = client.read(&mut from_client) => {
                let Ok(count @ 1..) = read else { return };
                let chunk = &from_client[..count];
                let text = String::from_utf8_lossy(chunk);
                let mut cut = None;
                if let Some(line) = text.lines().next().filter(|line| line.ends_with("HTTP/1.1")) {
                    let mut state = lock(&state);
                    state.seen.push(line.to_owned());
                    if state.armed.as_ref().is_some_and(|(begins, _)| line.starts_with(begins.as_str())) {
                        cut = state.armed.take().map(|(_, cut)| cut);
                    }
                }
                match cut {
                    None => if venue.write_all(chunk).await.is_err() { return },
                    Some(Cut::RequestAfter(bytes)) => {
                        let _ = venue.write_all(&chunk[..bytes.min(count)]).await;
                        return;
                    }
                    Some(Cut::BeforeAnswer) => {
                        let _ = venue.write_all(chunk).await;
                        // The venue is given time to carry it out.
                        let _ = tokio::time::timeout(Duration::from_secs(2), venue.read(&mut from_venue)).await;
                        return;
                    }
                    Some(Cut::AnswerAfter(bytes)) => {
                        answer_left = Some(bytes);
                        if venue.write_all(chunk).await.is_err() { return }
                    }
                    Some(Cut::Answer(bytes)) => {
                        let _ = client.write_all(&bytes).await;
                        let _ = client.shutdown().await;
                        return;
                    }
                    Some(Cut::Drip) => {
                        drips = true;
                        if venue.write_all(chunk).await.is_err() { return }
                    }
                }
            }
            read = venue.read(&mut from_venue) => {
                let Ok(count @ 1..) = read else { return };
                let chunk = &from_venue[..count];
                if let Some(left) = answer_left {
                    let _ = client.write_all(&chunk[..left.min(count)]).await;
                    return;
                }
                if drips {
                    for byte in chunk {
                        if client.write_all(&[*byte]).await.is_err() { return }
                        tokio::time::sleep(Duration::from_millis(30)).await;
                    }
                } else if client.write_all(chunk).await.is_err() {
                    return;
                }
            }
        }
    }
}

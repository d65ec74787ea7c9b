//! Requests chat completions from a gateway and measures the answers: `bench-load closed …`, `bench-load rate …`.
//!
//! * `closed`: a fixed number of connections, each with one request at a time, as fast as they are answered. Measures a
//!   gateway's throughput.
//! * `rate`: requests at fixed times, whether the earlier ones have been answered or not; latencies count from the
//!   time a request was *meant* to be sent, so that a stall delays all requests due meanwhile. Measures a gateway's
//!   latency.
//!
//! It prints one line of JSON. `ok` counts every good answer since the start of the process, warm-up included, for
//! comparison with the gateway's counters; the other figures are of the measured time alone: a request belongs to it
//! when its answer *ends* in it (`closed`; slow requests do not count less) or when it was meant to be sent in it
//! (`rate`).

use std::cell::Cell;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench_gateway::awake::Awake;
use bench_gateway::events::EventCounter;
use bench_gateway::http::{Message, Side};
use bench_gateway::stats::{Tally, nanos};
use clap::{Args, Parser, Subcommand};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Requests chat completions and measures the answers.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Send as fast as the answers come, on a fixed number of connections.
    Closed {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 32)]
        connections: u32,
        /// End after this number of requests, if that is earlier.
        #[arg(long, default_value_t = u64::MAX)]
        requests: u64,
    },
    /// Send at fixed times.
    Rate {
        #[command(flatten)]
        target: Target,
        /// Requests per second.
        #[arg(long)]
        rate: f64,
        /// Maximum number of concurrent requests.
        #[arg(long, default_value_t = 32)]
        connections: u32,
    },
}

#[derive(Args, Clone)]
struct Target {
    /// Address of the gateway, as `host:port`.
    #[arg(long, value_parser = resolve)]
    address: SocketAddr,
    #[arg(long, default_value = "/v1/chat/completions")]
    path: String,
    /// Further headers, as `name: value`.
    #[arg(long = "header")]
    headers: Vec<String>,
    #[arg(long, default_value = "bench")]
    model: String,
    /// Request this many models in turn: `bench`, `other-1`, `other-2` and so on.
    #[arg(long, default_value_t = 1)]
    models: usize,
    /// A file with API keys, one on each line, that are sent in turn as bearer tokens.
    #[arg(long)]
    keys: Option<PathBuf>,
    /// Request streams.
    #[arg(long)]
    stream: bool,
    /// Number of events that a stream must have, `[DONE]` included; other streams count as broken.
    #[arg(long, default_value_t = 52)]
    expect_events: u32,
    /// Warm-up before the measured time, in seconds.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Measured time in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Bytes of text in the question.
    #[arg(long, default_value_t = 400)]
    text: usize,
}

fn resolve(address: &str) -> io::Result<SocketAddr> {
    address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))
}

/// The requests to send in turn, as bytes on the wire. With one model and one key that is one request.
struct Requests(Vec<Vec<u8>>);

impl Requests {
    fn of(target: &Target) -> io::Result<Self> {
        let keys: Vec<String> = match &target.keys {
            Some(file) => std::fs::read_to_string(file)?
                .lines()
                .map(|key| format!("authorization: Bearer {key}\r\n"))
                .collect(),
            None => vec![String::new()],
        };
        if keys.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file of keys has none"));
        }
        // As many as there are keys or models, whichever are more: every key and every model occurs, not every pair.
        let count = keys.len().max(target.models);
        let model = |turn: usize| match turn % target.models.max(1) {
            0 => target.model.clone(),
            other => format!("other-{other}"),
        };
        Ok(Self((0..count).map(|turn| target.request(&model(turn), &keys[turn % keys.len()])).collect()))
    }

    fn at(&self, turn: usize) -> &[u8] {
        &self.0[turn % self.0.len()]
    }
}

impl Target {
    fn request(&self, model: &str, authorization: &str) -> Vec<u8> {
        let stream = if self.stream { r#""stream":true,"# } else { "" };
        let body = format!(
            r#"{{"model":"{}",{stream}"temperature":0.2,"messages":[{{"role":"system","content":"You are a helpful assistant."}},{{"role":"user","content":"{}"}}]}}"#,
            model,
            "word ".repeat(self.text / 5)
        );
        let headers: String = self.headers.iter().map(|header| format!("{header}\r\n")).collect();
        format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\naccept: */*\r\nuser-agent: bench-load/1\r\n{authorization}{headers}content-length: {}\r\n\r\n{body}",
            self.path,
            self.address,
            body.len()
        )
        .into_bytes()
    }
}

/// One answer in progress.
struct Reading {
    message: Message,
    events: EventCounter,
    streamed: bool,
    bytes: u64,
    first: Option<Instant>,
}

impl Reading {
    fn new(streamed: bool) -> Self {
        Self {
            message: Message::new(Side::Response),
            events: EventCounter::default(),
            streamed,
            bytes: 0,
            first: None,
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let Self { message, events, streamed, bytes: count, first } = self;
        message
            .feed(bytes, |data| {
                if !data.is_empty() && first.is_none() {
                    *first = Some(Instant::now());
                }
                *count += data.len() as u64;
                if *streamed {
                    events.feed(data);
                }
            })
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Adds the complete answer to `tally`.
    fn count(&self, target: &Target, from: Instant, measured: bool, tally: &mut Tally) {
        if self.message.status() != 200 {
            tally.refused += 1;
        } else if self.streamed && self.events.events() != target.expect_events {
            tally.broken += 1;
        } else {
            tally.ok += 1;
            if measured {
                tally.measured += 1;
                tally.events += u64::from(self.events.events());
                tally.bytes += self.bytes;
                tally.latencies.push(nanos(from.elapsed()));
                tally.first.extend(self.first.map(|first| nanos(first.saturating_duration_since(from))));
            }
        }
    }
}

fn main() -> io::Result<()> {
    let (mode, (tally, elapsed)) = match Cli::parse().mode {
        Mode::Closed { target, connections, requests } => ("closed", closed(target, connections, requests)?),
        Mode::Rate { target, rate, connections } => ("rate", at_rate(&target, rate, connections)?),
    };
    writeln!(io::stdout(), "{}", tally.report(mode, elapsed))
}

fn closed(target: Target, connections: u32, requests: u64) -> io::Result<(Tally, Duration)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let from = Instant::now() + Duration::from_secs_f64(target.warm_up);
    let until = from + Duration::from_secs_f64(target.seconds);
    let asked = Rc::new((Requests::of(&target)?, Cell::new(0)));
    let (target, left) = (Rc::new(target), Rc::new(Cell::new(requests)));
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let awake = Rc::new(Awake::default());
        let keeper = awake.clone();
        tokio::task::spawn_local(async move { keeper.keep().await });
        let tasks: Vec<_> = (0..connections)
            .map(|_| {
                tokio::task::spawn_local(keep_asking(
                    target.clone(),
                    asked.clone(),
                    left.clone(),
                    awake.clone(),
                    from,
                    until,
                ))
            })
            .collect();
        let mut tally = Tally::default();
        for task in tasks {
            tally.add(task.await.map_err(io::Error::other)?);
        }
        Ok((tally, Instant::now().min(until).saturating_duration_since(from)))
    })
}

async fn keep_asking(
    target: Rc<Target>,
    asked: Rc<(Requests, Cell<usize>)>,
    left: Rc<Cell<u64>>,
    awake: Rc<Awake>,
    from: Instant,
    until: Instant,
) -> Tally {
    let mut tally = Tally::default();
    let mut buffer = vec![0; 64 << 10];
    let mut connection = None;
    while Instant::now() < until && left.get() > 0 {
        left.set(left.get() - 1);
        let sent = Instant::now();
        awake.stir();
        let mut reading = Reading::new(target.stream);
        let (requests, turn) = &*asked;
        let request = requests.at(turn.replace(turn.get().wrapping_add(1)));
        match ask(&mut connection, &target, request, &mut buffer, &mut reading).await {
            Ok(()) => {
                let measured = (from..=until).contains(&Instant::now());
                reading.count(&target, sent, measured, &mut tally);
            }
            Err(_) => {
                tally.broken += 1;
                connection = None;
                // No busy loop against a server that is down.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        if !reading.message.keep_alive() {
            connection = None;
        }
    }
    tally
}

async fn ask(
    connection: &mut Option<TcpStream>,
    target: &Target,
    request: &[u8],
    buffer: &mut [u8],
    reading: &mut Reading,
) -> io::Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(target.address).await?;
            stream.set_nodelay(true)?;
            connection.insert(stream)
        }
    };
    stream.write_all(request).await?;
    loop {
        let read = stream.read(buffer).await?;
        if read == 0 {
            return if reading.message.closed() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if reading.feed(&buffer[..read])? {
            return Ok(());
        }
    }
}

/// Blocking threads, one for each connection: a thread sleeps to within microseconds, a runtime's timer to within a
/// millisecond, which is more than a good gateway takes.
fn at_rate(target: &Target, rate: f64, connections: u32) -> io::Result<(Tally, Duration)> {
    if !(rate.is_finite() && rate > 0.0) || connections == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the rate and the connections must be positive",
        ));
    }
    let start = Instant::now() + Duration::from_millis(50);
    let from = start + Duration::from_secs_f64(target.warm_up);
    let until = from + Duration::from_secs_f64(target.seconds);
    let step = Duration::from_secs_f64(1.0 / rate);
    let requests = Arc::new(Requests::of(target)?);
    let target = Arc::new(target.clone());
    let threads: Vec<_> = (0..connections)
        .map(|index| {
            let (target, requests) = (target.clone(), requests.clone());
            let mut turns = (index as usize..).step_by(connections as usize);
            let mut next = move || requests.at(turns.next().unwrap_or_default()).to_vec();
            let first = start + step * index;
            std::thread::Builder::new()
                .stack_size(256 << 10)
                .spawn(move || ask_on_time(&target, &mut next, first, step * connections, from, until))
        })
        .collect::<Result<_, _>>()?;
    let mut tally = Tally::default();
    for thread in threads {
        let theirs = thread.join().map_err(|_| io::Error::other("a thread of the generator panicked"))?;
        tally.add(theirs);
    }
    Ok((tally, until - from))
}

fn ask_on_time(
    target: &Target,
    next: &mut impl FnMut() -> Vec<u8>,
    first: Instant,
    step: Duration,
    from: Instant,
    until: Instant,
) -> Tally {
    let mut tally = Tally::default();
    let mut buffer = vec![0; 64 << 10];
    let mut connection: Option<std::net::TcpStream> = None;
    let mut due = first;
    while due < until {
        let request = next();
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut reading = Reading::new(target.stream);
        let asked = || -> io::Result<()> {
            let stream = match &mut connection {
                Some(stream) => stream,
                None => {
                    let stream = std::net::TcpStream::connect(target.address)?;
                    stream.set_nodelay(true)?;
                    connection.insert(stream)
                }
            };
            stream.write_all(&request)?;
            loop {
                let read = stream.read(&mut buffer)?;
                if read == 0 {
                    let whole = reading.message.closed();
                    return if whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                }
                if reading.feed(&buffer[..read])? {
                    return Ok(());
                }
            }
        };
        match { asked }() {
            Ok(()) => reading.count(target, due, due >= from, &mut tally),
            Err(_) => {
                tally.broken += 1;
                connection = None;
            }
        }
        if !reading.message.keep_alive() {
            connection = None;
        }
        due += step;
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_models_are_taken_in_turn() {
        let file = std::env::temp_dir().join(format!("bench-load-keys-{}", std::process::id()));
        std::fs::write(&file, "sk-a\nsk-b\nsk-c").expect("written");
        let address = "localhost:1".to_owned();
        let flags = ["bench-load", "closed", "--address", &address, "--models", "2", "--keys"];
        let cli = Cli::parse_from(flags.map(std::ffi::OsStr::new).into_iter().chain([file.as_os_str()]));
        let Mode::Closed { target, .. } = cli.mode else { panic!("another mode") };
        let requests = Requests::of(&target).expect("keys");
        std::fs::remove_file(file).expect("removed");
        let mut seen = Vec::new();
        for turn in 0..4 {
            let request = String::from_utf8(requests.at(turn).to_vec()).expect("text");
            let key = request.split("Bearer ").nth(1).expect("a key")[..4].to_owned();
            let model =
                request.split(r#""model":""#).nth(1).expect("a model").split('"').next().expect("text");
            seen.push((key, model.to_owned()));
        }
        let expected = [("sk-a", "bench"), ("sk-b", "other-1"), ("sk-c", "bench"), ("sk-a", "bench")];
        assert_eq!(seen, expected.map(|(key, model)| (key.to_owned(), model.to_owned())));
    }
}

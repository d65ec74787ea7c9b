//! `nexusgate demo`: a gateway, two scripted providers and steady traffic in one process, and a final account of
//! whether the counters are right.
//!
//! * [`provider`] is the scripted provider, the same that the tests use.
//! * [`traffic`] sends requests through the gateway's own port and records what its clients saw.
//! * [`scrape`] reads `/metrics` as Prometheus would.
//!
//! Nothing is kept: database, journal and keys live in a temporary folder that goes with the process.

mod console;
pub mod provider;
mod report;
pub mod scrape;
mod setup;
pub mod traffic;
mod upstreams;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::{RunningApp, StartError};
use crate::config::{ConfigError, Settings};

use console::Console;
use report::Report;
use setup::Secrets;
use traffic::{Arrivals, Client, Planner, Tally, Traffic};
use upstreams::{Reported, Upstream};

/// Options of the demo.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Stop after this time; at Ctrl-C when left out.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Requests per second; 0 sends none.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 20.0, value_parser = rate)]
    pub rate: f64,
    /// TCP port of the gateway on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 3000)]
    pub port: u16,
    /// Print only errors, and the final account only if it does not add up.
    #[arg(long)]
    pub quiet: bool,
    /// Print, as the first line, a JSON object with the URLs and secrets, for scripts.
    #[arg(long)]
    pub json_ready: bool,
    /// Random seed: the same seed repeats the same requests and answers.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Beyond this rate the generator needs more of the machine than the gateway.
const MAX_RATE: f64 = 20_000.0;

fn rate(text: &str) -> Result<f64, String> {
    let takes = || format!("expected a number of requests per second from 0 to {MAX_RATE}");
    text.parse().ok().filter(|rate| (0.0..=MAX_RATE).contains(rate)).ok_or_else(takes)
}

/// Why the demo ended badly. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("cannot make a temporary folder: {0}")]
    Folder(io::Error),
    #[error("cannot start a scripted provider: {0}")]
    Provider(io::Error),
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Start(#[from] StartError),
    #[error("stopped before everything was counted")]
    Interrupted,
    #[error("the gateway did not finish its work within the grace period")]
    Unfinished,
    #[error("{0} lines of the account do not add up")]
    Disagree(usize),
}

/// How long the last answers and counts may take to come in once the traffic has stopped.
const SETTLING: Duration = Duration::from_secs(20);

/// Runs the demo to its end.
///
/// # Errors
/// When something cannot be started, and when the gateway's counters differ from the requests sent and answered.
pub async fn run(args: DemoArgs) -> Result<(), DemoError> {
    let console = Console::new(args.quiet);
    let folder = tempfile::Builder::new().prefix("nexusgate-demo-").tempdir().map_err(DemoError::Folder)?;
    let arrivals = Arrivals::default();
    let upstreams = Upstream::spawn_all(args.seed, &arrivals).await.map_err(DemoError::Provider)?;
    let secrets = Secrets::generate();
    let app = start_gateway(&setup::settings(folder.path(), args.port, &secrets, &upstreams)?).await?;
    let demo = Demo { gateway: app.address(), secrets, upstreams, console };
    demo.announce(&args);

    let client = Client::new(demo.gateway, arrivals);
    let tally = demo.send_traffic(&args, &client).await?;
    let report = tokio::select! {
        report = demo.settle(&tally, &client) => report,
        signal = interrupted() => return Err(signal.err().map_or(DemoError::Interrupted, DemoError::Signals)),
    };
    let disagreements = report.disagreements();
    if disagreements > 0 {
        Console::print(&report.table());
    } else {
        console.say(&watch::clients(&tally));
        console.say(&report.table());
    }
    if !app.shutdown().await {
        return Err(DemoError::Unfinished);
    }
    if disagreements > 0 { Err(DemoError::Disagree(disagreements)) } else { Ok(()) }
}

/// The one place where the demo meets the application.
async fn start_gateway(settings: &Settings) -> Result<RunningApp, StartError> {
    RunningApp::start(settings, Default::default()).await
}

/// A demo that is running.
struct Demo {
    gateway: SocketAddr,
    secrets: Secrets,
    upstreams: Vec<Upstream>,
    console: Console,
}

impl Demo {
    /// Prints the URLs and secrets: as JSON for scripts, in words for people.
    fn announce(&self, args: &DemoArgs) {
        let url = format!("http://{}", self.gateway);
        if args.json_ready {
            let providers: Vec<_> = (self.upstreams.iter())
                .map(
                    |upstream| json!({"name": upstream.name, "control_url": upstream.provider.control_url()}),
                )
                .collect();
            let ready = json!({
                "url": url,
                "base_url": format!("{url}/v1"),
                "metrics_url": format!("{url}/metrics"),
                "admin_secret": self.secrets.admin,
                "api_key": self.secrets.visitor,
                "models": upstreams::names(&self.upstreams),
                "providers": providers,
                "pid": std::process::id(),
            });
            Console::print(&ready.to_string());
        }
        self.console.say(&watch::banner(&url, &self.secrets, &self.upstreams, args.rate));
    }

    /// Sends traffic and prints a line now and then, until the time is over or it is stopped.
    async fn send_traffic(&self, args: &DemoArgs, client: &Client) -> Result<Tally, DemoError> {
        let stop = CancellationToken::new();
        let traffic = Traffic::new(client.clone(), args.rate);
        let planner = Planner::new(setup::plan(&self.secrets, &self.upstreams), args.seed);
        let sending = async {
            if args.rate > 0.0 {
                traffic.run(planner, stop.clone()).await;
            }
        };
        let ending = async {
            let over = async {
                match args.duration {
                    Some(duration) => tokio::time::sleep(duration).await,
                    None => std::future::pending().await,
                }
            };
            let outcome = tokio::select! {
                () = over => Ok(()),
                outcome = interrupted() => outcome,
            };
            stop.cancel();
            outcome
        };
        let lines = watch::lines(self.console, client, stop.clone());
        // Requests that are under way are waited for, unless a second signal comes.
        let hurried = async {
            stop.cancelled().await;
            interrupted().await
        };
        tokio::select! {
            ((), (), ended) = async { tokio::join!(sending, lines, ending) } => ended.map_err(DemoError::Signals)?,
            signal = hurried => return Err(signal.err().map_or(DemoError::Interrupted, DemoError::Signals)),
        }
        Ok(traffic.tally())
    }

    /// Waits until everything adds up, or until it plainly will not.
    async fn settle(&self, tally: &Tally, client: &Client) -> Report {
        let deadline = tokio::time::Instant::now() + SETTLING;
        loop {
            let scrape = watch::scrape(client).await.unwrap_or_default();
            let mut reported = Reported::default();
            for upstream in &self.upstreams {
                reported += upstream.reported();
            }
            let report = Report::of(tally, &reported, &scrape);
            if report.disagreements() == 0 || tokio::time::Instant::now() > deadline {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Resolves on Ctrl-C and on SIGTERM.
async fn interrupted() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome,
        _ = terminate.recv() => Ok(()),
    }
}

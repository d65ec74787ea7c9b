//! One client: sends a request, reads the answer as an application would, and reports what it saw.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::demo::provider::FAILURE_MARK;
use crate::domain::label::RejectReason;

use super::plan::{Job, Kind};
use super::reader::{self, StreamReader};
use super::tally::{Ending, Seen};

/// A client that gets nothing for this long gives up. Longer than anything the demo does on purpose.
const PATIENCE: Duration = Duration::from_secs(120);

/// Clients that mean to leave wait here until a provider says that their request has arrived. Leaving after a fixed
/// time would sometimes mean leaving before the gateway had the request, and the expected counts would be unknown.
#[derive(Debug, Clone, Default)]
pub struct Arrivals {
    waiting: Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>,
}

impl Arrivals {
    /// The request of this end user has reached a provider.
    pub fn announce(&self, user: &str) {
        if let Some(waiting) = self.waiting.lock().remove(user) {
            // There is no waiter any more if the answer came first.
            let _ = waiting.send(());
        }
    }

    fn expect(&self, user: &str) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().insert(user.to_owned(), sender);
        receiver
    }

    fn forget(&self, user: &str) {
        self.waiting.lock().remove(user);
    }
}

/// Sends requests to a gateway over pooled connections.
#[derive(Debug, Clone)]
pub struct Client {
    gateway: SocketAddr,
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    arrivals: Arrivals,
}

/// The result of reading an answer.
struct Read {
    ending: Ending,
    first_content: Option<Instant>,
    tokens: Option<crate::demo::provider::Tokens>,
}

impl Read {
    fn of(ending: Ending) -> Self {
        Self { ending, first_content: None, tokens: None }
    }
}

impl Client {
    pub fn new(gateway: SocketAddr, arrivals: Arrivals) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Self { gateway, http, arrivals }
    }

    /// Fetches a page from the gateway, as a scrape does.
    pub async fn get(&self, path: &str) -> Option<String> {
        let request = Request::get(format!("http://{}{path}", self.gateway)).body(Full::default()).ok()?;
        let response = tokio::time::timeout(PATIENCE, self.http.request(request)).await.ok()?.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let body = response.into_body().collect().await.ok()?.to_bytes();
        String::from_utf8(body.to_vec()).ok()
    }

    /// Sends a request that was due at `due` and follows it to its end.
    pub async fn send(&self, job: &Job, due: Instant) -> Seen {
        let (status, read) = match tokio::time::timeout(PATIENCE, self.exchange(job)).await {
            Ok(outcome) => outcome,
            Err(_) => (None, Read::of(Ending::NoAnswer)),
        };
        if let Some(user) = &job.user {
            self.arrivals.forget(user);
        }
        Seen {
            kind: job.kind,
            ending: read.ending,
            status: status.map(|status| status.as_u16()),
            latency: due.elapsed(),
            first_content: read.first_content.map(|at| at.saturating_duration_since(due)),
            tokens: read.tokens,
        }
    }

    async fn exchange(&self, job: &Job) -> (Option<StatusCode>, Read) {
        let Some(request) = self.request(job) else { return (None, Read::of(Ending::NoAnswer)) };
        let response = match &job.user {
            Some(user) if job.kind == Kind::LeavesWaiting => {
                let arrived = self.arrivals.expect(user);
                let answer = self.http.request(request);
                tokio::select! {
                    // An answer that comes before the provider was reached is read, not abandoned.
                    biased;
                    response = answer => response,
                    Ok(()) = arrived => return (None, Read::of(Ending::Left)),
                }
            }
            _ => self.http.request(request).await,
        };
        let Ok(response) = response else { return (None, Read::of(Ending::NoAnswer)) };
        let status = response.status();
        let is_stream = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let read = match status {
            StatusCode::OK if is_stream => read_stream(response, job.kind).await,
            StatusCode::OK => read_body(response).await,
            _ => read_error(response).await,
        };
        (Some(status), read)
    }

    fn request(&self, job: &Job) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}{}", self.gateway, job.path))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &job.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        request.body(Full::from(job.body.clone())).ok()
    }
}

async fn read_stream(response: Response<Incoming>, kind: Kind) -> Read {
    let mut body = response.into_body();
    let mut reader = StreamReader::default();
    let mut first_content = None;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Read::of(Ending::Failed) };
        let Some(bytes) = frame.data_ref() else { continue };
        reader.push(bytes);
        if reader.has_content && first_content.is_none() {
            first_content = Some(Instant::now());
            if kind == Kind::LeavesMidStream && !reader.is_done {
                return Read::of(Ending::Left);
            }
        }
    }
    let ending = if reader.is_whole() { Ending::Completed } else { Ending::Failed };
    Read { ending, first_content, tokens: reader.tokens }
}

async fn read_body(response: Response<Incoming>) -> Read {
    let Ok(body) = response.into_body().collect().await else { return Read::of(Ending::Failed) };
    match serde_json::from_slice::<Value>(&body.to_bytes()) {
        Ok(body) => Read { tokens: reader::tokens(&body), ..Read::of(Ending::Completed) },
        Err(_) => Read::of(Ending::Failed),
    }
}

async fn read_error(response: Response<Incoming>) -> Read {
    let status = response.status();
    let Ok(body) = response.into_body().collect().await else { return Read::of(Ending::Failed) };
    let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    Read::of(rejection(status, &body["error"]).map_or(Ending::Failed, Ending::Rejected))
}

/// Why the gateway refused a request; `None` when the error is a provider's, or means that no provider answered.
fn rejection(status: StatusCode, error: &Value) -> Option<RejectReason> {
    let text = |name: &str| error[name].as_str().unwrap_or_default();
    if text("message").contains(FAILURE_MARK) {
        return None;
    }
    match (status.as_u16(), text("code")) {
        (401, "missing_api_key") => Some(RejectReason::MissingApiKey),
        (401, "expired_api_key") => Some(RejectReason::ExpiredApiKey),
        (401, "revoked_api_key") => Some(RejectReason::RevokedApiKey),
        (401, _) => Some(RejectReason::InvalidApiKey),
        (404, _) => Some(RejectReason::ModelNotFound),
        (409, _) => Some(RejectReason::InFlightDuplicate),
        (413, _) => Some(RejectReason::BodyTooLarge),
        (429, _) => Some(RejectReason::RateLimited),
        (503, "overloaded") => Some(RejectReason::Overloaded),
        (503, "shutting_down") => Some(RejectReason::ShuttingDown),
        (400, _) => Some(RejectReason::InvalidRequest),
        _ => None,
    }
}

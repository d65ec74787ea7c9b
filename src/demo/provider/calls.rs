//! The scripted provider's ledger: the calls it received and the tokens it reported.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::domain::usage::Usage;

use super::Endpoint;

/// A request that reached the provider.
#[derive(Debug)]
pub struct Call {
    /// Counts from 1, in the order of arrival.
    pub number: u64,
    pub endpoint: Endpoint,
    pub method: Method,
    pub path: String,
    /// Without the question mark.
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// When the whole request had been read.
    pub at: Instant,
    progress: AtomicU8,
}

/// How far the answer to a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Progress {
    /// Still being answered, or held back.
    Running = 0,
    /// The whole answer was handed to the connection.
    Answered = 1,
    /// The script closed the connection.
    Cut = 2,
    /// The client closed the connection before the answer was complete.
    ClientLeft = 3,
}

impl Call {
    /// The request body as JSON; `Null` when it is not JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The first value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn progress(&self) -> Progress {
        match self.progress.load(Ordering::Acquire) {
            0 => Progress::Running,
            1 => Progress::Answered,
            2 => Progress::Cut,
            _ => Progress::ClientLeft,
        }
    }

    /// Whether the client closed the connection before it had the whole answer.
    pub fn client_left(&self) -> bool {
        self.progress() == Progress::ClientLeft
    }
}

/// Counts of one endpoint (and model).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that arrived.
    pub requests: u64,
    /// Requests answered in full with a status below 400.
    pub answered: u64,
    /// Requests answered in full with a status of 400 or more.
    pub refused: u64,
    /// Requests cut by the script, before or within the answer.
    pub cut: u64,
    /// Requests whose client left before it had the whole answer.
    pub client_left: u64,
    /// Tokens reported in answers that were complete. An answer that was asked not to report usage, or scripted
    /// not to, adds nothing.
    pub tokens: Tokens,
}

/// Sums of reported tokens, in the meaning of [`Usage`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    pub prompt: u64,
    pub completion: u64,
    pub cached: u64,
    pub cache_write: u64,
    pub reasoning: u64,
}

impl Tokens {
    fn add_usage(&mut self, usage: &Usage) {
        self.prompt += usage.prompt.unwrap_or(0);
        self.completion += usage.completion.unwrap_or(0);
        self.cached += usage.cached.unwrap_or(0);
        self.cache_write += usage.cache_write.unwrap_or(0);
        self.reasoning += usage.reasoning.unwrap_or(0);
    }
}

impl std::ops::AddAssign for Tokens {
    fn add_assign(&mut self, other: Self) {
        self.prompt += other.prompt;
        self.completion += other.completion;
        self.cached += other.cached;
        self.cache_write += other.cache_write;
        self.reasoning += other.reasoning;
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.answered += other.answered;
        self.refused += other.refused;
        self.cut += other.cut;
        self.client_left += other.client_left;
        self.tokens += other.tokens;
    }
}

/// The provider's memory. Locks are held for a push or a sum, never across an await.
#[derive(Debug)]
pub(super) struct Ledger {
    keep: usize,
    counter: AtomicU64,
    calls: Mutex<VecDeque<Arc<Call>>>,
    totals: Mutex<BTreeMap<Endpoint, BTreeMap<String, Totals>>>,
    /// Bumped whenever a call arrives or ends.
    version: watch::Sender<u64>,
}

impl Ledger {
    /// Remembers the last `keep` calls; totals are kept for all.
    pub(super) fn new(keep: usize) -> Self {
        Self {
            keep,
            counter: AtomicU64::new(0),
            calls: Mutex::default(),
            totals: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }

    pub(super) fn calls(&self) -> Vec<Arc<Call>> {
        self.calls.lock().iter().cloned().collect()
    }

    /// By endpoint, then by model as the requests named it.
    pub(super) fn totals(&self) -> BTreeMap<Endpoint, BTreeMap<String, Totals>> {
        self.totals.lock().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Records an arrival.
    pub(super) fn open(
        self: &Arc<Self>,
        endpoint: Endpoint,
        model: &str,
        parts: http::request::Parts,
        body: Bytes,
    ) -> CallGuard {
        let call = Arc::new(Call {
            number: self.counter.fetch_add(1, Ordering::Relaxed) + 1,
            endpoint,
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().map(str::to_owned),
            headers: parts.headers,
            body,
            at: Instant::now(),
            progress: AtomicU8::new(Progress::Running as u8),
        });
        if self.keep > 0 {
            let mut calls = self.calls.lock();
            if calls.len() == self.keep {
                calls.pop_front();
            }
            calls.push_back(Arc::clone(&call));
        }
        self.count(endpoint, model, |totals| totals.requests += 1);
        CallGuard {
            call,
            ledger: Arc::clone(self),
            model: model.to_owned(),
            status_ok: true,
            usage: Usage::default(),
            open: true,
        }
    }

    fn count(&self, endpoint: Endpoint, model: &str, change: impl FnOnce(&mut Totals)) {
        {
            let mut totals = self.totals.lock();
            let models = totals.entry(endpoint).or_default();
            // The name is only copied for the first call of a model.
            match models.get_mut(model) {
                Some(totals) => change(totals),
                None => change(models.entry(model.to_owned()).or_default()),
            }
        }
        self.version.send_modify(|version| *version += 1);
    }
}

/// Closes a call exactly once: as answered, as cut, or, when dropped, as left by the client.
#[derive(Debug)]
pub(super) struct CallGuard {
    call: Arc<Call>,
    ledger: Arc<Ledger>,
    model: String,
    status_ok: bool,
    usage: Usage,
    open: bool,
}

impl CallGuard {
    pub(super) fn call(&self) -> &Arc<Call> {
        &self.call
    }

    /// Sets the status class and the reported usage of the complete answer.
    pub(super) fn answering(&mut self, status_ok: bool, usage: Usage) {
        self.status_ok = status_ok;
        self.usage = usage;
    }

    pub(super) fn answered(mut self) {
        let (ok, usage) = (self.status_ok, self.usage);
        self.close(Progress::Answered, |totals| {
            if ok {
                totals.answered += 1;
                totals.tokens.add_usage(&usage);
            } else {
                totals.refused += 1;
            }
        });
    }

    pub(super) fn cut(mut self) {
        self.close(Progress::Cut, |totals| totals.cut += 1);
    }

    fn close(&mut self, progress: Progress, change: impl FnOnce(&mut Totals)) {
        self.open = false;
        self.call.progress.store(progress as u8, Ordering::Release);
        self.ledger.count(self.call.endpoint, &self.model, change);
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        if self.open {
            self.close(Progress::ClientLeft, |totals| totals.client_left += 1);
        }
    }
}

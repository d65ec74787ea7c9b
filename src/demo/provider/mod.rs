//! A scripted provider: the upstream of the tests, the benches and the demo.
//!
//! It is an HTTP/1.1 server inside the process, on a loopback port of its own, and speaks the real providers' formats:
//! OpenAI chat completions, responses and embeddings, Anthropic messages, the models lists of both, and Azure's
//! deployment URLs. One [`Reply`] works on every endpoint: the requested endpoint puts it into its format.
//!
//! ```ignore
//! let provider = ScriptedProvider::spawn().await?;
//! provider.next(Reply::rate_limited(Duration::from_secs(2)));      // the next request only
//! provider.always(Reply::text("Hello there."));                    // every other one
//! // … send requests to provider.base_url() …
//! assert_eq!(provider.calls().len(), 2);
//! assert_eq!(provider.totals().tokens.prompt, 12);
//! ```
//!
//! The reply to a request is chosen in this order: the [`Mode`], the queue of its endpoint
//! ([`ScriptedProvider::next_at`]), the common queue ([`ScriptedProvider::next`]), the rules
//! ([`ScriptedProvider::rule`]), and the reply set by [`ScriptedProvider::always`].

mod answer;
mod ask;
mod body;
mod calls;
mod control;
mod failure;
mod gate;
mod mix;
mod recorded;
mod render;
mod reply;
mod script;
mod server;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

pub use answer::{Answer, DEFAULT_PROMPT_TOKENS, TOKENS_PER_INPUT, ToolCall};
pub use ask::Ask;
pub use calls::{Call, Progress, Tokens, Totals};
pub use failure::{FAILURE_MARK, Failure};
pub use gate::Gate;
pub use mix::Mix;
pub use recorded::RecordingError;
pub use reply::Reply;
pub use script::Mode;

use calls::Ledger;
use script::{Always, Script};

/// An endpoint of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `POST …/v1/chat/completions` and Azure's `…/openai/deployments/{name}/chat/completions`.
    Chat,
    /// `POST …/v1/embeddings`, and Azure's.
    Embeddings,
    /// `POST …/v1/responses`.
    Responses,
    /// `POST …/v1/messages`.
    Messages,
    /// `POST …/v1/messages/count_tokens`.
    CountTokens,
    /// `GET …/v1/models` and `…/v1/models/{id}`.
    Models,
    /// Anything else; answered 404.
    Unknown,
}

/// A running scripted provider; dropping it closes its port and all connections.
#[derive(Debug)]
pub struct ScriptedProvider {
    addr: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

/// The state that the server and its handle share.
#[derive(Debug)]
struct Shared {
    ledger: Arc<Ledger>,
    script: parking_lot::Mutex<Script>,
}

/// Builds a provider whose defaults do not fit.
#[derive(Debug, Clone)]
pub struct Builder {
    addr: SocketAddr,
    remember: usize,
    models: Vec<String>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            remember: 10_000,
            models: vec!["gpt-4o-mini".to_owned(), "text-embedding-3-small".to_owned()],
        }
    }
}

impl Builder {
    /// How many of the last calls are remembered (10,000 by default; 0 for a bench). Totals are kept for all.
    pub fn remember(mut self, calls: usize) -> Self {
        self.remember = calls;
        self
    }

    /// The names in its models list.
    pub fn models(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.models = names.into_iter().map(Into::into).collect();
        self
    }

    /// Starts it. Every request gets a short text until the script says otherwise.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn spawn(self) -> io::Result<ScriptedProvider> {
        let listener = TcpListener::bind(self.addr).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            ledger: Arc::new(Ledger::new(self.remember)),
            script: parking_lot::Mutex::new(Script::new(self.models)),
        });
        let server = tokio::spawn(server::serve(listener, Arc::clone(&shared)));
        Ok(ScriptedProvider { addr, shared, server })
    }
}

impl ScriptedProvider {
    /// Starts a provider with the defaults of [`Builder`].
    ///
    /// # Errors
    /// When no loopback port is free.
    pub async fn spawn() -> io::Result<Self> {
        Builder::default().spawn().await
    }

    pub fn builder() -> Builder {
        Builder::default()
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Scheme, host and port, without a path: the base URL for Anthropic and for Azure.
    pub fn root_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The base URL as OpenAI's SDK takes it, ending in `/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// The URL at which the running script is changed over HTTP; see `control.rs`.
    pub fn control_url(&self) -> String {
        format!("http://{}{}", self.addr, control::CONTROL_PATH)
    }

    /// Answers the next request for which no earlier reply is queued.
    pub fn next(&self, reply: impl Into<Reply>) {
        self.shared.script.lock().next.push_back(reply.into());
    }

    /// Answers the next request at this endpoint; comes before [`next`](Self::next).
    pub fn next_at(&self, endpoint: Endpoint, reply: impl Into<Reply>) {
        self.shared.script.lock().next_at.entry(endpoint).or_default().push_back(reply.into());
    }

    /// Answers every request that nothing else answers.
    pub fn always(&self, reply: impl Into<Reply>) {
        self.shared.script.lock().always = Always::Reply(Box::new(reply.into()));
    }

    /// Answers every request that nothing else answers by a draw.
    pub fn mix(&self, mix: Mix) {
        self.shared.script.lock().always = Always::Mix(Arc::new(mix));
    }

    /// Answers the requests for which it returns a reply; the rule that was added first is tried first.
    pub fn rule(&self, rule: impl Fn(&Call, &Ask) -> Option<Reply> + Send + Sync + 'static) {
        self.shared.script.lock().rules.push(Arc::new(rule));
    }

    /// Makes the whole provider misbehave, or recover.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.script.lock().set_mode(mode);
    }

    pub fn mode(&self) -> Mode {
        self.shared.script.lock().mode()
    }

    /// The remembered calls, oldest first.
    pub fn calls(&self) -> Vec<Arc<Call>> {
        self.shared.ledger.calls()
    }

    /// The last call, if there was one.
    pub fn last_call(&self) -> Option<Arc<Call>> {
        self.shared.ledger.calls().pop()
    }

    /// Sums over all endpoints and models.
    pub fn totals(&self) -> Totals {
        self.sum(|_, _| true)
    }

    /// Sums over the models of one endpoint.
    pub fn totals_at(&self, endpoint: Endpoint) -> Totals {
        self.sum(|at, _| at == endpoint)
    }

    /// Counts by endpoint and by model, as the requests named it.
    pub fn totals_by_model(&self) -> BTreeMap<Endpoint, BTreeMap<String, Totals>> {
        self.shared.ledger.totals()
    }

    fn sum(&self, include: impl Fn(Endpoint, &str) -> bool) -> Totals {
        let mut sum = Totals::default();
        for (endpoint, models) in self.shared.ledger.totals() {
            for (model, totals) in models {
                if include(endpoint, &model) {
                    sum += totals;
                }
            }
        }
        sum
    }

    /// Waits until the remembered calls satisfy `condition`. Put a timeout around it.
    pub async fn until(&self, mut condition: impl FnMut(&[Arc<Call>]) -> bool) {
        let mut changes = self.shared.ledger.watch();
        loop {
            changes.mark_unchanged();
            if condition(&self.calls()) {
                return;
            }
            // The ledger lives in `self`, so its channel cannot close while we wait.
            let _ = changes.changed().await;
        }
    }

    /// Waits until at least `times` calls have arrived.
    pub async fn until_called(&self, times: usize) {
        self.until(|calls| calls.len() >= times).await;
    }

    /// Closes the port and all connections, and waits until that is done.
    pub async fn stop(mut self) {
        self.server.abort();
        // Cancelled, as requested.
        let _ = (&mut self.server).await;
    }
}

impl Drop for ScriptedProvider {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A loopback port that refuses connections and that no other process can take meanwhile.
#[derive(Debug)]
pub struct RefusedPort {
    addr: SocketAddr,
    /// Bound and never listening: the kernel answers every connection attempt with a reset.
    _socket: TcpSocket,
}

impl RefusedPort {
    /// # Errors
    /// When no loopback port is free.
    pub fn reserve() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        Ok(Self { addr: socket.local_addr()?, _socket: socket })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base URL as OpenAI's SDK takes it.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }
}

//! The control endpoint, with which a test in another process (or a monitoring drill) directs a running provider.
//!
//! `POST /__control` takes JSON; every field is optional:
//!
//! ```json
//! {
//!   "mode": "healthy" | "failing" | "rate_limited" | "dropping" | "hanging" | "slow",
//!   "next": [REPLY, …],
//!   "always": REPLY,
//!   "models": ["gpt-4o-mini", …]
//! }
//! ```
//!
//! A REPLY names the answer by at most one of `text`, `pieces` (an array of strings), `status` (≥ 400, with `message`
//! and `retry_after`), `recorded` (a path), `garbage`, `empty`, `dropped` (each `true`); to a text belong `reasoning`,
//! `refusal`, `tool_calls` (`[{"id", "name", "arguments"}]`), `finish` and `usage` (`{"prompt", "completion", "cached",
//! "cache_write", "reasoning"}` or `false`). Its behaviour: `delay`, `every`, `cut_after`, `stopped_after`,
//! `failed_after`, `without_terminator`, `split`. Durations are written as `250ms` or `2s`.
//!
//! `GET /__control` returns the mode and the totals; `GET /__calls` the remembered calls. Neither uses up the script.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::domain::label::FinishReason;
use crate::domain::usage::Usage;

use super::Shared;
use super::answer::{Answer, ToolCall};
use super::failure::Failure;
use super::reply::Reply;
use super::script::{Always, Mode};
use super::server::ControlAnswer;

pub(super) const CONTROL_PATH: &str = "/__control";
const CALLS_PATH: &str = "/__calls";

/// Answers a request to the control endpoint; `None` when it is for the provider itself.
pub(super) fn handle(parts: &Parts, body: &[u8], shared: &Shared) -> Option<ControlAnswer> {
    let (status, body) = match (parts.uri.path(), &parts.method) {
        (CONTROL_PATH, &Method::GET) => (StatusCode::OK, state(shared)),
        (CONTROL_PATH, &Method::POST) => match command(body, shared) {
            Ok(()) => (StatusCode::OK, state(shared)),
            Err(message) => (StatusCode::BAD_REQUEST, json!({"error": message})),
        },
        (CALLS_PATH, &Method::GET) => (StatusCode::OK, calls(shared)),
        (CONTROL_PATH | CALLS_PATH, _) => (StatusCode::METHOD_NOT_ALLOWED, json!({"error": "GET or POST"})),
        _ => return None,
    };
    Some(ControlAnswer { status, body: Bytes::from(body.to_string()) })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    mode: Option<Mode>,
    #[serde(default)]
    next: Vec<ReplySpec>,
    always: Option<ReplySpec>,
    models: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplySpec {
    text: Option<String>,
    pieces: Option<Vec<String>>,
    reasoning: Option<String>,
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Vec<ToolSpec>,
    finish: Option<String>,
    usage: Option<UsageSpec>,
    status: Option<u16>,
    message: Option<String>,
    #[serde(default, with = "humantime_serde")]
    retry_after: Option<Duration>,
    recorded: Option<PathBuf>,
    #[serde(default)]
    garbage: bool,
    #[serde(default)]
    empty: bool,
    #[serde(default)]
    dropped: bool,
    #[serde(default, with = "humantime_serde")]
    delay: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    every: Option<Duration>,
    cut_after: Option<usize>,
    stopped_after: Option<usize>,
    failed_after: Option<usize>,
    #[serde(default)]
    without_terminator: bool,
    split: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolSpec {
    id: String,
    name: String,
    arguments: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum UsageSpec {
    Reported(bool),
    Fixed(UsageFields),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UsageFields {
    prompt: Option<u64>,
    completion: Option<u64>,
    cached: Option<u64>,
    cache_write: Option<u64>,
    reasoning: Option<u64>,
}

/// Carries out a command completely, or not at all.
fn command(body: &[u8], shared: &Shared) -> Result<(), String> {
    let command: Command = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let next = command.next.into_iter().map(ReplySpec::build).collect::<Result<Vec<_>, _>>()?;
    let always = command.always.map(ReplySpec::build).transpose()?;
    let mut script = shared.script.lock();
    script.next.extend(next);
    if let Some(always) = always {
        script.always = Always::Reply(Box::new(always));
    }
    if let Some(models) = command.models {
        script.models = models;
    }
    if let Some(mode) = command.mode {
        script.set_mode(mode);
    }
    Ok(())
}

impl ReplySpec {
    fn build(self) -> Result<Reply, String> {
        let mut reply = self.what()?;
        if let Some(delay) = self.delay {
            reply = reply.after(delay);
        }
        if let Some(gap) = self.every {
            reply = reply.every(gap);
        }
        if let Some(pieces) = self.cut_after {
            reply = reply.cut_after(pieces);
        }
        if let Some(pieces) = self.stopped_after {
            reply = reply.stopped_after(pieces);
        }
        if let Some(pieces) = self.failed_after {
            reply = reply.failed_after(pieces, Failure::new(StatusCode::INTERNAL_SERVER_ERROR));
        }
        if self.without_terminator {
            reply = reply.without_terminator();
        }
        if let Some(size) = self.split {
            reply = reply.split(size);
        }
        Ok(reply)
    }

    fn what(&self) -> Result<Reply, String> {
        if self.dropped {
            return Ok(Reply::dropped());
        }
        if self.garbage {
            return Ok(Reply::garbage());
        }
        if self.empty {
            return Ok(Reply::empty());
        }
        if let Some(path) = &self.recorded {
            return Reply::recorded(path).map_err(|error| error.to_string());
        }
        if let Some(status) = self.status {
            let status = StatusCode::from_u16(status).map_err(|_| format!("status: {status} is none"))?;
            let mut failure = Failure::new(status);
            if let Some(message) = &self.message {
                failure = failure.message(message);
            }
            if let Some(delay) = self.retry_after {
                failure = failure.retry_after(delay);
            }
            return Ok(failure.into());
        }
        self.answer().map(Reply::answer)
    }

    fn answer(&self) -> Result<Answer, String> {
        let mut answer = match (&self.refusal, &self.text) {
            (Some(refusal), _) => Answer::refusal(refusal),
            (None, Some(text)) => Answer::text(text),
            (None, None) => Answer::default(),
        };
        if let Some(pieces) = &self.pieces {
            answer = answer.in_pieces(pieces);
        }
        if let Some(reasoning) = &self.reasoning {
            answer = answer.thinking(reasoning);
        }
        for ToolSpec { id, name, arguments } in &self.tool_calls {
            let (id, name, arguments) = (id.clone(), name.clone(), arguments.clone());
            answer = answer.calling(ToolCall { id, name, arguments });
        }
        if let Some(finish) = &self.finish {
            answer = answer
                .finish(FinishReason::parse(finish).ok_or_else(|| format!("finish: {finish} is none"))?);
        }
        Ok(match &self.usage {
            Some(UsageSpec::Fixed(usage)) => answer.usage(Usage {
                prompt: usage.prompt,
                completion: usage.completion,
                cached: usage.cached,
                cache_write: usage.cache_write,
                reasoning: usage.reasoning,
            }),
            Some(UsageSpec::Reported(false)) => answer.without_usage(),
            Some(UsageSpec::Reported(true)) | None => answer,
        })
    }
}

fn state(shared: &Shared) -> Value {
    let mut totals = Vec::new();
    for (endpoint, models) in shared.ledger.totals() {
        totals.extend(models.into_iter().map(|(model, sum)| {
            json!({
                "endpoint": endpoint, "model": model, "requests": sum.requests, "answered": sum.answered,
                "refused": sum.refused, "cut": sum.cut, "client_left": sum.client_left,
                "prompt_tokens": sum.tokens.prompt, "completion_tokens": sum.tokens.completion,
                "cached_tokens": sum.tokens.cached, "cache_write_tokens": sum.tokens.cache_write,
                "reasoning_tokens": sum.tokens.reasoning,
            })
        }));
    }
    json!({"mode": shared.script.lock().mode(), "totals": totals})
}

fn calls(shared: &Shared) -> Value {
    let calls = shared.ledger.calls();
    calls
        .iter()
        .map(|call| {
            let headers: serde_json::Map<String, Value> = call
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
                .collect();
            json!({
                "number": call.number, "endpoint": call.endpoint, "method": call.method.as_str(), "path": call.path,
                "query": call.query, "headers": headers, "body": call.json(),
                "progress": format!("{:?}", call.progress()),
            })
        })
        .collect()
}

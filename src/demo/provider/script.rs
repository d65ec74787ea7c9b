//! Choosing the reply to a request.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Endpoint;
use super::ask::Ask;
use super::calls::Call;
use super::gate::Gate;
use super::mix::Mix;
use super::reply::Reply;

/// How the whole provider behaves. Anything but [`Mode::Healthy`] goes before all replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// As the script says.
    #[default]
    Healthy,
    /// Answers 500 to everything.
    Failing,
    /// Answers 429 with `Retry-After: 1` to everything.
    RateLimited,
    /// Closes the connection instead of answering.
    Dropping,
    /// Answers nothing until the mode changes; then as the script says.
    Hanging,
    /// As the script says, but five seconds later.
    Slow,
}

/// The delay that [`Mode::Slow`] adds.
const SLOW: Duration = Duration::from_secs(5);

pub(super) type Rule = Arc<dyn Fn(&Call, &Ask) -> Option<Reply> + Send + Sync>;

/// The answer when neither queue nor rule has one.
pub(super) enum Always {
    Reply(Box<Reply>),
    Mix(Arc<Mix>),
}

pub(super) struct Script {
    pub(super) next: VecDeque<Reply>,
    pub(super) next_at: HashMap<Endpoint, VecDeque<Reply>>,
    pub(super) rules: Vec<Rule>,
    pub(super) always: Always,
    pub(super) models: Vec<String>,
    mode: Mode,
    /// Closed while the provider hangs.
    hanging: Gate,
}

/// The choice for one request, made under the lock; slow work follows after its release.
pub(super) enum Choice {
    Reply(Reply),
    /// No queue had a reply; these may.
    Open {
        rules: Vec<Rule>,
        mix: Option<Arc<Mix>>,
        fallback: Option<Reply>,
    },
    Models(Vec<String>),
}

/// A choice, and the delay or hold that the mode adds.
pub(super) struct Turn {
    pub(super) choice: Choice,
    pub(super) extra_delay: Duration,
    pub(super) hold: Option<Gate>,
}

impl Script {
    pub(super) fn new(models: Vec<String>) -> Self {
        Self {
            next: VecDeque::new(),
            next_at: HashMap::new(),
            rules: Vec::new(),
            always: Always::Reply(Box::new(Reply::text("This is a scripted answer."))),
            models,
            mode: Mode::Healthy,
            hanging: Gate::new(),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.hanging.open();
        self.hanging = Gate::new();
        self.mode = mode;
    }

    /// Takes the turn of a request at this endpoint.
    pub(super) fn turn(&mut self, endpoint: Endpoint) -> Turn {
        let at_once = |choice| Turn { choice, extra_delay: Duration::ZERO, hold: None };
        match self.mode {
            Mode::Failing => return at_once(Choice::Reply(Reply::status(StatusCode::INTERNAL_SERVER_ERROR))),
            Mode::RateLimited => return at_once(Choice::Reply(Reply::rate_limited(Duration::from_secs(1)))),
            Mode::Dropping => return at_once(Choice::Reply(Reply::dropped())),
            Mode::Healthy | Mode::Hanging | Mode::Slow => {}
        }
        Turn {
            choice: self.choose(endpoint),
            extra_delay: if self.mode == Mode::Slow { SLOW } else { Duration::ZERO },
            hold: (self.mode == Mode::Hanging).then(|| self.hanging.clone()),
        }
    }

    fn choose(&mut self, endpoint: Endpoint) -> Choice {
        if let Some(reply) = self.next_at.get_mut(&endpoint).and_then(VecDeque::pop_front) {
            return Choice::Reply(reply);
        }
        if endpoint == Endpoint::Models {
            return Choice::Models(self.models.clone());
        }
        if let Some(reply) = self.next.pop_front() {
            return Choice::Reply(reply);
        }
        let rules = self.rules.clone();
        match &self.always {
            Always::Reply(reply) if rules.is_empty() => Choice::Reply((**reply).clone()),
            Always::Reply(reply) => Choice::Open { rules, mix: None, fallback: Some((**reply).clone()) },
            Always::Mix(mix) => Choice::Open { rules, mix: Some(Arc::clone(mix)), fallback: None },
        }
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script")
            .field("mode", &self.mode)
            .field("queued", &self.next.len())
            .field("rules", &self.rules.len())
            .finish_non_exhaustive()
    }
}

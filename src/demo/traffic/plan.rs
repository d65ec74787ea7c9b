//! The plan of requests: a weighted, seeded draw among kinds.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// A kind of request, by the behaviour of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Waits for the whole answer.
    Chat,
    /// Reads a stream to its end.
    Stream,
    /// Reads a stream to its end and asks for its usage.
    StreamWithUsage,
    /// Closes the connection after the first content of a stream.
    LeavesMidStream,
    /// Closes the connection while it waits for the answer.
    LeavesWaiting,
    /// Embeds a few texts.
    Embedding,
    /// Uses a key with a small limit of requests.
    SmallRequestLimit,
    /// Uses a key with a small limit of tokens.
    SmallTokenLimit,
    /// Asks for a model that is not configured.
    UnknownModel,
    /// Has a key that was never issued.
    InvalidKey,
    /// Has no key.
    MissingKey,
}

impl Kind {
    pub const ALL: &'static [Self] = &[
        Self::Chat,
        Self::Stream,
        Self::StreamWithUsage,
        Self::LeavesMidStream,
        Self::LeavesWaiting,
        Self::Embedding,
        Self::SmallRequestLimit,
        Self::SmallTokenLimit,
        Self::UnknownModel,
        Self::InvalidKey,
        Self::MissingKey,
    ];

    /// In words, for the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Stream => "chat, streamed",
            Self::StreamWithUsage => "chat, streamed, usage asked for",
            Self::LeavesMidStream => "leaves mid-stream",
            Self::LeavesWaiting => "leaves while waiting",
            Self::Embedding => "embedding",
            Self::SmallRequestLimit => "key with few requests",
            Self::SmallTokenLimit => "key with few tokens",
            Self::UnknownModel => "unknown model",
            Self::InvalidKey => "invalid key",
            Self::MissingKey => "no key",
        }
    }

    /// How many of a thousand requests are of this kind.
    const fn share(self) -> u32 {
        match self {
            Self::Chat => 270,
            Self::Stream => 240,
            Self::StreamWithUsage => 120,
            Self::LeavesMidStream => 30,
            Self::LeavesWaiting => 20,
            Self::Embedding => 150,
            Self::SmallRequestLimit => 60,
            Self::SmallTokenLimit => 50,
            Self::UnknownModel => 20,
            Self::InvalidKey => 30,
            Self::MissingKey => 10,
        }
    }

    /// Whether the client means to leave before it has the whole answer.
    pub const fn leaves(self) -> bool {
        matches!(self, Self::LeavesMidStream | Self::LeavesWaiting)
    }

    const fn is_stream(self) -> bool {
        matches!(self, Self::Stream | Self::StreamWithUsage | Self::LeavesMidStream)
    }
}

/// Keys and models that requests may use.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Keys without limits.
    pub keys: Vec<String>,
    /// A key with a small limit of requests per minute.
    pub small_request_key: String,
    /// A key with a small limit of tokens per minute.
    pub small_token_key: String,
    pub chat_models: Vec<String>,
    pub embedding_models: Vec<String>,
}

/// One request to send.
#[derive(Debug, Clone)]
pub struct Job {
    pub kind: Kind,
    pub path: &'static str,
    pub key: Option<String>,
    pub body: String,
    /// The end user that the request names; unique when the client means to leave, so that the provider can announce
    /// its arrival.
    pub user: Option<String>,
}

/// Draws jobs; the same seed draws the same ones.
#[derive(Debug)]
pub struct Planner {
    plan: Plan,
    rng: StdRng,
    drawn: u64,
}

/// Starts the `user` of a request whose client will leave before the first byte.
pub const LEAVES_WAITING: &str = "leaves-waiting-";
/// Starts the `user` of a request whose client will leave in the middle of a stream.
pub const LEAVES_MID_STREAM: &str = "leaves-mid-stream-";

const QUESTIONS: &[&str] = &[
    "What is the capital of Australia?",
    "Write a haiku about load balancers.",
    "Why is the sky blue? Answer in one paragraph, for a child of ten.",
    "Übersetze „Guten Morgen“ ins Japanische.",
    "Summarise the plot of Hamlet in three sentences.",
];

impl Planner {
    pub fn new(plan: Plan, seed: u64) -> Self {
        Self { plan, rng: StdRng::seed_from_u64(seed), drawn: 0 }
    }

    pub fn next_job(&mut self) -> Job {
        self.drawn += 1;
        let kind = self.kind();
        let question = self.pick_static(QUESTIONS);
        let key = match kind {
            Kind::MissingKey => None,
            // A new one each time, to expose a gateway that makes a series of it.
            Kind::InvalidKey => Some(format!("sk-nobody-issued-{:016x}", self.rng.random::<u64>())),
            Kind::SmallRequestLimit => Some(self.plan.small_request_key.clone()),
            Kind::SmallTokenLimit => Some(self.plan.small_token_key.clone()),
            _ => pick(&mut self.rng, &self.plan.keys).cloned(),
        };
        let model = match kind {
            Kind::UnknownModel => format!("no-such-model-{:08x}", self.rng.random::<u32>()),
            Kind::Embedding => pick(&mut self.rng, &self.plan.embedding_models).cloned().unwrap_or_default(),
            _ => pick(&mut self.rng, &self.plan.chat_models).cloned().unwrap_or_default(),
        };
        let user = match kind {
            Kind::LeavesWaiting => Some(format!("{LEAVES_WAITING}{}", self.drawn)),
            Kind::LeavesMidStream => Some(format!("{LEAVES_MID_STREAM}{}", self.drawn)),
            _ => None,
        };
        let (path, body) = if kind == Kind::Embedding {
            ("/v1/embeddings", self.embedding(&model, question))
        } else {
            ("/v1/chat/completions", chat(kind, &model, question, user.as_deref()))
        };
        Job { kind, path, key, body: body.to_string(), user }
    }

    fn embedding(&mut self, model: &str, text: &str) -> Value {
        let inputs = vec![text; self.rng.random_range(1..=4)];
        let encoding = if self.rng.random_bool(0.5) { "float" } else { "base64" };
        json!({"model": model, "input": inputs, "encoding_format": encoding})
    }

    fn kind(&mut self) -> Kind {
        let total: u32 = Kind::ALL.iter().map(|kind| kind.share()).sum();
        let mut ticket = self.rng.random_range(0..total);
        for kind in Kind::ALL {
            match ticket.checked_sub(kind.share()) {
                Some(rest) => ticket = rest,
                None => return *kind,
            }
        }
        Kind::Chat
    }

    fn pick_static(&mut self, from: &'static [&'static str]) -> &'static str {
        pick(&mut self.rng, from).copied().unwrap_or("Hello.")
    }
}

fn chat(kind: Kind, model: &str, question: &str, user: Option<&str>) -> Value {
    let mut body = json!({
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": question},
        ],
        "temperature": 0.7,
    });
    if kind.is_stream() {
        body["stream"] = true.into();
    }
    if kind == Kind::StreamWithUsage {
        body["stream_options"] = json!({"include_usage": true});
    }
    if let Some(user) = user {
        body["user"] = user.into();
    }
    body
}

fn pick<'a, T>(rng: &mut StdRng, from: &'a [T]) -> Option<&'a T> {
    if from.is_empty() { None } else { from.get(rng.random_range(0..from.len())) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn planner(seed: u64) -> Planner {
        let plan = Plan {
            keys: vec!["a".into(), "b".into()],
            small_request_key: "r".into(),
            small_token_key: "t".into(),
            chat_models: vec!["m".into()],
            embedding_models: vec!["e".into()],
        };
        Planner::new(plan, seed)
    }

    #[test]
    fn shares_are_of_a_thousand_and_come_out_in_the_draw() {
        assert_eq!(Kind::ALL.iter().map(|kind| kind.share()).sum::<u32>(), 1000);
        let mut planner = planner(1);
        let mut drawn: BTreeMap<Kind, u32> = BTreeMap::new();
        for _ in 0..20_000 {
            *drawn.entry(planner.next_job().kind).or_default() += 1;
        }
        for kind in Kind::ALL {
            let (expected, found) = (f64::from(kind.share() * 20), f64::from(drawn[kind]));
            assert!((found - expected).abs() < 6.0 * expected.sqrt(), "{kind:?}: {found} of {expected}");
        }
    }

    #[test]
    fn the_same_seed_plans_the_same_requests() {
        let bodies = |seed| -> Vec<String> {
            let mut planner = planner(seed);
            (0..200).map(|_| planner.next_job().body).collect()
        };
        assert_eq!(bodies(3), bodies(3));
        assert_ne!(bodies(3), bodies(4));
    }

    #[test]
    fn each_kind_is_what_it_says() {
        let mut planner = planner(2);
        for _ in 0..2_000 {
            let job = planner.next_job();
            let body: Value = serde_json::from_str(&job.body).unwrap();
            assert_eq!(body["stream"] == true, job.kind.is_stream());
            assert_eq!(body.get("stream_options").is_some(), job.kind == Kind::StreamWithUsage);
            assert_eq!(job.key.is_none(), job.kind == Kind::MissingKey);
            assert_eq!(job.user.is_some(), job.kind.leaves());
            assert_eq!(job.path == "/v1/embeddings", job.kind == Kind::Embedding);
            assert_eq!(body["model"].as_str().unwrap().len() > 1, job.kind == Kind::UnknownModel);
        }
    }
}

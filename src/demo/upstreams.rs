//! The demo's two providers: their prices, models and answers.

use std::io;
use std::time::Duration;

use http::StatusCode;

use crate::domain::label::{FinishReason, ModelType};
use crate::domain::provider::ProviderKind;
use crate::domain::usage::{Price, Usage};

use super::provider::{Answer, Ask, Endpoint, Failure, Mix, Reply, ScriptedProvider};
use super::traffic::{Arrivals, LEAVES_MID_STREAM, LEAVES_WAITING};

/// A model as one provider offers it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    pub(super) name: &'static str,
    /// The provider's name for it; on Azure, the deployment.
    pub(super) remote: &'static str,
    pub(super) model_type: ModelType,
    pub(super) price: Price,
    pub(super) weight: u32,
}

/// A scripted provider with its configuration in the gateway.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) name: &'static str,
    pub(super) kind: ProviderKind,
    pub(super) offers: &'static [Offer],
    pub(super) provider: ScriptedProvider,
}

const fn price(input: f64, output: f64) -> Price {
    Price { output: Some(output), ..input_price(input) }
}

const fn input_price(input: f64) -> Price {
    Price { input: Some(input), output: None, cached_input: None, cache_write: None }
}

const AURORA: &[Offer] = &[
    Offer {
        name: "gpt-4o-mini",
        remote: "gpt-4o-mini-2024-07-18",
        model_type: ModelType::Chat,
        price: price(0.15, 0.60),
        weight: 3,
    },
    Offer {
        name: "o4-mini",
        remote: "o4-mini-2025-04-16",
        model_type: ModelType::Chat,
        price: price(1.10, 4.40),
        weight: 1,
    },
    Offer {
        name: "text-embedding-3-small",
        remote: "text-embedding-3-small",
        model_type: ModelType::Embedding,
        price: input_price(0.02),
        weight: 1,
    },
];

const BOREALIS: &[Offer] = &[
    Offer {
        name: "gpt-4o-mini",
        remote: "mini-north",
        model_type: ModelType::Chat,
        price: price(0.165, 0.66),
        weight: 1,
    },
    Offer {
        name: "text-embedding-3-small",
        remote: "embedding-north",
        model_type: ModelType::Embedding,
        price: input_price(0.022),
        weight: 1,
    },
];

impl Upstream {
    /// Starts both: `aurora` speaks OpenAI, `borealis` is an Azure resource with deployments.
    ///
    /// # Errors
    /// When no loopback port is free.
    pub(super) async fn spawn_all(seed: u64, arrivals: &Arrivals) -> io::Result<Vec<Self>> {
        let mut upstreams = Vec::new();
        for (name, kind, offers) in
            [("aurora", ProviderKind::OpenAi, AURORA), ("borealis", ProviderKind::Azure, BOREALIS)]
        {
            // A demo may run for days: the last few calls are enough to look at.
            let builder = ScriptedProvider::builder().remember(100);
            let provider = builder.models(offers.iter().map(|offer| offer.remote)).spawn().await?;
            provider.mix(everyday(seed));
            let arrivals = arrivals.clone();
            provider.rule(move |_, ask| for_leavers(ask, &arrivals));
            upstreams.push(Self { name, kind, offers, provider });
        }
        Ok(upstreams)
    }

    /// The base URL as this kind takes it.
    pub(super) fn base_url(&self) -> String {
        match self.kind {
            ProviderKind::Azure | ProviderKind::Anthropic => self.provider.root_url(),
            _ => self.provider.base_url(),
        }
    }

    /// The totals that its complete answers reported, in tokens and in USD at its prices.
    pub(super) fn reported(&self) -> Reported {
        let mut sum = Reported::default();
        for (endpoint, models) in self.provider.totals_by_model() {
            for (model, totals) in models {
                if !matches!(endpoint, Endpoint::Chat | Endpoint::Embeddings) {
                    continue;
                }
                sum.calls += totals.requests;
                if endpoint == Endpoint::Embeddings {
                    sum.embedding_tokens += totals.tokens.prompt;
                } else {
                    sum.prompt_tokens += totals.tokens.prompt;
                    sum.completion_tokens += totals.tokens.completion;
                }
                let usage = Usage {
                    prompt: Some(totals.tokens.prompt),
                    completion: Some(totals.tokens.completion),
                    ..Usage::default()
                };
                if let Some(offer) = self.offers.iter().find(|offer| offer.remote == model) {
                    sum.usd += offer.price.cost(&usage).total();
                }
            }
        }
        sum
    }
}

/// Calls and usage as the providers counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Reported {
    /// Chat and embedding calls that arrived.
    pub(super) calls: u64,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) embedding_tokens: u64,
    pub(super) usd: f64,
}

impl std::ops::AddAssign for Reported {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.embedding_tokens += other.embedding_tokens;
        self.usd += other.usd;
    }
}

/// How long an answer holds back for a client that is going to leave: far longer than a gateway needs to notice.
const HOLD: Duration = Duration::from_secs(2);

/// Answers for clients that mean to leave: slow enough for that.
fn for_leavers(ask: &Ask, arrivals: &Arrivals) -> Option<Reply> {
    let user = ask.user.as_deref()?;
    arrivals.announce(user);
    let answer = Answer::of_size(12, 16).tokens(31, 12);
    if user.starts_with(LEAVES_WAITING) {
        Some(Reply::answer(answer).after(HOLD))
    } else if user.starts_with(LEAVES_MID_STREAM) {
        // The role and two words, then silence.
        Some(Reply::answer(answer).every(Duration::from_millis(5)).paused_after(3, HOLD))
    } else {
        None
    }
}

/// Ordinary traffic: mostly answers of different lengths and speeds, now and then trouble.
fn everyday(seed: u64) -> Mix {
    let millis = Duration::from_millis;
    let answer = |pieces: usize, prompt: u64| {
        let completion = u64::try_from(pieces).unwrap_or(u64::MAX);
        Answer::of_size(pieces, 6).tokens(prompt, completion)
    };
    let usage = |prompt, completion, cached, reasoning| Usage {
        prompt: Some(prompt),
        completion: Some(completion),
        cached,
        cache_write: None,
        reasoning,
    };
    Mix::seeded(seed)
        .with(250, Reply::answer(answer(8, 34)).after(millis(35)).every(millis(4)))
        .with(250, Reply::answer(answer(24, 41)).after(millis(70)).every(millis(6)))
        .with(150, Reply::answer(answer(60, 210)).after(millis(140)).every(millis(8)))
        .with(
            100,
            Reply::answer(Answer::of_size(30, 6).usage(usage(2600, 30, Some(2048), None))).after(millis(110)),
        )
        .with(60, Reply::answer(thinking(usage(180, 96, None, Some(64)))).after(millis(300)).every(millis(5)))
        .with(60, Reply::answer(calling_tools().tokens(320, 28)).after(millis(160)))
        .with(40, Reply::answer(answer(16, 55).finish(FinishReason::Length)).after(millis(80)))
        .with(30, Reply::answer(answer(40, 120)).after(millis(900)).every(millis(20)))
        .with(20, Reply::status(StatusCode::INTERNAL_SERVER_ERROR))
        .with(15, Reply::rate_limited(Duration::from_secs(1)))
        .with(10, Reply::status(StatusCode::SERVICE_UNAVAILABLE).after(millis(50)))
        .with(8, Reply::status(StatusCode::BAD_REQUEST))
        .with(8, Reply::answer(answer(20, 60)).every(millis(3)).cut_after(9))
        .with(5, Reply::answer(answer(20, 60)).failed_after(6, Failure::new(StatusCode::SERVICE_UNAVAILABLE)))
        .with(4, Reply::dropped())
}

fn thinking(usage: Usage) -> Answer {
    Answer::text("The sky is blue because air scatters short waves more than long ones.")
        .thinking("They want one paragraph for a child of ten. Scattering, then, but without the word.")
        .usage(usage)
}

fn calling_tools() -> Answer {
    Answer::tools([("weather", r#"{"city":"Canberra"}"#), ("time", r#"{"zone":"Australia/Sydney"}"#)])
}

/// System names of all offered models.
pub(super) fn names(upstreams: &[Upstream]) -> Vec<String> {
    [ModelType::Chat, ModelType::Embedding].iter().flat_map(|kind| names_of(upstreams, *kind)).collect()
}

/// System names of the models of one type, each once.
pub(super) fn names_of(upstreams: &[Upstream], model_type: ModelType) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for offer in upstreams.iter().flat_map(|upstream| upstream.offers) {
        if offer.model_type == model_type && !names.iter().any(|name| name == offer.name) {
            names.push(offer.name.to_owned());
        }
    }
    names
}

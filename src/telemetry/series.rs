//! Cached handles: a completion costs one look-up here, and some twenty atomic additions.
//!
//! Registering a series by name and labels costs about 400 ns; ten of them per completion would cost more than the rest
//! of the bookkeeping together. So all series of one (model, provider, key, format) are in one struct.

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

use metrics::Counter;
use papaya::{Equivalent, HashMap};

use crate::domain::label::{FinishReason, LabelValue, Outcome, Status, WasteReason};
use crate::domain::record::Call;

use super::catalog as m;
use super::registry::{FloatCounter, Registry, SafeHistogram};

/// Series of one completion's (model, provider, key, format).
pub struct CompletionSeries {
    /// By [`Status`].
    pub(super) finished: [Counter; Status::ALL.len()],
    pub(super) cost: CostSeries,
    pub(super) model: Arc<ModelSeries>,
    upstream: Arc<UpstreamSeries>,
}

/// Series of one embedding's (model, provider, key).
pub struct EmbeddingSeries {
    pub(super) finished: [Counter; Status::ALL.len()],
    pub(super) cost: CostSeries,
    pub(super) model: Arc<EmbeddingModelSeries>,
    upstream: Arc<UpstreamSeries>,
}

/// Money spent by one (model, provider, key).
pub(super) struct CostSeries {
    pub(super) prompt: FloatCounter,
    pub(super) completion: FloatCounter,
    pub(super) total: FloatCounter,
}

/// Series by chat model alone.
pub(super) struct ModelSeries {
    pub(super) tokens_prompt: Counter,
    pub(super) tokens_completion: Counter,
    pub(super) tokens_cached: Counter,
    pub(super) tokens_cache_write: Counter,
    pub(super) tokens_reasoning: Counter,
    /// By [`WasteReason`].
    pub(super) tokens_wasted: [Counter; WasteReason::ALL.len()],
    pub(super) cost_wasted: [FloatCounter; WasteReason::ALL.len()],
    /// By [`FinishReason`].
    pub(super) finish_reasons: [Counter; FinishReason::ALL.len()],
    pub(super) within_slo: Counter,
    pub(super) missed_slo: Counter,
    pub(super) unpriced: Counter,
    pub(super) usage_missing: Counter,
    pub(super) duration: SafeHistogram,
    pub(super) ttft: SafeHistogram,
    pub(super) tpot: SafeHistogram,
    pub(super) stall: SafeHistogram,
    pub(super) prompt_tokens: SafeHistogram,
    pub(super) output_tokens: SafeHistogram,
}

/// Series by embedding model alone.
pub(super) struct EmbeddingModelSeries {
    pub(super) tokens: Counter,
    pub(super) unpriced: Counter,
    pub(super) usage_missing: Counter,
    pub(super) duration: SafeHistogram,
}

/// Series of one (provider, model).
pub struct UpstreamSeries {
    /// By [`Outcome`].
    pub(super) attempts: [Counter; Outcome::ALL.len()],
    pub(super) failovers: [Counter; Outcome::ALL.len()],
    pub(super) duration: SafeHistogram,
}

/// The series a request will be counted in, found when it is routed.
#[derive(Clone)]
pub enum CallSeries {
    Completion(Arc<CompletionSeries>),
    Embedding(Arc<EmbeddingSeries>),
}

impl CallSeries {
    /// The series of calls to the provider.
    pub fn upstream(&self) -> &Arc<UpstreamSeries> {
        match self {
            Self::Completion(series) => &series.upstream,
            Self::Embedding(series) => &series.upstream,
        }
    }
}

/// All held handles, filled on first use.
pub(super) struct SeriesCache {
    registry: Arc<Registry>,
    completions: Map<CallKey, Arc<CompletionSeries>>,
    embeddings: Map<CallKey, Arc<EmbeddingSeries>>,
    models: Map<LabelValue, Arc<ModelSeries>>,
    embedding_models: Map<LabelValue, Arc<EmbeddingModelSeries>>,
    upstreams: Map<CallKey, Arc<UpstreamSeries>>,
}

pub(super) type Map<K, V> = HashMap<K, V, BuildHasherDefault<LabelHasher>>;

impl SeriesCache {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            completions: Map::default(),
            embeddings: Map::default(),
            models: Map::default(),
            embedding_models: Map::default(),
            upstreams: Map::default(),
        }
    }

    /// The series of a call; created, with every status at 0, on first use.
    pub(super) fn call(
        &self,
        call: Call,
        model: &LabelValue,
        provider: &LabelValue,
        comment: &LabelValue,
    ) -> CallSeries {
        let format = match call {
            Call::Completion(format) => format as u64,
            Call::Embedding => u64::MAX,
        };
        let key = CallKeyRef { model, provider, comment, format };
        match call {
            Call::Completion(format) => {
                CallSeries::Completion(get_or_insert(&self.completions, &key, || CompletionSeries {
                    finished: each(Status::VALUES, |status| {
                        let labels = [model.as_str(), status, format.as_str(), comment.as_str()];
                        self.registry.counter(&m::COMPLETIONS, &labels)
                    }),
                    cost: self.cost(model, provider, comment),
                    model: self.model(model),
                    upstream: self.upstream(model, provider),
                }))
            }
            Call::Embedding => {
                CallSeries::Embedding(get_or_insert(&self.embeddings, &key, || EmbeddingSeries {
                    finished: each(Status::VALUES, |status| {
                        self.registry.counter(&m::EMBEDDINGS, &[model.as_str(), status, comment.as_str()])
                    }),
                    cost: self.cost(model, provider, comment),
                    model: self.embedding_model(model),
                    upstream: self.upstream(model, provider),
                }))
            }
        }
    }

    /// The series of a chat model.
    pub(super) fn model(&self, model: &LabelValue) -> Arc<ModelSeries> {
        let registry = &self.registry;
        let labels = [model.as_str()];
        get_or_insert(&self.models, model, || ModelSeries {
            tokens_prompt: registry.counter(&m::TOKENS_PROMPT, &labels),
            tokens_completion: registry.counter(&m::TOKENS_COMPLETION, &labels),
            tokens_cached: registry.counter(&m::TOKENS_CACHED, &labels),
            tokens_cache_write: registry.counter(&m::TOKENS_CACHE_WRITE, &labels),
            tokens_reasoning: registry.counter(&m::TOKENS_REASONING, &labels),
            tokens_wasted: each(WasteReason::VALUES, |reason| {
                registry.counter(&m::TOKENS_WASTED, &[model.as_str(), reason])
            }),
            cost_wasted: each(WasteReason::VALUES, |reason| {
                registry.float_counter(&m::COST_WASTED, &[model.as_str(), reason])
            }),
            finish_reasons: each(FinishReason::VALUES, |reason| {
                registry.counter(&m::FINISH_REASONS, &[model.as_str(), reason])
            }),
            within_slo: registry.counter(&m::WITHIN_SLO, &labels),
            missed_slo: registry.counter(&m::MISSED_SLO, &labels),
            unpriced: registry.counter(&m::UNPRICED_REQUESTS, &labels),
            usage_missing: registry.counter(&m::USAGE_MISSING, &labels),
            duration: registry.histogram(&m::COMPLETION_DURATION, &labels),
            ttft: registry.histogram(&m::COMPLETION_TTFT, &labels),
            tpot: registry.histogram(&m::COMPLETION_TPOT, &labels),
            stall: registry.histogram(&m::STREAM_STALL, &labels),
            prompt_tokens: registry.histogram(&m::COMPLETION_PROMPT_TOKENS, &labels),
            output_tokens: registry.histogram(&m::COMPLETION_OUTPUT_TOKENS, &labels),
        })
    }

    /// The series of an embedding model.
    pub(super) fn embedding_model(&self, model: &LabelValue) -> Arc<EmbeddingModelSeries> {
        let registry = &self.registry;
        let labels = [model.as_str()];
        get_or_insert(&self.embedding_models, model, || EmbeddingModelSeries {
            tokens: registry.counter(&m::TOKENS_EMBEDDING, &labels),
            unpriced: registry.counter(&m::UNPRICED_REQUESTS, &labels),
            usage_missing: registry.counter(&m::USAGE_MISSING, &labels),
            duration: registry.histogram(&m::EMBEDDING_DURATION, &labels),
        })
    }

    /// The series of calls to a provider for a model.
    pub(super) fn upstream(&self, model: &LabelValue, provider: &LabelValue) -> Arc<UpstreamSeries> {
        let key = CallKeyRef { model, provider, comment: provider, format: 0 };
        get_or_insert(&self.upstreams, &key, || UpstreamSeries {
            attempts: each(Outcome::VALUES, |outcome| {
                self.registry.counter(&m::UPSTREAM_ATTEMPTS, &[provider.as_str(), model.as_str(), outcome])
            }),
            failovers: each(Outcome::VALUES, |outcome| {
                self.registry.counter(&m::FAILOVERS, &[model.as_str(), provider.as_str(), outcome])
            }),
            duration: self.registry.histogram(&m::UPSTREAM_DURATION, &[provider.as_str()]),
        })
    }

    fn cost(&self, model: &LabelValue, provider: &LabelValue, comment: &LabelValue) -> CostSeries {
        let labels = [model.as_str(), provider.as_str(), comment.as_str()];
        CostSeries {
            prompt: self.registry.float_counter(&m::COST_PROMPT, &labels),
            completion: self.registry.float_counter(&m::COST_COMPLETION, &labels),
            total: self.registry.float_counter(&m::COST_TOTAL, &labels),
        }
    }
}

/// One handle for each value of a closed enum, in its order.
pub(super) fn each<T, const N: usize>(
    values: &'static [&'static str],
    make: impl Fn(&'static str) -> T,
) -> [T; N] {
    debug_assert_eq!(values.len(), N);
    std::array::from_fn(|index| make(values[index]))
}

fn get_or_insert<K, Q, V>(map: &Map<K, Arc<V>>, key: &Q, make: impl Fn() -> V) -> Arc<V>
where
    K: Hash + Eq,
    Q: Hash + Equivalent<K> + ToOwnedKey<K> + ?Sized,
{
    let guard = map.guard();
    if let Some(found) = map.get(key, &guard) {
        return found.clone();
    }
    // Two threads may both come here; they register the same series, and one struct wins.
    map.get_or_insert_with(key.to_owned_key(), || Arc::new(make()), &guard).clone()
}

/// A borrowed key that can be stored.
trait ToOwnedKey<K> {
    fn to_owned_key(&self) -> K;
}

impl ToOwnedKey<Self> for LabelValue {
    fn to_owned_key(&self) -> Self {
        self.clone()
    }
}

#[derive(PartialEq, Eq)]
struct CallKey {
    model: LabelValue,
    provider: LabelValue,
    comment: LabelValue,
    format: u64,
}

impl Hash for CallKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { model, provider, comment, format } = self;
        CallKeyRef { model, provider, comment, format: *format }.hash(state);
    }
}

/// [`CallKey`] without owning it, so that a look-up touches no reference counts.
#[derive(Hash)]
struct CallKeyRef<'a> {
    model: &'a LabelValue,
    provider: &'a LabelValue,
    comment: &'a LabelValue,
    format: u64,
}

impl Equivalent<CallKey> for CallKeyRef<'_> {
    fn equivalent(&self, key: &CallKey) -> bool {
        self.format == key.format
            && *self.model == key.model
            && *self.provider == key.provider
            && *self.comment == key.comment
    }
}

impl ToOwnedKey<CallKey> for CallKeyRef<'_> {
    fn to_owned_key(&self) -> CallKey {
        CallKey {
            model: self.model.clone(),
            provider: self.provider.clone(),
            comment: self.comment.clone(),
            format: self.format,
        }
    }
}

/// Folds the hashes that label values carry; they are well mixed already.
#[derive(Default)]
pub(super) struct LabelHasher(u64);

impl Hasher for LabelHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // Fibonacci hashing: the multiplier is 2^64 divided by the golden ratio.
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

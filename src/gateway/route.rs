//! Routing: the targets a request may be sent to.

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use http::HeaderMap;
use rand::RngExt as _;

use crate::domain::key::ApiKey;
use crate::domain::label::{LabelValue, ModelType, RejectReason};
use crate::domain::model::Target;
use crate::domain::provider::ProviderKind;
use crate::domain::record::Call;

use super::Gateway;
use super::refusal::Refusal;

/// Selects one provider, as `model@provider` does.
const PROVIDER_HEADER: &str = "x-nexusgate-provider";

/// A model as callers see it.
pub struct OfferedModel {
    /// System name.
    pub name: LabelValue,
    /// Name of a provider that offers it.
    pub owner: LabelValue,
    /// Since when it is offered; several providers may, and the earliest time counts.
    pub created_at: DateTime<Utc>,
}

impl OfferedModel {
    fn of(targets: &[Arc<Target>]) -> Option<Self> {
        let first = targets.first()?;
        Some(Self {
            name: first.system_name.clone(),
            owner: first.provider.name.clone(),
            created_at: targets.iter().map(|target| target.created_at).min()?,
        })
    }
}

impl Gateway {
    /// The models that this key may call, by name.
    pub fn models(&self, key: &ApiKey) -> Vec<OfferedModel> {
        let snapshot = self.snapshot();
        let allowed = snapshot.models().filter(|(name, _)| key.may_use(name));
        let mut models: Vec<_> = allowed.filter_map(|(_, targets)| OfferedModel::of(targets)).collect();
        models.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        models
    }

    /// One of them.
    ///
    /// # Errors
    /// A refusal when there is no such model, or this key may not call it.
    pub fn model(&self, key: &ApiKey, name: &str) -> Result<OfferedModel, Refusal> {
        let snapshot = self.snapshot();
        let targets = snapshot.resolve(name).filter(|_| key.may_use(name));
        targets.and_then(OfferedModel::of).ok_or_else(|| not_found(name, None))
    }

    /// The targets for `model`, in the order to try them; never empty.
    ///
    /// # Errors
    /// A refusal when no target offers the model, or this key may not use it.
    pub(super) fn route(
        &self,
        call: Call,
        key: &ApiKey,
        model: &str,
        headers: &HeaderMap,
    ) -> Result<Vec<Arc<Target>>, Refusal> {
        let snapshot = self.snapshot();
        // A header that is not UTF-8 names no provider, which must not mean any provider.
        let header =
            headers.get(PROVIDER_HEADER).map(|value| String::from_utf8_lossy(value.as_bytes().trim_ascii()));
        let header = header.as_deref().filter(|name| !name.is_empty());
        // A model configured under the whole name wins over `model@provider`.
        let (name, provider) = match (snapshot.resolve(model), model.rsplit_once('@')) {
            (None, Some((name, provider))) => (name, header.or(Some(provider))),
            _ => (model, header),
        };
        let Some(all) = snapshot.resolve(name).filter(|_| key.may_use(name)) else {
            return Err(not_found(name, None));
        };
        let mut targets: Vec<Arc<Target>> = (all.iter())
            .filter(|target| provider.is_none_or(|provider| target.provider.name.as_str() == provider))
            .cloned()
            .collect();
        if targets.is_empty() {
            return Err(not_found(name, provider));
        }
        targets.retain(|target| suits(call, target));
        if targets.is_empty() {
            let message = match call {
                Call::Completion(_) => "This model makes embeddings; call `/v1/embeddings`.",
                Call::Embedding => "This model does not make embeddings.",
            };
            return Err(Refusal::new(RejectReason::InvalidRequest, message).with_param(Some("model")));
        }
        let mut ordered = weighted_order(targets, |total| rand::rng().random_range(0..total));
        if ordered.len() > 1 {
            // Providers whose breaker is open come last: they are tried only when there is no other.
            let now = Instant::now();
            // Asked once for each: the answers change while other requests run.
            ordered.sort_by_cached_key(|target| !self.health().is_fit(&target.provider, now));
        }
        Ok(ordered)
    }
}

fn suits(call: Call, target: &Target) -> bool {
    match call {
        Call::Completion(_) => target.model_type == ModelType::Chat,
        Call::Embedding => {
            target.model_type == ModelType::Embedding && target.provider.kind != ProviderKind::Anthropic
        }
    }
}

fn not_found(model: &str, provider: Option<&str>) -> Refusal {
    let model: String = model.chars().take(100).collect();
    let message = match provider {
        Some(provider) => {
            let provider: String = provider.chars().take(100).collect();
            format!("The provider `{provider}` does not offer the model `{model}`.")
        }
        None => format!("The model `{model}` does not exist or you do not have access to it."),
    };
    Refusal::new(RejectReason::ModelNotFound, message).with_param(Some("model"))
}

/// Draws targets one by one, each with a chance in proportion to its weight; targets of weight 0 come last.
/// `draw(total)` is a number below `total`.
fn weighted_order(mut targets: Vec<Arc<Target>>, draw: impl Fn(u64) -> u64) -> Vec<Arc<Target>> {
    if targets.len() < 2 {
        return targets;
    }
    let mut ordered = Vec::with_capacity(targets.len());
    loop {
        let total: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
        if total == 0 {
            break;
        }
        let mut left = draw(total);
        let drawn = targets.iter().position(|target| match left.checked_sub(u64::from(target.weight)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        ordered.push(targets.remove(drawn.unwrap_or(0)));
    }
    ordered.append(&mut targets);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::label::LabelValue;
    use crate::domain::model::Slo;
    use crate::domain::provider::Provider;
    use crate::domain::usage::Price;

    fn target(name: &str, weight: u32) -> Arc<Target> {
        Arc::new(Target {
            id: 1,
            system_name: LabelValue::new("m"),
            remote_id: "m".into(),
            model_type: ModelType::Chat,
            price: Price::default(),
            weight,
            slo: Slo::default(),
            created_at: chrono::DateTime::UNIX_EPOCH,
            provider: Arc::new(Provider {
                id: 1,
                name: LabelValue::new(name),
                kind: ProviderKind::OpenAi,
                base_url: "http://h/v1".parse().expect("URL"),
                api_key: None,
                api_version: None,
                proxy: None,
                ask_stream_usage: true,
                max_concurrency: None,
            }),
        })
    }

    fn names(targets: &[Arc<Target>]) -> Vec<&str> {
        targets.iter().map(|target| target.provider.name.as_str()).collect()
    }

    #[test]
    fn chances_are_in_proportion_to_weights() {
        let targets = || vec![target("a", 1), target("zero", 0), target("b", 3)];
        let firsts: Vec<_> =
            (0..4).map(|drawn| names(&weighted_order(targets(), |_| drawn))[0].to_owned()).collect();
        assert_eq!(firsts, ["a", "b", "b", "b"]);
    }

    #[test]
    fn weight_zero_comes_last_and_none_is_lost() {
        let ordered =
            weighted_order(vec![target("zero", 0), target("a", 2), target("b", 2)], |total| total - 1);
        assert_eq!(names(&ordered), ["b", "a", "zero"]);
    }
}

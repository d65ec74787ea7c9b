//! Finished requests to record.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use nexusgate::domain::key::{ApiKey, Limits};
use nexusgate::domain::label::{ApiFormat, FinishReason, LabelValue, ModelType, Status};
use nexusgate::domain::model::{Slo, Target};
use nexusgate::domain::provider::{Provider, ProviderKind};
use nexusgate::domain::record::{Call, RequestRecord};
use nexusgate::domain::usage::{Price, Usage};
use uuid::Uuid;

/// A streamed completion, with all recordable values; each number has a label set of its own.
pub(crate) fn record(label_set: usize) -> RequestRecord {
    let provider = Arc::new(Provider {
        id: 1,
        name: LabelValue::new(&format!("provider-{}", label_set % 3)),
        kind: ProviderKind::OpenAi,
        base_url: "https://example.invalid/v1".parse().expect("URL"),
        api_key: None,
        api_version: None,
        proxy: None,
        ask_stream_usage: true,
        max_concurrency: None,
    });
    let price = Price { input: Some(2.5), output: Some(10.0), ..Price::default() };
    let usage = Usage { prompt: Some(1200), completion: Some(350), cached: Some(1000), ..Usage::default() };
    let model = LabelValue::new(&format!("model-{label_set}"));
    RequestRecord {
        id: Uuid::now_v7(),
        call: Call::Completion(ApiFormat::OpenAiChat),
        key: Arc::new(ApiKey {
            id: 1,
            comment: LabelValue::new(&format!("team-{}", label_set % 8)),
            limits: Limits::default(),
            expires_at: None,
            revoked: false,
            allowed_models: None,
        }),
        model: model.clone(),
        target: Some(Arc::new(Target {
            id: 1,
            system_name: model,
            remote_id: "remote".into(),
            model_type: ModelType::Chat,
            price,
            weight: 1,
            slo: Slo { ttft: Some(Duration::from_secs(1)), tpot: None },
            created_at: Utc::now(),
            provider,
        })),
        status: Status::Completed,
        stream: true,
        usage,
        cost: price.cost(&usage),
        spent: None,
        finish_reason: Some(FinishReason::Stop),
        error: None,
        started_at: Utc::now(),
        duration: Duration::from_millis(2300),
        ttft: Some(Duration::from_millis(210)),
        longest_stall: Some(Duration::from_millis(40)),
        overhead: Duration::from_micros(60),
        request_id: None,
        source: None,
        request_body: None,
        response_body: None,
    }
}

//! Preparing the request for one provider.

use std::sync::Arc;

use http::Method;

use crate::domain::label::ApiFormat;
use crate::domain::model::Target;
use crate::domain::provider::ProviderKind;
use crate::domain::record::{Call, RequestRecord};
use crate::provider::{Destination, Endpoints, Operation, UpstreamHeaders, UpstreamRequest};
use crate::wire::convert::{
    AnswerContext, ConvertError, Rendered, RequestOptions, convert_request, without_traces,
};
use crate::wire::head::{Edit, RequestHead};
use crate::wire::openai_models::is_openai;

use super::dispatch::Job;
use super::transform::Plan;

/// Anthropic's `max_tokens` when the client set no limit: every current Claude model can write this many.
const DEFAULT_MAX_TOKENS: u32 = 8192;

/// A request that is ready to be sent, and how to deliver its answer.
pub(super) struct Prepared<'a> {
    pub(super) request: UpstreamRequest<'a>,
    pub(super) to: Arc<Destination>,
    pub(super) plan: Plan,
    /// Request fields that the provider's format could not express.
    pub(super) dropped: Vec<String>,
}

/// The client's and the provider's format of a completion, when they differ.
fn differing(call: Call, target: &Target) -> Option<(ApiFormat, ApiFormat)> {
    let provider = target.provider.kind.chat_format();
    match call {
        Call::Completion(client) if client != provider => Some((client, provider)),
        _ => None,
    }
}

/// The name that tells what a model takes. A deployment on Azure has a name of its owner's choosing; if that is none of
/// OpenAI's models, the one that callers use may be.
fn known_as<'a>(kind: ProviderKind, remote_id: &'a str, system_name: &'a str) -> &'a str {
    let is_free = kind == ProviderKind::Azure && !is_openai(remote_id);
    if is_free && is_openai(system_name) { system_name } else { remote_id }
}

/// Whether the provider at `host` is OpenAI or Azure, and not another server that offers their models.
fn is_openai_or_azure(kind: ProviderKind, host: &str) -> bool {
    const DOMAINS: [&str; 3] = [".openai.com", ".azure.com", ".azure.us"];
    kind == ProviderKind::Azure || DOMAINS.iter().any(|domain| host.ends_with(domain))
}

/// Writes the request for `target`.
///
/// # Errors
/// The provider's format cannot express the request, or the request violates its own format.
pub(super) fn prepare<'a>(
    endpoints: &Endpoints,
    job: &'a Job,
    target: &Arc<Target>,
    record: &RequestRecord,
) -> Result<Prepared<'a>, ConvertError> {
    let provider = &target.provider;
    let format = provider.kind.chat_format();
    let chat = format == ApiFormat::OpenAiChat && job.call != Call::Embedding;
    let ask_usage = job.stream && chat && provider.ask_stream_usage;
    let (body, plan, dropped) = match differing(job.call, target) {
        None => {
            let ask_usage = ask_usage && !job.head.include_usage;
            let edit = Edit {
                model: Some(&target.remote_id),
                stream: (job.stream && job.head.stream.is_none()).then_some(true),
                ask_usage,
            };
            let (plain, dropped) = match without_traces(format, &target.remote_id, &job.body) {
                Some(Rendered { body, dropped }) => {
                    (RequestHead::parse(job.call, &body.into()).ok(), dropped)
                }
                None => (None, Vec::new()),
            };
            let body = plain.as_ref().unwrap_or(&job.head).rewrite(&edit);
            (body, Plan::Pass { format, strip_usage: ask_usage }, dropped)
        }
        Some((client, provider)) => {
            let options = RequestOptions {
                model: &target.remote_id,
                known_as: known_as(target.provider.kind, &target.remote_id, target.system_name.as_str()),
                openai_or_azure: is_openai_or_azure(
                    target.provider.kind,
                    target.provider.base_url.host_str().unwrap_or_default(),
                ),
                stream: job.stream,
                ask_usage,
                default_max_tokens: DEFAULT_MAX_TOKENS,
            };
            let rendered = convert_request(client, provider, &job.body, &options)?;
            let id = record.id.simple().to_string();
            let created = record.started_at.timestamp();
            let context = AnswerContext::new(client, &job.body, &job.head.model, &id, created).into();
            (rendered.body.into(), Plan::Convert { provider, client, context }, rendered.dropped)
        }
    };
    let operation = match job.call {
        Call::Completion(_) => Operation::Complete,
        Call::Embedding => Operation::Embeddings,
    };
    let headers = UpstreamHeaders::new(&job.headers, provider);
    let request = UpstreamRequest { method: Method::POST, headers, body, fresh: false };
    let to = endpoints
        .get(target, operation)
        .map_err(|_| ConvertError::new("The provider's base URL and the model's name make no URL."))?;
    Ok(Prepared { request, to, plan, dropped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_may_be_known_by_the_name_that_callers_use() {
        use ProviderKind::{Azure, OpenAi};
        for (kind, remote_id, system_name, name) in [
            (Azure, "prod-eu", "gpt-5", "gpt-5"),
            (Azure, "gpt-4o-eu", "gpt-5", "gpt-4o-eu"),
            (Azure, "DeepSeek-R1", "reasoner", "DeepSeek-R1"),
            (OpenAi, "llama3.1:8b", "gpt-4o", "llama3.1:8b"),
        ] {
            assert_eq!(known_as(kind, remote_id, system_name), name, "{remote_id}");
        }
    }

    #[test]
    fn openai_and_azure_are_known_by_their_hosts() {
        use ProviderKind::{Azure, OpenAi};
        for (kind, host, expected) in [
            (OpenAi, "api.openai.com", true),
            (OpenAi, "eu.api.openai.com", true),
            (OpenAi, "mine.openai.azure.com", true),
            (OpenAi, "mine.services.ai.azure.com", true),
            (Azure, "gateway.example", true),
            (OpenAi, "openrouter.ai", false),
            (OpenAi, "notopenai.com", false),
        ] {
            assert_eq!(is_openai_or_azure(kind, host), expected, "{host}");
        }
    }
}

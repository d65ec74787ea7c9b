//! The watcher on answers recorded from real providers.

use std::path::{Path, PathBuf};

use super::*;
use crate::wire::answer::Observed;

/// The folder of answers recorded from real providers, if there is one.
fn recorded(format: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = [
        std::env::var_os("NEXUSGATE_FIXTURES").map(PathBuf::from),
        Some(root.join("../shared/fixtures/recorded")),
        Some(root.join("../../shared/fixtures/recorded")),
    ];
    places.into_iter().flatten().map(|place| place.join(format)).find(|place| place.is_dir())
}

/// The recorded files of a format with this extension, by name.
fn recordings(format: ApiFormat, ending: &str) -> Vec<(String, String)> {
    let Some(folder) = recorded(format.as_str()) else {
        return Vec::new();
    };
    let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// A recording as it was on the wire (README of the recordings).
fn on_the_wire(format: ApiFormat, chunks: &str) -> (Vec<String>, Vec<Value>) {
    let values: Vec<Value> = chunks.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut events: Vec<String> = chunks
        .lines()
        .zip(&values)
        .map(|(line, value)| match format {
            ApiFormat::OpenAiChat => format!("data: {line}\n\n"),
            _ => format!("event: {}\ndata: {line}\n\n", value["type"].as_str().unwrap()),
        })
        .collect();
    if format == ApiFormat::OpenAiChat {
        events.push("data: [DONE]\n\n".to_owned());
    }
    (events, values)
}

/// Every usage object of the recording, the last value of each field.
fn recorded_usage(format: ApiFormat, values: &[Value]) -> serde_json::Map<String, Value> {
    let mut usage = serde_json::Map::new();
    for value in values {
        let places = match format {
            ApiFormat::OpenAiChat => [&value["usage"], &Value::Null],
            ApiFormat::OpenAiResponses => [&value["response"]["usage"], &Value::Null],
            ApiFormat::Anthropic => [&value["message"]["usage"], &value["usage"]],
        };
        for place in places {
            usage.extend(place.as_object().cloned().unwrap_or_default());
        }
    }
    usage
}

fn expected_usage(format: ApiFormat, name: &str, values: &[Value]) -> Usage {
    let written = Value::Object(recorded_usage(format, values));
    let count = |pointer: &str| written.pointer(pointer).and_then(Value::as_u64);
    match format {
        ApiFormat::OpenAiChat => Usage {
            prompt: count("/prompt_tokens"),
            completion: count("/completion_tokens").map(|tokens| {
                // This provider counts reasoning separately from the completion.
                let beside = if name.starts_with("xai") {
                    count("/completion_tokens_details/reasoning_tokens")
                } else {
                    None
                };
                tokens + beside.unwrap_or(0)
            }),
            cached: count("/prompt_tokens_details/cached_tokens"),
            cache_write: None,
            reasoning: count("/completion_tokens_details/reasoning_tokens"),
        },
        ApiFormat::OpenAiResponses => Usage {
            prompt: count("/input_tokens"),
            completion: count("/output_tokens"),
            cached: count("/input_tokens_details/cached_tokens"),
            cache_write: None,
            reasoning: count("/output_tokens_details/reasoning_tokens"),
        },
        ApiFormat::Anthropic => Usage {
            prompt: count("/input_tokens").map(|tokens| {
                let cached = ["/cache_read_input_tokens", "/cache_creation_input_tokens"];
                tokens + cached.into_iter().filter_map(count).sum::<u64>()
            }),
            completion: count("/output_tokens"),
            cached: count("/cache_read_input_tokens"),
            cache_write: count("/cache_creation_input_tokens"),
            reasoning: None,
        },
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "a test that did not run says so")]
fn recorded_streams_are_understood() {
    for format in ApiFormat::ALL.iter().copied() {
        let files = recordings(format, ".chunks.txt");
        if files.is_empty() {
            println!("skipped: no recorded {format} streams");
        }
        for (name, chunks) in files {
            let (events, values) = on_the_wire(format, &chunks);
            let stream = events.concat();
            let (forwarded, seen) = watch_in_pieces(format, false, stream.as_bytes());
            assert!(forwarded == stream.as_bytes(), "{format}/{name}");
            assert!(seen.terminal && !seen.malformed, "{format}/{name}: {seen:?}");
            assert_eq!(seen.usage, expected_usage(format, &name, &values), "{format}/{name}");
            let failed = name.starts_with("error");
            assert_eq!(seen.failed, failed, "{format}/{name}");
            assert_eq!(seen.first_token, !failed && !name.starts_with("refusal"), "{format}/{name}");
            let finish_reason = match &*name {
                _ if failed => None,
                _ if name.starts_with("refusal") => Some(FinishReason::ContentFilter),
                _ if name.contains("web-search") => Some(FinishReason::Stop),
                _ if name.contains("tool") => Some(FinishReason::ToolCalls),
                _ => Some(FinishReason::Stop),
            };
            assert_eq!(seen.finish_reason, finish_reason, "{format}/{name}");

            let kept: String = events
                .iter()
                .zip(values.iter().chain([&Value::Null]))
                .filter(|(_, value)| {
                    !(format == ApiFormat::OpenAiChat
                        && value["usage"].is_object()
                        && value["choices"].as_array().is_some_and(Vec::is_empty))
                })
                .map(|(event, _)| &**event)
                .collect();
            let (forwarded, stripped) = watch_in_pieces(format, true, stream.as_bytes());
            assert!(forwarded == kept.as_bytes(), "{format}/{name}");
            assert_eq!(stripped, seen, "{format}/{name}");
        }
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "a test that did not run says so")]
fn recorded_answers_are_understood() {
    for format in ApiFormat::ALL.iter().copied() {
        let files = recordings(format, ".json");
        if files.is_empty() {
            println!("skipped: no recorded {format} answers");
        }
        for (name, body) in files {
            let observed = observe_answer(Call::Completion(format), body.as_bytes());
            if name.starts_with("error") {
                assert!(observed.is_err(), "{format}/{name}");
                continue;
            }
            let Observed { usage, finish_reason, failed } = observed.unwrap();
            // A whole answer has the usage at the same path as the last event of a stream.
            let body: Value = serde_json::from_str(&body).unwrap();
            let as_event = match format {
                ApiFormat::OpenAiResponses => serde_json::json!({ "response": body }),
                _ => body,
            };
            assert_eq!(usage, expected_usage(format, &name, &[as_event]), "{format}/{name}");
            assert!(usage.is_known() && finish_reason.is_some() && !failed, "{format}/{name}");
        }
    }
}

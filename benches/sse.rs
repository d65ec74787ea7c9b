//! The cost of watching a stream, and of converting it: `cargo bench --bench sse`.
//!
//! Small chunks carry 40 bytes of text each, large ones 4 KiB; one chunk is one event, as providers send them. The
//! throughput counts the provider's bytes.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nexusgate::domain::label::ApiFormat;
use nexusgate::wire::convert::{AnswerContext, StreamConverter, answer_to_stream};
use nexusgate::wire::sse::SseScanner;
use nexusgate::wire::watch::StreamWatcher;

const CHUNKS: usize = 200;

const FORMATS: [ApiFormat; 3] = [ApiFormat::OpenAiChat, ApiFormat::OpenAiResponses, ApiFormat::Anthropic];

/// The content event of each format, with `text` in it.
fn content(format: ApiFormat, text: &str) -> Bytes {
    match format {
        ApiFormat::OpenAiChat => format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1764061200,\"model\":\"m\",\
             \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n"
        ),
        ApiFormat::OpenAiResponses => format!(
            "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\"sequence_number\":7,\
             \"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0,\"delta\":\"{text}\",\"logprobs\":[]}}\n\n"
        ),
        ApiFormat::Anthropic => format!(
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
             \"delta\":{{\"type\":\"text_delta\",\"text\":\"{text}\"}}}}\n\n"
        ),
    }
    .into()
}

/// The events before the content: the beginning of a stream of each format, as the gateway's own encoder writes it.
fn opening(format: ApiFormat) -> Bytes {
    let answer = match format {
        ApiFormat::OpenAiChat => {
            r#"{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}"#
        }
        ApiFormat::OpenAiResponses => {
            r#"{"id":"resp_1","object":"response","created_at":1,"status":"completed","model":"m","output":[{"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"x","annotations":[]}]}]}"#
        }
        ApiFormat::Anthropic => {
            r#"{"id":"1","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":"x"}],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}"#
        }
    };
    let mut events = BytesMut::new();
    answer_to_stream(format, answer.as_bytes(), false, &mut events).expect("an answer of the format");
    let text = String::from_utf8(events.to_vec()).expect("UTF-8");
    // Everything up to the first text, the text excluded.
    let marks = ["\"content\":\"x\"", "response.output_text.delta", "content_block_delta"];
    let first = marks.iter().filter_map(|mark| text.find(mark)).min().expect("a content event");
    let cut = text[..first].rfind("\n\n").map_or(0, |end| end + 2);
    Bytes::copy_from_slice(&text.as_bytes()[..cut])
}

fn chunks(format: ApiFormat, text: &str) -> Vec<Bytes> {
    std::iter::once(opening(format))
        .filter(|opening| !opening.is_empty())
        .chain(std::iter::repeat_n(content(format, text), CHUNKS))
        .collect()
}

fn benches(criterion: &mut Criterion) {
    for (size, length) in [("40 bytes", 40), ("4 KiB", 4096)] {
        let text = "lorem ip".repeat(length / 8);
        let mut group = criterion.benchmark_group(format!("stream of {size}"));
        group
            .sample_size(20)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2));
        for from in FORMATS {
            let chunks = chunks(from, &text);
            let bytes: usize = chunks.iter().map(Bytes::len).sum();
            group.throughput(Throughput::Bytes(u64::try_from(bytes).unwrap_or(u64::MAX)));
            for strip in [false, true] {
                if strip && from != ApiFormat::OpenAiChat {
                    continue;
                }
                let name = format!("watch {}{}", from.as_str(), if strip { ", usage cut out" } else { "" });
                group.bench_function(name, |b| {
                    b.iter_batched(
                        || StreamWatcher::new(from, strip),
                        |mut watcher| {
                            for chunk in &chunks {
                                black_box(watcher.feed(chunk.clone()));
                            }
                            assert!(watcher.seen().first_token, "the content was seen");
                            watcher
                        },
                        BatchSize::SmallInput,
                    );
                });
            }
            for to in FORMATS.into_iter().filter(|to| *to != from) {
                group.bench_function(format!("convert {} to {}", from.as_str(), to.as_str()), |b| {
                    b.iter_batched(
                        || {
                            let context = AnswerContext::new(to, b"{}", "m", "1", 0);
                            (SseScanner::new(), StreamConverter::new(from, to, context), BytesMut::new())
                        },
                        |(mut scanner, mut converter, mut out)| {
                            let mut written = 0;
                            for chunk in &chunks {
                                scanner
                                    .feed(chunk, |event| converter.feed(event.event, event.data, &mut out))
                                    .expect("small events");
                                written += out.split().freeze().len();
                            }
                            assert!(written > CHUNKS * text.len(), "the content came through");
                            written
                        },
                        BatchSize::SmallInput,
                    );
                });
            }
        }
        group.finish();
    }
}

criterion_group!(group, benches);
criterion_main!(group);

//! The watcher on hand-written streams (`tests/golden/streams`), on [recorded] ones, and on arbitrary ones.

use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::domain::record::Call;
use crate::wire::answer::observe_answer;

mod odd_errors;
mod recorded;

/// The part of `chunks` that a watcher forwards, and its final observations.
fn watch(format: ApiFormat, strip: bool, chunks: &[&[u8]]) -> (Vec<u8>, Seen) {
    let mut watcher = StreamWatcher::new(format, strip);
    let mut forwarded = Vec::new();
    for chunk in chunks {
        let chunk = Bytes::copy_from_slice(chunk);
        let out = watcher.feed(chunk.clone());
        if !strip {
            assert_eq!((out.as_ptr(), out.len()), (chunk.as_ptr(), chunk.len()), "nothing is copied or held");
        }
        forwarded.extend_from_slice(&out);
    }
    forwarded.extend_from_slice(&watcher.finish());
    (forwarded, watcher.seen().clone())
}

/// The same for every way to cut the stream: into bytes, small pieces or not at all.
fn watch_in_pieces(format: ApiFormat, strip: bool, stream: &[u8]) -> (Vec<u8>, Seen) {
    let whole = watch(format, strip, &[stream]);
    for size in [1, 2, 7, 100] {
        let chunks: Vec<&[u8]> = stream.chunks(size).collect();
        assert_eq!(watch(format, strip, &chunks), whole, "in chunks of {size}");
    }
    whole
}

fn golden(format: ApiFormat, case: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/streams");
    std::fs::read(folder.join(format.as_str()).join(case).with_extension("sse")).unwrap()
}

/// `[prompt, completion, cached, cache_write, reasoning]`
fn usage(counts: [Option<u64>; 5]) -> Usage {
    let [prompt, completion, cached, cache_write, reasoning] = counts;
    Usage { prompt, completion, cached, cache_write, reasoning }
}

/// A stream that ended properly.
fn ended(finish_reason: FinishReason, counts: [Option<u64>; 5]) -> Seen {
    Seen {
        first_token: true,
        usage: usage(counts),
        finish_reason: Some(finish_reason),
        terminal: true,
        ..Seen::default()
    }
}

fn ended_chat(finish_reason: FinishReason, counts: [Option<u64>; 5]) -> Seen {
    Seen { done: true, ..ended(finish_reason, counts) }
}

#[test]
fn chat_streams_are_understood() {
    let format = ApiFormat::OpenAiChat;
    let cases = [
        ("text", ended_chat(FinishReason::Stop, [Some(11), Some(7), Some(4), None, Some(0)])),
        ("tools-parallel", ended_chat(FinishReason::ToolCalls, [Some(50), Some(31), Some(0), None, Some(0)])),
        (
            "reasoning-usage-on-last-content",
            ended_chat(FinishReason::Stop, [Some(18), Some(20), Some(6), None, Some(12)]),
        ),
        (
            "reasoning-beside-completion",
            ended_chat(FinishReason::Stop, [Some(30), Some(52), Some(29), None, Some(50)]),
        ),
        ("usage-under-choice", ended_chat(FinishReason::Stop, [Some(19), Some(13), None, None, None])),
        ("usage-under-x-groq", ended_chat(FinishReason::Stop, [Some(9), Some(2), None, None, None])),
        ("usage-on-every-chunk", ended_chat(FinishReason::Length, [Some(5), Some(2), None, None, None])),
        (
            "filter-results-first-crlf",
            ended_chat(FinishReason::ContentFilter, [Some(8), Some(1), Some(0), None, Some(0)]),
        ),
        ("comments-and-error", Seen { failed: true, ..ended_chat(FinishReason::Other, [None; 5]) }),
        ("refusal-cut-without-end", Seen { first_token: true, ..Seen::default() }),
        ("last-blank-line-missing", ended(FinishReason::Stop, [Some(3), Some(1), Some(0), None, Some(0)])),
        ("no-space-not-json", Seen { malformed: true, ..ended_chat(FinishReason::Stop, [None; 5]) }),
    ];
    for (case, expected) in cases {
        let stream = golden(format, case);
        let (forwarded, seen) = watch_in_pieces(format, false, &stream);
        assert_eq!(seen, expected, "{case}");
        assert!(forwarded == stream, "{case}");
        // Cutting out the usage chunk does not change the observations.
        assert_eq!(watch_in_pieces(format, true, &stream).1, expected, "{case}");
    }
}

#[test]
fn anthropic_streams_are_understood() {
    let format = ApiFormat::Anthropic;
    let cases = [
        (
            "text-cache-partial-delta",
            ended(FinishReason::Stop, [Some(3210), Some(15), Some(3000), Some(200), None]),
        ),
        ("input-tokens-corrected", ended(FinishReason::Length, [Some(61), Some(2), None, None, None])),
        ("thinking-then-tool", ended(FinishReason::ToolCalls, [Some(400), Some(40), Some(0), Some(0), None])),
        (
            "refusal-without-content",
            Seen {
                first_token: false,
                ..ended(FinishReason::ContentFilter, [Some(18), Some(5), None, None, None])
            },
        ),
        (
            "overloaded",
            Seen {
                first_token: true,
                usage: usage([Some(7), Some(1), None, None, None]),
                failed: true,
                ..Seen::default()
            },
        ),
    ];
    for (case, expected) in cases {
        let stream = golden(format, case);
        // This format has no usage chunk to cut out.
        assert!(watch_in_pieces(format, true, &stream) == (stream, expected), "{case}");
    }
}

#[test]
fn responses_streams_are_understood() {
    let format = ApiFormat::OpenAiResponses;
    let cases = [
        ("text", ended(FinishReason::Stop, [Some(20), Some(6), Some(16), None, Some(2)])),
        ("tool-call", ended(FinishReason::ToolCalls, [Some(90), Some(14), Some(0), None, Some(0)])),
        ("reasoning-incomplete", ended(FinishReason::Length, [Some(33), Some(64), Some(0), None, Some(64)])),
        ("failed", Seen { terminal: true, failed: true, ..Seen::default() }),
        ("cut-mid-event", Seen { first_token: true, ..Seen::default() }),
    ];
    for (case, expected) in cases {
        let stream = golden(format, case);
        assert!(watch_in_pieces(format, true, &stream) == (stream, expected), "{case}");
    }
}

/// Anthropic's first event reports a token of an answer that has not begun; chat reports all tokens before its `[DONE]`.
#[test]
fn a_usage_is_counted_when_it_is_that_of_the_whole_answer() {
    let start = r#"{"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":1}}}"#;
    let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}"#;
    let running = r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}"#;
    let stop = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    let total = r#"{"choices":[],"usage":{"completion_tokens":5}}"#;
    for (format, events, counted) in [
        (ApiFormat::Anthropic, [start].as_slice(), false),
        (ApiFormat::Anthropic, &[start, end], true),
        (ApiFormat::OpenAiChat, &[running], false),
        (ApiFormat::OpenAiChat, &[stop], false),
        (ApiFormat::OpenAiChat, &[stop, total], true),
        (ApiFormat::OpenAiChat, &[running, stop], true),
        (ApiFormat::OpenAiChat, &[running, "[DONE]"], true),
        (ApiFormat::OpenAiResponses, &[r#"{"type":"response.created","response":{"usage":null}}"#], false),
        (
            ApiFormat::OpenAiResponses,
            &[
                r#"{"type":"response.incomplete","response":{"status":"incomplete","usage":{"output_tokens":5}}}"#,
            ],
            true,
        ),
    ] {
        let stream: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        let (_, seen) = watch(format, false, &[stream.as_bytes()]);
        assert_eq!(seen.is_counted(), counted, "{stream}");
    }
}

#[test]
fn only_the_usage_chunk_is_cut_out() {
    let format = ApiFormat::OpenAiChat;
    for case in [
        "text",
        "tools-parallel",
        "reasoning-beside-completion",
        "usage-on-every-chunk",
        "filter-results-first-crlf",
    ] {
        let stream = String::from_utf8(golden(format, case)).unwrap();
        let blank = if stream.contains('\r') { "\r\n\r\n" } else { "\n\n" };
        let mut events: Vec<&str> = stream.split_inclusive(blank).collect();
        let usage = events.remove(events.len() - 2);
        assert!(usage.contains(r#""choices":[],"#), "{case}");
        let (forwarded, _) = watch_in_pieces(format, true, stream.as_bytes());
        assert_eq!(String::from_utf8(forwarded).unwrap(), events.concat(), "{case}");
    }
    for case in [
        "reasoning-usage-on-last-content",
        "usage-under-choice",
        "usage-under-x-groq",
        "comments-and-error",
        "refusal-cut-without-end",
    ] {
        let stream = golden(format, case);
        assert!(watch_in_pieces(format, true, &stream).0 == stream, "{case}");
    }
}

#[test]
fn a_usage_chunk_that_says_more_is_kept() {
    for data in [
        r#"{"choices":[],"usage":null}"#,
        r#"{"choices":[],"usage":3}"#,
        r#"{"choices":null,"usage":{}}"#,
        r#"{"usage":{"prompt_tokens":1}}"#,
        r#"{"choices":[{}],"usage":{"prompt_tokens":1}}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":1},"error":{"message":"no"}}"#,
    ] {
        let stream = format!("data: {data}\n\n");
        assert_eq!(watch(ApiFormat::OpenAiChat, true, &[stream.as_bytes()]).0, stream.as_bytes());
    }
}

#[test]
fn whole_events_are_not_held_back_while_stripping() {
    let mut watcher = StreamWatcher::new(ApiFormat::OpenAiChat, true);
    let chunk = Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"cho");
    let out = watcher.feed(chunk.clone());
    assert_eq!((out.as_ptr(), out.len()), (chunk.as_ptr(), chunk.len() - 11), "a slice, not a copy");
    assert!(watcher.seen().first_token);
    assert_eq!(watcher.feed(Bytes::from_static(b"ices\":[]")), "");
    assert_eq!(watcher.feed(Bytes::from_static(b"}\n\n: c\n\n")), "data: {\"choices\":[]}\n\n: c\n\n");
    assert_eq!(watcher.finish(), "");
}

#[test]
fn an_endless_event_is_let_go_and_the_watching_goes_on() {
    let mut watcher = StreamWatcher::new(ApiFormat::OpenAiChat, true);
    let mut forwarded = watcher.feed(Bytes::from_static(b"data: \"")).len();
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    for _ in 0..40 {
        forwarded += watcher.feed(piece.clone()).len();
    }
    assert_eq!(forwarded, 7 + (40 << 20));
    assert!(watcher.seen().malformed);
    watcher.feed(Bytes::from_static(b"\"\n\ndata: [DONE]\n\n"));
    assert!(watcher.seen().done);
}

#[test]
fn odd_fields_do_not_break_the_watching() {
    let cases: [(&str, Seen); 14] = [
        (r#"{"choices":"no","usage":[1],"x_groq":7,"error":false}"#, Seen::default()),
        (
            r#"{"usage":{"prompt_tokens":"12","completion_tokens":7.0,"total_tokens":-1}}"#,
            Seen { usage: usage([None, Some(7), None, None, None]), ..Seen::default() },
        ),
        (r#"{"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":7.5}}"#, Seen::default()),
        (
            r#"{"usage":{"prompt_tokens":99999999999999999999,"completion_tokens":3,"prompt_tokens_details":[]}}"#,
            Seen { usage: usage([None, Some(3), None, None, None]), ..Seen::default() },
        ),
        (
            r#"{"usage":{"prompt_tokens":1e400,"completion_tokens":3}}"#,
            Seen { usage: usage([None, Some(3), None, None, None]), ..Seen::default() },
        ),
        (r#"{"choices":[null,3,{"delta":null,"finish_reason":7},{"delta":[]}]}"#, Seen::default()),
        (
            r#"{"choices":[{"delta":{"role":"assistant","content":"","tool_calls":[],"audio":{"id":"a"}}}]}"#,
            Seen::default(),
        ),
        (r#"[1,"two"]"#, Seen::default()),
        (r#""ping""#, Seen::default()),
        // Half of a surrogate pair: a provider cut an emoji in two.
        (r#"{"choices":[{"delta":{"content":"\ud83e"}}]}"#, Seen { first_token: true, ..Seen::default() }),
        (
            r#"{"choices":[{"delta":{"content":[{"type":"text","text":"a"}]}}]}"#,
            Seen { first_token: true, ..Seen::default() },
        ),
        (
            r#"{"choices":[{"delta":{"audio":{"transcript":"a"}}}]}"#,
            Seen { first_token: true, ..Seen::default() },
        ),
        (
            r#"{"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}}"#,
            Seen { usage: usage([Some(2), None, None, None, None]), ..Seen::default() },
        ),
        (r#"{"choices":[}"#, Seen { malformed: true, ..Seen::default() }),
    ];
    for (data, expected) in cases {
        let stream = format!("data: {data}\n\n");
        assert_eq!(watch(ApiFormat::OpenAiChat, false, &[stream.as_bytes()]).1, expected, "{data}");
    }
}

#[test]
fn errors_in_a_stream_are_seen() {
    use ApiFormat::{Anthropic, OpenAiChat, OpenAiResponses};
    // The last part is the code of the error.
    let cases = [
        (OpenAiChat, r#"data: {"error":{"message":"m","type":"server_error","code":null}}"#, None),
        (
            OpenAiChat,
            r#"data: {"error":{"message":"m","type":"t","code":"rate_limit_exceeded"}}"#,
            Some("rate_limit_exceeded"),
        ),
        (OpenAiChat, r#"data: {"error":"Something went wrong, sorry"}"#, None),
        (OpenAiChat, r#"data: {"error":{"message":"m","code":500}}"#, Some("500")),
        (
            OpenAiChat,
            "event: error\ndata: {\"code\":\"over_capacity\",\"message\":\"m\"}",
            Some("over_capacity"),
        ),
        (OpenAiChat, r#"data: {"choices":[],"x_groq":{"error":"over_capacity"}}"#, None),
        (Anthropic, r#"data: {"type":"error","error":{"type":"api_error","message":"m"}}"#, None),
        (Anthropic, r#"data: {"type":"error"}"#, None),
        (
            OpenAiResponses,
            r#"data: {"type":"error","code":"server_error","message":"m","param":null}"#,
            Some("server_error"),
        ),
        (
            OpenAiResponses,
            r#"data: {"type":"response.failed","response":{"error":{"code":"server_error"}}}"#,
            Some("server_error"),
        ),
        (OpenAiResponses, r#"data: {"type":"response.failed","response":{}}"#, None),
    ];
    for (format, event, code) in cases {
        let mut watcher = StreamWatcher::new(format, true);
        watcher.feed(format!("{event}\n\n").into());
        assert!(watcher.seen().failed, "{event}");
        assert_eq!(watcher.failure().unwrap().code.as_deref(), code, "{event}");
    }
    for event in [
        r#"{"choices":[],"error":null}"#,
        r#"{"choices":[],"error":""}"#,
        r#"{"choices":[],"error":{ }}"#,
        r#"{"choices":[],"error":[1]}"#,
        r#"{"choices":[{"finish_reason":"stop","error":null}],"x_groq":{"error":null}}"#,
    ] {
        let mut watcher = StreamWatcher::new(OpenAiChat, true);
        watcher.feed(format!("data: {event}\n\n").into());
        assert!(!watcher.seen().failed && watcher.failure().is_none(), "{event}");
    }
}

// --- Arbitrary streams ----------------------------------------------------------------------------------------------

/// An event as a provider may frame it, and whether it is the usage chunk.
fn chat_event() -> impl Strategy<Value = (String, bool)> {
    let data = prop_oneof![
        4 => "(\\PC|[é🦀\u{200b}])*".prop_map(|text| {
            (format!(r#"{{"choices":[{{"delta":{{"content":{}}}}}]}}"#, Value::from(text)), false)
        }),
        1 => Just((r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}"#.to_owned(), false)),
        2 => (0..9u32).prop_map(|n| (format!(r#"{{"choices":[ ],"usage":{{"prompt_tokens":{n}}},"x":"é"}}"#), true)),
        1 => Just((r#"{"choices":[],"usage":null}"#.to_owned(), false)),
        1 => Just(("[DONE]".to_owned(), false)),
        1 => Just(("not json".to_owned(), false)),
        1 => Just((r#"{"error":{"code":"oops"}}"#.to_owned(), false)),
    ];
    let before = prop::sample::select(vec!["", "", ": ping\n", "event: x\nid: 1\n", ": ping\n\n"]);
    let space = prop::sample::select(vec![" ", ""]);
    let end = prop::sample::select(vec!["\n", "\r\n", "\r"]);
    (data, before, space, end).prop_map(|((data, usage), before, space, end)| {
        // A comment with a blank line of its own is an event of its own, which would be kept.
        let before = if usage { before.trim_end_matches("\n\n") } else { before };
        let before = if usage && before == ": ping" { "" } else { before };
        (format!("{before}data:{space}{data}\n\n").replace('\n', end), usage)
    })
}

fn cut<'a>(stream: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = places.iter().map(|place| place.index(stream.len() + 1)).collect();
    at.extend([0, stream.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect()
}

/// The strings and numbers of events that are otherwise alike.
const ALIKE: &[&str] =
    &["a", "b", "", "stop", "é🦀", "\\n", "\\u00e9", "\\ud83e", "\\x", "\\", "\"", "\t", "\",\"error\":\"x"];
const NUMBERS: &[&str] = &["1", "2", "30", "0", "01", "1.5", "-1", "1e3", "", "\"1\""];

proptest! {
    #[test]
    fn what_is_forwarded_is_the_stream_without_the_usage_chunks(
        events in prop::collection::vec(chat_event(), 0..12),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let format = ApiFormat::OpenAiChat;
        let stream: String = events.iter().map(|(event, _)| &**event).collect();
        let kept: String = events.iter().filter(|(_, usage)| !usage).map(|(event, _)| &**event).collect();
        let chunks = cut(stream.as_bytes(), &places);
        let (forwarded, seen) = watch(format, true, &chunks);
        prop_assert_eq!(String::from_utf8_lossy(&forwarded), kept);
        prop_assert_eq!(&seen, &watch(format, true, &[stream.as_bytes()]).1);
        let (forwarded, unstripped) = watch(format, false, &chunks);
        prop_assert_eq!(String::from_utf8_lossy(&forwarded), stream);
        prop_assert_eq!(unstripped, seen);
    }

    #[test]
    fn recognising_events_by_the_last_one_sees_what_reading_them_sees(
        format in prop::sample::select(ApiFormat::ALL),
        events in prop::collection::vec(
            (0..4usize, 0..4usize, prop::sample::select(ALIKE), prop::sample::select(ALIKE), prop::sample::select(NUMBERS)),
            1..30,
        ),
    ) {
        let frames = match format {
            ApiFormat::OpenAiChat => [
                r#"{"id":"i","created":N,"choices":[{"delta":{"content":"A"},"finish_reason":null}],"obfuscation":"B"}"#,
                r#"{"id":"i","created":N,"choices":[{"delta":{"reasoning":"A"},"finish_reason":"B"}]}"#,
                r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"A"}}]}}],"usage":{"prompt_tokens":N}}"#,
                r#"{"choices":[{"delta":{"content":"A"}}],"error":"B"}"#,
            ],
            ApiFormat::OpenAiResponses => [
                r#"{"type":"response.output_text.delta","sequence_number":N,"delta":"A","obfuscation":"B"}"#,
                r#"{"type":"response.B","sequence_number":N,"delta":"A"}"#,
                r#"{"sequence_number":N,"delta":"A","type":"response.completed","response":{"usage":{"output_tokens":N}}}"#,
                r#"{"sequence_number":N,"delta":"A","type":"error","code":"B"}"#,
            ],
            ApiFormat::Anthropic => [
                r#"{"type":"content_block_delta","index":N,"delta":{"type":"text_delta","text":"A"}}"#,
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"B","thinking":"A"}}"#,
                r#"{"type":"message_delta","delta":{"text":"A","stop_reason":"B"},"usage":{"output_tokens":N}}"#,
                r#"{"type":"error","delta":"A","error":{"type":"B"}}"#,
            ],
        };
        let stream: String = events
            .into_iter()
            .map(|(frame, name, a, b, n)| {
                // Most events are alike.
                let data = frames[if frame > 1 { 0 } else { name }].replace('N', n).replace('A', a).replace('B', b);
                let name = if frame == 1 && name == 1 { "event: error\n" } else { "" };
                format!("{name}data: {data}\n\n")
            })
            .collect();
        let mut reading = StreamWatcher::new(format, true);
        reading.reader.template.give_up();
        let forwarded = reading.feed(Bytes::from(stream.clone()));
        prop_assert_eq!(watch(format, true, &[stream.as_bytes()]), (forwarded.to_vec(), reading.seen().clone()));
    }

    #[test]
    fn golden_streams_are_understood_wherever_they_are_cut(
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        for (format, case) in [
            (ApiFormat::OpenAiChat, "filter-results-first-crlf"),
            (ApiFormat::Anthropic, "thinking-then-tool"),
            (ApiFormat::OpenAiResponses, "text"),
        ] {
            let stream = golden(format, case);
            prop_assert_eq!(watch(format, true, &cut(&stream, &places)), watch(format, true, &[&stream]));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        stream in prop::collection::vec(any::<u8>(), 0..300),
        json in "[\\[\\]{}\",:0-9eE.+\\\\a-z\r\n -]{0,200}",
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        for format in ApiFormat::ALL.iter().copied() {
            for stream in [&stream[..], format!("data: {json}\n\n").as_bytes()] {
                let (forwarded, seen) = watch(format, false, &cut(stream, &places));
                prop_assert_eq!(&forwarded, stream);
                prop_assert_eq!(seen, watch(format, true, &[stream]).1);
            }
            let _ = observe_answer(Call::Completion(format), &stream);
            let _ = observe_answer(Call::Completion(format), json.as_bytes());
        }
    }
}

#[test]
fn a_chat_is_complete_when_every_choice_that_began_is() {
    let choice = |index: u64, reason: Option<&str>| {
        let reason = reason.map_or("null".to_owned(), |reason| format!("\"{reason}\""));
        Bytes::from(format!(
            "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":\"a\"}},\"finish_reason\":{reason}}}]}}\n\n"
        ))
    };
    let mut watcher = StreamWatcher::new(ApiFormat::OpenAiChat, false);
    let mut after = |event: Bytes| {
        watcher.feed(event);
        watcher.seen().terminal
    };
    assert!(!after(choice(0, None)));
    assert!(!after(choice(1, None)));
    assert!(!after(choice(0, Some("stop"))), "the other one goes on");
    assert!(!after(choice(1, None)));
    assert!(after(choice(1, Some("length"))));
    assert!(!after(choice(2, None)), "one that begins late");
    assert!(after(Bytes::from_static(b"data: [DONE]\n\n")));
}

#[test]
fn the_first_choice_tells_why_a_chat_finished() {
    use FinishReason::{ContentFilter, Length, Stop};
    // (index, reason), as they arrive
    type Choices = &'static [(u64, &'static str)];
    let cases: [(Choices, Option<FinishReason>); 5] = [
        (&[(0, "stop"), (1, "length")], Some(Stop)),
        (&[(1, "length"), (0, "stop"), (2, "content_filter")], Some(Stop)),
        (&[(1, "length"), (0, ""), (2, "content_filter")], Some(Length)),
        (&[(2, "content_filter"), (0, "")], Some(ContentFilter)),
        (&[(0, ""), (1, "")], None),
    ];
    for (choices, expected) in cases {
        let written: Vec<String> = (choices.iter())
            .map(|(index, reason)| {
                format!(r#"{{"index":{index},"delta":{{"content":"a"}},"finish_reason":"{reason}"}}"#)
            })
            .collect();
        let mut watcher = StreamWatcher::new(ApiFormat::OpenAiChat, false);
        for choice in &written {
            watcher.feed(format!("data: {{\"choices\":[{choice}]}}\n\n").into());
        }
        let whole = format!("{{\"choices\":[{}]}}", written.join(","));
        let whole = observe_answer(Call::Completion(ApiFormat::OpenAiChat), whole.as_bytes()).unwrap();
        assert_eq!((watcher.seen().finish_reason, whole.finish_reason), (expected, expected), "{choices:?}");
    }
}

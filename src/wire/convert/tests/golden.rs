//! The documents of `tests/golden`: each conversion compared with the reviewed, checked-in result.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

use super::{grammar, options};
use crate::domain::label::ApiFormat;
use crate::domain::record::Call;
use crate::wire::convert::{
    AnswerContext, RequestOptions, StreamConverter, convert_answer, convert_error, convert_request,
};
use crate::wire::head::{Edit, RequestHead};
use crate::wire::sse::SseScanner;
use crate::wire::watch::StreamWatcher;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The folders of the cases of one kind and format, in order.
fn cases(kind: &str, format: ApiFormat) -> Vec<PathBuf> {
    let folder = folder().join(kind).join(format.as_str());
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn read(path: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Compares with the file, or writes it when `UPDATE_GOLDEN` is set; adds differences to `wrong`.
fn compare(path: &Path, actual: &str, wrong: &mut String) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, actual).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected == actual {
        return;
    }
    let (mut old, mut new) = (expected.lines(), actual.lines());
    let differs = (1..).map(|line| (line, old.next(), new.next())).find(|(_, old, new)| old != new);
    if let Some((line, old, new)) = differs {
        let (old, new) = (old.unwrap_or("the end"), new.unwrap_or("the end"));
        let _ = writeln!(wrong, "{}:{line}\n- {old}\n+ {new}", path.display());
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

fn remote_model(case: &Path, provider: ApiFormat) -> String {
    let models = read(&case.join("models.json")).unwrap_or_default();
    let usual = if provider == ApiFormat::Anthropic { "claude-sonnet-4-5" } else { "gpt-4.1" };
    models[provider.as_str()].as_str().unwrap_or(usual).to_owned()
}

#[test]
fn requests() {
    let mut wrong = String::new();
    for client in ApiFormat::ALL.iter().copied() {
        for case in cases("requests", client) {
            let body = std::fs::read(case.join("request.json")).unwrap();
            for provider in ApiFormat::ALL.iter().copied() {
                let model = remote_model(&case, provider);
                if client == provider {
                    passed_through(client, &body, &model);
                } else {
                    let path = case.join(format!("to-{}.json", provider.as_str()));
                    compare(&path, &pretty(&converted_request(client, provider, &body, &model)), &mut wrong);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn converted_request(client: ApiFormat, provider: ApiFormat, body: &[u8], model: &str) -> Value {
    let asked: Value = serde_json::from_slice(body).unwrap();
    let stream = asked["stream"] == true;
    let options = RequestOptions { stream, ask_usage: stream, ..options(model) };
    match convert_request(client, provider, body, &options) {
        Ok(rendered) => {
            let body: Value = serde_json::from_slice(&rendered.body).unwrap();
            json!({ "dropped": rendered.dropped, "body": body })
        }
        Err(error) => json!({ "error": error.to_string(), "param": error.param() }),
    }
}

/// Within one format only the model's name and the usage option change.
fn passed_through(format: ApiFormat, body: &[u8], model: &str) {
    let head = RequestHead::parse(Call::Completion(format), &Bytes::copy_from_slice(body)).unwrap();
    let ask_usage = format == ApiFormat::OpenAiChat && head.stream == Some(true);
    let sent = head.rewrite(&Edit { model: Some(model), stream: None, ask_usage });
    let mut expected: Value = serde_json::from_slice(body).unwrap();
    expected["model"] = model.into();
    if ask_usage {
        expected["stream_options"] = json!({ "include_usage": true });
    }
    assert_eq!(serde_json::from_slice::<Value>(&sent).unwrap(), expected);
}

fn asked(client: ApiFormat) -> AnswerContext {
    let request = std::fs::read(folder().join(format!("answers/asked.{}.json", client.as_str()))).unwrap();
    AnswerContext::new(client, &request, "my-model", "0193a5b0c0de7000", 1_700_000_000)
}

#[test]
fn answers() {
    let mut wrong = String::new();
    for provider in ApiFormat::ALL.iter().copied() {
        for case in cases("answers", provider) {
            for client in ApiFormat::ALL.iter().copied().filter(|client| *client != provider) {
                let path = case.join(format!("to-{}.json", client.as_str()));
                if let Ok(body) = std::fs::read(case.join("answer.json")) {
                    let answer = match convert_answer(provider, client, &body, &asked(client)) {
                        Ok(answer) => serde_json::from_slice(&answer).unwrap(),
                        Err(error) => json!({ "error": error.to_string() }),
                    };
                    compare(&path, &pretty(&answer), &mut wrong);
                }
                let Ok(stream) = std::fs::read(case.join("answer.sse")) else { continue };
                let converted = converted_stream(provider, client, &stream);
                compare(&path.with_extension("sse"), &converted, &mut wrong);
                grammar::check(client, &converted).unwrap_or_else(|error| {
                    panic!("{}: {error}\n{converted}", path.with_extension("sse").display())
                });
                let plain = |text: &str| {
                    text.lines().filter(|line| !line.starts_with(':')).collect::<Vec<_>>().join("\n")
                };
                for size in [1, 7, stream.len()] {
                    let pieces = in_pieces(provider, client, stream.chunks(size));
                    assert_eq!(pieces.trim_end(), plain(&converted).trim_end(), "in pieces of {size}");
                }
            }
            if let Ok(stream) = std::fs::read(case.join("answer.sse")) {
                let mut watcher = StreamWatcher::new(provider, false);
                assert_eq!(&watcher.feed(Bytes::copy_from_slice(&stream))[..], &stream[..], "passed through");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The converted stream, with a comment before the immediate output of each provider event.
fn converted_stream(provider: ApiFormat, client: ApiFormat, stream: &[u8]) -> String {
    let mut converter = StreamConverter::new(provider, client, asked(client));
    let mut scanner = SseScanner::new();
    let mut out = BytesMut::new();
    let mut written = String::new();
    let mut position = 0;
    let mut note = |what: &str, out: &mut BytesMut| {
        if !out.is_empty() {
            let _ = write!(written, ": {what}\n{}", String::from_utf8(out.split().to_vec()).unwrap());
        }
    };
    scanner
        .feed(stream, |event| {
            position += 1;
            converter.feed(event.event, event.data, &mut out);
            note(&position.to_string(), &mut out);
        })
        .unwrap();
    converter.finish(&mut out);
    note("end", &mut out);
    assert!(converter.is_done());
    written
}

fn in_pieces<'a>(provider: ApiFormat, client: ApiFormat, pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let mut converter = StreamConverter::new(provider, client, asked(client));
    let mut scanner = SseScanner::new();
    let mut out = BytesMut::new();
    for piece in pieces {
        scanner.feed(piece, |event| converter.feed(event.event, event.data, &mut out)).unwrap();
    }
    scanner.finish(|event| converter.feed(event.event, event.data, &mut out));
    converter.finish(&mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn errors() {
    let mut wrong = String::new();
    for provider in ApiFormat::ALL.iter().copied() {
        for case in cases("errors", provider) {
            let given = read(&case.join("error.json")).unwrap();
            let status = u16::try_from(given["status"].as_u64().unwrap()).unwrap();
            let body = given["body"].to_string();
            for client in ApiFormat::ALL.iter().copied().filter(|client| *client != provider) {
                let converted = convert_error(client.into(), status, body.as_bytes());
                let converted: Value = serde_json::from_slice(&converted).unwrap();
                compare(&case.join(format!("to-{}.json", client.as_str())), &pretty(&converted), &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_pair_of_formats_has_every_kind_of_case() {
    let named = |kind: &str, format: ApiFormat, case: &str, file: &str| {
        let path = folder().join(kind).join(format.as_str()).join(case).join(file);
        assert!(path.is_file(), "{}", path.display());
    };
    for format in ApiFormat::ALL.iter().copied() {
        for case in ["text", "parallel-tools", "images", "reasoning", "refusal", "structured-output"] {
            named("requests", format, case, "request.json");
        }
        for case in ["text", "parallel-tools", "reasoning", "refusal", "length"] {
            named("answers", format, case, "answer.json");
            named("answers", format, case, "answer.sse");
        }
        for case in ["error-in-the-middle", "cut"] {
            named("answers", format, case, "answer.sse");
        }
    }
}

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const CHAT: Call = Call::Completion(ApiFormat::OpenAiChat);
const RESPONSES: Call = Call::Completion(ApiFormat::OpenAiResponses);
const ANTHROPIC: Call = Call::Completion(ApiFormat::Anthropic);

fn parse(call: Call, body: &str) -> Result<RequestHead, HeadError> {
    RequestHead::parse(call, &Bytes::copy_from_slice(body.as_bytes()))
}

fn rewrite(body: &str, edit: &Edit<'_>) -> String {
    String::from_utf8(parse(CHAT, body).unwrap().rewrite(edit).to_vec()).unwrap()
}

fn edit(model: Option<&str>, stream: Option<bool>, ask_usage: bool) -> Edit<'_> {
    Edit { model, stream, ask_usage }
}

#[test]
fn the_head_is_read_past_everything_else() {
    let body = r#" { "messages": [{"model": "no", "stream": 1}], "mod\u0065l" : "gpt-\u00e9/🦀", "x": {"stream": "no"},
        "stream": true, "stream_options": {"include_usage" : true, "y": []}, "lone": "\ud83e" } "#;
    let head = parse(CHAT, body).unwrap();
    assert_eq!((&*head.model, head.stream, head.include_usage), ("gpt-é/🦀", Some(true), true));

    let head = parse(CHAT, r#"{"model":"m"}"#).unwrap();
    assert_eq!((head.stream, head.include_usage), (None, false));
    let head = parse(CHAT, r#"{"model":"m","stream":null,"stream_options":null}"#).unwrap();
    assert_eq!((head.stream, head.include_usage), (None, false));
    let head =
        parse(CHAT, r#"{"model":"m","stream":false,"stream_options":{"include_usage":null}}"#).unwrap();
    assert_eq!((head.stream, head.include_usage), (Some(false), false));
}

#[test]
fn what_a_format_does_not_have_is_not_looked_at() {
    for call in [RESPONSES, ANTHROPIC, Call::Embedding] {
        assert!(!parse(call, r#"{"model":"m","stream_options":[]}"#).unwrap().include_usage);
    }
    assert_eq!(parse(Call::Embedding, r#"{"model":"m","stream":"yes"}"#).unwrap().stream, None);
    assert_eq!(parse(ANTHROPIC, r#"{"model":"m","stream":true}"#).unwrap().stream, Some(true));
}

#[test]
fn nesting_is_as_deep_as_the_client_likes() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    assert_eq!(parse(CHAT, &format!(r#"{{"x":{deep},"model":"m"}}"#)).unwrap().model, "m");
}

#[test]
fn what_cannot_be_routed_is_refused_in_a_sentence() {
    let cases = [
        (r#"{}"#, "`model` is missing in the request body."),
        (r#"{"model":null}"#, "`model` must be a string that is not empty."),
        (r#"{"model":5}"#, "`model` must be a string that is not empty."),
        (r#"{"model":""}"#, "`model` must be a string that is not empty."),
        (r#"{"model":"\ud800"}"#, "`model` must be a string that is not empty."),
        (r#"{"model":"m","stream":"true"}"#, "`stream` must be true or false."),
        (r#"{"model":"m","stream":1}"#, "`stream` must be true or false."),
        (r#"{"model":"m","stream_options":true}"#, "`stream_options` must be an object."),
        (r#"{"model":"m","stream_options":[]}"#, "`stream_options` must be an object."),
        (
            r#"{"model":"m","stream_options":{"include_usage":"yes"}}"#,
            "`stream_options.include_usage` must be true or false.",
        ),
        (r#"{"model":"m","x":1,"model":"m"}"#, "`model` is given more than once in the request body."),
        (r#"{"model":"m","mod\u0065l":"n"}"#, "`model` is given more than once in the request body."),
        (
            r#"{"model":"m","stream":true,"stream":true}"#,
            "`stream` is given more than once in the request body.",
        ),
        (
            r#"{"model":"m","stream_options":{"include_usage":true,"include_usage":false}}"#,
            "`stream_options.include_usage` is given more than once in the request body.",
        ),
        ("[]", "The request body must be a JSON object."),
        ("\"m\"", "The request body must be a JSON object."),
        ("null", "The request body must be a JSON object."),
        ("", "The request body is not valid JSON: EOF while parsing a value at line 1 column 0."),
        (
            "{\"model\":\"m\",\n  \"x\": nope}",
            "The request body is not valid JSON: expected ident at line 2 column 9.",
        ),
        (
            r#"{"model":"m"} {"model":"m"}"#,
            "The request body is not valid JSON: trailing characters at line 1 column 15.",
        ),
    ];
    for (body, message) in cases {
        let error = parse(CHAT, body).unwrap_err();
        assert_eq!(error.to_string(), message, "{body}");
    }
    let error = RequestHead::parse(CHAT, &Bytes::from_static(b"{\"model\":\"\xff\"}")).unwrap_err();
    assert!(matches!(error, HeadError::NotJson(_)), "{error}");
    assert_eq!(parse(CHAT, "{}").unwrap_err().param(), Some("model"));
    assert_eq!(parse(CHAT, "[]").unwrap_err().param(), None);
}

#[test]
fn only_the_edited_bytes_change() {
    let body = "{ \"model\" :\t\"a\\u0062\", \"temperature\": 1.0e0 ,\"model2\":\"a\" }\n";
    assert_eq!(rewrite(body, &edit(Some("x\"é"), None, false)), body.replace("\"a\\u0062\"", "\"x\\\"é\""));
    assert_eq!(
        rewrite(body, &edit(None, Some(true), true)),
        body.replacen('{', "{\"stream\":true,\"stream_options\":{\"include_usage\":true},", 1)
    );
    for (from, to) in [
        ("null", r#"{"include_usage":true}"#),
        ("{}", r#"{"include_usage":true}"#),
        ("{ }", r#"{"include_usage":true }"#),
        (r#"{ "a" : 1 }"#, r#"{"include_usage":true, "a" : 1 }"#),
        (r#"{"a":1, "include_usage" : false, "b":2}"#, r#"{"a":1, "include_usage" : true, "b":2}"#),
        (r#"{"include_usage":null}"#, r#"{"include_usage":true}"#),
    ] {
        let body = |options| format!(r#"{{"stream_options":{options} ,"stream": true,"model":"m"}}"#);
        assert_eq!(rewrite(&body(from), &edit(None, Some(true), true)), body(to));
    }
}

#[test]
fn a_body_that_stays_is_not_copied() {
    let body = Bytes::from_static(br#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#);
    let head = RequestHead::parse(CHAT, &body).unwrap();
    for edit in [Edit::default(), edit(Some("m"), Some(true), true)] {
        assert_eq!(head.rewrite(&edit).as_ptr(), body.as_ptr());
    }
}

/// Any JSON, with the relevant names at every depth.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any_key(), inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_text() -> impl Strategy<Value = String> {
    "[\\PC\"\\\\\n\t\u{1}🦀é]{0,12}"
}

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec!["model", "stream", "stream_options", "include_usage"])
            .prop_map(str::to_owned),
        any_text(),
    ]
}

/// A body with a valid head, its members in any order.
fn any_body() -> impl Strategy<Value = Value> {
    let switch = || prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from)];
    let others = || prop::collection::vec((any_key(), any_json()), 0..5);
    let options = (prop::option::of(switch()), others()).prop_map(|(include_usage, others)| {
        let mut options: Map<String, Value> = others.into_iter().collect();
        options.remove("include_usage");
        options.extend(include_usage.map(|value| ("include_usage".to_owned(), value)));
        Value::Object(options)
    });
    let options = prop_oneof![1 => Just(Value::Null), 4 => options];
    (
        any_text(),
        prop::option::of(switch()),
        prop::option::of(options),
        others(),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(model, stream, options, others, place)| {
            let mut members: Map<String, Value> = others.into_iter().collect();
            for name in ["model", "stream", "stream_options"] {
                members.remove(name);
            }
            let head = [
                ("model", Some(Value::from(format!("m{model}")))),
                ("stream", stream),
                ("stream_options", options),
            ];
            for (name, value) in head {
                if let Some(value) = value {
                    members.shift_insert(place.index(members.len() + 1), name.to_owned(), value);
                }
            }
            Value::Object(members)
        })
}

/// `value` as JSON, with white space and escapes chosen by `whims`.
fn render(value: &Value, whims: &mut impl Iterator<Item = u8>, out: &mut String) {
    let space = |whims: &mut dyn Iterator<Item = u8>, out: &mut String| {
        out.push_str(["", "", "", " ", "\n", "\t", "\r\n", "  "][usize::from(whims.next().unwrap_or(0) % 8)]);
    };
    match value {
        Value::String(text) => {
            out.push('"');
            for c in text.chars() {
                if whims.next().unwrap_or(0).is_multiple_of(4) {
                    let mut units = [0; 2];
                    out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04X}")));
                } else {
                    let quoted = Value::from(c.to_string()).to_string();
                    out.push_str(&quoted[1..quoted.len() - 1]);
                }
            }
            out.push('"');
        }
        Value::Array(items) => {
            out.push('[');
            for (n, item) in items.iter().enumerate() {
                out.push_str(if n == 0 { "" } else { "," });
                space(whims, out);
                render(item, whims, out);
                space(whims, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            space(whims, out);
            for (n, (name, item)) in members.iter().enumerate() {
                out.push_str(if n == 0 { "" } else { "," });
                space(whims, out);
                render(&Value::from(name.as_str()), whims, out);
                space(whims, out);
                out.push(':');
                space(whims, out);
                render(item, whims, out);
                space(whims, out);
            }
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

proptest! {
    #[test]
    fn rewriting_equals_editing_the_value(
        body in any_body(),
        whims in prop::collection::vec(any::<u8>(), 1..64),
        model in prop::option::of(any_text()),
        stream in prop::option::of(any::<bool>()),
        ask_usage: bool,
    ) {
        let mut text = String::new();
        let mut whims = whims.into_iter().cycle();
        render(&body, &mut whims, &mut text);
        let head = parse(CHAT, &text).unwrap();
        prop_assert_eq!(&head.model, body["model"].as_str().unwrap());
        prop_assert_eq!(head.stream, body.get("stream").and_then(Value::as_bool));
        let asked = body.pointer("/stream_options/include_usage").and_then(Value::as_bool);
        prop_assert_eq!(head.include_usage, asked == Some(true));

        let rewritten = head.rewrite(&Edit { model: model.as_deref(), stream, ask_usage });
        let mut edited = body;
        if let Some(model) = model {
            edited["model"] = json!(model);
        }
        if let Some(stream) = stream {
            edited["stream"] = json!(stream);
        }
        if ask_usage {
            edited["stream_options"]["include_usage"] = json!(true);
        }
        prop_assert_eq!(serde_json::from_slice::<Value>(&rewritten).unwrap(), edited);
    }

    #[test]
    fn no_bytes_make_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..100),
        json in "\\{(\"(model|stream|stream_options|include_usage)\"|[\\[\\]{}:, ]|null|true|\"m\"){0,20}\\}?",
    ) {
        for call in [CHAT, RESPONSES, ANTHROPIC, Call::Embedding] {
            for body in [Bytes::from(bytes.clone()), Bytes::from(json.clone())] {
                if let Ok(head) = RequestHead::parse(call, &body) {
                    let rewritten = head.rewrite(&edit(Some("other"), Some(true), call == CHAT));
                    prop_assert!(serde_json::from_slice::<Value>(&rewritten).is_ok());
                }
            }
        }
    }
}

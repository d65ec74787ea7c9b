//! Arbitrary conversations that a format can express.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::domain::chat::{
    ChatAnswer, ChatRequest, Effort, Image, Media, Message, OutputFormat, Part, Reasoning, ReasoningConfig,
    Role, Seal, StopReason, ToolCall, ToolChoice, ToolDef, ToolKind, ToolResult, Upload,
};
use crate::domain::label::ApiFormat::{self, Anthropic, OpenAiChat, OpenAiResponses};
use crate::domain::usage::Usage;

/// Text of every kind, never empty.
pub(super) fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9 ,.\"\\\\{}\\n\\r\\t]{1,40}",
        "\\PC{1,20}",
        Just("data: [DONE]\n\n\u{2028}\u{0}😀".to_owned()),
    ]
    .prop_filter("not empty", |text| !text.is_empty())
}

fn word() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_-]{1,20}"
}

fn base64_data() -> impl Strategy<Value = String> {
    vec(any::<u8>(), 0..20).prop_map(|bytes| STANDARD.encode(bytes))
}

/// A JSON value that survives text: no floats.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((word(), inner), 0..4).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn arguments() -> impl Strategy<Value = String> {
    vec((word(), json_value()), 0..4)
        .prop_map(|fields| Value::Object(fields.into_iter().collect()).to_string())
}

fn call(format: ApiFormat, id: String) -> impl Strategy<Value = ToolCall> {
    let function = (word(), arguments()).prop_map(|(name, arguments)| (name, arguments, ToolKind::Function));
    let call = match format {
        Anthropic => function.boxed(),
        OpenAiChat | OpenAiResponses => {
            let custom = (word(), text()).prop_map(|(name, text)| (name, text, ToolKind::Custom));
            prop_oneof![3 => function, 1 => custom].boxed()
        }
    };
    call.prop_map(move |(name, arguments, kind)| ToolCall { id: id.clone(), name, arguments, kind })
}

/// Reasoning as a request in `format` may return it to its provider.
fn own_reasoning(format: ApiFormat) -> BoxedStrategy<Reasoning> {
    let signed = |seal: Seal| move |text: String| Reasoning { text, seal: Some(seal.clone()) };
    match format {
        OpenAiChat => text().prop_map(|text| Reasoning { text, seal: None }).boxed(),
        OpenAiResponses => word()
            .prop_flat_map(move |id| {
                let seal = Seal::OpenAi { id: format!("rs_{id}"), encrypted: Some("enc.rypted".into()) };
                prop_oneof![text(), Just(String::new())].prop_map(signed(seal))
            })
            .boxed(),
        Anthropic => prop_oneof![
            text().prop_map(signed(Seal::Anthropic { signature: "sig==".into() })),
            Just(Reasoning {
                text: String::new(),
                seal: Some(Seal::AnthropicRedacted { data: "d==".into() })
            }),
        ]
        .boxed(),
    }
}

fn image(format: ApiFormat) -> impl Strategy<Value = Part> {
    let source = prop_oneof![
        word().prop_map(|path| Media::Url(format!("https://example.com/{path}.png"))),
        base64_data().prop_map(|data| Media::Inline { media_type: "image/png".into(), data }),
    ];
    let detail =
        if format == Anthropic { Just(None).boxed() } else { option::of(Just("low".to_owned())).boxed() };
    (source, detail).prop_map(|(source, detail)| Part::Image(Image { source, detail }))
}

fn file(format: ApiFormat) -> impl Strategy<Value = Part> {
    let inline = base64_data().prop_map(|data| {
        (Media::Inline { media_type: "application/pdf".into(), data }, Some("a.pdf".into()))
    });
    let url = word().prop_map(|path| (Media::Url(format!("https://example.com/{path}.pdf")), None));
    let plain = text().prop_map(|text| {
        (Media::Inline { media_type: "text/plain".into(), data: STANDARD.encode(text) }, Some("a.txt".into()))
    });
    let id = word().prop_map(|id| (Media::Id(id), None));
    let source = match format {
        OpenAiChat => prop_oneof![inline, plain, id].boxed(),
        OpenAiResponses => prop_oneof![inline, plain, url, id].boxed(),
        Anthropic => prop_oneof![inline, plain, url].boxed(),
    };
    source.prop_map(|(source, name)| Part::File(Upload { source, name }))
}

fn user_part(format: ApiFormat) -> BoxedStrategy<Part> {
    let audio = base64_data().prop_map(|data| Part::Audio { data, format: "wav".into() });
    let common = prop_oneof![3 => text().prop_map(Part::Text), 1 => image(format), 1 => file(format)];
    if format == OpenAiChat { prop_oneof![5 => common, 1 => audio].boxed() } else { common.boxed() }
}

/// An assistant's earlier turn, and the results of its calls, if any.
fn exchange(format: ApiFormat) -> impl Strategy<Value = Vec<Message>> {
    let said = match format {
        OpenAiChat => vec(text().prop_map(Part::Text), 0..3).boxed(),
        OpenAiResponses => {
            vec(prop_oneof![3 => text().prop_map(Part::Text), 1 => text().prop_map(Part::Refusal)], 0..3)
                .boxed()
        }
        Anthropic => vec(text().prop_map(Part::Text), 0..3).boxed(),
    };
    let calls = (0_usize..3).prop_flat_map(move |count| {
        (0..count).map(|n| call(format, format!("call_{n}"))).collect::<Vec<_>>()
    });
    let results = vec((result_content(format), any::<bool>()), 3);
    (option::of(own_reasoning(format)), said, calls, results, text()).prop_map(
        move |(reasoning, said, calls, results, last)| {
            let mut parts: Vec<Part> = reasoning.map(Part::Reasoning).into_iter().chain(said).collect();
            parts.extend(calls.iter().cloned().map(Part::ToolCall));
            if parts.is_empty() {
                parts.push(Part::Text(last));
            }
            let results: Vec<Part> = calls
                .into_iter()
                .zip(results)
                .map(|(call, (content, is_error))| {
                    let is_error = is_error && format == Anthropic;
                    Part::ToolResult(ToolResult { call_id: call.id, content, is_error })
                })
                .collect();
            let mut messages = vec![Message::new(Role::Assistant, parts)];
            if !results.is_empty() {
                messages.push(Message::new(Role::Tool, results));
            }
            messages
        },
    )
}

fn result_content(format: ApiFormat) -> BoxedStrategy<Vec<Part>> {
    match format {
        OpenAiChat => vec(text().prop_map(Part::Text), 0..3).boxed(),
        OpenAiResponses | Anthropic => {
            vec(prop_oneof![text().prop_map(Part::Text), image(format)], 0..3).boxed()
        }
    }
}

fn messages(format: ApiFormat) -> impl Strategy<Value = Vec<Message>> {
    let role = match format {
        Anthropic => Just(Role::System).boxed(),
        OpenAiChat | OpenAiResponses => prop_oneof![Just(Role::System), Just(Role::Developer)].boxed(),
    };
    let instructions = option::of((role, vec(text().prop_map(Part::Text), 1..3))).prop_map(|message| {
        message.into_iter().map(|(role, parts)| Message::new(role, parts)).collect::<Vec<_>>()
    });
    let name = if format == OpenAiChat { option::of(word()).boxed() } else { Just(None).boxed() };
    let user = (vec(user_part(format), 1..4), name)
        .prop_map(|(parts, name)| vec![Message { role: Role::User, parts, name }]);
    let turn = (user, exchange(format)).prop_map(|(user, exchange)| [user, exchange].concat());
    (instructions, vec(turn, 1..4)).prop_map(|(first, turns)| [first, turns.concat()].concat())
}

fn tools(format: ApiFormat) -> impl Strategy<Value = Vec<ToolDef>> {
    let schema = vec((word(), json_value()), 0..3).prop_map(|properties| {
        let properties: serde_json::Map<String, Value> = properties.into_iter().collect();
        json!({"type": "object", "properties": properties})
    });
    // Responses is strict by default and says so explicitly.
    let strict = if format == OpenAiResponses {
        any::<bool>().prop_map(Some).boxed()
    } else {
        option::of(any::<bool>()).boxed()
    };
    let function = (option::of(text()), schema, strict)
        .prop_map(|(description, schema, strict)| (description, Some(schema), strict));
    let grammar = json!({"type": "grammar", "syntax": "lark", "definition": "start: \"a\""});
    let custom = (option::of(text()), option::of(Just(grammar)));
    let tool = match format {
        Anthropic => function.prop_map(Ok).boxed(),
        OpenAiChat | OpenAiResponses => {
            prop_oneof![3 => function.prop_map(Ok), 1 => custom.prop_map(Err)].boxed()
        }
    };
    vec(tool, 0..3).prop_map(|tools| {
        let named = tools.into_iter().enumerate().map(|(n, tool)| {
            let name = format!("tool_{n}");
            match tool {
                Ok((description, parameters, strict)) => {
                    ToolDef::Function { name, description, parameters, strict }
                }
                Err((description, format)) => ToolDef::Custom { name, description, format },
            }
        });
        named.collect()
    })
}

fn tool_choice(format: ApiFormat) -> BoxedStrategy<ToolChoice> {
    let common = prop_oneof![
        Just(ToolChoice::Auto),
        Just(ToolChoice::None),
        Just(ToolChoice::Required),
        Just(ToolChoice::Named("tool_0".into())),
    ];
    let allowed =
        any::<bool>().prop_map(|required| ToolChoice::Allowed { required, names: vec!["tool_0".into()] });
    if format == Anthropic { common.boxed() } else { prop_oneof![4 => common, 1 => allowed].boxed() }
}

fn output_format(format: ApiFormat) -> BoxedStrategy<OutputFormat> {
    let schema = || {
        json_value().prop_map(|value| {
            json!({
                "type": "object", "properties": {"a": {"const": value}}, "required": ["a"],
                "additionalProperties": false,
            })
        })
    };
    let named = (word(), option::of(text()), schema(), option::of(any::<bool>())).prop_map(
        |(name, description, schema, strict)| OutputFormat::JsonSchema {
            name: Some(name),
            description,
            schema,
            strict,
        },
    );
    match format {
        Anthropic => schema()
            .prop_filter("enforceable", super::super::schema::can_be_strict)
            .prop_map(|schema| OutputFormat::JsonSchema {
                name: None,
                description: None,
                schema,
                strict: Some(true),
            })
            .boxed(),
        OpenAiChat | OpenAiResponses => {
            prop_oneof![Just(OutputFormat::Text), Just(OutputFormat::JsonObject), named].boxed()
        }
    }
}

fn reasoning_config(format: ApiFormat) -> BoxedStrategy<ReasoningConfig> {
    let effort = |efforts: &'static [Effort]| prop::sample::select(efforts);
    let off = ReasoningConfig { effort: Some(Effort::Off), ..ReasoningConfig::default() };
    match format {
        OpenAiChat => effort(Effort::ALL)
            .prop_map(|effort| ReasoningConfig { effort: Some(effort), ..ReasoningConfig::default() })
            .boxed(),
        OpenAiResponses => (effort(&Effort::ALL[1..]), any::<bool>())
            .prop_map(|(effort, visible)| ReasoningConfig {
                effort: Some(effort),
                budget_tokens: None,
                visible: Some(visible),
            })
            .boxed(),
        // As an adaptive model expresses it.
        Anthropic => prop_oneof![
            1 => Just(off),
            3 => (option::of(effort(&Effort::ALL[2..])), any::<bool>()).prop_map(|(effort, visible)| {
                ReasoningConfig { effort, budget_tokens: None, visible: Some(visible) }
            }),
        ]
        .boxed(),
    }
}

/// A request that `format` can express completely, for the model named by [`model_for`].
pub(super) fn request(format: ApiFormat) -> impl Strategy<Value = ChatRequest> {
    let openai = format != Anthropic;
    let some = move |wanted: bool| prop::bool::weighted(if wanted { 0.5 } else { 0.0 });
    let numbers = (0.0_f64..1.0, 0.0_f64..1.0, -2.0_f64..2.0, any::<i64>(), 1_u64..100_000);
    let chosen =
        (some(openai), some(openai), some(format == OpenAiChat), some(format == OpenAiChat), some(openai));
    let stop = if format == OpenAiResponses { Just(Vec::new()).boxed() } else { vec(text(), 0..3).boxed() };
    let verbosity = if openai { option::of(Just("low".to_owned())).boxed() } else { Just(None).boxed() };
    let tier = prop_oneof![Just(None), Just(Some("auto".to_owned())), Just(Some("default".to_owned()))];
    let tools = (tools(format), option::of(tool_choice(format)), option::of(any::<bool>()));
    let rest = (
        stop,
        option::of(output_format(format)),
        verbosity,
        option::of(reasoning_config(format)),
        option::of(word()),
        tier,
    );
    (messages(format), tools, numbers, chosen, rest).prop_map(
        move |(messages, (tools, choice, parallel), numbers, chosen, rest)| {
            let (temperature, top_p, penalty, seed, max_tokens) = numbers;
            let (stop, format_, verbosity, reasoning, user, service_tier) = rest;
            // Fields that depend on tools, or contradict others, are left out.
            let choice = choice.filter(|_| !tools.is_empty());
            let forced = matches!(choice, Some(ToolChoice::Required | ToolChoice::Named(_)));
            let parallel = parallel.filter(|_| !tools.is_empty() && choice != Some(ToolChoice::None));
            let choice = choice.or(parallel.filter(|_| format == Anthropic).map(|_| ToolChoice::Auto));
            let reasoning = reasoning.filter(|_| format != Anthropic || !forced);
            let mut request = ChatRequest {
                messages,
                tools,
                tool_choice: choice,
                parallel_tool_calls: parallel,
                max_tokens: Some(max_tokens),
                temperature: chosen.0.then_some(temperature),
                top_p: chosen.1.then_some(top_p),
                frequency_penalty: chosen.2.then_some(penalty),
                presence_penalty: chosen.3.then_some(penalty),
                seed: chosen.2.then_some(seed),
                stop,
                format: format_,
                verbosity,
                reasoning,
                user,
                service_tier,
                ..ChatRequest::default()
            };
            if format == OpenAiResponses {
                request.openai.insert("store".into(), chosen.4.into());
            }
            if chosen.4 {
                request.openai.insert("metadata".into(), json!({"a": "b"}));
            }
            request
        },
    )
}

/// A model that accepts every part of the format.
pub(super) fn model_for(format: ApiFormat) -> &'static str {
    match format {
        OpenAiChat | OpenAiResponses => "gpt-5.2",
        Anthropic => "claude-opus-4-8",
    }
}

fn usage(format: ApiFormat) -> impl Strategy<Value = Usage> {
    let tokens = || 0_u64..1_000_000;
    (tokens(), tokens(), tokens(), tokens(), tokens(), any::<bool>()).prop_map(
        move |(fresh, cached, written, said, thought, knows)| Usage {
            prompt: Some(fresh + cached + written),
            completion: Some(said + thought),
            cached: Some(cached),
            // Chat and Anthropic may leave these out; Responses never does.
            cache_write: (knows || format != OpenAiChat).then_some(written),
            reasoning: (knows || format != Anthropic).then_some(thought),
        },
    )
}

/// An answer that a provider of `format` may give.
pub(super) fn answer(format: ApiFormat) -> impl Strategy<Value = ChatAnswer> {
    let thought = match format {
        OpenAiChat => text().prop_map(|text| Reasoning { text, seal: None }).boxed(),
        OpenAiResponses | Anthropic => own_reasoning(format),
    };
    let calls = (0_usize..3).prop_flat_map(move |count| {
        (0..count).map(|n| call(format, format!("call_{n}"))).collect::<Vec<_>>()
    });
    let cut = match format {
        OpenAiChat | OpenAiResponses => {
            prop_oneof![Just(StopReason::Length), Just(StopReason::ContentFilter)].boxed()
        }
        Anthropic => prop_oneof![
            Just(StopReason::Length),
            Just(StopReason::ContextWindow),
            Just(StopReason::Pause),
            Just(StopReason::StopSequence(Some("END".into()))),
        ]
        .boxed(),
    };
    let said = (vec(text(), 0..2), prop::bool::weighted(0.2));
    ("[a-zA-Z0-9_-]{16,20}", option::of(thought), said, calls, option::of(cut), usage(format)).prop_map(
        move |(id, thought, (texts, refuses), calls, cut, usage)| {
            let mut parts: Vec<Part> = thought.map(Part::Reasoning).into_iter().collect();
            let refuses = refuses && format != Anthropic;
            parts.extend(
                texts.into_iter().map(|text| if refuses { Part::Refusal(text) } else { Part::Text(text) }),
            );
            parts.extend(calls.into_iter().map(Part::ToolCall));
            let has = |wanted: fn(&Part) -> bool| parts.iter().any(wanted);
            let natural = StopReason::of_stop(
                has(|part| matches!(part, Part::ToolCall(_))),
                has(|part| matches!(part, Part::Refusal(_))),
            );
            ChatAnswer { id, stop: cut.unwrap_or(natural), parts, usage }
        },
    )
}

"""The official SDKs, each read into the same plain answer."""

import json
from dataclasses import dataclass, field

import anthropic
import openai

from conftest import KEY

PROMPT = "Say something."


@dataclass
class Plain:
    """An answer of any format, for comparison."""

    text: str = ""
    tools: list = field(default_factory=list)  # (name, arguments)
    reason: str = ""
    prompt: int | None = None
    completion: int | None = None
    beside: int = 0  # output tokens not counted in `completion`


def openai_client(gateway, key=KEY):
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def anthropic_client(gateway, key=KEY):
    return anthropic.Anthropic(base_url=gateway.url, api_key=key, max_retries=0)


def arguments(text):
    """Tool arguments, parsed if they are JSON: spacing does not matter."""
    if isinstance(text, dict):
        return text
    try:
        return json.loads(text or "{}")
    except json.JSONDecodeError:
        return text


CHAT_REASONS = {"stop": "stop", "length": "length", "tool_calls": "tools", "content_filter": "filter"}
ANTHROPIC_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tools",
    "refusal": "filter",
    "pause_turn": "stop",
}


def chat(gateway, model, stream, key=KEY):
    client = openai_client(gateway, key)
    request = {"model": model, "messages": [{"role": "user", "content": PROMPT}]}
    if not stream:
        answer = client.chat.completions.create(**request)
        choice = answer.choices[0]
        plain = Plain(text=choice.message.content or "", reason=CHAT_REASONS.get(choice.finish_reason, choice.finish_reason))
        plain.text += getattr(choice.message, "refusal", None) or ""
        for call in choice.message.tool_calls or []:
            plain.tools.append(tool_of(call))
        usage = answer.usage
    else:
        plain, calls, usage = Plain(), {}, None
        chunks = client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
        for chunk in chunks:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                plain.text += choice.delta.content or ""
                plain.text += getattr(choice.delta, "refusal", None) or ""
                if choice.finish_reason:
                    plain.reason = CHAT_REASONS.get(choice.finish_reason, choice.finish_reason)
                for call in choice.delta.tool_calls or []:
                    known = calls.setdefault(call.index, ["", ""])
                    part = call.function or getattr(call, "custom", None)
                    if part is not None:
                        get = part.get if isinstance(part, dict) else lambda name, part=part: getattr(part, name, None)
                        known[0] += get("name") or ""
                        known[1] += get("arguments") or get("input") or ""
        plain.tools = [(name, arguments(text)) for _, (name, text) in sorted(calls.items())]
    if usage:
        plain.prompt, plain.completion = usage.prompt_tokens, usage.completion_tokens
    return plain


def tool_of(call):
    if getattr(call, "function", None):
        return call.function.name, arguments(call.function.arguments)
    return call.custom.name, arguments(call.custom.input)


def responses(gateway, model, stream, key=KEY):
    client = openai_client(gateway, key)
    if not stream:
        answer = client.responses.create(model=model, input=PROMPT)
    else:
        answer = None
        for event in client.responses.create(model=model, input=PROMPT, stream=True):
            if event.type in ("response.completed", "response.incomplete", "response.failed"):
                # One recording holds several answers in a row; a client would stop after the first.
                answer = answer or event.response
        assert answer is not None, "the stream ended without its last event"
    plain = Plain()
    for item in answer.output:
        if item.type == "message":
            for part in item.content:
                plain.text += getattr(part, "text", None) or getattr(part, "refusal", None) or ""
        elif item.type == "function_call":
            plain.tools.append((item.name, arguments(item.arguments)))
        elif item.type == "custom_tool_call":
            plain.tools.append((item.name, arguments(item.input)))
    if answer.status == "incomplete":
        plain.reason = {"max_output_tokens": "length", "content_filter": "filter"}[answer.incomplete_details.reason]
    else:
        plain.reason = "tools" if plain.tools else "stop"
    if answer.usage:
        plain.prompt, plain.completion = answer.usage.input_tokens, answer.usage.output_tokens
    return plain


def messages(gateway, model, stream, key=KEY):
    client = anthropic_client(gateway, key)
    request = {"model": model, "max_tokens": 1000, "messages": [{"role": "user", "content": PROMPT}]}
    if not stream:
        answer = client.messages.create(**request)
    else:
        with client.messages.stream(**request) as events:
            answer = events.get_final_message()
    plain = Plain(reason=ANTHROPIC_REASONS.get(answer.stop_reason, answer.stop_reason))
    for block in answer.content:
        if block.type == "text":
            plain.text += block.text
        elif block.type == "tool_use":
            plain.tools.append((block.name, arguments(block.input)))
    usage = answer.usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    plain.prompt, plain.completion = usage.input_tokens + cached, usage.output_tokens
    return plain


SDKS = {"chat": chat, "responses": responses, "messages": messages}

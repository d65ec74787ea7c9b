"""Every recorded answer, replayed by a scripted provider and read back by the official SDKs in each format."""

import json

import pytest

from clients import SDKS, Plain, arguments
from conftest import KINDS, recordings

FOLDERS = {"openai-chat": "via-chat", "openai-responses": "via-responses", "anthropic": "via-anthropic"}


def cases():
    root = recordings()
    if root is None:
        return [pytest.param(None, None, marks=pytest.mark.skip(reason="the recordings are not there"))]
    return [
        pytest.param(folder, path, id=f"{folder}/{path.name}")
        for folder in FOLDERS
        for path in sorted((root / folder).iterdir())
    ]


def read(folder, path):
    """The recording's answer, read without any SDK; None when it is an error."""
    if path.name.endswith(".chunks.txt"):
        events = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return {"openai-chat": chat_events, "openai-responses": response_events, "anthropic": anthropic_events}[folder](events)
    body = json.loads(path.read_text())
    if folder == "openai-chat":
        message = body["choices"][0]["message"]
        plain = Plain(text=(message.get("content") or "") + (message.get("refusal") or ""))
        for call in message.get("tool_calls") or []:
            plain.tools.append((call["function"]["name"], arguments(call["function"]["arguments"])))
        plain.reason = {"tool_calls": "tools"}.get(body["choices"][0]["finish_reason"], body["choices"][0]["finish_reason"])
        read_usage(plain, body["usage"])
        return plain
    if folder == "openai-responses":
        return response_body(body)
    if body.get("type") == "error":
        return None
    return anthropic_body(body)


def read_usage(plain, usage):
    plain.prompt, plain.completion = usage["prompt_tokens"], usage["completion_tokens"]
    # OpenAI counts reasoning within `completion_tokens`, xAI separately, as its total shows.
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    if usage.get("total_tokens") == plain.prompt + plain.completion + reasoning:
        plain.beside = reasoning


def chat_events(events):
    plain, calls = Plain(), {}
    for event in events:
        usage = event.get("usage") or (event.get("x_groq") or {}).get("usage")
        if usage:
            read_usage(plain, usage)
        for choice in event.get("choices", []):
            delta = choice["delta"]
            plain.text += (delta.get("content") or "") + (delta.get("refusal") or "")
            if choice.get("finish_reason"):
                plain.reason = {"tool_calls": "tools"}.get(choice["finish_reason"], choice["finish_reason"])
            for call in delta.get("tool_calls") or []:
                known = calls.setdefault(call["index"], ["", ""])
                known[0] += call["function"].get("name") or ""
                known[1] += call["function"].get("arguments") or ""
    plain.tools = [(name, arguments(text)) for _, (name, text) in sorted(calls.items())]
    return plain


def response_events(events):
    for event in events:
        if event["type"] in ("response.completed", "response.incomplete"):
            return response_body(event["response"])
    return None


def response_body(body):
    if body.get("error"):
        return None
    plain = Plain()
    for item in body["output"]:
        if item["type"] == "message":
            plain.text += "".join(part.get("text") or part.get("refusal") or "" for part in item["content"])
        elif item["type"] in ("function_call", "custom_tool_call"):
            plain.tools.append((item["name"], arguments(item.get("arguments") or item.get("input"))))
    plain.reason = "tools" if plain.tools else "stop"
    plain.prompt, plain.completion = body["usage"]["input_tokens"], body["usage"]["output_tokens"]
    return plain


def anthropic_events(events):
    message, blocks, inputs = None, {}, {}
    for event in events:
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"])
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            if delta["type"] == "text_delta":
                blocks[event["index"]]["text"] += delta["text"]
            elif delta["type"] == "input_json_delta":
                inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
        elif event["type"] == "message_delta":
            message["stop_reason"] = event["delta"].get("stop_reason")
            message["usage"] |= {name: count for name, count in event["usage"].items() if count is not None}
    for index, text in inputs.items():
        if blocks[index]["type"] == "tool_use":
            blocks[index]["input"] = arguments(text)
    message["content"] = [blocks[index] for index in sorted(blocks)]
    return anthropic_body(message)


def anthropic_body(body):
    plain = Plain()
    for block in body["content"]:
        if block["type"] == "text":
            plain.text += block["text"]
        elif block["type"] == "tool_use":
            plain.tools.append((block["name"], arguments(block["input"])))
    reasons = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tools", "refusal": "filter", "pause_turn": "stop"}
    plain.reason = reasons.get(body["stop_reason"], body["stop_reason"])
    usage = body["usage"]
    plain.prompt = usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0) + (usage.get("cache_creation_input_tokens") or 0)
    plain.completion = usage["output_tokens"]
    return plain


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize(("folder", "path"), cases())
def test_recorded(gateway, folder, path, sdk):
    expected = read(folder, path)
    stream = path.name.endswith(".chunks.txt")
    gateway.provider.always(recorded=str(path))
    if expected is None:
        with pytest.raises(Exception) as caught:  # noqa: PT011: each SDK has its own class for it
            SDKS[sdk](gateway, FOLDERS[folder], stream)
        assert not isinstance(caught.value, KeyError)
        return
    answer = SDKS[sdk](gateway, FOLDERS[folder], stream)
    if sdk != "messages" and folder == "anthropic":
        # The other formats carry the explanation of a refusal as text; Anthropic has a field for it.
        expected.text += refusal_of(path)
    if sdk != "chat":
        # The other formats count all output as output. (The same format is passed through unchanged.)
        expected.completion += expected.beside
    if sdk == "messages":
        # Anthropic's tools take objects only, so free text becomes a member of one.
        expected.tools = [(name, {"input": given} if isinstance(given, str) else given) for name, given in expected.tools]
    assert answer.text == expected.text
    assert answer.tools == expected.tools
    assert (answer.prompt, answer.completion) == (expected.prompt, expected.completion)
    # Responses has no stop reason for a refusal: the refusal item itself shows it.
    if not (sdk == "responses" and expected.reason == "filter"):
        assert answer.reason == expected.reason


def refusal_of(path):
    """The explanation of an Anthropic answer's refusal, wherever it is in the recording."""
    texts = path.read_text().splitlines() if path.name.endswith(".chunks.txt") else [path.read_text()]
    for value in (json.loads(text) for text in texts if text.strip()):
        details = (value.get("delta") or value).get("stop_details") or {}
        if details.get("explanation"):
            return details["explanation"]
    return ""


def test_all_kinds_are_covered():
    assert set(FOLDERS.values()) == set(KINDS)

"""The documents of tests/golden, checked against the types of the official SDKs."""

import json
import pathlib
from collections.abc import Mapping

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import MessageCreateParams
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParams
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParams
from pydantic import TypeAdapter

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
REQUESTS = {
    "openai-chat": TypeAdapter(CompletionCreateParams),
    "openai-responses": TypeAdapter(ResponseCreateParams),
    "anthropic": TypeAdapter(MessageCreateParams),
}
ANSWERS = {"openai-chat": TypeAdapter(ChatCompletion), "openai-responses": TypeAdapter(Response), "anthropic": TypeAdapter(Message)}
EVENTS = {
    "openai-chat": TypeAdapter(ChatCompletionChunk),
    "openai-responses": TypeAdapter(ResponseStreamEvent),
    "anthropic": TypeAdapter(RawMessageStreamEvent),
}
#: Missing in the types, though the APIs have it: streams of custom tool calls in chat.
UNTYPED = {"custom"}


def files(kind, ending):
    paths = sorted((GOLDEN / kind).glob(f"*/*/to-*{ending}"))
    assert paths, f"no golden {kind}"
    return [pytest.param(path, id="/".join(path.relative_to(GOLDEN).parts)) for path in paths]


def target(path):
    return path.name.removeprefix("to-").rsplit(".", 1)[0]


def exhaust(value):
    """Validates fields that the SDKs type as Iterable: pydantic checks the items only when they are read."""
    if isinstance(value, Mapping):
        for item in value.values():
            exhaust(item)
    elif not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        for item in value:
            exhaust(item)


@pytest.mark.parametrize("path", files("requests", ".json"))
def test_requests(path):
    golden = json.loads(path.read_text())
    if "error" in golden:
        return
    body = golden["body"]
    if target(path) == "openai-responses":
        body["input"] = [as_typed(item) for item in body["input"]]
    exhaust(REQUESTS[target(path)].validate_python(body))


def as_typed(item):
    """The types require an id and a status of an assistant's messages in parts; the API accepts messages without
    (and some clients, such as Vercel's AI SDK, send them so)."""
    if item.get("role") == "assistant" and isinstance(item["content"], list):
        parts = [{"annotations": [], **part} if part["type"] == "output_text" else part for part in item["content"]]
        return {"id": "msg_1", "status": "completed", **item, "content": parts}
    return item


@pytest.mark.parametrize("path", files("answers", ".json"))
def test_answers(path):
    golden = json.loads(path.read_text())
    if set(golden) == {"error"}:
        return
    ANSWERS[target(path)].validate_python(golden)


@pytest.mark.parametrize("path", files("answers", ".sse"))
def test_streams(path):
    checked = 0
    for line in path.read_text().splitlines():
        data = line.removeprefix("data: ")
        if not line.startswith("data: ") or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event and event.get("type") in (None, "error"):
            assert event["error"]["message"]
            continue
        calls = [call for choice in event.get("choices", []) for call in choice["delta"].get("tool_calls", [])]
        if any(UNTYPED & set(call) for call in calls):
            continue
        EVENTS[target(path)].validate_python(event)
        checked += 1
    assert checked > 1

"""The official SDKs against the gateway: answers, streams, errors."""

import asyncio
import concurrent.futures

import anthropic
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from clients import SDKS, anthropic_client, openai_client
from conftest import KEY, KINDS, MAX_BODY_SIZE, MAX_IN_FLIGHT, NARROW_KEY, SMALL_KEY


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("sdk", SDKS)
def test_any_format_reaches_any_provider(gateway, sdk, model, stream):
    gateway.provider.always(
        text="Let me look.",
        tool_calls=[
            {"id": "call_1", "name": "weather", "arguments": '{"city": "Zürich"}'},
            {"id": "call_2", "name": "time", "arguments": "{}"},
        ],
        finish="tool_calls",
        usage={"prompt": 40, "completion": 20, "cached": 10},
    )
    answer = SDKS[sdk](gateway, model, stream)
    assert answer.text == "Let me look."
    assert answer.tools == [("weather", {"city": "Zürich"}), ("time", {})]
    assert answer.reason == "tools"
    assert (answer.prompt, answer.completion) == (40, 20)


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("sdk", SDKS)
def test_length_stop(gateway, sdk, model):
    gateway.provider.always(text="Cut off here", finish="length")
    for stream in (False, True):
        assert SDKS[sdk](gateway, model, stream).reason == "length"


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("given", ["text", ["two", "texts"], [1, 2, 3], [[1, 2], [3]]], ids=str)
def test_embeddings(gateway, encoding, given):
    gateway.provider.always(text="unused")
    answer = openai_client(gateway).embeddings.create(model="embed", input=given, encoding_format=encoding)
    expected = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1
    assert len(answer.data) == expected
    assert answer.usage.prompt_tokens > 0


def test_models(gateway):
    listed = {model.id for model in openai_client(gateway).models.list()}
    assert listed == {*KINDS, "embed"}
    assert openai_client(gateway).models.retrieve("via-chat").id == "via-chat"
    assert {model.id for model in anthropic_client(gateway).models.list()} == listed


def test_count_tokens(gateway):
    counted = anthropic_client(gateway).messages.count_tokens(
        model="via-anthropic", messages=[{"role": "user", "content": "How many?"}]
    )
    assert counted.input_tokens > 0


def both(gateway, model, key=KEY):
    """The same call with each SDK."""
    chat = openai_client(gateway, key).chat.completions
    yield openai, lambda: chat.create(model=model, messages=[{"role": "user", "content": "x"}])
    messages = anthropic_client(gateway, key).messages
    yield anthropic, lambda: messages.create(
        model=model, max_tokens=10, messages=[{"role": "user", "content": "x"}]
    )


def test_error_classes(gateway):
    gateway.provider.always(text="fine")
    for sdk, call in both(gateway, "via-chat", "sk-wrong-0123456789abcdef"):
        with pytest.raises(sdk.AuthenticationError) as caught:
            call()
        assert "API key" in caught.value.message
    for sdk, call in both(gateway, "no-such-model"):
        with pytest.raises(sdk.NotFoundError) as caught:
            call()
        assert "no-such-model" in caught.value.message
    for model in KINDS:
        gateway.provider.always(status=400, message="The provider says no.")
        for sdk, call in both(gateway, model):
            with pytest.raises(sdk.BadRequestError) as caught:
                call()
            assert "The provider says no." in caught.value.message
        gateway.provider.always(status=429, retry_after="7s")
        for sdk, call in both(gateway, model):
            with pytest.raises(sdk.RateLimitError) as caught:
                call()
            assert caught.value.response.headers["retry-after"] == "7"
        gateway.provider.always(dropped=True)
        for sdk, call in both(gateway, model):
            with pytest.raises(sdk.APIStatusError) as caught:
                call()
            assert caught.value.status_code == 502
        gateway.provider.always(text="well again")
        for sdk, call in both(gateway, model):
            call()


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (401, "AuthenticationError"),
        (403, "PermissionDeniedError"),
        (404, "NotFoundError"),
        (409, "ConflictError"),
        (422, "UnprocessableEntityError"),
        (500, "InternalServerError"),
        (503, "InternalServerError"),
    ],
)
def test_upstream_errors_keep_their_class(gateway, status, name):
    gateway.provider.always(status=status, message="As the provider says.")
    for model in KINDS:
        for sdk, call in both(gateway, model):
            with pytest.raises(getattr(sdk, name)) as caught:
                call()
            assert caught.value.status_code == status
            assert "As the provider says." in caught.value.message
            # The fields that the SDK reads from the body: OpenAI's fields, or Anthropic's type.
            body = caught.value.body
            assert body["error"]["type"] if sdk is anthropic else caught.value.type
        gateway.provider.always(text="well again")
        for _, call in both(gateway, model):
            call()
        gateway.provider.always(status=status, message="As the provider says.")


def test_a_key_that_may_not_use_a_model(gateway):
    """The model does not exist for this key, as at OpenAI: the key must not learn that it exists for others."""
    gateway.provider.always(text="fine")
    for _, call in both(gateway, "via-chat", NARROW_KEY):
        call()
    for sdk, call in both(gateway, "via-anthropic", NARROW_KEY):
        with pytest.raises(sdk.NotFoundError) as caught:
            call()
        assert "do not have access" in caught.value.message
    assert [model.id for model in openai_client(gateway, NARROW_KEY).models.list()] == ["via-chat"]


def test_bad_requests(gateway):
    gateway.provider.always(text="fine")
    request = {"model": "via-anthropic", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client(gateway).chat.completions.create(**request, n=2)
    assert caught.value.code == "unsupported_request"
    assert "`n`" in caught.value.message
    for sdk, call in both(gateway, ""):
        with pytest.raises(sdk.BadRequestError) as caught:
            call()
        assert "`model`" in caught.value.message


def test_bodies_that_are_too_large(gateway):
    padding = "x" * MAX_BODY_SIZE
    messages = [{"role": "user", "content": padding}]
    with pytest.raises(openai.APIStatusError) as caught:
        openai_client(gateway).chat.completions.create(model="via-chat", messages=messages)
    assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
    with pytest.raises(anthropic.APIStatusError) as caught:
        anthropic_client(gateway).messages.create(model="via-chat", max_tokens=10, messages=messages)
    assert caught.value.status_code == 413
    assert caught.value.body["error"]["type"] == "request_too_large"


def test_requests_in_flight(gateway):
    """409 while a request with the same id runs, 503 when there are too many; the SDKs may retry both soon."""
    gateway.provider.always(text="slow", delay="3s")
    messages = [{"role": "user", "content": "x"}]
    headers = {"X-NexusGate-ReqId": "python-1"}

    def slow(extra_headers=None):
        return openai_client(gateway).chat.completions.create(
            model="via-chat", messages=messages, extra_headers=extra_headers
        )

    with concurrent.futures.ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
        first = pool.submit(slow, headers)
        gateway.wait_for(lambda text: in_flight(text) == 1, "the first runs")
        with pytest.raises(openai.ConflictError) as caught:
            slow(headers)
        assert (caught.value.code, caught.value.response.headers["retry-after"]) == ("request_in_flight", "1")
        with pytest.raises(anthropic.ConflictError):
            anthropic_client(gateway).messages.create(
                model="via-chat", max_tokens=10, messages=messages, extra_headers=headers
            )
        others = [pool.submit(slow) for _ in range(MAX_IN_FLIGHT - 1)]
        gateway.wait_for(lambda text: in_flight(text) == MAX_IN_FLIGHT, "the gateway is full")
        for sdk, call in both(gateway, "via-chat"):
            with pytest.raises(sdk.InternalServerError) as caught:
                call()
            assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "1")
        assert all(call.result().choices[0].message.content == "slow" for call in [first, *others])
    gateway.provider.always(text="fine")
    gateway.wait_for(lambda text: in_flight(text) == 0, "nothing is in flight")
    again = openai_client(gateway).chat.completions.with_raw_response.create(
        model="via-chat", messages=messages, extra_headers=headers
    )
    assert again.headers["x-cache"] == "HIT"
    assert again.parse().choices[0].message.content == "slow"


def test_own_rate_limit(gateway):
    gateway.provider.always(text="fine")
    client = openai_client(gateway, SMALL_KEY)
    request = {"model": "via-chat", "messages": [{"role": "user", "content": "x"}]}
    client.chat.completions.create(**request)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**request)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert caught.value.response.headers["x-ratelimit-limit-requests"] == "1"


@pytest.mark.parametrize("sdk", ["chat", "messages", "responses"])
def test_a_stream_that_dies_raises(gateway, sdk):
    """With any formats, a client sees that its answer is incomplete."""
    for model in KINDS:
        gateway.provider.always(pieces=[f"piece {n} " for n in range(10)], cut_after=8)
        with pytest.raises(Exception) as caught:  # noqa: PT011: each SDK has its own class for it
            SDKS[sdk](gateway, model, True)
        assert not isinstance(caught.value, AssertionError), f"{sdk} via {model}: {caught.value}"
    gateway.provider.always(text="well again")


def test_fifty_streams_at_once(gateway):
    pieces = [f"{n} " for n in range(200)]
    gateway.provider.always(pieces=pieces)
    expected = "".join(pieces)

    async def one(client):
        text, chunks = "", 0
        stream = await client.chat.completions.create(
            model="via-chat", messages=[{"role": "user", "content": "count"}], stream=True
        )
        async for chunk in stream:
            for choice in chunk.choices:
                if choice.delta.content:
                    text += choice.delta.content
                    chunks += 1
        return text, chunks

    async def every():
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(50)))

    before = completed(gateway.metrics())
    answers = asyncio.run(every())
    assert answers == [(expected, 200)] * 50
    gateway.wait_for(lambda text: completed(text) == before + 50, "fifty more are counted")
    gateway.wait_for(lambda text: in_flight(text) == 0, "nothing is in flight")


def samples(text, name):
    return [
        sample for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name
    ]


def completed(text):
    return sum(s.value for s in samples(text, "nexusgate_completions_total") if s.labels["status"] == "completed")


def in_flight(text):
    return sum(s.value for s in samples(text, "nexusgate_requests_in_flight"))

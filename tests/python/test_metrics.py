"""The output of /metrics, read by the official parser and by promtool.

Against any running instance:

    NEXUSGATE_BASE_URL=http://localhost:3000 METRICS_BEARER_TOKEN=… pytest tests/python/test_metrics.py

NEXUSGATE_METRICS_URL names the endpoint if METRICS_ADDR has moved it. Without NEXUSGATE_BASE_URL a gateway is started
and given known traffic; the tests that depend on it are skipped for any other instance.
"""

import json
import math
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from clients import openai_client
from conftest import BINARY, KEY, METERED_KEY, METRICS_TOKEN, ODD_KEY, SHARED_COMMENT, SHARING_KEYS

#: As conftest.py starts the gateway.
ADMIN_SECRET = "python-tests-admin-secret"
#: The reference system's metrics, which its dashboards and alerts depend on. First those of an
#: idle instance, then those that come with the first request.
ALWAYS = {
    "nexusgate_info": "gauge",
    "nexusgate_active_api_keys": "gauge",
    "nexusgate_active_providers": "gauge",
    "nexusgate_active_models": "gauge",
    "nexusgate_metrics_error": "gauge",
}
WITH_TRAFFIC = {
    "nexusgate_completions": "counter",
    "nexusgate_embeddings": "counter",
    "nexusgate_tokens_prompt": "counter",
    "nexusgate_tokens_completion": "counter",
    "nexusgate_tokens_embedding": "counter",
    "nexusgate_cost_prompt_usd": "counter",
    "nexusgate_cost_completion_usd": "counter",
    "nexusgate_cost_total_usd": "counter",
    "nexusgate_completion_duration_seconds": "histogram",
    "nexusgate_completion_ttft_seconds": "histogram",
    "nexusgate_embedding_duration_seconds": "histogram",
    "nexusgate_api_key_rpm_usage": "gauge",
    "nexusgate_api_key_rpm_limit": "gauge",
    "nexusgate_rate_limit_rejections": "counter",
}
#: promtool's complaints that we accept: the names are the design's, and "gauge" in them is a noun (the task that
#: refreshes the gauges), not a type.
EXPLAINED = {
    "nexusgate_gauge_refresh_errors_total metric name should not include type 'gauge'",
    "nexusgate_gauge_refresh_timestamp_seconds metric name should not include type 'gauge'",
}
#: Gauges that are 1 or 0.
FLAGS = {"nexusgate_metrics_error", "nexusgate_database_up", "nexusgate_redis_up", "nexusgate_provider_up"}
#: The only gauge that may go below zero.
SIGNED = {"nexusgate_audit_mismatch"}


@dataclass
class Instance:
    """A gateway to scrape; `gateway` is set when it is our own."""

    metrics_url: str
    token: str
    gateway: object = None

    def get(self, suffix="", **headers):
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        return requests.get(self.metrics_url + suffix, headers=headers, timeout=10)

    def text(self):
        answer = self.get()
        assert answer.status_code == 200, answer.text
        answer.encoding = "utf-8"
        return answer.text

    def families(self):
        return {family.name: family for family in text_string_to_metric_families(self.text())}


@pytest.fixture(scope="module")
def instance(request):
    if base := os.environ.get("NEXUSGATE_BASE_URL"):
        url = os.environ.get("NEXUSGATE_METRICS_URL") or f"{base.rstrip('/')}/metrics"
        return Instance(url, os.environ.get("METRICS_BEARER_TOKEN", ""))
    gateway = request.getfixturevalue("gateway")
    instance = Instance(f"{gateway.url}/metrics", METRICS_TOKEN, gateway)
    some_traffic(gateway)
    return instance


@pytest.fixture
def own(instance):
    """Our own gateway, with known traffic."""
    if instance.gateway is None:
        pytest.skip("an instance with a life of its own")
    return instance


def some_traffic(gateway):
    """One request of each kind that makes a series appear."""
    gateway.provider.always(text="Hello there.", usage={"prompt": 40, "completion": 20, "cached": 10})
    for key in (KEY, ODD_KEY, *SHARING_KEYS):
        say(gateway, key)
    say(gateway, KEY, stream=True)
    openai_client(gateway).embeddings.create(model="embed", input="Embed this.")
    # Over its limit of one a minute, so that there are series of a rejection and a limit.
    for _ in range(2):
        requests.post(
            f"{gateway.url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {METERED_KEY}"},
            json={"model": "via-chat", "messages": [{"role": "user", "content": "Hi."}]},
            timeout=10,
        )
    rejected = re.compile(r'rejections_total\{api_key_comment="metered",limit_type="rpm"\} [1-9]')
    gateway.wait_for(rejected.search, "a rejection")
    gateway.wait_for(lambda text: 'nexusgate_api_key_rpm_limit{api_key_comment="metered"} 1' in text, "a refreshed gauge")


def say(gateway, key, stream=False):
    request = {"model": "via-chat", "messages": [{"role": "user", "content": "Hi."}], "stream": stream}
    answer = openai_client(gateway, key).chat.completions.create(**request)
    if stream:
        for _ in answer:
            pass


def of(families, name):
    """The samples of a family; none if it does not exist yet."""
    return families[name].samples if name in families else []


def samples(family):
    return [(sample.name, tuple(sorted(sample.labels.items())), sample.value) for sample in family.samples]


def test_status_and_headers(instance):
    answer = instance.get()
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "no-store" in answer.headers["cache-control"]


def test_a_trailing_slash_makes_no_difference(instance):
    assert instance.get("/").status_code == 200


def test_compressed_and_plain_are_the_same_families(instance):
    plain, compressed = instance.get(**{"Accept-Encoding": "identity"}), instance.get(**{"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert compressed.headers["content-encoding"] == "gzip"
    names = [{family.name for family in text_string_to_metric_families(answer.text)} for answer in (plain, compressed)]
    assert names[0] == names[1] != set()


def test_a_protected_endpoint_asks_for_its_token(instance):
    if not instance.token:
        pytest.skip("this instance has no METRICS_BEARER_TOKEN")
    for wrong in ("", "Bearer ", "Bearer wrong", f"Basic {instance.token}"):
        answer = instance.get(Authorization=wrong)
        assert answer.status_code == 401, wrong
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_the_reference_metrics_are_there(instance):
    families = instance.families()
    for name, kind in ALWAYS.items():
        assert name in families, name
        assert families[name].type == kind, name
    for name, kind in WITH_TRAFFIC.items():
        if name in families:
            assert families[name].type == kind, name
        if instance.gateway is not None:
            assert of(families, name), name


def test_everything_in_the_catalogue_is_served_as_declared(own):
    """Every metric, with its type and labels; and with samples, except for Redis, limits and failures, absent here."""
    catalogue = json.loads(subprocess.run([BINARY, "metrics-catalog", "--json"], capture_output=True, check=True).stdout)
    families = own.families()
    absent = set()
    for metric in catalogue:
        name = metric["name"].removesuffix("_total") if metric["type"] == "counter" else metric["name"]
        if not of(families, name):
            absent.add(metric["name"])
            continue
        assert families[name].type == metric["type"], name
        labels = {label if isinstance(label, str) else label["name"] for label in metric["labels"]}
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == labels, sample
    assert absent <= {
        "nexusgate_redis_up",
        "nexusgate_redis_errors_total",
        "nexusgate_metrics_overflow_total",
        "nexusgate_failovers_total",
        "nexusgate_api_key_tpm_limit",
        "nexusgate_api_key_tpm_usage",
    }
    declared = {metric["name"].removesuffix("_total") for metric in catalogue}
    undeclared = {name for name in families if not name.startswith("process_")} - declared
    assert undeclared == set()


def test_the_format_is_valid(instance):
    text = instance.text()
    assert text.endswith("\n")
    documented = Counter(tuple(line.split(" ", 3)[1:3]) for line in text.splitlines() if line.startswith("# "))
    families = list(text_string_to_metric_families(text))
    names = Counter(family.name for family in families)
    assert [name for name, times in names.items() if times > 1] == [], "a family in one piece"
    for family in families:
        assert family.documentation, f"{family.name} has a help text"
        assert family.type in ("counter", "gauge", "histogram"), family.name
        full = family.name + "_total" if family.type == "counter" else family.name
        assert documented[("HELP", full)] == documented[("TYPE", full)] == 1, full
        series = Counter((name, labels) for name, labels, _ in samples(family))
        assert [one for one, times in series.items() if times > 1] == [], "no series twice"
        for name, _, value in samples(family):
            assert math.isfinite(value), f"{name} {value}"


def test_promtool_finds_nothing_new(instance):
    promtool = shutil.which("promtool")
    if promtool is None and instance.gateway is None:
        pytest.skip("promtool is not installed here")
    assert promtool, "promtool comes with the package prometheus"
    done = subprocess.run([promtool, "check", "metrics"], input=instance.text().encode(), capture_output=True, timeout=30)
    said = {line.strip() for line in (done.stdout + done.stderr).decode().splitlines() if line.strip()}
    assert said <= EXPLAINED


def test_gauges_are_sane(instance):
    families = instance.families()
    [info] = families["nexusgate_info"].samples
    assert info.value == 1
    assert info.labels["version"]
    kinds = {sample.labels["type"] for sample in families["nexusgate_active_models"].samples}
    assert kinds == {"chat", "embedding"}
    for family in families.values():
        if family.type != "gauge" or family.name in SIGNED:
            continue
        for sample in family.samples:
            assert sample.value >= 0, sample
            if family.name in FLAGS:
                assert sample.value in (0, 1), sample
    assert families["nexusgate_metrics_error"].samples[0].value == 0
    [refreshed] = families["nexusgate_gauge_refresh_timestamp_seconds"].samples
    assert 0 <= time.time() - refreshed.value < 600, "the gauges were refreshed in the last ten minutes"
    for kind in ("rpm", "tpm"):
        used, limited = (
            {sample.labels["api_key_comment"] for sample in of(families, f"nexusgate_api_key_{kind}_{what}")}
            for what in ("usage", "limit")
        )
        assert used <= limited, "what is used is used of something"


def test_our_gauges_say_what_the_admin_api_says(own):
    def listed(what):
        headers = {"Authorization": f"Bearer {ADMIN_SECRET}"}
        answer = requests.get(f"{own.gateway.url}/api/admin/{what}", headers=headers, timeout=10)
        assert answer.ok, answer.text
        return answer.json()

    families = own.families()
    assert families["nexusgate_active_api_keys"].samples[0].value == len(listed("apiKey")) > 0
    assert families["nexusgate_active_providers"].samples[0].value == len(listed("providers")) > 0
    models = {sample.labels["type"]: sample.value for sample in families["nexusgate_active_models"].samples}
    assert models == Counter(model["modelType"] for model in listed("models"))
    assert {sample.value for sample in families["nexusgate_requests_in_flight"].samples} == {0}


def test_histograms_are_cumulative(instance):
    seen = 0
    for family in instance.families().values():
        if family.type != "histogram":
            continue
        buckets, counts, sums = {}, {}, {}
        for sample in family.samples:
            labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
            if sample.name.endswith("_bucket"):
                buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_count"):
                counts[labels] = sample.value
            else:
                assert sample.name == f"{family.name}_sum"
                sums[labels] = sample.value
        assert buckets.keys() == counts.keys() == sums.keys(), family.name
        for labels, steps in buckets.items():
            seen += 1
            bounds, values = [bound for bound, _ in steps], [value for _, value in steps]
            assert bounds == sorted(set(bounds)), f"{family.name}{labels}: the bounds rise"
            assert bounds[-1] == math.inf, f"{family.name}{labels}: the last is +Inf"
            assert values == sorted(values), f"{family.name}{labels}: the counts are cumulative"
            assert values[-1] == counts[labels], f"{family.name}{labels}: +Inf is the count"
            # The sum is no less than the buckets' lower bounds add up to, and no more than the upper.
            inside = [value - before for value, before in zip(values, [0, *values], strict=False)]
            least = sum(number * bound for number, bound in zip(inside[1:], bounds, strict=False))
            most = sum(number * bound for number, bound in zip(inside, bounds, strict=True) if number)
            assert least - 1e-9 <= sums[labels] <= most + 1e-9, f"{family.name}{labels}: the sum fits the buckets"
    assert seen > 0 or instance.gateway is None


def test_the_reference_buckets_are_there(instance):
    families = instance.families()
    for name, kind in WITH_TRAFFIC.items():
        if kind != "histogram":
            continue
        bounds = {sample.labels["le"] for sample in of(families, name) if "le" in sample.labels}
        # As strings: panels and rules select `le="2.5"`. An instance without traffic has no buckets.
        wanted = {"0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "+Inf"}
        assert wanted <= bounds or (not bounds and instance.gateway is None), name


def test_counters_only_rise(instance):
    def counters():
        return {
            (name, labels): value
            for family in instance.families().values()
            if family.type == "counter"
            for name, labels, value in samples(family)
        }

    before = counters()
    if instance.gateway is not None:
        say(instance.gateway, KEY)
    after = counters()
    for series, value in before.items():
        assert value >= 0, series
        assert after.get(series, -1) >= value, f"{series} fell or went away"
    # This scrape and the one before are requests too.
    assert sum(after.values()) > sum(before.values())


def test_a_request_is_counted_once(own):
    def total(name, **labels):
        family = own.families()[name]
        return sum(s.value for s in family.samples if labels.items() <= s.labels.items() and not s.name.endswith("_created"))

    labels = {"model": "via-chat", "status": "completed", "api_key_comment": "python"}
    before = total("nexusgate_completions", **labels)
    say(own.gateway, KEY)
    own.gateway.wait_for(lambda _: total("nexusgate_completions", **labels) > before, "the request is counted")
    assert total("nexusgate_completions", **labels) == before + 1


def test_odd_comments_are_labels_like_any_other(own):
    by_comment = {}
    for sample in own.families()["nexusgate_completions"].samples:
        if sample.labels["status"] == "completed":
            by_comment.setdefault(sample.labels["api_key_comment"], []).append(sample.value)
    # The backslash and the line break are replaced before they reach a label; quotes, braces and letters survive.
    assert by_comment['team:"a/b" ,{}=é'] == [1]
    assert by_comment[SHARED_COMMENT] == [2], "two keys with one comment are one series"


def test_no_secret_is_served(instance):
    text = instance.text()
    for secret in (KEY, ODD_KEY, METERED_KEY, *SHARING_KEYS, ADMIN_SECRET, "sk-"):
        assert secret not in text

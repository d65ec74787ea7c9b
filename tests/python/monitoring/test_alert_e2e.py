"""An alert, end to end: a provider fails and recovers, and a webhook is notified of both.

Real Prometheus with the shipped rules, real Alertmanager with the shipped routes and inhibition (its empty receivers
pointed at a webhook here), and a gateway with traffic and two providers:

* by default the demo (`nexusgate demo`), whose scripted providers have a control URL;
* or any other: NEXUSGATE_BASE_URL, and in NEXUSGATE_PROVIDER_FAIL and NEXUSGATE_PROVIDER_RECOVER shell commands that make
  its provider NEXUSGATE_PROVIDER fail and recover.

Only the waiting times of Alertmanager (group_wait, group_interval) are shortened; the rules are as shipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts" / "monitoring"))

import stack  # noqa: E402

ALERT = "NexusGateProviderDown"
# The rule averages over a minute and waits half a minute more; the breaker needs some failures before.
FIRES_WITHIN = 240
RESOLVES_WITHIN = 300


@dataclass
class Webhook:
    """Receives Alertmanager's notifications, with their receiver."""

    url: str = ""
    heard: list[dict] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def alerts(self, name: str, status: str) -> list[dict]:
        with self.lock:
            return [
                {**alert, "receiver": message["receiver"]}
                for message in self.heard
                for alert in message["alerts"]
                if alert["labels"]["alertname"] == name and alert["status"] == status
            ]

    def names(self) -> set[str]:
        with self.lock:
            return {alert["labels"]["alertname"] for message in self.heard for alert in message["alerts"]}


@dataclass
class Drill:
    """A gateway with a provider that can be made to fail."""

    url: str
    token: str
    provider: str
    fail: list[str] | tuple[str, str]
    recover: list[str] | tuple[str, str]

    def direct(self, command: list[str] | tuple[str, str]) -> None:
        if isinstance(command, tuple):
            url, mode = command
            body = json.dumps({"mode": mode}).encode()
            request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
            urllib.request.urlopen(request, timeout=10).close()
        else:
            subprocess.run(command, check=True, timeout=30)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with stack.scratch() as path:
        yield path


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with hook.lock:
                hook.heard.append(message)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hook.url = f"http://127.0.0.1:{server.server_address[1]}/"
    yield hook
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def drill(folder: Path) -> Iterator[Drill]:
    if url := os.environ.get("NEXUSGATE_BASE_URL"):
        provider = os.environ.get("NEXUSGATE_PROVIDER", "")
        fail, recover = os.environ.get("NEXUSGATE_PROVIDER_FAIL"), os.environ.get("NEXUSGATE_PROVIDER_RECOVER")
        if not (provider and fail and recover):
            pytest.fail("with NEXUSGATE_BASE_URL: NEXUSGATE_PROVIDER, NEXUSGATE_PROVIDER_FAIL and _RECOVER too")
        token = os.environ.get("METRICS_BEARER_TOKEN", "")
        yield Drill(url.rstrip("/"), token, provider, ["sh", "-c", fail], ["sh", "-c", recover])
        return
    with stack.demo(folder) as ready:
        provider = ready["providers"][0]
        control = provider["control_url"]
        yield Drill(ready["url"], "", provider["name"], (control, "failing"), (control, "healthy"))


@pytest.fixture(scope="module")
def alertmanager(folder: Path, webhook: Webhook) -> Iterator[str]:
    """Alertmanager's URL."""
    shipped = yaml.safe_load((stack.MONITORING / "alertmanager" / "alertmanager.yml").read_text())
    for receiver in shipped["receivers"]:
        receiver["webhook_configs"] = [{"url": webhook.url, "send_resolved": True}]
    for route in (shipped["route"], *shipped["route"]["routes"]):
        route["group_wait"], route["group_interval"] = "1s", "5s"
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(shipped))
    with stack.alertmanager(folder / "alertmanager.yml", folder) as url:
        yield url


@pytest.fixture(scope="module")
def server(folder: Path, drill: Drill, alertmanager: str) -> Iterator[stack.Prometheus]:
    """Prometheus, with Alertmanager behind it."""
    config = stack.write_config(
        folder / "prometheus",
        target=drill.url.removeprefix("http://"),
        token=drill.token,
        scrape_interval="2s",
        evaluation_interval="5s",
        alertmanager=alertmanager.removeprefix("http://"),
    )
    with stack.prometheus(config, folder) as prometheus:
        yield prometheus


def test_a_failing_provider_reaches_the_webhook_and_its_recovery_too(
    server: stack.Prometheus, drill: Drill, webhook: Webhook
) -> None:
    up = f'nexusgate_provider_up{{provider="{drill.provider}"}}'
    stack.wait_until(lambda: server.scalar(up) == 1, 60, f"{drill.provider} is up")

    drill.direct(drill.fail)
    failed_at = time.monotonic()
    stack.wait_until(lambda: bool(webhook.alerts(ALERT, "firing")), FIRES_WITHIN, f"{ALERT} at the webhook")
    print(f"{ALERT} fired {time.monotonic() - failed_at:.0f} s after {drill.provider} began to fail")

    [alert] = {json.dumps(alert["labels"], sort_keys=True): alert for alert in webhook.alerts(ALERT, "firing")}.values()
    assert alert["labels"]["provider"] == drill.provider
    assert alert["receiver"] == "ticket"
    assert drill.provider in alert["annotations"]["summary"]
    assert alert["annotations"]["runbook_url"].endswith(f"#{ALERT.lower()}")
    # One of two: the rest of the gateway is healthy.
    assert "NexusGateAllProvidersDown" not in webhook.names()
    assert "NexusGateDown" not in webhook.names()

    drill.direct(drill.recover)
    recovered_at = time.monotonic()
    stack.wait_until(lambda: bool(webhook.alerts(ALERT, "resolved")), RESOLVES_WITHIN, f"{ALERT} resolved at the webhook")
    print(f"{ALERT} resolved {time.monotonic() - recovered_at:.0f} s after {drill.provider} recovered")
    assert server.scalar(up) == 1


def post(alertmanager: str, *alerts: dict[str, str]) -> None:
    body = json.dumps([{"labels": {"job": "drill", **labels}} for labels in alerts]).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{alertmanager}/api/v2/alerts", data=body, headers=headers)
    urllib.request.urlopen(request, timeout=10).close()


def states(alertmanager: str, labels: dict[str, str]) -> list[str]:
    """Whether Alertmanager has the alerts with these labels as active or suppressed."""
    wanted = {"job": "drill", **labels}.items()
    alerts = json.loads(stack.get(f"{alertmanager}/api/v2/alerts"))
    return [alert["status"]["state"] for alert in alerts if wanted <= alert["labels"].items()]


@pytest.mark.parametrize(
    ("source", "silenced", "heard"),
    [
        pytest.param(
            {"alertname": "NexusGateProviderDown", "provider": "p1", "severity": "warning"},
            {"alertname": "NexusGateProviderSlow", "provider": "p1", "severity": "warning"},
            {"alertname": "NexusGateProviderSlow", "provider": "p2", "severity": "warning"},
            id="a provider that is down is not also slow",
        ),
        pytest.param(
            {"alertname": "NexusGateDatabaseDown", "instance": "i1", "severity": "critical"},
            {"alertname": "NexusGateRequestLogBehind", "instance": "i1", "severity": "warning"},
            {"alertname": "NexusGateRequestLogBehind", "instance": "i2", "severity": "warning"},
            id="a log without its database is behind",
        ),
        pytest.param(
            {"alertname": "NexusGateErrorBudgetFastBurn", "slo": "availability", "severity": "critical"},
            {"alertname": "NexusGateErrorBudgetSlowBurn", "slo": "availability", "severity": "warning"},
            {"alertname": "NexusGateTTFTBudgetSlowBurn", "slo": "ttft", "severity": "warning"},
            id="the page about a budget says what the ticket would",
        ),
        pytest.param(
            {"alertname": "NexusGateDown", "severity": "critical", "job": "gone"},
            {"alertname": "NexusGateRedisDown", "severity": "warning", "job": "gone", "instance": "i3"},
            {"alertname": "NexusGateRedisDown", "severity": "warning", "job": "other", "instance": "i3"},
            id="nothing is known of a gateway that does not answer",
        ),
    ],
)
def test_what_is_known_already_is_not_told_again(
    alertmanager: str, webhook: Webhook, source: dict[str, str], silenced: dict[str, str], heard: dict[str, str]
) -> None:
    def was_heard(labels: dict[str, str]) -> bool:
        wanted = {"job": "drill", **labels}.items()
        return any(wanted <= alert["labels"].items() for alert in webhook.alerts(labels["alertname"], "firing"))

    post(alertmanager, source)
    stack.wait_until(lambda: was_heard(source), 30, "the source at the webhook")
    [told] = [alert["receiver"] for alert in webhook.alerts(source["alertname"], "firing") if was_heard(source)][:1]
    assert told == ("page" if source["severity"] == "critical" else "ticket")
    post(alertmanager, silenced, heard)
    stack.wait_until(lambda: was_heard(heard), 30, "what is not silenced at the webhook")
    assert states(alertmanager, silenced) == ["suppressed"]
    assert states(alertmanager, heard) == ["active"]
    assert not was_heard(silenced)

"""A gateway in front of a scripted provider, both the project's own binary, for tests with the official SDKs."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

import pytest
import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("NEXUSGATE_BIN") or str(
    pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "debug" / "nexusgate"
)
KEY = "sk-python-0123456789abcdef"
ADMIN_SECRET = "python-tests-admin-secret"
METRICS_TOKEN = "python-tests-metrics-token"
SMALL_KEY = "sk-python-small-0123456789"
#: May use one model only.
NARROW_KEY = "sk-python-narrow-0123456789"
MAX_BODY_SIZE = 1_000_000
MAX_IN_FLIGHT = 64
#: The same for the metrics' tests, which use up its one request.
METERED_KEY = "sk-python-metered-0123456789"
#: Keys whose comments are hard to write as a label value, or shared.
ODD_KEY, ODD_COMMENT = "sk-python-odd-0123456789ab", 'team:"a\\b"\n,{}=é'
SHARING_KEYS, SHARED_COMMENT = ("sk-python-first-0123456789", "sk-python-second-012345678"), "shared"
#: The provider kinds by the name of the model offered through each.
KINDS = {"via-chat": "openai", "via-responses": "openai-responses", "via-anthropic": "anthropic"}


def pytest_configure():
    """A signal that ends the tests is to them what Ctrl-C is: without it, no fixture would stop what it has started."""

    def interrupt(number, _):
        # `timeout` sends two: the second one must not interrupt what the first one has begun.
        signal.signal(number, lambda *_: None)
        raise KeyboardInterrupt

    for number in (signal.SIGHUP, signal.SIGTERM):
        # Under nohup, SIGHUP stays ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, interrupt)


def recordings():
    """The folder of recorded answers, or None if it does not exist."""
    candidates = [os.environ.get("NEXUSGATE_FIXTURES"), ROOT / "../shared/fixtures/recorded"]
    for candidate in candidates:
        if candidate and pathlib.Path(candidate).is_dir():
            return pathlib.Path(candidate).resolve()
    return None


class Provider:
    """The scripted provider, controlled through its control endpoint."""

    def __init__(self, control_url):
        self.control_url = control_url
        self.root = control_url.rsplit("/__control", 1)[0]

    def always(self, **reply):
        self._post({"always": reply})

    def next(self, *replies):
        self._post({"next": list(replies)})

    def calls(self):
        return requests.get(f"{self.root}/__calls", timeout=10).json()

    def _post(self, command):
        answer = requests.post(self.control_url, json=command, timeout=10)
        assert answer.ok, answer.text


class Gateway:
    def __init__(self, url, provider):
        self.url = url
        self.provider = provider

    def metrics(self):
        return requests.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {METRICS_TOKEN}"}, timeout=10).text

    def wait_for(self, condition, what):
        """Scrapes until `condition` holds of the text."""
        deadline = time.monotonic() + 30
        while not condition(text := self.metrics()):
            assert time.monotonic() < deadline, f"never came true: {what}\n{text}"
            time.sleep(0.02)
        return text


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def dismiss(demo):
    """Stops a demo that other clients have called: at the first signal it waits for an account that cannot add up."""
    deadline = time.monotonic() + 30
    while demo.poll() is None and time.monotonic() < deadline:
        demo.send_signal(signal.SIGTERM)
        try:
            demo.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            pass
    demo.kill()
    demo.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def provider():
    """A scripted provider of its own, in a demo that sends no traffic."""
    command = [BINARY, "demo", "--rate", "0", "--port", "0", "--json-ready", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        ready = json.loads(process.stdout.readline())
        yield Provider(ready["providers"][0]["control_url"])
    finally:
        dismiss(process)


@contextlib.contextmanager
def serving(provider):
    """A gateway that offers one model through each kind of provider; the scripted one plays them all."""
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "nexusgate.toml"
        lines = [f'[[api_keys]]\nkey = "{KEY}"\ncomment = "python"\n']
        lines.append(f'[[api_keys]]\nkey = "{SMALL_KEY}"\ncomment = "small"\nrpm_limit = 1\n')
        lines.append(f'[[api_keys]]\nkey = "{METERED_KEY}"\ncomment = "metered"\nrpm_limit = 1\n')
        for key, comment in ((ODD_KEY, ODD_COMMENT), *((key, SHARED_COMMENT) for key in SHARING_KEYS)):
            # TOML's basic strings have JSON's escapes.
            lines.append(f'[[api_keys]]\nkey = "{key}"\ncomment = {json.dumps(comment)}\n')
        lines.append(f'[[api_keys]]\nkey = "{NARROW_KEY}"\ncomment = "narrow"\nallowed_models = ["via-chat"]\n')
        for model, kind in KINDS.items():
            base = provider.root if kind == "anthropic" else f"{provider.root}/v1"
            lines.append(
                f'[[providers]]\nname = "{kind}"\ntype = "{kind}"\nbase_url = "{base}"\napi_key = "upstream"\n'
                f'[[models]]\nname = "{model}"\nprovider = "{kind}"\ninput_price = 1.0\noutput_price = 2.0\n'
            )
        lines.append('[[models]]\nname = "embed"\nprovider = "openai"\ntype = "embedding"\ninput_price = 0.1\n')
        config.write_text("\n".join(lines))
        port = free_port()
        environment = {
            **os.environ,
            "PORT": str(port),
            "LISTEN_ADDR": "127.0.0.1",
            "DATABASE_URL": f"sqlite://{folder}/test.db",
            "DATA_DIR": f"{folder}/data",
            "RATE_LIMIT_BURST": "1",
            "MAX_BODY_SIZE": str(MAX_BODY_SIZE),
            "MAX_IN_FLIGHT": str(MAX_IN_FLIGHT),
            "GAUGE_REFRESH_INTERVAL": "1s",
            "ADMIN_SUPER_SECRET": ADMIN_SECRET,
            "METRICS_BEARER_TOKEN": METRICS_TOKEN,
            "RUST_LOG": "error",
        }
        process = subprocess.Popen([BINARY, "serve", "--config", str(config)], env=environment)
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        try:
            while True:
                try:
                    if requests.get(f"{url}/readyz", timeout=1).ok:
                        break
                except requests.ConnectionError:
                    pass
                assert process.poll() is None, "the gateway ended"
                assert time.monotonic() < deadline, "the gateway is not ready"
                time.sleep(0.05)
            yield Gateway(url, provider)
        finally:
            stop(process)
        assert process.returncode == 0, "the gateway drained and ended well"


@pytest.fixture(scope="session")
def gateway(provider):
    with serving(provider) as running:
        yield running


@pytest.fixture(scope="session")
def own_gateway(provider):
    """A separate gateway for tests that change its configuration."""
    with serving(provider) as running:
        yield running

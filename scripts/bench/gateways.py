"""The gateways: how each is started, addressed, and stopped. All send to the same fake provider."""

import hashlib
import json
import os
import pathlib
import pwd
import shutil
import sqlite3
import subprocess
import time

from processes import GATEWAY_CORE, LOAD_CORE, Process, Running, free_port, get, listens

WORK = pathlib.Path("target/bench").resolve()
KEY = "sk-bench-0123456789abcdef0123456789abcdef"


class Gateway:
    """A gateway to measure. `start` returns the seconds until it answered."""

    name = ""
    title = ""
    path = "/v1/chat/completions"
    # Gateways that take milliseconds a request do not get a hundred thousand of them.
    slow = False

    def __init__(self, provider_port, folder):
        self.provider = provider_port
        self.folder = folder
        self.port = free_port()
        self.process = None
        self.databases = []

    @classmethod
    def missing(cls):
        """The reason why it cannot be measured here."""
        return None

    @classmethod
    def version(cls):
        return ""

    def headers(self):
        return [f"authorization: Bearer {KEY}"]

    def address(self):
        return f"127.0.0.1:{self.port}"

    def cpu(self):
        """Seconds; `None` when unknown."""
        return self.process.cpu() if self.process else None

    def database_cpu(self):
        return sum(process.cpu() for process in self.databases)

    def rss(self):
        return self.process.rss() if self.process else None

    def peak(self):
        return self.process.peak() if self.process else None

    def stop(self):
        for process in [self.process, *self.databases]:
            if isinstance(process, Process):
                process.stop()

    def run(self, command, **more):
        self.process = Process(command, GATEWAY_CORE, self.folder / "gateway.log", **more)

    def counted(self):
        """Its own counts and log rows: a dict of numbers that must equal the load generator's."""
        return {}


class Direct(Gateway):
    name, title = "direct", "direct (no gateway)"

    def start(self):
        self.port = self.provider
        return 0.0


class Nginx(Gateway):
    name, title = "nginx", "nginx `proxy_pass` (no key, no log, no parsing)"

    @classmethod
    def missing(cls):
        return None if shutil.which("nginx") else "nginx is not installed"

    @classmethod
    def version(cls):
        return subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr.strip().rpartition("/")[2]

    def start(self):
        conf = self.folder / "nginx.conf"
        conf.write_text(f"""
worker_processes 1; daemon off; pid {self.folder}/nginx.pid; error_log {self.folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000000; client_body_buffer_size 64k;
    {"".join(f"{kind}_temp_path {self.folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))}
    upstream provider {{ server 127.0.0.1:{self.provider}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{self.port};
        location / {{
            proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}""")
        self.run(["nginx", "-c", conf])
        return self.process.wait_for(listens(self.port))


class Nexusgate(Gateway):
    name, title = "nexusgate", "**nexusgate**, SQLite (key, limits, metrics, request log)"
    binary = pathlib.Path("target/release/nexusgate").resolve()
    models = 1
    # A high limit must still be checked, and its headers written.
    RPM_LIMIT, TPM_LIMIT = 1_000_000_000, 2_000_000_000

    @classmethod
    def missing(cls):
        return None if cls.binary.exists() else f"{cls.binary} is not built"

    @classmethod
    def version(cls):
        return subprocess.run([cls.binary, "--version"], capture_output=True, text=True).stdout.split()[-1]

    def config(self):
        models = ["bench", *(f"other-{n}" for n in range(1, self.models))]
        lines = [f'[[providers]]\nname = "fake"\ntype = "openai"\nbase_url = "http://127.0.0.1:{self.provider}/v1"\napi_key = "sk-upstream"\n']
        lines += [f'[[models]]\nname = "{name}"\nprovider = "fake"\ninput_price = 2.5\noutput_price = 10.0\n' for name in models]
        lines.append(f'[[api_keys]]\nkey = "{KEY}"\ncomment = "bench"\nrpm_limit = {self.RPM_LIMIT}\ntpm_limit = {self.TPM_LIMIT}\n')
        return "\n".join(lines)

    def environment(self):
        return {"DATABASE_URL": f"sqlite://{self.folder}/nexusgate.db"}

    def start(self):
        config = self.folder / "nexusgate.toml"
        config.write_text(self.config())
        self.env = {
            "PORT": str(self.port),
            "LISTEN_ADDR": "127.0.0.1",
            "DATA_DIR": str(self.folder / "data"),
            "ADMIN_SUPER_SECRET": "bench-admin-secret",
            "NEXUSGATE_CONFIG": str(config),
            "RUST_LOG": "warn",
            **self.environment(),
        }
        return self.launch()

    def launch(self):
        self.run([self.binary, "serve"], env=self.env)
        return self.process.wait_for(lambda: get(f"http://{self.address()}/readyz"))

    def metrics(self):
        sums = {}
        for line in get(f"http://{self.address()}/metrics").splitlines():
            if line and not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                name, _, labels = series.partition("{")
                sums.setdefault(name, []).append((labels, float(value)))
        return sums

    def counted(self):
        deadline = time.monotonic() + 60
        while True:
            found = self.metrics()
            pending = sum(value for _, value in found["nexusgate_request_log_pending"])
            if not pending or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        total = lambda name, label="": int(sum(value for labels, value in found[name] if label in labels))
        return {
            "completions_total": total("nexusgate_completions_total", 'status="completed"'),
            "other_endings": total("nexusgate_completions_total") - total("nexusgate_completions_total", 'status="completed"'),
            "audit_mismatch": total("nexusgate_audit_mismatch"),
            "rows": self.rows(),
        }

    def rows(self):
        with sqlite3.connect(f"file:{self.folder}/nexusgate.db?mode=ro", uri=True) as database:
            return database.execute("SELECT count(*) FROM completions WHERE status = 'completed'").fetchone()[0]

    def add_keys(self, keys):
        """Inserts them into the database, which is faster than one API call for each."""
        self.process.stop()
        with sqlite3.connect(self.folder / "nexusgate.db") as database:
            (sealed,) = database.execute("SELECT key_encrypted FROM api_keys LIMIT 1").fetchone()
            database.executemany(
                "INSERT INTO api_keys (key_hash, key_encrypted, key_prefix, comment, rpm_limit, tpm_limit, revoked, source, created_at, updated_at)"
                f" VALUES (?, ?, 'sk-other', ?, {self.RPM_LIMIT}, {self.TPM_LIMIT}, 0, 'manual', '2026-11-01T00:00:00+00:00', '2026-11-01T00:00:00+00:00')",
                ((hashlib.sha256(key.encode()).digest(), sealed, f"team-{n % 50}") for n, key in enumerate(keys)),
            )
        self.launch()


class NexusgatePostgres(Nexusgate):
    name, title = "nexusgate-pg", "**nexusgate**, PostgreSQL + Redis"
    programs = None

    @classmethod
    def missing(cls):
        folders = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        cls.programs = folders[-1].parent if folders else None
        if not cls.programs:
            return "PostgreSQL is not installed"
        return super().missing() if shutil.which("redis-server") else "redis-server is not installed"

    def environment(self):
        return {
            "DATABASE_URL": f"postgres://postgres@127.0.0.1:{self.postgres_port}/postgres",
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_port}",
            "ENCRYPTION_KEY": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        }

    def start(self):
        # PostgreSQL refuses to run as root.
        owner = "postgres" if os.geteuid() == 0 else None
        data = self.folder / "postgres"
        data.mkdir()
        if owner:
            entry = pwd.getpwnam(owner)
            for path in (data, self.folder):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        self.postgres_port, self.redis_port = free_port(), free_port()
        subprocess.run(
            [self.programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"],
            check=True, stdout=subprocess.DEVNULL, user=owner, cwd="/",
        )
        log = self.folder / "databases.log"
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": data, "port": self.postgres_port, "max_wal_size": "4GB"}
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        postgres = Process([self.programs / "postgres", "-D", data, *flags], LOAD_CORE, log, cwd="/", user=owner)
        redis = Process(["redis-server", "--port", self.redis_port, "--bind", "127.0.0.1", "--save", "", "--dir", self.folder], LOAD_CORE, log)
        self.databases = [postgres, redis]
        postgres.wait_for(lambda: self.sql("SELECT 1") == "1")
        redis.wait_for(listens(self.redis_port))
        return super().start()

    def sql(self, query):
        command = ["psql", "-h", "127.0.0.1", "-p", str(self.postgres_port), "-U", "postgres", "-Atc", query]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    def rows(self):
        return int(self.sql("SELECT count(*) FROM completions WHERE status = 'completed'"))


class LiteLlm(Gateway):
    name, title = "litellm", "LiteLLM proxy (one worker)"
    slow = True
    folder_of_program = WORK / "litellm"

    @classmethod
    def missing(cls):
        return None if (cls.folder_of_program / "bin/litellm").exists() else "LiteLLM is not installed (see the script's output)"

    @classmethod
    def version(cls):
        code = "import importlib.metadata as m; print(m.version('litellm'))"
        return subprocess.run([cls.folder_of_program / "bin/python", "-c", code], capture_output=True, text=True).stdout.strip()

    def start(self):
        config = self.folder / "config.yaml"
        config.write_text(json.dumps({
            "model_list": [{"model_name": "bench", "litellm_params": {
                "model": "openai/bench", "api_base": f"http://127.0.0.1:{self.provider}/v1", "api_key": "sk-upstream"}}],
            "general_settings": {"master_key": KEY},
            "litellm_settings": {"telemetry": False, "num_retries": 0},
        }))
        self.run(
            [self.folder_of_program / "bin/litellm", "--config", config, "--port", self.port, "--host", "127.0.0.1", "--num_workers", "1"],
            env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_PROXY": "127.0.0.1"},
        )
        return self.process.wait_for(lambda: get(f"http://{self.address()}/health/liveliness"))


class Portkey(Gateway):
    name, title = "portkey", "Portkey gateway (no key, no log)"
    slow = True
    package = WORK / "portkey/node_modules/@portkey-ai/gateway"

    @classmethod
    def missing(cls):
        return None if (cls.package / "build/start-server.js").exists() else "Portkey is not installed (see the script's output)"

    @classmethod
    def version(cls):
        return json.loads((cls.package / "package.json").read_text())["version"]

    def headers(self):
        return ["authorization: Bearer sk-upstream", "x-portkey-provider: openai",
                f"x-portkey-custom-host: http://127.0.0.1:{self.provider}/v1"]

    def start(self):
        self.run(["node", self.package / "build/start-server.js", "--headless", f"--port={self.port}"], env={"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"})
        return self.process.wait_for(lambda: get(f"http://{self.address()}/"))


class Other(Gateway):
    """A gateway started elsewhere, with the fake provider as its upstream. Without a process id, its CPU and memory are unknown."""

    def __init__(self, name, url, pid, provider_port, folder):
        super().__init__(provider_port, folder)
        self.name = self.title = name
        self.process = Running(pid) if pid else None
        host, _, path = url.removeprefix("http://").partition("/")
        self.host, self.path = host, f"/{path}"

    def address(self):
        return self.host

    def headers(self):
        return [f"authorization: Bearer {os.environ.get('BENCH_KEY', KEY)}"]

    def start(self):
        return None


ALL = [Direct, Nginx, Nexusgate, NexusgatePostgres, LiteLlm, Portkey]

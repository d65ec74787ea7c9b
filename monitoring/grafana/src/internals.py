"""Gateway internals: the process, its runtime, the request log, Redis, the database, and the metrics themselves."""

from kit import (
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    ZERO_IS_GOOD,
    Column,
    board,
    grid,
    growth,
    lines,
    number,
    or_zero,
    quantile,
    quantiles,
    rate,
    ratio,
    sel,
    states,
    steps,
    total,
)

LOG = "nexusgate_request_log"
UP_DOWN = {"1": ("up", GREEN), "0": ("down", RED), "-1": ("not configured", "gray")}


def at_a_glance():
    return [
        number(
            "Instances",
            "Instances that Prometheus reaches.",
            f"sum({sel('nexusgate_info')})",
            decimals=0,
            thresholds=steps((None, RED), (1, GREEN)),
        ),
        number(
            "Youngest instance",
            "Time since the last start of any instance.",
            f"time() - max({sel('process_start_time_seconds')})",
            unit="s",
            thresholds=steps((None, YELLOW), (600, GREEN)),
        ),
        number(
            "Database",
            "Whether the database answered every instance last time.",
            f"min({sel('nexusgate_database_up')})",
            thresholds=steps((None, RED), (1, GREEN)),
            texts={"1": "up", "0": "down"},
        ),
        number(
            "Redis",
            "Whether Redis answers every instance.",
            f"min({sel('nexusgate_redis_up')}) or vector(-1)",
            thresholds=steps((None, "gray"), (0, RED), (1, GREEN)),
            texts={"1": "up", "0": "down", "-1": "not configured"},
        ),
        number(
            "Counters against log",
            "Requests counted but not logged, or the other way round. Anything but 0 is a bug.",
            f"sum(abs({sel('nexusgate_audit_mismatch')}))",
            decimals=0,
            thresholds=ZERO_IS_GOOD,
        ),
        number(
            "Series kept",
            "Series that the fullest instance keeps; METRICS_MAX_SERIES is the cap.",
            f"max({sel('nexusgate_metrics_series')})",
            decimals=0,
        ),
    ]


def requests():
    return [
        lines(
            "HTTP requests by route",
            "Everything that the listener answers.",
            [(total(rate("nexusgate_http_requests_total"), "route"), "{{route}}")],
            unit="reqps",
            stacked=True,
            width=8,
        ),
        lines(
            "HTTP answers by code",
            "429 and 401 are refusals, 502 and 504 are providers, 503 is a full or stopping gateway.",
            [(total(rate("nexusgate_http_requests_total"), "code"), "{{code}}")],
            unit="reqps",
            stacked=True,
            width=8,
        ),
        lines(
            "In flight",
            "Requests that have arrived and not yet ended, by API.",
            [(f"sum by (api_format) ({sel('nexusgate_requests_in_flight')})", "{{api_format}}")],
            unit="short",
            stacked=True,
            width=8,
        ),
        lines(
            "Overhead",
            "What the gateway itself adds to a request, all APIs.",
            [
                (quantile(q, "nexusgate_gateway_overhead_seconds", by=["instance"]), f"p{q * 100:.0f} {{{{instance}}}}")
                for q in (0.5, 0.99)
            ],
            unit="s",
        ),
        lines(
            "Refusals by the gateway's own fault",
            "overloaded: MAX_IN_FLIGHT is reached. shutting_down: the instance drains. internal_error: a handler panicked.",
            [
                (
                    total(
                        rate("nexusgate_requests_rejected_total", 'reason=~"overloaded|shutting_down|internal_error"'),
                        "reason",
                        "instance",
                    ),
                    "{{reason}} {{instance}}",
                )
            ],
            unit="reqps",
        ),
    ]


def process():
    return [
        lines("CPU", "Cores in use.", [(rate("process_cpu_seconds_total"), "{{instance}}")], unit="short", width=8),
        lines(
            "Memory",
            "Resident set.",
            [(sel("process_resident_memory_bytes"), "{{instance}}")],
            unit="bytes",
            width=8,
        ),
        lines(
            "File descriptors",
            "Share of the limit that is open; a stream takes two.",
            [(ratio(sel("process_open_fds"), sel("process_max_fds")), "{{instance}}")],
            unit="percentunit",
            bounds=(0, 1),
            width=8,
        ),
        lines(
            "Busy workers",
            "Share of the time that tokio's workers were busy.",
            [(ratio(rate("tokio_busy_seconds_total"), sel("tokio_workers")), "{{instance}}")],
            unit="percentunit",
            bounds=(0, None),
            width=8,
        ),
        lines(
            "Tasks",
            "Alive in tokio: connections, streams and background work.",
            [(sel("tokio_live_tasks"), "{{instance}}")],
            unit="short",
            width=8,
        ),
        lines(
            "Waiting tasks",
            "In tokio's shared queue. More than a few for long: the workers do not keep up.",
            [(sel("tokio_global_queue_depth"), "{{instance}}")],
            unit="short",
            width=8,
        ),
    ]


def request_log():
    return [
        lines(
            "Rows written",
            "A second, by table.",
            [(total(rate(f"{LOG}_rows_total"), "table"), "{{table}}")],
            unit="wps",
            width=8,
        ),
        lines(
            "Rows waiting",
            "Finished requests that are not in the database yet.",
            [(f"sum by (table, instance) ({sel(f'{LOG}_pending')})", "{{table}} {{instance}}")],
            unit="short",
            width=8,
        ),
        lines(
            "Oldest row waiting",
            "How far the log is behind.",
            [(sel(f"{LOG}_oldest_pending_seconds"), "{{instance}}")],
            unit="s",
            width=8,
        ),
        lines(
            "Journal",
            "Bytes of the journal, as a share of what it may have; at 100 % payloads are dropped, then rows.",
            [(f"{sel('nexusgate_journal_bytes')} / {sel('nexusgate_journal_max_bytes')}", "{{instance}}")],
            unit="percentunit",
            width=8,
        ),
        lines(
            "Time to write a batch",
            "By table.",
            quantiles(f"{LOG}_flush_duration_seconds", by="table", qs=(0.5, 0.99)),
            unit="s",
            width=8,
        ),
        lines(
            "Trouble",
            "Batches tried again; rows and payloads given up; journal records that could not be written or read.",
            [
                (total(rate(f"{LOG}_retries_total")), "retries"),
                (total(rate(f"{LOG}_rows_dropped_total")), "rows dropped"),
                (total(rate(f"{LOG}_payloads_dropped_total")), "payloads dropped"),
                (total(rate("nexusgate_journal_write_errors_total")), "journal write errors"),
                (total(rate("nexusgate_journal_damaged_records_total")), "damaged records"),
            ],
            unit="cps",
            width=8,
        ),
        lines(
            "Counters against log over time",
            "Counted less logged and waiting, since start. A straight line at 0 is right.",
            [(sel("nexusgate_audit_mismatch"), "{{table}} {{instance}}")],
            unit="short",
            bounds=(None, None),
            width=8,
        ),
    ]


def dependencies():
    return [
        states(
            "Database and Redis",
            "As every instance sees them.",
            [
                (sel("nexusgate_database_up"), "database {{instance}}"),
                (
                    f"max by (instance) ({sel('nexusgate_redis_up')}) or"
                    f" max by (instance) ({sel('nexusgate_info')}) - 2",
                    "redis {{instance}}",
                ),
            ],
            UP_DOWN,
        ),
        lines(
            "Redis errors",
            "Calls that failed, by what they were for.",
            [
                (
                    f"{total(rate('nexusgate_redis_errors_total'), 'op')} or on ()"
                    ' label_replace(vector(0), "op", "no Redis", "", "")',
                    "{{op}}",
                )
            ],
            unit="cps",
            height=6,
        ),
        lines(
            "Age of the gauges",
            "Since the last refresh that worked. A saw-tooth below GAUGE_REFRESH_INTERVAL is right.",
            [(f"time() - {sel('nexusgate_gauge_refresh_timestamp_seconds')}", "{{instance}}")],
            unit="s",
        ),
        lines(
            "Gauge refreshes that failed",
            "The gauges kept their last values.",
            [(total(rate("nexusgate_gauge_refresh_errors_total"), "instance"), "{{instance}}")],
            unit="cps",
        ),
    ]


def metrics():
    overflow = "nexusgate_metrics_overflow_total"

    def before(metric):
        return f"last_over_time({sel(metric)}[5m] offset $__range)"

    # A counter comes with its first event, which increase() does not see. It is new where the process is, or where a
    # scrape before the time range worked and did not have it; a scrape that failed says nothing.
    young = f"{sel('process_start_time_seconds')} > time() - $__range_s"
    scraped = f"({before('nexusgate_metrics_series')} or {young})"
    new = f"{sel(overflow)} unless {before(overflow)} and on (job, instance) {scraped}"
    return [
        lines(
            "Time to render a scrape",
            "In the gateway.",
            [
                (
                    quantile(q, "nexusgate_metrics_render_duration_seconds", by=["instance"]),
                    f"p{q * 100:.0f} {{{{instance}}}}",
                )
                for q in (0.5, 0.99)
            ],
            unit="s",
            width=8,
        ),
        lines(
            "Time of a scrape",
            "As Prometheus sees it.",
            [(sel("scrape_duration_seconds"), "{{instance}}")],
            unit="s",
            width=8,
        ),
        lines(
            "Series",
            "Kept by each instance, a histogram with one set of labels counted as one.",
            [(sel("nexusgate_metrics_series"), "{{instance}}")],
            unit="short",
            width=8,
        ),
        number(
            "Series refused",
            "By the cap, in the time range; counted under _overflow instead, gauges left out.",
            or_zero(total(f"{new} or {growth(overflow)}")),
            decimals=0,
            thresholds=ZERO_IS_GOOD,
            width=6,
        ),
        number(
            "Broken scrapes",
            "Instances that could not render their metrics.",
            f"sum({sel('nexusgate_metrics_error')}) or vector(0)",
            decimals=0,
            thresholds=ZERO_IS_GOOD,
            width=6,
        ),
        grid(
            "Versions",
            "What every instance runs.",
            {"instance": "Instance", "version": "Version"},
            [Column("Up", f"max by (instance, version) ({sel('nexusgate_info')})")],
            sort="Instance",
            width=12,
            height=4,
        ),
    ]


def dashboard():
    return board(
        "Gateway internals",
        "Process, runtime, request log, database, Redis, and metrics about metrics.",
        [
            ("At a glance", at_a_glance()),
            ("Requests", requests()),
            ("Process and runtime", process()),
            ("Request log", request_log()),
            ("Database, Redis and gauges", dependencies()),
            ("Metrics about metrics", metrics()),
        ],
    )

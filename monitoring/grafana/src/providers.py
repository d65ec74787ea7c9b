"""Providers: who is up, who fails and how, who is slow, and how much of the time is the gateway's own."""

from kit import (
    GREEN,
    KEY,
    LOW_IS_GOOD,
    MODEL,
    OUTCOME_COLORS,
    PROVIDER,
    RED,
    UIDS,
    YELLOW,
    ZERO_IS_GOOD,
    Column,
    board,
    go,
    grid,
    growth,
    heat,
    lines,
    number,
    or_zero,
    quantile,
    quantiles,
    rate,
    ratio,
    sel,
    shares,
    states,
    steps,
    total,
)

ATTEMPTS = "nexusgate_upstream_attempts_total"
FAILOVERS = "nexusgate_failovers_total"
DURATION = "nexusgate_upstream_duration_seconds"
OVERHEAD = "nexusgate_gateway_overhead_seconds"
COST = "nexusgate_cost_total_usd_total"

# The provider's fault; not the caller's (http_4xx), the client's (cancelled) or a quota (http_429).
FAULTS = 'outcome=~"connect|timeout|http_5xx|protocol|stream_cut"'
COUNTED = 'outcome!="cancelled"'
# Requests that were not answered from the request log.
CALLED = 'status!="cache_hit"'
# What a provider is left for (a 408 among the http_4xx); the others end the request there, and would only fill the legend.
LEFT_FOR = 'outcome!~"ok|cancelled"'


def at_a_glance():
    return [
        number(
            "Providers in rotation",
            "Providers that at least one instance sends traffic to.",
            f"count(max by (provider) ({sel('nexusgate_provider_up', PROVIDER)}) == 1) or vector(0)",
            decimals=0,
            thresholds=steps((None, RED), (1, GREEN)),
        ),
        number(
            "Breakers open",
            "Circuit breakers that are open now, over all instances.",
            f"count({sel('nexusgate_provider_up', PROVIDER)} == 0) or vector(0)",
            decimals=0,
            thresholds=ZERO_IS_GOOD,
        ),
        number(
            "Calls to providers",
            "A second, retries and failovers included.",
            total(rate(ATTEMPTS, PROVIDER, MODEL)),
            unit="reqps",
            spark=True,
        ),
        number(
            "Calls that failed",
            "By the provider's fault, in the time range.",
            ratio(
                total(growth(ATTEMPTS, PROVIDER, MODEL, FAULTS)), total(growth(ATTEMPTS, PROVIDER, MODEL, COUNTED))
            ),
            unit="percentunit",
            decimals=2,
            thresholds=LOW_IS_GOOD,
            bounds=(0, 1),
        ),
        number(
            "Failovers per request",
            "Moves to another provider, for each request in the time range. A request may move twice.",
            ratio(
                total(growth(FAILOVERS, MODEL)),
                f"({or_zero(total(growth('nexusgate_completions_total', MODEL)))}"
                f" + {or_zero(total(growth('nexusgate_embeddings_total', MODEL)))})",
            ),
            decimals=2,
            thresholds=steps((None, GREEN), (0.05, YELLOW), (0.2, RED)),
        ),
        number(
            "Gateway overhead, p95",
            "What the gateway itself adds to a request.",
            quantile(0.95, OVERHEAD, window="$__range"),
            unit="s",
            thresholds=steps((None, GREEN), (0.01, YELLOW), (0.05, RED)),
        ),
    ]


def health():
    return [
        states(
            "Circuit breakers",
            "Red while an instance keeps traffic away from a provider.",
            [(f"min by (provider, instance) ({sel('nexusgate_provider_up', PROVIDER)})", "{{provider}} on {{instance}}")],
            {"1": ("closed", GREEN), "0": ("open", RED)},
            width=24,
            height=5,
        ),
        lines(
            "Calls by outcome",
            "How calls to providers ended. http_4xx is the caller's doing, cancelled the client's.",
            [(total(rate(ATTEMPTS, PROVIDER, MODEL), "outcome"), "{{outcome}}")],
            unit="reqps",
            stacked=True,
            colors=OUTCOME_COLORS,
        ),
        lines(
            "Calls by provider",
            "Where the traffic goes.",
            [(total(rate(ATTEMPTS, PROVIDER, MODEL), "provider"), "{{provider}}")],
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Failed calls by provider",
            "Share of calls that failed by the provider's fault.",
            [
                (
                    ratio(
                        total(rate(ATTEMPTS, PROVIDER, MODEL, FAULTS), "provider"),
                        total(rate(ATTEMPTS, PROVIDER, MODEL, COUNTED), "provider"),
                    ),
                    "{{provider}}",
                )
            ],
            unit="percentunit",
            bounds=(0, 1),
            width=8,
        ),
        lines(
            "Throttled calls by provider",
            "Share of calls that came back as 429.",
            [
                (
                    ratio(
                        total(rate(ATTEMPTS, PROVIDER, MODEL, 'outcome="http_429"'), "provider"),
                        total(rate(ATTEMPTS, PROVIDER, MODEL, COUNTED), "provider"),
                    ),
                    "{{provider}}",
                )
            ],
            unit="percentunit",
            bounds=(0, 1),
            width=8,
        ),
        lines(
            "Calls per request",
            "One is best; more are retries and failovers.",
            [
                (
                    ratio(
                        total(rate(ATTEMPTS, MODEL), "model"),
                        total(
                            rate("nexusgate_completions_total", MODEL, CALLED)
                            + " or "
                            + rate("nexusgate_embeddings_total", MODEL, CALLED),
                            "model",
                        ),
                    ),
                    "{{model}}",
                )
            ],
            unit="short",
            width=8,
        ),
    ]


def failover():
    return [
        lines(
            "Failovers by provider left",
            "Which provider requests leave, and why.",
            [(total(rate(FAILOVERS, PROVIDER, MODEL, LEFT_FOR), "provider", "outcome"), "{{provider}} ({{outcome}})")],
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Failovers by model",
            "Which models have to look for another provider.",
            [(total(rate(FAILOVERS, PROVIDER, MODEL), "model"), "{{model}}")],
            unit="reqps",
            stacked=True,
        ),
    ]


def latency():
    return [
        lines(
            "Call duration by provider",
            "From sending a call to the last byte of its answer.",
            quantiles(DURATION, PROVIDER, by="provider", qs=(0.5, 0.95, 0.99)),
            unit="s",
        ),
        heat("Call duration", "All chosen providers, bucket by bucket.", DURATION, PROVIDER),
        lines(
            "Provider against gateway",
            "The median call, and the median of what the gateway adds. Mind the logarithmic scale.",
            [
                (quantile(0.5, DURATION, PROVIDER), "provider p50"),
                (quantile(0.95, DURATION, PROVIDER), "provider p95"),
                (quantile(0.5, OVERHEAD), "gateway p50"),
                (quantile(0.95, OVERHEAD), "gateway p95"),
            ],
            unit="s",
            log=True,
        ),
        lines(
            "Gateway overhead by API format",
            "Total time less waiting for the provider and for the client.",
            quantiles(OVERHEAD, by="api_format", qs=(0.5, 0.95, 0.99)),
            unit="s",
        ),
        lines(
            "Longest silence in a stream",
            "p95 of the longest wait for the provider between two chunks, by model.",
            quantiles("nexusgate_stream_stall_seconds", MODEL, by="model", qs=(0.5, 0.95)),
            unit="s",
        ),
        lines(
            "Why models stopped",
            "length: cut at the token limit. content_filter: the provider refused.",
            [(total(rate("nexusgate_completion_finish_reasons_total", MODEL), "finish_reason"), "{{finish_reason}}")],
            unit="reqps",
            percent=True,
        ),
    ]


def compared():
    def of(metric, *matchers):
        return total(growth(metric, PROVIDER, *matchers), "provider")

    calls = of(ATTEMPTS, MODEL, COUNTED)
    return [
        shares("Share of calls", "In the time range.", of(ATTEMPTS, MODEL), "{{provider}}"),
        shares(
            "Faults by kind",
            "In the time range, all chosen providers.",
            total(growth(ATTEMPTS, PROVIDER, MODEL, 'outcome!~"ok|cancelled"'), "outcome"),
            "{{outcome}}",
            colors=OUTCOME_COLORS,
        ),
        shares(
            "Cost by provider",
            "In the time range.",
            of(COST, MODEL, KEY),
            "{{provider}}",
            unit="currencyUSD",
            link=go(UIDS["Keys and cost"], "Keys and cost"),
        ),
        grid(
            "Providers compared",
            "Over the whole time range.",
            {"provider": "Provider"},
            [
                Column("Calls", of(ATTEMPTS, MODEL)),
                Column(
                    "Failed",
                    ratio(of(ATTEMPTS, MODEL, FAULTS), calls),
                    "percentunit",
                    2,
                    [(None, GREEN), (0.01, YELLOW), (0.05, RED)],
                ),
                Column(
                    "Throttled",
                    ratio(of(ATTEMPTS, MODEL, 'outcome="http_429"'), calls),
                    "percentunit",
                    2,
                    [(None, GREEN), (0.01, YELLOW), (0.1, RED)],
                ),
                Column("Left", of(FAILOVERS, MODEL)),
                Column("p50", quantile(0.5, DURATION, PROVIDER, by=["provider"], window="$__range"), "s", 2),
                Column("p95", quantile(0.95, DURATION, PROVIDER, by=["provider"], window="$__range"), "s", 2),
                Column("Cost", of(COST, MODEL, KEY), "currencyUSD", 4),
            ],
            sort="Calls",
            totals=["Calls", "Left", "Cost"],
            height=7,
        ),
        grid(
            "Outcomes",
            "Calls in the time range by provider, model and outcome.",
            {"provider": "Provider", "model": "Model", "outcome": "Outcome"},
            [Column("Calls", f"{total(growth(ATTEMPTS, PROVIDER, MODEL), 'provider', 'model', 'outcome')} > 0")],
            sort="Calls",
            totals=["Calls"],
            height=9,
        ),
    ]


def dashboard():
    return board(
        "Providers",
        "Attempts, failovers, breakers, and upstream latency against the gateway's own.",
        [
            ("At a glance", at_a_glance()),
            ("Health", health()),
            ("Failover", failover()),
            ("Latency", latency()),
            ("Compared", compared()),
        ],
    )

"""Overview: is the gateway well, how much does it do, how fast, for how much money?

Answers every question of the reference system's dashboard. Where that one errs, this one does not: ratios have no
invented denominators, usage cannot leave its scale, gauges that every instance reports are not added up, tables are
merged on all their labels, and bucket bounds match `1` as well as the `1.0` of Prometheus 3.
"""

from kit import (
    GREEN,
    HIGH_IS_GOOD,
    KEY,
    LOW_IS_GOOD,
    MODEL,
    NEUTRAL,
    PROVIDER,
    RED,
    STATUS_COLORS,
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
    ranking,
    rate,
    ratio,
    sel,
    shares,
    steps,
    total,
)

COMPLETIONS = "nexusgate_completions_total"
EMBEDDINGS = "nexusgate_embeddings_total"
COST = "nexusgate_cost_total_usd_total"
DURATION = "nexusgate_completion_duration_seconds"
TTFT = "nexusgate_completion_ttft_seconds"

SUCCEEDED = 'status=~"completed|cache_hit"'
FAILED = 'status="failed"'
# What the client broke off is neither a success nor a failure.
DECIDED = 'status!="aborted"'

PROVIDERS, KEYS = UIDS["Providers"], UIDS["Keys and cost"]


def at_a_glance():
    firing = 'count(ALERTS{alertname=~"NexusGate.+",alertstate="firing"}) or vector(0)'
    return [
        number(
            "Completions",
            "Completions that were answered in the time range, from a provider or from the request log.",
            total(growth(COMPLETIONS, MODEL, KEY, SUCCEEDED)),
            decimals=0,
        ),
        number(
            "Embeddings",
            "Embedding requests that were answered in the time range.",
            total(growth(EMBEDDINGS, MODEL, KEY, SUCCEEDED)),
            decimals=0,
        ),
        number(
            "Success rate",
            "Share of the completions that were answered, of those that the client did not break off.",
            ratio(total(growth(COMPLETIONS, MODEL, KEY, SUCCEEDED)), total(growth(COMPLETIONS, MODEL, KEY, DECIDED))),
            unit="percentunit",
            decimals=2,
            thresholds=HIGH_IS_GOOD,
            bounds=(0, 1),
        ),
        number(
            "Active API keys",
            "Keys that are neither revoked nor expired.",
            f"max({sel('nexusgate_active_api_keys')})",
            link=go(KEYS, "Keys and cost"),
        ),
        number(
            "Active providers",
            "Providers that are configured.",
            f"max({sel('nexusgate_active_providers')})",
            link=go(PROVIDERS, "Providers"),
        ),
        number(
            "Active models",
            "Chat and embedding models that are configured.",
            f"sum(max by (type) ({sel('nexusgate_active_models')}))",
        ),
        number(
            "In flight",
            "Requests that have arrived and not yet ended, streams included.",
            f"sum({sel('nexusgate_requests_in_flight')})",
            spark=True,
        ),
        number(
            "Refused at the door",
            "Share of all inference requests that were refused before they reached a model: bad key, over a limit, "
            "unknown model, no room. By reason further down.",
            ratio(
                total(growth("nexusgate_requests_rejected_total")),
                f"({total(growth('nexusgate_requests_rejected_total'))} + {or_zero(total(growth(COMPLETIONS)))}"
                f" + {or_zero(total(growth(EMBEDDINGS)))})",
            ),
            unit="percentunit",
            decimals=2,
            thresholds=steps((None, GREEN), (0.05, YELLOW), (0.2, RED)),
            bounds=(0, 1),
        ),
        number(
            "Goodput",
            "Share of the completed streams of models with targets that met them: for first token and time per token.",
            ratio(
                total(growth("nexusgate_completions_within_slo_total", MODEL)),
                f"({total(growth('nexusgate_completions_within_slo_total', MODEL))}"
                f" + {total(growth('nexusgate_completions_missed_slo_total', MODEL))})",
            ),
            unit="percentunit",
            decimals=1,
            thresholds=steps((None, RED), (0.8, YELLOW), (0.95, GREEN)),
            bounds=(0, 1),
        ),
        number(
            "Error budget left",
            "Of the failures that the availability objective allows in 30 days, the share not yet used. Below zero "
            "the objective is missed. Needs the recording rules.",
            "min(nexusgate:slo_errors:budget_remaining_30d)",
            unit="percentunit",
            decimals=0,
            thresholds=steps((None, RED), (0.0, YELLOW), (0.25, GREEN)),
        ),
        number(
            "Alerts firing", "Alerts of nexusgate that are firing now.", firing, thresholds=ZERO_IS_GOOD, decimals=0
        ),
        number(
            "Version",
            "What the instances run; two numbers while a deployment is rolling.",
            f"count by (version) ({sel('nexusgate_info')})",
            legend="{{version}}",
            show_name=True,
            link=go(UIDS["Gateway internals"], "Gateway internals"),
        ),
    ]


def traffic():
    return [
        lines(
            "Completion rate by model",
            "All completions that ended, however they ended.",
            [(total(rate(COMPLETIONS, MODEL, KEY), "model"), "{{model}}")],
            unit="reqps",
            stacked=True,
            link=go(PROVIDERS, "Providers of this model", "model", "model"),
        ),
        lines(
            "Completion rate by status",
            "completed: the client has the whole answer. failed: provider or gateway. aborted: the client left first. "
            "cache_hit: answered from the request log by request id.",
            [(total(rate(COMPLETIONS, MODEL, KEY), "status"), "{{status}}")],
            unit="reqps",
            stacked=True,
            colors=STATUS_COLORS,
        ),
    ]


def latency():
    bands = [
        ("≤ 0.5 s", "0.5", None),
        ("0.5 – 1 s", "1", "0.5"),
        ("1 – 2.5 s", "2.5", "1"),
        ("2.5 – 5 s", "5", "2.5"),
        ("5 – 10 s", "10", "5"),
        ("10 – 30 s", "30", "10"),
        ("> 30 s", "+Inf", "30"),
    ]

    def below(bound):
        # Prometheus 3 writes `1` as `1.0`. The dot has to be escaped: "1.0" is a pattern that 120 fits too.
        matcher = rf'le=~"{bound}|{bound}\\.0"' if bound.isdigit() else f'le="{bound}"'
        return total(rate(DURATION + "_bucket", MODEL, matcher))

    return [
        lines(
            "Completion duration",
            "From arrival to the last byte, completed completions.",
            quantiles(DURATION, MODEL, by="model"),
            unit="s",
        ),
        lines(
            "Time to first token",
            "From arrival to the first content token; completed streams only, so that answers in one piece do not "
            "pass for slow starts.",
            quantiles(TTFT, MODEL, by="model"),
            unit="s",
        ),
        lines(
            "Latency distribution",
            "Completed completions by how long they took.",
            [(below(upper) + (f" - {below(lower)}" if lower else ""), name) for name, upper, lower in bands],
            unit="reqps",
            percent=True,
            bars=True,
            width=8,
            calcs=("mean",),
            colors={
                "≤ 0.5 s": "dark-green",
                "0.5 – 1 s": GREEN,
                "1 – 2.5 s": "light-green",
                "2.5 – 5 s": YELLOW,
                "5 – 10 s": "orange",
                "10 – 30 s": "dark-orange",
                "> 30 s": RED,
            },
        ),
        heat("Duration heat map", "The same, bucket by bucket.", DURATION, MODEL, width=8),
        lines(
            "Time per output token",
            "The pace of a stream after its first token.",
            quantiles("nexusgate_completion_tpot_seconds", MODEL, by="model", qs=(0.5, 0.95)),
            unit="s",
            width=8,
        ),
    ]


def tokens():
    return [
        lines(
            "Token rate",
            "Tokens a second as the providers reported them. Prompt tokens include those read from a cache.",
            [
                (total(rate("nexusgate_tokens_prompt_total", MODEL), "model"), "prompt {{model}}"),
                (total(rate("nexusgate_tokens_completion_total", MODEL), "model"), "completion {{model}}"),
            ],
            unit="short",
            stacked=True,
        ),
        shares(
            "Prompt tokens by model",
            "In the time range.",
            total(growth("nexusgate_tokens_prompt_total", MODEL), "model"),
            "{{model}}",
            width=6,
            height=8,
        ),
        shares(
            "Completion tokens by model",
            "In the time range.",
            total(growth("nexusgate_tokens_completion_total", MODEL), "model"),
            "{{model}}",
            width=6,
            height=8,
        ),
    ]


def errors():
    usage = [
        (f"100 * max by (api_key_comment) ({sel(f'nexusgate_api_key_{kind}_usage', KEY)})", kind)
        for kind in ("rpm", "tpm")
    ]
    return [
        lines(
            "Error rate by model",
            "Failed completions, of those that the client did not break off.",
            [
                (
                    ratio(
                        total(rate(COMPLETIONS, MODEL, KEY, FAILED), "model"),
                        total(rate(COMPLETIONS, MODEL, KEY, DECIDED), "model"),
                    ),
                    "{{model}}",
                )
            ],
            unit="percentunit",
            bounds=(0, 1),
            width=8,
            link=go(PROVIDERS, "Providers of this model", "model", "model"),
        ),
        lines(
            "Cache-hit rate",
            "Completions answered from the request log, by X-NexusGate-ReqId.",
            [
                (
                    ratio(
                        total(rate(COMPLETIONS, MODEL, KEY, 'status="cache_hit"')),
                        total(rate(COMPLETIONS, MODEL, KEY)),
                    ),
                    "cache hits",
                )
            ],
            unit="percentunit",
            bounds=(0, 1),
            width=8,
        ),
        shares(
            "How completions went wrong",
            "Failed: the provider's or the gateway's doing. Aborted: the client left. Why calls to providers fail is "
            "on the Providers dashboard.",
            total(growth(COMPLETIONS, MODEL, KEY, 'status=~"failed|aborted"'), "status"),
            "{{status}}",
            height=8,
            colors=STATUS_COLORS,
            link=go(PROVIDERS, "Providers"),
        ),
        lines(
            "Rate-limit rejections",
            "Requests refused because a key was over a limit.",
            [
                (
                    total(rate("nexusgate_rate_limit_rejections_total", KEY), "api_key_comment", "limit_type"),
                    "{{api_key_comment}} ({{limit_type}})",
                )
            ],
            unit="reqps",
            width=8,
            link=go(KEYS, "This key", "api_key_comment", "key"),
        ),
        ranking(
            "Limit usage",
            "What keys have taken of their per-minute limits. 100 % is at the limit or over it (bursts may use three "
            "minutes at once, a huge answer leaves a debt): the uncut values are on Keys and cost.",
            [
                (
                    f"clamp_max({expr} / (max by (api_key_comment) ({sel(f'nexusgate_api_key_{kind}_limit', KEY)})"
                    " > 0), 100)",
                    f"{{{{api_key_comment}}}} {kind.upper()}",
                )
                for expr, kind in usage
            ],
            unit="percent",
            width=8,
            decimals=0,
            thresholds=steps((None, GREEN), (70, YELLOW), (90, RED)),
            bounds=(0, 100),
            link=go(KEYS, "This key", "api_key_comment", "key"),
        ),
        lines(
            "Refusals by reason",
            "Inference requests that never reached a model.",
            [(total(rate("nexusgate_requests_rejected_total"), "reason"), "{{reason}}")],
            unit="reqps",
            stacked=True,
            width=8,
        ),
    ]


def distribution():
    return [
        shares(
            "Completions by API format",
            "Which API the clients speak.",
            total(growth(COMPLETIONS, MODEL, KEY), "api_format"),
            "{{api_format}}",
        ),
        shares("Completions by model", "In the time range.", total(growth(COMPLETIONS, MODEL, KEY), "model"), "{{model}}"),
        shares(
            "Completions by status",
            "In the time range.",
            total(growth(COMPLETIONS, MODEL, KEY), "status"),
            "{{status}}",
            colors=STATUS_COLORS,
        ),
    ]


def embeddings():
    return [
        lines(
            "Embedding rate",
            "Embedding requests that ended, by model.",
            [(total(rate(EMBEDDINGS, MODEL, KEY), "model"), "{{model}}")],
            unit="reqps",
            stacked=True,
            width=8,
        ),
        lines(
            "Embedding duration",
            "From arrival to the last byte.",
            quantiles("nexusgate_embedding_duration_seconds", MODEL, by="model", qs=(0.5, 0.95)),
            unit="s",
            width=8,
        ),
        lines(
            "Embedding tokens",
            "Input tokens a second.",
            [(total(rate("nexusgate_tokens_embedding_total", MODEL), "model"), "{{model}}")],
            unit="short",
            stacked=True,
            width=8,
        ),
    ]


def cost():
    every = (MODEL, PROVIDER, KEY)

    def spent(which):
        return total(growth(f"nexusgate_cost_{which}_usd_total", *every), "model", "provider", "api_key_comment")

    return [
        lines(
            "Cost over time",
            "USD an hour at the present pace, by model. Only models with a price.",
            [(f"3600 * {total(rate(COST, *every), 'model')}", "{{model}}")],
            unit="currencyUSD",
            stacked=True,
            link=go(KEYS, "Keys and cost"),
        ),
        shares(
            "Cost by provider",
            "In the time range.",
            total(growth(COST, *every), "provider"),
            "{{provider}}",
            unit="currencyUSD",
            width=6,
            height=8,
            link=go(PROVIDERS, "This provider", "provider", "provider"),
        ),
        shares(
            "Cost by key",
            "In the time range.",
            total(growth(COST, *every), "api_key_comment"),
            "{{api_key_comment}}",
            unit="currencyUSD",
            width=6,
            height=8,
            link=go(KEYS, "This key", "api_key_comment", "key"),
        ),
        grid(
            "Cost breakdown",
            "In the time range, by model, provider and key.",
            {"model": "Model", "provider": "Provider", "api_key_comment": "Key"},
            [
                Column("Prompt", spent("prompt"), "currencyUSD", 4),
                Column("Completion", spent("completion"), "currencyUSD", 4),
                Column("Total", spent("total"), "currencyUSD", 4),
            ],
            sort="Total",
            totals=["Prompt", "Completion", "Total"],
        ),
    ]


def trend():
    def change(metric, *matchers):
        now, then = growth(metric, *matchers), growth(metric, *matchers, offset=" offset $__range")
        return f"{ratio(total(now), total(then))} - 1"

    def both(metric, *matchers, factor=""):
        now = f"sum(rate({sel(metric, *matchers)}[$__rate_interval]))"
        then = f"sum(rate({sel(metric, *matchers)}[$__rate_interval] offset $__range))"
        return [(factor + now, "this period"), (factor + then, "period before")]

    return [
        lines(
            "Request rate against the period before",
            "The period before is the time range shifted by its own length.",
            both(COMPLETIONS, MODEL, KEY),
            unit="reqps",
            dashed="period before",
        ),
        lines(
            "Cost against the period before",
            "USD an hour at the pace of the moment.",
            both(COST, MODEL, PROVIDER, KEY, factor="3600 * "),
            unit="currencyUSD",
            dashed="period before",
        ),
        number(
            "Request change",
            "Completions in this time range against the one before; empty when there were none.",
            change(COMPLETIONS, MODEL, KEY),
            unit="percentunit",
            decimals=1,
            thresholds=NEUTRAL,
            width=6,
        ),
        number(
            "Cost change",
            "Spending in this time range against the one before; empty when there was none.",
            change(COST, MODEL, PROVIDER, KEY),
            unit="percentunit",
            decimals=1,
            thresholds=steps((None, GREEN), (0.1, YELLOW), (0.5, RED)),
            width=6,
        ),
        number(
            "Requests in this period",
            "Completions that ended in the time range, however they ended.",
            total(growth(COMPLETIONS, MODEL, KEY)),
            decimals=0,
            width=6,
        ),
        number(
            "Cost in this period",
            "USD spent in the time range.",
            total(growth(COST, MODEL, PROVIDER, KEY)),
            unit="currencyUSD",
            decimals=2,
            width=6,
            link=go(KEYS, "Keys and cost"),
        ),
    ]


def models():
    failed = ratio(
        total(growth(COMPLETIONS, MODEL, KEY, FAILED), "model"), total(growth(COMPLETIONS, MODEL, KEY, DECIDED), "model")
    )
    requests = total(growth(COMPLETIONS, MODEL, KEY), "model")
    # Embedding models cost something too, and have no row here.
    cost_by_model = f"{total(growth(COST, MODEL, PROVIDER, KEY), 'model')} and on (model) {requests}"
    prompt = total(growth("nexusgate_tokens_prompt_total", MODEL), "model")
    completion = total(growth("nexusgate_tokens_completion_total", MODEL), "model")
    return [
        ranking(
            "p95 duration by model",
            "Over the whole time range.",
            [(quantile(0.95, DURATION, MODEL, by=["model"], window="$__range"), "{{model}}")],
            unit="s",
            thresholds=steps((None, GREEN), (10, YELLOW), (30, RED)),
        ),
        ranking(
            "Error rates compared",
            "Over the whole time range.",
            [(failed, "{{model}}")],
            unit="percentunit",
            decimals=2,
            thresholds=LOW_IS_GOOD,
            bounds=(0, 1),
        ),
        ranking(
            "Cost per 1000 tokens",
            "USD for prompt and completion tokens together, all keys and providers.",
            [
                (
                    ratio(f"1000 * {total(growth(COST, MODEL), 'model')}", f"({prompt} + {completion})"),
                    "{{model}}",
                )
            ],
            unit="currencyUSD",
            decimals=4,
        ),
        ranking(
            "Requests by model",
            "Completions in the time range.",
            [(requests, "{{model}}")],
            unit="short",
            decimals=0,
        ),
        grid(
            "Performance matrix",
            "Every model over the whole time range.",
            {"model": "Model"},
            [
                Column("Requests", requests),
                Column("p50", quantile(0.5, DURATION, MODEL, by=["model"], window="$__range"), "s", 2),
                Column("p95", quantile(0.95, DURATION, MODEL, by=["model"], window="$__range"), "s", 2),
                Column("TTFT p95", quantile(0.95, TTFT, MODEL, by=["model"], window="$__range"), "s", 2),
                Column("Errors", failed, "percentunit", 2, [(None, GREEN), (0.01, YELLOW), (0.05, RED)]),
                Column("Prompt tokens", prompt),
                Column("Completion tokens", completion),
                Column("Cost", cost_by_model, "currencyUSD", 4),
            ],
            sort="Requests",
            totals=["Requests", "Prompt tokens", "Completion tokens", "Cost"],
        ),
    ]


def dashboard():
    return board(
        "Overview",
        "Traffic, latency, tokens, errors and cost of the gateway as a whole.",
        [
            ("At a glance", at_a_glance()),
            ("Traffic", traffic()),
            ("Latency", latency()),
            ("Tokens", tokens()),
            ("Errors, cache and limits", errors()),
            ("Shares", distribution()),
            ("Embeddings", embeddings()),
            ("Cost", cost()),
            ("Trend", trend()),
            ("Models compared", models()),
        ],
    )

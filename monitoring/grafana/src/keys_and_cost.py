"""Keys and cost: who uses how much, who runs into limits, what it costs, and what the month will cost."""

from kit import (
    GREEN,
    KEY,
    MODEL,
    PROVIDER,
    RED,
    STATUS_COLORS,
    YELLOW,
    ZERO_IS_GOOD,
    Column,
    board,
    grid,
    growth,
    lines,
    number,
    ranking,
    rate,
    ratio,
    sel,
    shares,
    steps,
    total,
)

COST = "nexusgate_cost_total_usd_total"
REJECTIONS = "nexusgate_rate_limit_rejections_total"
COMPLETIONS = "nexusgate_completions_total"
EMBEDDINGS = "nexusgate_embeddings_total"
EVERY = (MODEL, PROVIDER, KEY)

# One number for all environments that are looked at together.
MONTH_TO_DATE = "sum(nexusgate:cost_usd:month_to_date)"
FORECAST = "sum(nexusgate:cost_usd:month_forecast)"
BUDGET = "max(nexusgate:monthly_budget_usd:objective)"


def at_a_glance():
    budget = steps((None, GREEN), (0.8, YELLOW), (1, RED))
    return [
        number(
            "Spent in this period",
            "USD in the time range.",
            total(growth(COST, *EVERY)),
            unit="currencyUSD",
            decimals=2,
        ),
        number(
            "Pace",
            "USD an hour at the moment.",
            f"3600 * {total(rate(COST, *EVERY))}",
            unit="currencyUSD",
            decimals=2,
            spark=True,
        ),
        number(
            "Month to date",
            "USD since the first of the month (UTC), all keys. Needs the recording rules.",
            MONTH_TO_DATE,
            unit="currencyUSD",
            decimals=2,
        ),
        number(
            "Forecast of the month",
            "Month to date, and the rest of the month at the last day's pace, as a share of the budget.",
            ratio(FORECAST, BUDGET),
            unit="percentunit",
            decimals=0,
            thresholds=budget,
        ),
        number(
            "Wasted",
            "USD for completions that were aborted or failed after the provider had begun to answer.",
            total(growth("nexusgate_cost_wasted_usd_total", MODEL)),
            unit="currencyUSD",
            decimals=2,
        ),
        number(
            "Unpriced requests",
            "Requests to models without a price: no cost figure contains them.",
            f"{total(growth('nexusgate_unpriced_requests_total', MODEL))} or vector(0)",
            decimals=0,
            thresholds=ZERO_IS_GOOD,
        ),
    ]


def spend():
    return [
        lines(
            "Spending by key",
            "USD an hour.",
            [(f"3600 * {total(rate(COST, *EVERY), 'api_key_comment')}", "{{api_key_comment}}")],
            unit="currencyUSD",
            stacked=True,
            width=8,
        ),
        lines(
            "Spending by model and provider",
            "USD an hour.",
            [(f"3600 * {total(rate(COST, *EVERY), 'model', 'provider')}", "{{model}} @ {{provider}}")],
            unit="currencyUSD",
            stacked=True,
            width=8,
        ),
        lines(
            "The month",
            "Month to date and forecast against the budget, all keys. Needs the recording rules.",
            [(MONTH_TO_DATE, "month to date"), (FORECAST, "forecast"), (BUDGET, "budget")],
            unit="currencyUSD",
            width=8,
            dashed="forecast|budget",
            colors={"budget": RED},
            calcs=("lastNotNull",),
        ),
        lines(
            "Prompt and completion",
            "What the USD are spent on, an hour.",
            [
                (f"3600 * {total(rate('nexusgate_cost_prompt_usd_total', *EVERY))}", "prompt"),
                (f"3600 * {total(rate('nexusgate_cost_completion_usd_total', *EVERY))}", "completion"),
            ],
            unit="currencyUSD",
            stacked=True,
            width=8,
        ),
        lines(
            "Cost of a request",
            "USD for one completed completion, by model.",
            [
                (
                    ratio(
                        total(rate(COST, MODEL, KEY), "model"),
                        total(rate(COMPLETIONS, MODEL, KEY, 'status="completed"'), "model"),
                    ),
                    "{{model}}",
                )
            ],
            unit="currencyUSD",
            width=8,
        ),
        shares(
            "Cost by key",
            "In the time range.",
            total(growth(COST, *EVERY), "api_key_comment"),
            "{{api_key_comment}}",
            unit="currencyUSD",
            height=8,
        ),
        grid(
            "Keys",
            "In the time range.",
            {"api_key_comment": "Key"},
            [
                Column("Completions", total(growth(COMPLETIONS, MODEL, KEY), "api_key_comment")),
                Column("Embeddings", total(growth(EMBEDDINGS, MODEL, KEY), "api_key_comment")),
                Column(
                    "Failed",
                    ratio(
                        total(growth(COMPLETIONS, MODEL, KEY, 'status="failed"'), "api_key_comment"),
                        total(growth(COMPLETIONS, MODEL, KEY, 'status!="aborted"'), "api_key_comment"),
                    ),
                    "percentunit",
                    2,
                    [(None, GREEN), (0.01, YELLOW), (0.05, RED)],
                ),
                Column("Refused", total(growth(REJECTIONS, KEY), "api_key_comment")),
                Column("Cost", total(growth(COST, *EVERY), "api_key_comment"), "currencyUSD", 4),
            ],
            sort="Cost",
            totals=["Completions", "Embeddings", "Refused", "Cost"],
        ),
    ]


def limits():
    def used(kind):
        usage = f"max by (api_key_comment) ({sel(f'nexusgate_api_key_{kind}_usage', KEY)})"
        return ratio(usage, f"max by (api_key_comment) ({sel(f'nexusgate_api_key_{kind}_limit', KEY)})")

    def absolute(kind):
        return [
            (f"max by (api_key_comment) ({sel(f'nexusgate_api_key_{kind}_usage', KEY)})", "{{api_key_comment}}"),
            (f"max by (api_key_comment) ({sel(f'nexusgate_api_key_{kind}_limit', KEY)})", "{{api_key_comment}} limit"),
        ]

    at_limit = steps((None, "transparent"), (1, RED))
    return [
        lines(
            "Requests per minute, of the limit",
            "Above 100 % a key is using up its burst (three minutes' worth by default).",
            [(used("rpm"), "{{api_key_comment}}")],
            unit="percentunit",
            thresholds=at_limit,
            width=8,
        ),
        lines(
            "Tokens per minute, of the limit",
            "Above 100 % a key is using up its burst, or paying back the debt of a huge answer.",
            [(used("tpm"), "{{api_key_comment}}")],
            unit="percentunit",
            thresholds=at_limit,
            width=8,
        ),
        ranking(
            "Refused most",
            "Requests over a limit in the time range.",
            [
                (
                    f"topk(10, {total(growth(REJECTIONS, KEY), 'api_key_comment', 'limit_type')})",
                    "{{api_key_comment}} ({{limit_type}})",
                )
            ],
            unit="short",
            decimals=0,
            width=8,
            thresholds=steps((None, GREEN), (1, YELLOW), (100, RED)),
        ),
        lines(
            "Requests per minute",
            "What keys have taken, and their limits.",
            absolute("rpm"),
            unit="short",
            dashed=".* limit",
            width=8,
        ),
        lines(
            "Tokens per minute",
            "What keys have taken, and their limits.",
            absolute("tpm"),
            unit="short",
            dashed=".* limit",
            width=8,
        ),
        lines(
            "Rejections",
            "By key and limit.",
            [
                (
                    total(rate(REJECTIONS, KEY), "api_key_comment", "limit_type"),
                    "{{api_key_comment}} ({{limit_type}})",
                )
            ],
            unit="reqps",
            width=8,
        ),
    ]


def usage():
    return [
        lines(
            "Requests by key",
            "Completions and embeddings.",
            [
                (
                    total(f"{rate(COMPLETIONS, MODEL, KEY)} or {rate(EMBEDDINGS, MODEL, KEY)}", "api_key_comment"),
                    "{{api_key_comment}}",
                )
            ],
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Requests by status",
            "Of the chosen keys and models.",
            [(total(f"{rate(COMPLETIONS, MODEL, KEY)} or {rate(EMBEDDINGS, MODEL, KEY)}", "status"), "{{status}}")],
            unit="reqps",
            stacked=True,
            colors=STATUS_COLORS,
        ),
    ]


def tokens():
    prompt = total(rate("nexusgate_tokens_prompt_total", MODEL))
    completion = total(rate("nexusgate_tokens_completion_total", MODEL))
    return [
        lines(
            "Wasted tokens",
            "Tokens of completions that nobody received, by reason.",
            [(total(rate("nexusgate_tokens_wasted_total", MODEL), "reason"), "{{reason}}")],
            unit="short",
            stacked=True,
            colors=STATUS_COLORS,
            width=8,
        ),
        lines(
            "Wasted money",
            "USD an hour, by model.",
            [(f"3600 * {total(rate('nexusgate_cost_wasted_usd_total', MODEL), 'model')}", "{{model}}")],
            unit="currencyUSD",
            stacked=True,
            width=8,
        ),
        lines(
            "Cached and reasoning shares",
            "Prompt tokens that came from, or went to, a provider's cache; completion tokens spent on reasoning.",
            [
                (ratio(total(rate("nexusgate_tokens_cached_total", MODEL)), prompt), "prompt: cached"),
                (ratio(total(rate("nexusgate_tokens_cache_write_total", MODEL)), prompt), "prompt: written to cache"),
                (ratio(total(rate("nexusgate_tokens_reasoning_total", MODEL)), completion), "completion: reasoning"),
            ],
            unit="percentunit",
            bounds=(0, 1),
            width=8,
        ),
        lines(
            "Size of a request",
            "Tokens of one completion, p50 and p95.",
            [
                (
                    f"histogram_quantile({q}, sum by (le) (rate({sel(f'nexusgate_completion_{kind}_tokens_bucket', MODEL)}"
                    "[$__rate_interval]))) >= 0",
                    f"{name} p{q * 100:.0f}",
                )
                for kind, name in (("prompt", "prompt"), ("output", "output"))
                for q in (0.5, 0.95)
            ],
            unit="short",
            log=True,
            width=8,
        ),
        lines(
            "Answers without usage",
            "Requests whose provider did not say how many tokens they took, by model.",
            [(total(rate("nexusgate_usage_missing_total", MODEL), "model"), "{{model}}")],
            unit="reqps",
            width=8,
        ),
        lines(
            "Requests without a price",
            "By model.",
            [(total(rate("nexusgate_unpriced_requests_total", MODEL), "model"), "{{model}}")],
            unit="reqps",
            width=8,
        ),
    ]


def dashboard():
    return board(
        "Keys and cost",
        "Usage, limits, rejections, spending, forecast and waste.",
        [
            ("At a glance", at_a_glance()),
            ("Spending", spend()),
            ("Limits", limits()),
            ("Usage", usage()),
            ("Tokens", tokens()),
        ],
    )

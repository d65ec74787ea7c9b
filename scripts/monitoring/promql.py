"""The series a PromQL expression may select, and the labels its result can have.

The inference is what turns a typo in a rule or a panel into an error: a selector must name a series that exists and
labels that it has, an aggregation must keep labels that are there, and two vectors matched without `on` must
have the same labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import promql_parser as pp

Labels = frozenset[str]
# The labels of a vector; None for a scalar or a string.
Shape = Labels | None

_GRAFANA = (
    # These first: "$__rate_interval" would match the last pattern too.
    (re.compile(r"\$__range_s\b"), "300"),
    (re.compile(r"\$(?:__rate_interval|__interval|__range)\b"), "5m"),
    (re.compile(r"\$\{?(\w+)(?::\w+)?\}?"), ".*"),
)
_SHARED = re.compile(r"up$|scrape_|process_|tokio_")
_SCALARS = {"scalar", "time", "pi"}
_BARE_VECTORS = {"vector"}
_CALENDAR = {"minute", "hour", "day_of_month", "day_of_week", "day_of_year", "days_in_month", "month", "year"}
_SET_OPERATORS = {"and", "unless"}


class Mistake(Exception):
    """A mistake in an expression, in words."""


def plain(expr: str) -> str:
    """`expr` with Grafana's variables filled in by neutral values."""
    for pattern, value in _GRAFANA:
        expr = pattern.sub(value, expr)
    return expr


def infer(expr: str, known: Mapping[str, Labels]) -> tuple[Shape, set[str]]:
    """The labels of the result, and the names of the series used. Raises `Mistake`."""
    try:
        tree = pp.parse(plain(expr))
    except ValueError as error:
        raise Mistake(f"no PromQL: {error}") from error
    used: set[str] = set()
    return _shape(tree, known, used), used


def of_any_program(expr: str) -> set[str]:
    """The series in `expr` that other programs have too, Prometheus itself among them, and that no job is named for."""

    def walk(node: object) -> set[str]:
        if isinstance(node, pp.VectorSelector):
            named = any(matcher.name == "job" for matcher in node.matchers.matchers)
            return {node.name} if not named and _SHARED.match(node.name or "") else set()
        parts = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
        return set().union(*(walk(part) for part in [*parts, *(getattr(node, "args", None) or [])] if part is not None))

    return walk(pp.parse(plain(expr)))


def _selector(node: pp.VectorSelector, known: Mapping[str, Labels], used: set[str]) -> Labels:
    pairs = [(matcher.name, matcher.value) for matcher in node.matchers.matchers]
    if node.name:
        names = [node.name]
    else:
        patterns = [value for name, value in pairs if name == "__name__"]
        names = [series for series in known for pattern in patterns if re.fullmatch(pattern, series)]
        if not names:
            raise Mistake(f"a selector that no series fits: {node.prettify()}")
    labels: Labels = frozenset()
    for name in names:
        if name not in known:
            raise Mistake(f"no such series: {name}")
        for label, _ in pairs:
            if label != "__name__" and label not in known[name]:
                raise Mistake(f"{name} has no label {label}; it has {sorted(known[name])}")
        labels |= known[name]
    used.update(names)
    return labels


def _aggregate(node: pp.AggregateExpr, known: Mapping[str, Labels], used: set[str]) -> Labels:
    inner = _shape(node.expr, known, used)
    if inner is None:
        raise Mistake("an aggregation over a scalar")
    operator = str(node.op)
    modifier = node.modifier
    if modifier is None:
        kept: Labels = inner if operator in ("topk", "bottomk") else frozenset()
    else:
        named = frozenset(modifier.labels)
        if named - inner:
            raise Mistake(f"{operator} by {sorted(named - inner)}, which the series inside do not have")
        kept = named if "By" in str(modifier.type) else inner - named
        if operator in ("topk", "bottomk"):
            kept = inner
    return kept | {node.param.val} if operator == "count_values" else kept


def _binary(node: pp.BinaryExpr, known: Mapping[str, Labels], used: set[str]) -> Shape:
    left, right = _shape(node.lhs, known, used), _shape(node.rhs, known, used)
    if left is None or right is None:
        return right if left is None else left
    operator, modifier = str(node.op), node.modifier
    matching = modifier.matching if modifier is not None else None
    if matching is not None:
        named = frozenset(matching.labels)
        # `on ()` has no labels to check.
        if named - left or named - right:
            raise Mistake(f"matching on {sorted(named)}, which is not on both sides")
    elif operator != "or" and left != right:
        raise Mistake(f"{operator} matches {sorted(left)} with {sorted(right)}: they never meet")
    if operator == "or":
        return left | right
    if operator in _SET_OPERATORS:
        return left
    if matching is None:
        return left
    card = str(modifier.card)
    extra = frozenset(modifier.group_labels or ())
    if "ManyToOne" in card:
        return left | extra
    if "OneToMany" in card:
        return right | extra
    return named if "Include" in str(matching.type) or "On" in str(matching.type) else left - named


def _call(node: pp.Call, known: Mapping[str, Labels], used: set[str]) -> Shape:
    name, arguments = node.func.name, list(node.args)
    shapes = [_shape(argument, known, used) for argument in arguments]
    if name in _SCALARS:
        return None
    if name in _BARE_VECTORS or (name in _CALENDAR and not arguments):
        return frozenset()
    if name == "absent":
        # The labels of the equality matchers of a bare selector; ours is a comparison, which has none.
        return frozenset()
    vectors = [shape for shape in shapes if shape is not None]
    if len(vectors) != 1:
        raise Mistake(f"{name} of {len(vectors)} vectors")
    labels = vectors[0]
    if name == "label_replace":
        return labels | {arguments[1].val}
    if name == "histogram_quantile":
        if "le" not in labels:
            raise Mistake("histogram_quantile without le")
        return labels - {"le"}
    return labels


def _shape(node: object, known: Mapping[str, Labels], used: set[str]) -> Shape:
    if isinstance(node, pp.MatrixSelector):
        return _selector(node.vector_selector, known, used)
    if isinstance(node, pp.VectorSelector):
        return _selector(node, known, used)
    if isinstance(node, pp.AggregateExpr):
        return _aggregate(node, known, used)
    if isinstance(node, pp.BinaryExpr):
        return _binary(node, known, used)
    if isinstance(node, pp.Call):
        return _call(node, known, used)
    if isinstance(node, pp.SubqueryExpr | pp.ParenExpr | pp.UnaryExpr):
        return _shape(node.expr, known, used)
    if isinstance(node, pp.NumberLiteral | pp.StringLiteral):
        return None
    raise Mistake(f"a kind of expression this checker does not know: {type(node).__name__}")

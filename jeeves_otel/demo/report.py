# SPDX-License-Identifier: Apache-2.0
"""Print what the telemetry of the service says: every promised metric, one trace, and whether the counts agree.

In: samples, spans and findings. Out: text on a `rich` console, readable without colours too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from jeeves_otel.demo.receiver import CLIENT, SERVER
from jeeves_otel.demo.samples import series_of, summaries

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

    from jeeves_otel.demo.receiver import Span
    from jeeves_otel.demo.samples import Labels, Series, Summary
    from jeeves_otel.registry import Metric, Registry

# Why a metric may stay without data in this demo, by the beginning of its name.
REASONS = {
    "jeeves_otel_internal_errors": "nothing to count: the telemetry has not failed",
    "jeeves_otel_overflowed": "nothing to count: no label has reached its limit",
}
OTHER_REASON = "nothing to count yet: send more requests"

SPAN_ATTRIBUTES = {
    "http.response.status_code": "status",
    "rpc.response.status_code": "status",
    "pipeline.name": "pipeline",
    "pipeline.status": "pipeline.status",
    "termination.reason": "reason",
    "gen_ai.agent.name": "agent",
    "tool.status": "tool.status",
    "gen_ai.request.model": "model",
    "gen_ai.usage.input_tokens": "tokens in",
    "gen_ai.usage.output_tokens": "out",
    "error.type": "error.type",
}
LONGEST_TREE = 24


# ---- metrics ---------------------------------------------------------------------------------------------------------


def print_metrics(console: Console, registry: Registry, samples: dict[Series, float]) -> None:
    """Print every promised metric with its series, then those without data and why."""
    console.print("Histograms: count, mean, and an estimate of the 95th percentile.")
    console.print("Counters that stand at 0 are there so that increase() does not miss the first event.\n")
    empty: list[Metric] = []
    for metric in registry.metrics.values():
        rows = _rows(metric, samples)
        if not rows:
            empty.append(metric)
            continue
        title = Text.assemble((metric.name, "bold"), (f"  {metric.type}", "cyan"), (f"  {metric.help}", "dim"))
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(justify="right", no_wrap=True)
        if not metric.labels:
            table.add_row(title, rows[0][1])
        else:
            console.print(title, no_wrap=True, overflow="ellipsis")
            for labels, value in rows:
                table.add_row(f"    {labels}", value)
        console.print(table)
    count = len(registry.metrics)
    console.print(f"\n{count - len(empty)} of {count} promised metrics have data. The others:")
    for metric in empty:
        console.print(Text.assemble("  ", (metric.name, "bold"), f"\n    {_reason(metric.name)}"))


def _reason(name: str) -> str:
    return next((reason for start, reason in REASONS.items() if name.startswith(start)), OTHER_REASON)


def _rows(metric: Metric, samples: dict[Series, float]) -> list[tuple[str, str]]:
    """Return ``(labels, value)`` per series; counters at 0 are summed up in one row."""
    if metric.type == "histogram":
        found = summaries(samples, metric.name)
        return [(_labels(metric, labels), _summary(summary, metric.unit)) for labels, summary in found.items()]
    found_values = series_of(samples, metric.name)
    rows = [
        (_labels(metric, labels), _number(value, metric.unit))
        for labels, value in found_values.items()
        if value or metric.type == "gauge"
    ]
    zeros = len(found_values) - len(rows)
    if zeros:
        rows.append((f"{'and ' if rows else ''}{zeros} series at 0", "0"))
    return rows


def _labels(metric: Metric, labels: Labels) -> str:
    values = dict(labels)
    return "  ".join(f"{name}={values[name]}" for name in metric.label_names if name in values)


def _summary(summary: Summary, unit: str) -> str:
    p95 = f"p95 {'>' if summary.beyond else '≈'} {_number(summary.p95, unit)}"
    return f"{summary.count:>5}   mean {_number(summary.mean, unit):>8}   {p95:>17}"


def _number(value: float, unit: str) -> str:
    if unit == "By":
        return f"{value / 2**20:.1f} MiB"
    if unit == "s":
        return f"{value * 1_000:.1f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}"


# ---- one trace -------------------------------------------------------------------------------------------------------


def telling(traces: Iterable[list[Span]]) -> list[Span]:
    """Return the trace that shows most: most processes, kinds of spans, and spans, of those that fit a screen.

    Only whole traces count: one root, and every other parent is there.
    """
    whole = [spans for spans in traces if len(spans) <= LONGEST_TREE and is_whole(spans)]
    return max(
        whole,
        key=lambda spans: (
            len({span.service for span in spans}),
            len({span.name for span in spans}),
            len(spans),
            spans[0].trace,
        ),
        default=[],
    )


def is_whole(spans: list[Span]) -> bool:
    """Return whether a trace has one root, the parent of every other span, and both sides of every call between processes."""
    ids = {span.id for span in spans}
    answered = {span.parent for span in spans if span.kind == SERVER}
    unanswered = [span for span in spans if span.kind == CLIENT and "rpc.method" in span.attributes and not span.failed]
    return (
        sum(not span.parent for span in spans) == 1
        and all(span.parent in ids for span in spans if span.parent)
        and all(span.id in answered for span in unanswered)
    )


def print_trace(console: Console, spans: list[Span]) -> None:
    """Print a whole trace as a tree, children in the order in which they began."""
    children: dict[str, list[Span]] = {}
    services = {span.id: span.service for span in spans}
    for span in sorted(spans, key=lambda each: each.start_ns):
        children.setdefault(span.parent, []).append(span)

    def grow(tree: Tree, span: Span) -> None:
        for child in children.get(span.id, []):
            crosses = child.service != services[child.parent]
            grow(tree.add(_span(child, crosses=crosses)), child)

    root = children[""][0]
    tree = Tree(_span(root, crosses=True), guide_style="dim")
    grow(tree, root)
    console.print(tree, no_wrap=True, overflow="ellipsis")


def _span(span: Span, *, crosses: bool) -> Text:
    """Return one line of the tree; a span in another process than its parent says in which."""
    style = "bold red" if span.failed else "bold"
    shown = [f"{short}={span.attributes[key]}" for key, short in SPAN_ATTRIBUTES.items() if key in span.attributes]
    return Text.assemble(
        (f"{span.service}: " if crosses else "", "cyan"),
        (span.name, style),
        f"  {span.duration_s * 1_000:.1f} ms",
        ("".join(f"  {each}" for each in shown), "dim"),
    )


# ---- counts ----------------------------------------------------------------------------------------------------------


def comparable(registry: Registry, samples: Mapping[Series, float]) -> dict[Series, float]:
    """Return what must be the same on /metrics and over OTLP: promised counters, and counts of promised histograms.

    Left out is what goes on by itself while nobody asks anything: the process, and the health of the telemetry.
    """
    names = {
        metric.name if metric.type == "counter" else f"{metric.name}_count"
        for metric in registry.metrics.values()
        if metric.profile not in {"process", "internal"} and metric.type != "gauge"
    }
    return {series: value for series, value in samples.items() if series[0] in names}


def print_comparison(console: Console, left: str, left_count: float, right: str, right_count: float) -> bool:
    """Print whether two counts are the same, and return it."""
    same = left_count == right_count
    mark, sign = (("ok", "green"), "=") if same else (("DIFFERS", "bold red"), "!=")
    console.print(Text.assemble("  ", mark, f"  {left}: {left_count:.0f} {sign} {right}: {right_count:.0f}"))
    return same


def print_share(console: Console, sampled: int, traces: int, ratio: float) -> bool:
    """Print the share of traces that were sampled, and return whether it is what chance allows for *ratio*."""
    if not traces:
        return False
    # Normal approximation of the binomial distribution; chance alone leaves these bounds once in a million runs.
    room = 4.9 * math.sqrt(ratio * (1 - ratio) / traces)
    share = sampled / traces
    same: bool = abs(share - ratio) <= room
    mark = ("ok", "green") if same else ("DIFFERS", "bold red")
    bounds = f"{max(0.0, ratio - room):.1%} to {min(1.0, ratio + room):.1%}"
    console.print(Text.assemble("  ", mark, f"  sampled: {share:.1%} of {traces} traces, {bounds} asked for"))
    return same


def print_differences(
    console: Console, page: Mapping[Series, float], delivered: Mapping[Series, float], other: str = "OTLP"
) -> bool:
    """Print in which series /metrics and what the *other* side has differ, and return whether they are the same."""
    series = sorted(page.keys() | delivered.keys(), key=lambda each: (each[0], sorted(each[1])))
    differing = [each for each in series if page.get(each) != delivered.get(each)]
    if not differing:
        console.print(
            Text.assemble(
                "  ", ("ok", "green"), f"  /metrics = {other}: {len(series)} counters and histogram counts are the same"
            )
        )
        return True
    console.print(
        Text.assemble(
            "  ", ("DIFFERS", "bold red"), f"  /metrics and {other}, in {len(differing)} of {len(series)} series:"
        )
    )
    for name, labels in differing:
        shown = "  ".join(f"{key}={value}" for key, value in sorted(labels))
        values = f"/metrics {page.get((name, labels))}, {other} {delivered.get((name, labels))}"
        console.print(f"    {name}  {shown}: {values}")
    return False

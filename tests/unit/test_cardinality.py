# SPDX-License-Identifier: Apache-2.0
"""cardinality: so many values keep their names, and those that mean something always do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from jeeves_otel import (
    record_critic_decision,
    record_db_operation,
    record_http_request,
    record_interrupt,
    record_llm_call,
    record_rpc,
)
from jeeves_otel.cardinality import Bound, Bounds
from jeeves_otel.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers import Pipeline

FLOOD = 300


def test_value_beyond_the_limit_is_other_and_counted() -> None:
    """The first n values keep their names, the next is `other`, and every loss of a name counts."""
    bound = Bound("a", 2)

    assert ["x", "y", "other", "other", "x"] == [bound.admit(value) for value in ("x", "y", "z", "z", "x")]
    assert bound.overflowed == 2


def test_declared_values_take_no_room() -> None:
    """What was declared is admitted on top of the limit."""
    bound = Bound("a", 1, ["declared"])

    assert ["x", "declared", "other"] == [bound.admit(value) for value in ("x", "declared", "y")]


def test_other_is_admitted_without_taking_room_or_counting() -> None:
    """A library may say `other` itself."""
    bound = Bound("a", 1)

    assert ["other", "x"] == [bound.admit(value) for value in ("other", "x")]
    assert bound.overflowed == 0


def test_value_that_cannot_be_hashed_is_refused() -> None:
    """It could not be told apart from others."""
    with pytest.raises(TypeError):
        Bound("a", 1).admit(["x"])


def test_concurrent_admissions_never_exceed_the_limit() -> None:
    """Many threads that bring many new values admit as many as there is room for."""
    bound = Bound("a", 50)
    values = [f"v{number % 200}" for number in range(8_000)]
    with ThreadPoolExecutor(8) as threads:
        kept = set(threads.map(bound.admit, values))

    assert len(kept) == 51
    assert bound.admitted == kept


def test_bounds_cover_every_attribute_that_a_view_reads() -> None:
    """Labels and conditions, in every spelling: an attribute without a bound is a leak."""
    registry = load(("jeeves",))
    read = {
        spelling
        for metric in registry.metrics.values()
        for key in [
            *(key for label in metric.labels for template in label.templates for key in template.keys),
            *(key for source in metric.sources for key in source.conditions),
        ]
        for spelling in registry.spelled(key)
    }

    assert read == {key for key, _ in Bounds(registry).of(read)}


def test_overflow_is_said_by_attribute_without_zeros() -> None:
    """What has not overflowed is not reported."""
    bounds = Bounds(load(("jeeves",)))
    bound = dict(bounds.of(["jeeves.queue.name"]))["jeeves.queue.name"]
    for number in range(70):
        bound.admit(f"q{number}")

    assert {"jeeves.queue.name": 6} == bounds.overflowed()


@pytest.mark.parametrize(
    ("flood", "record", "family", "label", "expected"),
    [
        (
            lambda n: record_http_request(f"M{n}", "/x", 200, 0.1),
            lambda: record_http_request("DELETE", "/x", 200, 0.1),
            "jeeves_http_requests_total",
            "method",
            {"_OTHER": FLOOD, "DELETE": 1},
        ),
        (
            lambda n: record_rpc("s/m", f"S{n}", 0.1),
            lambda: record_rpc("s/m", "NOT_FOUND", 0.1),
            "jeeves_grpc_requests_total",
            "status",
            {"Unknown": FLOOD, "NotFound": 1},
        ),
        (
            lambda n: record_db_operation(f"S{n}", 0.1),
            lambda: record_db_operation("insert", 0.1),
            "jeeves_db_queries_total",
            "operation",
            {"other": FLOOD, "insert": 1},
        ),
        (
            lambda n: record_critic_decision(f"A{n}", 0.1),  # type: ignore[arg-type]  # a hostile value
            lambda: record_critic_decision("accept", 0.1),
            "critic_decisions_total",
            "action",
            {"other": FLOOD, "accept": 1},
        ),
        (
            lambda n: record_interrupt(f"K{n}", "pending"),
            lambda: record_interrupt("timeout", "pending"),
            "jeeves_interrupts_total",
            "kind",
            {"other": FLOOD, "timeout": 1},
        ),
        (
            lambda n: record_llm_call(f"P{n}", "m", 0.1),
            lambda: record_llm_call("azure.ai.openai", "m", 0.1),
            "jeeves_llm_calls_total",
            "provider",
            {"other": FLOOD - 32, "azure": 1, **{f"P{n}": 1 for n in range(32)}},
        ),
    ],
    ids=["method", "status", "operation", "action", "kind", "provider"],
)
def test_flood_of_unknown_values_takes_no_promised_value_its_name(
    pipeline: Pipeline,
    flood: Callable[[int], None],
    record: Callable[[], None],
    family: str,
    label: str,
    expected: dict[str, float],
) -> None:
    """A promised value that comes late, after more unknown ones than are admitted, is still counted as itself."""
    for number in range(FLOOD):
        flood(number)
    record()

    assert expected == pipeline.counts_by(family, label)


def test_flood_of_old_numeric_status_codes_takes_no_promised_status_its_name(pipeline: Pipeline) -> None:
    """Numbers that mean something are admitted as numbers."""
    histogram = pipeline.meter_provider.get_meter("old").create_histogram("rpc.server.duration", "ms")
    for code in [*range(1_000, 1_000 + FLOOD), 5]:
        histogram.record(1, {"rpc.service": "s", "rpc.method": "m", "rpc.grpc.status_code": code})

    assert {"Unknown": FLOOD, "NotFound": 1} == pipeline.counts_by("jeeves_grpc_requests_total", "status")


def test_flood_of_operation_names_is_bounded_and_calls_go_on_being_counted(pipeline: Pipeline) -> None:
    """What decides whether a point is counted is bounded like a label, and what it asks for keeps its name."""
    for number in range(10 * FLOOD):
        operation: Any = f"op{number}"
        record_llm_call("openai", "m", 0.1, operation=operation)
    record_llm_call("openai", "m", 0.1, operation="text_completion")
    data = pipeline.reader.get_metrics_data()
    assert data is not None
    points = [len(m.data.data_points) for s in data.resource_metrics[0].scope_metrics for m in s.metrics]

    assert max(points) <= 105
    assert {"openai": 1} == pipeline.counts_by("jeeves_llm_calls_total", "provider")


def test_attributes_kept_for_the_conventions_alone_are_bounded_too() -> None:
    """With semconv names on the wire, an attribute that no view reads must not make series without end."""
    bound = dict(Bounds(load()).of(["gen_ai.response.model"]))["gen_ai.response.model"]
    kept = {bound.admit(f"m{number}") for number in range(1_000)}

    assert len(kept) == 101

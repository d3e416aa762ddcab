# SPDX-License-Identifier: Apache-2.0
"""metering: what any library records is bounded, marked, and never fails nor fills the log."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.metrics import CallbackOptions, Observation

from jeeves_otel import failsafe, llm_call
from jeeves_otel.cardinality import Bounds
from jeeves_otel.metering import MeterProvider

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from tests.helpers import Pipeline

KINDS = ["counter", "up_down_counter", "histogram", "gauge"]
AGENTS = "jeeves.agent.duration"


class Exploding:
    """An object of an application whose every use fails."""

    def _explode(self, *_: object) -> Any:
        raise RuntimeError("canary")

    __str__ = __repr__ = __hash__ = __eq__ = _explode


@pytest.fixture
def lenient(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Switch strictness off, as in production."""
    failsafe.set_strict(False)
    with caplog.at_level(logging.WARNING):
        yield caplog


def _record(pipeline: Pipeline, kind: str, amount: Any, attributes: Any = None) -> None:
    instrument = getattr(pipeline.meter_provider.get_meter("library"), f"create_{kind}")(f"library.{kind}")
    getattr(instrument, {"histogram": "record", "gauge": "set"}.get(kind, "add"))(amount, attributes)


def _values(pipeline: Pipeline) -> dict[str, float]:
    return {name: value for (name, labels), value in pipeline.samples().items() if "library" in name and not labels}


@pytest.mark.parametrize("kind", KINDS)
def test_instruments_of_libraries_record_as_those_of_the_stock_sdk(kind: str, pipeline: Pipeline) -> None:
    """What is in no view passes through."""
    _record(pipeline, kind, 2)

    assert 2 in _values(pipeline).values()


@pytest.mark.parametrize(
    "amount", [None, "1", float("nan"), float("inf"), 10**400, Exploding(), -1], ids=lambda v: str(type(v))
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_measurement_is_counted_once_and_not_recorded(
    kind: str, amount: Any, pipeline: Pipeline, lenient: pytest.LogCaptureFixture
) -> None:
    """The stock SDK raises into the library for some of these, and writes a line each time for the others."""
    for _ in range(3):
        _record(pipeline, kind, amount)

    allowed = amount == -1 and kind in {"up_down_counter", "gauge"} if isinstance(amount, int) else False
    assert failsafe.counts() == ({} if allowed else {f"record.library.{kind}": 3})
    assert len(lenient.records) == (0 if allowed else 1)
    assert bool(_values(pipeline)) == allowed


@pytest.mark.parametrize(
    ("value", "kept", "complaints"),
    [
        (b"raw", True, 0),
        ([1, "a"], True, 0),
        (None, True, 0),
        (10**400, True, 0),
        (object(), True, 1),
        (Exploding(), False, 2),
    ],
    ids=["bytes", "list", "none", "huge", "object", "exploding"],
)
@pytest.mark.parametrize("instrument", [AGENTS, "library.histogram"], ids=["promised", "passing through"])
def test_odd_attribute_values_never_raise_and_never_fill_the_log(
    value: Any, kept: bool, complaints: int, instrument: str, pipeline: Pipeline, lenient: pytest.LogCaptureFixture
) -> None:
    """The SDK takes most values, turns some into text with a line each time, and raises what a value's text raises."""
    histogram = pipeline.meter_provider.get_meter("library").create_histogram(instrument, "s")
    for _ in range(2):
        histogram.record(1.0, {"gen_ai.agent.name" if instrument == AGENTS else "odd": value})
    name = "jeeves_agent_duration_seconds_count" if instrument == AGENTS else "library_histogram_seconds_count"
    taken = sum(found for (sample, _), found in pipeline.samples().items() if sample == name)
    total = sum(failsafe.counts().values())

    assert (taken, total > 0) == (2 if kept else 0, complaints > 0)
    assert {record.name for record in lenient.records} <= {"jeeves_otel"}
    assert len(lenient.records) == len(failsafe.counts())
    assert "canary" not in "".join(record.getMessage() for record in lenient.records)


@pytest.mark.parametrize("value", [["a"], ("a",), {"a": {"b": [1]}}, {1: "a"}], ids=repr)
def test_a_promised_attribute_that_is_a_collection_is_recorded_as_its_text(value: Any, pipeline: Pipeline) -> None:
    """It cannot be looked up among the values seen, and must not cost the count."""
    histogram = pipeline.meter_provider.get_meter("library").create_histogram(AGENTS, "s")
    histogram.record(1.0, {"gen_ai.agent.name": value})

    text = json.dumps(value, separators=(",", ":"))
    assert pipeline.counts_by("jeeves_agent_executions_total", "agent") == {text: 1}


def test_attributes_that_are_no_mapping_cost_themselves_and_not_the_measurement(
    pipeline: Pipeline, lenient: pytest.LogCaptureFixture
) -> None:
    """The stock SDK takes the measurement too, with one line each time."""
    for _ in range(3):
        _record(pipeline, "counter", 1, ["odd"])

    assert _values(pipeline) == {"library_counter_total": 3}
    assert failsafe.counts() == {"record.library.counter": 3}
    assert len(lenient.records) == 1


def test_a_promised_label_of_many_values_is_bounded_before_it_is_aggregated(pipeline: Pipeline) -> None:
    """128 agents by name, then other; what was lost is counted."""
    histogram = pipeline.meter_provider.get_meter("library").create_histogram(AGENTS, "s")
    for number in range(200):
        histogram.record(1.0, {"gen_ai.agent.name": f"a{number}"})
    counts = pipeline.counts_by("jeeves_agent_executions_total", "agent")

    assert (len(counts), counts["other"], sum(counts.values())) == (129, 72, 200)
    assert pipeline.bounds.overflowed() == {"gen_ai.agent.name": 72}


def test_services_times_methods_are_bounded_together(pipeline: Pipeline) -> None:
    """Conventions up to 1.38 say service and method apart; 60 times 60 of them are one label of 200 values."""
    histogram = pipeline.meter_provider.get_meter("library").create_histogram("rpc.server.duration", "ms")
    for service in range(60):
        for method in range(60):
            histogram.record(1.0, {"rpc.service": f"s{service}", "rpc.method": f"m{method}", "rpc.grpc.status_code": 0})
    counts = pipeline.counts_by("jeeves_grpc_requests_total", "method")

    assert (len(counts), sum(counts.values())) == (201, 3600)
    assert counts["/s0/m0"] == 1
    assert counts["/other/other"] == 3400
    assert pipeline.bounds.overflowed() == {"rpc.method": 3400}


def test_attributes_of_the_caller_are_never_changed(pipeline: Pipeline) -> None:
    """A library may use one dictionary for all its measurements."""
    attributes: dict[str, Any] = {"gen_ai.operation.name": "chat", "gen_ai.request.model": ["a"]}
    with llm_call("openai"):
        pipeline.meter_provider.get_meter("library").create_histogram("gen_ai.client.operation.duration", "s").record(
            0.0, attributes
        )

    assert attributes == {"gen_ai.operation.name": "chat", "gen_ai.request.model": ["a"]}
    assert pipeline.counts_by("jeeves_llm_provider_calls_total", "model") == {'["a"]': 1}


@pytest.mark.usefixtures("lenient")
def test_a_callback_that_fails_keeps_what_it_observed_and_the_others_go_on(pipeline: Pipeline) -> None:
    """Bad observations and a callback that dies half-way are counted per collection, and cost nothing else."""

    def dying(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(1, {"n": "1"})
        yield Observation(float("nan"), {"n": "2"})
        yield "odd"  # type: ignore[misc]  # the test's point
        yield Observation(4, {"n": "4"})
        raise RuntimeError("canary")

    def generator() -> Generator[Iterable[Observation], CallbackOptions, None]:
        yield []
        yield [Observation(5, {"n": "5"})]

    meter = pipeline.meter_provider.get_meter("library")
    meter.create_observable_gauge("library.level", [dying, generator(), lambda _: [Observation(6, {"n": "6"})]])
    found = {
        dict(labels)["n"]: value for (name, labels), value in pipeline.samples().items() if name == "library_level"
    }

    assert found == {"1": 1, "4": 4, "5": 5, "6": 6}
    assert failsafe.counts() == {"callback.library.level": 3}


@pytest.mark.usefixtures("lenient")
def test_a_provider_whose_instruments_fail_is_counted_and_not_raised(pipeline: Pipeline) -> None:
    """Whatever stands behind our provider may break."""

    class Inner:
        name, version, schema_url = "library", None, None

        def get_meter(self, *_: Any) -> Any:
            return self

        def create_counter(self, *_: Any) -> Any:
            return self

        def add(self, *_: Any) -> None:
            raise RuntimeError("canary")

    provider = MeterProvider(Inner(), pipeline.registry, Bounds(pipeline.registry))  # type: ignore[arg-type]
    provider.get_meter("library").create_counter("c").add(1)

    assert failsafe.counts() == {"record.c": 1}


def test_a_point_that_began_before_its_llm_call_ended_is_that_calls_and_a_later_one_is_not(pipeline: Pipeline) -> None:
    """A stream outlives its call; a background task begins anew in the context that it was born with."""
    histogram = pipeline.meter_provider.get_meter("library").create_histogram("gen_ai.client.operation.duration", "s")
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "client"}
    with llm_call("engine") as call:
        assert call._context is not None
        context = call._context
    histogram.record(60.0, attributes, context)
    histogram.record(0.0, attributes, context)

    assert pipeline.counts_by("jeeves_llm_calls_total", "provider") == {"engine": 1, "client": 1}
    assert pipeline.counts_by("jeeves_llm_provider_calls_total", "provider") == {"engine": 1, "client": 1}

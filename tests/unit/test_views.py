# SPDX-License-Identifier: Apache-2.0
"""views: the SDK aggregates exactly what translation needs, and nothing that must not leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader

from jeeves_otel.registry import load
from jeeves_otel.views import needed_attributes, sdk_views
from tests.contract import facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers import Pipeline

REGISTRY = load(("jeeves",))


def _aggregated(name: str, unit: str, attributes: dict[str, Any], *, keep_semconv: bool = False) -> Any:
    """Record one value through the views, and return the metric that the SDK makes of it."""
    reader = InMemoryMetricReader()
    views = sdk_views(REGISTRY, keep_semconv=keep_semconv)
    provider = MeterProvider(metric_readers=[reader], views=views, shutdown_on_exit=False)
    provider.get_meter("x").create_histogram(name, unit).record(1, attributes)
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    return data.resource_metrics[0].scope_metrics[0].metrics[0]


@pytest.mark.parametrize(
    ("name", "unit", "family", "factor"),
    [
        ("gen_ai.client.operation.duration", "s", "jeeves_llm_duration_seconds", 1),
        ("gen_ai.client.inference.duration", "s", "jeeves_llm_duration_seconds", 1),
        ("http.server.request.duration", "s", "jeeves_http_request_duration_seconds", 1),
        ("http.server.duration", "ms", "jeeves_http_request_duration_seconds", 1_000),
        ("rpc.server.duration", "ms", "jeeves_grpc_request_duration_seconds", 1_000),
        ("grpc.server.call.duration", "s", "jeeves_grpc_request_duration_seconds", 1),
    ],
)
def test_bounds_are_the_promised_ones_in_the_unit_of_each_spelling(
    name: str, unit: str, family: str, factor: int
) -> None:
    """Translation only merges buckets, so the SDK must have the promised bounds, in whatever unit it counts."""
    point = _aggregated(name, unit, {}).data.data_points[0]

    assert tuple(bound * factor for bound in facts()[family].buckets) == tuple(point.explicit_bounds)


def test_bounds_of_an_instrument_in_milliseconds_are_in_milliseconds(tmp_path: Path) -> None:
    """A metric in seconds can be made of it, whose bounds are promised in seconds."""
    profile = tmp_path / "own.yaml"
    profile.write_text(
        "profile: own\ninstruments: {own.work: {kind: histogram, unit: ms, bounds: [1, 1000]}}\n"
        "metrics: {own_seconds: {type: histogram, unit: s, help: H., buckets: [0.01, 0.1], "
        "source: {instrument: own.work, take: histogram}}}\n"
    )
    registry = load((str(profile),))
    views = {view._instrument_name: view for view in sdk_views(registry, keep_semconv=True)}

    assert [10, 100] == list(registry.bounds_needed("own.work"))
    assert [1, 10, 100, 1_000] == views["own.work"]._aggregation._boundaries


def test_bounds_of_the_convention_are_kept_where_its_names_leave() -> None:
    """With the conventions' names, dashboards made for the conventions find their buckets beside ours."""
    point = _aggregated("http.server.request.duration", "s", {}, keep_semconv=True).data.data_points[0]
    convention = REGISTRY.instruments["http.server.request.duration"].bounds

    assert {*convention, *facts()["jeeves_http_request_duration_seconds"].buckets} == set(point.explicit_bounds)


def test_attributes_that_no_view_reads_are_dropped_before_aggregation() -> None:
    """User text and addresses never become series."""
    attributes = {"http.route": "/x", "user.id": "u", "url.query": "secret", "network.protocol.version": "1.1"}
    metric = _aggregated("http.server.request.duration", "s", attributes)

    assert {"http.route": "/x"} == metric.data.data_points[0].attributes


def test_attributes_of_the_convention_are_kept_where_its_names_leave() -> None:
    """What the convention lists stays, what it does not list is dropped even then."""
    attributes = {"http.route": "/x", "user.id": "u", "network.protocol.version": "1.1"}
    metric = _aggregated("http.server.request.duration", "s", attributes, keep_semconv=True)

    assert {"http.route": "/x", "network.protocol.version": "1.1"} == metric.data.data_points[0].attributes


def test_needed_attributes_are_what_labels_and_conditions_read() -> None:
    """In every spelling, for the instrument that they are read from."""
    expected = {
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.system",
        "gen_ai.request.model",
        "error.type",
        "jeeves.llm.layer",
    }

    assert expected == needed_attributes(REGISTRY)["gen_ai.client.operation.duration"]


def test_every_spelling_of_a_needed_instrument_has_one_view() -> None:
    """A second view of one instrument would count twice, a missing one would lose buckets."""
    names = [view._instrument_name for view in sdk_views(REGISTRY, keep_semconv=False)]
    spelled = {
        form.name
        for instrument in REGISTRY.instruments.values()
        if instrument.name in needed_attributes(REGISTRY)
        for generation in instrument.generations
        for form in generation
    }

    assert sorted(spelled) == sorted(str(name) for name in names)


def test_translation_is_exact_whether_or_not_the_conventions_names_leave(
    make_pipeline: Callable[..., Pipeline],
) -> None:
    """The wider bounds that the conventions need change no promised bucket."""
    found = []
    for keep in (False, True):
        pipeline = make_pipeline(keep_mapped=keep)
        histogram = pipeline.meter_provider.get_meter("x").create_histogram("http.server.request.duration", "s")
        for value in (0.005, 0.075, 0.3, 0.75, 2, 7.5, 11):
            histogram.record(value, {"http.request.method": "GET", "http.route": "/x"})
        metrics = {
            metric.name: metric.data
            for scope in pipeline.translated().resource_metrics[0].scope_metrics
            for metric in scope.metrics
        }
        data = metrics["jeeves_http_request_duration_seconds"]
        assert isinstance(data, Histogram)
        found.append((data.data_points[0].explicit_bounds, data.data_points[0].bucket_counts))

    assert found[0] == found[1]
    assert "http.server.request.duration" in metrics

# SPDX-License-Identifier: Apache-2.0
"""labels: attribute values become label values as the registry says."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
from hypothesis import given, strategies as st

from jeeves_otel.labels import condition_function, label_function, overflow_labels, text_of
from jeeves_otel.registry import load
from tests.property import LAWS

REGISTRY = load(("jeeves",))


class _Kind(str, Enum):  # noqa: UP042 - what libraries still have, and its str() is not its value
    A = "a"


def _compute(metric: str, label: str, attributes: dict[str, Any]) -> str:
    found = next(each for each in REGISTRY.metrics[metric].labels if each.name == label)
    return label_function(found, REGISTRY)(attributes)


# ---- values as text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (2**70, "1180591620717411303424"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (["a", "b"], '["a","b"]'),
        (("a", 1), '["a",1]'),
        ({"k": 1}, '{"k":1}'),
        (None, "null"),
        ("ünï", "ünï"),
        ("half \ud800", "half ?"),
        (_Kind.A, "a"),
    ],
)
def test_value_becomes_text_as_the_specification_asks(value: object, text: str) -> None:
    """Text is kept, numbers and truths are written, the rest is JSON."""
    found = text_of(value)

    assert text == found
    assert type(found) is str


@LAWS
@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_can_be_sent(value: str) -> None:
    """Whatever text comes, the label value has bytes; text that has them is not changed."""
    found = text_of(value)

    assert found == found.encode().decode()
    assert found == value or any("\ud800" <= character <= "\udfff" for character in value)


# ---- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "label", "attributes", "expected"),
    [
        ("jeeves_llm_calls_total", "provider", {"gen_ai.provider.name": "openai"}, "openai"),
        ("jeeves_llm_calls_total", "provider", {"gen_ai.provider.name": "azure.ai.inference"}, "azure"),
        ("jeeves_llm_calls_total", "provider", {"gen_ai.provider.name": "brand-new"}, "brand-new"),
        ("jeeves_llm_calls_total", "provider", {"gen_ai.system": "old"}, "old"),
        ("jeeves_llm_calls_total", "provider", {"gen_ai.system": "old", "gen_ai.provider.name": "new"}, "new"),
        ("jeeves_llm_calls_total", "provider", {}, "unknown"),
        ("jeeves_llm_calls_total", "model", {"gen_ai.request.model": ""}, "unknown"),
        ("jeeves_llm_calls_total", "status", {}, "success"),
        ("jeeves_llm_calls_total", "status", {"error.type": "X"}, "error"),
        ("jeeves_llm_calls_total", "status", {"error.type": ""}, "success"),
        ("jeeves_llm_tokens_total", "type", {"gen_ai.token.type": "output"}, "completion"),
        ("jeeves_grpc_requests_total", "method", {"rpc.method": "s/m"}, "/s/m"),
        ("jeeves_grpc_requests_total", "method", {"rpc.service": "s", "rpc.method": "m"}, "/s/m"),
        ("jeeves_grpc_requests_total", "method", {"rpc.service": "s", "rpc.method": "s/m"}, "/s/m"),
        ("jeeves_grpc_requests_total", "method", {"rpc.service": "s", "rpc.method": "system/m"}, "/s/system/m"),
        ("jeeves_grpc_requests_total", "method", {"rpc.service": "s"}, "/_OTHER"),
        ("jeeves_grpc_requests_total", "method", {"rpc.service": "", "rpc.method": "m"}, "/m"),
        ("jeeves_grpc_requests_total", "status", {"rpc.response.status_code": "OK"}, "success"),
        ("jeeves_grpc_requests_total", "status", {"rpc.grpc.status_code": 1}, "Canceled"),
        ("jeeves_grpc_requests_total", "status", {"rpc.grpc.status_code": 0}, "success"),
        ("jeeves_grpc_requests_total", "status", {"rpc.response.status_code": "WEIRD"}, "Unknown"),
        ("jeeves_http_requests_total", "method", {"http.request.method": "get"}, "_OTHER"),
        ("jeeves_http_requests_total", "path", {"http.route": ""}, "unmatched"),
        ("jeeves_http_requests_total", "status_code", {"http.response.status_code": 404}, "404"),
        ("jeeves_http_requests_total", "status_code", {}, "0"),
        ("jeeves_db_queries_total", "operation", {"db.operation.name": "SeLeCt"}, "select"),
        ("jeeves_db_queries_total", "operation", {"db.operation": "update"}, "update"),
        ("jeeves_db_queries_total", "operation", {"db.operation.name": "VACUUM"}, "other"),
        ("jeeves_pipeline_executions_total", "status", {"jeeves.pipeline.status": "timeout"}, "error"),
        ("jeeves_interrupts_total", "kind", {"jeeves.interrupt.kind": "made up"}, "other"),
        ("python_gc_collections_total", "generation", {"cpython.gc.generation": 1}, "1"),
    ],
)
def test_label_is_computed_as_promised(metric: str, label: str, attributes: dict[str, Any], expected: str) -> None:
    """Rename, map, fold, default, present or absent, template: what the contract says of this label."""
    assert expected == _compute(metric, label, attributes)


def test_overflow_is_other_in_every_label() -> None:
    """A point that has lost its attributes cannot be anything else."""
    assert ("other", "other", "other") == overflow_labels(REGISTRY.metrics["jeeves_llm_calls_total"].labels)


# ---- conditions ------------------------------------------------------------------------------------------------------


def _accepts(metric: str, attributes: dict[str, Any], *, overflow_feeds: bool = True) -> bool:
    accepts = condition_function(REGISTRY.metrics[metric].sources[0], REGISTRY, overflow_feeds=overflow_feeds)
    return accepts is None or accepts(attributes)


@pytest.mark.parametrize(
    ("metric", "attributes", "expected"),
    [
        ("jeeves_llm_calls_total", {"gen_ai.operation.name": "chat"}, True),
        ("jeeves_llm_calls_total", {"gen_ai.operation.name": "chat", "jeeves.llm.layer": "engine"}, True),
        ("jeeves_llm_calls_total", {"gen_ai.operation.name": "chat", "jeeves.llm.layer": "provider"}, False),
        ("jeeves_llm_calls_total", {"gen_ai.operation.name": "chat", "jeeves.llm.layer": "inner"}, False),
        ("jeeves_llm_calls_total", {"gen_ai.operation.name": "embeddings"}, False),
        ("jeeves_llm_calls_total", {}, False),
        ("jeeves_llm_provider_calls_total", {"gen_ai.operation.name": "chat", "jeeves.llm.layer": "provider"}, True),
        ("jeeves_llm_provider_calls_total", {"gen_ai.operation.name": "chat", "jeeves.llm.layer": "engine"}, False),
        ("jeeves_db_pool_idle_connections", {"state": "idle"}, True),
        ("jeeves_db_pool_idle_connections", {"db.client.connection.state": "used", "state": "idle"}, False),
        ("jeeves_feature_usage_total", {"anything": "goes"}, True),
    ],
)
def test_condition_reads_any_spelling_and_knows_absence(
    metric: str, attributes: dict[str, Any], *, expected: bool
) -> None:
    """A point feeds a family if each condition accepts the first spelling that is present."""
    assert expected is _accepts(metric, attributes)


@pytest.mark.parametrize("overflow_feeds", [True, False])
def test_overflow_is_not_asked_for_what_it_has_lost(*, overflow_feeds: bool) -> None:
    """Whether it feeds is said by the kind of family, not by attributes that are gone."""
    point = {"otel.metric.overflow": True}

    assert overflow_feeds is _accepts("jeeves_llm_calls_total", point, overflow_feeds=overflow_feeds)

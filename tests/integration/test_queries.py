# SPDX-License-Identifier: Apache-2.0
"""The queries that teams run on jeeves_* are answered with data by a real Prometheus that scrapes the demo."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from jeeves_otel.registry import load
from tests.helpers import poll_until
from tests.integration.launching import environment
from tests.integration.prometheus_server import Prometheus, prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.slow]

REQUESTS = 200
MEASURED = REQUESTS - 1  # one is a probe
QUERIES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parents[1] / "contract/queries.yaml").read_text())[
    "queries"
]


class Demo:
    """The demo, running on after its traffic; what it prints is read as it comes."""

    def __init__(self) -> None:
        self.printed = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jeeves_otel.demo", "--keep", "--requests", str(REQUESTS)],
            env={**environment(), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line

    def pages(self) -> list[str]:
        """Return ``host:port`` of the pages of both processes, as soon as they are printed."""
        found = re.findall(r"METRICS_PORT=(\d+)", self.printed)
        return [f"127.0.0.1:{port}" for port in found] if len(found) == 2 else []

    def is_done(self) -> bool:
        """Return whether the traffic is over and everything was compared."""
        assert self.process.poll() is None, self.printed
        return "Everything runs until Ctrl-C" in self.printed

    def stop(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Return a Prometheus that has scraped the demo through all of its traffic, and once more."""
    demo = Demo()
    try:
        targets = poll_until(demo.pages, "both pages to be announced")
        with prometheus(targets, tmp_path_factory.mktemp("prometheus")) as server:
            poll_until(demo.is_done, "the demo to be done", timeout_s=120)
            served = "sum(jeeves_http_requests_total)"
            poll_until(lambda: server.query(served).get(()) == MEASURED, "the last scrape")
            yield server
    finally:
        demo.stop()


@pytest.mark.parametrize("entry", QUERIES, ids=lambda entry: entry["query"])
def test_query_is_answered_with_data(entry: dict[str, Any], scraped: Prometheus) -> None:
    """Some series, each with the labels that panels and alerts expect, and with a number."""
    answer = scraped.query(entry["query"])

    assert answer
    assert {tuple(sorted(entry["labels"]))} == {tuple(label for label, _ in labels) for labels in answer}
    assert [] == [labels for labels, value in answer.items() if math.isinf(value)]
    assert any(not math.isnan(value) for value in answer.values())


@pytest.mark.parametrize("entry", [entry for entry in QUERIES if "was" in entry], ids=lambda entry: entry["was"])
def test_form_that_was_written_down_first_answers_something_else(entry: dict[str, Any], scraped: Prometheus) -> None:
    """So the corrected form is not decoration."""
    assert scraped.query(entry["was"]) != scraped.query(entry["query"])


def test_every_promised_family_has_samples_from_the_wire(scraped: Prometheus) -> None:
    """All of the profile jeeves, from both processes; nothing of it is made up by a test."""
    promised = {metric.name: metric.type for metric in load().metrics.values() if metric.profile == "jeeves"}
    names = set(scraped.get("label/__name__/values"))

    assert [] == [
        name for name, kind in promised.items() if (f"{name}_count" if kind == "histogram" else name) not in names
    ]


def test_every_promised_family_has_counted_something(scraped: Prometheus) -> None:
    """A series that stands at zero would be no data."""
    promised = [metric for metric in load().metrics.values() if metric.profile == "jeeves" and metric.type != "gauge"]
    names = [metric.name if metric.type == "counter" else f"{metric.name}_count" for metric in promised]

    assert [] == [name for name in names if not scraped.query(f"sum({name})").get((), 0) > 0]


def test_what_the_provider_refuses_for_rate_is_counted_apart(scraped: Prometheus) -> None:
    """The model server answers 429 now and then, 500, and not in time; every call has one outcome."""
    outcomes = scraped.query("sum by (outcome) (jeeves_llm_provider_outcomes_total)")
    counted = {dict(labels)["outcome"]: value for labels, value in outcomes.items()}

    assert {"success", "rate_limited", "timeout", "error"} == {outcome for outcome, value in counted.items() if value}
    assert sum(counted.values()) == scraped.query("sum(jeeves_llm_provider_calls_total)")[()]


def test_both_processes_are_up_and_tell_their_series_apart(scraped: Prometheus) -> None:
    """The gateway serves HTTP, the kernel gRPC."""
    assert 2 == sum(scraped.query("up").values())
    (gateway,) = {dict(labels)["instance"] for labels in scraped.query("jeeves_http_requests_total")}
    (kernel,) = {dict(labels)["instance"] for labels in scraped.query("jeeves_grpc_requests_total")}

    assert gateway != kernel

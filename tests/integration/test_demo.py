# SPDX-License-Identifier: Apache-2.0
"""The demo: it runs to its end, its counts agree, and it says so when they do not."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from jeeves_otel.demo import report
from jeeves_otel.demo.processes import ChildError, free_ports, running
from jeeves_otel.demo.receiver import CLIENT, SERVER, Span
from jeeves_otel.demo.samples import quantile
from jeeves_otel.demo.stage import sampled_of
from jeeves_otel.demo.traffic import Step, scripts
from jeeves_otel.registry import load
from tests.helpers import poll_until
from tests.integration.launching import environment

if TYPE_CHECKING:
    from pathlib import Path

REQUESTS = 40
real = [pytest.mark.integration, pytest.mark.slow]


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jeeves_otel.demo", *arguments]


# ---- a real run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def printed() -> str:
    """Return what a run of the demo prints; it has to end well."""
    ended = subprocess.run(
        _command("--requests", str(REQUESTS)),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == ended.returncode, ended.stdout + ended.stderr
    assert "" == ended.stderr
    return ended.stdout


class TestRun:
    """One run with few requests."""

    pytestmark = real

    def test_every_promised_metric_is_named(self, printed: str) -> None:
        """With its series, or with the reason why it has none."""
        assert [] == [name for name in load().metrics if name not in printed]

    def test_only_failures_of_the_telemetry_stay_without_data(self, printed: str) -> None:
        """Forty requests reach every metric but those that count failures of the telemetry."""
        without = re.findall(r"^  (\w+)\n    (nothing to count)", printed, re.MULTILINE)

        assert {
            "jeeves_otel_internal_errors_total": "nothing to count",
            "jeeves_otel_overflowed_measurements_total": "nothing to count",
        } == dict(without)

    def test_requests_served_are_the_requests_sent(self, printed: str) -> None:
        """The counter of HTTP requests says exactly what the driver has sent."""
        measured = REQUESTS - 1  # one is a probe

        assert f"ok  requests sent: {measured} = jeeves_http_requests_total: {measured}" in printed

    def test_calls_served_by_the_kernel_are_the_calls_of_the_gateway(self, printed: str) -> None:
        """Both sides of gRPC count the same."""
        counts = re.search(r"ok  calls of the gateway: (\d+) = jeeves_grpc_requests_total: (\d+)", printed)

        assert counts is not None
        assert int(counts.group(1)) > 0

    def test_every_answer_has_left_a_whole_trace(self, printed: str) -> None:
        """The ids come from the answers, the spans from both processes."""
        measured = REQUESTS - 1

        assert f"ok  answers: {measured} = trace ids in them: {measured}" in printed
        assert f"ok  traces sampled: {measured} = that arrived: {measured}" in printed
        assert f"ok  traces that arrived: {measured} = whole: {measured}" in printed

    def test_provider_calls_are_the_calls_that_arrived(self, printed: str) -> None:
        """The model server has seen as many calls as the metric says, streams left early and failures included."""
        counts = re.search(r"ok  calls at the model server: (\d+) = jeeves_llm_provider_calls_total: (\d+)", printed)

        assert counts is not None
        assert int(counts.group(1)) > 0

    def test_page_and_otlp_say_the_same(self, printed: str) -> None:
        """What was scraped is what was delivered."""
        assert re.search(r"ok  /metrics = OTLP: \d\d+ counters and histogram counts are the same", printed)

    def test_the_trace_reaches_from_the_request_to_the_model(self, printed: str) -> None:
        """Request, call, kernel, pipeline, agent, call and client stand below each other in this order."""
        tree = printed.partition("as it arrived over OTLP")[2]
        chain = [
            "jeeves-gateway: POST /chat",
            "jeeves.demo.v1.Kernel/Answer",
            "jeeves-kernel: ",
            "pipeline.execute",
            "agent.process",
            "llm.provider.call",
            "chat gpt-4o",
        ]
        lines = [next(line for line in tree.splitlines() if span in line) for span in chain]
        depths = [line.index(span) for line, span in zip(lines, chain, strict=True)]

        assert sorted(set(depths)) == depths

    def test_no_interrupt_ends_more_often_than_it_begins(self, printed: str) -> None:
        """What is resolved, expired or cancelled has been pending before."""
        counts = re.findall(r"^    kind=(\w+)  status=(\w+) +(\d+)$", printed, re.MULTILINE)
        begun = {kind: int(count) for kind, status, count in counts if status == "pending"}
        ended = {kind: sum(int(n) for k, status, n in counts if k == kind and status != "pending") for kind in begun}

        assert begun
        assert {} == {kind: ended[kind] for kind in begun if ended[kind] > begun[kind]}

    def test_output_fits_a_hundred_columns(self, printed: str) -> None:
        """Only commands and settings, which are to be copied, may be longer."""
        long = [line for line in printed.splitlines() if len(line) > 100]

        assert [] == [line for line in long if not re.match(r"  [A-Z_]+=|  opentelemetry-instrument ", line)]


@pytest.mark.integration
@pytest.mark.slow
def test_of_half_the_traces_each_is_whole() -> None:
    """What the sampler keeps arrives complete, and nothing else does; `make traces` asks for 10,000 requests."""
    ended = subprocess.run(
        _command("--requests", "60", "--sampled", "0.5"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    sampled = re.search(
        r"ok  traces sampled: (\d+) = that arrived: (\d+)\n  ok  traces that arrived: \d+ = whole", ended.stdout
    )

    assert 0 == ended.returncode, ended.stdout + ended.stderr
    assert sampled is not None
    assert 0 < int(sampled.group(1)) < 59


class TestEnd:
    """How a run ends that does not come to its own end."""

    pytestmark = real

    def test_sigterm_ends_every_process(self) -> None:
        """The driver ends its children and says that it was interrupted."""
        (port,) = free_ports(1)
        demo = subprocess.Popen(
            _command("--requests", "100000", "--port", str(port)), env=environment(), stdout=subprocess.PIPE, text=True
        )
        try:
            poll_until(lambda: _answers(port), "the service")
            demo.send_signal(signal.SIGTERM)
            output, _ = demo.communicate(timeout=60)
        finally:
            demo.kill()

        assert 130 == demo.returncode
        assert "Everything is stopped." in output
        assert not _answers(port)

    def test_a_port_in_use_is_refused_by_name(self) -> None:
        """Somebody else's page is not taken for the service's."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            ended = subprocess.run(
                _command("--metrics-port", str(port)),
                env=environment(),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        assert 1 == ended.returncode
        assert f"Port {port}" in ended.stdout
        assert "--metrics-port" in ended.stdout

    def test_log_of_a_failing_process_is_shown(self, tmp_path: Path) -> None:
        """Who waits for a process that ends learns its last words."""
        command = [sys.executable, "-c", "raise SystemExit('no such database')"]
        (port,) = free_ports(1)
        with (
            running("The service", command, {}, tmp_path / "log") as child,
            pytest.raises(ChildError, match=r"The service has ended with status 1(.|\n)*no such database"),
        ):
            child.wait_until_answering(f"http://127.0.0.1:{port}/")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ---- its parts -------------------------------------------------------------------------------------------------------


def _console() -> Console:
    return Console(file=io.StringIO(), width=100, highlight=False)


def _printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("requests", [1, 2, 7, 300])
def test_scripts_hold_as_many_requests_as_asked_for(requests: int) -> None:
    """Not one more, not one less."""
    assert requests == sum(len(steps) for steps in scripts(1, requests))


def test_scripts_are_the_same_for_the_same_seed_only() -> None:
    """A seed decides what users do."""
    assert scripts(1, 100) == scripts(1, 100)
    assert scripts(1, 100) != scripts(2, 100)


def test_every_user_begins_with_a_session() -> None:
    """After the health check, nobody asks without a session."""
    first, *users = scripts(1, 300)

    assert [Step("GET", "/health")] == first
    assert all(steps[0].path == "/sessions" for steps in users)


def test_counts_that_differ_are_said_to_differ() -> None:
    """A comparison is no decoration."""
    console = _console()

    assert not report.print_comparison(console, "sent", 3, "served", 2)
    assert "DIFFERS  sent: 3 != served: 2" in _printed(console)


def test_a_series_that_was_not_delivered_is_named() -> None:
    """With its labels, and with what each side has."""
    console = _console()
    series = ("jeeves_errors_total", frozenset({("layer", "engine")}))

    assert not report.print_differences(console, {series: 2.0}, {})
    assert "jeeves_errors_total  layer=engine: /metrics 2.0, OTLP None" in _printed(console)


def test_gauges_and_the_process_are_not_compared() -> None:
    """They go on between two collections, while nobody asks anything."""
    registry = load()
    names = {
        "jeeves_http_requests_total",
        "jeeves_db_pool_size",
        "process_cpu_seconds_total",
        "jeeves_http_request_duration_seconds_count",
    }
    samples = {(name, frozenset[tuple[str, str]]()): 1.0 for name in names}

    assert {"jeeves_http_requests_total", "jeeves_http_request_duration_seconds_count"} == {
        name for name, _ in report.comparable(registry, samples)
    }


def test_a_call_whose_other_side_is_missing_makes_a_trace_incomplete() -> None:
    """Unless it failed: then there may have been no other side."""

    def trace(*, failed: bool, answered: bool) -> list[Span]:
        def span(identity: str, parent: str, kind: int, **attributes: str) -> Span:
            bad = failed and kind == CLIENT
            return Span("t", identity, parent, identity, "s", "scope", kind, 0, 1, failed=bad, attributes=attributes)

        call = span("2", "1", CLIENT, **{"rpc.method": "a.B/C"})
        return [span("1", "", SERVER), call, *([span("3", "2", SERVER)] if answered else [])]

    assert [True, False, True] == [
        report.is_whole(trace(failed=False, answered=True)),
        report.is_whole(trace(failed=False, answered=False)),
        report.is_whole(trace(failed=True, answered=False)),
    ]


@pytest.mark.parametrize(
    ("sampled", "ratio", "same"),
    [
        (1000, 0.1, True),
        (1147, 0.1, True),
        (1148, 0.1, False),
        (852, 0.1, False),
        (10_000, 1.0, True),
        (9_999, 1.0, False),
    ],
)
def test_share_of_sampled_traces_is_judged_by_chance(sampled: int, ratio: float, same: bool) -> None:
    """Of 10,000 at a tenth, all but one run in a million lie between 853 and 1,147."""
    assert same == report.print_share(_console(), sampled, 10_000, ratio)


def test_the_sampler_of_the_driver_decides_as_that_of_the_service() -> None:
    """By the id alone: none of no traces, all of all."""
    traces = [f"{number:032x}" for number in range(1, 2**64, 2**58)]

    assert sampled_of(traces, 0.0) == set()
    assert sampled_of(traces, 1.0) == set(traces)
    assert sampled_of(traces, 0.5) == set(traces[:32])


@pytest.mark.parametrize(
    ("share", "buckets", "expected"),
    [
        (0.5, [(1.0, 10.0), (2.0, 10.0), (float("inf"), 10.0)], (0.5, False)),
        (0.95, [(1.0, 0.0), (2.0, 100.0), (float("inf"), 100.0)], (1.95, False)),
        (0.95, [(1.0, 10.0), (2.0, 10.0), (float("inf"), 20.0)], (2.0, True)),
        (0.95, [(1.0, 0.0), (float("inf"), 0.0)], (0.0, False)),
    ],
)
def test_quantile_is_linear_within_its_bucket(
    share: float, buckets: list[tuple[float, float]], expected: tuple[float, bool]
) -> None:
    """As PromQL estimates it, and known to be a lower bound beyond the last boundary."""
    assert pytest.approx(expected[0]) == quantile(share, buckets)[0]
    assert expected[1] == quantile(share, buckets)[1]


def test_a_trace_with_a_missing_parent_is_not_shown() -> None:
    """Half a trace would mislead: the longest whole one is taken."""

    def span(trace: str, identity: str, parent: str) -> Span:
        return Span(trace, identity, parent, identity, "service", "scope", 1, 0, 1, failed=False, attributes={})

    whole = [span("a", "1", ""), span("a", "2", "1")]
    half = [span("b", "1", ""), span("b", "2", "1"), span("b", "4", "3")]

    assert whole == report.telling([half, whole])
    assert [] == report.telling([half])

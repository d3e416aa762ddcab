# SPDX-License-Identifier: Apache-2.0
"""The launcher: what a user gets from opentelemetry-instrument and environment variables alone."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from jeeves_otel.registry import TRANSLATED
from tests.helpers import counts_by, poll_until
from tests.integration.launching import (
    LAUNCHER,
    environment,
    free_port,
    get,
    launched,
    llm_server,
    page_with_requests,
    scrape,
)
from tests.otlp import GrpcReceiver, HttpReceiver, Receiver, running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

LLM = (("model", "gpt-4o"), ("provider", "openai"))


@pytest.fixture
def http_receiver() -> Iterator[Receiver]:
    """Return a running OTLP receiver over HTTP."""
    yield from running(HttpReceiver)


@pytest.fixture
def grpc_receiver() -> Iterator[Receiver]:
    """Return a running OTLP receiver over gRPC."""
    yield from running(GrpcReceiver)


def test_fastapi_with_openai_client_plain_and_wrapped_gives_exact_counts() -> None:
    """One call alone and one inside llm_call are two calls in both families, with the tokens of two."""
    port, metrics_port = free_port(), free_port()
    with (
        llm_server() as base_url,
        launched("gateway.py", PORT=str(port), METRICS_PORT=str(metrics_port), OPENAI_BASE_URL=base_url) as app,
    ):
        app.wait_for_page(f"http://127.0.0.1:{port}/metrics")
        get(f"http://127.0.0.1:{port}/plain/1")
        get(f"http://127.0.0.1:{port}/wrapped/2")
        samples = page_with_requests(2, f"http://127.0.0.1:{metrics_port}/metrics")
        route = {path: get(f"http://127.0.0.1:{port}{path}") for path in ("/metrics", "/metrics/")}

    assert counts_by(samples, "jeeves_http_requests_total", "path") == {"/plain/{item}": 1, "/wrapped/{item}": 1}
    assert counts_by(samples, "jeeves_llm_calls_total", "status") == {"success": 2}
    assert counts_by(samples, "jeeves_llm_provider_calls_total", "status") == {"success": 2}
    assert counts_by(samples, "jeeves_llm_tokens_total", "type") == {"prompt": 22, "completion": 14}
    for page in route.values():
        assert 'jeeves_http_requests_total{method="GET",path="/plain/{item}",status_code="200"} 1.0' in page


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_both_outputs_carry_the_same_numbers_from_one_set_of_measurements(
    protocol: str, http_receiver: Receiver, grpc_receiver: Receiver
) -> None:
    """What leaves over OTLP is what the page shows, sample by sample."""
    receiver = grpc_receiver if protocol == "grpc" else http_receiver
    port = free_port()
    settings = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    with launched("events.py", METRICS_PORT=str(port), OTEL_TRACES_SAMPLER="always_on", **settings) as app:
        app.wait_ready()
        page = scrape(port)
        assert app.finish() == 0
    points = receiver.points()

    counters = {key: value for key, value in page.items() if key[0].endswith("_total") and key[0].startswith("jeeves_")}
    assert {key: points.get(key) for key in counters} == counters
    assert len(counters) > 50
    assert points["jeeves_llm_duration_seconds", LLM][:2] == (3, 0.75)
    assert page["jeeves_llm_duration_seconds_count", LLM] == 3
    assert sorted(span.name for span in receiver.spans()) == ["agent.process"] * 3 + ["pipeline.execute"] * 3


@pytest.mark.parametrize(
    ("names", "promised", "standard"), [("views", True, False), ("semconv", False, True), ("both", True, True)]
)
def test_names_setting_decides_what_leaves_over_otlp(
    names: str, promised: bool, standard: bool, http_receiver: Receiver
) -> None:
    """One setting: the promised names, the conventions', or both; never two metrics that Prometheus would call the same."""
    settings = {"JEEVES_OTEL_NAMES": names, "OTEL_EXPORTER_OTLP_ENDPOINT": http_receiver.endpoint, "METRICS_PORT": "0"}
    with launched("events.py", **settings) as app:
        app.wait_ready()
        assert app.finish() == 0
    found = http_receiver.metrics()

    assert promised == ("jeeves_llm_calls_total" in found)
    assert standard == ("gen_ai.client.operation.duration" in found)
    assert standard == ("rpc.server.call.duration" in found)
    # Prometheus calls this one jeeves_pipeline_duration_seconds, which is promised, so it leaves alone or not at all.
    assert ("jeeves.pipeline.duration" in found) == (names == "semconv")
    assert (TRANSLATED in http_receiver.resource()) == promised


def test_resource_names_service_and_distribution(http_receiver: Receiver) -> None:
    """Who sends is said by the standard resource attributes, with an instance id of its own."""
    with launched("events.py", OTEL_EXPORTER_OTLP_ENDPOINT=http_receiver.endpoint, METRICS_PORT="0") as app:
        app.wait_ready()
        app.finish()
    resource = http_receiver.resource()

    assert resource["service.name"] == "test-service"
    assert resource["telemetry.distro.name"] == "jeeves-otel"
    assert resource["service.instance.id"]


def test_start_is_said_in_two_lines_that_name_every_output_and_every_owner() -> None:
    """What is exported where and how much is sampled; who instruments what, and what was left out and why."""
    port = free_port()
    with launched("events.py", METRICS_PORT=str(port)) as app:
        app.wait_ready()
        log, lines = app.log, app.lines

    assert f"metrics → http://127.0.0.1:{port}/metrics" in log
    assert "metrics (views) → OTLP http/protobuf http://localhost:4318 every 15 s" in log
    assert "traces (10 % sampled) → OTLP http/protobuf http://localhost:4318" in log
    assert "openai, sqlalchemy, starlette by jeeves-otel" in log
    assert len(lines) == 2


def test_busy_port_leaves_the_application_running_and_says_so_once() -> None:
    """A taken METRICS_PORT costs the page, one line, and nothing else."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with launched(
            "events.py", METRICS_PORT=str(port), OTEL_METRICS_EXPORTER="console", OTEL_TRACES_EXPORTER="none"
        ) as app:
            app.wait_ready()
            assert app.finish() == 0
            log, out = app.log, "".join(app.out)

    assert log.count("cannot be bound") == 1
    assert f"127.0.0.1:{port}" in log
    assert "METRICS_PORT=0" in log
    assert "done\n" in out
    assert "jeeves_llm_calls_total" in out


def test_unreachable_endpoint_leaves_the_application_running_and_says_so_once_per_signal() -> None:
    """However often an export fails, one line per signal says so, and one at the end; failures are counted on the page."""
    port = free_port()
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        "OTEL_TRACES_SAMPLER": "always_on",
        "METRICS_PORT": str(port),
    }
    with launched("events.py", **settings) as app:
        app.wait_ready()
        site = ("jeeves_otel_internal_errors_total", (("site", "export.metrics"),))
        poll_until(lambda: scrape(port).get(site, 0) >= 2, "two failed exports")
        assert app.finish() == 0
        log = app.log

    assert log.count("metrics do not reach") == 1
    assert "6 spans and" in app.lines[-1] and "metric points were not delivered" in app.lines[-1]
    assert "Traceback" not in log
    assert len(app.lines) == 4


def test_recovered_endpoint_gets_everything_that_was_counted_meanwhile(http_receiver: Receiver) -> None:
    """Counters are totals: what was recorded while nobody listened arrives with the next export."""
    with launched(
        "events.py",
        OTEL_EXPORTER_OTLP_ENDPOINT=http_receiver.endpoint,
        OTEL_METRIC_EXPORT_INTERVAL="100",
        METRICS_PORT="0",
    ) as app:
        app.wait_ready()
        poll_until(lambda: len(http_receiver.requests) >= 2, "two exports")
        app.finish()
    key = ("jeeves_llm_calls_total", (*LLM, ("status", "success")))

    assert http_receiver.points()[key] == 3


def test_typos_and_bad_values_are_named_with_the_way_out_and_defaults_hold() -> None:
    """Each bad setting gives one line with the nearest valid name or value; the application runs on defaults."""
    settings = {
        "JEEVES_OTEL_PROFIELS": "jeeves",
        "JEEVES_OTEL_NAMES": "vews",
        "METRICS_PORT": "http",
        "OTEL_METRIC_EXPORT_INTERVAL": "15s",
        "OTEL_TRACES_SAMPLER": "alway_on",
        "OTEL_METRICS_EXPORTER": "prometeus",
        "OTEL_TRACES_EXPORTER": "none",
    }
    with launched("events.py", **settings) as app:
        app.wait_ready()
        assert app.finish() == 0
        log = app.log

    assert "did you mean `JEEVES_OTEL_PROFILES`?" in log
    assert "did you mean `views`?" in log
    assert "`http` is not a port" in log
    assert "`15s` is not a time in milliseconds" in log
    assert "did you mean `always_on`?" in log
    assert "there is no metrics exporter `prometeus`" in log
    assert len(app.lines) == 8


@pytest.mark.parametrize(
    ("settings", "says", "never"),
    [
        ({"OTEL_BSP_SCHEDULE_DELAY": "abc"}, "`abc` is not a whole number", "Traceback"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "canary"}, "OTEL_EXPORTER_OTLP_HEADERS: a header is not of the form", "canary"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "abc"}, "`abc` is not a whole number", "could not start"),
        ({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "-5"}, "`-5` is not a whole number", "could not start"),
        ({"JEEVES_OTEL_DECLARE": "agnet=planner"}, "did you mean `agent`?", "could not start"),
        ({"OTEL_METRICS_EXEMPLAR_FILTER": "traced"}, "did you mean `trace_based`?", "could not start"),
        ({"METRICS_HOST": "256.1.1.1"}, "another address with METRICS_HOST", "Traceback"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "me:canary@localhost:4318"}, "write http://localhost:4318", "canary"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a"}, "Invalid key value resource attribute pair", "Traceback"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_that_the_sdk_reads_by_itself_cost_one_line_and_no_telemetry(
    settings: dict[str, str], says: str, never: str
) -> None:
    """A bad standard variable is said in words, shows no secret, and leaves everything else at work."""
    with launched(
        "events.py", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="*", METRICS_PORT=str(free_port()), **settings
    ) as app:
        app.wait_ready()
        assert app.finish() == 0
        log = app.log

    assert says in log
    assert never not in log
    assert "jeeves-otel 0" in log


def test_secrets_are_printed_nowhere() -> None:
    """Headers and user information of an endpoint stay out of every line that is written."""
    settings = {
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer canary-token",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://canary-user:canary-password@127.0.0.1:{free_port()}",
        "OTEL_TRACES_SAMPLER": "always_on",
        "METRICS_PORT": "0",
        "JEEVES_OTEL_LOG_LEVEL": "debug",
    }
    with launched("events.py", **settings) as app:
        app.wait_ready()
        assert app.finish() == 0
        log = app.log

    assert "canary" not in log
    assert "http://***@127.0.0.1" in log


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "jeeves-otel is off: OTEL_SDK_DISABLED is true"),
        ({"OTEL_METRICS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none"}, "nothing is exported"),
    ],
)
def test_telemetry_can_be_turned_off(settings: dict[str, str], expected: str) -> None:
    """Off means that the application runs and nothing is served."""
    port = free_port()
    with launched("events.py", METRICS_PORT=str(port), **settings) as app:
        app.wait_ready()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        assert app.finish() == 0

    assert expected in app.log


def test_prometheus_exporter_keeps_its_standard_host_and_port_and_serves_promised_names() -> None:
    """OTEL_METRICS_EXPORTER=prometheus means the standard variables, with the contract."""
    port = free_port()
    settings = {
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }
    with launched("events.py", **settings) as app:
        app.wait_ready()
        samples = scrape(port)

    assert counts_by(samples, "jeeves_llm_calls_total", "status") == {"success": 3}
    assert not any(name.startswith("gen_ai") for name, _ in samples)


def test_propagators_none_does_not_break_requests() -> None:
    """A service with OTEL_PROPAGATORS=none answers its requests."""
    port = free_port()
    settings = {"PORT": str(port), "METRICS_PORT": "0", "OTEL_PROPAGATORS": "none"}
    with llm_server() as base_url, launched("gateway.py", OPENAI_BASE_URL=base_url, **settings) as app:
        app.wait_for_page(f"http://127.0.0.1:{port}/openapi.json")
        answer = get(f"http://127.0.0.1:{port}/plain/7")

    assert answer == "7"


def test_profile_of_ones_own_works_by_path(tmp_path: Path) -> None:
    """A YAML file named in JEEVES_OTEL_PROFILES gives its own metrics, beside the packaged ones."""
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        """
profile: mine
metrics:
  my_llm_seconds:
    type: histogram
    unit: s
    help: Latency of LLM calls.
    source: {instrument: gen_ai.client.operation.duration, take: histogram}
    labels: {vendor: {from: gen_ai.provider.name, absent: none}}
    buckets: [0.2, 0.3]
"""
    )
    port = free_port()
    with launched("events.py", METRICS_PORT=str(port), JEEVES_OTEL_PROFILES=f"jeeves,{profile}") as app:
        app.wait_ready()
        samples = scrape(port)

    assert samples["my_llm_seconds_bucket", (("le", "0.3"), ("vendor", "openai"))] == 3
    assert samples["my_llm_seconds_bucket", (("le", "0.2"), ("vendor", "openai"))] == 0
    assert samples["jeeves_llm_duration_seconds_bucket", (("le", "0.5"), *LLM)] == 3


def test_broken_profile_is_reported_whole_and_the_default_is_used(tmp_path: Path) -> None:
    """A profile with findings costs nothing but itself: all of them are printed, and the contract stands."""
    profile = tmp_path / "mine.yaml"
    profile.write_text("profile: mine\nmetrics:\n  a: {type: conter}\n  b: {}\n")
    port = free_port()
    with launched("events.py", METRICS_PORT=str(port), JEEVES_OTEL_PROFILES=str(profile)) as app:
        app.wait_ready()
        samples = scrape(port)
        log = app.log

    assert "did you mean `counter`?" in log
    assert "mine.yaml:4" in log
    assert counts_by(samples, "jeeves_llm_calls_total", "status") == {"success": 3}


def test_declared_label_sets_exist_with_zero_before_anything_happens() -> None:
    """A dashboard has its series from the first scrape."""
    port = free_port()
    settings = {"JEEVES_OTEL_DECLARE": "agent=critic|writer; provider=anthropic,model=claude; provider=llamaserver"}
    with launched("events.py", METRICS_PORT=str(port), **settings) as app:
        app.wait_ready()
        samples = scrape(port)

    zeros: dict[Any, float] = {
        ("jeeves_agent_executions_total", (("agent", "critic"), ("status", "error"))): 0,
        ("jeeves_agent_executions_total", (("agent", "writer"), ("status", "success"))): 0,
        ("jeeves_llm_calls_total", (("model", "claude"), ("provider", "anthropic"), ("status", "error"))): 0,
        ("jeeves_llm_tokens_total", (("model", "claude"), ("provider", "anthropic"), ("type", "prompt"))): 0,
        (
            "jeeves_llm_provider_calls_total",
            (("model", "unknown"), ("provider", "llamaserver"), ("status", "error")),
        ): 0,
    }
    assert {key: samples.get(key) for key in zeros} == zeros


def test_full_disk_behind_stderr_does_not_reach_the_application() -> None:
    """Where nothing can be logged any more, the application still runs to its end."""
    with (
        Path("/dev/full").open("w") as full,
        launched(
            "events.py", stderr=full, METRICS_PORT="http", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}"
        ) as app,
    ):
        app.wait_ready()
        code = app.finish()

    assert "done\n" in app.out
    assert code == 0


def test_process_and_runtime_metrics_have_the_names_that_panels_use() -> None:
    """The names of Prometheus's own Python client, from the conventions' instruments."""
    port = free_port()
    with launched("events.py", METRICS_PORT=str(port)) as app:
        app.wait_ready()
        samples = scrape(port)

    assert samples["process_resident_memory_bytes", ()] > 10_000_000
    assert 0 < samples["process_cpu_seconds_total", ()] < 60
    assert ("python_gc_collections_total", (("generation", "2"),)) in samples


def test_python_child_of_the_application_says_nothing_new_and_is_on_its_page(tmp_path: Path) -> None:
    """A child process is launched too; the page is one for both, also when the child has ended."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import subprocess, sys, urllib.request\n"
        'child = \'from jeeves_otel import record_error; record_error("Child", "engine")\'\n'
        "code = subprocess.run([sys.executable, '-c', child]).returncode\n"
        "print(urllib.request.urlopen(sys.argv[1]).read().decode())\n"
        "sys.exit(code)\n"
    )
    port = free_port()
    settings = {"METRICS_PORT": str(port), "OTEL_METRICS_EXPORTER": "prometheus", "OTEL_TRACES_EXPORTER": "none"}
    done = subprocess.run(
        [LAUNCHER, sys.executable, str(script), f"http://127.0.0.1:{port}/metrics"],
        env=environment(OTEL_EXPORTER_PROMETHEUS_PORT="0", **settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert 1 == done.stderr.count("jeeves-otel 0.1.0 for"), done.stderr
    assert "cannot be bound" not in done.stderr
    assert 'jeeves_errors_total{error_type="Child",layer="engine"} 1.0' in done.stdout


def test_exit_is_bounded_when_nothing_answers() -> None:
    """With the default time-outs of the exporters and no Collector, telemetry takes two seconds of the exit at most."""
    settings = {"OTEL_EXPORTER_OTLP_TIMEOUT": "10", "OTEL_TRACES_SAMPLER": "always_on", "METRICS_PORT": "0"}
    with launched("events.py", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}", **settings) as app:
        app.wait_ready()
        began = time.monotonic()
        assert app.finish() == 0
        took = time.monotonic() - began

    assert took < 4
    assert "were not delivered within 2 s" in app.log


def test_route_of_the_application_answers_where_the_server_is_off() -> None:
    """METRICS_PORT=0 turns the server off and not the route: with several workers it is the route that counts."""
    port = free_port()
    with (
        llm_server() as base_url,
        launched("gateway.py", PORT=str(port), METRICS_PORT="0", OPENAI_BASE_URL=base_url) as app,
    ):
        app.wait_for_page(f"http://127.0.0.1:{port}/metrics")
        get(f"http://127.0.0.1:{port}/wrapped/1")
        samples = page_with_requests(1, f"http://127.0.0.1:{port}/metrics")

    assert counts_by(samples, "jeeves_llm_calls_total", "status") == {"success": 1}
    assert counts_by(samples, "jeeves_http_requests_total", "path") == {"/wrapped/{item}": 1}


def test_query_strings_and_texts_of_exceptions_do_not_leave_in_spans(http_receiver: Receiver) -> None:
    """What users type stays here, though FastAPI and the client's instrumentation put it into their spans."""
    port = free_port()
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": http_receiver.endpoint,
        "OTEL_TRACES_SAMPLER": "always_on",
        "METRICS_PORT": "0",
    }
    with launched(
        "gateway.py",
        PORT=str(port),
        OPENAI_BASE_URL=f"http://127.0.0.1:{free_port()}/canary",
        OTEL_BSP_SCHEDULE_DELAY="100",
        **settings,
    ) as app:
        app.wait_for_page(f"http://127.0.0.1:{port}/openapi.json")
        with pytest.raises(urllib.error.HTTPError):
            get(f"http://127.0.0.1:{port}/plain/1?q=canary")
        poll_until(lambda: any(span.name == "GET /plain/{item}" for span in http_receiver.spans()), "the server span")
    spans = http_receiver.spans()

    assert "canary" not in "".join(str(span) for span in spans)
    assert {span.status.message for span in spans if span.name.startswith("chat")} == {"openai.APIConnectionError"}


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_log_records_name_their_trace_and_span_for_any_format() -> None:
    """Outside of a trace they are 0, so a format that names them never fails."""
    with launched("logs.py", METRICS_PORT="0", OTEL_TRACES_EXPORTER="none") as app:
        app.wait_ready()
    outside, inside = app.out[:2]

    assert outside == "0 0 outside\n"
    assert re.fullmatch(r"[0-9a-f]{32} [0-9a-f]{16} inside\n", inside)


def test_an_owner_that_does_not_exist_is_said_with_the_nearest_name() -> None:
    """A typo would otherwise leave everything as it is, in silence."""
    with launched("logs.py", METRICS_PORT="0", OTEL_TRACES_EXPORTER="none", JEEVES_OTEL_OWNERS="sqlalchmy") as app:
        app.wait_ready()

    assert "no instrumentation is called `sqlalchmy`" in app.log


def test_exporters_that_fastapi_would_add_are_off_and_said_to_be(http_receiver: Receiver) -> None:
    """They would send everything a second time, query strings and texts of exceptions included."""
    port = free_port()
    with launched(
        "gateway.py",
        PORT=str(port),
        METRICS_PORT="0",
        OPENAI_BASE_URL="http://127.0.0.1:1/v1",
        OTEL_EXPORTER_OTLP_ENDPOINT=http_receiver.endpoint,
        OTEL_TRACES_SAMPLER="always_on",
        OTEL_BSP_SCHEDULE_DELAY="100",
        FASTAPI_OTEL_AUTO_CONFIGURE="true",
    ) as app:
        app.wait_for_page(f"http://127.0.0.1:{port}/docs?q=canary")
        poll_until(http_receiver.spans, "a span")
    names = [span.name for span in http_receiver.spans()]

    assert "FASTAPI_OTEL_AUTO_CONFIGURE is off" in app.log
    assert names.count("GET /docs") == len({span.span_id for span in http_receiver.spans() if span.name == "GET /docs"})
    assert "canary" not in str(http_receiver.requests)


def test_page_is_served_over_ipv6() -> None:
    """An address of either family can be given."""
    port = free_port()
    with launched("events.py", METRICS_PORT=str(port), METRICS_HOST="::1") as app:
        app.wait_ready()
        page = get(f"http://[::1]:{port}/metrics")

    assert "jeeves_llm_calls_total" in page
    assert f"http://[::1]:{port}/metrics" in app.log


def test_refusal_of_an_endpoint_is_said_with_its_status_code() -> None:
    """An endpoint that answers 401 is there: the line names the code and does not ask for a Collector."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "METRICS_PORT": "0"}
    with launched("events.py", OTEL_TRACES_EXPORTER="none", **settings) as app:
        app.wait_ready()
        assert app.finish() == 0
        log = app.log
    server.shutdown()
    server.server_close()

    assert re.search(r"\d+ metric points were not delivered to OTLP \S+ \S+ \(answered 401\)\n", log)

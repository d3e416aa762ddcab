# SPDX-License-Identifier: Apache-2.0
"""recording: what leaves is exact, and an application whose recording calls fail behaves as if there were none."""

from __future__ import annotations

import enum
import inspect
import logging
import os
import subprocess
import sys
import threading
import uuid
from asyncio import CancelledError
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace

import jeeves_otel
from jeeves_otel import (
    agent,
    failsafe,
    interrupt,
    llm_call,
    orchestration,
    pipeline as run_pipeline,
    record_agent,
    record_error,
    record_health,
    record_http_request,
    record_llm_call,
    record_pool,
    record_rpc,
    record_validation_report,
    recording,
    session,
    tool,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers import Pipeline


def test_cancelled_agent_run_counts_once_as_error_and_ends_its_span(pipeline: Pipeline) -> None:
    """Cancellation is an outcome: it is counted once, its span ends, and the error reaches the caller."""
    with pytest.raises(CancelledError), agent("planner"):
        raise CancelledError

    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"error": 1}
    assert [span.name for span in pipeline.spans()] == ["agent.process"]


def test_second_finish_does_nothing(pipeline: Pipeline) -> None:
    """An operation that has ended cannot end again."""
    with agent("planner") as run:
        pass
    run.finish()
    run.finish(ValueError())

    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 1}
    assert len(pipeline.spans()) == 1


def test_exception_text_is_absent_from_spans_by_default(pipeline: Pipeline) -> None:
    """What an exception says may quote a prompt, so only its class leaves."""
    with (
        pytest.raises(ValueError, match="canary"),
        run_pipeline("chat"),
        agent("a"),
        tool("t"),
        llm_call("openai", "m"),
    ):
        raise ValueError("canary")

    assert "canary" not in "".join(span.to_json() for span in pipeline.spans())
    assert len(pipeline.spans()) == 4


# ---- nonsense -------------------------------------------------------------------------------------------------------


class Exploding:
    """An object of an application whose every use fails."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("canary")

    def _explode(self, *_: object) -> Any:
        raise RuntimeError("canary")

    __str__ = __repr__ = __hash__ = __eq__ = __bool__ = __len__ = __iter__ = __format__ = _explode
    __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = __index__ = _explode


class Kind(enum.Enum):
    """An enumeration of an application."""

    PLANNER = "planner"


NO_TEXT = {
    "exploding": Exploding(),
    "object": object(),
    "list": ["a"],
    "dict": {"a": {"b": 1}},
    "error": KeyError("canary"),
}
NO_NUMBER = {
    "exploding": Exploding(),
    "text": "1",
    "bytes": b"1",
    "nan": float("nan"),
    "infinite": float("inf"),
    "minus infinite": float("-inf"),
    "huge": 10**400,
    "complex": 1j,
    "list": [1],
}
NEGATIVE = {"negative": -1}
NOTHING = {"none": None}

TEXT = NO_TEXT
DURATION = NO_NUMBER | NEGATIVE | NOTHING
TOKENS = {name: value for name, value in (NO_NUMBER | NEGATIVE).items() if name not in {"text", "bytes"}}
LEVEL = NO_NUMBER | NOTHING
NO_STATUS_CODE = {name: NO_NUMBER[name] for name in ("exploding", "nan", "infinite", "complex", "list")}

# Of each function: a call that is right, and for each parameter what it cannot make anything of.
CALLS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "record_pipeline": ({"name": "p", "duration_s": 1.0}, {"name": TEXT, "duration_s": DURATION, "status": TEXT}),
    "record_agent": ({"name": "a", "duration_s": 1.0}, {"name": TEXT, "duration_s": DURATION}),
    "record_tool": ({"name": "t", "duration_s": 1.0}, {"name": TEXT, "duration_s": DURATION, "agent": TEXT}),
    "record_llm_call": (
        {"provider": "openai", "model": "m", "duration_s": 1.0},
        {
            "provider": TEXT,
            "model": TEXT,
            "duration_s": DURATION,
            "prompt_tokens": NO_NUMBER | NEGATIVE,
            "completion_tokens": NO_NUMBER | NEGATIVE,
            "operation": TEXT,
            "layer": TEXT,
        },
    ),
    "record_interrupt": ({"kind": "timeout", "status": "pending"}, {"kind": TEXT, "status": TEXT}),
    "record_routing_decision": (
        {"pipeline": "p", "from_stage": "a", "to_stage": "b"},
        {"pipeline": TEXT, "from_stage": TEXT, "to_stage": TEXT},
    ),
    "record_orchestration": ({"outcome": "success", "duration_s": 1.0}, {"outcome": TEXT, "duration_s": DURATION}),
    "record_rejection": ({"reason": "quota"}, {"reason": TEXT}),
    "record_validation_report": (
        {"status": "approved"},
        {"status": TEXT, "issues": {"none": None, "number": 1, "exploding": Exploding(), "object in it": [object()]}},
    ),
    "record_retry": ({"retry_type": "planner_retry"}, {"retry_type": TEXT, "reason": TEXT}),
    "record_critic_decision": ({"action": "accept", "confidence": 0.5}, {"action": TEXT, "confidence": DURATION}),
    "record_queue_depth": ({"queue": "q", "depth": 1}, {"queue": TEXT, "depth": LEVEL}),
    "record_session_opened": ({}, {}),
    "record_session_closed": ({}, {}),
    "record_feature_usage": ({"feature": "f"}, {"feature": TEXT}),
    "record_error": ({"error_type": "E", "layer": "gateway"}, {"layer": TEXT}),
    "record_health": ({"check": "db", "status": "healthy"}, {"check": TEXT, "status": LEVEL | {"unknown": "odd"}}),
    "record_rpc": (
        {"method": "/a.B/C", "status_code": "OK", "duration_s": 1.0},
        {"method": TEXT, "status_code": TEXT, "duration_s": DURATION},
    ),
    "record_http_request": (
        {"method": "GET", "route": "/", "status_code": 200, "duration_s": 1.0},
        {"method": TEXT, "route": TEXT, "status_code": NO_STATUS_CODE, "duration_s": DURATION},
    ),
    "record_db_operation": ({"operation": "SELECT", "duration_s": 1.0}, {"operation": TEXT, "duration_s": DURATION}),
    "record_pool": (
        {"pool": "p", "used": 1, "idle": 1, "maximum": 2},
        {"pool": TEXT, "used": LEVEL, "idle": LEVEL, "maximum": LEVEL},
    ),
    "pipeline": ({"name": "p"}, {"name": TEXT, "request_id": TEXT, "user_id": TEXT, "mode": TEXT}),
    "agent": ({"name": "a"}, {"name": TEXT, "agent_type": TEXT}),
    "tool": ({"name": "t"}, {"name": TEXT}),
    "llm_call": ({"provider": "openai", "model": "m"}, {"provider": TEXT, "model": TEXT, "operation": TEXT}),
    "interrupt": ({"kind": "timeout"}, {"kind": TEXT}),
    "orchestration": ({}, {}),
    "session": ({}, {}),
}
METHODS: list[tuple[Callable[..., Any], str, str, dict[str, Any]]] = [
    (lambda: run_pipeline("p"), "terminate", "reason", NO_TEXT),
    (lambda: run_pipeline("p"), "fail", "kind", {k: v for k, v in NO_TEXT.items() if k != "error"}),
    (lambda: llm_call("openai"), "set_tokens", "prompt", TOKENS),
    (lambda: llm_call("openai"), "set_tokens", "completion", TOKENS),
    (lambda: llm_call("openai"), "set_answered_by", "provider", NO_TEXT),
    (lambda: llm_call("openai"), "set_answered_by", "model", NO_TEXT),
    (lambda: llm_call("openai"), "set_response_model", "model", NO_TEXT),
    (
        lambda: llm_call("openai"),
        "set_cost_usd",
        "cost_usd",
        {k: NO_NUMBER[k] for k in ("exploding", "huge", "complex")},
    ),
    (lambda: interrupt("timeout"), "settle", "status", NO_TEXT),
    (orchestration, "set_outcome", "outcome", NO_TEXT),
]


@pytest.fixture
def lenient(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Switch strictness off, as in production."""
    failsafe.set_strict(False)
    with caplog.at_level(logging.DEBUG):
        yield caplog


def _one_count_and_one_line(log: pytest.LogCaptureFixture) -> None:
    lines = [(record.name, "canary" in record.getMessage()) for record in log.records if record.levelno > logging.INFO]

    assert (sum(failsafe.counts().values()), lines) == (1, [("jeeves_otel", False)])


def _use(function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    made = function(**arguments)
    if made is not None:
        with made:
            return "reply"
    return "reply"


@pytest.mark.parametrize(
    ("function", "parameter", "value"),
    [
        pytest.param(function, parameter, value, id=f"{function}-{parameter}-{name}")
        for function, (_, parameters) in CALLS.items()
        for parameter, values in parameters.items()
        for name, value in values.items()
    ],
)
def test_nonsense_in_any_parameter_is_counted_once_and_changes_nothing(
    function: str, parameter: str, value: Any, pipeline: Pipeline, lenient: pytest.LogCaptureFixture
) -> None:
    """The call returns as ever; one internal error, one line that quotes nothing; everything else is still exported."""
    record_agent("before", 1.0)

    assert _use(getattr(jeeves_otel, function), CALLS[function][0] | {parameter: value}) == "reply"
    page = pipeline.page()
    _one_count_and_one_line(lenient)
    assert "canary" not in page + "".join(span.to_json() for span in pipeline.spans())
    assert 'jeeves_agent_executions_total{agent="before",status="success"} 1' in page


@pytest.mark.parametrize(
    ("make", "method", "parameter", "value"),
    [
        pytest.param(make, method, parameter, value, id=f"{method}-{parameter}-{name}")
        for make, method, parameter, values in METHODS
        for name, value in values.items()
    ],
)
def test_nonsense_said_to_a_running_operation_is_counted_once_and_the_operation_ends_as_ever(
    make: Callable[..., Any],
    method: str,
    parameter: str,
    value: Any,
    pipeline: Pipeline,
    lenient: pytest.LogCaptureFixture,
) -> None:
    """Methods of handles, too."""
    with make() as run:
        getattr(run, method)(**{parameter: value})
    text = pipeline.page() + "".join(span.to_json() for span in pipeline.spans())

    _one_count_and_one_line(lenient)
    assert "canary" not in text


@pytest.mark.parametrize("function", [name for name, (_, parameters) in CALLS.items() if parameters])
def test_every_parameter_of_the_public_functions_is_tried_with_nonsense(function: str) -> None:
    """A new parameter has to say what it cannot make anything of; error_type has tests of its own."""
    expected = set(inspect.signature(getattr(jeeves_otel, function)).parameters) - {"error_type"}

    assert set(CALLS[function][1]) == expected


def test_every_public_function_is_tried_with_nonsense() -> None:
    """A new function has to say what it cannot make anything of."""
    assert set(CALLS) | {"current_llm_call"} == set(jeeves_otel.__all__)


@pytest.mark.usefixtures("lenient")
def test_a_name_that_is_no_text_costs_the_name_and_not_the_count(pipeline: Pipeline) -> None:
    """The run is counted as unknown, its span is there, the failure is counted once."""
    for name in (object(), Exploding()):
        with agent(name) as run:  # type: ignore[arg-type]  # the test's point
            pass

    assert run.name is None
    assert pipeline.counts_by("jeeves_agent_executions_total", "agent") == {"unknown": 2}
    assert failsafe.counts() == {"agent": 2}
    assert len(pipeline.spans()) == 2


@pytest.mark.parametrize(
    ("value", "label"),
    [("é", "é"), (b"raw", "raw"), (7, "7"), (Kind.PLANNER, "planner"), (uuid.UUID(int=5), str(uuid.UUID(int=5)))],
    ids=repr,
)
def test_values_that_have_a_text_are_recorded_as_that_text(value: Any, label: str, pipeline: Pipeline) -> None:
    """Enumerations, numbers, bytes and UUIDs are no mistakes."""
    with agent(value):
        pass
    record_agent(value, 1.0)

    assert pipeline.counts_by("jeeves_agent_executions_total", "agent") == {label: 2}
    assert [(span.attributes or {})["gen_ai.agent.name"] for span in pipeline.spans()] == [label]


@pytest.mark.parametrize("given", [ValueError("canary"), ValueError], ids=["exception", "class"])
def test_an_exception_given_as_error_type_leaves_its_class(given: Any, pipeline: Pipeline) -> None:
    """The likeliest mistake is understood, and its text stays inside."""
    record_error(given, "gateway")
    record_llm_call("openai", "m", 1.0, error_type=given)

    assert pipeline.counts_by("jeeves_errors_total", "error_type") == {"ValueError": 1}
    assert pipeline.counts_by("jeeves_llm_calls_total", "status") == {"error": 1}


@pytest.mark.usefixtures("lenient")
def test_an_error_type_that_is_no_text_is_still_an_error(pipeline: Pipeline) -> None:
    """What failed for an unspeakable reason must not count as a success."""
    record_agent("a", 1.0, error_type=object())  # type: ignore[arg-type]  # the test's point
    with agent("a") as run:
        run.fail(Exploding())  # type: ignore[arg-type]  # as above

    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"error": 2}


def test_one_issue_given_as_text_is_one_issue(pipeline: Pipeline) -> None:
    """A text is not a list of its letters."""
    record_validation_report("rejected", issues="tool_count_mismatch")

    assert pipeline.counts_by("meta_validator_issue_detections_total", "issue_type") == {"tool_count_mismatch": 1}


@pytest.mark.usefixtures("lenient")
def test_a_level_that_cannot_be_asked_does_not_hide_the_others(pipeline: Pipeline) -> None:
    """One health check whose function fails leaves the other checks on the page."""
    record_health("broken", lambda: 1 / 0)
    record_health("odd", lambda: "healthy")  # type: ignore[arg-type, return-value]  # the test's point
    record_health("fine", lambda: 0.5)
    record_pool("main", used=Exploding(), idle=3, maximum=lambda: 5)  # type: ignore[arg-type]  # as above

    assert pipeline.counts_by("jeeves_health_status", "check") == {"fine": 0.5}
    assert pipeline.samples()["jeeves_db_pool_idle_connections", ()] == 3
    assert failsafe.counts() == {"record_pool": 1, "callback.jeeves.health.status": 4}


def test_a_status_of_grpc_is_recorded_by_its_name(pipeline: Pipeline) -> None:
    """grpc.StatusCode is an enumeration of tuples: its members are known by their names."""
    status = enum.Enum("StatusCode", {"NOT_FOUND": (5, "not found")})
    record_rpc("/a.B/C", status.NOT_FOUND, 0.1)  # type: ignore[arg-type]  # what applications hold in their hands

    assert pipeline.counts_by("jeeves_grpc_requests_total", "status") == {"NotFound": 1}


def test_the_status_code_of_a_request_may_be_any_whole_number(pipeline: Pipeline) -> None:
    """http.HTTPStatus, and the text of some frameworks."""
    for status in (200, "200"):
        record_http_request("GET", "/", status, 0.1)  # type: ignore[arg-type]  # the test's point

    assert pipeline.counts_by("jeeves_http_requests_total", "status_code") == {"200": 2}


# ---- providers that fail ----------------------------------------------------------------------------------------------


class _Failing:
    """A provider, meter, instrument, tracer: every call of it fails."""

    def __init__(self, *working: str) -> None:
        self._working = working

    def __getattr__(self, name: str) -> Any:
        if name in self._working:
            return lambda *_, **__: self

        def fail(*_: object, **__: object) -> Any:
            raise RuntimeError("canary")

        return fail


OPERATIONS: dict[str, Callable[[], Any]] = {
    "pipeline": lambda: run_pipeline("p"),
    "agent": lambda: agent("a"),
    "tool": lambda: tool("t"),
    "llm_call": lambda: llm_call("openai", "m"),
    "interrupt": lambda: interrupt("timeout"),
    "orchestration": orchestration,
    "session": session,
}
CREATE = ("get_meter", "create_histogram", "create_counter", "create_up_down_counter", "create_observable_gauge")


@pytest.mark.parametrize("working", [("get_meter",), CREATE], ids=["creating fails", "recording fails"])
@pytest.mark.parametrize("function", CALLS)
def test_an_application_whose_meter_provider_fails_behaves_as_without(
    function: str, working: tuple[str, ...], pipeline: Pipeline, lenient: pytest.LogCaptureFixture
) -> None:
    """Every function returns, the failures are counted, each site logs once, and the spans are not affected."""
    recording.bind(meter_provider=_Failing(*working), tracer_provider=pipeline.tracer_provider)  # type: ignore[arg-type]
    observed = function in {"record_queue_depth", "record_health", "record_pool"} and working is CREATE

    for _ in range(3):
        assert _use(getattr(jeeves_otel, function), CALLS[function][0]) == "reply"

    per_call = {"interrupt": 2, "session": 2, "orchestration": 2, "record_pool": 3}.get(function, 1)
    total = sum(failsafe.counts().values())
    assert total == (3 * per_call if not observed else total)
    assert len([r for r in lenient.records if r.levelno > logging.INFO]) == len(failsafe.counts())
    assert len(pipeline.spans()) == (3 if function in {"pipeline", "agent", "tool", "llm_call"} else 0)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_application_whose_tracer_fails_behaves_as_without_and_its_metrics_are_exact(
    operation: str, pipeline: Pipeline, lenient: pytest.LogCaptureFixture
) -> None:
    """A span that cannot be started costs the span, not the count nor the layers."""
    recording.bind(meter_provider=pipeline.meter_provider, tracer_provider=_Failing("get_tracer"))  # type: ignore[arg-type]
    error = ValueError()
    with pytest.raises(ValueError) as caught, OPERATIONS[operation]():  # noqa: PT011 - the test's own
        raise error

    assert caught.value is error
    spanned = operation in {"pipeline", "agent", "tool", "llm_call"}
    assert failsafe.counts() == ({f"{operation}.start": 1} if spanned else {})
    if operation == "llm_call":
        assert pipeline.counts_by("jeeves_llm_provider_calls_total", "status") == {"error": 1}
    assert len([r for r in lenient.records if r.levelno > logging.INFO]) == int(spanned)


class _UnsettableSpan(trace.NonRecordingSpan):
    """A span that starts and then fails at everything."""

    def is_recording(self) -> bool:
        return True

    def _fail(self, *_: object, **__: object) -> Any:
        raise RuntimeError("canary")

    set_attribute = set_attributes = set_status = end = _fail  # type: ignore[assignment]  # all the same here


class _UnsettableTracerProvider(trace.NoOpTracerProvider):
    def get_tracer(self, *_: Any, **__: Any) -> Any:
        tracer = trace.NoOpTracer()
        tracer.start_span = lambda *_, **__: _UnsettableSpan(trace.INVALID_SPAN_CONTEXT)  # type: ignore[method-assign]
        return tracer


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("operation", ["pipeline", "agent", "tool", "llm_call"])
def test_a_span_that_fails_at_its_end_costs_itself_only(operation: str, pipeline: Pipeline) -> None:
    """Describing and ending it are two failures of two sites; the count is taken."""
    recording.bind(meter_provider=pipeline.meter_provider, tracer_provider=_UnsettableTracerProvider())
    with OPERATIONS[operation]():
        pass

    assert failsafe.counts() == {f"{operation}.span": 1, f"{operation}.end": 1}
    assert "_count" in pipeline.page()


@pytest.mark.parametrize("function", CALLS)
def test_after_the_shutdown_of_the_providers_everything_is_silent(
    function: str, pipeline: Pipeline, lenient: pytest.LogCaptureFixture
) -> None:
    """An application that goes on working while the process ends notices nothing."""
    _use(getattr(jeeves_otel, function), CALLS[function][0])
    pipeline.shutdown()

    assert _use(getattr(jeeves_otel, function), CALLS[function][0]) == "reply"
    assert failsafe.counts() == {}
    assert [r.getMessage() for r in lenient.records if r.levelno > logging.INFO and r.name.startswith("jeeves")] == []


def test_a_log_handler_that_fails_does_not_reach_the_application(pipeline: Pipeline) -> None:
    """The line about a failure may itself fail."""

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError

    failsafe.set_strict(False)
    handler = Raising()
    logging.getLogger("jeeves_otel").addHandler(handler)
    try:
        with agent(object()):  # type: ignore[arg-type]  # the test's point
            pass
    finally:
        logging.getLogger("jeeves_otel").removeHandler(handler)

    assert failsafe.counts() == {"agent": 1}
    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {"success": 1}


# ---- without an SDK, and before it ------------------------------------------------------------------------------------

PROGRAM = """
import jeeves_otel as j

@j.pipeline("p")
def run(fail):
    with j.agent("a"), j.llm_call("openai", "m") as call, j.tool("t"), j.interrupt("timeout"), j.session():
        call.set_tokens(prompt=1)
        j.record_agent({name}, 1.0)
        j.record_health("db", "healthy")
        if fail:
            raise ValueError("mine")
        return "reply"

print(run(False))
try:
    run(True)
except ValueError as error:
    print(repr(error))
"""


def _run(program: str, stderr: Any = subprocess.PIPE) -> tuple[int, str, str]:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False, env=buffered)
    return done.returncode, done.stdout, done.stderr or ""


def test_without_an_sdk_everything_is_silent_and_returns_right() -> None:
    """A library may use the recording API whether or not its user has telemetry."""
    program = PROGRAM.format(name='"a"') + "import sys\nprint('opentelemetry.sdk' in sys.modules)\n"

    assert _run(program) == (0, "reply\nValueError('mine')\nFalse\n", "")


def test_a_program_whose_stderr_is_full_behaves_as_without_telemetry() -> None:
    """The line that the fail-safe writes has nowhere to go, and nothing else happens."""
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        code, output, _ = _run(PROGRAM.format(name="object()"), stderr=full)

    assert (code, output) == (0, "reply\nValueError('mine')\n")


def test_a_program_that_has_configured_no_logging_reads_of_a_failure_on_stderr() -> None:
    """One line, once, that names the site and quotes nothing."""
    code, output, errors = _run(PROGRAM.format(name="object()"))

    assert (code, output) == (0, "reply\nValueError('mine')\n")
    assert errors == (
        "record_agent failed (TypeError); it was skipped, and the application is not affected. Further failures here "
        'are only counted, in jeeves_otel_internal_errors_total{site="record_agent"}.\n'
    )


def test_what_is_recorded_before_the_providers_are_set_is_harmless_and_what_comes_after_counts() -> None:
    """The global proxies hand over to the provider that is set later; levels that were set before are kept."""
    program = """
import jeeves_otel as j
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

def work():
    j.record_agent("a", 1.0)
    with j.agent("a"):
        pass

work()
j.record_health("db", "healthy")
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
work()
found = {
    metric.name: [getattr(point, "count", None) or point.value for point in metric.data.data_points]
    for resource in reader.get_metrics_data().resource_metrics
    for scope in resource.scope_metrics
    for metric in scope.metrics
}
print(sorted(found.items()))
"""

    assert _run(program) == (0, "[('jeeves.agent.duration', [2]), ('jeeves.health.status', [1.0])]\n", "")


# ---- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_concurrent_threads_lose_no_event(pipeline: Pipeline) -> None:
    """Eight threads with 10,000 events each, of four kinds: the totals are exact."""
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for event in range(2_500):
            record_llm_call("openai", f"m{event % 3}", 0.5, prompt_tokens=1, completion_tokens=2)
            record_http_request("GET", "/", 200, 0.01)
            record_error("E", f"layer{number}")
            with agent(f"a{number}"):
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))

    assert pipeline.counts_by("jeeves_llm_calls_total", "status") == {"success": 20_000}
    assert pipeline.counts_by("jeeves_llm_tokens_total", "type") == {"prompt": 20_000, "completion": 40_000}
    assert pipeline.counts_by("jeeves_http_requests_total", "method") == {"GET": 20_000}
    assert pipeline.counts_by("jeeves_errors_total", "layer") == {f"layer{n}": 2_500 for n in range(8)}
    assert pipeline.counts_by("jeeves_agent_executions_total", "agent") == {f"a{n}": 2_500 for n in range(8)}
    assert len(pipeline.spans()) == 20_000


def test_concurrent_failures_are_each_counted_once(pipeline: Pipeline) -> None:
    """No failure is lost to another thread's."""
    failsafe.set_strict(False)

    def work(_: int) -> None:
        for _ in range(500):
            record_agent("a", -1.0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))

    assert failsafe.counts() == {"record.jeeves.agent.duration": 4_000}
    assert pipeline.counts_by("jeeves_agent_executions_total", "status") == {}

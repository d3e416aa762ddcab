# SPDX-License-Identifier: Apache-2.0
"""Offer the operations of an agent service as context managers and decorators, and the rest as ``record_*`` functions.

In: what the application does. Out: semantic-convention measurements and spans through opentelemetry-api, and nothing
without an SDK. No function here raises, blocks or alters what the application does.

Every operation works in three ways::

    with llm_call("openai", "gpt-4o") as call:        # async with does the same
        reply = client.chat.completions.create(...)
        call.set_tokens(prompt=12, completion=80)

    @agent("planner")                                 # sync, async, generator and async generator functions
    async def plan(goal): ...

    record_agent("planner", duration_s=0.8)           # for code that has timed itself
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry import context as otel_context, metrics, trace
from opentelemetry.trace import SpanKind

from jeeves_otel.failsafe import failsafe
from jeeves_otel.instruments import Instruments
from jeeves_otel.layers import ENGINE, INNER, LAYER, opened, running
from jeeves_otel.operations import Handle, Operation, Outcome, error_kind, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.context import Context

    from jeeves_otel.instruments import LevelSource

PipelineStatus = Literal["success", "error", "terminated"]
InterruptKind = Literal[
    "clarification", "confirmation", "agent_review", "checkpoint", "resource_exhausted", "timeout", "system_error"
]
InterruptStatus = Literal["pending", "resolved", "expired", "cancelled"]
LlmOperation = Literal["chat", "text_completion", "generate_content", "embeddings"]

_SCOPE = "jeeves_otel"
_OPERATION_DURATION = "gen_ai.client.operation.duration"
_TOKEN_USAGE = "gen_ai.client.token.usage"  # noqa: S105 - the name of a metric
# The key of the SDK's exporters, and the one that instrumentations used before it.
SUPPRESSED = (otel_context._SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation")  # noqa: SLF001 - has no public name yet
_HEALTH = {"healthy": 1.0, "degraded": 0.5, "failed": 0.0}


@cache
def package_version() -> str:
    """Return the version of the installed package, or ``0`` in a source tree that is not installed."""
    try:
        return version("jeeves-otel")
    except PackageNotFoundError:
        return "0"


_instruments = Instruments(metrics.get_meter(_SCOPE, package_version()))
_tracer = trace.get_tracer(_SCOPE, package_version())
_sources: list[tuple[str, LevelSource]] = []


def instruments() -> Instruments:
    """Return the instruments that this module records with, for the integrations."""
    return _instruments


def tracer() -> trace.Tracer:
    """Return the tracer that this module starts spans with, for the integrations."""
    return _tracer


def observe(name: str, source: LevelSource) -> None:
    """Ask *source* at each collection for the values of the observed instrument *name*, whatever is bound."""
    _sources.append((name, source))
    _instruments.levels(name).watch(source)


def is_suppressed(context: Context | None = None) -> bool:
    """Return whether what happens in *context* (default: the current one) is telemetry on its way out, not to be measured."""
    found = otel_context.get_current() if context is None else context
    return any(found.get(key) for key in SUPPRESSED)


def bind(
    *, meter_provider: metrics.MeterProvider | None = None, tracer_provider: trace.TracerProvider | None = None
) -> None:
    """Record into these providers from now on; None means the global one.

    For tests and for programs that keep their providers to themselves; under the launcher there is nothing to bind.
    """
    global _instruments, _tracer  # noqa: PLW0603 - the module is the recorder of the process
    _instruments = Instruments(metrics.get_meter(_SCOPE, package_version(), meter_provider))
    _tracer = trace.get_tracer(_SCOPE, package_version(), tracer_provider)
    for name, source in _sources:
        _instruments.levels(name).watch(source)


# ---- operations ------------------------------------------------------------------------------------------------------


class _Spanned(Handle):
    """A handle with a span of its own."""

    def _start_span(self, name: str, kind: SpanKind, current: Context, attributes: dict[str, Any]) -> None:
        self.span = _tracer.start_span(name, current, kind, _present(attributes))
        self.record_context = trace.set_span_in_context(self.span, current)


class PipelineRun(_Spanned):
    """A running pipeline."""

    site = "pipeline"
    cancellation_fails = False  # who cancels a pipeline terminates it, which is no error

    def __init__(self, name: str, request_id: str | None, user_id: str | None, mode: str | None) -> None:
        super().__init__(text_of(name, self.site))
        self._entry.request_id = self._request_id = text_of(request_id, self.site)
        self._user_id = text_of(user_id, self.site)
        self._mode = text_of(mode, self.site)
        self._termination: str | None = None

    def terminate(self, reason: str) -> None:
        """Let the pipeline end early without an error, because of *reason* (``clarification_required``…)."""
        self._termination = text_of(reason, "pipeline.terminate") or "unknown"

    def _open(self, current: Context) -> None:
        attributes = {
            "pipeline.name": self.name,
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": self.name,
            "request.id": self._request_id,
            "user.id": self._user_id,
            "pipeline.mode": self._mode,
        }
        self._start_span("pipeline.execute", SpanKind.INTERNAL, current, attributes)
        self.span.add_event("pipeline.started")

    def _status(self, outcome: Outcome) -> PipelineStatus:
        # An error wins over a termination; a task that was cancelled or a consumer that left is no error.
        if outcome == "error":
            return "error"
        return "success" if outcome == "ok" and self._termination is None else "terminated"

    def _record(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        _record_pipeline(self.name, duration_s, self._status(outcome), kind, self.record_context)

    def _describe(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        status = self._status(outcome)
        self.span.set_attribute("pipeline.status", status)
        self.span.set_attribute("pipeline.duration_ms", int(duration_s * 1_000))
        if status == "terminated":
            self.span.set_attribute("termination.reason", self._termination or outcome)
        self.span.add_event("pipeline.completed", {"pipeline.status": status})


class AgentRun(_Spanned):
    """A running agent."""

    site = "agent"

    def __init__(self, name: str, agent_type: str | None) -> None:
        super().__init__(text_of(name, self.site))
        self._agent_type = text_of(agent_type, self.site)
        self.llm_calls = 0

    def _open(self, current: Context) -> None:
        attributes = {
            "jeeves.agent.name": self.name,
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": self.name,
            "jeeves.request.id": _request_id(current),
            "jeeves.agent.type": self._agent_type,
        }
        self._start_span("agent.process", SpanKind.INTERNAL, current, attributes)

    def _record(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        if self.site not in self._entry.reported:
            _record_agent(self.name, duration_s, kind, self.record_context)

    def _describe(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        self.span.set_attribute("jeeves.llm.calls", self.llm_calls)
        self.span.set_attribute("duration_ms", int(duration_s * 1_000))


class ToolRun(_Spanned):
    """A running tool."""

    site = "tool"

    def __init__(self, name: str) -> None:
        super().__init__(text_of(name, self.site))
        self._agent: str | None = None

    def _open(self, current: Context) -> None:
        self._agent = _agent_name(current)
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": self.name,
            "tool.name": self.name,
            "jeeves.agent.name": self._agent,
        }
        name = "execute_tool" if self.name is None else f"execute_tool {self.name}"
        self._start_span(name, SpanKind.INTERNAL, current, attributes)

    def _record(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        if self.site not in self._entry.reported:
            _record_tool(self.name, self._agent, duration_s, kind, self.record_context)

    def _describe(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        self.span.set_attribute("tool.status", "success" if kind is None else "error")
        self.span.set_attribute("tool.execution_time_ms", int(duration_s * 1_000))


class LlmCall(_Spanned):
    """A running LLM call, as the calling agent sees it."""

    site = "llm_call"

    def __init__(self, provider: str, model: str | None, operation: str) -> None:
        # A client's point is one of this call if it measures the same kind of operation.
        super().__init__(text_of(operation, self.site) or "chat")
        self.provider = text_of(provider, self.site)
        self.model = text_of(model, self.site)
        self._tokens: dict[str, int] = {}
        self._cost_usd: float | None = None
        self._response_model: str | None = None

    def set_tokens(self, *, prompt: int | None = None, completion: int | None = None) -> None:
        """Say how many tokens were used, >= 0. Ignored for the metrics if an instrumented client reports them itself."""
        for kind, count in (("input", prompt), ("output", completion)):
            if count is not None:
                with failsafe("llm_call.set_tokens"):
                    self._tokens[kind] = _whole_count(count)

    def set_answered_by(self, *, provider: str | None = None, model: str | None = None) -> None:
        """Say who answered after a fallback: the call is counted for the provider and model that answered."""
        self.provider = text_of(provider, "llm_call.set_answered_by") or self.provider
        self.model = text_of(model, "llm_call.set_answered_by") or self.model

    def set_response_model(self, model: str) -> None:
        """Say which model the response names; on the span only."""
        self._response_model = text_of(model, "llm_call.set_response_model")

    def set_cost_usd(self, cost_usd: float) -> None:
        """Say what the call cost, in US dollars; on the span only."""
        with failsafe("llm_call.set_cost_usd"):
            self._cost_usd = float(cost_usd)

    def _open(self, current: Context) -> None:
        attributes = {
            "gen_ai.operation.name": self.name,
            "jeeves.agent.name": _agent_name(current),
            "jeeves.request.id": _request_id(current),
            **self._answered_by(),
        }
        self._start_span("llm.provider.call", SpanKind.CLIENT, current, attributes)
        around = running("agent", current)
        if around is not None and isinstance(around.handle, AgentRun) and running(self.site, current) is None:
            around.handle.llm_calls += 1

    def _answered_by(self) -> dict[str, str | None]:
        return {
            "gen_ai.provider.name": self.provider,
            "gen_ai.request.model": self.model,
            "jeeves.llm.provider": self.provider,
            "jeeves.llm.model": self.model or "default",
        }

    def _record(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        entry, outer = self._entry, self._entry.outer
        attributes = _llm_attributes(self.provider, self.model, self.name)
        layer = None
        if _OPERATION_DURATION in entry.reported:
            layer = ENGINE if outer is None else INNER
        else:
            entry.settled.add(_OPERATION_DURATION)
        if outer is not None:
            outer.reported |= entry.reported
        _record_llm_duration(attributes, duration_s, kind, layer, self.record_context)
        if self._tokens and _TOKEN_USAGE not in entry.reported:
            entry.settled.add(_TOKEN_USAGE)
            for token_type, count in self._tokens.items():
                _record_tokens(attributes, token_type, count, self.record_context)

    def _describe(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        attributes: dict[str, Any] = {
            **self._answered_by(),
            "gen_ai.response.model": self._response_model,
            "jeeves.llm.cost_usd": self._cost_usd,
            "jeeves.llm.latency_ms": duration_s * 1_000,
        }
        if self._tokens:
            prompt, completion = self._tokens.get("input"), self._tokens.get("output")
            attributes |= {
                "gen_ai.usage.input_tokens": prompt,
                "gen_ai.usage.output_tokens": completion,
                "jeeves.llm.tokens.prompt": prompt,
                "jeeves.llm.tokens.completion": completion,
                "jeeves.llm.tokens.total": (prompt or 0) + (completion or 0),
            }
        self.span.set_attributes(_present(attributes))


class InterruptRun(Handle):
    """An interrupt that has been raised and is not settled yet."""

    site = "interrupt"

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = text_of(kind, self.site)
        self._status: str | None = None

    def settle(self, status: InterruptStatus) -> None:
        """Say how the interrupt ends: ``resolved``, ``expired`` or ``cancelled``."""
        self._status = text_of(status, "interrupt.settle")

    def finish(self, error: BaseException | None = None) -> None:
        """End the interrupt, once; a `TimeoutError` of any class lets it expire."""
        if isinstance(error, TimeoutError) and self._status is None:
            self._status = "expired"
        super().finish(error)

    def _open(self, current: Context) -> None:
        record_interrupt(self._kind or "", "pending")

    def _record(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        end = "resolved" if outcome == "ok" else "expired" if kind == "TimeoutError" else "cancelled"
        record_interrupt(self._kind or "", self._status or end)


class OrchestrationRun(Handle):
    """A request that is being orchestrated."""

    site = "orchestration"

    def __init__(self) -> None:
        super().__init__()
        self._result: str | None = None

    def set_outcome(self, outcome: str) -> None:
        """Say how the request ends, if not as ``success`` or ``failed``; a short word, never free text."""
        self._result = text_of(outcome, "orchestration.set_outcome")

    def _open(self, current: Context) -> None:
        _instruments.updowncounter("jeeves.orchestrator.active_requests").add(1)

    def _record(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        _instruments.updowncounter("jeeves.orchestrator.active_requests").add(-1)
        record_orchestration(self._result or ("success" if kind is None else "failed"), duration_s)


class SessionRun(Handle):
    """A user session that is open."""

    site = "session"

    def _open(self, current: Context) -> None:
        record_session_opened()

    def _record(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        record_session_closed()


def pipeline(
    name: str, *, request_id: str | None = None, user_id: str | None = None, mode: str | None = None
) -> Operation[PipelineRun]:
    """Return one run of the pipeline *name*: span ``pipeline.execute``, instrument ``jeeves.pipeline.duration``.

    Args:
        name: A short, stable name; a label value.
        request_id: Id of the request; on spans only, here and on the operations inside.
        user_id: Id of the user; on this span only. Personal data: leave it out or hash it.
        mode: ``sequential`` or ``parallel``; on the span only.
    """
    return Operation(PipelineRun, name, request_id, user_id, mode)


def agent(name: str, *, agent_type: str | None = None) -> Operation[AgentRun]:
    """Return one run of the agent *name*: span ``agent.process``, instrument ``jeeves.agent.duration``.

    Args:
        name: A short, stable name; a label value.
        agent_type: ``llm``, ``tool`` or ``service``; on the span only.
    """
    return Operation(AgentRun, name, agent_type)


def tool(name: str) -> Operation[ToolRun]:
    """Return one execution of the tool *name*: span ``execute_tool {name}``, instrument ``jeeves.tool.duration``."""
    return Operation(ToolRun, name)


def llm_call(provider: str, model: str | None = None, *, operation: LlmOperation = "chat") -> Operation[LlmCall]:
    """Return one LLM call as the agent sees it: span ``llm.provider.call``, ``gen_ai.client.operation.duration``.

    An instrumented client inside it is the provider layer; without one, the call stands for both layers.

    Args:
        provider: ``openai``, ``anthropic``, ``llamaserver``… (``gen_ai.provider.name``).
        model: The model asked for (``gen_ai.request.model``).
        operation: What is asked of it (``gen_ai.operation.name``).
    """
    return Operation(LlmCall, provider, model, operation)


def interrupt(kind: InterruptKind) -> Operation[InterruptRun]:
    """Return an interrupt of the flow: counted ``pending`` when entered, and once more by how it ends."""
    return Operation(InterruptRun, kind)


def orchestration() -> Operation[OrchestrationRun]:
    """Return one orchestrated request: counted as in flight while it runs, then by outcome."""
    return Operation(OrchestrationRun)


def session() -> Operation[SessionRun]:
    """Return one user session: counted as active while it is open."""
    return Operation(SessionRun)


def current_llm_call() -> LlmCall | None:
    """Return the innermost running LLM call, for code below a decorated function that knows the tokens."""
    with failsafe("llm_call.current"):
        entry = running("llm_call")
        if entry is not None and isinstance(entry.handle, LlmCall):
            return entry.handle
    return None


# ---- what has timed itself, or has no duration -----------------------------------------------------------------------


def record_pipeline(
    name: str, duration_s: float, *, status: PipelineStatus = "success", error_type: str | None = None
) -> None:
    """Record one finished pipeline run of *duration_s* seconds, >= 0."""
    with failsafe("record_pipeline"):
        _record_pipeline(name, duration_s, status, _given_error(error_type, "record_pipeline"), None)


def record_agent(name: str, duration_s: float, *, error_type: str | None = None) -> None:
    """Record one finished agent run of *duration_s* seconds, >= 0; an *error_type* makes it an error."""
    with failsafe("record_agent"):
        _record_agent(name, duration_s, _given_error(error_type, "record_agent"), None)


def record_tool(name: str, duration_s: float, *, agent: str | None = None, error_type: str | None = None) -> None:
    """Record one finished tool execution of *duration_s* seconds, >= 0."""
    with failsafe("record_tool"):
        _record_tool(name, agent, duration_s, _given_error(error_type, "record_tool"), None)


def record_llm_call(
    provider: str,
    model: str | None,
    duration_s: float,
    *,
    error_type: str | None = None,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
    operation: LlmOperation = "chat",
    layer: Literal["engine", "provider"] | None = None,
) -> None:
    """Record one finished LLM call.

    Args:
        provider: ``openai``, ``anthropic``, ``llamaserver``…
        model: The model asked for.
        duration_s: From request to last token; seconds, >= 0.
        error_type: Class of the error, if it failed.
        prompt_tokens: Tokens sent; count, >= 0. None: not known.
        completion_tokens: Tokens received; count, >= 0. None: not known.
        operation: What was asked of the model.
        layer: ``engine`` or ``provider`` if the code records each layer by itself; None stands for both. Beside an
            instrumented client use `llm_call` instead, which knows what the client has reported.
    """
    with failsafe("record_llm_call"):
        attributes = _llm_attributes(provider, model, operation)
        kind = _given_error(error_type, "record_llm_call")
        _record_llm_duration(attributes, duration_s, kind, layer, None)
        if prompt_tokens is not None:
            _record_tokens(attributes, "input", prompt_tokens, None)
        if completion_tokens is not None:
            _record_tokens(attributes, "output", completion_tokens, None)


def record_interrupt(kind: InterruptKind | str, status: InterruptStatus | str) -> None:
    """Record that an interrupt has entered *status*: ``pending`` once when raised, then what became of it."""
    _count_one(
        "record_interrupt", "jeeves.interrupts", {"jeeves.interrupt.kind": kind, "jeeves.interrupt.status": status}
    )


def record_routing_decision(pipeline: str, from_stage: str, to_stage: str) -> None:
    """Record that *pipeline* went on from one stage to another."""
    attributes = {"jeeves.pipeline.name": pipeline, "jeeves.routing.from": from_stage, "jeeves.routing.to": to_stage}
    _count_one("record_routing_decision", "jeeves.routing.decisions", attributes)


def record_orchestration(outcome: str, duration_s: float) -> None:
    """Record one orchestrated request of *duration_s* seconds, >= 0; *outcome* is ``success``, ``failed`` or a reason."""
    with failsafe("record_orchestration"):
        attributes = _texts({"jeeves.orchestrator.outcome": outcome}, "record_orchestration")
        _instruments.histogram("jeeves.orchestrator.duration").record(duration_s, attributes)


def record_rejection(reason: str) -> None:
    """Record a request that was turned away before any work began; *reason* becomes its outcome."""
    _count_one("record_rejection", "jeeves.orchestrator.rejections", {"jeeves.orchestrator.outcome": reason})


def record_validation_report(status: Literal["approved", "rejected"], *, issues: Iterable[str] = ()) -> None:
    """Record one report of the meta-validation and the types of the issues it found."""
    site = "record_validation_report"
    _count_one(site, "jeeves.validation.reports", {"jeeves.validation.status": status})
    with failsafe(site):
        for issue in [issues] if isinstance(issues, str) else issues:  # one text is one issue, not its letters
            _count_one(site, "jeeves.validation.issues", {"jeeves.validation.issue.type": issue})


def record_retry(retry_type: Literal["planner_retry", "validator_retry"], *, reason: str = "unknown") -> None:
    """Record one retry and the type of issue that caused it."""
    attributes = {"jeeves.retry.type": retry_type, "jeeves.retry.reason": reason}
    _count_one("record_retry", "jeeves.workflow.retries", attributes)


def record_critic_decision(
    action: Literal["accept", "clarify", "retry_validator", "retry_planner"], confidence: float
) -> None:
    """Record one critic decision with its confidence; ratio, 0..1."""
    with failsafe("record_critic_decision"):
        attributes = _texts({"jeeves.critic.action": action}, "record_critic_decision")
        _instruments.histogram("jeeves.critic.confidence").record(confidence, attributes)


def record_queue_depth(queue: str, depth: int | Callable[[], float]) -> None:
    """Record how many events wait in *queue*: a count >= 0, or a function that is asked at each collection."""
    with failsafe("record_queue_depth"):
        attributes = _texts({"jeeves.queue.name": queue}, "record_queue_depth")
        _instruments.levels("jeeves.event_queue.depth").set(depth, attributes)


def record_session_opened() -> None:
    """Record that a user session has begun."""
    with failsafe("record_session_opened"):
        _instruments.updowncounter("jeeves.sessions.active").add(1)


def record_session_closed() -> None:
    """Record that a user session has ended."""
    with failsafe("record_session_closed"):
        _instruments.updowncounter("jeeves.sessions.active").add(-1)


def record_feature_usage(feature: str) -> None:
    """Record one use of a product feature."""
    _count_one("record_feature_usage", "jeeves.feature.usage", {"jeeves.feature.name": feature})


def record_error(error_type: str, layer: str) -> None:
    """Record an error by its class and the layer it came from (``gateway``, ``engine``, ``provider``…)."""
    attributes = {"error.type": error_kind(error_type, "record_error"), "jeeves.layer": layer}
    _count_one("record_error", "jeeves.errors", attributes)


def record_health(check: str, status: Literal["healthy", "degraded", "failed"] | Callable[[], float]) -> None:
    """Record the result of a health check, or a function that gives it at each collection (1, 0.5 or 0)."""
    with failsafe("record_health"):
        value = status if callable(status) else _HEALTH[status]
        attributes = _texts({"jeeves.health.check": check}, "record_health")
        _instruments.levels("jeeves.health.status").set(value, attributes)


def record_rpc(method: str, status_code: str, duration_s: float) -> None:
    """Record one RPC served.

    Args:
        method: Full method, ``package.Service/Method``; a leading slash is dropped.
        status_code: Name of the gRPC status, ``OK``, ``NOT_FOUND``…
        duration_s: Seconds, >= 0.
    """
    with failsafe("record_rpc"):
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": status_code}
        attributes = _texts(attributes, "record_rpc")
        if "rpc.method" in attributes:
            attributes["rpc.method"] = attributes["rpc.method"].removeprefix("/")
        code = attributes.get("rpc.response.status_code")
        if code is not None and code != "OK":
            attributes["error.type"] = code
        _instruments.histogram("rpc.server.call.duration").record(duration_s, attributes)


def record_http_request(
    method: str, route: str | None, status_code: int | None, duration_s: float, *, error_type: str | None = None
) -> None:
    """Record one HTTP request served.

    Args:
        method: Request method in upper case; what is not known becomes ``_OTHER``.
        route: Route template, ``/users/{id}``; None if no route matched. Never the raw path.
        status_code: Status of the response; None if there was none.
        duration_s: To the last byte; seconds, >= 0.
        error_type: Class of the error, if it failed.
    """
    with failsafe("record_http_request"):
        kind = _given_error(error_type, "record_http_request")
        attributes: dict[str, Any] = {"http.request.method": method, "http.route": route, "error.type": kind}
        attributes = _texts(attributes, "record_http_request")
        if status_code is not None:
            with failsafe("record_http_request"):
                attributes["http.response.status_code"] = int(status_code)
        _instruments.histogram("http.server.request.duration").record(duration_s, attributes)


def record_db_operation(operation: str, duration_s: float, *, error_type: str | None = None) -> None:
    """Record one database operation (``SELECT``, ``INSERT``…) of *duration_s* seconds, >= 0."""
    with failsafe("record_db_operation"):
        kind = _given_error(error_type, "record_db_operation")
        attributes = _texts({"db.operation.name": operation, "error.type": kind}, "record_db_operation")
        _instruments.histogram("db.client.operation.duration").record(duration_s, attributes)


def record_pool(
    pool: str,
    *,
    used: int | Callable[[], float],
    idle: int | Callable[[], float],
    maximum: int | Callable[[], float],
) -> None:
    """Record the state of a connection pool: counts >= 0, or functions that are asked at each collection.

    Args:
        pool: A short, stable name.
        used: Connections checked out.
        idle: Connections waiting.
        maximum: Connections that may be open at most, overflow included.
    """
    named = _texts({"db.client.connection.pool.name": pool}, "record_pool")
    for state, count in (("used", used), ("idle", idle)):
        with failsafe("record_pool"):
            attributes = {**named, "db.client.connection.state": state}
            _instruments.levels("db.client.connection.count").set(count, attributes)
    with failsafe("record_pool"):
        _instruments.levels("db.client.connection.max").set(maximum, named)


# ---- the measurements themselves -------------------------------------------------------------------------------------


def _count_one(site: str, counter: str, attributes: dict[str, Any]) -> None:
    with failsafe(site):
        _instruments.counter(counter).add(1, _texts(attributes, site))


def _record_pipeline(name: Any, duration_s: float, status: str, kind: str | None, context: Context | None) -> None:
    attributes = {"jeeves.pipeline.name": name, "jeeves.pipeline.status": status, "error.type": kind}
    _instruments.histogram("jeeves.pipeline.duration").record(
        duration_s, _texts(attributes, "record_pipeline"), context
    )


def _record_agent(name: Any, duration_s: float, kind: str | None, context: Context | None) -> None:
    attributes = _texts({"gen_ai.agent.name": name, "error.type": kind}, "record_agent")
    _instruments.histogram("jeeves.agent.duration").record(duration_s, attributes, context)


def _record_tool(name: Any, agent: Any, duration_s: float, kind: str | None, context: Context | None) -> None:
    attributes = _texts({"gen_ai.tool.name": name, "gen_ai.agent.name": agent, "error.type": kind}, "record_tool")
    _instruments.histogram("jeeves.tool.duration").record(duration_s, attributes, context)


def _llm_attributes(provider: Any, model: Any, operation: Any) -> dict[str, str]:
    attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": provider, "gen_ai.request.model": model}
    return _texts(attributes, "record_llm_call")


def _record_llm_duration(
    attributes: dict[str, str], duration_s: float, kind: str | None, layer: str | None, context: Context | None
) -> None:
    if kind is not None or layer is not None:
        attributes = {**attributes, **_texts({"error.type": kind, LAYER: layer}, "record_llm_call")}
    _instruments.histogram(_OPERATION_DURATION).record(duration_s, attributes, context)


def _record_tokens(attributes: dict[str, str], kind: str, count: int, context: Context | None) -> None:
    _instruments.histogram(_TOKEN_USAGE).record(count, {**attributes, "gen_ai.token.type": kind}, context)


def _texts(attributes: dict[str, Any], site: str) -> dict[str, Any]:
    """Return *attributes* as text and without those that are absent; see `text_of`."""
    texts = {}
    for key, value in attributes.items():
        text = value if type(value) is str else text_of(value, site)
        if text is not None:
            texts[key] = text
    return texts


def _present(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if value is not None}


def _given_error(value: object, site: str) -> str | None:
    return None if value is None else error_kind(value, site)


def _whole_count(value: object) -> int:
    count = int(value)  # type: ignore[call-overload]  # what has no number raises, inside a failsafe
    if count < 0:
        raise ValueError("a count is not negative")
    return int(count)


def _request_id(context: Context) -> str | None:
    entry = opened("pipeline", context)
    return entry.request_id if entry is not None else None


def _agent_name(context: Context) -> str | None:
    entry = opened("agent", context)
    return entry.name if entry is not None else None

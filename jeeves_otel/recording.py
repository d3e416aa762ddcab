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

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind

from jeeves_otel.failsafe import failsafe
from jeeves_otel.instruments import Instruments
from jeeves_otel.layers import ENGINE, INNER, LAYER, OpenOperation, opened, with_opened
from jeeves_otel.operations import Handle, Operation, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.context import Context

PipelineStatus = Literal["success", "error", "terminated"]
InterruptKind = Literal[
    "clarification", "confirmation", "agent_review", "checkpoint", "resource_exhausted", "timeout", "system_error"
]
InterruptStatus = Literal["pending", "resolved", "expired", "cancelled"]
LlmOperation = Literal["chat", "text_completion", "generate_content", "embeddings"]

_SCOPE = "jeeves_otel"
_OPERATION_DURATION = "gen_ai.client.operation.duration"
_TOKEN_USAGE = "gen_ai.client.token.usage"  # noqa: S105 - the name of a metric
_HEALTH = {"healthy": 1.0, "degraded": 0.5, "failed": 0.0}


def _package_version() -> str:
    try:
        return version("jeeves-otel")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return ""


_instruments = Instruments(metrics.get_meter(_SCOPE, _package_version()))
_tracer = trace.get_tracer(_SCOPE, _package_version())


def bind(
    *, meter_provider: metrics.MeterProvider | None = None, tracer_provider: trace.TracerProvider | None = None
) -> None:
    """Record into these providers from now on; None means the global one.

    For tests and for programs that keep their providers to themselves; under the launcher there is nothing to bind.
    """
    global _instruments, _tracer  # noqa: PLW0603 - the module is the recorder of the process
    _instruments = Instruments(metrics.get_meter(_SCOPE, _package_version(), meter_provider))
    _tracer = trace.get_tracer(_SCOPE, _package_version(), tracer_provider)


# ---- operations ------------------------------------------------------------------------------------------------------


class _Spanned(Handle):
    """A handle with a span of its own."""

    operation = ""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._entry: OpenOperation | None = None

    def _start_span(self, span_name: str, kind: SpanKind, attributes: dict[str, Any]) -> None:
        present = {key: value for key, value in attributes.items() if value is not None}
        self.span = _tracer.start_span(span_name, kind=kind, attributes=present)
        self.record_context = trace.set_span_in_context(self.span)

    def _opened_context(self, current: Context) -> Context:
        self._entry = OpenOperation(self.name, opened(self.operation, current), self)
        return with_opened(self.operation, self._entry, current)


class PipelineRun(_Spanned):
    """A running pipeline."""

    operation = site = "pipeline"

    def __init__(self, name: str, request_id: str | None, user_id: str | None, mode: str | None) -> None:
        super().__init__(name)
        self.request_id = request_id
        self._user_id = user_id
        self._mode = mode
        self._termination: str | None = None

    def terminate(self, reason: str) -> None:
        """Let the pipeline end early without an error, because of *reason* (``clarification_required``…)."""
        with failsafe("pipeline.terminate"):
            self._termination = str(reason)

    def _open(self) -> None:
        attributes = {
            "pipeline.name": self.name,
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": self.name,
            "request.id": self.request_id,
            "user.id": self._user_id,
            "pipeline.mode": self._mode,
        }
        self._start_span("pipeline.execute", SpanKind.INTERNAL, attributes)
        self.span.add_event("pipeline.started")

    def _close(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        status = _pipeline_status(outcome, self._termination)
        if self.span.is_recording():
            self.span.set_attribute("pipeline.status", status)
            self.span.set_attribute("pipeline.duration_ms", int(duration_s * 1_000))
            if status == "terminated":
                self.span.set_attribute("termination.reason", self._termination or outcome)
            self.span.add_event("pipeline.completed", {"pipeline.status": status})
        _record_pipeline(self.name, duration_s, status, kind, self.record_context)


class AgentRun(_Spanned):
    """A running agent."""

    operation = site = "agent"

    def __init__(self, name: str, agent_type: str | None) -> None:
        super().__init__(name)
        self._agent_type = agent_type
        self.llm_calls = 0

    def _open(self) -> None:
        attributes = {
            "jeeves.agent.name": self.name,
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": self.name,
            "jeeves.request.id": _request_id(),
            "jeeves.agent.type": self._agent_type,
        }
        self._start_span("agent.process", SpanKind.INTERNAL, attributes)

    def _close(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        if self.span.is_recording():
            self.span.set_attribute("jeeves.llm.calls", self.llm_calls)
            self.span.set_attribute("duration_ms", int(duration_s * 1_000))
        if self._entry is None or "agent" not in self._entry.reported:
            _record_agent(self.name, duration_s, kind, self.record_context)


class ToolRun(_Spanned):
    """A running tool."""

    operation = site = "tool"

    def _open(self) -> None:
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": self.name,
            "tool.name": self.name,
            "jeeves.agent.name": _agent_name(),
        }
        self._start_span(f"execute_tool {self.name}", SpanKind.INTERNAL, attributes)

    def _close(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        if self.span.is_recording():
            self.span.set_attribute("tool.status", "success" if outcome == "ok" else outcome)
            self.span.set_attribute("tool.execution_time_ms", int(duration_s * 1_000))
        if self._entry is None or "tool" not in self._entry.reported:
            _record_tool(self.name, _agent_name(self.record_context), duration_s, kind, self.record_context)


class LlmCall(_Spanned):
    """A running LLM call, as the calling agent sees it."""

    operation = site = "llm_call"

    def __init__(self, provider: str, model: str | None, operation: str) -> None:
        super().__init__(model or "")
        self.provider = provider
        self.model = model
        self._operation_name = operation
        self._tokens: dict[str, int] = {}
        self._cost_usd: float | None = None
        self._response_model: str | None = None

    def set_tokens(self, *, prompt: int | None = None, completion: int | None = None) -> None:
        """Say how many tokens were used, >= 0. Ignored for the metrics if an instrumented client reports them itself."""
        with failsafe("llm_call.set_tokens"):
            if prompt is not None:
                self._tokens["input"] = int(prompt)
            if completion is not None:
                self._tokens["output"] = int(completion)

    def set_answered_by(self, *, provider: str | None = None, model: str | None = None) -> None:
        """Say who answered after a fallback: the call is counted for the provider and model that answered."""
        with failsafe("llm_call.set_answered_by"):
            self.provider = provider or self.provider
            self.model = model or self.model

    def set_response_model(self, model: str) -> None:
        """Say which model the response names; on the span only."""
        with failsafe("llm_call.set_response_model"):
            self._response_model = str(model)

    def set_cost_usd(self, cost_usd: float) -> None:
        """Say what the call cost, in US dollars; on the span only."""
        with failsafe("llm_call.set_cost_usd"):
            self._cost_usd = float(cost_usd)

    def _open(self) -> None:
        self._start_span("llm.provider.call", SpanKind.CLIENT, self._identity())
        running = opened("agent")
        if running is not None and isinstance(running.handle, AgentRun):
            running.handle.llm_calls += 1

    def _identity(self) -> dict[str, Any]:
        return {
            "gen_ai.operation.name": self._operation_name,
            "gen_ai.provider.name": self.provider,
            "gen_ai.request.model": self.model,
            "jeeves.llm.provider": self.provider,
            "jeeves.llm.model": self.model or "default",
            "jeeves.agent.name": _agent_name(),
            "jeeves.request.id": _request_id(),
        }

    def _close(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        self._finish_span(duration_s)
        entry = self._entry
        attributes = _llm_attributes(self.provider, self.model, self._operation_name)
        reported = entry.reported if entry is not None else set()
        if entry is not None and entry.outer is not None:
            entry.outer.reported |= reported
        layer = (INNER if entry is not None and entry.outer is not None else ENGINE) if _OPERATION_DURATION in reported else None
        if entry is not None and layer is None:
            entry.settled.add(_OPERATION_DURATION)
        _record_llm_duration(attributes, duration_s, kind, layer, self.record_context)
        if self._tokens and _TOKEN_USAGE not in reported:
            if entry is not None:
                entry.settled.add(_TOKEN_USAGE)
            _record_tokens(attributes, self._tokens, self.record_context)

    def _finish_span(self, duration_s: float) -> None:
        span = self.span
        if not span.is_recording():
            return
        for key, value in self._identity().items():
            if value is not None and key.endswith((".provider", "provider.name", ".model")):
                span.set_attribute(key, value)
        if self._response_model:
            span.set_attribute("gen_ai.response.model", self._response_model)
        if self._tokens:
            prompt, completion = self._tokens.get("input", 0), self._tokens.get("output", 0)
            span.set_attribute("gen_ai.usage.input_tokens", prompt)
            span.set_attribute("gen_ai.usage.output_tokens", completion)
            span.set_attribute("jeeves.llm.tokens.prompt", prompt)
            span.set_attribute("jeeves.llm.tokens.completion", completion)
            span.set_attribute("jeeves.llm.tokens.total", prompt + completion)
        if self._cost_usd is not None:
            span.set_attribute("jeeves.llm.cost_usd", self._cost_usd)
        span.set_attribute("jeeves.llm.latency_ms", duration_s * 1_000)


class InterruptRun(Handle):
    """An interrupt that has been raised and is not settled yet."""

    site = "interrupt"

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        self._status: str | None = None

    def settle(self, status: InterruptStatus) -> None:
        """Say how the interrupt ends: ``resolved``, ``expired`` or ``cancelled``."""
        with failsafe("interrupt.settle"):
            self._status = str(status)

    def _open(self) -> None:
        super()._open()
        record_interrupt(self._kind, "pending")

    def _close(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        end = "resolved" if outcome == "ok" else "expired" if kind == "TimeoutError" else "cancelled"
        record_interrupt(self._kind, self._status or end)


class OrchestrationRun(Handle):
    """A request that is being orchestrated."""

    site = "orchestration"

    def __init__(self) -> None:
        super().__init__()
        self._result: str | None = None

    def set_outcome(self, outcome: str) -> None:
        """Say how the request ends, if not as ``success`` or ``failed``; a short word, never free text."""
        with failsafe("orchestration.set_outcome"):
            self._result = str(outcome)

    def _open(self) -> None:
        super()._open()
        _instruments.updowncounter("jeeves.orchestrator.active_requests").add(1)

    def _close(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
        _instruments.updowncounter("jeeves.orchestrator.active_requests").add(-1)
        record_orchestration(self._result or ("success" if outcome == "ok" else "failed"), duration_s)


class SessionRun(Handle):
    """A user session that is open."""

    site = "session"

    def _open(self) -> None:
        super()._open()
        record_session_opened()

    def _close(self, outcome: Outcome, duration_s: float, kind: str | None) -> None:
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
    return Operation(lambda: PipelineRun(name, request_id, user_id, mode))


def agent(name: str, *, agent_type: str | None = None) -> Operation[AgentRun]:
    """Return one run of the agent *name*: span ``agent.process``, instrument ``jeeves.agent.duration``.

    Args:
        name: A short, stable name; a label value.
        agent_type: ``llm``, ``tool`` or ``service``; on the span only.
    """
    return Operation(lambda: AgentRun(name, agent_type))


def tool(name: str) -> Operation[ToolRun]:
    """Return one execution of the tool *name*: span ``execute_tool {name}``, instrument ``jeeves.tool.duration``."""
    return Operation(lambda: ToolRun(name))


def llm_call(provider: str, model: str | None = None, *, operation: LlmOperation = "chat") -> Operation[LlmCall]:
    """Return one LLM call as the agent sees it: span ``llm.provider.call``, ``gen_ai.client.operation.duration``.

    An instrumented client inside it is the provider layer; without one, the call stands for both layers.

    Args:
        provider: ``openai``, ``anthropic``, ``llamaserver``… (``gen_ai.provider.name``).
        model: The model asked for (``gen_ai.request.model``).
        operation: What is asked of it (``gen_ai.operation.name``).
    """
    return Operation(lambda: LlmCall(provider, model, operation))


def interrupt(kind: InterruptKind) -> Operation[InterruptRun]:
    """Return an interrupt of the flow: counted ``pending`` when entered, and once more by how it ends."""
    return Operation(lambda: InterruptRun(kind))


def orchestration() -> Operation[OrchestrationRun]:
    """Return one orchestrated request: counted as in flight while it runs, then by outcome."""
    return Operation(OrchestrationRun)


def session() -> Operation[SessionRun]:
    """Return one user session: counted as active while it is open."""
    return Operation(SessionRun)


def current_llm_call() -> LlmCall | None:
    """Return the innermost running LLM call, for code below a decorated function that knows the tokens."""
    with failsafe("llm_call.current"):
        entry = opened("llm_call")
        if entry is not None and isinstance(entry.handle, LlmCall):
            return entry.handle
    return None


# ---- what has timed itself, or has no duration -----------------------------------------------------------------------


def record_pipeline(
    name: str, duration_s: float, *, status: PipelineStatus = "success", error_type: str | None = None
) -> None:
    """Record one finished pipeline run of *duration_s* seconds, >= 0."""
    with failsafe("record_pipeline"):
        _record_pipeline(name, duration_s, status, error_type, None)


def record_agent(name: str, duration_s: float, *, error_type: str | None = None) -> None:
    """Record one finished agent run of *duration_s* seconds, >= 0; an *error_type* makes it an error."""
    with failsafe("record_agent"):
        _record_agent(name, duration_s, error_type, None)


def record_tool(name: str, duration_s: float, *, agent: str | None = None, error_type: str | None = None) -> None:
    """Record one finished tool execution of *duration_s* seconds, >= 0."""
    with failsafe("record_tool"):
        _record_tool(name, agent, duration_s, error_type, None)


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
        _record_llm_duration(attributes, duration_s, error_type, layer, None)
        given = {"input": prompt_tokens, "output": completion_tokens}
        _record_tokens(attributes, {kind: count for kind, count in given.items() if count is not None}, None)


def record_interrupt(kind: InterruptKind | str, status: InterruptStatus | str) -> None:
    """Record that an interrupt has entered *status*: ``pending`` once when raised, then what became of it."""
    with failsafe("record_interrupt"):
        _instruments.counter("jeeves.interrupts").add(1, {"jeeves.interrupt.kind": kind, "jeeves.interrupt.status": status})


def record_routing_decision(pipeline: str, from_stage: str, to_stage: str) -> None:
    """Record that *pipeline* went on from one stage to another."""
    with failsafe("record_routing_decision"):
        attributes = {"jeeves.pipeline.name": pipeline, "jeeves.routing.from": from_stage, "jeeves.routing.to": to_stage}
        _instruments.counter("jeeves.routing.decisions").add(1, attributes)


def record_orchestration(outcome: str, duration_s: float) -> None:
    """Record one orchestrated request of *duration_s* seconds, >= 0; *outcome* is ``success``, ``failed`` or a reason."""
    with failsafe("record_orchestration"):
        _instruments.histogram("jeeves.orchestrator.duration").record(duration_s, {"jeeves.orchestrator.outcome": outcome})


def record_rejection(reason: str) -> None:
    """Record a request that was turned away before any work began; *reason* becomes its outcome."""
    with failsafe("record_rejection"):
        _instruments.counter("jeeves.orchestrator.rejections").add(1, {"jeeves.orchestrator.outcome": reason})


def record_validation_report(status: Literal["approved", "rejected"], *, issues: Iterable[str] = ()) -> None:
    """Record one report of the meta-validation and the types of the issues it found."""
    with failsafe("record_validation_report"):
        _instruments.counter("jeeves.validation.reports").add(1, {"jeeves.validation.status": status})
        for issue in issues:
            _instruments.counter("jeeves.validation.issues").add(1, {"jeeves.validation.issue.type": issue})


def record_retry(retry_type: Literal["planner_retry", "validator_retry"], *, reason: str = "unknown") -> None:
    """Record one retry and the type of issue that caused it."""
    with failsafe("record_retry"):
        attributes = {"jeeves.retry.type": retry_type, "jeeves.retry.reason": reason}
        _instruments.counter("jeeves.workflow.retries").add(1, attributes)


def record_critic_decision(
    action: Literal["accept", "clarify", "retry_validator", "retry_planner"], confidence: float
) -> None:
    """Record one critic decision with its confidence; ratio, 0..1."""
    with failsafe("record_critic_decision"):
        _instruments.histogram("jeeves.critic.confidence").record(confidence, {"jeeves.critic.action": action})


def record_queue_depth(queue: str, depth: int | Callable[[], float]) -> None:
    """Record how many events wait in *queue*: a count >= 0, or a function that is asked at each collection."""
    with failsafe("record_queue_depth"):
        _instruments.levels("jeeves.event_queue.depth").set(depth, jeeves__queue__name=queue)


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
    with failsafe("record_feature_usage"):
        _instruments.counter("jeeves.feature.usage").add(1, {"jeeves.feature.name": feature})


def record_error(error_type: str, layer: str) -> None:
    """Record an error by its class and the layer it came from (``gateway``, ``engine``, ``provider``…)."""
    with failsafe("record_error"):
        _instruments.counter("jeeves.errors").add(1, {"error.type": error_type, "jeeves.layer": layer})


def record_health(check: str, status: Literal["healthy", "degraded", "failed"] | Callable[[], float]) -> None:
    """Record the result of a health check, or a function that gives it at each collection (1, 0.5 or 0)."""
    with failsafe("record_health"):
        value = status if callable(status) else _HEALTH[status]
        _instruments.levels("jeeves.health.status").set(value, jeeves__health__check=check)


def record_rpc(method: str, status_code: str, duration_s: float) -> None:
    """Record one RPC served.

    Args:
        method: Full method, ``package.Service/Method``; a leading slash is dropped.
        status_code: Name of the gRPC status, ``OK``, ``NOT_FOUND``…
        duration_s: Seconds, >= 0.
    """
    with failsafe("record_rpc"):
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": method.removeprefix("/"),
            "rpc.response.status_code": status_code,
        }
        if status_code != "OK":
            attributes["error.type"] = status_code
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
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status_code,
            "error.type": error_type,
        }
        present = {key: value for key, value in attributes.items() if value is not None}
        _instruments.histogram("http.server.request.duration").record(duration_s, present)


def record_db_operation(operation: str, duration_s: float, *, error_type: str | None = None) -> None:
    """Record one database operation (``SELECT``, ``INSERT``…) of *duration_s* seconds, >= 0."""
    with failsafe("record_db_operation"):
        attributes = {"db.operation.name": operation}
        if error_type is not None:
            attributes["error.type"] = error_type
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
    with failsafe("record_pool"):
        count = _instruments.levels("db.client.connection.count")
        count.set(used, db__client__connection__pool__name=pool, db__client__connection__state="used")
        count.set(idle, db__client__connection__pool__name=pool, db__client__connection__state="idle")
        _instruments.levels("db.client.connection.max").set(maximum, db__client__connection__pool__name=pool)


# ---- the measurements themselves -------------------------------------------------------------------------------------


def _pipeline_status(outcome: Outcome, termination: str | None) -> PipelineStatus:
    # An error wins over a termination; a task that was cancelled or a consumer that left is no error.
    if outcome == "error":
        return "error"
    return "success" if outcome == "ok" and termination is None else "terminated"


def _record_pipeline(name: str, duration_s: float, status: str, kind: str | None, context: Context | None) -> None:
    attributes = {"jeeves.pipeline.name": name, "jeeves.pipeline.status": status}
    if kind is not None:
        attributes["error.type"] = kind
    _instruments.histogram("jeeves.pipeline.duration").record(duration_s, attributes, context)


def _record_agent(name: str, duration_s: float, kind: str | None, context: Context | None) -> None:
    attributes = {"gen_ai.agent.name": name}
    if kind is not None:
        attributes["error.type"] = kind
    _instruments.histogram("jeeves.agent.duration").record(duration_s, attributes, context)


def _record_tool(name: str, agent: str | None, duration_s: float, kind: str | None, context: Context | None) -> None:
    attributes = {"gen_ai.tool.name": name, "gen_ai.agent.name": agent, "error.type": kind}
    present = {key: value for key, value in attributes.items() if value is not None}
    _instruments.histogram("jeeves.tool.duration").record(duration_s, present, context)


def _llm_attributes(provider: str, model: str | None, operation: str) -> dict[str, str]:
    attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": provider}
    if model is not None:
        attributes["gen_ai.request.model"] = model
    return attributes


def _record_llm_duration(
    attributes: dict[str, str], duration_s: float, kind: str | None, layer: str | None, context: Context | None
) -> None:
    attributes = dict(attributes)
    if kind is not None:
        attributes["error.type"] = kind
    if layer is not None:
        attributes[LAYER] = layer
    _instruments.histogram(_OPERATION_DURATION).record(duration_s, attributes, context)


def _record_tokens(attributes: dict[str, str], tokens: dict[str, int], context: Context | None) -> None:
    histogram = _instruments.histogram(_TOKEN_USAGE)
    for kind, count in tokens.items():
        histogram.record(count, {**attributes, "gen_ai.token.type": kind}, context)


def _request_id() -> str | None:
    entry = opened("pipeline")
    return entry.handle.request_id if entry is not None and isinstance(entry.handle, PipelineRun) else None


def _agent_name(context: Context | None = None) -> str | None:
    entry = opened("agent", context if context is not None else otel_context.get_current())
    return entry.name if entry is not None else None

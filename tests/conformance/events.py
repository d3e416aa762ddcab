# SPDX-License-Identifier: Apache-2.0
"""Random events of an agent service, each recorded twice: through the product, and by hand into the oracle."""

from __future__ import annotations

from asyncio import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import jeeves_otel as api
from tests.contract import facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    import pytest

    from tests.conformance.oracle import Oracle
    from tests.helpers import Pipeline

STATUS_OF_GRPC = {
    "OK": (0, "success"),
    "CANCELLED": (1, "Canceled"),
    "UNKNOWN": (2, "Unknown"),
    "INVALID_ARGUMENT": (3, "InvalidArgument"),
    "DEADLINE_EXCEEDED": (4, "DeadlineExceeded"),
    "NOT_FOUND": (5, "NotFound"),
    "ALREADY_EXISTS": (6, "AlreadyExists"),
    "PERMISSION_DENIED": (7, "PermissionDenied"),
    "RESOURCE_EXHAUSTED": (8, "ResourceExhausted"),
    "FAILED_PRECONDITION": (9, "FailedPrecondition"),
    "ABORTED": (10, "Aborted"),
    "OUT_OF_RANGE": (11, "OutOfRange"),
    "UNIMPLEMENTED": (12, "Unimplemented"),
    "INTERNAL": (13, "Internal"),
    "UNAVAILABLE": (14, "Unavailable"),
    "DATA_LOSS": (15, "DataLoss"),
    "UNAUTHENTICATED": (16, "Unauthenticated"),
}
PIPELINES = ("chat", "research", 'with "quotes" and \\', "ünïcode")
AGENTS = ("planner", "writer", "critic")
PROVIDERS = ("openai", "anthropic", "llamaserver", "azure.ai.openai", "azure.ai.inference", "mock")
MODELS = ("gpt-4o", "claude-sonnet", None)
ERRORS = ("TimeoutError", "httpx.ConnectError", "ValueError", "openai.RateLimitError", "429")
OUTCOMES = {None: "success", "TimeoutError": "timeout", "openai.RateLimitError": "rate_limited", "429": "rate_limited"}
COUNTED_OPERATIONS = ("chat", "text_completion", "generate_content")
ROUTES = ("/users/{id}", "/chat", None)
METHODS = {"GET": "GET", "POST": "POST", "DELETE": "DELETE", "QUERY": "QUERY", "BREW": "_OTHER", "_OTHER": "_OTHER"}
SQL = {
    "SELECT": "select",
    "insert": "insert",
    "Update": "update",
    "DELETE": "delete",
    "BATCH": "other",
    "WITH": "other",
}
RPC_METHODS = ("engine.v1.Engine/Execute", "engine.v1.Engine/Stream", "grpc.health.v1.Health/Check", "_OTHER")
_STEP = 1 / 1_024  # seconds; sums of such steps are exact


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """Return a clock by which the operations of the recording API measure."""
        clock = cls()
        monkeypatch.setattr("jeeves_otel.operations.perf_counter", clock)
        return clock


class Twin:
    """Records events in both worlds."""

    def __init__(self, pipeline: Pipeline, oracle: Oracle, rng: Random, clock: Clock) -> None:
        self.pipeline = pipeline
        self.oracle = oracle
        self.rng = rng
        self.clock = clock
        self._facts = facts()
        self._levels: dict[str, dict[Any, float]] = {}
        self._clients = {
            name: Client(pipeline.meter_provider.get_meter(name)) for name in ("openai-client", "anthropic-client")
        }
        self._process(pipeline)
        self.kinds: list[Callable[[], None]] = [
            getattr(self, name) for name in sorted(dir(self)) if name.startswith("event_")
        ]

    def play(self, events: int) -> None:
        """Record *events* random events."""
        for _ in range(events):
            self.rng.choice(self.kinds)()

    # ---- what events are made of -------------------------------------------------------------------------------------

    def _value_for(self, histogram: str) -> float:
        """Return a duration; every third stands exactly on a promised bound."""
        bounds = self._facts[histogram].buckets
        if self.rng.random() < 1 / 3:
            return self.rng.choice(bounds)
        return self.rng.choice([0.0, self.rng.random(), self.rng.uniform(0, 2 * bounds[-1])])

    def _pass_time(self) -> float:
        """Let time go on, and return by how much."""
        passed = self.rng.randrange(40_000) * _STEP
        self.clock.now += passed
        return passed

    def _sometimes(self, *choices: Any) -> Any:
        return self.rng.choice((None, None, *choices))

    # ---- pipelines and agents ----------------------------------------------------------------------------------------

    def _expect_pipeline(self, name: str, status: str, duration_s: float) -> None:
        self.oracle.add("jeeves_pipeline_executions_total", pipeline=name, status=status)
        self.oracle.observe("jeeves_pipeline_duration_seconds", duration_s, pipeline=name)

    def event_pipeline_that_timed_itself(self) -> None:
        """A finished run."""
        name, status = self.rng.choice(PIPELINES), self.rng.choice(("success", "error", "terminated"))
        duration_s = self._value_for("jeeves_pipeline_duration_seconds")
        api.record_pipeline(name, duration_s, status=status, error_type="ValueError" if status == "error" else None)
        self._expect_pipeline(name, status, duration_s)

    def event_pipeline(self) -> None:
        """A run as a context manager, left in every way there is."""
        name, ending = self.rng.choice(PIPELINES), self.rng.randrange(6)
        status = ("success", "terminated", "error", "error", "terminated", "error")[ending]
        with suppress(ValueError, CancelledError), api.pipeline(name, request_id="r-1") as run:
            duration_s = self._pass_time()
            if ending in {1, 5}:
                run.terminate("clarification_required")
            if ending in {2, 5}:
                raise ValueError
            if ending == 3:
                run.fail("Timeout")
            if ending == 4:
                raise CancelledError
        self._expect_pipeline(name, status, duration_s)

    def _expect_agent(self, name: str, duration_s: float, *, failed: bool) -> None:
        self.oracle.add("jeeves_agent_executions_total", agent=name, status="error" if failed else "success")
        self.oracle.observe("jeeves_agent_duration_seconds", duration_s, agent=name)

    def event_agent_that_timed_itself(self) -> None:
        """A finished run."""
        name, error = self.rng.choice(AGENTS), self._sometimes(*ERRORS)
        duration_s = self._value_for("jeeves_agent_duration_seconds")
        api.record_agent(name, duration_s, error_type=error)
        self._expect_agent(name, duration_s, failed=error is not None)

    def event_agent(self) -> None:
        """A run as a context manager with a tool inside, which takes all of its time."""
        name, failed = self.rng.choice(AGENTS), self.rng.random() < 0.3
        with suppress(ValueError), api.agent(name), api.tool("search"):
            duration_s = self._pass_time()
            if failed:
                raise ValueError
        self._expect_agent(name, duration_s, failed=failed)
        self._expect_tool("search", duration_s, failed=failed)

    def _expect_tool(self, name: str, duration_s: float, *, failed: bool) -> None:
        self.oracle.add("jeeves_tool_calls_total", tool=name, status="error" if failed else "success")
        self.oracle.observe("jeeves_tool_duration_seconds", duration_s, tool=name)

    def event_tool_that_timed_itself(self) -> None:
        """A finished execution."""
        name, error = self.rng.choice(("search", "calculator")), self._sometimes(*ERRORS)
        duration_s = self._value_for("jeeves_tool_duration_seconds")
        api.record_tool(name, duration_s, agent="planner", error_type=error)
        self._expect_tool(name, duration_s, failed=error is not None)

    def event_routing(self) -> None:
        """A routing decision."""
        name, first, second = self.rng.choice(PIPELINES), self.rng.choice(AGENTS), self.rng.choice(AGENTS)
        api.record_routing_decision(name, first, second)
        self.oracle.add("jeeves_routing_decisions_total", pipeline=name, from_stage=first, to_stage=second)

    # ---- LLM calls ---------------------------------------------------------------------------------------------------

    def expect_llm(
        self, layers: str, provider: str | None, model: str | None, duration_s: float, *, error: str | None
    ) -> None:
        """Expect one call in the families of *layers*, ``engine``, ``provider`` or ``both``, failed if there is an *error*."""
        labels = {"provider": _provider(provider), "model": model or "unknown"}
        for layer, stem in (("engine", "jeeves_llm"), ("provider", "jeeves_llm_provider")):
            if layers in {layer, "both"}:
                self.oracle.add(f"{stem}_calls_total", **labels, status="error" if error else "success")
                self.oracle.observe(f"{stem}_duration_seconds", duration_s, **labels)
        if layers != "engine":
            outcome = OUTCOMES.get(error, "error")
            self.oracle.add("jeeves_llm_provider_outcomes_total", **labels, outcome=outcome)

    def expect_tokens(
        self, provider: str | None, model: str | None, prompt: int | None, completion: int | None
    ) -> None:
        """Expect tokens, each direction if it is known."""
        labels = {"provider": _provider(provider), "model": model or "unknown"}
        for kind, count in (("prompt", prompt), ("completion", completion)):
            if count is not None:
                self.oracle.add("jeeves_llm_tokens_total", count, **labels, type=kind)

    def _tokens(self) -> tuple[int | None, int | None]:
        return self._sometimes(0, self.rng.randrange(9_000)), self._sometimes(self.rng.randrange(5_000))

    def event_llm_call_that_timed_itself(self) -> None:
        """A finished call; embeddings share the instrument and are not counted."""
        provider, model = self.rng.choice(PROVIDERS), self.rng.choice(MODELS)
        layer, error = self._sometimes("engine", "provider"), self._sometimes(*ERRORS)
        operation = self.rng.choice((*COUNTED_OPERATIONS, "embeddings"))
        prompt, completion = self._tokens()
        duration_s = self._value_for("jeeves_llm_duration_seconds")
        api.record_llm_call(
            provider,
            model,
            duration_s,
            error_type=error,
            prompt_tokens=prompt,
            completion_tokens=completion,
            operation=operation,
            layer=layer,
        )
        if operation != "embeddings":
            self.expect_llm(layer or "both", provider, model, duration_s, error=error)
            self.expect_tokens(provider, model, prompt, completion)

    def event_llm_call_without_client(self) -> None:
        """An operation whose client is not instrumented stands for both layers; the one who answered is named."""
        provider, model = self.rng.choice(PROVIDERS), self.rng.choice(MODELS)
        failed = self.rng.random() < 0.3
        prompt, completion = self._tokens()
        with suppress(ValueError), api.llm_call(provider, model) as call:
            if self.rng.random() < 0.3:
                provider, model = "anthropic", "claude-haiku"
                call.set_answered_by(provider=provider, model=model)
            call.set_tokens(prompt=prompt, completion=completion)
            duration_s = self._pass_time()
            if failed:
                raise ValueError
        self.expect_llm("both", provider, model, duration_s, error="ValueError" if failed else None)
        self.expect_tokens(provider, model, prompt, completion)

    def _client_attempt(self, provider: str, model: str | None, *, failed: bool) -> bool:
        """Let an instrumented client make one attempt; return whether it reported tokens."""
        duration_s = self._value_for("jeeves_llm_provider_duration_seconds")
        prompt, completion = (None, None) if failed else self._tokens()
        client = self.rng.choice(sorted(self._clients))
        error = self.rng.choice(ERRORS) if failed else None
        self._clients[client].call(provider, model, duration_s, error, prompt, completion)
        self.expect_llm("provider", provider, model, duration_s, error=error)
        self.expect_tokens(provider, model, prompt, completion)
        return prompt is not None or completion is not None

    def event_llm_call_with_client(self) -> None:
        """The engine sees one call, the provider layer every attempt; tokens come from the client if it has any."""
        provider, model = self.rng.choice(PROVIDERS), self.rng.choice(MODELS)
        attempts = self.rng.randrange(1, 4)
        failed = self.rng.random() < 0.2
        prompt, completion = self._tokens()
        with suppress(ValueError), api.agent("caller"), api.llm_call(provider, model) as call:
            reported = [
                self._client_attempt(provider, model, failed=failed or attempt < attempts - 1)
                for attempt in range(attempts)
            ]
            call.set_tokens(prompt=prompt, completion=completion)
            duration_s = self._pass_time()
            if failed:
                raise ValueError
        self._expect_agent("caller", duration_s, failed=failed)
        self.expect_llm("engine", provider, model, duration_s, error="ValueError" if failed else None)
        if not any(reported):
            self.expect_tokens(provider, model, prompt, completion)

    def event_llm_call_in_llm_call(self) -> None:
        """The outermost call is the engine's, the innermost measurement the provider's, and nothing in between counts."""
        provider, model = self.rng.choice(PROVIDERS), self.rng.choice(MODELS)
        instrumented = self.rng.random() < 0.5
        with api.llm_call("gateway", "auto"):
            before = self._pass_time()
            with api.llm_call(provider, model):
                if instrumented:
                    self._client_attempt(provider, model, failed=False)
                inside = self._pass_time()
        self.expect_llm("engine", "gateway", "auto", before + inside, error=None)
        if not instrumented:
            self.expect_llm("provider", provider, model, inside, error=None)

    def event_client_alone(self) -> None:
        """An instrumented client outside an llm_call is both layers; what it leaves out gets the promised default."""
        provider, model = self._sometimes(*PROVIDERS), self.rng.choice(MODELS)
        duration_s, error = self._value_for("jeeves_llm_duration_seconds"), self._sometimes(*ERRORS)
        prompt, completion = self._tokens()
        client = self.rng.choice(sorted(self._clients))
        self._clients[client].call(provider, model, duration_s, error, prompt, completion)
        self.expect_llm("both", provider, model, duration_s, error=error)
        self.expect_tokens(provider, model, prompt, completion)

    # ---- edges -------------------------------------------------------------------------------------------------------

    def expect_rpc(self, method: str, status: str, duration_s: float) -> None:
        """Expect one RPC under its full method with a leading slash."""
        self.oracle.add("jeeves_grpc_requests_total", method=method, status=status)
        self.oracle.observe("jeeves_grpc_request_duration_seconds", duration_s, method=method)

    def event_rpc(self) -> None:
        """An RPC served, with or without the leading slash; an unheard-of status is Unknown."""
        method, code = self.rng.choice(RPC_METHODS), self.rng.choice((*STATUS_OF_GRPC, "MADE_UP"))
        duration_s = self._value_for("jeeves_grpc_request_duration_seconds")
        api.record_rpc(self.rng.choice(("", "/")) + method, code, duration_s)
        self.expect_rpc(f"/{method}", STATUS_OF_GRPC.get(code, (0, "Unknown"))[1], duration_s)

    def expect_http(self, method: str, path: str, status: str, duration_s: float) -> None:
        """Expect one HTTP request."""
        self.oracle.add("jeeves_http_requests_total", method=method, path=path, status_code=status)
        self.oracle.observe("jeeves_http_request_duration_seconds", duration_s, method=method, path=path)

    def event_http_request(self) -> None:
        """A request served; no route, no status and strange methods included."""
        method, route = self.rng.choice(list(METHODS)), self.rng.choice(ROUTES)
        status = self.rng.choice((200, 404, 500, None))
        duration_s = self._value_for("jeeves_http_request_duration_seconds")
        api.record_http_request(method, route, status, duration_s, error_type="500" if status == 500 else None)
        self.expect_http(METHODS[method], route or "unmatched", str(status or 0), duration_s)

    def event_db_operation(self) -> None:
        """A database operation, in any case of letters."""
        operation, error = self.rng.choice(list(SQL)), self._sometimes(*ERRORS)
        duration_s = self._value_for("jeeves_db_query_duration_seconds")
        api.record_db_operation(operation, duration_s, error_type=error)
        labels = {"operation": SQL[operation]}
        self.oracle.add("jeeves_db_queries_total", **labels, status="error" if error else "success")
        self.oracle.observe("jeeves_db_query_duration_seconds", duration_s, **labels)

    def _levels_of(self, name: str) -> dict[Any, float]:
        return self._levels.setdefault(name, {})

    def event_pool(self) -> None:
        """The state of one of two pools; the families are sums over pools."""
        pool = self.rng.choice(("main", "replica"))
        used, idle, maximum = (self.rng.randrange(50) for _ in range(3))
        api.record_pool(pool, used=used, idle=idle, maximum=lambda: maximum)
        for state, count in (("used", used), ("idle", idle), ("max", maximum)):
            self._levels_of(state)[pool] = count
        all_used, all_idle, all_maximum = (sum(self._levels_of(state).values()) for state in ("used", "idle", "max"))
        self.oracle.set("jeeves_db_connections", all_used + all_idle)
        self.oracle.set("jeeves_db_pool_active_connections", all_used)
        self.oracle.set("jeeves_db_pool_idle_connections", all_idle)
        self.oracle.set("jeeves_db_pool_size", all_maximum)

    # ---- flow --------------------------------------------------------------------------------------------------------

    def event_interrupt(self) -> None:
        """An interrupt that is raised and settled, by itself or by how its block ends."""
        kind, ending = self.rng.choice(self._values("jeeves_interrupts_total", "kind")), self.rng.randrange(4)
        status = ("resolved", "expired", "cancelled", "expired")[ending]
        with suppress(ValueError, TimeoutError), api.interrupt(kind) as run:
            if ending == 1:
                raise TimeoutError
            if ending == 2:
                raise ValueError
            if ending == 3:
                run.settle("expired")
        self.oracle.add("jeeves_interrupts_total", kind=kind, status="pending")
        self.oracle.add("jeeves_interrupts_total", kind=kind, status=status)

    def event_interrupt_by_hand(self) -> None:
        """A state that an interrupt has entered."""
        kind, status = (self.rng.choice(self._values("jeeves_interrupts_total", label)) for label in ("kind", "status"))
        api.record_interrupt(kind, status)
        self.oracle.add("jeeves_interrupts_total", kind=kind, status=status)

    def _expect_orchestration(self, outcome: str, duration_s: float) -> None:
        self.oracle.add("orchestrator_requests_total", outcome=outcome)
        self.oracle.observe("orchestrator_request_latency_seconds", duration_s)

    def event_orchestration(self) -> None:
        """A request as a context manager, which is in flight for as long as it runs."""
        ending = self.rng.randrange(3)
        with suppress(ValueError), api.orchestration() as run:
            duration_s = self._pass_time()
            if ending == 1:
                raise ValueError
            if ending == 2:
                run.set_outcome("clarification")
        self.oracle.shift("orchestrator_inflight_requests", 0)
        self._expect_orchestration(("success", "failed", "clarification")[ending], duration_s)

    def event_orchestration_left_running(self) -> None:
        """A request that has not ended when the page is read."""
        api.orchestration().__enter__()
        self.oracle.shift("orchestrator_inflight_requests", 1)

    def event_orchestration_that_timed_itself(self) -> None:
        """A finished request."""
        outcome = self.rng.choice(("success", "failed", "policy"))
        duration_s = self._value_for("orchestrator_request_latency_seconds")
        api.record_orchestration(outcome, duration_s)
        self._expect_orchestration(outcome, duration_s)

    def event_rejection(self) -> None:
        """A request without a duration."""
        reason = self.rng.choice(("rate_limited", "too_large"))
        api.record_rejection(reason)
        self.oracle.add("orchestrator_requests_total", outcome=reason)

    def event_validation_report(self) -> None:
        """A report with any number of issues."""
        status = self.rng.choice(("approved", "rejected"))
        issues = self.rng.choices(("wrong_tool_choice", "hallucination"), k=self.rng.randrange(3))
        api.record_validation_report(status, issues=issues)
        self.oracle.add("meta_validator_reports_total", status=status)
        for issue in issues:
            self.oracle.add("meta_validator_issue_detections_total", issue_type=issue)

    def event_retry(self) -> None:
        """A retry, whose reason may not be known."""
        kind, reason = (
            self.rng.choice(("planner_retry", "validator_retry")),
            self._sometimes("tool_count_mismatch", "new"),
        )
        api.record_retry(kind, **({"reason": reason} if reason else {}))
        self.oracle.add("workflow_retry_attempts_total", retry_type=kind)
        self.oracle.add("workflow_retry_reasons_total", retry_type=kind, issue_type=reason or "unknown")

    def event_critic_decision(self) -> None:
        """A decision with a confidence."""
        action = self.rng.choice(self._values("critic_decisions_total", "action"))
        confidence = self.rng.choice((0.0, 0.1, 0.3, 0.7, 1.0, self.rng.random()))
        api.record_critic_decision(action, confidence)
        self.oracle.add("critic_decisions_total", action=action)
        self.oracle.observe("critic_decision_confidence", confidence, action=action)

    # ---- service -----------------------------------------------------------------------------------------------------

    def event_queue_depth(self) -> None:
        """A depth, as a number or as a function."""
        queue, depth = self.rng.choice(("events", "retries")), self.rng.randrange(1_000)
        api.record_queue_depth(queue, self.rng.choice((depth, lambda: depth)))
        self.oracle.set("jeeves_event_queue_depth", depth, queue=queue)

    def event_session(self) -> None:
        """Sessions come and go."""
        if self.rng.random() < 0.3:
            with api.session():
                pass
        change = self.rng.choice((1, 1, -1))
        (api.record_session_opened if change == 1 else api.record_session_closed)()
        self.oracle.shift("jeeves_user_sessions_active", change)

    def event_feature(self) -> None:
        """A use of a feature."""
        feature = self.rng.choice(("export", "share"))
        api.record_feature_usage(feature)
        self.oracle.add("jeeves_feature_usage_total", feature=feature)

    def event_error(self) -> None:
        """An error of some layer."""
        error, layer = self.rng.choice(ERRORS), self.rng.choice(("gateway", "engine"))
        api.record_error(error, layer)
        self.oracle.add("jeeves_errors_total", error_type=error, layer=layer)

    def event_health(self) -> None:
        """The result of a check."""
        check, status = (
            self.rng.choice(("postgresql", "llamaserver")),
            self.rng.choice(("healthy", "degraded", "failed")),
        )
        value = {"healthy": 1.0, "degraded": 0.5, "failed": 0.0}[status]
        api.record_health(check, self.rng.choice((status, lambda: value)))
        self.oracle.set("jeeves_health_status", value, check=check)

    def _process(self, pipeline: Pipeline) -> None:
        """Measure the process as the stock instrumentation does, and by hand."""
        meter = pipeline.meter_provider.get_meter("system-metrics")
        meter.create_up_down_counter("process.memory.usage", "By").add(123_456_789)
        meter.create_up_down_counter("process.memory.virtual", "By").add(987_654_321)
        meter.create_up_down_counter("process.open_file_descriptor.count", "{file_descriptor}").add(17)
        cpu = meter.create_counter("process.cpu.time", "s")
        for mode in ("user", "system"):
            seconds = self.rng.random()
            cpu.add(seconds, {"cpu.mode": mode})
            self.oracle.add("process_cpu_seconds_total", seconds)
        for instrument, name in (
            ("collections", "collections"),
            ("collected_objects", "objects_collected"),
            ("uncollectable_objects", "objects_uncollectable"),
        ):
            counter = meter.create_counter(f"cpython.gc.{instrument}")
            for generation in range(3):
                counter.add(generation + 1, {"cpython.gc.generation": generation})
                self.oracle.add(f"python_gc_{name}_total", generation + 1, generation=str(generation))
        self.oracle.set("process_resident_memory_bytes", 123_456_789)
        self.oracle.set("process_virtual_memory_bytes", 987_654_321)
        self.oracle.set("process_open_fds", 17)

    def _values(self, name: str, label: str) -> tuple[str, ...]:
        values = self._facts[name].labels[label]
        assert values is not None
        return values


class Client:
    """An instrumented LLM client, as third-party packages record: duration and tokens, straight into a meter."""

    def __init__(self, meter: Any) -> None:
        self._duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}")

    def call(
        self,
        provider: str | None,
        model: str | None,
        duration_s: float,
        error: str | None,
        prompt: int | None,
        completion: int | None,
    ) -> None:
        """Record one call with what is known of it."""
        given = {"gen_ai.provider.name": provider, "gen_ai.request.model": model, "server.address": "example.org"}
        attributes = {"gen_ai.operation.name": "chat", **{key: value for key, value in given.items() if value}}
        self._duration.record(duration_s, {**attributes, **({"error.type": error} if error else {})})
        for kind, count in (("input", prompt), ("output", completion)):
            if count is not None:
                self._tokens.record(count, {**attributes, "gen_ai.token.type": kind})


def _provider(attribute: str | None) -> str:
    return {"azure.ai.openai": "azure", "azure.ai.inference": "azure", None: "unknown"}.get(attribute, attribute or "")

# SPDX-License-Identifier: Apache-2.0
"""The competitors that measure a real client: one chat completion through openai's, whole and streamed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor as StockInstrumentor

from bench.recorded import jeeves_provider, stock_provider, tracer_provider
from bench.timing import Case, Group, each
from jeeves_otel.integrations.genai import OpenAIInstrumentor

if TYPE_CHECKING:
    from collections.abc import Callable

    import openai

_CHUNKS = 20
_MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]


def client_group() -> Group:
    """Return: one chat completion, the network replaced by memory."""
    client = _client()

    def ask() -> None:
        client.chat.completions.create(model="gpt-4o", messages=_MESSAGES)

    return Group("one chat completion through openai's client", _cases(ask))


def stream_group() -> Group:
    """Return: one chat completion streamed in 20 chunks, the network replaced by memory."""
    client = _client()

    def ask() -> None:
        for _ in client.chat.completions.create(model="gpt-4o", messages=_MESSAGES, stream=True):
            pass

    return Group(f"one chat completion streamed in {_CHUNKS} chunks", _cases(ask))


def _cases(ask: Callable[[], None]) -> tuple[Case, ...]:
    ours, stock = OpenAIInstrumentor(), StockInstrumentor()
    meters, _ = jeeves_provider()
    into_ours = {"meter_provider": meters, "tracer_provider": tracer_provider()}
    into_stock = {"meter_provider": stock_provider(), "tracer_provider": tracer_provider()}

    def bare() -> None:
        ours.uninstrument()
        if stock.is_instrumented_by_opentelemetry:
            stock.uninstrument()

    def measured() -> None:
        bare()
        ours.instrument(**into_ours)

    def by_stock() -> None:
        bare()
        stock.instrument(**into_stock)

    return (
        Case("no telemetry", each(ask), bare),
        Case("stock genai-openai, stock SDK, spans at 10 %", each(ask), by_stock),
        Case("jeeves_otel, spans at 10 %", each(ask), measured),
    )


def _client() -> openai.OpenAI:
    import httpx2  # noqa: PLC0415 - only where it is measured
    import openai  # noqa: PLC0415 - as above

    def answer(request: Any) -> Any:
        if json.loads(request.content).get("stream"):
            return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content=_STREAM)
        return httpx2.Response(200, json=_COMPLETION)

    return openai.OpenAI(api_key="k", max_retries=0, http_client=httpx2.Client(transport=httpx2.MockTransport(answer)))


_HEAD = {"id": "c1", "created": 1, "model": "gpt-4o-2024-08-06"}
_USAGE = {"prompt_tokens": 12, "completion_tokens": 80, "total_tokens": 92}
_COMPLETION = {
    **_HEAD,
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}],
    "usage": _USAGE,
}


def _chunk(content: str, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": reason}
    return {**_HEAD, "object": "chat.completion.chunk", "choices": [choice]}


_STREAM = (
    "".join(
        f"data: {json.dumps(chunk)}\n\n"
        for chunk in [
            *(_chunk("Paris ") for _ in range(_CHUNKS - 2)),
            _chunk("", "stop"),
            {**_chunk(""), "choices": [], "usage": _USAGE},
        ]
    ).encode()
    + b"data: [DONE]\n\n"
)

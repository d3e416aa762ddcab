# SPDX-License-Identifier: Apache-2.0
"""Call language models through the ``openai`` client, with a fallback, a deadline, and one recorded call per question.

In: a system prompt and a question. Out: text. Where the endpoint and its key come from is the client's own business:
``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``. Small things are asked of a server at home, ``LLAMASERVER_URL``, that speaks
the same protocol: telemetry knows it by its address (``JEEVES_OTEL_LLM_PROVIDERS``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from openai import APIError, AsyncOpenAI, OpenAI

from jeeves_otel import llm_call

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from openai.types.chat import ChatCompletionMessageParam

PROVIDER = "openai"
LARGE = "gpt-4o"
SMALL = "gpt-4o-mini"
AT_HOME = "llama-3.2-3b"
DEADLINE_S = 1.0


class ModelUnavailableError(Exception):
    """No model has answered; the cause is what the last one tried has said."""


class LanguageModel:
    """Models behind one endpoint. Safe from several tasks and threads; closed for good by `close`."""

    def __init__(self) -> None:
        # Retries of the client would hide failures of the provider from its callers' metrics: we fall back instead.
        self._async_client = AsyncOpenAI(max_retries=0, timeout=DEADLINE_S)
        self._client = OpenAI(base_url=os.environ.get("LLAMASERVER_URL"), max_retries=0, timeout=DEADLINE_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._async_client.close()
        self._client.close()

    async def ask(self, system: str, question: str, *, model: str = SMALL, fallback: str | None = None) -> str:
        """Return the answer of *model*, or of *fallback* if that fails.

        Raises:
            ModelUnavailableError: None of them answers.
        """
        async with llm_call(PROVIDER, model) as call:
            try:
                return await self._complete(system, question, model)
            except APIError as error:
                if fallback is None:
                    raise ModelUnavailableError(model) from error
            call.set_answered_by(model=fallback)
            try:
                return await self._complete(system, question, fallback)
            except APIError as error:
                raise ModelUnavailableError(fallback) from error

    async def _complete(self, system: str, question: str, model: str) -> str:
        reply = await self._async_client.chat.completions.create(model=model, messages=_messages(system, question))
        return reply.choices[0].message.content or ""

    @llm_call(PROVIDER, LARGE)
    async def stream(self, system: str, question: str) -> AsyncGenerator[str]:
        """Yield the answer of the large model piece by piece.

        Raises:
            ModelUnavailableError: The model fails, at the start or midway.
        """
        try:
            pieces = await self._async_client.chat.completions.create(
                model=LARGE, messages=_messages(system, question), stream=True, stream_options={"include_usage": True}
            )
            async with pieces:
                async for piece in pieces:
                    if piece.choices and piece.choices[0].delta.content:
                        yield piece.choices[0].delta.content
        except APIError as error:
            raise ModelUnavailableError(LARGE) from error

    def ask_blocking(self, system: str, question: str) -> str:
        """Return the answer of the model at home, from a thread. Recorded by the client's instrumentation alone.

        Raises:
            ModelUnavailableError: The model does not answer.
        """
        try:
            reply = self._client.chat.completions.create(model=AT_HOME, messages=_messages(system, question))
        except APIError as error:
            raise ModelUnavailableError(AT_HOME) from error
        return reply.choices[0].message.content or ""

    def ping(self) -> None:
        """Ask the endpoint which models it has.

        Raises:
            ModelUnavailableError: It does not answer.
        """
        try:
            self._client.models.list()
        except APIError as error:
            raise ModelUnavailableError(PROVIDER) from error


def _messages(system: str, question: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]

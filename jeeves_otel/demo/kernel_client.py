# SPDX-License-Identifier: Apache-2.0
"""Call the kernel from the gateway: from coroutines through ``grpc.aio``, from threads through a blocking channel.

In: questions. Out: what the kernel answers. Nothing here measures or carries a trace: the integration of gRPC does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from jeeves_otel.demo.agents import Reply
from jeeves_otel.demo.kernel import SERVICE, decode, encode
from jeeves_otel.demo.language_model import ModelUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DEADLINE_S = 20.0
_CODING: dict[str, Any] = {"request_serializer": encode, "response_deserializer": decode}


class KernelClient:
    """The kernel at *target*, ``host:port``. Safe from tasks and threads; closed for good by `close`."""

    def __init__(self, target: str) -> None:
        self._aio_channel = grpc.aio.insecure_channel(target)
        self._channel = grpc.insecure_channel(target)
        self._answer = self._aio_channel.unary_unary(f"/{SERVICE}/Answer", **_CODING)
        self._stream = self._aio_channel.unary_stream(f"/{SERVICE}/Stream", **_CODING)
        self._title = self._channel.unary_unary(f"/{SERVICE}/Title", **_CODING)
        self._check = self._channel.unary_unary(f"/{SERVICE}/Check", **_CODING)

    async def close(self) -> None:
        """Close the connections."""
        await self._aio_channel.close()
        self._channel.close()

    async def answer(self, question: str, request_id: str) -> Reply:
        """Return the answer to *question*, or a question back.

        Raises:
            ModelUnavailableError: A model that is needed does not answer.
        """
        try:
            reply = await self._answer({"question": question, "request_id": request_id}, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        return Reply(reply["text"], reply["needs_clarification"])

    async def stream(self, question: str) -> AsyncGenerator[str]:
        """Yield the answer to *question* piece by piece; a reader who leaves ends the call.

        Raises:
            ModelUnavailableError: The model does not answer.
        """
        call = self._stream({"question": question}, timeout=DEADLINE_S)
        try:
            async for message in call:
                yield message["piece"]
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        finally:
            call.cancel()

    def title(self, conversation: str) -> str:
        """Return a title for *conversation*.

        Raises:
            ModelUnavailableError: The model does not answer.
        """
        try:
            title: str = self._title({"conversation": conversation}, timeout=DEADLINE_S)["title"]
        except grpc.RpcError as error:
            raise _translated(error) from error
        return title

    def is_healthy(self) -> bool:
        """Return whether the kernel answers, and its model too."""
        try:
            return bool(self._check({}, timeout=DEADLINE_S)["healthy"])
        except grpc.RpcError:
            return False


def _translated(error: Any) -> Exception:
    unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
    return ModelUnavailableError(error.details()) if unavailable else error

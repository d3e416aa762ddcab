# SPDX-License-Identifier: Apache-2.0
"""One local server that speaks the protocols of OpenAI and Anthropic, and remembers what it was asked.

The model's name says how it answers; everything that a user might have typed, and every text of an error, holds `CANARY`.
What the server counts is the oracle: calls that arrived, and tokens that it reported.

=========  ==========================================================
slow       a stream whose first token comes `SLOW_S` after its first event
error      a stream that ends in an error event
dropped    a stream, or an answer, whose connection is reset
garbage    a stream with a line that is no JSON
hang       no answer while the test runs
flaky      two failures that a client may retry, then success
tools      a call of a tool instead of a text
a number   an error of that status
others     success at once
=========  ==========================================================
"""

from __future__ import annotations

import json
import socket
import struct
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CANARY = "canary-7f3a"
SLOW_S = 0.15  # from the first event of a `slow` stream to its first token

# 40 of the prompt's come from a cache and 5 of the completion's are reasoning: parts, not more.
PROMPT, CACHED, COMPLETION, REASONING = 100, 40, 20, 5
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    529: "overloaded_error",
}

Reply = dict[str, Any]


class Server:
    """What the server was asked and has answered, since it started or since `reset`.

    Attributes:
        url: Without a path; OpenAI's clients add ``/v1``.
        calls: Requests that arrived, by path.
        tokens: Tokens that it has reported, by type.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.released = Event()
        self.lock = Lock()
        self.reset()

    def reset(self) -> None:
        """Forget what was asked."""
        self.calls: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.failures = 0


@contextmanager
def llm_servers() -> Iterator[Server]:
    """Serve both protocols in threads."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.daemon_threads = True
    server = _Handler.server_state = Server(http.server_port)
    thread = Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    http.shutdown()
    thread.join()
    http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.calls[self.path] += 1
            self.reported = state.tokens  # those of this test: a stream that it leaves may outlive it
        model = body["model"]
        anthropic = self.path.startswith("/v1/messages")
        if model == "hang":
            state.released.wait(60)
            return
        if model == "flaky" and state.failures < 2:
            state.failures += 1
            self._fail(429 if state.failures == 1 else 503, anthropic=anthropic)
        elif model.isdigit():
            self._fail(int(model), anthropic=anthropic)
        elif body.get("stream"):
            self._stream(model, _STREAMS[self.path.partition("?")[0]](model, body))
        elif model == "dropped":
            self._drop()
        else:
            self._report()
            self._answer(200, _ANSWERS[self.path.partition("?")[0]](model))

    def _report(self) -> None:
        """Count the tokens of an answer, before the client can have read of them."""
        with self.server_state.lock:
            self.reported.update(prompt=PROMPT, completion=COMPLETION)

    def _answer(self, status: int, body: Reply, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "request-id": "r1", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, status: int, *, anthropic: bool) -> None:
        error = {"type": _ERROR_TYPES[status], "message": f"you said: {CANARY}"}
        body = {"type": "error", "error": error} if anthropic else {"error": {**error, "code": None, "param": None}}
        self._answer(status, body, {"retry-after-ms": "1", "retry-after": "1"})

    def _stream(self, model: str, events: list[tuple[str, Any]]) -> None:
        """Send *events* as they are named: ``(kind, data)``, where the kind is the name of an event or one of ours."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for position, (event, data) in enumerate(events):
            if position == 1 and model == "slow":
                self.server_state.released.wait(SLOW_S)
            if position == len(events) // 2 and model in _MIDWAY:
                _MIDWAY[model](self)
                return
            if _has_usage(data):
                self._report()
            self._chunk((f"event: {event}\n" if event else "") + f"data: {_text(data)}\n\n")
        self._chunk("")

    def _chunk(self, text: str) -> None:
        try:
            self.wfile.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())
        except ConnectionError:  # the client has left
            self.close_connection = True

    def _error_event(self) -> None:
        error = {"type": "overloaded_error", "message": f"you said: {CANARY}"}
        if self.path.startswith("/v1/messages"):
            self._chunk(f"event: error\ndata: {json.dumps({'type': 'error', 'error': error})}\n\n")
        elif self.path.endswith("/responses"):
            event = {
                "type": "error",
                "code": "server_error",
                "message": f"you said: {CANARY}",
                "param": None,
                "sequence_number": 9,
            }
            self._chunk(f"event: error\ndata: {json.dumps(event)}\n\n")
        else:
            self._chunk(f"data: {json.dumps({'error': error})}\n\n")
        self._chunk("")

    def _drop(self) -> None:
        """Reset the connection, as a load balancer does."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _garbage(self) -> None:
        event = "event: message_delta\n" if self.path.startswith("/v1/messages") else ""
        self._chunk(f"{event}data: {{no json: {CANARY}\n\n")
        self._chunk("")

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Serve one connection; what breaks it was asked for."""
        try:
            super().handle()
        except (OSError, ValueError):
            pass

    def finish(self) -> None:
        """End one connection, which may be broken."""
        try:
            super().finish()
        except (OSError, ValueError):
            pass


_MIDWAY: dict[str, Callable[[_Handler], None]] = {
    "error": _Handler._error_event,
    "dropped": _Handler._drop,
    "garbage": _Handler._garbage,
}


def _text(data: Any) -> str:
    return data if isinstance(data, str) else json.dumps(data)


def _has_usage(data: Any) -> bool:
    if isinstance(data, str):
        return False
    if data.get("type") in {"message_delta", "response.completed"}:
        return True
    return bool(data.get("usage")) and "choices" in data


# ---- OpenAI ----------------------------------------------------------------------------------------------------------


def _chat_usage() -> Reply:
    return {
        "prompt_tokens": PROMPT,
        "completion_tokens": COMPLETION,
        "total_tokens": PROMPT + COMPLETION,
        "prompt_tokens_details": {"cached_tokens": CACHED},
        "completion_tokens_details": {"reasoning_tokens": REASONING},
    }


def _chat(model: str) -> Reply:
    message: Reply = {"role": "assistant", "content": json.dumps({"word": CANARY})}
    reason = "stop"
    if model == "tools":
        function = {"name": "look_up", "arguments": json.dumps({"word": CANARY})}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        }
        reason = "tool_calls"
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": f"{model}-2026",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": _chat_usage(),
    }


def _chat_stream(model: str, body: dict[str, Any]) -> list[tuple[str, Any]]:
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": f"{model}-2026"}

    def chunk(delta: Reply, reason: str | None = None) -> tuple[str, Any]:
        return "", {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    if model == "tools":
        arguments = json.dumps({"word": CANARY})
        call = {"index": 0, "id": "t1", "type": "function", "function": {"name": "look_up", "arguments": ""}}
        deltas = [
            chunk({"role": "assistant", "content": None, "tool_calls": [call]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments[:8]}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments[8:]}}]}),
            chunk({}, "tool_calls"),
        ]
    else:
        words = [chunk({"content": word}) for word in ('{"word": ', f'"{CANARY}', '"}')]
        deltas = [chunk({"role": "assistant", "content": ""}), *words, chunk({}, "stop")]
    if (body.get("stream_options") or {}).get("include_usage"):
        deltas.append(("", {**head, "choices": [], "usage": _chat_usage()}))
    return [*deltas, ("", "[DONE]")]


def _response(model: str, status: str = "completed") -> Reply:
    part = {"type": "output_text", "text": json.dumps({"word": CANARY}), "annotations": []}
    output: Reply = {"id": "m1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    if model == "tools":
        arguments = json.dumps({"word": CANARY})
        output = {
            "id": "f1",
            "type": "function_call",
            "status": "completed",
            "call_id": "t1",
            "name": "look_up",
            "arguments": arguments,
        }
    done = status == "completed"
    return {
        "id": "r1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": f"{model}-2026",
        "output": [output] if done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": PROMPT,
            "input_tokens_details": {"cached_tokens": CACHED, "cache_write_tokens": 0},
            "output_tokens": COMPLETION,
            "output_tokens_details": {"reasoning_tokens": REASONING},
            "total_tokens": PROMPT + COMPLETION,
        }
        if done
        else None,
    }


def _response_stream(model: str, _: dict[str, Any]) -> list[tuple[str, Any]]:
    item = {"id": "m1", "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    where = {"item_id": "m1", "output_index": 0, "content_index": 0}
    whole = json.dumps({"word": CANARY})
    finished = _response(model)
    if model == "tools":
        call = {**finished["output"][0], "arguments": "", "status": "in_progress"}
        place = {"item_id": "f1", "output_index": 0}
        middle: list[tuple[str, Reply]] = [
            ("response.output_item.added", {"output_index": 0, "item": call}),
            ("response.function_call_arguments.delta", {**place, "delta": whole}),
            ("response.function_call_arguments.done", {**place, "arguments": whole, "name": "look_up"}),
        ]
    else:
        middle = [
            ("response.output_item.added", {"output_index": 0, "item": item}),
            ("response.content_part.added", {**where, "part": part}),
            ("response.output_text.delta", {**where, "delta": whole[:9], "logprobs": []}),
            ("response.output_text.delta", {**where, "delta": whole[9:], "logprobs": []}),
            ("response.output_text.done", {**where, "text": whole, "logprobs": []}),
        ]
    events: list[tuple[str, Reply]] = [
        ("response.created", {"response": _response(model, "in_progress")}),
        *middle,
        ("response.output_item.done", {"output_index": 0, "item": finished["output"][0]}),
        ("response.completed", {"response": finished}),
    ]
    return [(name, {"type": name, "sequence_number": n, **data}) for n, (name, data) in enumerate(events)]


def _embeddings(model: str) -> Reply:
    vector = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
    usage = {"prompt_tokens": PROMPT, "total_tokens": PROMPT}
    return {"object": "list", "model": f"{model}-2026", "data": vector, "usage": usage}


# ---- Anthropic -------------------------------------------------------------------------------------------------------


def _message_usage() -> Reply:
    # Anthropic counts what a cache has read or written beside the input, not inside it.
    return {
        "input_tokens": PROMPT - CACHED,
        "cache_creation_input_tokens": CACHED // 2,
        "cache_read_input_tokens": CACHED // 2,
        "output_tokens": COMPLETION,
    }


def _message(model: str) -> Reply:
    content: list[Reply] = [{"type": "text", "text": json.dumps({"word": CANARY})}]
    reason = "end_turn"
    if model == "tools":
        content = [{"type": "tool_use", "id": "t1", "name": "look_up", "input": {"word": CANARY}}]
        reason = "tool_use"
    return {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": f"{model}-2026",
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": _message_usage(),
    }


def _message_stream(model: str, _: dict[str, Any]) -> list[tuple[str, Any]]:
    whole = json.dumps({"word": CANARY})
    start = {**_message(model), "content": [], "stop_reason": None, "usage": {**_message_usage(), "output_tokens": 1}}
    block: Reply = {"type": "text", "text": ""}
    deltas: list[Reply] = [{"type": "text_delta", "text": text} for text in (whole[:9], whole[9:])]
    if model == "tools":
        block = {"type": "tool_use", "id": "t1", "name": "look_up", "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": text} for text in (whole[:9], whole[9:])]
    end = {"stop_reason": _message(model)["stop_reason"], "stop_sequence": None}
    events: list[tuple[str, Reply]] = [
        ("message_start", {"message": start}),
        ("ping", {}),
        ("content_block_start", {"index": 0, "content_block": block}),
        *(("content_block_delta", {"index": 0, "delta": delta}) for delta in deltas),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": end, "usage": {"output_tokens": COMPLETION}}),
        ("message_stop", {}),
    ]
    return [(name, {"type": name, **data}) for name, data in events]


_ANSWERS: dict[str, Callable[[str], Reply]] = {
    "/v1/chat/completions": _chat,
    "/v1/responses": _response,
    "/v1/embeddings": _embeddings,
    "/v1/messages": _message,
}
_STREAMS: dict[str, Callable[[str, dict[str, Any]], list[tuple[str, Any]]]] = {
    "/v1/chat/completions": _chat_stream,
    "/v1/responses": _response_stream,
    "/v1/messages": _message_stream,
}

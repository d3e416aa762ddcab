# SPDX-License-Identifier: Apache-2.0
"""Measure the clients of OpenAI and Anthropic through OpenTelemetry's GenAI instrumentations, and mend their streams.

In: applications that import ``openai`` or ``anthropic``. Out: the instrumentations' spans and measurements, for streams
corrected where they say what did not happen (docs/decisions/0009-llm-clients.md). Neither library and neither
instrumentation is imported before the application imports the library.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from _thread import start_new_thread
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

from jeeves_otel.failsafe import failsafe, is_under_a_lock, swallow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # What replaces a function of an instrumentation, made from that function.
    Mend = Callable[[Any], Any]

_log = logging.getLogger("jeeves_otel")

# The client reads it when it is made; its own span would stand beside the instrumentation's (anthropic 2).
_NATIVE_ANTHROPIC = "ANTHROPIC_OPEN_TELEMETRY"
_chunk_guard = failsafe("genai.chunk")
_start_guard = failsafe("genai.stream")


class _Instrumentor:
    """The shape in which the launcher activates integrations."""

    library: str

    def instrument(self, **options: Any) -> None:
        """Measure the library's clients as soon as the application imports it.

        Args:
            options: ``tracer_provider``, ``meter_provider``, ``logger_provider``; default the global ones.
        """
        options.pop("skip_dep_check", None)  # the launcher has checked our versions, not the library's
        with failsafe(f"{self.library}.instrument"):
            _LIBRARIES[self.library].instrument(options)

    def uninstrument(self, **_: Any) -> None:
        """Measure them no more."""
        with failsafe(f"{self.library}.uninstrument"):
            _LIBRARIES[self.library].uninstrument()


class OpenAIInstrumentor(_Instrumentor):
    """Chat completions, Responses API and embeddings of ``openai`` (entry point ``jeeves_openai``)."""

    library = "openai"


class AnthropicInstrumentor(_Instrumentor):
    """Messages of ``anthropic``, beta too (entry point ``jeeves_anthropic``)."""

    library = "anthropic"


# ---- when ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Library:
    """One library: where its instrumentation stands, and whether it is wanted, waited for, active."""

    name: str
    module: str
    cls: str
    mends: Callable[[], list[_Patch]]
    wanted: bool = False
    waiting: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    stock: Any = None
    patches: list[_Patch] = field(default_factory=list)
    silenced: bool = False

    def instrument(self, options: dict[str, Any]) -> None:
        """Activate now if the application has the library, else when it imports it."""
        self.wanted, self.options = True, options
        if self.name in sys.modules:
            self.install()
        elif not self.waiting:
            self.waiting = True
            register_post_import_hook(self.imported, self.name)

    def imported(self, _: object) -> None:
        """Activate, if it is still wanted."""
        with failsafe(f"{self.name}.instrument"):
            if self.wanted:
                self.install()

    def install(self) -> None:
        """Activate the instrumentation and mend it, once."""
        if self.stock is not None:
            return
        try:
            make = getattr(import_module(self.module), self.cls, None)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("opentelemetry"):
                raise
            _log.info("%s is imported and not measured: install jeeves-otel[genai]", self.name)
            return
        if make is None:  # somebody is importing it right now, and the library with it: it is theirs to activate
            self._mend(_stream_mends())
            return
        stock = make()
        if not stock.is_instrumented_by_opentelemetry:
            stock.instrument(**self.options)
        if not stock.is_instrumented_by_opentelemetry:
            return  # a version that it does not support; it has said so
        self.stock = stock
        if self.name == "anthropic" and _NATIVE_ANTHROPIC not in os.environ:  # noqa: TID251 - its only switch for all clients; a user's value wins
            os.environ[_NATIVE_ANTHROPIC] = "false"  # noqa: TID251 - as above
            self.silenced = True
        self._mend([*_stream_mends(), *self.mends()])

    def _mend(self, patches: list[_Patch]) -> None:
        self.patches += [patch for patch in patches if patch.apply()]

    def uninstrument(self) -> None:
        """Deactivate the instrumentation and leave nothing behind."""
        self.wanted = False
        for patch in reversed(self.patches):
            patch.undo()
        self.patches.clear()
        if self.silenced:
            os.environ.pop(_NATIVE_ANTHROPIC, None)  # noqa: TID251 - as above
            self.silenced = False
        if self.stock is not None:
            self.stock.uninstrument()
            self.stock = None


# ---- how their code is replaced --------------------------------------------------------------------------------------


class _Patch:
    """One function of an instrumentation and what stands in its place; several owners may apply the same one.

    The names are private to opentelemetry-util-genai 1.3b0 and its instrumentations, which offer no other seam: each is
    replaced only where it is found, and what is missing is counted and leaves the stock behaviour.
    """

    _applied: dict[tuple[str, str], tuple[Any, int]] = {}  # noqa: RUF012 - of the process: {place: (original, owners)}

    def __init__(self, module: str, path: str, mend: Mend) -> None:
        self.module, self.path, self.mend = module, path, mend

    def _owner(self) -> tuple[Any, str]:
        owner: Any = import_module(self.module)
        *names, last = self.path.split(".")
        for name in names:
            owner = getattr(owner, name)
        return owner, last

    def apply(self) -> bool:
        """Put the replacement in place; return whether there was something to replace."""
        try:
            owner, name = self._owner()
            place = self.module, self.path
            if place in self._applied:
                original, owners = self._applied[place]
            else:
                # Of a class its own functions only: replacing an inherited one would hide a later change of it.
                original, owners = vars(owner).get(name), 0
                mended = self.mend(original)
                if not self._fits(original, mended):
                    raise AttributeError(name)  # noqa: TRY301 - swallowed and counted below, like a missing module
                setattr(owner, name, mended)
            self._applied[place] = original, owners + 1
        except Exception as error:  # noqa: BLE001 - another version of the instrumentation: it stays as it is
            swallow("genai.mend", error, f"{self.module}.{self.path} is not as it was in 1.3b0 and stays as it is")
            return False
        return True

    @staticmethod
    def _fits(original: Any, mended: Any) -> bool:
        """Return whether *mended* can be called as *original* is; a property is there to be added, and nothing else."""
        if isinstance(mended, property) or original is None:
            return isinstance(mended, property) and original is None
        theirs = list(inspect.signature(original).parameters)
        ours = list(inspect.signature(mended, follow_wrapped=False).parameters)
        return ours in (theirs, ["self", "args", "kwargs"])

    def undo(self) -> None:
        """Put the original back when the last owner is done with the replacement."""
        place = self.module, self.path
        original, owners = self._applied.pop(place)
        if owners > 1:
            self._applied[place] = original, owners - 1
            return
        owner, name = self._owner()
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


# ---- streams ---------------------------------------------------------------------------------------------------------

# Which stream this thread or task is reading right now, by id. A reference would keep a stream alive that was left.
_being_read: ContextVar[int] = ContextVar("jeeves-llm-stream-being-read", default=0)


def _stream_mends() -> list[_Patch]:
    """Return what is mended for every library."""
    streams = "opentelemetry.util.genai.stream"
    return [
        _Patch(streams, "SyncStreamWrapper._advance", _watched),
        _Patch(streams, "AsyncStreamWrapper._advance", _watched_async),
        _Patch(streams, "_StreamTelemetry._finalize_success", _not_while_read),
        _Patch(streams, "_StreamTelemetry._finalize_failure", _leaving_is_success),
        _Patch(streams, "_StreamTelemetry.__del__", _not_under_a_lock),
        _Patch("opentelemetry.util.genai._inference_invocation", "InferenceInvocation._on_stream_chunk", _output_only),
    ]


def _watched(advance: Any) -> Any:
    """Know which stream is being read, and what each chunk of it carries."""

    @functools.wraps(advance)
    def _advance(self: Any, read: Callable[[], Any]) -> Any:
        def watched_read() -> Any:
            token = _being_read.set(id(self))
            try:
                chunk = read()
            finally:
                _being_read.reset(token)
            _note(self, chunk)
            return chunk

        return advance(self, watched_read)

    return _advance


def _watched_async(advance: Any) -> Any:
    """Do the same for async streams."""

    @functools.wraps(advance)
    async def _advance(self: Any, read: Callable[[], Any]) -> Any:
        async def watched_read() -> Any:
            token = _being_read.set(id(self))
            try:
                chunk = await read()
            finally:
                _being_read.reset(token)
            _note(self, chunk)
            return chunk

        return await advance(self, watched_read)

    return _advance


def _not_while_read(finalize: Any) -> Any:
    """Leave the ending of a stream to the read that is going on: it may yet raise.

    A raw response closes before the error of its last read has arrived, and its closing counted as a success.
    """

    @functools.wraps(finalize)
    def _finalize_success(self: Any) -> None:
        if _being_read.get() != id(self):
            finalize(self)

    return _finalize_success


def _leaving_is_success(finalize: Any) -> Any:
    """Let a consumer leave: it has got what it wanted (docs/decisions/0003-how-operations-end.md)."""
    streams = import_module("opentelemetry.util.genai.stream")
    abandoned, succeed = streams.AbandonedStreamError, streams._StreamTelemetry._finalize_success  # noqa: SLF001 - must be there

    @functools.wraps(finalize)
    def _finalize_failure(self: Any, error: BaseException) -> None:
        if isinstance(error, (abandoned, GeneratorExit)):
            succeed(self)
        else:
            finalize(self, error)

    return _finalize_failure


def _not_under_a_lock(finalize: Any) -> Any:
    """End a forgotten stream in a thread of its own where this one may hold a lock that measuring needs.

    Garbage is collected wherever something is allocated. A scrape that collected a forgotten stream waited for itself,
    and every thread that measured anything waited for the scrape.
    """

    @functools.wraps(finalize)
    def __del__(self: Any) -> None:  # noqa: N807 - as theirs
        try:
            if self._self_finalized:
                return
            if is_under_a_lock():
                # Not a `threading.Thread`: starting one takes a lock that this thread may hold too.
                start_new_thread(finalize, (self,))
            else:
                finalize(self)
        except Exception:  # noqa: BLE001, S110 - made in part only, or the interpreter ends; there is nobody to tell
            pass

    return __del__


_EMPTY = "_jeeves_otel_empty_chunk"


def _note(stream: Any, chunk: Any) -> None:
    """Note on the stream's invocation whether *chunk* carries anything that the model has generated."""
    with _chunk_guard:
        invocation = stream._self_invocation  # noqa: SLF001 - the seam
        if invocation is not None:
            setattr(invocation, _EMPTY, not carries_output(chunk))


def _output_only(record: Any) -> Any:
    """Time chunks that carry output: providers open a stream with events that hold nothing of the answer."""

    @functools.wraps(record)
    def _on_stream_chunk(self: Any, chunk_at: float) -> None:
        if not getattr(self, _EMPTY, False):
            record(self, chunk_at)

    return _on_stream_chunk


_DELTAS = ("content", "tool_calls", "refusal", "function_call", "reasoning_content", "reasoning", "audio")


def carries_output(chunk: Any) -> bool:
    """Return whether *chunk* of a stream holds something that the model has generated; True if that cannot be told.

    Source: the streaming references of OpenAI (chat completions, responses) and Anthropic (messages), November 2026;
    ``reasoning_content`` and ``reasoning`` are what OpenAI-compatible servers add.
    """
    choices = getattr(chunk, "choices", None)
    if choices is not None:
        return any(getattr(choice.delta, name, None) for choice in choices for name in _DELTAS)
    kind = getattr(chunk, "type", None)
    if not isinstance(kind, str):
        return True
    if kind == "content_block_start":
        return getattr(chunk.content_block, "type", "") not in {"text", "thinking"}
    return kind.endswith(("_delta", ".delta")) and kind != "message_delta"


# ---- openai ----------------------------------------------------------------------------------------------------------


def _openai_mends() -> list[_Patch]:
    return [_Patch("opentelemetry.instrumentation.genai.openai.patch", "_set_response_properties", _unparsed)]


def _unparsed(extract: Any) -> Any:
    """Leave an answer alone whose parsing must be awaited: a coroutine that nobody awaits is a warning to the user."""

    @functools.wraps(extract)
    def _set_response_properties(chat_invocation: Any, result: Any, capture_content: bool) -> Any:  # noqa: FBT001 - as theirs
        if inspect.iscoroutinefunction(getattr(result, "parse", None)):
            return chat_invocation
        return extract(chat_invocation, result, capture_content)

    return _set_response_properties


# ---- anthropic -------------------------------------------------------------------------------------------------------


def _anthropic_mends() -> list[_Patch]:
    package = "opentelemetry.instrumentation.genai.anthropic"
    return [
        _Patch(f"{package}.wrappers", "MessagesStreamWrapper.__init__", _handed_over),
        _Patch(f"{package}.wrappers", "AsyncMessagesStreamWrapper.__init__", _handed_over),
        _Patch(f"{package}._raw_response", "RawResponseProxy.__init__", _handed_over),
        _Patch(f"{package}.wrappers", "MessagesStreamWrapper.text_stream", _text_stream),
        _Patch(f"{package}.wrappers", "AsyncMessagesStreamWrapper.text_stream", _text_stream_async),
    ]


def _handed_over(init: Any) -> Any:
    """Give the caller its context back together with the stream.

    Else the application's own work runs inside the call's span until the stream ends, calls of other models among it
    are not counted at all, and a stream that ends in another task logs that its context cannot be detached.
    """

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - as theirs
        init(self, *args, **kwargs)
        with _start_guard:
            self._self_invocation.suspend()  # the seam, as above

    return __init__


def _is_text(event: Any) -> bool:
    return bool(event.type == "content_block_delta" and event.delta.type == "text_delta")


def _text_stream(_: None) -> Any:
    """Read texts through the stream that is measured, not around it; what is yielded is what anthropic 2 yields."""

    def texts(stream: Any) -> Iterator[str]:
        for event in stream:
            if _is_text(event):
                yield event.delta.text

    return property(lambda self: texts(self) if self.__wrapped__.text_stream is not None else None)


def _text_stream_async(_: None) -> Any:
    """Do the same for async streams."""

    async def texts(stream: Any) -> Any:
        async for event in stream:
            if _is_text(event):
                yield event.delta.text

    return property(lambda self: texts(self) if self.__wrapped__.text_stream is not None else None)


_STOCK = "opentelemetry.instrumentation.genai."
_LIBRARIES = {
    "openai": _Library("openai", f"{_STOCK}openai", "OpenAIInstrumentor", _openai_mends),
    "anthropic": _Library("anthropic", f"{_STOCK}anthropic", "AnthropicInstrumentor", _anthropic_mends),
}

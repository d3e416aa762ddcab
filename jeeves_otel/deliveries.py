# SPDX-License-Identifier: Apache-2.0
"""Keep account of what exporters have delivered, keep what an endpoint has certainly not taken, and say what is lost.

In: batches on their way, and how each attempt ended. Out: later attempts with what waits; counts of what is lost; one line
at the end of the process about what it has recorded and not delivered.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jeeves_otel import failsafe
from jeeves_otel.stock_logs import forget_cause, last_cause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Sized

_ITEMS = {"traces": "span", "metrics": "metric point", "logs": "log record"}
_KEPT = 2_048  # as many as wait in a queue of the SDK


class ExportFailed(Exception):
    """A batch did not arrive."""


class Delivery:
    """The account of one exporter. Written by the thread that exports, read by the one that ends the process.

    Args:
        signal: ``traces``, ``metrics`` or ``logs``.
        target: Where it goes, for people.
    """

    def __init__(self, signal: str, target: str) -> None:
        self.signal = signal
        self.target = target
        self.queue: Sized = ()
        self.waiting: list[Any] = []
        self._missing = 0
        self._asked = False

    def send(self, batch: Any, export: Callable[[Any], Any]) -> Any:
        """Send *batch* by *export*; return the result, as the SDK wants it."""
        raise NotImplementedError

    def refuse(self, batch: Any, error: Exception) -> None:
        """Note that *batch* cannot be sent at all."""
        raise NotImplementedError

    def owed(self) -> int:
        """Return how many items no endpoint has confirmed and, at the end of the process, none will."""
        return len(self.queue) + len(self.waiting) + self._missing

    def cause(self) -> str:
        """Return why nothing arrives, as far as that is known; else empty."""
        return last_cause(self.signal) or ("no answer" if self._asked else "")

    def _attempt(self, part: Any, export: Callable[[Any], Any]) -> tuple[Any, Exception | None]:
        """Return the result and, if the endpoint has not confirmed *part*, what went wrong."""
        forget_cause(self.signal)
        self._asked = True
        try:
            result = export(part)
        except Exception as error:  # noqa: BLE001 - as above
            return failure(self.signal), error
        finally:
            self._asked = False
        return result, None if result is None or result.name == "SUCCESS" else ExportFailed()

    def _note(self, error: Exception | None) -> None:
        """Say a first failure and a first success after one; at the end of the process `undelivered` says all."""
        site = f"export.{self.signal}"
        if error is None:
            lost = failsafe.counts().get(f"lost.{self.signal}", 0) if failsafe.is_failing(site) else 0
            so_far = _listed([_number(lost, self.signal)], "lost since the process started") if lost else ""
            failsafe.note_recovery(site, so_far)
        elif _ending.begun:
            failsafe.count(site)
        else:
            failsafe.swallow(
                site,
                error,
                f"{self.signal} do not reach {_place(self.target, [self.cause()])}; the application is not affected",
            )

    def _lose(self, number: int) -> None:
        if number > 0:
            failsafe.count(f"lost.{self.signal}", number)


class _Items(Delivery):
    """Spans or log records.

    Those that the endpoint has certainly not taken, because it was down or too busy, wait for the next export; the
    stock exporters drop them after ten seconds. What it may have taken is not sent twice, and what it refuses is lost.
    """

    def __init__(self, signal: str, target: str) -> None:
        super().__init__(signal, target)
        asked_for = os.environ.get(f"OTEL_{'BSP' if signal == 'traces' else 'BLRP'}_MAX_EXPORT_BATCH_SIZE", "").strip()
        self._at_once = int(asked_for) if asked_for.isdecimal() else 512  # as the SDK reads it

    def send(self, batch: Any, export: Callable[[Any], Any]) -> Any:
        self.waiting += batch
        size = max(self._at_once, len(batch))
        result = None if self.waiting else export(batch)
        while self.waiting:
            part = self.waiting[:size]
            result, error = self._attempt(part, export)
            if error is None:
                del self.waiting[: len(part)]
                self._note(None)
                continue
            if not _NOT_TAKEN.search(last_cause(self.signal)):
                self._drop(len(part))
            self._drop(len(self.waiting) - _KEPT)
            self._note(error)
            break
        return result

    def refuse(self, batch: Any, error: Exception) -> None:
        self.waiting[:0] = batch
        self._drop(len(batch))
        self._note(error)

    def _drop(self, number: int) -> None:
        """Lose the *number* items that have waited longest; none if it is not positive."""
        self._lose(number)
        del self.waiting[: max(0, number)]
        if _ending.begun:
            self._missing += max(0, number)


class _Points(Delivery):
    """Points of metrics: not lost, as long as they are totals, before the process ends, because each export has them all."""

    def send(self, batch: Any, export: Callable[[Any], Any]) -> Any:
        self._missing = _points(batch)
        result, error = self._attempt(batch, export)
        if error is None:
            self._missing = 0
        elif _is_delta(batch):
            self._lose(self._missing)
        self._note(error)
        return result

    def refuse(self, batch: Any, error: Exception) -> None:
        self._missing = _points(batch)
        self._note(error)


# What the stock exporters say where nothing was taken. Any other reason, and none, may be an answer that came too late.
_NOT_TAKEN = re.compile(
    r"NewConnection|ConnectTimeout|NameResolution|UNAVAILABLE|RESOURCE_EXHAUSTED|answered (?:429|50[234])"
)
_UNREACHED = re.compile("Connect|Resolution|UNAVAILABLE|no reason")


class _Ending:
    """Whether the last exports of the process have begun, and what was lost before."""

    begun = False
    lost_before: dict[str, int]

    def __init__(self) -> None:
        self.lost_before = {}


_deliveries: list[Delivery] = []
_ending = _Ending()


def delivery_to(signal: str, target: str) -> Delivery:
    """Return the account of a new exporter of *signal*, ``traces``, ``metrics`` or ``logs``, to *target*."""
    delivery = (_Points if signal == "metrics" else _Items)(signal, target)
    _deliveries.append(delivery)
    return delivery


def batching(processor: Any, exporter: Any) -> Any:
    """Return *processor*, one of the SDK's that batch, whose queue is accounted to *exporter*, one of `reporting`."""
    # What waits has no public name in opentelemetry-sdk 1.45; without it, it is not in the account.
    queue = getattr(getattr(processor, "_batch_processor", None), "_queue", None)
    if queue is not None:
        exporter.delivery.queue = queue
    return processor


def begin_ending() -> None:
    """Note that the last exports of this process begin: what fails from now on is said by `undelivered`, at once."""
    _ending.begun = True
    lost = ((signal, failsafe.counts().get(f"lost.{signal}", 0)) for signal in _ITEMS)
    _ending.lost_before = {signal: number for signal, number in lost if number}


def undelivered(within: str = "") -> str:
    """Return one line about what this process has recorded and not delivered; empty if there is nothing.

    Args:
        within: The time that was allowed, if it is over, as in `` within 2 s``.
    """
    owing: dict[str, dict[str, str]] = {}  # {target: {how many of what: why}}
    for delivery in sorted(_deliveries, key=lambda each: list(_ITEMS).index(each.signal)):
        if owed := delivery.owed():
            owing.setdefault(delivery.target, {})[_number(owed, delivery.signal)] = delivery.cause()
    said = [
        f"{_listed(list(owed), 'not delivered')}{within} to {_place(target, owed.values())}"
        for target, owed in owing.items()
    ]
    if before := [_number(number, signal) for signal, number in _ending.lost_before.items()]:
        said.append(_listed(before, "lost before the end"))
    return "; ".join(said)


def _place(target: str, causes: Iterable[str]) -> str:
    """Return *target*, and in brackets why nothing arrives there."""
    known = ", ".join(dict.fromkeys(filter(None, causes))) or "no reason given"
    return f"{target} ({known}{': does a Collector listen there?' if _UNREACHED.search(known) else ''})"


def _number(number: int, signal: str) -> str:
    return f"{number} {_ITEMS[signal]}{'' if number == 1 else 's'}"


def _listed(phrases: Sequence[str], what: str) -> str:
    verb = "was" if len(phrases) == 1 and phrases[0].startswith("1 ") else "were"
    return f"{' and '.join(filter(None, [', '.join(phrases[:-1]), phrases[-1]]))} {verb} {what}"


def _points(data: Any) -> int:
    return sum(len(metric.data.data_points) for metric in _metrics(data))


def _is_delta(data: Any) -> bool:
    temporalities = (getattr(metric.data, "aggregation_temporality", None) for metric in _metrics(data))
    return any(each is not None and each.name == "DELTA" for each in temporalities)


def _metrics(data: Any) -> Iterable[Any]:
    return (
        metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    )


def _forget_parent() -> None:
    # What the parent owes, the parent delivers.
    global _ending  # noqa: PLW0603 - one end per process
    for delivery in _deliveries:
        delivery.waiting.clear()
    _deliveries.clear()
    _ending = _Ending()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_parent)


def failure(signal: str) -> Any:
    """Return what an exporter of *signal* returns when it fails."""
    module, name = {
        "traces": ("opentelemetry.sdk.trace.export", "SpanExportResult"),
        "metrics": ("opentelemetry.sdk.metrics.export", "MetricExportResult"),
        "logs": ("opentelemetry.sdk._logs.export", "LogRecordExportResult"),
    }[signal]
    return getattr(import_module(module), name).FAILURE

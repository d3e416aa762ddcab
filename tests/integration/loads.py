# SPDX-License-Identifier: Apache-2.0
"""Clients that note what a server has acknowledged, and a scraper that notes what no page may show."""

from __future__ import annotations

import http.client
import time
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, NamedTuple

from tests.helpers import samples_of
from tests.integration.launching import get

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers import Samples

CLIENTS = 4
# A process in company writes a snapshot once per second; a busy machine may let it wait.
INTERVAL_S = 1.0
LATE_S = 0.5
_TOTALS = ("_total", "_count", "_sum", "_bucket")


class Acknowledged(NamedTuple):
    """One answered request: which process has answered, and when the client had the answer (`time.monotonic`)."""

    process: int
    time_s: float


class Load:
    """Clients that send requests as fast as they are answered. What they have got, whole, is acknowledged.

    Args:
        port: Of the server.
    """

    def __init__(self, port: int) -> None:
        self.acknowledged: dict[str, Acknowledged] = {}
        self.unanswered = 0
        self.killed: dict[int, float] = {}
        self._port = port
        self._lock = Lock()
        self._over = Event()
        self._clients = [Thread(target=self._send, daemon=True) for _ in range(CLIENTS)]
        for client in self._clients:
            client.start()

    def _send(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._over.is_set():
            try:
                connection.request("GET", "/1")
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                connection.close()  # the process goes: what was not answered was not acknowledged
                with self._lock:
                    self.unanswered += 1
                continue
            assert response.status == 200
            now = Acknowledged(int(response.headers["X-Process"]), time.monotonic())
            self.acknowledged[response.headers["X-Trace-ID"]] = now
        connection.close()

    def processes(self) -> set[int]:
        """Return who has answered so far."""
        return {each.process for each in list(self.acknowledged.values())}

    def least_on_page(self) -> int:
        """Return how many requests a page that is asked for now must show at least.

        A server may record a request after its last byte has left, so each client may have one that is not there yet; and
        of a killed process one interval may be lost.
        """
        lost = sum(
            each.time_s > self.killed[each.process] - INTERVAL_S - LATE_S
            for each in list(self.acknowledged.values())
            if each.process in self.killed
        )
        return len(self.acknowledged) - CLIENTS - lost

    def is_over(self) -> bool:
        """Return whether the clients were asked to end."""
        return self._over.is_set()

    def stop(self) -> None:
        """End the clients."""
        self._over.set()
        for client in self._clients:
            client.join()


class Scraper:
    """Asks for the page again and again, and notes what cannot be: a total that went back, or requests that are missing.

    Args:
        port: Of the page.
        load: Whose requests the page must show.
    """

    def __init__(self, port: int, load: Load) -> None:
        self.pages = 0
        self.wrong: list[str] = []
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._load = load
        self._before: Samples = {}
        self._thread = Thread(target=self._scrape, daemon=True)
        self._thread.start()

    def _scrape(self) -> None:
        while not self._load.is_over():
            least = self._load.least_on_page()
            try:
                samples = samples_of(get(self._url))
            except (OSError, http.client.HTTPException):
                continue  # nobody serves at this moment, or who did ended in the middle of the page
            self.pages += 1
            shown = requests_on(samples)
            if shown < least:
                self.wrong.append(f"page {self.pages} shows {shown:g} requests, {least} were acknowledged")
            for series, value in self._before.items():
                if series[0].endswith(_TOTALS) and samples.get(series, 0.0) < value:
                    self.wrong.append(f"page {self.pages}: {series} was {value} and is {samples.get(series)}")
            self._before = samples

    def stop(self) -> None:
        """Wait for the last page."""
        self._thread.join()


def requests_on(samples: Samples) -> float:
    """Return how many requests of a `Load` are on a page."""
    total = "jeeves_http_requests_total"
    return sum(value for (name, labels), value in samples.items() if name == total and ("path", "/{item}") in labels)


def after_each(act: Callable[[], None], times: int, pause: Callable[[], float]) -> None:
    """Call *act* so many *times*, each after as many seconds as *pause* returns."""
    for _ in range(times):
        time.sleep(pause())  # the moment of what happens then, not a wait for anything
        act()

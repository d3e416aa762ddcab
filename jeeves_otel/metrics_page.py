# SPDX-License-Identifier: Apache-2.0
"""Keep the metrics page of one process: what it has measured, what its siblings have, and the ports where it is served.

In: a reader of the SDK, and settings. Out: one page, the same whichever process of the service answers, at ports that one
of them has; when that one ends, another takes its place.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from jeeves_otel.failsafe import failsafe
from jeeves_otel.prometheus import PrometheusCollector
from jeeves_otel.shared_folder import FolderRefused, folder_of
from jeeves_otel.shared_page import Holder, Member
from jeeves_otel.snapshots import limits_of, merges_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
    from opentelemetry.sdk.resources import Resource

    from jeeves_otel.metrics_server import MetricsServer
    from jeeves_otel.registry import Registry
    from jeeves_otel.settings import Settings

    Place = tuple[str, str, int]  # the variable that names the port, host, port


def places(settings: Settings) -> list[Place]:
    """Return where the page is to be served: ``(variable that names the port, host, port)``."""
    found = []
    if settings.metrics_port is not None:
        found.append(("METRICS_PORT", settings.metrics_host, settings.metrics_port))
    if "prometheus" in settings.metrics_exporters and settings.prometheus_port:
        found.append(("OTEL_EXPORTER_PROMETHEUS_PORT", settings.prometheus_host, settings.prometheus_port))
    return found


def holder(settings: Settings, resource: Resource) -> Holder | None:
    """Return what keeps the counts of the workers of this process, as long as it lives; None where nobody has a page."""
    with failsafe("page.hold"), suppress(FolderRefused):  # which each page says for itself
        if settings.metrics_exporters or places(settings):
            return Holder(_folder_of(settings, resource))
    return None


def _folder_of(settings: Settings, resource: Resource) -> Path:
    addresses = [_address(host, port) for _, host, port in places(settings)]
    return folder_of(resource.attributes, addresses, os.environ, settings.folder)


class MetricsPage:
    """The page, served and shared from now on. Safe from several threads.

    ``said`` has one phrase per port, ``problems`` what does not work and why.

    Args:
        reader: A cumulative in-memory reader, attached to the meter provider.
        translate: What maps the collected metrics to the promised ones.
        settings: Where the page is, and what is shared.
        registry: How gauges are merged, and how many values a label may have.
        resource: Of this process.
    """

    def __init__(
        self,
        reader: InMemoryMetricReader,
        translate: Callable[[MetricsData], MetricsData],
        settings: Settings,
        registry: Registry,
        resource: Resource,
    ) -> None:
        self.collector = PrometheusCollector(reader, translate)
        self.said: list[str] = []
        self.problems: list[str] = []
        self._servers: dict[Place, MetricsServer] = {}
        self._places = places(settings)
        self._member: Member | None = None
        self._join(settings, registry, resource)
        self._serve_first()

    def _join(self, settings: Settings, registry: Registry, resource: Resource) -> None:
        try:
            self._member = Member(
                _folder_of(settings, resource),
                self.collector.collect,
                merges_of(registry),
                limits=limits_of(registry),
                interval_s=settings.snapshot_interval_s,
                every_turn=self._serve,
            )
        except FolderRefused as error:
            self.problems.append(f"the page shows this process alone, should there be several of the service: {error}")
        else:
            self.collector.whole = self._member.whole

    def _serve_first(self) -> None:
        for place in self._places:
            variable, host, port = place
            error = self._serve_at(place)
            # What one process serves, no other can. A stranger's port is worth a line.
            if error is not None and (self._member is None or not self._member.has_company()):
                self.problems.append(_no_page(variable, _address(host, port), error))
            else:
                self.said.append(f"metrics → http://{_address(host, port)}/metrics")

    def _serve(self) -> None:
        """Take the ports that nobody has any more."""
        for place in self._places:
            if place not in self._servers:
                self._serve_at(place)

    def _serve_at(self, place: Place) -> OSError | None:
        from jeeves_otel.metrics_server import MetricsServer  # noqa: PLC0415 - http.server only where it serves

        _, host, port = place
        try:
            self._servers[place] = MetricsServer(self.collector, host, port)
        except OSError as error:
            return error
        return None

    def leave(self) -> None:
        """Leave what was measured to the siblings. The servers' threads are daemons and end with the process."""
        if self._member is not None:
            self._member.leave()

    def discard(self) -> None:
        """Stop serving and sharing."""
        self.leave()
        for server in self._servers.values():
            with failsafe("page.discard"):
                server.shutdown()

    def abandon(self) -> None:
        """Close what a forked child has inherited; all of it is the parent's, who goes on."""
        if self._member is not None:
            with failsafe("page.abandon"):
                self._member.forget()
        for server in self._servers.values():
            with failsafe("page.abandon"):
                server.abandon()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _no_page(variable: str, address: str, error: OSError) -> str:
    return (
        f"no /metrics server: {address} cannot be bound ({error.strerror or error}), and is taken as soon as it is free; "
        f"choose another port with {variable}, another address with {variable.replace('PORT', 'HOST')}, or turn it off "
        f"with {variable}=0. The application runs on."
    )

# SPDX-License-Identifier: Apache-2.0
"""Plug the providers into OpenTelemetry's distro and configurator entry points.

``opentelemetry-instrument`` loads `JeevesDistro` for the instrumentations and `JeevesConfigurator` for the providers.
Neither ever raises: what cannot be set up is said once, and the application runs.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context, get_current
from opentelemetry.instrumentation.distro import BaseDistro  # type: ignore[attr-defined]  # untyped upstream
from opentelemetry.propagators.textmap import TextMapPropagator

from jeeves_otel import failsafe
from jeeves_otel.documents import did_you_mean
from jeeves_otel.registry import Registry, RegistryError, load
from jeeves_otel.settings import Settings, malformed_numbers

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from jeeves_otel.providers import Telemetry

_log = logging.getLogger("jeeves_otel")
_telemetry: Telemetry | None = None

# What the dashboards read; everything else that the instrumentation offers describes the machine, not the process.
_RUNTIME_METRICS: dict[str, list[str] | None] = {
    "process.cpu.time": ["user", "system"],
    "process.memory.usage": None,
    "process.memory.virtual": None,
    "process.open_file_descriptor.count": None,
    "cpython.gc.collections": None,
    "cpython.gc.collected_objects": None,
    "cpython.gc.uncollectable_objects": None,
}


_LOADER_LOG = logging.getLogger("opentelemetry.instrumentation.auto_instrumentation._load")


def _owns_sqlalchemy() -> bool:
    """Return whether our integration measures SQLAlchemy; the contrib package would count and trace it again."""
    disabled = {name.strip() for name in os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    return disabled.isdisjoint({"jeeves_sqlalchemy", "*"}) and not _is_old_sqlalchemy()


def _is_old_sqlalchemy() -> bool:
    """Return whether the installed SQLAlchemy is older than what our integration measures."""
    try:
        return version("sqlalchemy").startswith(("0.", "1."))
    except PackageNotFoundError:
        return False


def _not_about_sqlalchemy(record: logging.LogRecord) -> bool:
    """Drop the loader's line that the contrib package cannot instrument SQLAlchemy 2.1: we do."""
    return not str(record.msg).startswith('sqlalchemy only instruments "')


class JeevesDistro(BaseDistro):  # type: ignore[misc]  # as above
    """The distribution: sets the opt-ins that instrumentations read at import, and activates instrumentations."""

    def _configure(self, **kwargs: Any) -> None:
        with failsafe.failsafe("distro.configure"):
            # Read once, when the first instrumentation is imported; the user's value wins.
            os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database,gen_ai_latest_experimental")
            if _owns_sqlalchemy():
                _LOADER_LOG.addFilter(_not_about_sqlalchemy)

    def load_instrumentor(self, entry_point: EntryPoint, **kwargs: Any) -> None:
        """Activate one instrumentation; one that fails is skipped, counted and named, and the others go on."""
        try:
            if entry_point.name == "system_metrics":
                self._load_runtime_metrics(entry_point, **kwargs)
            elif entry_point.name == "sqlalchemy" and _owns_sqlalchemy():
                _log.debug("instrumentation sqlalchemy is left out: jeeves_sqlalchemy measures SQLAlchemy")
            else:
                super().load_instrumentor(entry_point, **kwargs)
        except ModuleNotFoundError:
            raise  # the library is not installed: the launcher passes over it in silence
        except Exception as error:  # noqa: BLE001 - an instrumentation must not keep the others from loading
            failsafe.swallow(f"instrument.{entry_point.name}", error)

    @staticmethod
    def _load_runtime_metrics(entry_point: EntryPoint, **kwargs: Any) -> None:
        settings, _ = Settings.from_env(os.environ)
        if settings.runtime_metrics and not settings.sdk_disabled:
            entry_point.load()(config=dict(_RUNTIME_METRICS)).instrument(**kwargs)


class JeevesConfigurator:
    """The configurator: builds all providers from the environment and makes them global."""

    def configure(self, **kwargs: Any) -> None:
        """Set up telemetry for this process, once."""
        global _telemetry  # noqa: PLW0603 - one set of providers per process
        _speak_up()
        if _telemetry is not None:
            return
        try:
            _telemetry = start(dict(os.environ))
        except Exception as error:  # noqa: BLE001 - the application runs without telemetry rather than not at all
            _log.error(
                "jeeves-otel could not start, the application runs without telemetry: %s: %s",
                type(error).__name__,
                error,
            )


def start(environ: dict[str, str]) -> Telemetry | None:
    """Build providers for *environ*, make them global, and say what is exported where.

    Returns:
        What was set up; None if ``OTEL_SDK_DISABLED`` is true.
    """
    settings, findings = Settings.from_env(environ)
    for finding in malformed_numbers(environ):
        findings.append(finding)
        os.environ.pop(finding.where.key, None)
    _log.setLevel(settings.log_level.upper())
    for finding in findings:
        _log.warning("%s", finding)
    if settings.config_file:
        _log.warning(
            "OTEL_CONFIG_FILE is not read: jeeves-otel is configured by environment variables (jeeves-otel settings)"
        )
    _mend_propagators()
    if settings.sdk_disabled:
        _log.info("jeeves-otel is off: OTEL_SDK_DISABLED is true")
        return None
    failsafe.set_strict(settings.strict)
    registry = _load_registry(settings)
    for label in sorted({label for labels in settings.declared_labels for label in labels} - _label_names(registry)):
        _log.warning(
            "JEEVES_OTEL_DECLARE: no metric has a label `%s`; %s", label, did_you_mean(label, _label_names(registry))
        )
    from jeeves_otel.closing import Closer  # noqa: PLC0415 - as below
    from jeeves_otel.prometheus import serve_current  # noqa: PLC0415 - the SDK is imported only where it is used
    from jeeves_otel.providers import build  # noqa: PLC0415 - as above

    built = build(settings, registry)
    trace.set_tracer_provider(built.tracer_provider)
    metrics.set_meter_provider(built.meter_provider)
    if built.logger_provider is not None:
        from opentelemetry._logs import set_logger_provider  # noqa: PLC0415 - only where log records leave

        set_logger_provider(built.logger_provider)
    serve_current(built.page if settings.metrics_exporters else None)
    Closer(built.stops(), settings.exit_timeout_s)
    for problem in built.problems:
        _log.warning("%s", problem)
    _log.info("%s", built.summary())
    return built


def _label_names(registry: Registry) -> set[str]:
    return {label.name for metric in registry.metrics.values() for label in metric.labels}


def _load_registry(settings: Settings) -> Registry:
    """Return the registry of the profiles asked for, or the default one if they cannot be used."""
    from jeeves_otel.checks import load_checked  # noqa: PLC0415 - only at start

    try:
        return load_checked(settings.profiles)
    except RegistryError as refused:
        error = refused
    _log.warning(
        "JEEVES_OTEL_PROFILES=%s cannot be used, going on with the profile jeeves. Findings, as `jeeves-otel check` prints them:\n%s",
        ",".join(settings.profiles),
        error,
    )
    return load()


class _NoPropagation(TextMapPropagator):
    """Carry nothing, and give back the context that came in."""

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        return context if context is not None else get_current()

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        """Write nothing."""

    @property
    def fields(self) -> set[str]:
        return set()


def _mend_propagators() -> None:
    """Give ``OTEL_PROPAGATORS=none`` a propagator that works.

    opentelemetry-api 1.45 answers ``none`` with a composite of nothing, whose extract returns no context at all: every
    request of an instrumented server then fails. Remove when it returns the context that it was given.
    """
    with failsafe.failsafe("distro.propagators"):
        if propagate.extract({}) is None:
            propagate.set_global_textmap(_NoPropagation())


class _StandIn(logging.StreamHandler[Any]):
    """Write our lines to stderr as long as the application has not configured logging."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            self.stream = sys.stderr
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        """Stay silent: if stderr cannot be written (a full disk), there is no place left to say so."""


def _speak_up() -> None:
    if not _log.handlers:
        handler = _StandIn()
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)

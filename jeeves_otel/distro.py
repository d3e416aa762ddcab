# SPDX-License-Identifier: Apache-2.0
"""Plug the providers into OpenTelemetry's distro and configurator entry points.

``opentelemetry-instrument`` loads `JeevesDistro` for the instrumentations and `JeevesConfigurator` for the providers.
Neither ever raises: what cannot be set up is said once, and the application runs.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import cache, partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry.instrumentation.distro import BaseDistro  # type: ignore[attr-defined]  # untyped upstream

from jeeves_otel import awaiting, failsafe, launch_tree, propagators, supervisors
from jeeves_otel.documents import Finding, Level, Place, did_you_mean
from jeeves_otel.owners import Owners
from jeeves_otel.registry import Registry, RegistryError, load
from jeeves_otel.settings import Settings, malformed_numbers

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from jeeves_otel.providers import Telemetry

_log = logging.getLogger("jeeves_otel")
_telemetry: Telemetry | None = None
# Workers and other children that a launched process launches have nothing new to say.
_level = logging.DEBUG if launch_tree.is_descendant(os.environ) else logging.INFO

# What the dashboards read; everything else that the instrumentation offers describes the machine, not the process, and
# what it says of the garbage collector is, in a forked child, its parents' too; see `garbage`.
_RUNTIME_METRICS: dict[str, list[str] | None] = {
    "process.cpu.time": ["user", "system"],
    "process.memory.usage": None,
    "process.memory.virtual": None,
    "process.open_file_descriptor.count": None,
}


# They are about the process, not about a library that is imported one day.
_OF_THE_PROCESS = frozenset({"logging", "system_metrics"})
_LOADER_LOG = logging.getLogger("opentelemetry.instrumentation.auto_instrumentation._load")
_GROUP = "opentelemetry_instrumentor"
_FASTAPI_EXPORTS = "FASTAPI_OTEL_AUTO_CONFIGURE"


@cache
def _owners() -> Owners:
    """Return who owns what in this process; the entry points of everything that is installed are read once."""
    settings, _ = Settings.from_env(os.environ)
    disabled = {name.strip() for name in os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    return Owners((entry.name for entry in entry_points(group=_GROUP)), disabled, settings.owners)


def _not_about_sqlalchemy(record: logging.LogRecord) -> bool:
    """Drop the loader's line that the contrib package cannot instrument SQLAlchemy 2.1: we do."""
    return not str(record.msg).startswith('sqlalchemy only instruments "')


class JeevesDistro(BaseDistro):  # type: ignore[misc]  # as above
    """The distribution: sets the opt-ins that instrumentations read at import, and activates instrumentations."""

    def _configure(self, **kwargs: Any) -> None:
        with failsafe.failsafe("distro.configure"):
            # Read once, when the first instrumentation is imported; the user's value wins.
            for name, value in _opt_ins(Settings.from_env(os.environ)[0]).items():
                os.environ.setdefault(name, value)
            if _owners().owner_over("sqlalchemy"):
                _LOADER_LOG.addFilter(_not_about_sqlalchemy)

    def load_instrumentor(self, entry_point: EntryPoint, **kwargs: Any) -> None:
        """Activate one instrumentation when its library is imported, unless another owns that; one that fails is counted, and all others go on."""
        name, owners = entry_point.name, _owners()
        try:
            settings, _ = Settings.from_env(os.environ)
            if owners.is_disabled(name) or supervisors.is_resource_tracker(sys.orig_argv):
                return
            if owner := owners.owner_over(name):
                owners.note_left_out(name, f"{owner} measures the same")
                return
            if name == "system_metrics" and not (settings.runtime_metrics and not settings.sdk_disabled):
                return
            modules = frozenset() if name in _OF_THE_PROCESS else awaiting.modules_of(entry_point)
            activate = partial(self._activate, entry_point, settings, **kwargs)
            if waits := bool(modules) and not awaiting.any_imported(modules):
                awaiting.activate_on_import(modules, entry_point.module, activate, f"instrument.{name}")
            else:
                activate()
            owners.note_activated(name, _distribution(entry_point), on_import=waits)
        except ModuleNotFoundError:
            raise  # the library is not installed: the launcher passes over it in silence
        except Exception as error:  # noqa: BLE001 - an instrumentation must not keep the others from loading
            failsafe.swallow(f"instrument.{name}", error)

    def _activate(self, entry_point: EntryPoint, settings: Settings, **kwargs: Any) -> None:
        """Load and activate *entry_point* with what the settings mean for it."""
        if entry_point.name == "system_metrics":
            from jeeves_otel.garbage import observe_garbage  # noqa: PLC0415 - only where it is measured

            instrumentor = partial(entry_point.load(), config=dict(_RUNTIME_METRICS))
            instrumentor().instrument(**kwargs)
            if sys.implementation.name == "cpython":
                observe_garbage(metrics.get_meter("jeeves_otel"))
            if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
                # There is one instance, and it measures the process that it was last made in.
                os.register_at_fork(after_in_child=failsafe.guarded("fork.runtime_metrics", instrumentor))
        elif entry_point.name == "jeeves_sqlalchemy":
            entry_point.load()().instrument(statement_text="sql" in settings.content)
        elif entry_point.name == "logging":
            # Its handler would take part in logging.basicConfig; it is hung in only where log records leave.
            leaves = bool(settings.logs_exporters)
            entry_point.load()().instrument(inject_trace_context=True, enable_log_auto_instrumentation=leaves, **kwargs)
        else:
            super().load_instrumentor(entry_point, **kwargs)


def _opt_ins(settings: Settings) -> dict[str, str]:
    """Return standard variables, with which instrumentations do what our settings say."""
    opt_ins = {"OTEL_SEMCONV_STABILITY_OPT_IN": "http,database,gen_ai_latest_experimental"}
    if {"prompts", "completions", "tools"}.intersection(settings.content):
        opt_ins["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "SPAN_ONLY"
    return opt_ins


def _distribution(entry_point: EntryPoint) -> str:
    if entry_point.dist is None:
        return entry_point.value
    metadata = entry_point.dist.metadata  # parsed once here, and again for each of its properties
    return f"{metadata['Name']} {metadata['Version']}"


def say_owners() -> None:
    """Say who measures what, and what was left out and why; the launcher calls this after all instrumentations."""
    if _telemetry is not None and (line := _owners().summary()):
        _log.log(_level, "%s", line)


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
        What was set up; None if ``OTEL_SDK_DISABLED`` is true, and in helpers that run nothing of the application.
    """
    if supervisors.is_resource_tracker(sys.orig_argv):
        return None
    settings, findings = Settings.from_env(environ)
    for finding in malformed_numbers(environ):
        findings.append(finding)
        os.environ.pop(finding.where.key, None)
    _log.setLevel(settings.log_level.upper())
    findings += _unknown_owners()
    for finding in findings:
        _log.warning("%s", finding)
    if settings.config_file:
        _log.warning(
            "OTEL_CONFIG_FILE is not read: jeeves-otel is configured by environment variables (jeeves-otel settings)"
        )
    _keep_fastapi_inside()
    propagators.install(settings.baggage)
    if settings.sdk_disabled:
        _log.info("jeeves-otel is off: OTEL_SDK_DISABLED is true")
        return None
    failsafe.set_strict(settings.strict)
    registry = _load_registry(settings)
    for label in sorted({label for labels in settings.declared_labels for label in labels} - _label_names(registry)):
        _log.warning(
            "JEEVES_OTEL_DECLARE: no metric has a label `%s`; %s", label, did_you_mean(label, _label_names(registry))
        )
    launch_tree.token(os.environ)
    from jeeves_otel.prometheus import serve_current  # noqa: PLC0415 - the SDK is imported only where it is used
    from jeeves_otel.providers import Telemetry  # noqa: PLC0415 - as above

    built = Telemetry(settings, registry)
    if not supervisors.is_fork_server(sys.orig_argv):
        built.open()
    supervisors.watch(built)
    trace.set_tracer_provider(built.tracer_provider)
    metrics.set_meter_provider(built.meter_provider)
    if built.logger_provider is not None:
        from opentelemetry._logs import set_logger_provider  # noqa: PLC0415 - only where log records leave

        set_logger_provider(built.logger_provider)
    serve_current(built.page if settings.metrics_exporters else None)
    for problem in built.problems:
        _log.warning("%s", problem)
    _log.log(_level, "%s", built.summary())
    return built


def _unknown_owners() -> list[Finding]:
    owners, place = _owners(), Place("environment", 0, "JEEVES_OTEL_OWNERS")
    return [
        Finding(
            "unknown-owner",
            place,
            f"no instrumentation is called `{name}`",
            did_you_mean(name, owners.installed),
            Level.ADVICE,
        )
        for name in owners.unknown()
    ]


def _keep_fastapi_inside() -> None:
    """Keep FastAPI from adding exporters of its own to our providers: they would send everything twice, content too."""
    if os.environ.get(_FASTAPI_EXPORTS, "").strip().lower() in {"1", "true", "yes", "on"}:
        os.environ[_FASTAPI_EXPORTS] = "false"
        _log.warning("%s is off: the exporters of jeeves-otel send what FastAPI measures", _FASTAPI_EXPORTS)


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

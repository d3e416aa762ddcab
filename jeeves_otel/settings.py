# SPDX-License-Identifier: Apache-2.0
"""Turn an environment mapping into one frozen `Settings`, and describe every variable.

In: ``os.environ`` or any mapping. Out: settings, and the findings about what was malformed or mistyped; a malformed
value falls back to its default. Standard ``OTEL_*`` variables come first and keep their meaning; those that the SDK or
an exporter reads by itself (endpoints, headers, certificates, limits) are not repeated here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jeeves_otel.content import asked_by, kinds
from jeeves_otel.documents import Finding, Level, Place, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "JEEVES_OTEL_"
# Read by the SDK itself; opentelemetry-sdk 1.45, opentelemetry.sdk.environment_variables.
STANDARD_NUMBERS = tuple(
    f"OTEL_{name}"
    for name in (
        "ATTRIBUTE_COUNT_LIMIT", "ATTRIBUTE_VALUE_LENGTH_LIMIT", "BLRP_EXPORT_TIMEOUT", "BLRP_MAX_EXPORT_BATCH_SIZE",
        "BLRP_MAX_QUEUE_SIZE", "BLRP_SCHEDULE_DELAY", "BSP_EXPORT_TIMEOUT", "BSP_MAX_EXPORT_BATCH_SIZE",
        "BSP_MAX_QUEUE_SIZE", "BSP_SCHEDULE_DELAY", "EVENT_ATTRIBUTE_COUNT_LIMIT", "LINK_ATTRIBUTE_COUNT_LIMIT",
        "LOGRECORD_ATTRIBUTE_COUNT_LIMIT", "LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT", "SPAN_ATTRIBUTE_COUNT_LIMIT",
        "SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "SPAN_EVENT_COUNT_LIMIT", "SPAN_LINK_COUNT_LIMIT",
    )
)  # fmt: skip
MASK = "***"
# The setting about the headers of responses is a switch.
_SECRET = re.compile(r"(?<!JEEVES_OTEL_RESPONSE_)HEADERS|TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/\s]+@")
_QUERY = re.compile(r"(?<=://)([^?\s]*)\?\S*")
_STANDARD_EXPORTERS = ("otlp", "console", "prometheus", "none")
_LONGEST_MS = 86_400_000
_MOST_SETS = 1_000
_PROVIDER = re.compile(r"[\w.-]{1,64}")
_HOST = re.compile(r"(\*\.)?[\w.:-]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}

NAMES = ("views", "semconv", "both")
UNMAPPED = ("pass", "drop")
PROTOCOLS = ("http/protobuf", "grpc")
EXEMPLAR_FILTERS = ("trace_based", "always_on", "always_off")
PROBES = (
    *("/health", "/health/live", "/health/ready", "/healthz", "/live", "/livez", "/ready", "/readyz"),
    "/metrics",
)
LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(ValueError):
    """A value does not fit its variable; the message says what fits."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable: where its value goes, how it is read, what it means."""

    name: str
    field: str
    parse: Callable[[str], Any]
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What the distribution was told, defaults filled in. Secrets are read by the exporters and never stand here.

    ``metrics_port`` is None where the server is off. Intervals are seconds, > 0.
    """

    sdk_disabled: bool = False
    traces_exporters: tuple[str, ...] = ("otlp",)
    metrics_exporters: tuple[str, ...] = ("otlp",)
    logs_exporters: tuple[str, ...] = ()
    otlp_protocol: str = "http/protobuf"
    otlp_traces_protocol: str | None = None
    otlp_metrics_protocol: str | None = None
    otlp_logs_protocol: str | None = None
    sampler: str = "parentbased_traceidratio"
    sampler_arg: str | None = None
    exemplar_filter: str = "trace_based"
    id_generator: str = "random"
    config_file: str | None = None
    metric_export_interval_s: float = 15.0
    metric_export_timeout_s: float = 30.0
    prometheus_host: str = "localhost"
    prometheus_port: int = 9464
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    profiles: tuple[str, ...] = ("jeeves",)
    names: str = "views"
    unmapped: str = "pass"
    declared: tuple[tuple[tuple[str, str], ...], ...] = ()
    owners: tuple[str, ...] = ()
    llm_providers: tuple[tuple[str, str, int | None], ...] = ()
    runtime_metrics: bool = True
    log_level: str = "info"
    content: tuple[str, ...] = ()
    redaction: str | None = None
    baggage: tuple[str, ...] = ()
    http_excluded: tuple[str, ...] = PROBES
    response_headers: bool = True
    excluded_urls: tuple[str, ...] = ()
    fastapi_excluded_urls: tuple[str, ...] = ()
    starlette_excluded_urls: tuple[str, ...] = ()
    exit_timeout_s: float = 2.0
    flush_on_sigterm: bool = True
    folder: str | None = None
    snapshot_interval_s: float = 1.0
    strict: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> tuple[Settings, list[Finding]]:
        """Return the settings in *environ* and a finding for each value or name that does not fit."""
        values: dict[str, Any] = {}
        findings = _unknown_names(environ)
        for variable in VARIABLES:
            text = environ.get(variable.name, "").strip()
            if not text:  # the OpenTelemetry specification: empty means unset
                continue
            try:
                values[variable.field] = variable.parse(text)
            except SettingsError as error:
                where = Place("environment", 0, variable.name)
                message = f"`{mask(variable.name, text)}` is not {variable.kind}"
                findings.append(
                    Finding("malformed-setting", where, message, f"{error}; going on with {variable.default or 'none'}")
                )
        if not environ.get("JEEVES_OTEL_CONTENT", "").strip():  # a malformed value keeps everything back
            values["content"] = asked_by(environ)
        if environ.get("OTEL_PROPAGATORS", "").strip():
            values.setdefault("baggage", ("*",))  # who names the propagators has asked for what they do
        if "metrics_port" not in values:
            values["metrics_port"] = _default_port(values.get("metrics_exporters", ("otlp",)))
        if not values.get("metrics_exporters", True) or values["metrics_port"] == 0:
            values["metrics_port"] = None
        return cls(**values), findings

    @classmethod
    def of_process(cls) -> Settings:
        """Return the settings in the environment of this process, for what is activated without the distro."""
        return cls.from_env(os.environ)[0]

    @property
    def declared_labels(self) -> tuple[dict[str, str], ...]:
        """The label sets of ``JEEVES_OTEL_DECLARE``."""
        return tuple(dict(pairs) for pairs in self.declared)

    def protocol_for(self, signal: str) -> str:
        """Return the OTLP protocol of ``traces``, ``metrics`` or ``logs``."""
        own: str | None = getattr(self, f"otlp_{signal}_protocol")
        return own or self.otlp_protocol


def _default_port(exporters: tuple[str, ...]) -> int | None:
    # With the prometheus exporter the standard host and port say where the page is.
    return None if "prometheus" in exporters else 9090


def mask(name: str, value: str) -> str:
    """Return *value* as it may be printed: secrets, and user information and queries in URLs, replaced."""
    return MASK if _SECRET.search(name) else _QUERY.sub(rf"\1?{MASK}", _USERINFO.sub(f"{MASK}@", value))


def describe(environ: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """Return ``(variable, value in force, where it comes from, meaning)`` for every variable, secrets masked."""
    rows = [_describe_one(variable, environ.get(variable.name, "").strip()) for variable in VARIABLES]
    if Settings.from_env(environ)[0].metrics_port is None and rows[0][1] != "0":
        rows[0] = (rows[0][0], "off", "because of OTEL_METRICS_EXPORTER", rows[0][3])
    others = sorted(name for name in environ if name.startswith("OTEL_") and name not in _BY_NAME)
    return rows + [(name, mask(name, environ[name]), "environment", "Read by OpenTelemetry itself.") for name in others]


def _describe_one(variable: Variable, given: str) -> tuple[str, str, str, str]:
    origin = "environment" if given else "default"
    try:
        variable.parse(given or variable.default)
    except SettingsError:
        origin = f"default; {mask(variable.name, given)} is not {variable.kind}" if given else origin
        given = ""
    return variable.name, mask(variable.name, given or variable.default), origin, variable.meaning


def malformed_numbers(environ: Mapping[str, str]) -> list[Finding]:
    """Return a finding for each standard number that is none; its ``where.key`` names the variable.

    The SDK reads these by itself, and some of them end its start where they are malformed.
    """
    findings = []
    for name in STANDARD_NUMBERS:
        text = environ.get(name, "").strip()
        if text and not (text.isascii() and text.isdigit()):
            message = f"`{mask(name, text)}` is not a whole number"
            hint = "write digits only; going on with the default of OpenTelemetry"
            findings.append(Finding("malformed-setting", Place("environment", 0, name), message, hint))
    return findings


def _unknown_names(environ: Mapping[str, str]) -> list[Finding]:
    findings = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in _BY_NAME:
            own = [known for known in _BY_NAME if known.startswith(PREFIX)]
            findings.append(
                Finding(
                    "unknown-setting",
                    Place("environment", 0, name),
                    f"`{name}` is not a setting",
                    did_you_mean(name, own),
                )
            )
        elif name.startswith("METRICS_") and name not in _BY_NAME:
            near = did_you_mean(name, ["METRICS_PORT", "METRICS_HOST"])
            if near.startswith("did"):
                findings.append(
                    Finding(
                        "unknown-setting",
                        Place("environment", 0, name),
                        f"`{name}` is not a setting",
                        near,
                        Level.ADVICE,
                    )
                )
    return findings


# ---- how values are read ---------------------------------------------------------------------------------------------


def _truth(text: str) -> bool:
    if text.lower() in {"true", "1"}:
        return True
    if text.lower() in {"false", "0"}:
        return False
    raise SettingsError("write true, false, 1 or 0")


def _standard_truth(text: str) -> bool:
    return text.lower() == "true"  # the OpenTelemetry specification: anything else is false


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 65_535:  # noqa: PLR2004 - the highest TCP port
        return int(text)
    raise SettingsError("write a TCP port, 0 to 65535 (0 turns the server off)")


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= _LONGEST_MS:
        raise SettingsError("write milliseconds, more than 0 and at most a day")
    return value / 1_000


def _folder(text: str) -> str:
    if Path(text).is_absolute():
        return text
    raise SettingsError("write an absolute path: processes of one service may start in different folders")


def _list(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _paths(text: str) -> tuple[str, ...]:
    if text.lower() == "none":
        return ()
    paths = _list(text)
    if not all(path.startswith(("/", "*")) for path in paths):
        raise SettingsError("write paths that begin with / or *, separated by commas, or none")
    return paths


def _expressions(text: str) -> tuple[str, ...]:
    expressions = _list(text)
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise SettingsError("write regular expressions, separated by commas") from error
    return expressions


def _exporters(text: str) -> tuple[str, ...]:
    names = tuple(name.lower() if name.lower() in _STANDARD_EXPORTERS else name for name in _list(text))
    return () if "none" in names else names


def _kinds_of_content(text: str) -> tuple[str, ...]:
    asked_for = tuple(name.lower() for name in _list(text))
    for name in asked_for:
        if name not in {*kinds(), "all", "none"}:
            raise SettingsError(did_you_mean(name, [*kinds(), "all", "none"]))
    if len(asked_for) > 1 and {"all", "none"} & set(asked_for):
        raise SettingsError("all and none stand alone")
    return tuple(kinds()) if asked_for == ("all",) else tuple(name for name in asked_for if name != "none")


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() in allowed:
            return text.lower()
        raise SettingsError(did_you_mean(text.lower(), allowed))

    return parse


def _declared(text: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Read ``agent=planner|writer; provider=openai,model=gpt-4o`` into one label set per combination."""
    sets: list[tuple[tuple[str, str], ...]] = []
    for clause in filter(None, (part.strip() for part in text.split(";"))):
        combinations: list[tuple[tuple[str, str], ...]] = [()]
        for pair in clause.split(","):
            label, separator, values = (part.strip() for part in pair.partition("="))
            if not separator or not label or not all(value.strip() for value in values.split("|")):
                raise SettingsError(
                    "write label=value|value, more labels of one set after a comma, more sets after a semicolon"
                )
            if combinations and any(label == known for known, _ in combinations[0]):
                raise SettingsError(f"the label {label} stands twice in one set; separate alternatives by |")
            combinations = [(*known, (label, value.strip())) for known in combinations for value in values.split("|")]
            if len(sets) + len(combinations) > _MOST_SETS:
                raise SettingsError(f"declare at most {_MOST_SETS} label sets")
        sets += combinations
    return tuple(sets)


def _llm_providers(text: str) -> tuple[tuple[str, str, int | None], ...]:
    """Read ``llamaserver=http://localhost:8080; azure=*.openai.azure.com`` into ``(provider, host, port)``."""
    rules: dict[tuple[str, int | None], str] = {}
    for clause in filter(None, (part.strip() for part in text.split(";"))):
        provider, separator, addresses = (part.strip() for part in clause.partition("="))
        if not separator or not _PROVIDER.fullmatch(provider):
            raise SettingsError("write provider=address|address, more providers after a semicolon")
        for address in addresses.split("|"):
            server = _server(address.strip())
            if rules.setdefault(server, provider) != provider:
                raise SettingsError(f"{server[0]} stands for two providers; a server has one, whatever the path")
    return tuple((provider, host, port) for (host, port), provider in rules.items())


def _server(address: str) -> tuple[str, int | None]:
    """Return host and port of ``host``, ``host:port`` or a URL, whose path says nothing here."""
    try:
        url = urlsplit(address if "://" in address else f"//{address}")
        host, port = url.hostname or "", _DEFAULT_PORTS.get(url.scheme) if url.port is None else url.port
    except ValueError:
        host, port = "", None
    if not _HOST.fullmatch(host) or port == 0 or url.scheme not in {"", *_DEFAULT_PORTS} or url.username is not None:
        raise SettingsError("write a server as host, host:port or http(s)://host:port, with *. in front for a domain")
    return host, port


VARIABLES: tuple[Variable, ...] = (
    Variable("METRICS_PORT", "metrics_port", _port, "a port", "9090", "Port of the /metrics server; 0 turns it off."),
    Variable("METRICS_HOST", "metrics_host", str, "an address", "127.0.0.1", "Address of the /metrics server; 0.0.0.0 in a container that is scraped from outside."),
    Variable("JEEVES_OTEL_PROFILES", "profiles", _list, "a list", "jeeves", "Profiles of promised metrics, by name or path of a YAML file, separated by commas."),
    Variable("JEEVES_OTEL_NAMES", "names", _choice(*NAMES), "one of views, semconv, both", "views", "Which names leave over OTLP: the promised ones (views), the conventions' (semconv), or both; with both, an instrument of ours whose name Prometheus would turn into a promised one stays behind."),
    Variable("JEEVES_OTEL_UNMAPPED", "unmapped", _choice(*UNMAPPED), "one of pass, drop", "pass", "What becomes of metrics that no view maps: pass them on under their standard names, or drop them."),
    Variable("JEEVES_OTEL_DECLARE", "declared", _declared, "a list of label sets", "", "Label sets that exist with 0 from the start and always keep their names: `agent=planner|writer; provider=openai,model=gpt-4o`."),
    Variable("JEEVES_OTEL_OWNERS", "owners", _list, "a list", "", "Instrumentations (names of entry points) to activate although another one owns their library; the line at start says who owns what."),
    Variable("JEEVES_OTEL_LLM_PROVIDERS", "llm_providers", _llm_providers, "a list of providers and their servers", "", "Providers of LLM calls by the server in the client's base URL: `llamaserver=http://localhost:8080; azure=*.openai.azure.com`. A server is a host (any port), host:port or a URL (default port of the scheme); more servers of one provider after |. Other servers keep the name that the client's library gives."),
    Variable("JEEVES_OTEL_RUNTIME_METRICS", "runtime_metrics", _truth, "true or false", "true", "Whether metrics of the process and the Python runtime are measured."),
    Variable("JEEVES_OTEL_LOG_LEVEL", "log_level", _choice(*LOG_LEVELS), "one of debug, info, warning, error", "info", "How much the distribution says about itself; warning leaves out the line at start."),
    Variable("JEEVES_OTEL_CONTENT", "content", _kinds_of_content, "a list of kinds of content", "none", "Which kinds of content may leave, of prompts, completions, tools, sql, queries, headers, exceptions; or all, or none. [What each of them is](content.md)."),
    Variable("JEEVES_OTEL_REDACTION", "redaction", str, "a path", "", "YAML file of further attributes to leave out and patterns to mask. [How to write it](../howto/privacy.md)."),
    Variable("JEEVES_OTEL_BAGGAGE", "baggage", _list, "a list", "", "Keys of W3C Baggage that may leave with calls and come in with requests; `*` stands for anything. All of them if OTEL_PROPAGATORS is set and this is not."),
    Variable("JEEVES_OTEL_HTTP_EXCLUDED", "http_excluded", _paths, "a list of paths", ",".join(PROBES), "Paths of requests of which neither spans nor metrics are made, separated by commas; * stands for any text, a slash at the end does not matter, none excludes nothing."),
    Variable("JEEVES_OTEL_RESPONSE_HEADERS", "response_headers", _truth, "true or false", "true", "Whether HTTP responses carry X-Trace-ID and X-Span-ID of the server's span, sampled or not; those that the application sets itself stay."),
    Variable("JEEVES_OTEL_EXIT_TIMEOUT", "exit_timeout_s", _milliseconds, "a time in milliseconds", "2000", "Time that telemetry may take when the process exits, in milliseconds; what is not delivered by then is lost, and said."),
    Variable("JEEVES_OTEL_FLUSH_ON_SIGTERM", "flush_on_sigterm", _truth, "true or false", "true", "Whether SIGTERM, and SIGINT where it has its default, are let through only when telemetry is delivered or its time is over, unless the application handles them."),
    Variable("JEEVES_OTEL_FOLDER", "folder", _folder, "a path", "", "Folder for what the processes of a service share to answer with one page; it must exist. Default: TMPDIR or /tmp, /dev/shm where that cannot be written. [What is in it](../howto/workers.md)."),
    Variable("JEEVES_OTEL_SNAPSHOT_INTERVAL", "snapshot_interval_s", _milliseconds, "a time in milliseconds", "1000", "Time between two snapshots that a process with siblings writes, in milliseconds: as much of its counts is lost when it is killed with -9. Longer where a snapshot would cost more than 2 % of a CPU."),
    Variable("JEEVES_OTEL_STRICT", "strict", _truth, "true or false", "false", "Re-raise failures of the telemetry instead of swallowing them. For tests of the telemetry itself, never in production."),
    Variable("OTEL_SDK_DISABLED", "sdk_disabled", _standard_truth, "true or false", "false", "Turns all telemetry off."),
    Variable("OTEL_TRACES_EXPORTER", "traces_exporters", _exporters, "a list", "otlp", "Where spans go: otlp, console, none, or any installed exporter."),
    Variable("OTEL_METRICS_EXPORTER", "metrics_exporters", _exporters, "a list", "otlp", "Where metrics go: otlp, prometheus, console, none, or any installed exporter. none turns the /metrics server off too."),
    Variable("OTEL_LOGS_EXPORTER", "logs_exporters", _exporters, "a list", "none", "Where log records go: otlp, console, none. Off unless asked for: records of libraries may quote user data."),
    Variable("OTEL_EXPORTER_OTLP_PROTOCOL", "otlp_protocol", _choice(*PROTOCOLS), "one of http/protobuf, grpc", "http/protobuf", "Protocol of OTLP; grpc needs the extra jeeves-otel[grpc]."),
    Variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "otlp_traces_protocol", _choice(*PROTOCOLS), "one of http/protobuf, grpc", "", "Protocol of OTLP for spans only."),
    Variable("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "otlp_metrics_protocol", _choice(*PROTOCOLS), "one of http/protobuf, grpc", "", "Protocol of OTLP for metrics only."),
    Variable("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "otlp_logs_protocol", _choice(*PROTOCOLS), "one of http/protobuf, grpc", "", "Protocol of OTLP for log records only."),
    Variable("OTEL_TRACES_SAMPLER", "sampler", str, "a sampler", "parentbased_traceidratio", "Head sampler; always_on for tail sampling in a gateway."),
    Variable("OTEL_TRACES_SAMPLER_ARG", "sampler_arg", str, "an argument", "0.1 with the default sampler", "Argument of the sampler; ratio, 0..1."),
    Variable("OTEL_METRICS_EXEMPLAR_FILTER", "exemplar_filter", _choice(*EXEMPLAR_FILTERS), "one of trace_based, always_on, always_off", "trace_based", "Which measurements may become exemplars: those inside sampled spans, all, or none."),
    Variable("OTEL_PYTHON_ID_GENERATOR", "id_generator", str, "an id generator", "random", "Generator of trace and span ids: random, or any that is installed."),
    Variable("OTEL_PYTHON_EXCLUDED_URLS", "excluded_urls", _expressions, "a list of regular expressions", "", "HTTP requests with a URL that one of these matches anywhere are excluded, besides JEEVES_OTEL_HTTP_EXCLUDED; separated by commas."),
    Variable("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "fastapi_excluded_urls", _expressions, "a list of regular expressions", "", "The same for FastAPI applications, in place of OTEL_PYTHON_EXCLUDED_URLS."),
    Variable("OTEL_PYTHON_STARLETTE_EXCLUDED_URLS", "starlette_excluded_urls", _expressions, "a list of regular expressions", "", "The same for Starlette applications, in place of OTEL_PYTHON_EXCLUDED_URLS."),
    Variable("OTEL_CONFIG_FILE", "config_file", str, "a path", "", "Declarative configuration of OpenTelemetry. Not read, because it knows no views of this package; one line says so."),
    Variable("OTEL_METRIC_EXPORT_INTERVAL", "metric_export_interval_s", _milliseconds, "a time in milliseconds", "15000", "Time between two exports of metrics, in milliseconds."),
    Variable("OTEL_METRIC_EXPORT_TIMEOUT", "metric_export_timeout_s", _milliseconds, "a time in milliseconds", "30000", "Time that one export of metrics may take, in milliseconds."),
    Variable("OTEL_EXPORTER_PROMETHEUS_HOST", "prometheus_host", str, "an address", "localhost", "Address of the page with OTEL_METRICS_EXPORTER=prometheus."),
    Variable("OTEL_EXPORTER_PROMETHEUS_PORT", "prometheus_port", _port, "a port", "9464", "Port of the page with OTEL_METRICS_EXPORTER=prometheus; 0 turns it off."),
)  # fmt: skip
_BY_NAME = {variable.name: variable for variable in VARIABLES}
assert {variable.field for variable in VARIABLES} == {each.name for each in fields(Settings)}  # noqa: S101 - the table and the class are one

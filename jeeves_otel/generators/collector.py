# SPDX-License-Identifier: Apache-2.0
"""Turn the templates of the Collector's files, the kinds of content and the table of variables into ``collector/*.yaml``.

In: ``data/collector/*.yaml``, in which ``<NAME>`` stands for a variable of the environment. Out: files that a Collector
reads without anything of ours, and the page that lists the variables. A default stands in one place, `VARIABLES`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from jeeves_otel.content import Kind
    from jeeves_otel.registry import Registry

_TEMPLATES = Path(__file__).parents[1] / "data" / "collector"
_PLACE = re.compile(r"<([A-Z][A-Z_]+)>")
_HEADER = """# Generated from jeeves_otel/data/{sources} by `jeeves-otel render`.
# Change the source and run that command; edits here are overwritten and fail CI.
"""


class Variable(NamedTuple):
    """One variable that a file of the Collector reads; ``default`` None where there is none, and a start without fails."""

    name: str
    default: str | None
    meaning: str


# fmt: off
VARIABLES = (
    Variable("COLLECTOR_TRACES_EXPORTERS", "[otlp_grpc/traces]", "Where spans go; [debug] counts them on the log."),
    Variable("COLLECTOR_METRICS_EXPORTERS", "[otlp_grpc/rw_hop]", "Where metrics go; [otlp_http/prometheus] is the OTLP receiver of Prometheus 3, [debug] counts them on the log."),
    Variable("COLLECTOR_TRACES_ENDPOINT", "jaeger:4317", "OTLP over gRPC of the trace backend, host and port."),
    Variable("COLLECTOR_REMOTE_WRITE_URL", "http://prometheus:9090/api/v1/write", "Remote write of Prometheus, or of whatever speaks it."),
    Variable("COLLECTOR_PROMETHEUS_OTLP_URL", "http://prometheus:9090/api/v1/otlp/v1/metrics", "OTLP receiver of Prometheus 3."),
    Variable("COLLECTOR_OTLP_GRPC", "127.0.0.1:4317", "Where OTLP over gRPC is received."),
    Variable("COLLECTOR_OTLP_HTTP", "127.0.0.1:4318", "Where OTLP over HTTP is received."),
    Variable("COLLECTOR_HOP", "127.0.0.1:14317", "Where metrics pass inside the Collector; never to be published."),
    Variable("COLLECTOR_HEALTH", "127.0.0.1:13133", "Where health is asked for, at /; it says nothing of backends."),
    Variable("COLLECTOR_SELF_HOST", "127.0.0.1", "Address of the Collector's own metrics."),
    Variable("COLLECTOR_SELF_PORT", "8888", "Port of the Collector's own metrics, at /metrics."),
    Variable("COLLECTOR_LOG_LEVEL", "info", "One of debug, info, warn, error."),
    Variable("COLLECTOR_QUEUE_DIRECTORY", "/var/lib/otelcol/queue", "What waits for a backend; one directory per Collector, on a volume that outlives it, twice as large as both queues."),
    Variable("COLLECTOR_QUEUE_FSYNC", "false", "Whether each write reaches the disk before it is acknowledged, for machines that lose power."),
    Variable("COLLECTOR_TRACES_QUEUE_BYTES", "536870912", "Most that waits of spans, in bytes; then clients are asked to keep theirs."),
    Variable("COLLECTOR_METRICS_QUEUE_BYTES", "134217728", "Most that waits of metrics, in bytes."),
    Variable("COLLECTOR_TRACES_TIMEOUT", "10s", "Deadline of one request to the trace backend."),
    Variable("COLLECTOR_HOP_TIMEOUT", "15s", "Deadline of one request to Prometheus; a stop in an outage takes as long."),
    Variable("COLLECTOR_METRICS_WINDOW_SECONDS", "7200", "Age above which points are dropped, in seconds; out_of_order_time_window of Prometheus."),
    Variable("COLLECTOR_MEMORY_PERCENT", "75", "Share of the memory (of the container, if it is limited) above which requests are refused."),
    Variable("COLLECTOR_INSTANCE_ID", "${env:HOSTNAME}", "service.instance.id of telemetry that has none; of a container, its name."),
    Variable("JEEVES_OTEL_CONTENT", "none", "Which kinds of content may leave, as for the SDK: a list of kinds, or all, or none."),
    Variable("COLLECTOR_ALERTMANAGER_URL", "http://alertmanager:9093", "Alertmanager, without /api."),
    Variable("COLLECTOR_TRACES_CA_FILE", "", "PEM file of the authority of the trace backend; empty: those of the system."),
    Variable("COLLECTOR_TRACES_CERT_FILE", "", "Our own certificate, for mutual TLS."),
    Variable("COLLECTOR_TRACES_KEY_FILE", "", "Its key."),
    Variable("COLLECTOR_TRACES_TOKEN_FILE", None, "File with the token."),
    Variable("COLLECTOR_TRACES_USERNAME", None, "Name."),
    Variable("COLLECTOR_TRACES_PASSWORD", None, "Password."),
    Variable("COLLECTOR_METRICS_CA_FILE", "", "PEM file of the authority of Prometheus; empty: those of the system."),
    Variable("COLLECTOR_METRICS_CERT_FILE", "", "Our own certificate, for mutual TLS."),
    Variable("COLLECTOR_METRICS_KEY_FILE", "", "Its key."),
    Variable("COLLECTOR_METRICS_TOKEN_FILE", None, "File with the token."),
    Variable("COLLECTOR_METRICS_USERNAME", None, "Name."),
    Variable("COLLECTOR_METRICS_PASSWORD", None, "Password."),
    Variable("COLLECTOR_TENANT", None, "Whose metrics these are, for a store that serves several."),
    Variable("COLLECTOR_CLUSTER", "jeeves-core", "Label cluster of every series in a store that several Prometheus, or sidecars, write to."),
    Variable("COLLECTOR_ENVIRONMENT", "development", "Label environment of the same."),
)
# fmt: on
_BY_NAME = {variable.name: variable for variable in VARIABLES}


def files(registry: Registry, kinds: Iterable[Kind]) -> dict[str, str]:
    """Return every generated file of the Collector, ``{path: text}``, paths relative to the project's root."""
    kinds = tuple(kinds)
    parts = {
        "@content@": "\n".join(_statements(kinds)),
        "@labels@": "\n".join(
            f"      - {name}" for name in _labels(registry, {key for kind in kinds for key in kind.cut})
        ),
    }
    rendered = {f"collector/{name}": _filled(name, text, parts) for name, text in _templates()}
    return {**rendered, "docs/reference/collector.md": _page()}


def _templates() -> list[tuple[str, str]]:
    """Return ``(name, text)`` of every template: the sidecar, then its overlays."""
    paths = sorted(_TEMPLATES.glob("*.yaml"), key=lambda path: (path.name != "sidecar.yaml", path.name))
    return [(path.name, path.read_text(encoding="utf-8")) for path in paths]


def _filled(name: str, template: str, parts: Mapping[str, str]) -> str:
    """Return *template* with its variables, the table of them, and *parts* in the place of their marks."""
    from_registry = any(mark in template for mark in parts)
    header = _HEADER.format(sources=f"collector/{name}" + (", content.yaml and the registry" if from_registry else ""))
    text = template.replace("@variables@", "\n".join(_comment(_variables_of(template))))
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return header + "#\n" + _PLACE.sub(lambda match: _reference(_BY_NAME[match[1]]), text)


def _labels(registry: Registry, cut: set[str]) -> list[str]:
    """Return the attributes that are recorded with instruments, but those that are URLs, or called like anything."""
    recorded = {
        spelling
        for instrument in registry.instruments.values()
        for attribute in instrument.attributes
        for spelling in registry.spelled(attribute)
    }
    return sorted(name for name in recorded - cut if "." in name)


def _variables_of(template: str) -> list[Variable]:
    """Return the variables that *template* reads, in the order of the table."""
    names = set(_PLACE.findall(template)) | ({"JEEVES_OTEL_CONTENT"} if "@content@" in template else set())
    return [variable for variable in VARIABLES if variable.name in names]


def _reference(variable: Variable) -> str:
    return f"${{env:{variable.name}}}" if variable.default is None else f"${{env:{variable.name}:-{variable.default}}}"


def _shown(variable: Variable) -> str:
    return {None: "required", "": "empty"}.get(variable.default, variable.default or "")


def _comment(variables: list[Variable]) -> Iterator[str]:
    rows = [("variable", "default"), *((variable.name, _shown(variable)) for variable in variables)]
    name_width, width = (max(len(row[column]) for row in rows) for column in (0, 1))
    yield f"# {'variable':{name_width}}  {'default':{width}}  what it does"
    for variable in variables:
        yield f"# {variable.name:{name_width}}  {_shown(variable):{width}}  {variable.meaning}"


def _page() -> str:
    lines = [
        "<!-- Generated from jeeves_otel/generators/collector.py and jeeves_otel/data/collector by `jeeves-otel render`.",
        "     Change the source and run that command; edits here are overwritten and fail CI. -->",
        "",
        "# Settings of the Collector",
        "",
        "What the files in `collector/` read from the environment of the Collector.",
        "A file names the overlays that need the variable; [what each file is for](../../collector/README.md).",
        "",
        "| variable | default | read by | meaning |",
        "|---|---|---|---|",
    ]
    readers = [(name, set(_variables_of(text))) for name, text in _templates()]
    for variable in VARIABLES:
        default = "required" if variable.default is None else f"`{variable.default}`" if variable.default else "empty"
        files = ", ".join(f"`{name}`" for name, read in readers if variable in read)
        lines.append(f"| `{variable.name}` | {default} | {files} | {variable.meaning} |")
    return "\n".join(lines) + "\n"


# ---- content ---------------------------------------------------------------------------------------------------------


def _statements(kinds: tuple[Kind, ...]) -> Iterator[str]:
    """Yield the groups of statements that take content out of spans and of their events, unless its kind is asked for.

    By default everything goes, with one pattern per attribute instead of one per kind. What it costs are patterns, and
    passes over all spans, so there are two and not one for each kind.
    """
    asked_for = _reference(_BY_NAME["JEEVES_OTEL_CONTENT"])
    nothing = f'"{asked_for}" == "none"'
    yield "      # Nothing is asked for: all kinds at once."
    yield from _groups([(kinds, "")], nothing)
    yield "      # Something is: kind by kind, but for those that may stay."
    yield from (f"      #   {kind.name}: {kind.meaning}" for kind in kinds)
    others = [((kind,), _unless(asked_for, kind)) for kind in kinds]
    yield from _groups(others, f'"{asked_for}" != "none"')


def _unless(asked_for: str, kind: Kind) -> str:
    """Return the condition that nobody has asked for *kind*."""
    return f'not IsMatch("{asked_for}", "(?i)(^|[ ,])({kind.name}|all)([ ,]|\\\\z)")'


def _groups(parts: Iterable[tuple[tuple[Kind, ...], str]], condition: str) -> Iterator[str]:
    """Yield one pass over spans and one over their events, in which each part goes under its own condition."""
    for context in ("span", "spanevent"):
        yield f"      - context: {context}"
        yield f"        conditions: [{_quoted(condition)}]"
        yield "        statements:"
        for kinds, where in parts:
            yield from (f"          - {_quoted(_where(each, where))}" for each in _removals(kinds, context))


def _where(statement: str, condition: str) -> str:
    """Return *statement* under a further *condition*, which may be empty."""
    if not condition:
        return statement
    return f"{statement} and {condition}" if " where " in statement else f"{statement} where {condition}"


def _removals(kinds: tuple[Kind, ...], context: str) -> Iterator[str]:
    """Yield what takes *kinds* out of a span or an event."""
    if names := [name for kind in kinds for name in kind.attributes]:
        yield f'delete_matching_keys({context}.attributes, "{_pattern(names)}")'
    for key in (key for kind in kinds for key in kind.cut):
        url = f'{context}.attributes["{key}"]'
        yield f'replace_pattern({url}, "[?#].*", "") where {url} != nil'
        yield f'replace_pattern({url}, "://[^/\\\\s]+@", "://") where {url} != nil'
    if context == "span" and any(kind.statuses for kind in kinds):
        error_type = 'span.attributes["error.type"]'
        yield f'set(span.status.message, "") where {error_type} == nil'
        yield f'set(span.status.message, {error_type}) where span.status.message != ""'


def _pattern(names: Iterable[str]) -> str:
    """Return the regular expression that matches *names*, in which ``*`` stands for anything, as text of a statement.

    Sorted, and without a group to remember: so Go tries what they begin with once, and takes a third of the time.
    """
    choices = "|".join(re.escape(name).replace(r"\*", ".*") for name in sorted(names))
    return rf"(?s)^(?:{choices})\z".replace("\\", "\\\\")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

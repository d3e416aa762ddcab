# SPDX-License-Identifier: Apache-2.0
"""Turn the registry and the table of settings into reference pages.

In: typed objects. Out: Markdown, the same bytes for the same input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jeeves_otel.content import Kind
    from jeeves_otel.registry import Form, Instrument, Label, Metric, Profile, Registry, Source

_HEADER = """<!-- Generated from {source} by `jeeves-otel render`.
     Change the source and run that command; edits here are overwritten and fail CI. -->
"""


def metrics_page(registry: Registry) -> str:
    """Return the reference of every promised metric, by profile."""
    lines = [
        _HEADER.format(source="jeeves_otel/data/profiles"),
        "# Metrics",
        "",
        "What each profile promises: names, types, labels, values and buckets.",
        "Changing one of them is a breaking change.",
        "Where it comes from is the view: the instrument that is recorded, what is taken from it, and how a label is computed.",
        "",
    ]
    for profile in registry.profiles:
        lines += _profile_lines(profile)
    return "\n".join(lines).rstrip() + "\n"


def instruments_page(registry: Registry) -> str:
    """Return the reference of every instrument and its spellings."""
    lines = [
        _HEADER.format(source="jeeves_otel/data/instruments.yaml"),
        "# Instruments",
        "",
        "What code records into, under the names of the semantic conventions.",
        "Other spellings of the same measurement are read too; from one scope only the best that has data, in the order given.",
        "",
        "| instrument | kind | unit | stability | convention | other spellings | what it measures |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_instrument_row(instrument) for instrument in registry.instruments.values()]
    lines += ["", "## Attributes with several spellings", "", "| attribute | also read |", "|---|---|"]
    lines += [f"| `{names[0]}` | {_codes(names[1:])} |" for names in registry.spellings.values()]
    return "\n".join(lines) + "\n"


def settings_page(settings: Sequence[tuple[str, str, str]]) -> str:
    """Return the reference of every environment variable."""
    lines = [
        _HEADER.format(source="jeeves_otel/settings.py"),
        "# Settings",
        "",
        "Everything is set by environment variables, read once when the process starts.",
        "Standard `OTEL_*` variables keep their meaning and win over our defaults; those that are not listed here are read by OpenTelemetry itself.",
        "An empty value means unset.",
        "A malformed value falls back to the default with one line that says so.",
        "`jeeves-otel settings` prints what is in force, secrets masked.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {f'`{default}`' if default else 'unset'} | {_cell(meaning)} |"
        for name, default, meaning in settings
    ]
    return "\n".join(lines) + "\n"


def content_page(kinds: Iterable[Kind]) -> str:
    """Return the reference of what is kept back, kind by kind."""
    lines = [
        _HEADER.format(source="jeeves_otel/data/content.yaml"),
        "# Content",
        "",
        "What users have typed does not leave, by default: not with spans, not with log records, not with metrics.",
        "`JEEVES_OTEL_CONTENT` lists the kinds that may; [how to ask for them, and how to add rules](../howto/privacy.md).",
        "`*` stands for anything.",
        "",
    ]
    for kind in kinds:
        lines += [f"## `{kind.name}`", "", kind.meaning, ""]
        lines += [f"- {words}: {_codes(names)}" for words, names in _places(kind) if names]
        if kind.statuses:
            lines.append("- the description of a span's status gives way to `error.type`")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _places(kind: Kind) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "attributes left out", kind.attributes
    yield "URLs that lose query and user information", kind.cut
    yield "log events whose body is left out", kind.events
    yield "loggers of libraries whose lines leave without their text", kind.loggers
    yield "the same, but only of such lines", tuple(f"{logger}: {text}" for logger, text in kind.lines)
    yield "asked for by the standard variables, too", kind.asked_by


def _profile_lines(profile: Profile) -> Iterator[str]:
    yield f"## Profile `{profile.name}`"
    yield ""
    if profile.include:
        yield f"Includes {_codes(profile.include)}."
        yield ""
    for metric in profile.metrics:
        yield from _metric_lines(metric)


def _metric_lines(metric: Metric) -> Iterator[str]:
    yield f"### `{metric.name}`"
    yield ""
    yield f"{metric.help}"
    yield f"A {metric.type}{_unit_text(metric.unit)}, from {' plus '.join(_source_text(source) for source in metric.sources)}."
    if metric.buckets:
        yield f"Buckets: {', '.join(f'{bucket:g}' for bucket in metric.buckets)}."
    yield ""
    if metric.labels:
        yield "| label | computed from | values |"
        yield "|---|---|---|"
        for label in metric.labels:
            yield f"| `{label.name}` | {_label_source(label)} | {_label_values(label)} |"
        yield ""


def _unit_text(unit: str) -> str:
    return f" in {unit}" if unit in {"s", "By"} else ""


def _source_text(source: Source) -> str:
    conditions = [
        f"`{key}` {'is' if len(accepted) == 1 else 'is one of'} {', '.join('absent' if value is None else f'`{value}`' for value in accepted)}"
        for key, accepted in source.conditions.items()
    ]
    where = f" where {' and '.join(conditions)}" if conditions else ""
    taken = {"value": "", "histogram": "", "count": "the count of ", "sum": "the sum of "}[source.take]
    return f"{taken}`{source.instrument}`{where}"


def _label_source(label: Label) -> str:
    texts = [
        "".join(f"{literal}{{{key}}}" for literal, key in template.parts) + template.tail
        for template in label.templates
    ]
    text = ", else ".join(
        f"`{one.strip('{}') if one.count('{') == 1 and one[0] == '{' and one[-1] == '}' else one}`" for one in texts
    )
    if label.present is not None:
        return f"`{label.present}` if {text} is present, else `{label.absent}`"
    return f"{text}, `{label.absent}` if absent"


def _label_values(label: Label) -> str:
    zero = "; all exist with 0 from the start" if label.zero else ""
    if label.values:
        return _codes(label.values) + zero
    known = f"{_codes(label.known)} and others, " if label.known else ""
    return f"{known}at most {label.limit}, then `other`{zero}"


def _instrument_row(instrument: Instrument) -> str:
    others = [form for generation in instrument.generations for form in generation if form.name != instrument.name]
    cells = (
        f"`{instrument.name}`",
        instrument.kind,
        f"`{instrument.unit}`",
        instrument.stability,
        instrument.convention,
        "<br>".join(_form_text(form) for form in others) or "none",
        _cell(instrument.brief),
    )
    return f"| {' | '.join(cells)} |"


def _form_text(form: Form) -> str:
    return f"`{form.name}` ({form.unit}, {form.convention})"


def _codes(values: Sequence[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

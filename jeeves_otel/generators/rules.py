# SPDX-License-Identifier: Apache-2.0
"""Turn objectives and alerts into rule files for Prometheus: recording rules first, then what alerts on them.

In: `Objectives`. Out: ``collector/rules/*.yaml``, by the files that objectives and alerts name. The objectives of a file
share a group, so that an alert sees what was recorded in the same evaluation, and records have one name with the label
``slo``, so that one panel shows every objective. Windows of days are a group of their own, asked less often: each
evaluation reads all of their samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from jeeves_otel.promql import is_binary, pretty
from jeeves_otel.queries import Promql, Quantile, Share, Slower

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from decimal import Decimal

    from jeeves_otel.objectives import Alert, Objectives, Slo, Tier
    from jeeves_otel.queries import Duration

Rule = dict[str, Any]

# Of a raw counter a longer window costs too much at each evaluation; beyond, what was recorded is averaged, weighted by
# events, and not by time: a bad night with three requests is not half of a good day with a million.
_LONGEST_RAW_S = 6 * 3_600
_LONG_INTERVAL = "2m"  # below five minutes, after which an instant query no longer sees what was recorded
_STEP_S = 300  # of subqueries that ask how much of a window was seen
_HEADER = """# Generated from jeeves_otel/data/objectives and the profile by `jeeves-otel render`.
# Change the source and run that command; edits here are overwritten and fail CI.
"""


def files(objectives: Objectives) -> dict[str, str]:
    """Return the rule files, ``{path: text}``, paths relative to the project's root."""
    slos, alerts = (dict.fromkeys(each.file for each in promised) for promised in (objectives.slos, objectives.alerts))
    groups = {
        **{name: _groups_of([slo for slo in objectives.slos if slo.file == name], name) for name in slos},
        **{
            name: [group(name, [symptom_alert(alert) for alert in objectives.alerts if alert.file == name])]
            for name in alerts
        },
    }
    return {f"collector/rules/{name}.yaml": document({"groups": found}) for name, found in groups.items()}


def _groups_of(slos: list[Slo], name: str) -> list[Rule]:
    return [
        group(name, [rule for slo in slos for rule in (*records(slo), *burn_alerts(slo))]),
        group(
            f"{name}-long",
            [rule for slo in slos for rule in (*records(slo, long=True), *burn_alerts(slo, long=True))],
            _LONG_INTERVAL,
        ),
    ]


def group(name: str, rules: list[Rule], interval: str = "") -> Rule:
    """Return one group of *rules*."""
    return {"name": f"jeeves-{name}", **({"interval": interval} if interval else {}), "rules": rules}


# ---- objectives ------------------------------------------------------------------------------------------------------


def records(slo: Slo, *, long: bool = False) -> list[Rule]:
    """Return the recording rules of *slo*: events per window and their ratio; those of *long* windows, and the budget."""
    month = slo.period.text
    rules = [] if long else _traffic(slo)
    for window in slo.windows:
        if _is_long(window) == long:
            rules += [
                _record(slo, f"slo:total:rate{window.text}", _events(slo, "total", window)),
                _record(slo, f"slo:bad:rate{window.text}", _events(slo, "bad", window)),
            ]
    if not long:
        return [
            *rules,
            _record(slo, "slo:error_ratio:rate5m", _ratio(slo, "5m")),
            _record(slo, "slo:error_ratio:rate1h", _ratio(slo, "1h")),
            _record(slo, "slo:burn_rate:ratio1h", f"{_recorded('error_ratio:rate1h', slo)} / {plain(slo.budget)}"),
        ]
    rules += [_record(slo, f"slo:seen:ratio{window.text}", _seen(slo, window)) for window in slo.windows_to_be_seen]
    # What was not seen is no bad event: ten bad minutes after the start have used up no more than their part of a month.
    spent = (
        f"{_recorded(f'error_ratio:rate{month}', slo)} * {_recorded('period_seen:ratio', slo)} / {plain(slo.budget)}"
    )
    return [
        *rules,
        _record(slo, f"slo:error_ratio:rate{month}", _ratio(slo, month)),
        _record(slo, "slo:objective:ratio", f"vector({plain(1 - slo.budget)})"),
        _record(slo, "slo:period_seen:ratio", _seen(slo, slo.period)),
        _record(slo, "slo:budget_remaining:ratio", f"1 - {spent}"),
    ]


def burn_alerts(slo: Slo, *, long: bool = False) -> list[Rule]:
    """Return one alerting rule per tier of *slo*, those with *long* windows or the others."""
    return [_burn_alert(slo, tier) for tier in slo.tiers if _is_long(tier.long) == long]


def _is_long(window: Duration) -> bool:
    return window.seconds > _LONGEST_RAW_S


def _burn_alert(slo: Slo, tier: Tier) -> Rule:
    threshold = plain(slo.threshold(tier))
    long, short = tier.long.text, tier.short.text
    seconds = int(tier.long.seconds)
    conditions = [
        f"{_ratio(slo, long)} > {threshold}",
        f"{_ratio(slo, short)} > {threshold}",
        f"{_recorded(f'bad:rate{long}', slo)} * {seconds} >= {tier.bad}",
        f"{_recorded(f'total:rate{long}', slo)} * {seconds} >= {tier.events}",
    ]
    if tier.seen:
        conditions.append(f"{_recorded(f'seen:ratio{long}', slo)} >= {plain(tier.seen)}")
    return {
        "alert": slo.alert,
        "expr": pretty(" and ".join(conditions)),
        **({"keep_firing_for": tier.keep_firing_for.text} if tier.keep_firing_for.text else {}),
        "labels": {"severity": tier.severity, "tier": tier.name, "slo": slo.name, **slo.labels},
        "annotations": _burn_annotations(slo, tier),
    }


def _burn_annotations(slo: Slo, tier: Tier) -> dict[str, str]:
    gone = _spoken(slo.period.seconds / float(tier.burn))
    return {
        "summary": f"{slo.title}: the error budget burns {plain(tier.burn)} times too fast",
        "description": (
            f"{slo.meaning} Promised are {plain(slo.objective)} %; over the last {tier.long.text} and {tier.short.text} "
            f"more than {plain(slo.threshold(tier) * 100)} % were bad. So the budget of {slo.period.text} lasts {gone}."
        ),
        **slo.links,
    }


def _events(slo: Slo, which: str, window: Duration) -> str:
    """Return events per second; 0 where nothing happens, for a day also where nothing has happened since a deploy."""
    if _is_long(window):
        return f"avg_over_time({_recorded(f'{which}:rate5m', slo)}[{window.text}])"
    total, past = slo.sli.total_rate(window.text), f"sum({_recorded('traffic:max1d', slo)})"
    if which == "total":
        return f"{total} or 0 * {past}"
    # A histogram has a bucket for what is slow as soon as it has observed anything.
    there = f"({total} or {past})" if isinstance(slo.sli, Share) else past
    return f"{slo.sli.bad_rate(window.text)} or 0 * {there}"


def _traffic(slo: Slo) -> list[Rule]:
    """Return what remembers for a day that there was traffic.

    A process that has just started has no counters before the first event, and pushed counters of one that is gone end
    after five minutes.
    """
    return [
        _record(slo, "slo:traffic:rate5m", f"{slo.sli.total_rate('5m')} > 0"),
        _record(slo, "slo:traffic:max1d", f"max_over_time({_recorded('traffic:rate5m', slo)}[1d])"),
    ]


def _ratio(slo: Slo, window: str) -> str:
    """Return bad events over all events of *window*; nothing where there were none, instead of NaN."""
    return f"({_recorded(f'bad:rate{window}', slo)} / ({_recorded(f'total:rate{window}', slo)} > 0))"


def _seen(slo: Slo, window: Duration) -> str:
    steps = int(window.seconds // _STEP_S)
    return f"count_over_time({_recorded('total:rate5m', slo)}[{window.text}:{_STEP_S // 60}m]) / {steps}"


def _record(slo: Slo, name: str, expression: str) -> Rule:
    return {"record": name, "expr": pretty(expression), "labels": {"slo": slo.name}}


def _recorded(name: str, slo: Slo) -> str:
    return f'slo:{name}{{slo="{slo.name}"}}'


# ---- symptoms --------------------------------------------------------------------------------------------------------


def symptom_alert(alert: Alert) -> Rule:
    """Return the alerting rule of one symptom."""
    return {
        "alert": alert.name,
        "expr": pretty(_symptom(alert)),
        **({"for": alert.for_.text} if alert.for_.text else {}),
        **({"keep_firing_for": alert.keep_firing_for.text} if alert.keep_firing_for.text else {}),
        "labels": {"severity": alert.severity, **alert.labels},
        "annotations": {
            "summary": _filled(alert.summary, alert),
            "description": _filled(alert.description, alert),
            **alert.links,
        },
    }


def _symptom(alert: Alert) -> str:
    expression = alert.query.promql(alert.window.text)
    if alert.comparison:
        taken_apart = isinstance(alert.query, Promql) and is_binary(expression)  # shapes bind closer than a comparison
        expression = f"{f'({expression})' if taken_apart else expression} {alert.comparison} {plain(alert.threshold)}"
    if alert.floor and isinstance(alert.query, Share | Slower | Quantile):
        expression += f" and {alert.query.counted(alert.window.text)} >= {alert.floor}"
    return expression


def _filled(text: str, alert: Alert) -> str:
    """Return *text* with ``<above>``, ``<below>`` and ``<window>`` as a person writes them."""
    return (
        text.replace("<above>", _spoken_threshold(alert))
        .replace("<below>", _spoken_threshold(alert))
        .replace("<window>", _spoken(alert.window.seconds))
    )


def _spoken_threshold(alert: Alert) -> str:
    if isinstance(alert.query, Share | Slower):
        return f"{plain(alert.threshold * 100)} %"
    family = getattr(alert.query, "family", "")
    return f"{plain(alert.threshold)} s" if family.endswith("_seconds") else plain(alert.threshold)


# ---- writing ---------------------------------------------------------------------------------------------------------


def plain(number: Decimal) -> str:
    """Return *number* without an exponent and without zeros that say nothing."""
    return format(number.normalize(), "f")


def _spoken(seconds: float) -> str:
    """Return a length of time in the largest unit of which it has two or more, or one: ``2 days``, ``5 minutes``."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        count = round(seconds / length)
        if seconds >= 2 * length or (seconds >= length and seconds % length == 0):
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return f"{seconds:g} seconds"


class _Dumper(yaml.SafeDumper):
    """YAML as people write it: long texts as blocks, lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT001, FBT002 - PyYAML's shape
        return super().increase_indent(flow, indentless=False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def document(content: Mapping[str, Any] | Iterable[Any], header: str = _HEADER) -> str:
    """Return *content* as YAML below the header of generated files, keys in the order in which they are."""
    return header + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)

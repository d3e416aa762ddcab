# SPDX-License-Identifier: Apache-2.0
"""Turn severities, tiers and routing into files for Alertmanager, and into cases that say who is told of which alert.

In: `Objectives` and `Routing`. Out: ``collector/alertmanager.yaml``, which starts anywhere and tells nobody,
``collector/alertmanager-paging.yaml``, the same with receivers whose secrets are files, and ``tests/alertmanager/routes.yaml``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jeeves_otel.generators import rules
from jeeves_otel.objectives import SEVERITIES
from jeeves_otel.routing import DEFAULT, Inhibition

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jeeves_otel.objectives import Alert, Objectives
    from jeeves_otel.routing import Receiver, Route, Routing

Entry = dict[str, Any]

_HEADER = """# Generated from jeeves_otel/data/objectives and jeeves_otel/data/routing.yaml by `jeeves-otel render`.
# Change the source and run that command; edits here are overwritten and fail CI.
"""
_QUIET = """#
# Alertmanager behind Prometheus and, with alerts.yaml, behind the Collector; 0.27 or newer. Every route leads to its
# receiver, and no receiver is connected yet: alerts are kept, grouped and shown, and nobody is told.
#
#   alertmanager --config.file=alertmanager.yaml --web.listen-address=127.0.0.1:9093 --cluster.listen-address=
#
# alertmanager-paging.yaml is the same with receivers; docs/howto/alerting.md says how to turn it on.
"""
_PAGING = """#
# alertmanager.yaml with its receivers connected; docs/howto/alerting.md. Their secrets are files, of one line each:
#
{secrets}
#
# Alertmanager expands no variables. It reads a file when it has something to say, so a missing one is no error at the
# start; then every notification of that receiver fails, and says so in the log.
"""
# A group may hold alerts of several texts, and then nothing is common to them; PagerDuty refuses an event without one.
_SUMMARY = (
    "{{ with .Alerts.Firing }}{{ (index . 0).Annotations.summary }}"
    "{{ else }}{{ (index .Alerts 0).Annotations.summary }}{{ end }}"
)
_RUNBOOK, _DASHBOARD = (f"{{{{ .CommonAnnotations.{each}_url }}}}" for each in ("runbook", "dashboard"))
_SEVERITY = "{{ with .CommonLabels.severity }}{{ . }}{{ else }}critical{{ end }}"
_TEXT = (
    "{{ range .Alerts.Firing }}{{ .Annotations.description }}\n{{ end }}"
    "{{ range .Alerts.Resolved }}Over: {{ .Annotations.summary }}\n{{ end }}"
    "{{ with .CommonAnnotations.runbook_url }}<{{ . }}|Runbook>{{ end }}"
    "{{ with .CommonAnnotations.dashboard_url }}  <{{ . }}|Dashboard>{{ end }}"
)


def files(objectives: Objectives, routing: Routing) -> dict[str, str]:
    """Return both configurations and the cases of their routes, ``{path: text}``, paths relative to the project's root."""
    listed = "\n".join(
        f"#   {routing.secrets}/{each.secret}: {each.purpose}" for each in routing.receivers if each.secret
    )
    quiet = [{"name": receiver.name} for receiver in routing.receivers]
    paging = [_receiver(receiver, routing) for receiver in routing.receivers]
    return {
        "collector/alertmanager.yaml": rules.document(
            _configuration(objectives, routing, quiet), header=_HEADER + _QUIET
        ),
        "collector/alertmanager-paging.yaml": rules.document(
            _configuration(objectives, routing, paging), header=_HEADER + _PAGING.format(secrets=listed)
        ),
        "tests/alertmanager/routes.yaml": rules.document({"cases": list(_cases(objectives, routing))}, header=_HEADER),
    }


def inhibitions(objectives: Objectives, routing: Routing) -> Iterator[Inhibition]:
    """Yield what silences what: a tier the slower ones, an alert those that name it, and what routing adds."""
    tiers = {tier.name: tier for slo in objectives.slos for tier in slo.tiers}
    ordered = [tier.name for tier in sorted(tiers.values(), key=lambda tier: tier.burn, reverse=True)]
    for position, name in enumerate(ordered[:-1], start=1):
        yield Inhibition({"tier": name}, {"tier": "|".join(ordered[position:])}, ("slo", "service"))
    for alert in objectives.alerts:
        worse = "|".join(SEVERITIES[: SEVERITIES.index(alert.severity)])
        for by, equal in alert.inhibited_by.items():
            yield Inhibition({"alertname": by, "severity": worse}, {"alertname": alert.name}, equal)
    yield from routing.silenced


def _configuration(objectives: Objectives, routing: Routing, receivers: list[Entry]) -> Entry:
    timing = dict(routing.timing)
    return {
        "global": {"resolve_timeout": timing.pop("resolve_timeout")},
        "route": {
            "receiver": DEFAULT,
            "group_by": [*routing.group_by, *routing.installation],
            **timing,
            "routes": [_route(route, routing) for route in routing.routes],
        },
        "receivers": receivers,
        "inhibit_rules": [
            {
                "source_matchers": _matchers(each.by),
                "target_matchers": _matchers(each.what),
                "equal": [*each.equal, *routing.installation],
            }
            for each in inhibitions(objectives, routing)
        ],
    }


def _route(route: Route, routing: Routing) -> Entry:
    grouped = {"group_by": [*route.group_by, *routing.installation]} if route.group_by else {}
    return {"matchers": _matchers(route.where), "receiver": route.to, **grouped, **route.timing}


def _matchers(labels: Mapping[str, str]) -> list[str]:
    return [f'{label} {"=~" if "|" in value else "="} "{value}"' for label, value in labels.items()]


def _receiver(receiver: Receiver, routing: Routing) -> Entry:
    secret = f"{routing.secrets}/{receiver.secret}"
    configured: dict[str, Entry] = {
        # That of a dead-man's switch must not hear that the alert is over, which it would take for a sign of life.
        "webhook": {"url_file": secret, **({} if receiver.resolved else {"send_resolved": False})},
        "slack": {
            "api_url_file": secret,
            "channel": receiver.channel,
            "send_resolved": True,
            "title": "{{ .Status | toUpper }}: " + _SUMMARY,
            "title_link": _RUNBOOK,
            "text": _TEXT,
            "fallback": _SUMMARY,
        },
        "pagerduty": {
            "routing_key_file": secret,
            "description": _SUMMARY,
            "severity": _SEVERITY,
            "class": "{{ .GroupLabels.alertname }}",
            "component": "{{ .GroupLabels.service }}",
            "links": [{"href": _RUNBOOK, "text": "Runbook"}, {"href": _DASHBOARD, "text": "Dashboard"}],
        },
    }
    if receiver.kind not in configured:
        return {"name": receiver.name}
    return {"name": receiver.name, f"{receiver.kind}_configs": [configured[receiver.kind]]}


# ---- cases -----------------------------------------------------------------------------------------------------------


def _cases(objectives: Objectives, routing: Routing) -> Iterator[Entry]:
    """Yield the labels of every alert there is, of every route, and of those that others make, and who is told of it."""
    for slo in objectives.slos:
        for tier in slo.tiers:
            labels = {"alertname": slo.alert, "severity": tier.severity, "tier": tier.name, "slo": slo.name}
            yield _case({**labels, **slo.labels}, routing)
    for alert in objectives.alerts:
        yield _case(_labels(alert), routing)
    for route in routing.routes:
        yield _case(route.where, routing)
    for each in routing.silenced:
        yield _case(each.by, routing)
        yield _case(each.what, routing)
    for severity in SEVERITIES:
        yield _case({"alertname": "SomebodyElses", "severity": severity}, routing)
    yield _case({"alertname": "WithoutSeverity"}, routing)


def _labels(alert: Alert) -> dict[str, str]:
    return {"alertname": alert.name, "severity": alert.severity, **alert.labels}


def _case(labels: Mapping[str, str], routing: Routing) -> Entry:
    return {"labels": dict(labels), "receiver": routing.receiver_of(labels)}

# SPDX-License-Identifier: Apache-2.0
"""The configuration of Alertmanager under the real one: who is told of what, what silences what, and what is sent."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from jeeves_otel.demo import parts
from jeeves_otel.demo.processes import running
from tests.helpers import poll_until
from tests.integration.launching import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
BUNDLE = parts.BUNDLE
ALERTMANAGER = parts.cached("alertmanager")
QUIET, PAGING = BUNDLE / "alertmanager.yaml", BUNDLE / "alertmanager-paging.yaml"
CASES: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests/alertmanager/routes.yaml").read_text("utf-8"))["cases"]
SECRETS = "/etc/alertmanager/secrets"
SECRET = "s3cr3t"
KEY = f"{SECRET}-key-of-32-characters-00000000"
pytestmark = [pytest.mark.integration, pytest.mark.skipif(ALERTMANAGER is None, reason="make alertmanager")]
slow = pytest.mark.slow


def _amtool(*arguments: str | Path) -> str:
    amtool = Path(str(ALERTMANAGER)).with_name("amtool")
    return subprocess.run([amtool, *arguments], capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.mark.parametrize("file", [QUIET, PAGING], ids=lambda path: path.stem)
def test_the_configuration_is_valid(file: Path) -> None:
    """Both: the one that starts anywhere, and the one with receivers."""
    assert "SUCCESS" in _amtool("check-config", file)


@pytest.mark.parametrize("file", [QUIET, PAGING], ids=lambda path: path.stem)
def test_every_alert_goes_to_the_receiver_of_its_case(file: Path) -> None:
    """One case for each tier of each objective, each symptom, each severity, and what others send."""
    routed = [
        {
            **case,
            "receiver": _amtool(
                "config",
                "routes",
                "test",
                f"--config.file={file}",
                *(f"{label}={value}" for label, value in case["labels"].items()),
            ).strip(),
        }
        for case in CASES
    ]

    assert CASES == routed


def test_a_case_that_expects_another_receiver_fails() -> None:
    """The comparison can fail: amtool says so itself."""
    with pytest.raises(subprocess.CalledProcessError):
        _amtool("config", "routes", "test", f"--config.file={PAGING}", "--verify.receivers=slack", "severity=critical")


# ---- live ------------------------------------------------------------------------------------------------------------


class Receivers:
    """PagerDuty, Slack and webhooks in one server; it takes everything but what goes to a path with `broken`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._received: list[tuple[str, dict[str, Any]]] = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"receivers": self}))
        server.daemon_threads = True
        self._server = server
        self.url = f"http://127.0.0.1:{server.server_port}"
        self._thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def accept(self, path: str, body: dict[str, Any]) -> int:
        """Keep one request, and return the status of the answer."""
        with self._lock:
            self._received.append((path, body))
        return 400 if "broken" in path else 202 if "pagerduty" in path else 200

    def at(self, receiver: str, word: str) -> list[dict[str, Any]]:
        """Return what *receiver* was sent that contains *word*, in order."""
        with self._lock:
            return [body for path, body in self._received if receiver in path and word in json.dumps(body)]

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    receivers: Receivers

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(self.receivers.accept(self.path, body))
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        """Stay silent."""


class Alertmanager:
    """A running one, with its receivers."""

    def __init__(self, url: str, receivers: Receivers, log: Path) -> None:
        self.url, self.receivers, self._log = url, receivers, log

    @property
    def log(self) -> str:
        """What it has logged so far, debug lines included."""
        return self._log.read_text("utf-8")

    def get(self, path: str) -> str:
        """Return the text of a page."""
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=10) as response:
            return str(response.read().decode())

    def post(self, *alerts: dict[str, str], over: bool = False) -> None:
        """Send alerts as Prometheus does, by their labels; with *over*, that they have ended."""
        now = datetime.now(UTC)
        ends = now if over else now + timedelta(minutes=4)
        body = [
            {
                "labels": labels,
                "annotations": _annotations(labels),
                # As Prometheus says it, which sends at once: one that had begun before group_wait would not be held back.
                "startsAt": now.isoformat(),
                "endsAt": ends.isoformat(),
            }
            for labels in alerts
        ]
        request = urllib.request.Request(
            f"{self.url}/api/v2/alerts", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).close()

    def states(self, service: str) -> dict[tuple[str, str], str] | None:
        """Return ``{(name, tier): state}`` of the alerts of *service*, nothing before all have one."""
        found = [each for each in json.loads(self.get("api/v2/alerts")) if each["labels"].get("service") == service]
        states = {
            (each["labels"]["alertname"], each["labels"].get("tier", "")): each["status"]["state"] for each in found
        }
        return states if states and "unprocessed" not in states.values() else None


def _annotations(labels: dict[str, str]) -> dict[str, str]:
    name = labels["alertname"]
    return {
        "summary": f"Summary of {name} {labels.get('tier', '')}".strip(),
        "description": f"Description of {name} in {labels.get('service', '')}.",
        "runbook_url": f"http://books/{name}.md",
        "dashboard_url": "http://panels/slo",
    }


@contextmanager
def _alertmanager(folder: Path, *, broken: str = "") -> Iterator[Alertmanager]:
    """Run the paging configuration: addresses are local ones, secrets have files, seconds stand for minutes."""
    receivers = Receivers()
    secrets = folder / "secrets"
    secrets.mkdir()
    for name in ("slack-webhook-url", "deadman-url", "webhook-url"):
        (secrets / name).write_text(f"{receivers.url}/{name}/{SECRET}{broken}\n", "utf-8")
    (secrets / "pagerduty-routing-key").write_text(f"{KEY}\n", "utf-8")
    text = PAGING.read_text("utf-8").replace(SECRETS, str(secrets))
    text = text.replace("global:\n", f"global:\n  pagerduty_url: {receivers.url}/pagerduty{broken}\n")
    # A tenth of a wait, and of repetition a thirtieth.
    for key, shipped, short in (
        ("group_wait", "10s", "1s"),
        ("group_wait", "5s", "500ms"),
        ("group_interval", "1m", "2s"),
        ("group_interval", "15s", "1s"),
        ("repeat_interval", "1m", "2s"),
    ):
        text, replaced = re.subn(rf"{key}: {shipped}$", f"{key}: {short}", text, flags=re.MULTILINE)
        assert replaced, f"{key}: {shipped} is not there any more"
    config = folder / "alertmanager.yaml"
    config.write_text(text, "utf-8")
    port = free_port()
    command = [
        str(ALERTMANAGER),
        f"--config.file={config}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
        "--log.level=debug",
    ]
    try:
        with running("Alertmanager", command, {}, folder / "log") as child:
            child.wait_until_answering(f"http://127.0.0.1:{port}/-/ready")
            yield Alertmanager(f"http://127.0.0.1:{port}", receivers, folder / "log")
    finally:
        receivers.close()


@pytest.fixture(scope="module")
def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alertmanager]:
    """Yield one for all tests, which use services of their own."""
    with _alertmanager(tmp_path_factory.mktemp("alertmanager")) as found:
        yield found


def _burn(tier: str, service: str, slo: str = "llm_availability", alert: str = "LLMErrorBudgetBurn") -> dict[str, str]:
    severity = "warning" if tier in {"ticket", "drift"} else "critical"
    return {"alertname": alert, "severity": severity, "tier": tier, "slo": slo, "service": service}


@slow
def test_an_outage_is_one_notification_whatever_slower_tiers_see(alertmanager: Alertmanager) -> None:
    """From the first to the last: all tiers fire, one page comes, and one that it is over."""
    tiers = ("outage", "fast", "slow", "ticket", "drift")
    alertmanager.post(*(_burn(tier, "checkout") for tier in tiers))
    poll_until(lambda: alertmanager.receivers.at("pagerduty", "checkout"), "the page")
    states = alertmanager.states("checkout")
    alertmanager.post(*(_burn(tier, "checkout") for tier in tiers), over=True)
    poll_until(lambda: len(alertmanager.receivers.at("pagerduty", "checkout")) > 1, "its end")
    events = alertmanager.receivers.at("pagerduty", "checkout")

    assert {("LLMErrorBudgetBurn", tier): "active" if tier == "outage" else "suppressed" for tier in tiers} == states
    assert ["trigger", "resolve"] == [event["event_action"] for event in events]
    assert 1 == len({event["dedup_key"] for event in events})
    assert [] == alertmanager.receivers.at("slack", "checkout")


@slow
@pytest.mark.parametrize(
    ("source", "targets"),
    [("fast", ("slow", "ticket", "drift")), ("slow", ("ticket", "drift")), ("ticket", ("drift",)), ("drift", ())],
)
def test_a_tier_silences_slower_ones_and_no_faster_one(
    source: str, targets: tuple[str, ...], alertmanager: Alertmanager
) -> None:
    """So what is told is always the worst that is true."""
    tiers = (source, *targets)
    alertmanager.post(*(_burn(tier, f"from-{source}") for tier in tiers))
    states = poll_until(lambda: _settled(alertmanager, f"from-{source}", tiers), "states")

    assert {("LLMErrorBudgetBurn", tier): "active" if tier == source else "suppressed" for tier in tiers} == states


def _settled(alertmanager: Alertmanager, service: str, tiers: tuple[str, ...]) -> dict[tuple[str, str], str] | None:
    """Return the states as soon as somebody was told: an alert is judged when its group is."""
    states = alertmanager.states(service)
    receiver = "slack" if tiers[0] in {"ticket", "drift"} else "pagerduty"
    return states if alertmanager.receivers.at(receiver, service) else None


@slow
def test_an_outage_of_one_objective_silences_none_of_another(alertmanager: Alertmanager) -> None:
    """Nor of another service, nor of another environment."""
    other = _burn("fast", "two", "pipeline_success_rate", "PipelineErrorBudgetBurn")
    elsewhere = {**_burn("fast", "two", "database_availability"), "environment": "production"}
    alertmanager.post(
        _burn("outage", "two"),
        other,
        _burn("fast", "three"),
        {**_burn("outage", "two", "database_availability"), "environment": "staging"},
        elsewhere,
    )
    poll_until(lambda: len(alertmanager.receivers.at("pagerduty", "two")) > 2, "three pages of two objectives")
    poll_until(lambda: alertmanager.receivers.at("pagerduty", "three"), "the page of the other service")
    listed = json.loads(alertmanager.get("api/v2/alerts"))
    states = [each["status"]["state"] for each in listed if each["labels"].get("service") in {"two", "three"}]

    assert ["active"] * 5 == states


@slow
def test_when_an_outage_becomes_a_slow_burn_that_is_told(alertmanager: Alertmanager) -> None:
    """What was silenced is told as soon as nothing silences it any more."""
    alertmanager.post(_burn("outage", "four"), _burn("slow", "four"))
    poll_until(lambda: alertmanager.receivers.at("pagerduty", "four"), "the page")
    alertmanager.post(_burn("outage", "four"), over=True)
    poll_until(lambda: len(alertmanager.receivers.at("pagerduty", "four")) > 1, "what is left")
    first, second = alertmanager.receivers.at("pagerduty", "four")

    assert ("trigger", "trigger") == (first["event_action"], second["event_action"])
    assert first["dedup_key"] == second["dedup_key"]
    assert "Summary of LLMErrorBudgetBurn outage" == first["payload"]["summary"]
    assert "Summary of LLMErrorBudgetBurn slow" == second["payload"]["summary"]


@slow
def test_a_burning_budget_that_wakes_somebody_silences_its_symptom(alertmanager: Alertmanager) -> None:
    """And one that only writes a ticket does not."""
    symptom = {"alertname": "HighErrorRate", "severity": "warning"}
    burn = ("pipeline_success_rate", "PipelineErrorBudgetBurn")
    alertmanager.post(_burn("fast", "paged", *burn), {**symptom, "service": "paged"})
    alertmanager.post(_burn("drift", "filed", *burn), {**symptom, "service": "filed"})
    poll_until(lambda: alertmanager.receivers.at("pagerduty", "paged"), "the page")
    poll_until(lambda: len(alertmanager.receivers.at("slack", "filed")) > 1, "both messages")
    paged, filed = alertmanager.states("paged"), alertmanager.states("filed")

    assert {("PipelineErrorBudgetBurn", "fast"): "active", ("HighErrorRate", ""): "suppressed"} == paged
    assert {("PipelineErrorBudgetBurn", "drift"): "active", ("HighErrorRate", ""): "active"} == filed
    assert [] == alertmanager.receivers.at("slack", "paged")


@slow
def test_pagerduty_gets_an_event_with_summary_severity_and_links(alertmanager: Alertmanager) -> None:
    """Of the Events API v2: without a key or a summary it would be refused."""
    alertmanager.post(_burn("outage", "five"))
    (event,) = poll_until(lambda: alertmanager.receivers.at("pagerduty", "five"), "the page")

    assert (KEY, "trigger") == (event["routing_key"], event["event_action"])
    assert {
        "summary": "Summary of LLMErrorBudgetBurn outage",
        "severity": "critical",
        "class": "LLMErrorBudgetBurn",
        "component": "five",
    }.items() <= event["payload"].items()
    assert [
        {"href": "http://books/LLMErrorBudgetBurn.md", "text": "Runbook"},
        {"href": "http://panels/slo", "text": "Dashboard"},
    ] == event["links"]


@slow
def test_a_second_provider_that_is_down_is_an_incident_of_its_own(alertmanager: Alertmanager) -> None:
    """PagerDuty would add it to that of the first, which somebody has already."""
    down = {"alertname": "LLMProviderDown", "severity": "critical", "service": "providers"}
    alertmanager.post({**down, "provider": "openai"}, {**down, "provider": "anthropic"})
    poll_until(lambda: len(alertmanager.receivers.at("pagerduty", "providers")) > 1, "both pages")

    assert 2 == len({event["dedup_key"] for event in alertmanager.receivers.at("pagerduty", "providers")})


@slow
def test_traffic_that_stops_is_one_incident_for_all_objectives(alertmanager: Alertmanager) -> None:
    """When nobody comes, nothing happens of any."""
    stopped = {"alertname": "TrafficStopped", "severity": "critical"}
    alertmanager.post({**stopped, "slo": "one"}, {**stopped, "slo": "two"})
    (event,) = poll_until(lambda: alertmanager.receivers.at("pagerduty", "TrafficStopped"), "the page")

    assert "trigger" == event["event_action"]
    assert {"one", "two"} == {
        each["labels"]["slo"]
        for each in json.loads(alertmanager.get("api/v2/alerts"))
        if each["labels"]["alertname"] == "TrafficStopped"
    }


@slow
def test_slack_gets_what_it_is_about_and_when_it_is_over(alertmanager: Alertmanager) -> None:
    """Two instances are one message, which names both."""
    alert = {"alertname": "DatabasePoolExhaustion", "severity": "warning", "service": "six"}
    both = [{**alert, "instance": "a"}, {**alert, "instance": "b"}]
    alertmanager.post(*both)
    poll_until(lambda: alertmanager.receivers.at("slack", "DatabasePoolExhaustion"), "the message")
    alertmanager.post(*both, over=True)
    poll_until(lambda: len(alertmanager.receivers.at("slack", "DatabasePoolExhaustion")) > 1, "its end")
    first, last = alertmanager.receivers.at("slack", "DatabasePoolExhaustion")

    assert ("#jeeves-alerts", "#jeeves-alerts") == (first["channel"], last["channel"])
    assert "FIRING: Summary of DatabasePoolExhaustion" == first["attachments"][0]["title"]
    assert "http://books/DatabasePoolExhaustion.md" == first["attachments"][0]["title_link"]
    assert (
        "Description of DatabasePoolExhaustion in six.\nDescription of DatabasePoolExhaustion in six.\n"
        "<http://books/DatabasePoolExhaustion.md|Runbook>  <http://panels/slo|Dashboard>"
    ) == first["attachments"][0]["text"]
    assert "RESOLVED: Summary of DatabasePoolExhaustion" == last["attachments"][0]["title"]


@slow
def test_everything_else_goes_to_the_default_and_exceptions_of_spans_to_nobody(alertmanager: Alertmanager) -> None:
    """The exception came first, is shown, and nobody was told."""
    alertmanager.post({"alertname": "ServiceException", "severity": "critical", "service": "seven"})
    alertmanager.post({"alertname": "HighInterruptRate", "severity": "info", "service": "seven"})
    (notification,) = poll_until(lambda: alertmanager.receivers.at("webhook-url", "seven"), "the notification")
    states = poll_until(lambda: alertmanager.states("seven"), "states")

    assert "HighInterruptRate" == notification["groupLabels"]["alertname"]
    assert {("ServiceException", ""): "active", ("HighInterruptRate", ""): "active"} == states
    assert [] == [each for each in alertmanager.receivers.at("", "seven") if each is not notification]


@slow
def test_the_dead_mans_switch_hears_the_watchdog_again_and_again(alertmanager: Alertmanager) -> None:
    """And nobody else does; nor does it hear that the alert is over, which it would take for a sign of life."""
    alertmanager.post({"alertname": "Watchdog", "severity": "none", "service": "jeeves"})
    poll_until(lambda: len(alertmanager.receivers.at("deadman", "Watchdog")) > 2, "the third time")

    marker = {"alertname": "Marker", "severity": "info", "service": "marker"}
    alertmanager.post(marker)
    poll_until(lambda: alertmanager.receivers.at("webhook-url", "marker"), "another alert")
    alertmanager.post({"alertname": "Watchdog", "severity": "none", "service": "jeeves"}, marker, over=True)
    # The switch would be told every second, this one is told every two.
    poll_until(lambda: len(alertmanager.receivers.at("webhook-url", "marker")) > 1, "the other alert's end")

    assert {"firing"} == {each["status"] for each in alertmanager.receivers.at("deadman", "Watchdog")}
    assert len(alertmanager.receivers.at("deadman", "Watchdog")) == len(alertmanager.receivers.at("", "Watchdog"))


@slow
def test_no_secret_is_in_the_log_or_on_a_page(tmp_path: Path) -> None:
    """Not even when every receiver refuses what it is sent, which the log says, with debug lines."""
    with _alertmanager(tmp_path, broken="-broken") as found:
        found.post(_burn("outage", "eight"), _burn("ticket", "nine"))
        found.post({"alertname": "Other", "severity": "info"}, {"alertname": "Watchdog", "severity": "none"})
        poll_until(
            lambda: {"pagerduty", "slack", "default", "deadman"} <= set(re.findall(r'err="(\w+)/', found.log)),
            "every receiver's failure",
        )
        said = {path: found.get(path) for path in ("api/v2/status", "api/v2/receivers", "metrics")}
        log = found.log

    assert [] == [path for path, text in {**said, "log": log}.items() if SECRET in text]


@slow
def test_a_file_of_a_secret_that_is_missing_fails_its_receiver_and_no_other(tmp_path: Path) -> None:
    """It starts, it says what is missing, and it tells whom it can."""
    with _alertmanager(tmp_path) as found:
        (tmp_path / "secrets/pagerduty-routing-key").unlink()
        found.post(_burn("outage", "ten"), {"alertname": "Other", "severity": "info", "service": "ten"})
        poll_until(lambda: found.receivers.at("webhook-url", "ten"), "the notification")
        poll_until(lambda: "pagerduty-routing-key: no such file" in found.log, "what is missing")

    assert [] == found.receivers.at("pagerduty", "ten")

# SPDX-License-Identifier: Apache-2.0
"""The files of the Collector: valid, started for real in every combination, and doing to telemetry what they say."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from jeeves_otel.content import kinds
from tests.helpers import poll_until
from tests.integration.backends import Door, Spans
from tests.integration.certificates import Certificates
from tests.integration.collectors import (
    BUNDLE,
    Gateway,
    LoadBalancer,
    Sidecar,
    clean_environment,
    counter,
    resource,
    send,
    span,
    spans,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.slow]

GOLDEN = Path(__file__).parent / "golden"
MUTUAL = "of clients"  # no file: the gateway asks for a certificate
APPEND = "confmap.enableMergeAppendOption"
TRACES = [(), ("traces-tls.yaml",), ("traces-tls.yaml", "traces-bearer.yaml"), ("traces-tls.yaml", "traces-basic.yaml")]
METRICS: list[tuple[str, ...]] = [
    (),
    ("metrics-tls.yaml",),
    ("metrics-bearer.yaml",),
    ("metrics-basic.yaml",),
    ("metrics-tls.yaml", "metrics-bearer.yaml"),
    ("metrics-tls.yaml", "metrics-basic.yaml"),
]
ALERTS: list[tuple[str, ...]] = [(), ("alerts.yaml",)]
COMBINATIONS = [tuple(itertools.chain(*each)) for each in itertools.product(TRACES, METRICS, ALERTS)]
INTO_GATEWAYS: list[tuple[str, ...]] = [
    tls + auth
    for tls in ((), ("gateway-tls.yaml",), ("gateway-tls.yaml", MUTUAL))
    for auth in ((), ("gateway-bearer.yaml",), ("gateway-basic.yaml",))
]
FROM_BALANCERS = [tuple(name.replace("traces-", "gateway-loadbalancing-") for name in each) for each in TRACES]
GATEWAYS = [
    *(("gateway.yaml", *into, *onward) for into, onward in itertools.product(INTO_GATEWAYS, TRACES)),
    # The same receivers; what they have of their own takes turns.
    *(
        ("gateway-loadbalancing.yaml", *into, *onward)
        for into, onward in zip(INTO_GATEWAYS, itertools.cycle(FROM_BALANCERS), strict=False)
    ),
]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return an authority with a server and a client."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def credentials(certificates: Certificates) -> dict[str, str]:
    """Return what the overlays read, for both backends and for clients of a gateway."""
    for name, content in {"token": "token-of-a-file\n", "tokens": "- a-token\n", "htpasswd": "somebody:0123\n"}.items():
        (certificates.folder / name).write_text(content, encoding="utf-8")
    found = {
        "COLLECTOR_SERVER_CERT_FILE": certificates.path("server.pem"),
        "COLLECTOR_SERVER_KEY_FILE": certificates.path("server.key"),
        "COLLECTOR_SERVER_TOKENS_FILE": certificates.path("tokens"),
        "COLLECTOR_SERVER_HTPASSWD_FILE": certificates.path("htpasswd"),
        "COLLECTOR_GATEWAYS": "static: {hostnames: [one:4317, two:4317]}",
    }
    for backend in ("TRACES", "METRICS"):
        found |= {
            f"COLLECTOR_{backend}_CA_FILE": certificates.path("ca.pem"),
            f"COLLECTOR_{backend}_CERT_FILE": certificates.path("client.pem"),
            f"COLLECTOR_{backend}_KEY_FILE": certificates.path("client.key"),
            f"COLLECTOR_{backend}_TOKEN_FILE": certificates.path("token"),
            f"COLLECTOR_{backend}_USERNAME": "somebody",
            f"COLLECTOR_{backend}_PASSWORD": "0123",  # which is not a number
        }
    return found


def _run(collector: str, command: str, *names: str, gates: str = "", **variables: str) -> tuple[int, str]:
    """Run *command* of the Collector on the files *names*; return its status and what it says."""
    files = [part for name in names for part in ("--config", str(BUNDLE / name))]
    ended = subprocess.run(
        [collector, command, *files, *([f"--feature-gates={gates}"] if gates else [])],
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("overlays", COMBINATIONS, ids=lambda names: "+".join(name[:-5] for name in names) or "plain")
def test_the_sidecar_starts_and_stops_with_every_combination_of_overlays(
    collector: str, tmp_path: Path, credentials: dict[str, str], overlays: tuple[str, ...]
) -> None:
    """Valid, healthy within the time, and ended by SIGTERM, backend or not."""
    instance = {"COLLECTOR_INSTANCE_ID": "an-instance"}
    assert (0, "") == _run(collector, "validate", "sidecar.yaml", *overlays, gates=APPEND, **credentials, **instance)

    sidecar = Sidecar(collector, tmp_path, **credentials)
    with sidecar.running(*overlays, gates=APPEND):
        assert [] == _errors(sidecar)


def _errors(collector: Sidecar) -> list[str]:
    return [line for line in collector.log.read_text(encoding="utf-8").splitlines() if "\terror\t" in line]


KINDS: dict[str, type[Sidecar]] = {
    "sidecar.yaml": Sidecar,
    "gateway.yaml": Gateway,
    "gateway-loadbalancing.yaml": LoadBalancer,
}


def _named(names: tuple[str, ...]) -> str:
    return "+".join(name.removesuffix(".yaml") for name in names)


def _validated_and_started(
    collector: str, folder: Path, names: tuple[str, ...], variables: dict[str, str]
) -> list[str]:
    """Validate the files and start them; return what is wrong."""
    base, *overlays = names
    started = KINDS[base](collector, folder, **variables)
    status, said = _run(collector, "validate", *names, gates=APPEND, **started.environment)
    with started.running(*overlays, gates=APPEND):
        return [*([f"{status}: {said}"] if (status, said) != (0, "") else []), *_errors(started)]


@pytest.mark.parametrize("names", GATEWAYS, ids=_named)
def test_gateway_and_load_balancer_start_and_stop_with_every_combination_of_tls_and_credentials(
    collector: str, tmp_path: Path, credentials: dict[str, str], names: tuple[str, ...]
) -> None:
    """None, TLS and mutual TLS by none, bearer and basic for what comes in, and all that there is for what goes out."""
    authority = {"COLLECTOR_SERVER_CLIENT_CA_FILE": credentials["COLLECTOR_TRACES_CA_FILE"]} if MUTUAL in names else {}
    files = tuple(name for name in names if name != MUTUAL)

    assert [] == _validated_and_started(collector, tmp_path, files, {**credentials, **authority})


@pytest.mark.parametrize(
    "names",
    [
        *(("sidecar.yaml", *each, *alerts) for each in TRACES[1:] for alerts in ALERTS),
        *(("gateway.yaml", *each) for each in TRACES[1:]),
        *(("gateway-loadbalancing.yaml", *each) for each in FROM_BALANCERS[1:]),
    ],
    ids=_named,
)
def test_every_mode_starts_with_tls_and_no_certificate_of_its_own(
    collector: str, tmp_path: Path, credentials: dict[str, str], names: tuple[str, ...]
) -> None:
    """TLS that is not mutual, with each kind of credentials."""
    without = {"COLLECTOR_TRACES_CERT_FILE": "", "COLLECTOR_TRACES_KEY_FILE": ""}

    assert [] == _validated_and_started(collector, tmp_path, names, {**credentials, **without})


@pytest.mark.parametrize(
    "names",
    [
        ("sidecar.yaml", "metrics-bearer.yaml"),
        ("sidecar.yaml", "traces-tls.yaml", "traces-bearer.yaml"),
        ("gateway-loadbalancing.yaml", "gateway-loadbalancing-tls.yaml", "gateway-loadbalancing-bearer.yaml"),
    ],
    ids=_named,
)
def test_a_missing_token_keeps_the_collector_from_starting(
    collector: str, tmp_path: Path, credentials: dict[str, str], names: tuple[str, ...]
) -> None:
    """Instead of a panic with the first request, and with what waits on disk after each restart."""
    missing = str(tmp_path / "missing")
    files = dict.fromkeys(("COLLECTOR_TRACES_TOKEN_FILE", "COLLECTOR_METRICS_TOKEN_FILE"), missing)
    status, said = _run(collector, "validate", *names, **{**credentials, **files, "HOSTNAME": "a-host"})

    assert (1, True) == (status, f"open {missing}: no such file" in said), said


@pytest.mark.parametrize("traces", ["[debug]", "[otlp_grpc/traces]", "[debug, otlp_grpc/traces]"])
@pytest.mark.parametrize("metrics", ["[debug]", "[otlp_grpc/rw_hop]"])
def test_the_sidecar_is_valid_with_every_switch(collector: str, traces: str, metrics: str) -> None:
    """The Collector accepts the file whatever the switches choose."""
    switches = {"COLLECTOR_TRACES_EXPORTERS": traces, "COLLECTOR_METRICS_EXPORTERS": metrics, "HOSTNAME": "a-host"}

    assert (0, "") == _run(collector, "validate", "sidecar.yaml", **switches)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("sidecar", ("sidecar.yaml",)),
        ("sidecar-with-everything", ("sidecar.yaml", *COMBINATIONS[-1])),
        ("gateway", ("gateway.yaml",)),
        ("gateway-with-everything", ("gateway.yaml", "gateway-tls.yaml", "gateway-bearer.yaml", *TRACES[-1])),
        ("gateway-loadbalancing", ("gateway-loadbalancing.yaml",)),
        (
            "gateway-loadbalancing-with-everything",
            ("gateway-loadbalancing.yaml", "gateway-tls.yaml", "gateway-basic.yaml", *FROM_BALANCERS[-2]),
        ),
    ],
)
def test_the_merged_configuration_is_as_committed(
    collector: str, credentials: dict[str, str], name: str, files: tuple[str, ...]
) -> None:
    """What the Collector makes of the files, defaults included; JEEVES_WRITE_GOLDEN=1 writes it anew."""
    folder = str(Path(credentials["COLLECTOR_TRACES_CA_FILE"]).parent)
    gates = f"otelcol.printInitialConfig,{APPEND}"
    status, merged = _run(collector, "print-config", *files, gates=gates, HOSTNAME="a-host", **credentials)
    merged = merged.replace(folder, "/certificates")
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("JEEVES_WRITE_GOLDEN") == "1":
        golden.write_text(merged, encoding="utf-8")

    assert 0 == status
    assert golden.read_text(encoding="utf-8") == merged
    assert [] == [secret for secret in ("0123", "token-of", "a-token") if secret in merged.replace("0123456789", "")]


def test_without_an_instance_the_sidecar_does_not_start_and_says_why(collector: str) -> None:
    """Series of two instances would be one; a container always has a HOSTNAME."""
    status, said = _run(collector, "validate", "sidecar.yaml")

    assert 1 == status
    assert "service.instance.id" in said


@pytest.mark.parametrize(
    "files",
    [("sidecar.yaml", "metrics-bearer.yaml"), ("gateway.yaml", "gateway-bearer.yaml")],
    ids=lambda names: names[1],
)
def test_an_overlay_without_its_secret_does_not_start(collector: str, files: tuple[str, ...]) -> None:
    """Nothing is sent without the token that somebody has asked for, and nothing is let in."""
    status, _ = _run(collector, "validate", *files, HOSTNAME="a-host")

    assert 1 == status


# ---- TLS and authentication --------------------------------------------------------------------------------------------

BASIC = "Basic c29tZWJvZHk6MDEyMw=="  # somebody:0123
BEARER = "Bearer token-of-a-file"


@pytest.mark.parametrize(
    ("overlays", "expected"),
    [
        (("traces-tls.yaml", "metrics-tls.yaml"), (None, None)),
        (("traces-tls.yaml", "traces-bearer.yaml", "metrics-tls.yaml", "metrics-basic.yaml"), (BEARER, BASIC)),
        (("traces-tls.yaml", "traces-basic.yaml", "metrics-tls.yaml", "metrics-bearer.yaml"), (BASIC, BEARER)),
    ],
    ids=["mtls", "bearer-and-basic", "basic-and-bearer"],
)
def test_backends_that_ask_for_certificates_and_credentials_get_both(
    collector: str,
    tmp_path: Path,
    certificates: Certificates,
    credentials: dict[str, str],
    overlays: tuple[str, ...],
    expected: tuple[str | None, str | None],
) -> None:
    """A span and a sample arrive over mutual TLS, with what the overlays say."""
    jaeger, prometheus = Spans(certificates), Door(certificates=certificates)
    now_ms = time.time_ns() // 1_000_000
    sidecar = Sidecar(
        collector,
        tmp_path,
        **credentials,
        COLLECTOR_TRACES_ENDPOINT=f"localhost:{jaeger.port}",
        COLLECTOR_REMOTE_WRITE_URL=f"https://localhost:{prometheus.port}/api/v1/write",
    )
    try:
        with sidecar.running(*overlays, gates=APPEND):
            assert send(sidecar, spans(resource(service_name="a-service"), span(1)))
            assert send(sidecar, counter(resource(service_name="a-service"), "a_total", 1, now_ms, now_ms))
            poll_until(lambda: jaeger.spans and prometheus.bodies, "a span and a sample")
    finally:
        jaeger.stop()
        prometheus.stop()

    assert expected == (jaeger.metadata[0].get("authorization"), prometheus.headers[0].get("authorization"))


# ---- what happens to spans -----------------------------------------------------------------------------------------------


def _sent_through(collector: str, folder: Path, *made: Span, **variables: str) -> list[dict[str, Any]]:
    """Send spans through a sidecar that writes to a file, and return them as they arrived."""
    arrived, overlay = folder / "arrived.jsonl", folder / "overlay.yaml"
    overlay.write_text(f"exporters: {{file: {{path: {arrived}}}}}\n", encoding="utf-8")
    sidecar = Sidecar(collector, folder, COLLECTOR_TRACES_EXPORTERS="[file]", **variables)
    with sidecar.running(overlay):
        assert send(sidecar, spans(resource(service_name="a-service"), *made))
    lines = [json.loads(line) for line in arrived.read_text(encoding="utf-8").splitlines()]
    scopes = [scope for line in lines for each in line["resourceSpans"] for scope in each["scopeSpans"]]
    return [each for scope in scopes for each in scope["spans"]]


def _attributes(holder: dict[str, Any]) -> dict[str, str]:
    return {pair["key"]: pair["value"]["stringValue"] for pair in holder.get("attributes", [])}


def _content(kind: str) -> dict[str, str]:
    """Return one attribute for every name of a kind of content."""
    return {name.replace("*", "7.anything"): "private" for name in kinds()[kind].attributes}


@pytest.mark.parametrize("kind", list(kinds()))
def test_content_of_a_kind_leaves_only_if_it_is_asked_for(collector: str, tmp_path: Path, kind: str) -> None:
    """On spans and on their events, one kind at a time: asked for, it stays, and no other does."""
    everything = {key: value for each in kinds() for key, value in _content(each).items()} | {
        "gen_ai.request.model": "m"
    }
    pairs = [text(key, value) for key, value in everything.items()]
    made = span(1, "work", everything, events=[Span.Event(name="an-event", attributes=pairs)])
    (arrived,) = _sent_through(collector, tmp_path, made, JEEVES_OTEL_CONTENT=f"{kind}")
    expected = _content(kind) | {"gen_ai.request.model": "m"}

    assert expected == _attributes(arrived)
    assert expected == _attributes(arrived["events"][0])


def test_by_default_no_content_leaves(collector: str, tmp_path: Path) -> None:
    """Every name of every kind is gone, URLs have lost what users put into them, the status quotes nothing."""
    private = {key: value for each in kinds() for key, value in _content(each).items()}
    urls = dict.fromkeys(kinds()["queries"].cut, "https://me:secret@example.com/path?question=private#part")
    failed = Status(code=Status.STATUS_CODE_ERROR, message="private")
    (first, second) = _sent_through(
        collector,
        tmp_path,
        span(1, "work", {**private, **urls, "error.type": "ValueError"}, status=failed),
        span(2, "work", {"a": "b"}, status=failed),
    )

    assert dict.fromkeys(urls, "https://example.com/path") | {"error.type": "ValueError"} == _attributes(first)
    assert {"code": 2, "message": "ValueError"} == first["status"]
    assert {"code": 2} == second["status"]


def test_everything_leaves_if_all_is_asked_for(collector: str, tmp_path: Path) -> None:
    """The switch of the SDK means the same here."""
    private = {key: value for each in kinds() for key, value in _content(each).items()}
    (arrived,) = _sent_through(collector, tmp_path, span(1, "work", private), JEEVES_OTEL_CONTENT="all")

    assert private == _attributes(arrived)


SECRETS = {
    "note": ("the key is sk-proj-abcdefghijklmnop1234", "the key is ****"),
    "header": ("Bearer abcdef.ghijkl", "****"),
    "commit": ("by github_pat_11ABCDEFG0abcdefghij_KLMNOPQR now", "by **** now"),
    "x-auth-token": ("anything", "****"),
    "who": ("mail jane.doe@example.co.uk now", "mail **** now"),
    "paid": ("4111111111111111", "****"),
    "token": ("eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "****"),
    "db.password": ("hunter2", "****"),
    "x-api-key": ("anything", "****"),
    "gen_ai.usage.input_tokens": ("17", "17"),
    "user.id": ("1732194000123", "1732194000123"),
    "version": ("opentelemetry-sdk@1.44", "opentelemetry-sdk@1.44"),
}


def test_secrets_are_masked_and_nothing_else(collector: str, tmp_path: Path) -> None:
    """On spans and on their events; and nothing says which ones were."""
    sent = {key: value for key, (value, _) in SECRETS.items()}
    event = Span.Event(name="an-event", attributes=[text(key, value) for key, value in sent.items()])
    (arrived,) = _sent_through(collector, tmp_path, span(1, "work", sent, events=[event]))
    expected = {key: value for key, (_, value) in SECRETS.items()}

    assert expected == _attributes(arrived)
    assert expected == _attributes(arrived["events"][0])


# ---- alerts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def alertmanager() -> Iterator[Door]:
    """Yield a server that takes everything."""
    door = Door(status=200)
    yield door
    door.stop()


def test_an_exception_is_one_alert_with_name_service_and_severity(
    collector: str, tmp_path: Path, alertmanager: Door
) -> None:
    """Two spans with events, of which one has failed: one alert each for the exceptions, none for the rest."""
    jaeger = Spans()
    sidecar = Sidecar(
        collector,
        tmp_path,
        COLLECTOR_TRACES_ENDPOINT=f"127.0.0.1:{jaeger.port}",
        COLLECTOR_ALERTMANAGER_URL=f"http://127.0.0.1:{alertmanager.port}",
    )
    raised = [text("exception.type", "TimeoutError"), text("exception.message", "private")]
    events = [Span.Event(name="exception", attributes=raised), Span.Event(name="gen_ai.choice")]
    failed = span(1, events=events, status=Status(code=Status.STATUS_CODE_ERROR))
    with sidecar.running("alerts.yaml"):
        assert send(sidecar, spans(resource(service_name="a-service"), failed, span(2, events=events[1:]), span(3)))
        poll_until(lambda: alertmanager.bodies and len(jaeger.spans) == 3, "an alert and all spans")
    jaeger.stop()
    alerts = [alert for body in alertmanager.bodies for alert in json.loads(body)]
    labels = {"alertname": "ServiceException", "service": "a-service", "exception_type": "TimeoutError"}

    assert [{**labels, "severity": "critical", "event_name": "exception"}] == [alert["labels"] for alert in alerts]
    assert {"TraceID": failed.trace_id.hex(), "SpanID": failed.span_id.hex()}.items() <= alerts[0][
        "annotations"
    ].items()
    assert "private" not in json.dumps(alerts)
    assert 3 == sum(len(each.events) for each in jaeger.spans)

# SPDX-License-Identifier: Apache-2.0
"""The gateway, for real: what it keeps, what it loses, and who may send to it."""

from __future__ import annotations

import hashlib
import http.client
from base64 import b64encode
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.helpers import poll_until
from tests.integration.backends import OK, UNAVAILABLE, Spans
from tests.integration.certificates import Certificates
from tests.integration.collectors import Gateway, LoadBalancer, Sidecar, at_ports, resource, send, spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.slow]

APPEND = "confmap.enableMergeAppendOption"
SECOND = 1_000_000_000
PERCENT = 10
SOON = {"COLLECTOR_DECISION_WAIT": "1s", "COLLECTOR_DECISION_WAIT_AFTER_ROOT": "1s"}
ALL = {**SOON, "COLLECTOR_KEPT_PERCENT": "100"}
SERVICE = resource(service_name="a-service", service_instance_id="one")
DECIDED = "otelcol_processor_tail_sampling_global_count_traces_sampled_total"
BY_POLICY = "otelcol_processor_tail_sampling_count_traces_sampled_total"
ACCEPTED = "otelcol_receiver_accepted_spans_total"
FAILED_TO_SEND = "otelcol_exporter_send_failed_spans_total"


def _trace(name: str, number: int) -> bytes:
    """Return the id of a trace: any sixteen bytes, the same in every run."""
    return hashlib.blake2b(f"{name} {number}".encode(), digest_size=16).digest()


def _is_of_the_share(trace: bytes) -> bool:
    """Return what the probabilistic policy decides: FNV-1a of its salt and the trace id, against the share."""
    value = 0xCBF29CE484222325
    for byte in b"default-hash-seed" + trace:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value <= int((2**64 - 1) * PERCENT / 100)


def _root(trace: bytes, **fields: Any) -> Span:
    return _child(trace, 1, parent_span_id=b"", **fields)


def _child(trace: bytes, number: int, *, began_s: float = 1.0, took_s: float = 0.1, **fields: Any) -> Span:
    """Return a span that began and ended so many seconds after some moment."""
    start = int((1_800_000_000 + began_s) * SECOND)
    times = {"start_time_unix_nano": start, "end_time_unix_nano": start + int(took_s * SECOND)}
    return Span(
        **{
            "trace_id": trace,
            "span_id": number.to_bytes(8, "big"),
            "parent_span_id": (1).to_bytes(8, "big"),
            "name": "work",
            **times,
            **fields,
        }
    )


FAILED = {"status": Status(code=Status.STATUS_CODE_ERROR)}


def _ids(arrived: Iterable[Any]) -> list[tuple[bytes, int]]:
    """Return trace and number of each span, in order."""
    return sorted((span.trace_id, int.from_bytes(span.span_id, "big")) for span in arrived)


def _count(collector: Sidecar, name: str, **labels: str) -> float:
    """Return the sum of the samples of *name* with *labels*."""
    return sum(
        value
        for (sample, pairs), value in collector.own_metrics().items()
        if sample == name and labels.items() <= dict(pairs).items()
    )


def _wait_for_spans(gateway: Sidecar, number: int) -> None:
    """Wait until so many have been let in."""
    poll_until(lambda: _count(gateway, ACCEPTED) >= number, f"{number} spans at the gateway")


def _wait_for_decisions(gateway: Sidecar, number: int) -> None:
    poll_until(lambda: _count(gateway, DECIDED) >= number, f"{number} decisions")


@pytest.fixture
def backend() -> Iterator[Spans]:
    """Yield a trace backend that takes everything."""
    made = Spans()
    yield made
    made.stop()


def _gateway(collector: str, folder: Path, backend: Spans, variables: dict[str, str] = SOON) -> Gateway:
    folder.mkdir(exist_ok=True)
    return Gateway(collector, folder, COLLECTOR_TRACES_ENDPOINT=f"localhost:{backend.port}", **variables)


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_all_that_failed_all_that_were_slow_and_exactly_the_share_of_the_rest_are_kept(
    collector: str, tmp_path: Path, backend: Spans
) -> None:
    """Whole, whichever span it was that failed; the share is decided by the trace id alone."""
    usual = [_trace("usual", number) for number in range(400)]
    failed = [_trace("failed", number) for number in range(20)]
    slow = [_trace("slow", number) for number in range(20)]
    sent = [
        *(_child(trace, number) for trace in (*usual, *failed, *slow) for number in (2, 3)),
        *(_root(trace) for trace in usual),
        *(_root(trace, **FAILED) for trace in failed[:10]),
        *(each for trace in failed[10:] for each in (_root(trace), _child(trace, 4, **FAILED))),
        *(_root(trace, began_s=0.0, took_s=5.0) for trace in slow[:10]),  # itself
        *(each for trace in slow[10:] for each in (_root(trace), _child(trace, 4, began_s=6.0))),  # none, but together
    ]
    share = {trace for trace in usual if _is_of_the_share(trace)}
    kept = share | set(failed) | set(slow)
    expected = _ids(span for span in sent if span.trace_id in kept)
    gateway = _gateway(collector, tmp_path, backend)
    with gateway.running():
        assert send(gateway, spans(SERVICE, *sent))
        _wait_for_decisions(gateway, 440)
        poll_until(lambda: len(backend.spans) >= len(expected), "what is kept")
        by_policy = {
            policy: _count(gateway, BY_POLICY, policy=policy, sampled="true")
            for policy in ("errors", "slow", "rest", "head_always_on")
        }
    rest = {trace for trace in (*usual, *failed, *slow) if _is_of_the_share(trace)}

    assert expected == _ids(backend.spans)
    assert 20 <= len(share) <= 60
    assert {
        "errors": 20,
        "slow": 20,
        "rest": len(rest),
        "head_always_on": sum(trace[8] >= 0x80 for trace in rest),
    } == by_policy


def test_a_service_that_samples_at_the_head_can_be_seen_in_the_gateways_metrics(
    collector: str, tmp_path: Path, backend: Spans
) -> None:
    """A ratio lets only small trace ids through, so that the policy that counts the others stays at zero."""
    made = [_trace("head", number) for number in range(1000)]
    sampled = [trace for trace in made if int.from_bytes(trace[8:], "big") < 2**64 // 10]  # as parentbased_traceidratio
    gateway = _gateway(collector, tmp_path, backend, ALL)
    with gateway.running():
        assert send(gateway, spans(SERVICE, *map(_root, sampled)))
        _wait_for_decisions(gateway, len(sampled))
        with_a_ratio = [_count(gateway, BY_POLICY, policy=name, sampled="true") for name in ("rest", "head_always_on")]

    assert [len(sampled), 0] == with_a_ratio


def test_a_trace_is_decided_soon_after_its_root_and_without_one_when_the_wait_is_over(
    collector: str, tmp_path: Path, backend: Spans
) -> None:
    """So that a long wait costs memory for long traces only."""
    gateway = _gateway(collector, tmp_path, backend, {**ALL, "COLLECTOR_DECISION_WAIT": "4s"})
    with_root, without = _trace("root", 1), _trace("root", 2)
    with gateway.running():
        assert send(gateway, spans(SERVICE, _child(without, 2), _child(with_root, 2), _root(with_root)))
        poll_until(lambda: backend.spans, "the first trace")
        first = {span.trace_id for span in backend.spans}
        poll_until(lambda: len(backend.spans) == 3, "the second")

    assert {with_root} == first


def test_late_spans_follow_the_decision_and_cannot_change_it(collector: str, tmp_path: Path, backend: Spans) -> None:
    """Of a trace that is gone, not even an error that comes late arrives; docs/howto/gateway.md says so."""
    kept, gone = (
        _trace("late", 1),
        next(t for t in (_trace("late", n) for n in range(2, 99)) if not _is_of_the_share(t)),
    )
    gateway = _gateway(collector, tmp_path, backend)
    with gateway.running():
        assert send(gateway, spans(SERVICE, _root(kept, **FAILED), _root(gone)))
        _wait_for_decisions(gateway, 2)
        assert send(gateway, spans(SERVICE, _child(kept, 2), _child(gone, 2, **FAILED)))
        poll_until(lambda: len(backend.spans) >= 2, "the late span")

    assert [(kept, 1), (kept, 2)] == _ids(backend.spans)


def test_secrets_and_content_of_senders_without_a_sidecar_stay_behind(
    collector: str, tmp_path: Path, backend: Spans
) -> None:
    """The gateway redacts what it keeps."""
    private = {"gen_ai.input.messages": "private", "note": "sk-proj-abcdefghijklmnop1234"}
    gateway = _gateway(collector, tmp_path, backend, ALL)
    with gateway.running():
        made = _root(_trace("private", 1))
        for key, value in private.items():
            made.attributes.add(key=key).value.string_value = value
        assert send(gateway, spans(SERVICE, made))
        poll_until(lambda: backend.spans, "the span")

    assert [("note", "****")] == [(pair.key, pair.value.string_value) for pair in backend.spans[0].attributes]


def test_metrics_are_refused_for_good(collector: str, tmp_path: Path, backend: Spans) -> None:
    """Replicated gateways would mix up their order: there is no such service here."""
    gateway = _gateway(collector, tmp_path, backend)
    with gateway.running():
        with grpc.insecure_channel(f"localhost:{gateway.grpc}") as channel, pytest.raises(grpc.RpcError) as refused:
            metrics_service_pb2_grpc.MetricsServiceStub(channel).Export(ExportMetricsServiceRequest(), timeout=10)
        connection = http.client.HTTPConnection("localhost", gateway.http, timeout=10)
        connection.request("POST", "/v1/metrics", b"", {"Content-Type": "application/x-protobuf"})
        status = connection.getresponse().status
        connection.close()

    assert (grpc.StatusCode.UNIMPLEMENTED, 404) == (refused.value.code(), status)


# ---- what is lost ----------------------------------------------------------------------------------------------------


def test_kill_9_loses_what_was_not_decided_and_nothing_else(collector: str, tmp_path: Path, backend: Spans) -> None:
    """Decided traces wait on disk, undecided ones in memory: the documented limit."""
    decided = [_trace("decided", number) for number in range(200)]
    undecided = [_trace("undecided", number) for number in range(50)]
    backend.behave(UNAVAILABLE)
    gateway = _gateway(collector, tmp_path, backend, ALL)
    with gateway.running():
        assert send(gateway, spans(SERVICE, *map(_root, decided)))
        _wait_for_decisions(gateway, len(decided))
        assert send(gateway, spans(SERVICE, *map(_root, undecided)))
        gateway.kill()
    backend.behave(OK)
    with gateway.running():
        poll_until(lambda: len({span.trace_id for span in backend.spans}) >= len(decided), "all that was decided")

    assert set(decided) == {span.trace_id for span in backend.spans}


def test_a_stop_decides_what_waits_and_loses_nothing(collector: str, tmp_path: Path, backend: Spans) -> None:
    """On SIGTERM, with the backend away; what has been decided is on disk when the process ends."""
    made = [_trace("stop", number) for number in range(200)]
    backend.behave(UNAVAILABLE)
    gateway = _gateway(collector, tmp_path, backend, {**ALL, "COLLECTOR_DECISION_WAIT": "60s"})
    with gateway.running():
        assert send(gateway, spans(SERVICE, *(_child(trace, 2) for trace in made)))
    backend.behave(OK)
    with gateway.running():
        poll_until(lambda: len(backend.spans) >= len(made), "everything")

    assert _ids(_child(trace, 2) for trace in made) == _ids(backend.spans)


def test_a_full_queue_makes_clients_wait_and_drops_nothing_that_was_acknowledged(
    collector: str, tmp_path: Path, backend: Spans
) -> None:
    """The sampler could only drop what the queue refuses, so the queue does not refuse."""
    backend.behave(UNAVAILABLE)
    gateway = _gateway(collector, tmp_path, backend, {**ALL, "COLLECTOR_TRACES_QUEUE_BYTES": "300000"})
    made = [_trace("full", number) for number in range(600)]
    one_by_one = iter([_trace("full, too", number) for number in range(1000)])
    acknowledged = set(made)

    def waits() -> bool:
        trace = next(one_by_one)
        if taken := _sent_at_once(gateway, spans(SERVICE, _root(trace))):
            acknowledged.add(trace)
        return not taken

    with gateway.running():
        assert send(gateway, spans(SERVICE, *(_root(trace, name="x" * 1000) for trace in made)))
        poll_until(waits, "a client that waits")
        backend.behave(OK)
        poll_until(lambda: acknowledged <= {span.trace_id for span in backend.spans}, "all that was acknowledged")
        _wait_for_decisions(gateway, len(acknowledged))


def _sent_at_once(gateway: Sidecar, message: ExportTraceServiceRequest) -> bool:
    connection = http.client.HTTPConnection("localhost", gateway.http, timeout=1)
    try:
        connection.request(
            "POST", "/v1/traces", message.SerializeToString(), {"Content-Type": "application/x-protobuf"}
        )
        return connection.getresponse().status == 200
    except TimeoutError:
        return False
    finally:
        connection.close()


# ---- several gateways ------------------------------------------------------------------------------------------------


class Tier:
    """Two load balancers in front of two gateways, each of which has a backend of its own."""

    def __init__(self, collector: str, folder: Path) -> None:
        self.backends = [Spans(), Spans()]
        self.gateways = [
            _gateway(collector, folder / f"gateway-{number}", backend, {**ALL, "COLLECTOR_DECISION_WAIT": "3s"})
            for number, backend in enumerate(self.backends)
        ]
        gateways = at_ports(*(gateway.grpc for gateway in self.gateways))
        self.balancers = []
        for number in range(2):
            (folder / f"balancer-{number}").mkdir()
            self.balancers.append(LoadBalancer(collector, folder / f"balancer-{number}", COLLECTOR_GATEWAYS=gateways))

    def start(self, stack: ExitStack) -> None:
        """Start all of it, and end it with *stack*."""
        for backend in self.backends:
            stack.callback(backend.stop)
        for each in (*self.gateways, *self.balancers):
            stack.enter_context(each.running())

    def traces(self) -> list[set[bytes]]:
        """Return the traces that have arrived, gateway by gateway."""
        return [{span.trace_id for span in backend.spans} for backend in self.backends]


def test_spans_of_a_trace_meet_in_one_gateway_whichever_way_they_came(collector: str, tmp_path: Path) -> None:
    """Halves of each trace by different load balancers, one after the other: each trace is whole, at one gateway."""
    made = [_trace("half", number) for number in range(200)]
    tier = Tier(collector, tmp_path)
    with ExitStack() as stack:
        tier.start(stack)
        assert send(tier.balancers[0], spans(SERVICE, *(_child(trace, 2) for trace in made)))
        poll_until(lambda: all(_count(each, ACCEPTED) for each in tier.gateways), "halves")
        assert send(tier.balancers[1], spans(SERVICE, *map(_root, made)))
        poll_until(lambda: sum(len(backend.spans) for backend in tier.backends) == 2 * len(made), "all spans")
        first, second = tier.traces()
        decided = [_count(gateway, DECIDED) for gateway in tier.gateways]

    assert set() == first & second
    assert set(made) == first | second
    assert [len(first), len(second)] == decided
    assert min(decided) > len(made) / 4


def test_while_a_gateway_is_away_its_traces_wait_at_the_load_balancer(collector: str, tmp_path: Path) -> None:
    """0 lost of what the load balancer has acknowledged, in an outage of one gateway and a kill of its own."""
    made = [_trace("away", number) for number in range(200)]
    tier = Tier(collector, tmp_path)
    balancer, away = tier.balancers[0], tier.gateways[0]
    with ExitStack() as stack:
        tier.start(stack)
        away.kill()
        assert send(balancer, spans(SERVICE, *map(_root, made)))
        poll_until(lambda: tier.traces()[1], "the share of the other gateway")
        balancer.kill()
        balancer.start()
        away.start()
        poll_until(lambda: len(set.union(*tier.traces())) == len(made), "all traces")
        first, second = tier.traces()

    assert set() == first & second


# ---- who may send ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return an authority with a server and a client."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


class Guarded:
    """A gateway that asks for certificates and one of the tokens in a file, and what a client needs for it."""

    def __init__(self, collector: str, folder: Path, certificates: Certificates, backend: Spans) -> None:
        self.tokens, self.token = folder / "tokens.yaml", folder / "token"
        self.tokens.write_text("- right\n", encoding="utf-8")
        self.token.write_text("right\n", encoding="utf-8")
        ours = {
            f"COLLECTOR_TRACES_{kind}_FILE": certificates.path(name)
            for kind, name in (("CA", "ca.pem"), ("CERT", "client.pem"), ("KEY", "client.key"))
        }
        self.client = {**ours, "COLLECTOR_TRACES_TOKEN_FILE": str(self.token)}
        self.server = {
            "COLLECTOR_SERVER_CERT_FILE": certificates.path("server.pem"),
            "COLLECTOR_SERVER_KEY_FILE": certificates.path("server.key"),
            "COLLECTOR_SERVER_CLIENT_CA_FILE": certificates.path("ca.pem"),
            "COLLECTOR_SERVER_TOKENS_FILE": str(self.tokens),
        }
        self.gateway = _gateway(collector, folder / "gateway", backend, {**ALL, **ours, **self.server})
        self._folder, self._collector = folder, collector

    def running(self) -> Any:
        """Run the gateway, with TLS to its backend too."""
        return self.gateway.running("gateway-tls.yaml", "gateway-bearer.yaml", "traces-tls.yaml", gates=APPEND)

    def sidecar(self, **variables: str) -> Sidecar:
        """Return a sidecar that sends to the gateway."""
        (self._folder / "sidecar").mkdir(exist_ok=True)
        endpoint = f"localhost:{self.gateway.grpc}"
        settings = {**self.client, "COLLECTOR_TRACES_ENDPOINT": endpoint, **variables}
        return Sidecar(self._collector, self._folder / "sidecar", **settings)


@pytest.fixture
def guarded(collector: str, tmp_path: Path, certificates: Certificates) -> Iterator[tuple[Guarded, Spans]]:
    """Yield a guarded gateway that is not running yet, and the backend behind it."""
    backend = Spans(certificates)
    yield Guarded(collector, tmp_path, certificates, backend), backend
    backend.stop()


SIDECAR_OVERLAYS = ("traces-tls.yaml", "traces-bearer.yaml")


def test_spans_pass_from_the_sidecar_by_the_load_balancer_to_the_backend_over_mutual_tls_with_tokens(
    collector: str, tmp_path: Path, guarded: tuple[Guarded, Spans]
) -> None:
    """Every hop with certificates, the first two with a token; gateways are found by DNS, and called by their name."""
    gate, backend = guarded
    (tmp_path / "balancer").mkdir()
    found = {
        "COLLECTOR_GATEWAYS": f'dns: {{hostname: 127.0.0.1, port: "{gate.gateway.grpc}"}}',
        "COLLECTOR_TRACES_SERVER_NAME": "localhost",
    }
    settings = {**gate.server, **gate.client, **found}
    balancer = LoadBalancer(collector, tmp_path / "balancer", **settings)
    sidecar = gate.sidecar(COLLECTOR_TRACES_ENDPOINT=f"localhost:{balancer.grpc}")
    between = ("gateway-loadbalancing-tls.yaml", "gateway-loadbalancing-bearer.yaml")
    with (
        gate.running(),
        balancer.running("gateway-tls.yaml", "gateway-bearer.yaml", *between, gates=APPEND),
        sidecar.running(*SIDECAR_OVERLAYS),
    ):
        assert send(sidecar, spans(SERVICE, _root(_trace("guarded", 1))))
        poll_until(lambda: backend.spans, "a span")

    assert [(_trace("guarded", 1), 1)] == _ids(backend.spans)


def test_tokens_are_rotated_without_a_loss_first_here_then_there(guarded: tuple[Guarded, Spans]) -> None:
    """The new token is added, the clients get it, the old one is taken away."""
    gate, _ = guarded
    sidecar = gate.sidecar()
    with gate.running(), sidecar.running(*SIDECAR_OVERLAYS):
        assert send(sidecar, spans(SERVICE, _root(_trace("rotated", 1))))
        _wait_for_spans(gate.gateway, 1)
        gate.tokens.write_text("- new\n- right\n", encoding="utf-8")
        gate.gateway.reload()
        before = _reads_of_the_token(sidecar)
        _replace(gate.token, "new\n")
        gate.tokens.write_text("- new\n", encoding="utf-8")
        poll_until(lambda: _reads_of_the_token(sidecar) > before, "the new token")
        gate.gateway.reload()
        assert send(sidecar, spans(SERVICE, _root(_trace("rotated", 2))))
        poll_until(lambda: _count(gate.gateway, ACCEPTED) == 1, "a span with the new token")  # from zero again
        failed = _count(sidecar, FAILED_TO_SEND)

    assert 0 == failed


def _reads_of_the_token(sidecar: Sidecar) -> int:
    return sidecar.log.read_text(encoding="utf-8").count("refresh token")


def _replace(path: Path, text: str) -> None:
    """Write a file anew in one step, as whoever rotates secrets must."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def test_a_wrong_token_is_refused_and_what_came_with_it_is_dropped_and_counted(guarded: tuple[Guarded, Spans]) -> None:
    """UNAUTHENTICATED is final by OTLP; docs/howto/gateway.md says in which order to rotate."""
    gate, backend = guarded
    gate.token.write_text("wrong\n", encoding="utf-8")
    sidecar = gate.sidecar()
    with gate.running(), sidecar.running(*SIDECAR_OVERLAYS):
        assert send(sidecar, spans(SERVICE, _root(_trace("wrong", 1))))
        poll_until(lambda: _count(sidecar, FAILED_TO_SEND) == 1, "a span that is given up")

    assert [] == backend.spans


def test_without_the_right_certificate_spans_wait_until_it_is_there(guarded: tuple[Guarded, Spans]) -> None:
    """A handshake that fails is no answer, so nothing is lost."""
    gate, _ = guarded
    stranger = gate.sidecar(COLLECTOR_TRACES_CERT_FILE="", COLLECTOR_TRACES_KEY_FILE="")
    with gate.running():
        with stranger.running(*SIDECAR_OVERLAYS):
            assert send(stranger, spans(SERVICE, _root(_trace("stranger", 1))))
            poll_until(lambda: "Exporting failed. Will retry" in stranger.log.read_text(encoding="utf-8"), "a refusal")
            before = _count(gate.gateway, ACCEPTED)
        with gate.sidecar().running(*SIDECAR_OVERLAYS):
            _wait_for_spans(gate.gateway, 1)

    assert 0 == before


def _answers(gateway: Sidecar, *authorizations: str) -> list[str]:
    """Return how each of the headers is answered; there is no TLS."""
    answers = []
    with grpc.insecure_channel(f"localhost:{gateway.grpc}") as channel:
        export = trace_service_pb2_grpc.TraceServiceStub(channel).Export
        for each in authorizations:
            try:
                export(ExportTraceServiceRequest(), metadata=[("authorization", each)], timeout=10)
            except grpc.RpcError as error:
                answers.append(error.code().name)
            else:
                answers.append("OK")
    return answers


@pytest.mark.parametrize("content", ["- right\n", "- other\n- right\n\n"], ids=["one line", "an empty line at the end"])
def test_an_empty_token_lets_nobody_in(collector: str, tmp_path: Path, backend: Spans, content: str) -> None:
    """At 0.144 a file of tokens that ends with a newline would; ours is a list."""
    (tmp_path / "tokens.yaml").write_text(content, encoding="utf-8")
    gateway = _gateway(collector, tmp_path, backend, {"COLLECTOR_SERVER_TOKENS_FILE": str(tmp_path / "tokens.yaml")})
    with gateway.running("gateway-bearer.yaml"):
        answers = _answers(gateway, "Bearer ", "Bearer", "", "Bearer wrong", "Bearer right")

    assert ["UNAUTHENTICATED"] * 4 + ["OK"] == answers


def test_a_name_and_its_password_let_in_and_nothing_else_does(collector: str, tmp_path: Path, backend: Spans) -> None:
    """The password of the file is hashed with bcrypt."""
    hashed = "$2b$05$UnJ5QkLv3XXZQSAQ99iCF.W.HkwJ1GuYerBcBgSR9bUMc.pT5m.4u"
    (tmp_path / "htpasswd").write_text(f"somebody:{hashed}\n", encoding="utf-8")
    gateway = _gateway(collector, tmp_path, backend, {"COLLECTOR_SERVER_HTPASSWD_FILE": str(tmp_path / "htpasswd")})
    with gateway.running("gateway-basic.yaml"):
        answers = _answers(
            gateway, *(f"Basic {b64encode(each).decode()}" for each in (b"somebody:", b":", b"somebody:0123"))
        )

    assert ["UNAUTHENTICATED", "UNAUTHENTICATED", "OK"] == answers

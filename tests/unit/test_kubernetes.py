# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes manifest: valid for the schemas of Kubernetes, safe, and in agreement with the Collector's files."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from jeeves_otel.generators.collector import VARIABLES

if TYPE_CHECKING:
    from collections.abc import Callable

BUNDLE = Path(__file__).parents[2] / "collector"
DEFAULTS = {each.name: each.default or "" for each in VARIABLES}
OLDEST, NEWEST = "1.29", "1.37"  # native sidecars are on by default from 1.29
_UNITS = {"Mi": 2**20, "Gi": 2**30, "MiB": 2**20}


def _manifest() -> dict[str, Any]:
    (document,) = yaml.safe_load_all((BUNDLE / "kubernetes/deployment.yaml").read_text(encoding="utf-8"))
    return document  # type: ignore[no-any-return]


def _pod() -> dict[str, Any]:
    pod: dict[str, Any] = _manifest()["spec"]["template"]["spec"]
    return pod


def _sidecar() -> dict[str, Any]:
    (sidecar,) = _pod()["initContainers"]
    return sidecar  # type: ignore[no-any-return]


def _variables(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS[unit]


def _port(name: str) -> int:
    return int(DEFAULTS[name].rpartition(":")[2])


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_manifest_is_valid(version: str) -> None:
    """For the oldest Kubernetes with native sidecars, and the newest whose schema is here."""
    kubernetes_validate.validate(_manifest(), version, strict=True)


def _rename(place: Callable[[dict[str, Any]], dict[str, Any]], old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def spoil(pod: dict[str, Any]) -> None:
        place(pod)[new] = place(pod).pop(old)

    return spoil


def _sidecar_of(pod: dict[str, Any]) -> dict[str, Any]:
    return pod["initContainers"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "spoil",
    [
        _rename(_sidecar_of, "restartPolicy", "restartpolicy"),
        _rename(_sidecar_of, "startupProbe", "startProbe"),
        _rename(lambda pod: _sidecar_of(pod)["securityContext"], "readOnlyRootFilesystem", "readonlyRootFilesystem"),
        _rename(lambda pod: pod, "terminationGracePeriodSeconds", "gracePeriodSeconds"),
        lambda pod: _sidecar_of(pod)["ports"][0].update(containerPort="13133"),
        lambda pod: pod["volumes"][2].update(ephemeral={"volumeClaimTemplate": {"accessModes": ["ReadWriteOnce"]}}),
    ],
    ids=["restart", "probe", "read-only", "grace", "port", "volume"],
)
def test_a_wrong_field_is_not_valid(spoil: Callable[[dict[str, Any]], None]) -> None:
    """The schemas see what a reader would not."""
    spoiled = copy.deepcopy(_manifest())
    spoil(spoiled["spec"]["template"]["spec"])

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoiled, NEWEST, strict=True)


def test_the_collector_is_a_native_sidecar() -> None:
    """There before the service and after it; the schemas know no values of this field."""
    assert "Always" == _sidecar()["restartPolicy"]


def test_probes_ask_where_the_collector_says_that_it_lives() -> None:
    """Its health, which says nothing of backends; and no probe decides whether the pod gets requests."""
    sidecar = _sidecar()
    ports = {each["name"]: each["containerPort"] for each in sidecar["ports"]}
    asked = [(sidecar[probe]["httpGet"]["path"], ports[sidecar[probe]["httpGet"]["port"]]) for probe in _probes()]
    listens = _variables(sidecar)["COLLECTOR_HEALTH"]
    path = yaml.safe_load((BUNDLE / "sidecar.yaml").read_text(encoding="utf-8"))["extensions"]["health_check"].get(
        "path"
    )

    assert [("/", _port("COLLECTOR_HEALTH"))] * 2 == asked
    assert f"0.0.0.0:{_port('COLLECTOR_HEALTH')}" == listens
    assert path in {None, "/"}
    assert "readinessProbe" not in sidecar


def _probes() -> tuple[str, ...]:
    return "startupProbe", "livenessProbe"


def test_ports_are_those_of_the_generated_configuration() -> None:
    """OTLP and the inner hop are not among them: they stay on loopback."""
    declared = {each["name"]: each["containerPort"] for each in _sidecar()["ports"]}
    listens = {name: value for name, value in _variables(_sidecar()).items() if value.startswith("0.0.0.0")}  # noqa: S104 - that is what is looked for

    assert {"health": _port("COLLECTOR_HEALTH"), "otelcol-metrics": _port("COLLECTOR_SELF_PORT")} == declared
    assert {"COLLECTOR_HEALTH", "COLLECTOR_SELF_HOST"} == listens.keys()


def test_every_variable_of_the_sidecar_is_read() -> None:
    """None of the Collector's is set in vain."""
    own = {name for name in _variables(_sidecar()) if name.startswith(("COLLECTOR_", "JEEVES_"))}

    assert own
    assert set() == own - DEFAULTS.keys()


def test_files_of_the_arguments_come_from_the_config_map_extras_last() -> None:
    """In the order in which they win."""
    generator = yaml.safe_load((BUNDLE / "kustomization.yaml").read_text(encoding="utf-8"))
    (config_map,) = generator["configMapGenerator"]
    (volume,) = [each for each in _pod()["volumes"] if each.get("configMap", {}).get("name") == config_map["name"]]
    (mount,) = [each for each in _sidecar()["volumeMounts"] if each["name"] == volume["name"]]
    read = [argument.removeprefix("--config=") for argument in _sidecar()["args"]]

    assert [f"{mount['mountPath']}/{name}" for name in config_map["files"]] == read
    assert ["sidecar.yaml", "extras.yaml"] == config_map["files"]
    assert [] == [name for name in (*config_map["files"], *generator["resources"]) if not (BUNDLE / name).is_file()]


def test_no_container_has_rights() -> None:
    """Not root, no capability, nothing to write but volumes, and only the usual system calls."""
    pod = _pod()
    expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}

    assert [expected] * 2 == [each["securityContext"] for each in (*pod["initContainers"], *pod["containers"])]
    assert {"runAsNonRoot": True, "runAsUser": 10001}.items() <= pod["securityContext"].items()
    assert {"type": "RuntimeDefault"} == pod["securityContext"]["seccompProfile"]
    assert not pod["automountServiceAccountToken"]


def test_the_go_runtime_knows_four_fifths_of_the_memory_limit() -> None:
    """Which is above the share at which the Collector refuses, so that it refuses before it works for the collector of garbage alone."""
    limit = _bytes(_sidecar()["resources"]["limits"]["memory"])
    ratio = _bytes(_variables(_sidecar())["GOMEMLIMIT"]) / limit

    assert pytest.approx(0.8, abs=0.01) == ratio
    assert int(DEFAULTS["COLLECTOR_MEMORY_PERCENT"]) < 100 * ratio


def test_the_queue_has_a_disk_of_its_own_that_is_large_enough() -> None:
    """No emptyDir, which would evict the service when it is full; twice both queues, for the file never shrinks."""
    volumes = {each["name"]: each for each in _pod()["volumes"]}
    (mount,) = [
        each for each in _sidecar()["volumeMounts"] if each["mountPath"] == DEFAULTS["COLLECTOR_QUEUE_DIRECTORY"]
    ]
    storage = volumes[mount["name"]]["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"]
    queues = int(DEFAULTS["COLLECTOR_TRACES_QUEUE_BYTES"]) + int(DEFAULTS["COLLECTOR_METRICS_QUEUE_BYTES"])

    assert _bytes(storage) >= 2 * queues
    assert not mount.get("readOnly")


def test_there_is_time_to_deliver_at_the_end() -> None:
    """For the service and then for a request of the Collector that is under way."""
    grace_s = _pod()["terminationGracePeriodSeconds"]

    assert grace_s > 2 * int(DEFAULTS["COLLECTOR_HOP_TIMEOUT"].removesuffix("s"))


def test_every_mount_has_a_volume() -> None:
    """The schemas do not compare names."""
    pod = _pod()
    mounted = {mount["name"] for each in (*pod["initContainers"], *pod["containers"]) for mount in each["volumeMounts"]}

    assert {each["name"] for each in pod["volumes"]} == mounted


def test_secrets_are_files() -> None:
    """No variable is filled from one."""
    pod = _pod()
    sources = [
        each
        for container in (*pod["initContainers"], *pod["containers"])
        for each in container["env"]
        if "valueFrom" in each
    ]

    assert [] == [each["name"] for each in sources if "secretKeyRef" in each["valueFrom"]]
    assert ["otelcol"] == [each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each]

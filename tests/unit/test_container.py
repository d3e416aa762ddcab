# SPDX-License-Identifier: Apache-2.0
"""What can be known about the image, the compose file and the sidecar without a container engine."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from jeeves_otel.settings import VARIABLES

ROOT = Path(__file__).parents[2]
EXACT = re.compile(r"^[\w./-]+:\d+\.\d+\.\d+(-[\w.-]+)?$")
COLLECTOR_FILES = sorted(f"collector/{path.name}" for path in (ROOT / "jeeves_otel/data/collector").glob("*.yaml"))
OWN = ("JEEVES_OTEL_", "METRICS_")


def _instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile as ``(instruction, rest)``, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(word.upper(), rest) for word, _, rest in (line.partition(" ") for line in joined)]


def _last_stage() -> list[tuple[str, str]]:
    instructions = _instructions()
    return instructions[max(index for index, (word, _) in enumerate(instructions) if word == "FROM") :]


def _compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def _sidecar() -> dict[str, Any]:
    # A value that begins with a variable is a plain scalar to YAML; the Collector fills it in later.
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "collector/sidecar.yaml").read_text(encoding="utf-8"))
    return loaded


def _names_in_use() -> set[str]:
    text = " ".join(rest for word, rest in _instructions() if word == "ENV")
    names = {pair.partition("=")[0] for pair in shlex.split(text)}
    for service in _compose()["services"].values():
        names |= service.get("environment", {}).keys()
    return names


def test_every_image_is_pinned_to_an_exact_version() -> None:
    """No base image and no image of the compose file that is pulled floats."""
    images = [rest.split()[0] for word, rest in _instructions() if word == "FROM"]
    images += [each["image"] for each in _compose()["services"].values() if "build" not in each]

    assert [] == [image for image in images if not EXACT.match(image)]


def test_both_stages_start_from_the_same_image() -> None:
    """The environment that one stage builds finds the same Python in the other."""
    images = {rest.split()[0] for word, rest in _instructions() if word == "FROM"}

    assert 1 == len(images)


def test_the_image_runs_as_a_user_without_rights() -> None:
    """The last USER is a number that is not root's."""
    users = [rest for word, rest in _last_stage() if word == "USER"]

    assert users
    assert all(int(part) > 0 for part in users[-1].split(":"))


def test_the_command_of_the_image_starts_with_the_launcher() -> None:
    """Telemetry is on without a line of code, as for any user."""
    command = next(json.loads(rest) for word, rest in _last_stage() if word == "CMD")

    assert "opentelemetry-instrument" == command[0]
    assert "jeeves_otel.demo.service:app" in command


def test_the_image_stops_as_every_other() -> None:
    """By SIGTERM, which delivers telemetry first: see test_termination."""
    assert "STOPSIGNAL" not in {word for word, _ in _last_stage()}


def test_kernel_and_gateway_stand_in_one_network_and_find_each_other() -> None:
    """With the defaults of both, and a page for each."""
    services = _compose()["services"]

    assert "service:gateway" == services["kernel"]["network_mode"]
    assert ["opentelemetry-instrument", "python", "-m", "jeeves_otel.demo.kernel"] == services["kernel"]["command"]
    assert "9091" == services["kernel"]["environment"]["METRICS_PORT"]
    assert "KERNEL_ADDRESS" not in _names_in_use()


def test_everything_that_the_image_copies_exists_and_is_not_ignored() -> None:
    """Sources of COPY are in the repository and let through by .dockerignore."""
    sources = [
        part for word, rest in _instructions() if word == "COPY" and "--from" not in rest for part in rest.split()[:-1]
    ]
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    }

    assert sources
    assert [] == [source for source in sources if not (ROOT / source).exists()]
    assert {source.removeprefix("./") for source in sources} == allowed


def test_the_image_installs_what_the_lock_file_says() -> None:
    """Every sync of uv is locked, with the extra of the demo and without development tools."""
    syncs = [rest for word, rest in _instructions() if word == "RUN" and "uv sync" in rest]

    assert syncs
    assert all({"--locked", "--no-dev", "demo"} <= set(sync.split()) for sync in syncs)


def test_the_image_uses_the_uv_of_the_makefile() -> None:
    """One version of uv writes and reads the lock file."""
    in_makefile = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    assert in_makefile is not None
    assert any(f"uv=={in_makefile.group(1)}" in rest for word, rest in _instructions() if word == "RUN")


def test_every_setting_in_use_is_one_that_exists() -> None:
    """Image and compose file set no variable of ours that nobody reads."""
    used = {name for name in _names_in_use() if name.startswith(OWN)}

    assert used
    assert set() == used - {variable.name for variable in VARIABLES}


def test_ports_are_published_on_loopback_only() -> None:
    """Nothing of the demo is reachable from another machine."""
    ports = [port for each in _compose()["services"].values() for port in each.get("ports", [])]

    assert ports
    assert [] == [port for port in ports if not str(port).startswith("127.0.0.1:")]


def test_published_ports_are_exposed_by_the_image() -> None:
    """What compose publishes is what the image says it serves."""
    exposed = {port for word, rest in _last_stage() if word == "EXPOSE" for port in rest.split()}
    published = {str(port).rpartition(":")[2] for port in _compose()["services"]["gateway"]["ports"]}

    assert exposed == published


def test_the_collector_stands_in_the_network_of_the_gateway() -> None:
    """A sidecar, reached over loopback, with the configuration of the repository."""
    collector = _compose()["services"]["collector"]
    source, target, mode = collector["volumes"][0].split(":")

    assert "service:gateway" == collector["network_mode"]
    assert "ro" == mode
    assert (ROOT / source).is_file()
    assert [f"--config={target}"] == collector["command"]


def test_image_and_builder_have_the_same_collector_version() -> None:
    """What is tested is what runs."""
    image = _compose()["services"]["collector"]["image"]
    manifest = yaml.safe_load((ROOT / "collector/builder.yaml").read_text(encoding="utf-8"))
    versions = (ROOT / "collector/versions.env").read_text(encoding="utf-8")

    assert manifest["dist"]["version"] == image.rpartition(":")[2]
    assert f"COLLECTOR_VERSION={manifest['dist']['version']}\n" in versions
    for each in manifest["providers"]:
        assert f"COLLECTOR_STABLE_VERSION={each['gomod'].rpartition(' v')[2]}\n" in versions


def test_every_component_is_pinned_to_the_version_of_the_collector() -> None:
    """Components of two versions do not build, or do not fit."""
    manifest = yaml.safe_load((ROOT / "collector/builder.yaml").read_text(encoding="utf-8"))
    kinds = ("extensions", "receivers", "processors", "exporters")
    versions = {each["gomod"].split()[1] for kind in kinds for each in manifest[kind]}

    assert {f"v{manifest['dist']['version']}"} == versions


def test_the_limiter_stands_first_in_every_pipeline() -> None:
    """What does not fit into memory is refused before anything is done with it."""
    first = {name: pipeline["processors"][0] for name, pipeline in _sidecar()["service"]["pipelines"].items()}

    assert dict.fromkeys(("traces", "metrics", "metrics/rw"), "memory_limiter") == first


def test_the_sidecar_listens_on_loopback_unless_told_otherwise() -> None:
    """Default addresses of receivers, health and own metrics are all 127.0.0.1."""
    sidecar = _sidecar()
    protocols = [each for receiver in sidecar["receivers"].values() for each in receiver["protocols"].values()]
    endpoints = [each["endpoint"] for each in protocols] + [sidecar["extensions"]["health_check"]["endpoint"]]
    own = sidecar["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]["host"]

    assert [] == [endpoint for endpoint in endpoints if not re.search(r":-127\.0\.0\.1:\d+}$", endpoint)]
    assert "${env:COLLECTOR_SELF_HOST:-127.0.0.1}" == own


def test_every_switch_of_the_collector_in_compose_is_read_by_the_sidecar() -> None:
    """No COLLECTOR_ variable is set in vain, and each one in use is described at the head of the file."""
    text = (ROOT / "collector/sidecar.yaml").read_text(encoding="utf-8")
    read = set(re.findall(r"\$\{env:(\w+)", text)) - {"HOSTNAME"}  # which every container has
    set_in_compose = {
        name for name in _compose()["services"]["collector"]["environment"] if name.startswith("COLLECTOR_")
    }

    assert set() == set_in_compose - read
    assert set() == {name for name in read if not re.search(rf"^# {name} ", text, re.MULTILINE)}


@pytest.mark.parametrize("path", ["compose.yaml", "collector/builder.yaml", *COLLECTOR_FILES])
def test_no_key_stands_twice(path: str) -> None:
    """YAML would keep the last one in silence."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT002 - upstream
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{path}:{node.start_mark.line + 1}: {keys}"
            return super().construct_mapping(node, deep)

    yaml.load((ROOT / path).read_text(encoding="utf-8"), Strict)  # noqa: S506 - a subclass of the safe loader

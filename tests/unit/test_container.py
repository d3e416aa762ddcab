# SPDX-License-Identifier: Apache-2.0
"""What can be known about the image, the compose file and the sidecar without a container engine."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from jeeves_otel.checks import load_checked
from jeeves_otel.demo.parts import PROMETHEUS_FLAGS
from jeeves_otel.generators import render
from jeeves_otel.generators.collector import VARIABLES as COLLECTOR_VARIABLES
from jeeves_otel.registry import profile_names
from jeeves_otel.settings import VARIABLES
from jeeves_otel.specification import examine

ROOT = Path(__file__).parents[2]
EXACT = re.compile(r"^[\w./-]+:v?\d+\.\d+\.\d+(-[\w.-]+)?$")
COLLECTOR_FILES = sorted(f"collector/{path.name}" for path in (ROOT / "jeeves_otel/data/collector").glob("*.yaml"))
OWN = ("JEEVES_OTEL_", "METRICS_")
GRAFANA = ROOT / "collector/grafana"


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


@pytest.mark.parametrize(("right", "wrong"), [("mem_limit:", "memlimit:"), ("retries: 15", "retries: [15]")])
def test_the_compose_file_is_valid_and_a_wrong_one_is_not(tmp_path: Path, right: str, wrong: str) -> None:
    """For the schema of the Compose specification, which needs no engine."""
    spoiled = tmp_path / "compose.yaml"
    spoiled.write_text((ROOT / "compose.yaml").read_text("utf-8").replace(right, wrong, 1), encoding="utf-8")
    check = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    ended = [
        subprocess.run([*check, each], capture_output=True, check=False) for each in (ROOT / "compose.yaml", spoiled)
    ]

    assert [0, 1] == [each.returncode for each in ended], ended[0].stdout


def test_the_collector_stands_in_the_network_of_the_gateway() -> None:
    """A sidecar, reached over loopback."""
    assert "service:gateway" == _compose()["services"]["collector"]["network_mode"]


def test_the_collector_reads_what_is_mounted_extras_last() -> None:
    """In the order in which the files win, the user's own in the end."""
    collector = _compose()["services"]["collector"]
    mounts = [each.split(":") for each in collector["volumes"]]
    read = [target for source, target, *mode in mounts if source.endswith(".yaml") and mode == ["ro"]]

    assert [f"--config={target}" for target in read] == collector["command"]
    assert ["sidecar.yaml", "alerts.yaml", "extras.yaml"] == [Path(target).name for target in read]


def test_everything_that_compose_mounts_or_builds_exists() -> None:
    """An engine would make an empty folder of what is missing; and every named volume is declared."""
    services = _compose()["services"].values()
    sources = [str(each).split(":", maxsplit=1)[0] for service in services for each in service.get("volumes", [])]
    named = {source for source in sources if not source.startswith("./")}
    paths = [source for source in sources if source.startswith("./")]
    paths += [str(service["build"]) for service in services if "build" in service]

    assert [] == [path for path in paths if not (ROOT / path).exists()]
    assert named == _compose()["volumes"].keys()


def test_images_are_those_of_the_versions_file() -> None:
    """One file says which versions belong together; formats that cannot read it repeat them."""
    said = dict(re.findall(r"^(\w+_IMAGE)=(.+)$", (ROOT / "collector/versions.env").read_text("utf-8"), re.MULTILINE))
    pulled = {each["image"] for each in _compose()["services"].values() if "build" not in each}
    pod = yaml.safe_load((ROOT / "collector/kubernetes/deployment.yaml").read_text("utf-8"))["spec"]["template"]["spec"]
    stages = re.findall(r"^FROM (\S+)", (ROOT / "collector/Dockerfile").read_text("utf-8"), re.MULTILINE)

    assert {value for name, value in said.items() if name not in {"COLLECTOR_IMAGE", "GO_IMAGE"}} == pulled
    assert said["COLLECTOR_IMAGE"] == pod["initContainers"][0]["image"]
    assert [said["GO_IMAGE"], "scratch"] == stages
    assert f"# {said['COLLECTOR_IMAGE']} does" in re.sub(r"\s+", " ", (ROOT / "compose.yaml").read_text("utf-8"))


def test_images_and_parts_are_of_one_version() -> None:
    """What `make stack` builds is what compose pulls, although some modules count differently: 3.15 is 0.315, 2.13 is 1.76."""
    text = (ROOT / "collector/versions.env").read_text(encoding="utf-8")
    said = dict(re.findall(r"^(\w+)=(.+)$", text, re.MULTILINE))
    major, minor = said["PROMETHEUS_IMAGE"].rpartition(":v")[2].split(".")[:2]

    assert f"0.{major}{minor:0>2}.0" == said["PROMETHEUS_VERSION"]
    assert said["ALERTMANAGER_IMAGE"].endswith(f":v{said['ALERTMANAGER_VERSION']}")
    assert said["COLLECTOR_IMAGE"].endswith(f":{said['COLLECTOR_VERSION']}")
    assert f"# Jaeger v{said['JAEGER_IMAGE'].rpartition(':')[2].removesuffix('.0')};" in text


def test_prometheus_has_the_same_flags_in_compose_as_in_the_stack() -> None:
    """Without them remote write is refused, exemplars are dropped, and a month is not there."""
    flags = [each for each in _compose()["services"]["prometheus"]["command"] if "/" not in each]

    assert list(PROMETHEUS_FLAGS) == flags


def test_targets_of_prometheus_are_services_of_compose() -> None:
    """The addresses of loopback would be those of its own container."""
    compose = _compose()["services"]
    listed = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))[0]["targets"]
        for path in (ROOT / "collector/compose/targets").glob("*.yaml")
    }

    prometheus = {"prometheus": ["prometheus:9090"]}
    assert {"alertmanager": ["alertmanager:9093"], "otelcol": ["gateway:8888"], **prometheus} == listed
    assert "0.0.0.0" == compose["collector"]["environment"]["COLLECTOR_SELF_HOST"]  # noqa: S104 - inside a container


def test_the_override_of_the_howto_replaces_the_configuration_of_alertmanager() -> None:
    """At the path that compose starts it with; and its secrets are where the file looks for them."""
    howto = (ROOT / "docs/howto/alerting.md").read_text(encoding="utf-8")
    override = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", howto, re.DOTALL)[0])
    places = dict(each.split(":")[:2] for each in override["services"]["alertmanager"]["volumes"])
    file, folder = places
    alertmanager = _compose()["services"]["alertmanager"]

    assert f"--config.file={places[file]}" in alertmanager["command"]
    assert f"./collector/alertmanager.yaml:{places[file]}:ro" in alertmanager["volumes"]
    assert f"_file: {places[folder]}/" in (ROOT / file).read_text(encoding="utf-8")


def test_default_backends_of_the_collector_are_services_of_compose() -> None:
    """Their names and ports are the defaults of its files."""
    compose = _compose()["services"]
    defaults = {each.name: each.default or "" for each in COLLECTOR_VARIABLES}
    hosts = [
        defaults["COLLECTOR_TRACES_ENDPOINT"],
        urlsplit(defaults["COLLECTOR_REMOTE_WRITE_URL"]).netloc,
        urlsplit(defaults["COLLECTOR_ALERTMANAGER_URL"]).netloc,
    ]

    assert set() == {host.partition(":")[0] for host in hosts} - compose.keys()
    assert f"0.0.0.0:{hosts[0].partition(':')[2]}" == compose["jaeger"]["environment"]["JAEGER_OTLP_GRPC"]


def test_every_container_has_a_limit_of_memory() -> None:
    """And the Collector's Go runtime knows four fifths of its."""
    compose = _compose()["services"]

    assert [] == [name for name, each in compose.items() if "mem_limit" not in each]
    assert ("256m", "204MiB") == (
        compose["collector"]["mem_limit"],
        compose["collector"]["environment"]["GOMEMLIMIT"],
    )


def test_sources_of_grafana_are_services_of_compose_and_lead_to_each_other() -> None:
    """An exemplar of Prometheus opens its trace in Jaeger."""
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/datasources.yaml").read_text(encoding="utf-8"))
    sources = {each["uid"]: each for each in provisioned["datasources"]}
    (link,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    compose = _compose()["services"]

    assert {"prometheus", "jaeger", "alertmanager"} == sources.keys()
    assert [] == [each["url"] for each in sources.values() if urlsplit(each["url"]).hostname not in compose]
    assert ("trace_id", "jaeger") == (link["name"], link["datasourceUid"])


def test_the_folder_of_dashboards_exists_where_grafana_looks() -> None:
    """Mounted from the repository."""
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/dashboards.yaml").read_text(encoding="utf-8"))
    (path,) = [each["options"]["path"] for each in provider["providers"]]

    assert f"./collector/grafana/dashboards:{path}:ro" in _compose()["services"]["grafana"]["volumes"]
    assert (GRAFANA / "dashboards").is_dir()


def test_the_image_of_the_collector_is_built_from_what_its_context_has(tmp_path: Path) -> None:
    """The script finds all that its name is made from, so it builds what `make collector` builds."""
    ignore = (ROOT / "collector/.dockerignore").read_text(encoding="utf-8")
    for name in re.findall(r"^!(.+)$", ignore, re.MULTILINE):
        source = ROOT / "collector" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    paths = [
        subprocess.run([folder / "build.sh", "collector", "--path"], capture_output=True, text=True, check=True).stdout
        for folder in (tmp_path, ROOT / "collector")
    ]

    assert paths[0] == paths[1]


def test_the_image_of_the_collector_runs_as_the_user_that_owns_the_queue() -> None:
    """The same as that of the official image."""
    text = (ROOT / "collector/Dockerfile").read_text(encoding="utf-8")

    assert "\nUSER 10001:10001\n" in text
    assert "--owner 10001 --group 10001 --mode 0700 /root-of-image/var/lib/otelcol/queue" in text


def test_the_users_file_is_never_rendered_and_says_nothing() -> None:
    """What is in it is the user's, so it is nobody's output, and empty to begin with."""
    registry = load_checked(profile_names())
    rendered = render(registry, examine(registry)[0], (), [])

    assert "collector/extras.yaml" not in rendered
    assert yaml.safe_load((ROOT / "collector/extras.yaml").read_text(encoding="utf-8")) is None


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


@pytest.mark.parametrize(
    "path", ["compose.yaml", "collector/builder.yaml", "collector/kubernetes/deployment.yaml", *COLLECTOR_FILES]
)
def test_no_key_stands_twice(path: str) -> None:
    """YAML would keep the last one in silence."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT002 - upstream
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{path}:{node.start_mark.line + 1}: {keys}"
            return super().construct_mapping(node, deep)

    yaml.load((ROOT / path).read_text(encoding="utf-8"), Strict)  # noqa: S506 - a subclass of the safe loader

# SPDX-License-Identifier: Apache-2.0
"""Find or build the real parts, Collector, Prometheus, Alertmanager and Jaeger, and start them with the files of the bundle.

In: a checkout, ports and a folder. Out: running processes on the loopback interface, which the caller's stack ends.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from jeeves_otel.demo.processes import ChildError, environment_without, free_ports, running, taken

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack

    from jeeves_otel.demo.processes import Child

BUNDLE = Path(__file__).parents[2] / "collector"
PARTS = ("collector", "prometheus", "alertmanager", "jaeger")
# Flags without which the files of the bundle mean less; compose.yaml has the same.
PROMETHEUS_FLAGS = (
    "--web.enable-remote-write-receiver",
    "--web.enable-otlp-receiver",
    "--enable-feature=exemplar-storage",
    "--storage.tsdb.retention.time=35d",
)
# What serves if it is on the path: programs of these names and versions, or newer ones.
_ON_THE_PATH = {"prometheus": (3, 0), "alertmanager": (0, 27)}


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports of the loopback interface; where they are the defaults of the bundle's files, they are theirs."""

    otlp_grpc: int = 4317
    otlp_http: int = 4318
    hop: int = 14317
    health: int = 13133
    own_metrics: int = 8888
    # Not 9090: there is the page of the service.
    prometheus: int = 19090
    alertmanager: int = 9093
    jaeger_otlp: int = 24317
    jaeger: int = 16686
    jaeger_grpc: int = 16685
    jaeger_health: int = 23133

    @classmethod
    def free(cls) -> Ports:
        """Return ports that nobody listens on."""
        return cls(*free_ports(len(fields(cls))))

    def require_free(self, others: Mapping[str, int], way_out: str) -> None:
        """Raise `ChildError` if one of these or of *others*, ``{what for: port}``, is taken; *way_out* says what to do."""
        wanted = {**{name.replace("_", " "): port for name, port in asdict(self).items()}, **others}
        busy = [f"{port} ({name})" for name, port in wanted.items() if port and taken(port)]
        if busy:
            raise ChildError(f"Somebody listens on {', '.join(busy)} already. {way_out}")


def cached(part: str = "collector") -> str | None:
    """Return the program that ``collector/build.sh PART`` has built from the present manifest, None if nobody has."""
    ended = subprocess.run(  # noqa: S603 - our own script
        [BUNDLE / "build.sh", part, "--path"], capture_output=True, text=True, timeout=30, check=True
    )
    path = ended.stdout.strip()
    return path if Path(path).is_file() else None


def beside(program: str, tool: str) -> str:
    """Return *tool* of the folder of *program*: promtool is built, packaged and installed with Prometheus."""
    return str(Path(program).with_name(tool))


def program(part: str, say: Callable[[str], None]) -> str:
    """Return the program of *part*: from the cache, else from the path if it is new enough, else built now.

    Raises:
        ChildError: It cannot be built.
    """
    path = cached(part)
    if path is not None:
        return path
    installed = shutil.which(part) if part in _ON_THE_PATH else None
    if installed is not None and _version(installed) >= _ON_THE_PATH[part]:
        say(f"  {part}: {installed}")
        return installed
    say(f"  {part}: building it from Go modules; this takes some minutes, once")
    return _built(part)


def _version(path: str) -> tuple[int, ...]:
    """Return major and minor version, (0,) if it does not say."""
    ended = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - found on the path
    found = re.search(r"version (\d+)\.(\d+)", ended.stdout + ended.stderr)
    return (int(found[1]), int(found[2])) if found else (0,)


def _built(part: str) -> str:
    # A session of its own: an interrupt ends compilers too, which the script has started.
    building = subprocess.Popen(  # noqa: S603 - our own script
        [BUNDLE / "build.sh", part], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        path = building.communicate()[0].strip()
    except KeyboardInterrupt:
        os.killpg(building.pid, signal.SIGTERM)
        building.wait()
        raise
    if building.returncode:
        raise ChildError(f"{part} could not be built: see above. `make stack DOCKER=1` needs no compiler.")
    return path


def clean_environment(**settings: str) -> dict[str, str]:
    """Return the environment without any variable that the bundle reads but *settings*."""
    ours = ("COLLECTOR_", "JEEVES_", "JAEGER_", "OTEL_", "HOSTNAME")
    return {**environment_without(*ours), **settings}


def start(
    stack: ExitStack, programs: Mapping[str, str], ports: Ports, folder: Path, bundle: Path = BUNDLE
) -> list[Child]:
    """Start all parts with their data and logs in *folder*, and return when every one answers.

    Args:
        stack: Ends them, the Collector first, which delivers what it holds.
        programs: ``{part: path}``.
        ports: Where they listen.
        folder: Empty.
        bundle: Where the files are.

    Raises:
        ChildError: A part does not start.
    """
    environment = clean_environment(**_variables(ports, folder))
    children = {}
    for part, arguments in commands(ports, folder, bundle).items():
        name = "The Collector" if part == "collector" else part.capitalize()
        command = [programs[part], *arguments]
        children[part] = stack.enter_context(running(name, command, environment, folder / f"{part}.log"))
    children["alertmanager"].wait_until_answering(f"http://127.0.0.1:{ports.alertmanager}/-/ready")
    children["prometheus"].wait_until_answering(f"http://127.0.0.1:{ports.prometheus}/-/ready")
    children["jaeger"].wait_until_answering(f"http://127.0.0.1:{ports.jaeger_health}/status")
    children["collector"].wait_until_answering(f"http://127.0.0.1:{ports.health}/")
    return list(children.values())


def commands(ports: Ports, folder: Path, bundle: Path = BUNDLE) -> dict[str, list[str]]:
    """Return ``{part: arguments}`` in the order in which they are started, and make the files that they name."""
    return {
        "alertmanager": _alertmanager(ports, folder, bundle),
        "prometheus": _prometheus(ports, folder, bundle),
        "jaeger": [f"--config={bundle / 'jaeger.yaml'}"],
        # The user's own file comes last, and wins.
        "collector": [f"--config={bundle / name}" for name in ("sidecar.yaml", "alerts.yaml", "extras.yaml")],
    }


def _variables(ports: Ports, folder: Path) -> dict[str, str]:
    """Return what the files of Collector and Jaeger read."""
    addresses = {
        "COLLECTOR_OTLP_GRPC": ports.otlp_grpc,
        "COLLECTOR_OTLP_HTTP": ports.otlp_http,
        "COLLECTOR_HOP": ports.hop,
        "COLLECTOR_HEALTH": ports.health,
        "COLLECTOR_TRACES_ENDPOINT": ports.jaeger_otlp,
        "JAEGER_OTLP_GRPC": ports.jaeger_otlp,
        "JAEGER_QUERY": ports.jaeger,
        "JAEGER_QUERY_GRPC": ports.jaeger_grpc,
        "JAEGER_HEALTH": ports.jaeger_health,
    }
    return {
        **{name: f"127.0.0.1:{port}" for name, port in addresses.items()},
        "COLLECTOR_SELF_PORT": str(ports.own_metrics),
        "COLLECTOR_REMOTE_WRITE_URL": f"http://127.0.0.1:{ports.prometheus}/api/v1/write",
        "COLLECTOR_ALERTMANAGER_URL": f"http://127.0.0.1:{ports.alertmanager}",
        "COLLECTOR_QUEUE_DIRECTORY": str(folder / "queue"),
        "COLLECTOR_INSTANCE_ID": "stack",
    }


def _alertmanager(ports: Ports, folder: Path, bundle: Path) -> list[str]:
    return [
        f"--config.file={bundle / 'alertmanager.yaml'}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{ports.alertmanager}",
        "--cluster.listen-address=",  # alone, and silent on all other addresses
    ]


def _prometheus(ports: Ports, folder: Path, bundle: Path) -> list[str]:
    """Return its arguments; addresses stand in files beside its own, so it gets a folder with both."""
    files = folder / "prometheus"
    targets = files / "targets"
    targets.mkdir(parents=True)
    for entry in ("prometheus.yaml", "rules", "scrape-enabled"):
        if (bundle / entry).exists():
            (files / entry).symlink_to(bundle / entry)
    for name, port in _targets(ports).items():
        (targets / f"{name}.yaml").write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"]}]), encoding="utf-8")
    return [
        f"--config.file={files / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'samples'}",
        f"--web.listen-address=127.0.0.1:{ports.prometheus}",
        *PROMETHEUS_FLAGS,
    ]


def _targets(ports: Ports) -> dict[str, int]:
    return {"otelcol": ports.own_metrics, "alertmanager": ports.alertmanager, "prometheus": ports.prometheus}

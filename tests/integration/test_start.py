# SPDX-License-Identifier: Apache-2.0
"""Start: nothing is imported that the application does not import, and what it imports later is measured then."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.distributions import GREETER, install, instrumentor
from tests.integration.launching import APPS, LAUNCHER, environment, free_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

NO_OUTPUT = {"OTEL_METRICS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none"}
# By name, so that the one that comes back is named.
LIBRARIES = (
    "anthropic", "asyncpg", "fastapi", "grpc", "httpx", "httpx2", "openai", "psycopg", "pydantic", "sqlalchemy",
    "starlette", "uvicorn",
)  # fmt: skip
INSTRUMENTATIONS = (
    "opentelemetry.instrumentation.asgi",
    "opentelemetry.instrumentation.fastapi",
    "opentelemetry.instrumentation.genai",
    "opentelemetry.instrumentation.grpc",
    "opentelemetry.instrumentation.sqlalchemy",
    "opentelemetry.instrumentation.starlette",
    "opentelemetry.util.genai",
    "jeeves_otel.integrations.asgi",
    "jeeves_otel.integrations.genai",
    "jeeves_otel.integrations.grpc",
    "jeeves_otel.integrations.sqlalchemy",
)
TOOLS = ("click", "rich", "jeeves_otel.cli", "jeeves_otel.demo", "jeeves_otel.generators", "prometheus_client")
SENDERS = ("google.protobuf", "http.server", "opentelemetry.exporter", "requests", "urllib3")


def launch(program: str, *path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run *program* under the launcher, with *path* in front of what it can import."""
    folders = {"PYTHONPATH": ":".join(map(str, path))} if path else {}
    return subprocess.run(
        [LAUNCHER, sys.executable, "-c", program],
        env=environment(**{**NO_OUTPUT, **folders, **settings}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def printed(program: str, *path: Path, **settings: str) -> Any:
    """Run *program*, which must end well, and return what it has printed, as JSON."""
    done = launch(program, *path, **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- what is there after the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({"METRICS_PORT": "0"}, LIBRARIES + INSTRUMENTATIONS + TOOLS + SENDERS),
        (
            {"METRICS_PORT": "0", "OTEL_METRICS_EXPORTER": "otlp", "OTEL_TRACES_EXPORTER": "otlp"},
            LIBRARIES + INSTRUMENTATIONS + TOOLS,
        ),
    ],
    ids=["exporting nothing", "exporting over OTLP"],
)
def test_a_program_that_imports_nothing_has_no_library_imported(
    settings: dict[str, str], absent: tuple[str, ...]
) -> None:
    """All of them are installed here, with instrumentations of ours and of others."""
    program = f"import sys, json; print(json.dumps([name for name in {absent!r} if name in sys.modules]))"

    assert [] == printed(program, **settings)


def test_the_recording_api_brings_the_opentelemetry_api_and_nothing_heavy() -> None:
    """A library that depends on it pays neither for the SDK nor for YAML, nor for an event loop."""
    program = """
import json, sys
before = set(sys.modules)
import jeeves_otel
print(json.dumps([name.split(".") for name in set(sys.modules) - before]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    names = json.loads(done.stdout)
    packages = {name[0] for name in names}
    parts = {name[1] for name in names if name[0] == "opentelemetry" and len(name) > 1}

    assert packages - sys.stdlib_module_names <= {"jeeves_otel", "opentelemetry", "typing_extensions"}
    assert parts <= {"attributes", "context", "environment_variables", "metrics", "trace", "util"}
    assert packages.isdisjoint({"asyncio", "concurrent", "difflib", "http", "ssl", "subprocess"})


def test_the_line_at_start_says_what_waits_for_its_import(tmp_path: Path) -> None:
    """It would be untrue to call it instrumented."""
    greeter(tmp_path)
    log = launch("", tmp_path).stderr

    assert "once imported: " in log
    before, after = log.split("once imported: ")
    assert "threads by jeeves-otel" in before
    assert "greeter by opentelemetry-instrumentation-greeter 1.0" in after
    assert "sqlalchemy, starlette by jeeves-otel" in after


# ---- what is imported later ------------------------------------------------------------------------------------------


def greeter(folder: Path, before: str = "", source: str = "") -> None:
    """Install a library `greeter`, and an instrumentation that counts its greetings."""
    install(folder, "Greeter-Lib", {"greeter/__init__.py": GREETER, "greeter/polite.py": "from greeter import greet"})
    install(
        folder,
        "opentelemetry-instrumentation-greeter",
        {"greeter_telemetry/__init__.py": source or instrumentor("Greeter", "greeter", before)},
        instruments=("greeter-lib",),
        entry_points={"greeter": "greeter_telemetry:Greeter"},
    )


@pytest.mark.parametrize(
    "importing",
    [
        "import greeter; greet = greeter.greet",
        "from greeter import greet",
        "from greeter.polite import greet",
        "import importlib; greet = importlib.import_module('greeter').greet",
        "import greeter_telemetry; from greeter import greet",
    ],
)
def test_a_library_that_is_imported_later_is_instrumented_before_it_can_be_used(importing: str, tmp_path: Path) -> None:
    """In whichever way it is imported; also if the application imports the instrumentation itself."""
    greeter(tmp_path)

    program = f"""
import json, sys
early = "greeter" in sys.modules
{importing}
greet("you")
print(json.dumps([early, greet.calls]))
"""

    assert [False, 1] == printed(program, tmp_path)


def test_a_library_that_two_threads_import_at_once_is_instrumented_for_both(tmp_path: Path) -> None:
    """The second one comes while the first one is activating: it waits, as for any import."""
    meeting = "import meeting; meeting.activating.set(); meeting.arriving.wait(30)"
    greeter(tmp_path, before=meeting)
    (tmp_path / "meeting.py").write_text("from threading import Event\nactivating, arriving = Event(), Event()\n")
    program = """
import meeting, threading
def first():
    from greeter import greet
    greet("first")
def second():
    meeting.activating.wait(30)
    meeting.arriving.set()
    from greeter import greet
    greet("second")
threads = [threading.Thread(target=each) for each in (first, second)]
for thread in threads: thread.start()
for thread in threads: thread.join(30)
import greeter
print(greeter.greet.calls)
"""

    assert 2 == printed(program, tmp_path)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise RuntimeError('at import')", "RuntimeError"),
        ("import something_that_is_not_there", "ModuleNotFoundError"),
        ("Other = None", "AttributeError"),
        (instrumentor("Greeter", "greeter", "raise ValueError('when activated')"), "ValueError"),
    ],
)
def test_an_instrumentation_that_fails_later_is_counted_and_the_import_goes_on(
    source: str, error: str, tmp_path: Path
) -> None:
    """The application sees nothing of it; the log and the page do."""
    greeter(tmp_path, source=source)
    port = free_port()
    done = launch(
        f"""
from greeter import greet
import greeter, urllib.request
print(greet("you"))
page = urllib.request.urlopen("http://127.0.0.1:{port}/metrics").read().decode()
print(*[line for line in page.splitlines() if line.startswith("jeeves_otel_internal_errors_total")])
""",
        tmp_path,
        METRICS_PORT="0",
        OTEL_METRICS_EXPORTER="prometheus",
        OTEL_EXPORTER_PROMETHEUS_PORT=str(port),
    )

    assert done.stdout.splitlines() == ["hello you", 'jeeves_otel_internal_errors_total{site="instrument.greeter"} 1.0']
    assert done.stderr.count(f"instrument.greeter failed ({error})") == 1
    assert "Traceback" not in done.stderr


def test_of_a_package_for_two_libraries_each_instrumentation_waits_for_its_own(tmp_path: Path) -> None:
    """It imports both (as that of httpx and httpx2 does), and neither is activated while it is half imported."""
    for name in ("greeter", "greeter2"):
        install(tmp_path, name, {f"{name}.py": GREETER})
    sources = [instrumentor("One", "greeter"), instrumentor("Two", "greeter2")]
    install(
        tmp_path,
        "opentelemetry-instrumentation-greeter",
        {"greeter_telemetry.py": "import greeter, greeter2\n" + "\n".join(sources)},
        instruments=("greeter", "greeter2"),
        extra="instruments-any",
        entry_points={"greeter": "greeter_telemetry:One", "greeter2": "greeter_telemetry:Two"},
    )

    for first, second in (("greeter", "greeter2"), ("greeter2", "greeter")):
        program = f"""
import {first}, {second}
from jeeves_otel.failsafe import counts
import json
for module in ({first}, {second}): module.greet("you")
print(json.dumps([{first}.greet.calls, {second}.greet.calls, counts()]))
"""
        assert [1, 1, {}] == printed(program, tmp_path), first


def test_an_instrumentation_that_is_disabled_waits_for_nothing(tmp_path: Path) -> None:
    """By the standard variable."""
    greeter(tmp_path)
    program = "from greeter import greet; print(str(hasattr(greet, 'calls')).lower())"

    assert printed(program, tmp_path, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="greeter") is False
    assert printed(program, tmp_path) is True


def test_an_instrumentation_of_which_it_is_unknown_what_it_waits_for_is_activated_at_once(tmp_path: Path) -> None:
    """As the stock launcher does: better early than never."""
    greeter(tmp_path)
    (tmp_path / "Greeter_Lib-1.0.dist-info" / "RECORD").unlink()

    assert ["greeter"] == printed(
        "import sys, json; print(json.dumps([name for name in ['greeter'] if name in sys.modules]))", tmp_path
    )


# ---- the same telemetry ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "owners", "scope"),
    [
        ("fastapi", "", "fastapi"),
        ("fastapi", "fastapi", "opentelemetry.instrumentation.fastapi"),
        ("starlette", "", "jeeves_otel"),
        ("starlette", "starlette", "opentelemetry.instrumentation.starlette"),
        ("grpc", "", "jeeves_otel"),
        (
            "grpc",
            "grpc_client,grpc_server,grpc_aio_client,grpc_aio_server",
            "opentelemetry.instrumentation.grpc",
        ),
        ("sqlalchemy", "", "jeeves_otel"),
        ("openai", "", "opentelemetry.instrumentation.genai.openai"),
    ],
)
def test_spans_and_measurements_are_those_of_a_library_that_was_there_at_start(
    library: str, owners: str, scope: str
) -> None:
    """Imported before the instrumentations are loaded, or after: names, attributes, parents and counts are equal."""

    def telemetry(order: str) -> Any:
        done = subprocess.run(
            [sys.executable, APPS / "imported.py", library, order],
            env=environment(**NO_OUTPUT, METRICS_PORT="0", OTEL_TRACES_SAMPLER="always_on", JEEVES_OTEL_OWNERS=owners),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    before, after = telemetry("before"), telemetry("after")

    assert before == after
    assert scope in {span["scope"].partition("[")[0] for span in after["spans"]}

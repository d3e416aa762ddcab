# SPDX-License-Identifier: Apache-2.0
"""Children of a process, however they are made: their own counts, under their own name, and none of them hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers import counts_by, poll_until, samples_of
from tests.integration.launching import APPS, LAUNCHER, environment, free_port
from tests.otlp import GrpcReceiver, HttpReceiver, Receiver, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return an OTLP endpoint."""
    yield from running(HttpReceiver)


def _run(receiver: Receiver, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    rare = {
        "OTEL_BSP_SCHEDULE_DELAY": "60000",
        "OTEL_METRIC_EXPORT_INTERVAL": "60000",
        "OTEL_TRACES_SAMPLER": "always_on",
    }
    return subprocess.run(
        [LAUNCHER, sys.executable, *arguments],
        env=environment(**{"METRICS_PORT": "0", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, **rare, **settings}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def _errors(receiver: Receiver) -> list[dict[str, float]]:
    """Return ``{error type: count}`` of each process that has exported some."""
    found = receiver.by_process("jeeves_errors_total").values()
    return sorted(
        ({dict(labels)["error_type"]: value for labels, value in series.items()} for series in found), key=str
    )


def _spans(receiver: Receiver, name: str) -> int:
    return sum(span.name == name for span in receiver.spans())


@pytest.mark.slow
def test_children_forked_while_eight_threads_record_export_their_own_and_never_hang(receiver: Receiver) -> None:
    """A fork takes place between any two instructions of the threads; 20 here, 200 with `make forks`."""
    forks = int(os.environ.get("JEEVES_FORKS", "20"))
    done = _run(receiver, str(APPS / "forks.py"), str(forks))
    *children, parent = _errors(receiver)

    assert (0, "") == (done.returncode, "".join(line for line in done.stderr.splitlines() if "Traceback" in line))
    assert [{"Child": 3}] * forks == children
    assert ["Parent"] == list(parent)
    assert forks == _spans(receiver, "child")


@pytest.mark.parametrize("use", ["processes", "pool", "executor"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_export_their_own_counts(method: str, use: str, receiver: Receiver) -> None:
    """They leave by other ways than their parent, and are delivered nevertheless."""
    done = _run(receiver, str(APPS / "children.py"), method, use)
    children = [errors["Child"] for errors in _errors(receiver) if "Child" in errors]
    parents = [errors for errors in _errors(receiver) if "Parent" in errors]

    assert (0, False) == (done.returncode, "Traceback" in done.stderr)
    assert [{"Parent": 1}] == parents
    assert (3 if use == "processes" else 6) == sum(children) == _spans(receiver, "child")


def test_a_child_that_measures_nothing_has_no_thread_and_no_port_of_ours(receiver: Receiver) -> None:
    """It is as cheap as without us; its parent goes on serving."""
    script = (
        "import os, time, urllib.request\n"
        "from jeeves_otel import record_error\n"
        "record_error('Parent', 'engine')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    deadline = time.monotonic() + 5\n"  # the SDK asks for the id of the child in a thread, which it has joined
        "    while len(os.listdir('/proc/self/task')) > 1 and time.monotonic() < deadline: pass\n"
        "    links = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "    print(len(os.listdir('/proc/self/task')), sum(link.startswith('socket:') for link in links), flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "port = os.environ['METRICS_PORT']\n"
        "print(b'jeeves_errors_total' in urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics').read())\n"
    )
    done = _run(receiver, "-c", script, METRICS_PORT=str(free_port()))

    assert "1 0\nTrue\n" == done.stdout, done.stderr


def test_what_children_have_counted_is_on_their_parents_page_when_they_have_ended(receiver: Receiver) -> None:
    """Whatever forks them; the runtime metrics are of each process, too."""
    script = (
        "import os, sys, urllib.request\n"
        "from jeeves_otel import record_error\n"
        "record_error('Parent', 'engine')\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        record_error('Child', 'engine')\n"
        "        sys.exit()\n"
        "    os.wait()\n"
        "port = os.environ['METRICS_PORT']\n"
        "print(urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics').read().decode())\n"
    )
    done = _run(receiver, "-c", script, METRICS_PORT=str(free_port()))
    samples = samples_of(done.stdout.rstrip() + "\n")

    assert {"Parent": 1, "Child": 3} == counts_by(samples, "jeeves_errors_total", "error_type"), done.stderr
    assert 4 == len(receiver.by_process("process_cpu_seconds_total")), done.stderr


def test_an_exit_handler_of_the_application_is_counted_although_multiprocessing_has_finalizers(
    receiver: Receiver,
) -> None:
    """In the process that is nobody's child we end after everything else."""
    script = (
        "import atexit\n"
        "from jeeves_otel import record_error\n"
        "atexit.register(record_error, 'Late', 'engine')\n"
        "import multiprocessing.util\n"
        "record_error('Early', 'engine')\n"
    )
    _run(receiver, "-c", script)

    assert [{"Early": 1, "Late": 1}] == _errors(receiver)


def test_an_operation_that_a_process_and_its_child_both_leave_is_counted_once(receiver: Receiver) -> None:
    """It began before the fork, so it is the parent's, as its span is."""
    script = (
        "import os\n"
        "from jeeves_otel import llm_call, record_error\n"
        "with llm_call(provider='openai', model='gpt-4o'):\n"
        "    child = os.fork()\n"
        "record_error('Parent' if child else 'Child', 'engine')\n"
        "if child: os.waitpid(child, 0)\n"
    )
    done = _run(receiver, "-c", script)

    assert done.returncode == 0, done.stderr
    assert [{"Child": 1}, {"Parent": 1}] == _errors(receiver)
    assert 1 == receiver.total("jeeves_llm_calls_total") == len(list(receiver.spans()))


def test_a_child_has_run_the_garbage_collector_as_often_as_itself(receiver: Receiver) -> None:
    """Totals of the interpreter are in the memory that it inherits, and are its parent's."""
    script = (
        "import gc, os\n"
        "from jeeves_otel import record_error\n"
        "for _ in range(1000): gc.collect(0)\n"
        "child = os.fork()\n"
        "record_error('Parent' if child else 'Child', 'engine')\n"
        "if child: os.waitpid(child, 0)\n"
    )
    done = _run(receiver, "-c", script)
    youngest = ("generation", "0")
    runs = sorted(
        sum(value for labels, value in series.items() if youngest in labels)
        for series in receiver.by_process("python_gc_collections_total").values()
    )

    assert done.returncode == 0, done.stderr
    assert len(runs) == 2
    assert runs[0] < 1000 <= runs[1]


def test_helpers_of_multiprocessing_start_nothing(receiver: Receiver) -> None:
    """The resource tracker is a Python process, so it is launched too; it measures nothing, and says nothing."""
    script = (
        "from multiprocessing import resource_tracker\n"
        "resource_tracker.ensure_running()\n"
        "resource_tracker._resource_tracker._stop()\n"
    )
    done = _run(receiver, "-c", script)

    assert (0, 1) == (done.returncode, done.stderr.count("jeeves-otel 0.1.0 for")), done.stderr
    assert 1 == len(receiver.by_process("process.cpu.time") or receiver.by_process("process_cpu_seconds_total"))


def test_forked_workers_of_celery_export_what_their_tasks_measured(receiver: Receiver, tmp_path: Path) -> None:
    """Their pool leaves by os._exit without any finalizer; the signal of Celery for that is heard."""
    settings = environment(
        METRICS_PORT="0",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_METRIC_EXPORT_INTERVAL="60000",
        BROKER_FOLDER=str(tmp_path),
        PYTHONPATH=str(APPS),
    )
    arguments = ["-m", "celery", "-A", "tasks", "worker", "--concurrency", "2", "--pool", "prefork"]
    celery = subprocess.Popen(
        [LAUNCHER, sys.executable, *arguments],
        env=settings,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        sender = "from tasks import work\nfor _ in range(6): work.delay()"
        subprocess.run([sys.executable, "-c", sender], env=settings, cwd=tmp_path, check=True)
        poll_until(lambda: len(list(tmp_path.glob("done-*"))) == 6, "the tasks", timeout_s=60)
        celery.terminate()
        status = celery.wait(timeout=60)
    finally:
        celery.kill()
        celery.communicate()

    assert 0 == status
    assert 6 == receiver.total("jeeves_errors_total")


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_exports_import_nothing_for_which_a_forked_child_could_wait(protocol: str) -> None:
    """The lock of a module that a thread of the parent imports is held in the child by nobody who would release it."""
    script = (
        "import sys\n"
        "from opentelemetry import metrics, trace\n"
        "trace.get_tracer('test').start_span('test').end()\n"
        "metrics.get_meter('test').create_counter('test').add(1)\n"
        "before = set(sys.modules)\n"
        "trace.get_tracer_provider().force_flush(), metrics.get_meter_provider().force_flush()\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    kind = GrpcReceiver if protocol == "grpc" else HttpReceiver
    for receiver in running(kind):
        done = _run(receiver, "-c", script, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)

        assert ("[]\n", 1) == (done.stdout, len(receiver.spans())), done.stderr

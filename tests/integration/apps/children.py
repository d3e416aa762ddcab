# SPDX-License-Identifier: Apache-2.0
"""Record in children of multiprocessing, as its start method and the way of using it are given."""

import concurrent.futures
import multiprocessing
import sys

from opentelemetry import trace

from jeeves_otel import record_error


def work(_: int = 0) -> int:
    """Record one error and a span."""
    record_error("Child", "engine")
    trace.get_tracer("child").start_span("child").end()
    return 1


def processes(context: "multiprocessing.context.BaseContext") -> None:
    """Use `Process`."""
    children = [context.Process(target=work) for _ in range(3)]  # type: ignore[attr-defined]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [0, 0, 0] == [child.exitcode for child in children]


def pool(context: "multiprocessing.context.BaseContext") -> None:
    """Use `Pool`, closed as it should be."""
    with context.Pool(2) as workers:
        assert sum(workers.map(work, range(6), chunksize=1)) == 6
        workers.close()
        workers.join()


def executor(context: "multiprocessing.context.BaseContext") -> None:
    """Use `ProcessPoolExecutor`."""
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as workers:
        assert sum(workers.map(work, range(6))) == 6


if __name__ == "__mp_main__":  # in a child that imports this program before it works
    record_error("Imported", "engine")

if __name__ == "__main__":
    method, use = sys.argv[1:]
    record_error("Parent", "engine")
    globals()[use](multiprocessing.get_context(method))

# SPDX-License-Identifier: Apache-2.0
"""Fork while threads record: each child records three errors and a span of its own, and ends as its parent would."""

import os
import sys
import threading
import time

from opentelemetry import trace

from jeeves_otel import record_error

FORKS = int(sys.argv[1])
CHILD_S = 20.0


def busy(over: threading.Event) -> None:
    """Record as fast as it goes."""
    tracer = trace.get_tracer("busy")
    while not over.is_set():
        record_error("Parent", "engine")
        tracer.start_span("parent").end()


def main() -> int:
    """Return how many children did not end by themselves; in a child, 0."""
    over = threading.Event()
    threads = [threading.Thread(target=busy, args=(over,), daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    hung = 0
    for _ in range(FORKS):
        child = os.fork()
        if child == 0:
            for _ in range(3):
                record_error("Child", "engine")
            trace.get_tracer("child").start_span("child").end()
            return 0
        deadline = time.monotonic() + CHILD_S
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                hung += 1
                break
            time.sleep(0.002)
    over.set()
    for thread in threads:
        thread.join()
    return hung


sys.exit(main())

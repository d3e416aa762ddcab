# SPDX-License-Identifier: Apache-2.0
"""An application whose telemetry is unwell: a callback of it fails, and it uses more features than there are labels for."""

import sys

from jeeves_otel import pipeline, record_feature_usage, record_queue_depth

FEATURES = 250  # the profile keeps 200


def _broken() -> int:
    raise RuntimeError("no queue")


def main() -> None:
    """Record, say "ready", and wait for the end."""
    record_queue_depth("broken", _broken)
    for number in range(FEATURES):
        record_feature_usage(f"feature {number}")
    with pipeline("unwell"):
        pass
    print("ready", flush=True)
    sys.stdin.read()


main()

# SPDX-License-Identifier: Apache-2.0
"""An application that records a known number of events, says "ready", and ends when its input does."""

import sys

from jeeves_otel import agent, pipeline, record_feature_usage, record_llm_call, record_rpc


def main() -> None:
    """Record, wait, end."""
    for _ in range(3):
        with pipeline("chat", request_id="r-1"), agent("planner"):
            record_llm_call("openai", "gpt-4o", 0.25, prompt_tokens=10, completion_tokens=4)
    record_rpc("/pkg.Engine/Run", "NOT_FOUND", 0.002)
    record_feature_usage("export")
    print("ready", flush=True)
    sys.stdin.read()
    print("done", flush=True)


main()

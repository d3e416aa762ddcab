"""An application whose tool fails inside an agent inside a pipeline, twice, which counts that, and says "ready"."""

import sys

from jeeves_otel import agent, pipeline, record_error, tool


@tool("search")
def search() -> None:
    """Fail."""
    raise LookupError("private")


def main() -> None:
    """Answer two questions badly, wait, end."""
    for _ in range(2):
        try:
            with pipeline("chat"), agent("researcher"):
                search()
        except LookupError as error:
            record_error(type(error).__name__, "engine")
    print("ready", flush=True)
    sys.stdin.read()


main()

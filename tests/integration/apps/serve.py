# SPDX-License-Identifier: Apache-2.0
"""What a server serves, started by its own command."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/{item}")
def answer(item: int) -> int:
    """Answer."""
    return item

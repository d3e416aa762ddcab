# SPDX-License-Identifier: Apache-2.0
"""What a server serves, started by its own command."""

import os

from fastapi import FastAPI, Response

app = FastAPI()


@app.get("/{item}")
def answer(item: int, response: Response) -> int:
    """Answer, and say which process has."""
    response.headers["X-Process"] = str(os.getpid())
    return item

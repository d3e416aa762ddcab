# SPDX-License-Identifier: Apache-2.0
"""The smallest service of the kind this package is for: FastAPI, the real openai client, one call plain, one wrapped."""

import os

import uvicorn
from fastapi import FastAPI
from openai import OpenAI

from jeeves_otel import llm_call
from jeeves_otel.prometheus import MetricsMiddleware

app = FastAPI()
client = OpenAI(base_url=os.environ["OPENAI_BASE_URL"], api_key="none", max_retries=0)


def ask() -> None:
    """Ask the provider one thing."""
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}])


@app.get("/plain/{item}")
def plain(item: int) -> int:
    """Call the client alone."""
    ask()
    return item


@app.get("/wrapped/{item}")
def wrapped(item: int) -> int:
    """Call the client inside llm_call."""
    with llm_call("openai", "gpt-4o-mini"):
        ask()
    return item


uvicorn.run(MetricsMiddleware(app), host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")

# SPDX-License-Identifier: Apache-2.0
"""FastAPI, Starlette and a bare application in one service, as uvicorn is told to find them, without telemetry code."""

import os
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from jeeves_otel.integrations.asgi import Middleware

inner = FastAPI()


@inner.get("/items/{number}")
async def item(number: int) -> int:
    """Answer."""
    return number


async def page(request: Any) -> PlainTextResponse:
    """Answer."""
    return PlainTextResponse(request.path_params["name"])


async def bare(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - the signature of ASGI
    """Answer, and name the route."""
    scope["route"] = "/bare"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"bare"})


app = FastAPI() if os.environ["OUTER"] == "fastapi" else Starlette(routes=[Route("/pages/{name}", page)])
app.router.routes.append(Mount("/inner", inner))
app.router.routes.append(Mount("/pages", Starlette(routes=[Route("/{name}", page)])))
measured_bare = Middleware(bare)


async def dispatch(scope: Any, receive: Any, send: Any) -> None:
    """Be what stands in front, which nobody measures."""
    chosen = {"/bare": measured_bare, "/up": bare}.get(scope.get("path"), app)
    await chosen(scope, receive, send)


uvicorn.run(dispatch, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")

# SPDX-License-Identifier: Apache-2.0
"""Name the route of an ASGI request by its template, never by its path.

In: the scope of a request that Starlette, FastAPI or a framework like them has routed. Out: the template with those of
the mounts around it, or None where no route matched. Importing this module imports no framework.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Scope = Mapping[str, Any]

_DEEPEST = 32  # mounts in mounts, and middleware around an application
REST = "/{path}"  # what stands for the path below a mount


def route_of(scope: Scope, path: str, root_path: str) -> str | None:
    """Return the route template of a request, with the root of the application in front; None if no route matched.

    Args:
        scope: As it is after routing.
        path: ``scope["path"]`` as the server has sent it.
        root_path: ``scope["root_path"]`` as the server has sent it.
    """
    if is_unmatched(scope):
        return None
    route, root, now = scope.get("route"), root_path.rstrip("/"), scope.get("root_path", "")
    if route is None and scope.get("endpoint") is None:
        return None
    if route is None:
        below = _walked(scope, path, root_path, now, whole=True)
    elif isinstance(route, str):  # how an application without a framework may name its route
        return route
    else:
        own = REST if hasattr(route, "routes") else _template(scope, route)
        mounts = "" if now in {root_path, root} else _walked(scope, path, root_path, now, whole=False)
        below = None if own is None or mounts is None else mounts + own
    return None if below is None else root + below or "/"


def is_unmatched(scope: Scope) -> bool:
    """Return whether the request reached an application of routes, below a mount, of which none matched."""
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return False
    routing = sys.modules.get("starlette.routing")
    if routing is None:
        return False
    for _ in range(_DEEPEST):
        if isinstance(endpoint, routing.Router) or isinstance(getattr(endpoint, "router", None), routing.Router):
            return True
        endpoint = getattr(endpoint, "app", None)  # middleware that stands around it in the mount
        if endpoint is None:
            return False
    return False


def _template(scope: Scope, route: object) -> str | None:
    # A router that FastAPI has included has its prefix only here (0.165; the name is not public).
    included = scope.get("fastapi")
    if isinstance(included, dict):
        effective = getattr(included.get("effective_route_context"), "path_format", None)
        if isinstance(effective, str):
            return effective
    template = getattr(route, "path_format", None)
    return template if isinstance(template, str) else None


def _walked(scope: Scope, path: str, root_path: str, reached: str, *, whole: bool) -> str | None:
    """Return the templates on the way from *root_path* to where the request was routed; None if they cannot be told.

    Args:
        scope: As for `route_of`.
        path: As for `route_of`.
        root_path: As for `route_of`.
        reached: ``scope["root_path"]`` after routing.
        whole: Whether to go on to the endpoint, because Starlette before 1.0 does not say what the route was; else as
            far as the mounts go.
    """
    endpoint = scope.get("endpoint")
    probe = {**scope, "path": path, "root_path": root_path, "path_params": {}}
    probe.pop("app_root_path", None)
    found = ""
    routes: Iterable[Any] = getattr(scope.get("router"), "routes", ())
    for _ in range(_DEEPEST):
        step = _next(routes, probe, reached, endpoint if whole else None)
        if step is None:
            return None
        route, child = step
        if not hasattr(route, "routes"):
            return found + getattr(route, "path_format", "")
        found += getattr(route, "path", "")  # a Host has none
        if child.get("root_path", probe["root_path"]) == reached and (not whole or child.get("endpoint") is endpoint):
            return found + REST if whole else found
        probe.update(child)
        routes = route.routes or ()
    return None


def _next(
    routes: Iterable[Any], probe: dict[str, Any], reached: str, endpoint: object
) -> tuple[Any, dict[str, Any]] | None:
    """Return the first of *routes* that leads to *endpoint*, or to the root path *reached*, and what it does to the scope."""
    for route in routes:
        if endpoint is None and not hasattr(route, "routes"):
            continue
        match, child = route.matches(probe)
        leads = hasattr(route, "routes") and reached.startswith(child.get("root_path", probe["root_path"]))
        if match.value and (leads or (endpoint is not None and child.get("endpoint") is endpoint)):
            return route, child
    return None

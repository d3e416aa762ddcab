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
    route = scope.get("route")
    if route is None or is_unmatched(scope):
        return None
    if isinstance(route, str):  # how an application without a framework may name its route
        return route
    own = _template(scope, route)
    if own is None:
        return None
    now: str = scope.get("root_path", "")
    root = root_path.rstrip("/")
    if now in {root_path, root}:
        return root + own or "/"
    mounts = _mounts(scope, path, root_path, now)
    if mounts is None:
        return None
    return root + mounts + (REST if _is_mount(route) else own)


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


def _mounts(scope: Scope, path: str, root_path: str, reached: str) -> str | None:
    """Return the templates of the mounts that lead from *root_path* to *reached*; None if they cannot be told."""
    probe = {**scope, "path": path, "root_path": root_path, "path_params": {}}
    probe.pop("app_root_path", None)
    found = ""
    routes: Iterable[Any] = getattr(scope.get("router"), "routes", ())
    for _ in range(_DEEPEST):
        step = _next_mount(routes, probe, reached)
        if step is None:
            return None
        mount, child = step
        found += getattr(mount, "path", "")  # a Host has none
        if child.get("root_path", probe["root_path"]) == reached:
            return found
        probe.update(child)
        routes = mount.routes or ()
    return None


def _next_mount(routes: Iterable[Any], probe: dict[str, Any], reached: str) -> tuple[Any, dict[str, Any]] | None:
    for route in routes:
        if not hasattr(route, "routes"):
            continue
        match, child = route.matches(probe)
        if match.value and reached.startswith(child.get("root_path", probe["root_path"])):
            return route, child
    return None


def _is_mount(route: object) -> bool:
    return hasattr(route, "routes")

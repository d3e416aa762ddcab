# SPDX-License-Identifier: Apache-2.0
"""Let an instrumentation wait until the application imports a library that it is about.

In: the entry point of an instrumentation, and what activates it. Out: the modules that it waits for, read from metadata
alone, and one activation when the first of them has been imported. Nothing of a library or an instrumentation is
imported here before that, and where it cannot be told what to wait for, the answer is to wait for nothing.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from threading import Lock
from typing import TYPE_CHECKING

from wrapt import register_post_import_hook

from jeeves_otel.failsafe import failsafe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from importlib.metadata import Distribution, EntryPoint

# Instrumentations whose metadata names no library: ours, and those of the standard library.
_MODULES = {
    "asyncio": ("asyncio",),
    "jeeves_anthropic": ("anthropic",),
    "jeeves_asgi": ("starlette", "fastapi", "opentelemetry.instrumentation.asgi"),
    "jeeves_grpc": ("grpc",),
    "jeeves_openai": ("openai",),
    "jeeves_sqlalchemy": ("sqlalchemy",),
    "sqlite3": ("sqlite3",),
    "urllib": ("urllib.request",),
}
# Django's reads the application's settings when it is activated. Inside the import of Django these may be half read.
_AT_ONCE = frozenset({"django"})

# Lines of METADATA: ``Requires-Dist: httpx>=0.18.0; extra == 'instruments-any'``.
_INSTRUMENTS = re.compile(
    r"^Requires-Dist:\s*([\w.-]+).*\bextra\s*==\s*['\"]instruments(?:[-_.]any)?['\"]", re.MULTILINE
)


def modules_of(entry_point: EntryPoint) -> frozenset[str]:
    """Return the import names of the libraries that *entry_point* instruments; empty if that cannot be told."""
    name = entry_point.name
    if name in _AT_ONCE:
        return frozenset()
    try:
        libraries = _libraries_of(entry_point)
        if not libraries:
            return frozenset(_MODULES.get(name, ()))
        packages = [_packages_in(library.read_text("RECORD") or "") for library in libraries]
    except (OSError, ValueError):  # unreadable, or no UTF-8
        return frozenset()
    modules = frozenset().union(*packages) if all(packages) else frozenset[str]()
    # Of a package for two libraries (httpx and httpx2), each entry point is for the one whose name it has.
    return frozenset({name}) if name in modules else modules


def _libraries_of(entry_point: EntryPoint) -> list[Distribution]:
    """Return what is installed of the libraries that the package of *entry_point* says it instruments."""
    metadata = entry_point.dist.read_text("METADATA") if entry_point.dist is not None else None
    libraries = []
    # Not `Distribution.requires`, which parses the package's whole description each time.
    for library in _INSTRUMENTS.findall((metadata or "").partition("\n\n")[0]):
        try:
            libraries.append(distribution(library))
        except PackageNotFoundError:
            pass  # one of several, of which one is enough
    return libraries


def _packages_in(record: str) -> set[str]:
    """Return the outermost packages and modules among the files of a distribution, ``google.genai`` for a namespace's."""
    packages, modules = set(), set()
    for line in record.splitlines():
        path = line.partition(",")[0]
        folder, _, file = path.rpartition("/")
        if file == "__init__.py":
            packages.add(folder)
        elif not folder and file.endswith((".py", ".so", ".pyd")):
            modules.add(file.partition(".")[0])
    outermost = {package for package in packages if not any(above in packages for above in _above(package))}
    names = modules | {package.replace("/", ".") for package in outermost}
    # An editable install has a finder of its own among its files, and nothing of the library.
    return {name for name in names if not name.startswith("_") and all(part.isidentifier() for part in name.split("."))}


def _above(package: str) -> Iterator[str]:
    while "/" in package:
        package = package.rpartition("/")[0]
        yield package


def any_imported(modules: Iterable[str]) -> bool:
    """Return whether one of *modules* has been imported."""
    return any(module in sys.modules for module in modules)


def activate_on_import(modules: Iterable[str], package: str, activate: Callable[[], None], site: str) -> None:
    """Call *activate* once, when the first of *modules* has been imported and before its import returns.

    It runs in the thread that imports; another thread that imports the same module waits for both, as for any import.
    A failure is counted against *site*, and the import goes on.

    Args:
        modules: Import names of the libraries.
        package: Module of the instrumentation itself; what is in the middle of its import is activated after that.
        activate: Imports and activates the instrumentation.
        site: As for `failsafe`.
    """
    activation = _Activation(package, activate, site)
    for module in modules:
        register_post_import_hook(activation.library_imported, module)
    register_post_import_hook(activation.package_imported, package)


class _Activation:
    """One instrumentation that waits.

    Its package may be imported before its library: by the application, or by another instrumentation of the same package
    (that of httpx imports httpx2 too). It then imports the library, and there is nothing to activate in it yet.
    """

    def __init__(self, package: str, activate: Callable[[], None], site: str) -> None:
        self._package = package
        self._activate = activate
        self._guard = failsafe(site)
        self._package_is_there = False
        self._wanted = False
        self._once = Lock()

    def library_imported(self, _: object) -> None:
        """Activate it, or leave that to `package_imported`."""
        self._wanted = True
        if self._package_is_there or self._package not in sys.modules:
            self._activate_once()

    def package_imported(self, _: object) -> None:
        """Activate it, if its library was imported on the way."""
        self._package_is_there = True
        if self._wanted:
            self._activate_once()

    def _activate_once(self) -> None:
        # Never waited for: the thread that has it may be importing what this one is in the middle of.
        if self._once.acquire(blocking=False):
            with self._guard:
                self._activate()

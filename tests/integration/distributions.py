# SPDX-License-Identifier: Apache-2.0
"""Libraries and instrumentations made up for a test, installed in a folder of its own."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def install(
    folder: Path,
    name: str,
    files: Mapping[str, str],
    *,
    instruments: tuple[str, ...] = (),
    extra: str = "instruments",
    entry_points: Mapping[str, str] | None = None,
) -> Path:
    """Write the distribution *name* 1.0 with *files* into *folder*, as an installer would; return its metadata's folder.

    Args:
        folder: To be put on the path.
        name: Name of the distribution.
        files: Path to text.
        instruments: Names of distributions that it instruments.
        extra: Under which metadata names them.
        entry_points: Of instrumentors, name to ``module:attribute``.
    """
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    requires = "".join(f"Requires-Dist: {library}>=0.1; extra == '{extra}'\n" for library in instruments)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}\nRequires-Dist: telltale; extra == 'instruments'\n"
    )
    (info / "RECORD").write_text("".join(f"{path},sha256=x,1\n" for path in [*files, f"{info.name}/METADATA"]))
    if entry_points:
        lines = "".join(f"{entry} = {value}\n" for entry, value in entry_points.items())
        (info / "entry_points.txt").write_text(f"[opentelemetry_instrumentor]\n{lines}")
    return info


def instrumentor(cls: str, library: str, before: str = "") -> str:
    """Return the source of an instrumentor *cls* that counts the calls of ``greet`` of *library* in ``greet.calls``."""
    return dedent(f"""
        class {cls}:
            def instrument(self, **options):
                {before or "pass"}
                import {library} as library
                original = library.greet
                def greet(name):
                    greet.calls += 1
                    return original(name)
                greet.calls = 0
                library.greet = greet
    """)


GREETER = """
    def greet(name):
        return f"hello {name}"
"""

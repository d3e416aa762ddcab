# SPDX-License-Identifier: Apache-2.0
"""Know which processes descend from one that was launched: every Python child of a launched application is launched too.

In: the environment, which children inherit. Out: a token that they have in common.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

_TOKEN = "_JEEVES_OTEL_TREE"  # noqa: S105 - no secret


def is_descendant(environ: Mapping[str, str]) -> bool:
    """Return whether *environ* was inherited from a process that has called `token`."""
    return _TOKEN in environ


def token(environ: MutableMapping[str, str]) -> str:
    """Return what all processes have in common that descend from the first of them that asked."""
    return environ.setdefault(_TOKEN, os.urandom(8).hex())

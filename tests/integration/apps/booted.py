# SPDX-License-Identifier: Apache-2.0
"""Configuration of gunicorn: each worker leaves a file when it has taken its signals over and serves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def post_worker_init(worker: Any) -> None:
    """Leave a file with the number of the process, where BOOTED says."""
    if "BOOTED" in os.environ:
        (Path(os.environ["BOOTED"]) / str(worker.pid)).touch()

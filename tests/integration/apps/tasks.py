# SPDX-License-Identifier: Apache-2.0
"""A Celery application whose broker is a folder."""

import os
from pathlib import Path

from celery import Celery

from jeeves_otel import record_error

FOLDER = os.environ["BROKER_FOLDER"]
app = Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {"data_folder_in": FOLDER, "data_folder_out": FOLDER, "control_folder": FOLDER}
app.conf.task_ignore_result = True


@app.task  # type: ignore[untyped-decorator]
def work() -> None:
    """Record one error."""
    record_error("Task", "engine")
    (Path(FOLDER) / f"done-{work.request.id}").touch()

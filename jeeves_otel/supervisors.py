# SPDX-License-Identifier: Apache-2.0
"""Tell processes that only look after others from those that serve.

In: what a process was started as, and the servers that it imports. Out: the resource tracker of multiprocessing is left
alone; supervisors of uvicorn and gunicorn close their outputs before they start workers, and forked workers open theirs
before the first request. Supervisors that are not known here keep their outputs, which does no harm.
"""

from __future__ import annotations

import signal
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook, wrap_function_wrapper

from jeeves_otel.failsafe import failsafe
from jeeves_otel.termination import ENDING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from jeeves_otel.providers import Telemetry

# What a supervisor runs as long as it lives.
_SUPERVISORS = {
    "uvicorn.supervisors.multiprocess": "Multiprocess.run",
    "uvicorn.supervisors.basereload": "BaseReload.run",
    "gunicorn.arbiter": "Arbiter.run",
}
# What a forked worker does first, as the user that it will be.
_WORKERS = {"gunicorn.workers.base": "Worker.load_wsgi"}
_RESOURCE_TRACKER = "from multiprocessing.resource_tracker import main"
_FORK_SERVER = "from multiprocessing.forkserver import main"


def is_resource_tracker(arguments: Sequence[str]) -> bool:
    """Return whether *arguments* (as in ``sys.orig_argv``) start the process that cleans up after multiprocessing."""
    return _command(arguments).startswith(_RESOURCE_TRACKER)


def is_fork_server(arguments: Sequence[str]) -> bool:
    """Return whether *arguments* start the process from which multiprocessing forks workers, and which does nothing else."""
    return _command(arguments).startswith(_FORK_SERVER)


def _command(arguments: Sequence[str]) -> str:
    return next((command for option, command in pairwise(arguments) if option == "-c"), "")


def watch(telemetry: Telemetry) -> None:
    """Have *telemetry* stand down in supervisors and open in their workers."""
    for module, name in _SUPERVISORS.items():
        register_post_import_hook(_before(name, telemetry.stand_down), module)
    for module, name in _WORKERS.items():
        register_post_import_hook(_before(name, partial(_open_in_worker, telemetry)), module)
    register_post_import_hook(lambda signals: _in_celery(signals, telemetry), "celery.signals")


def _open_in_worker(telemetry: Telemetry) -> None:
    # With this one the arbiter ends workers at once, at Ctrl-C too; those of uvicorn give it its default.
    telemetry.ending_signals = (*ENDING, signal.SIGQUIT)
    telemetry.open()


def _before(name: str, act: Callable[[], None]) -> Callable[[ModuleType], None]:
    """Return a hook that has *act* called before the function *name* of the module that was imported."""

    def acting(function: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with failsafe("supervisors"):
            act()
        return function(*args, **kwargs)

    def imported(module: ModuleType) -> None:
        with failsafe("supervisors"):
            wrap_function_wrapper(module, name, acting)

    return imported


def _in_celery(signals: Any, telemetry: Telemetry) -> None:
    """Deliver at the end of Celery's forked workers, which leave without `atexit` and finalizers."""
    with failsafe("supervisors"):
        signals.worker_process_shutdown.connect(lambda **_: telemetry.close(), weak=False)

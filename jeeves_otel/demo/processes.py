# SPDX-License-Identifier: Apache-2.0
"""Start processes, wait until they answer, and end them whatever happens.

In: a command and its environment. Out: a `Child`, or `ChildError` with the end of its log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

START_S = 60.0
STOP_S = 10.0
TAIL_LINES = 30


class ChildError(Exception):
    """A process did not start, or ended by itself; the message carries the end of its log."""


class Child:
    """One process with its log in a file. Not for several threads.

    Args:
        name: What messages call it.
        command: Program and arguments.
        environment: All of its environment.
        log: Where its output goes.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as output:
            # A session of its own: Ctrl-C in the terminal reaches the driver alone, which ends its children in order.
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                list(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_answering(self, url: str) -> None:
        """Return as soon as *url* answers with success.

        Raises:
            ChildError: The process ended, or has not answered within a minute.
        """
        self._wait(lambda: urllib.request.urlopen(url, timeout=2), f"answer at {url}")  # noqa: S310 - loopback

    def wait_until_listening(self, port: int) -> None:
        """Return as soon as the process listens on *port* of the loopback interface.

        Raises:
            ChildError: The process ended, or does not listen within a minute.
        """
        self._wait(lambda: socket.create_connection(("127.0.0.1", port), timeout=2), f"listen on port {port}")

    def _wait(self, reach: Callable[[], AbstractContextManager[object]], what: str) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(OSError), reach():
                return
            time.sleep(0.05)
        raise ChildError(f"{self.name} does not {what} after {START_S:g} s.\n{self.tail()}")

    def check(self) -> None:
        """Raise `ChildError` if the process has ended."""
        status = self._process.poll()
        if status is not None:
            raise ChildError(f"{self.name} has ended with status {status}.\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines of its log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(["The end of its log:", *(f"  {line}" for line in lines)]) if lines else "Its log is empty."

    def stop(self) -> None:
        """Ask the process to end, and kill it if it has not ended within ten seconds."""
        if self._process.poll() is not None:
            return
        try:
            # As Ctrl-C would: the server closes its connections, and the interpreter flushes telemetry on its way out.
            self._process.send_signal(signal.SIGINT)
            self._process.wait(STOP_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C means: now
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def running(name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Child]:
    """Run a process for the length of a ``with`` block."""
    child: Child | None = None
    try:
        with _interrupts.held():  # else one in between would leave a process that nobody knows
            child = Child(name, command, environment, log)
        yield child
    finally:
        if child is not None:
            child.stop()


class _Interrupts:
    """Ctrl-C and SIGTERM, which may have to wait for a moment."""

    def __init__(self) -> None:
        self._are_held = False
        self._waits = False

    def handle(self, _: int, __: object) -> None:
        """Raise KeyboardInterrupt, now or as soon as it may be."""
        self._waits = self._are_held
        if not self._are_held:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let an interrupt wait for the end of a ``with`` block."""
        self._are_held = True
        try:
            yield
        finally:
            self._are_held = False
        if self._waits:
            self._waits = False
            raise KeyboardInterrupt


_interrupts = _Interrupts()


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a terminal that is closed, raise KeyboardInterrupt in a ``with`` block, as Ctrl-C does.

    Children have sessions of their own, and would outlive the terminal. Under nohup SIGHUP stays ignored.
    """
    before = {}
    try:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN:
                before[each] = signal.signal(each, _interrupts.handle)
    except ValueError:  # not the main thread: whoever called from another one handles signals
        yield
        return
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def without_proxy() -> None:
    """Keep what is for the loopback interface from a proxy that the environment names, here and in all children."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))


def require_free(port: int, option: str) -> None:
    """Raise `ChildError` if *port*, given with *option*, is taken; somebody else's answers would look like ours."""
    try:
        _bind(port)
    except OSError as error:
        raise ChildError(f"Port {port} cannot be used ({error.strerror}): choose another one with {option}.") from error


def taken(port: int) -> bool:
    """Return whether *port* of the loopback interface cannot be listened on."""
    try:
        _bind(port)
    except OSError:
        return True
    return False


def _bind(port: int) -> None:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still winding down is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def environment_without(*prefixes: str) -> dict[str, str]:
    """Return the environment without the variables whose names begin with one of *prefixes*."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def free_ports(count: int) -> list[int]:
    """Return *count* different TCP ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]

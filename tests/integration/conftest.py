# SPDX-License-Identifier: Apache-2.0
"""What tests with real processes share."""

from __future__ import annotations

import pytest

from jeeves_otel.demo.parts import cached


@pytest.fixture(scope="session")
def collector() -> str:
    """Return the program of the Collector, or skip where nobody has built it."""
    program = cached()
    if program is None:
        pytest.skip("there is no Collector in the cache; build it with: make collector")
    return program


@pytest.fixture(scope="session")
def jaeger() -> str:
    """Return the program of Jaeger, or skip where nobody has built it."""
    program = cached("jaeger")
    if program is None:
        pytest.skip("there is no Jaeger in the cache; build it with: collector/build.sh jaeger")
    return program

# SPDX-License-Identifier: Apache-2.0
"""Who measures SQLAlchemy when two could: ours, unless it is switched off."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint

import pytest

from jeeves_otel.distro import JeevesDistro

CONTRIB = EntryPoint("sqlalchemy", f"{__name__}:Contrib", "opentelemetry_instrumentor")
LOADER = "opentelemetry.instrumentation.auto_instrumentation._load"
COMPLAINT = 'sqlalchemy only instruments "sqlalchemy<2.1,>=1.0.0", but currently installed version falls outside'


class Contrib:
    """Stands for the instrumentor of the contrib package."""

    activated = 0

    def instrument(self, **_: object) -> None:
        """Count the activation."""
        Contrib.activated += 1


@pytest.mark.parametrize(
    ("disabled", "activated"), [("", 0), ("grpc", 0), ("grpc, jeeves_sqlalchemy", 1), ("jeeves_sqlalchemy", 1)]
)
def test_the_contrib_package_has_its_place_only_if_ours_is_off(
    disabled: str, activated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two owners would count every connection and trace every statement twice."""
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", disabled)
    monkeypatch.setattr(Contrib, "activated", 0)
    JeevesDistro().load_instrumentor(CONTRIB, skip_dep_check=True)

    assert activated == Contrib.activated


@pytest.mark.parametrize(("disabled", "said"), [("", 1), ("jeeves_sqlalchemy", 2)])
def test_the_loader_says_that_sqlalchemy_is_not_instrumented_only_if_so(
    disabled: str, said: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its line about the contrib package is dropped while ours measures, and no other line is."""
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", disabled)
    logger = logging.getLogger(LOADER)
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "")
    JeevesDistro().configure()
    logger.error(COMPLAINT)
    logger.error("grpc only instruments something else")

    assert said == len(caplog.records)

# SPDX-License-Identifier: Apache-2.0
"""owners: one owner per library, whatever is installed, and the words that say so."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, PackageNotFoundError
from typing import TYPE_CHECKING

import pytest

from jeeves_otel import distro
from jeeves_otel.owners import OWNERSHIPS, Owners

if TYPE_CHECKING:
    from collections.abc import Iterator

LOADER = "opentelemetry.instrumentation.auto_instrumentation._load"
COMPLAINT = 'sqlalchemy only instruments "sqlalchemy<2.1,>=1.0.0", but currently installed version falls outside'
OURS = sorted({ownership.owner for ownership in OWNERSHIPS})
OTHERS = sorted({name for ownership in OWNERSHIPS for name in ownership.others})


def _version_of(name: str) -> str:
    versions = {
        "opentelemetry-instrumentation-genai-openai": "1.3b0",
        "sqlalchemy": "2.1.9",
        "starlette": "1.10.0",
        "grpcio": "1.85.1",
        "openai": "3.52.0",
    }
    if name not in versions:
        raise PackageNotFoundError(name)
    return versions[name]


def _owners(
    disabled: str = "", favoured: str = "", version_of: object = _version_of, installed: object = None
) -> Owners:
    names = [*OURS, *OTHERS] if installed is None else installed
    return Owners(names, disabled.split(), favoured.split(), version_of)  # type: ignore[arg-type]  # test data


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("fastapi", "jeeves_asgi"),
        ("starlette", "jeeves_asgi"),
        ("asgi", "jeeves_asgi"),
        ("grpc_server", "jeeves_grpc"),
        ("grpc_aio_client", "jeeves_grpc"),
        ("sqlalchemy", "jeeves_sqlalchemy"),
        ("asyncpg", "jeeves_sqlalchemy"),
        ("psycopg", "jeeves_sqlalchemy"),
        ("openai", "jeeves_openai"),
        ("anthropic", None),  # the library is not installed here
        ("threading", "jeeves_threads"),
        ("httpx", None),
        ("jeeves_sqlalchemy", None),
    ],
)
def test_each_library_has_one_owner(name: str, owner: str | None) -> None:
    """Ours where we measure the library; what nobody else measures is activated."""
    assert owner == _owners().owner_over(name)


def test_of_all_that_is_installed_no_two_measure_the_same() -> None:
    """Whatever is favoured, an owner and those whose place it takes are never active together."""
    for favoured in ["", *OTHERS, *OURS]:
        owners = _owners(favoured=favoured, version_of=lambda _: "9.0")
        active = {name for name in [*OURS, *OTHERS] if owners.owner_over(name) is None}
        for ownership in OWNERSHIPS:
            rivals = active.intersection(ownership.others) if ownership.owner in active else set()
            assert ownership.shared or rivals == set(), favoured


@pytest.mark.parametrize(
    ("favoured", "name", "owner"),
    [
        ("sqlalchemy", "sqlalchemy", None),
        ("sqlalchemy", "jeeves_sqlalchemy", "sqlalchemy"),
        ("sqlalchemy", "asyncpg", "sqlalchemy"),
        ("asyncpg", "asyncpg", None),
        ("asyncpg", "jeeves_sqlalchemy", None),
        ("asyncpg", "psycopg", "jeeves_sqlalchemy"),
        ("jeeves_grpc", "grpc_server", "jeeves_grpc"),
        ("openai", "jeeves_openai", "openai"),
    ],
)
def test_the_user_can_favour_another_owner(favoured: str, name: str, owner: str | None) -> None:
    """It takes the place of ours, except where both measure different things: a driver beside SQLAlchemy."""
    assert owner == _owners(favoured=favoured).owner_over(name)


@pytest.mark.parametrize(
    ("disabled", "name", "disabled_too"),
    [
        ("jeeves_sqlalchemy", "jeeves_sqlalchemy", True),
        ("sqlalchemy", "jeeves_sqlalchemy", True),
        ("asyncpg", "jeeves_sqlalchemy", False),
        ("*", "jeeves_grpc", True),
        ("grpc_client grpc_server grpc_aio_client grpc_aio_server", "jeeves_grpc", True),
        ("grpc_client", "jeeves_grpc", False),
        ("", "jeeves_grpc", False),
    ],
)
def test_standard_names_switch_ours_off(disabled: str, name: str, disabled_too: bool) -> None:
    """Who disables `sqlalchemy` wants no telemetry of SQLAlchemy, whoever makes it."""
    assert disabled_too == _owners(disabled).is_disabled(name)


@pytest.mark.parametrize(
    ("disabled", "installed", "owner"),
    [
        ("jeeves_sqlalchemy", None, None),
        ("", ["sqlalchemy"], None),
        ("", ["sqlalchemy", "jeeves_sqlalchemy"], "jeeves_sqlalchemy"),
    ],
)
def test_an_owner_that_is_off_or_absent_owns_nothing(
    disabled: str, installed: list[str] | None, owner: str | None
) -> None:
    """The other instrumentation then has its place."""
    assert owner == _owners(disabled, installed=installed).owner_over("sqlalchemy")


@pytest.mark.parametrize(
    ("version", "owner"), [("1.4.54", None), ("2.0.0", "jeeves_sqlalchemy"), ("3.0.0b1", "jeeves_sqlalchemy")]
)
def test_a_library_that_is_too_old_for_ours_is_left_to_others(version: str, owner: str | None) -> None:
    """SQLAlchemy 1 has no owner of ours."""
    assert owner == _owners(version_of=lambda _: version).owner_over("sqlalchemy")


def test_an_owner_without_what_it_works_with_owns_nothing_and_is_not_said_to() -> None:
    """The extra genai is not installed: whoever else measures openai has its place."""

    def version_of(name: str) -> str:
        if name.startswith("opentelemetry-"):
            raise PackageNotFoundError(name)
        return "3.0"

    owners = _owners(version_of=version_of)
    owners.note_activated("jeeves_openai", "jeeves-otel 1")

    assert owners.owner_over("openai") is None
    assert owners.summary() == ""


def test_names_that_are_favoured_and_not_installed_are_known() -> None:
    """So that a typo can be said."""
    assert _owners(favoured="asyncpgg asyncpg").unknown() == ["asyncpgg"]


def test_the_line_at_start_says_who_owns_what_and_what_was_left_out_and_why() -> None:
    """Ours by the name of the library, only where that is installed."""
    owners = _owners()
    owners.note_activated("jeeves_sqlalchemy", "jeeves-otel 1")
    owners.note_activated("jeeves_anthropic", "jeeves-otel 1")
    owners.note_activated("jeeves_threads", "jeeves-otel 1")
    owners.note_activated("redis", "opentelemetry-instrumentation-redis 2")
    owners.note_left_out("sqlalchemy", "jeeves_sqlalchemy measures the same")
    owners.note_left_out("asyncpg", "jeeves_sqlalchemy measures the same")

    assert owners.summary() == (
        "instrumented: sqlalchemy, threads by jeeves-otel 1; redis by opentelemetry-instrumentation-redis 2; "
        "asyncpg, sqlalchemy left out: jeeves_sqlalchemy measures the same"
    )
    assert _owners().summary() == ""


@pytest.mark.parametrize(("fastapi", "says"), [("0.141.9", False), ("0.142.0", True), ("1.0", True)])
def test_fastapi_is_said_to_measure_itself_where_it_does(fastapi: str, says: bool) -> None:
    """Since 0.142 it has telemetry of its own."""
    owners = _owners(version_of=lambda name: fastapi if name == "fastapi" else "1.0")
    owners.note_activated("jeeves_asgi", "jeeves-otel 1")

    assert says == ("fastapi by itself, completed by jeeves-otel 1" in owners.summary())


@pytest.fixture
def _undecided() -> Iterator[None]:
    """Let the distro decide anew who owns what, and forget it afterwards."""
    distro._owners.cache_clear()
    yield
    distro._owners.cache_clear()


CONTRIB = EntryPoint("sqlalchemy", f"{__name__}:Contrib", "opentelemetry_instrumentor")


class Contrib:
    """Stands for the instrumentor of the contrib package."""

    activated = 0

    def instrument(self, **_: object) -> None:
        """Count the activation."""
        Contrib.activated += 1


@pytest.mark.usefixtures("_undecided")
@pytest.mark.parametrize(
    ("disabled", "activated"), [("", 0), ("grpc", 0), ("grpc, jeeves_sqlalchemy", 1), ("jeeves_sqlalchemy", 1)]
)
def test_the_distro_leaves_out_what_another_owns(
    disabled: str, activated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two owners would count every connection and trace every statement twice."""
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", disabled)
    monkeypatch.setattr(Contrib, "activated", 0)
    distro.JeevesDistro().load_instrumentor(CONTRIB, skip_dep_check=True)

    assert activated == Contrib.activated


@pytest.mark.usefixtures("_undecided")
@pytest.mark.parametrize(("disabled", "said"), [("", 1), ("jeeves_sqlalchemy", 2)])
def test_the_loader_says_that_sqlalchemy_is_not_instrumented_only_if_so(
    disabled: str, said: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its line about the contrib package is dropped while ours measures, and no other line is."""
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", disabled)
    logger = logging.getLogger(LOADER)
    monkeypatch.setattr(logger, "filters", [])
    for name in ("OTEL_SEMCONV_STABILITY_OPT_IN", "ANTHROPIC_OPEN_TELEMETRY"):
        monkeypatch.setenv(name, "")
    distro.JeevesDistro().configure()
    logger.error(COMPLAINT)
    logger.error("grpc only instruments something else")

    assert said == len(caplog.records)

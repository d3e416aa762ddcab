# SPDX-License-Identifier: Apache-2.0
"""registry and checks: what is wrong with a profile is said at once, with place and way out."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from jeeves_otel.checks import examine_all, judge, violations
from jeeves_otel.registry import RegistryError, load, profile_names

GOOD = """
profile: mine
metrics:
  my_calls_total:
    type: counter
    unit: '{call}'
    help: Calls.
    source: {instrument: gen_ai.client.operation.duration, take: count}
    labels: {model: {from: gen_ai.request.model, absent: unknown}}
"""


def findings_of(tmp_path: Path, text: str) -> list[str]:
    """Return the findings about a profile with *text*, as they are printed."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return [str(finding) for finding in examine_all([str(path)])[1]]


def test_packaged_profiles_have_no_violation() -> None:
    """What we ship passes our own check."""
    assert violations(judge(load(profile_names()))) == []


def test_entries_know_their_file_and_line() -> None:
    """Every metric, label and instrument can say where it was written."""
    registry = load()
    metric = registry.metrics["jeeves_llm_calls_total"]
    lines = (Path(__file__).parents[2] / "jeeves_otel/data/profiles/jeeves.yaml").read_text().splitlines()

    assert metric.where.file == "jeeves.yaml"
    assert lines[metric.where.line - 1].strip() == "jeeves_llm_calls_total:"
    assert lines[metric.labels[1].where.line - 1].strip().startswith("model:")


def test_registry_cannot_be_changed() -> None:
    """Objects are frozen and mappings read-only."""
    registry = load()
    with pytest.raises(FrozenInstanceError):
        registry.metrics["jeeves_llm_calls_total"].name = "x"  # type: ignore[misc]  # the point of the test
    with pytest.raises(TypeError):
        registry.metrics["x"] = registry.metrics["jeeves_llm_calls_total"]  # type: ignore[index]  # as above


def test_good_profile_has_no_finding(tmp_path: Path) -> None:
    """The base of the cases below is right."""
    assert findings_of(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "id_", "line", "hint"),
    [
        ("type: counter", "type: conter", "not-a-choice", 5, "did you mean `counter`?"),
        ("help: Calls.", "hepl: Calls.", "unknown-key", 7, "did you mean `help`?"),
        ("help: Calls.", "help: ''", "help", 4, "say in one sentence"),
        ("my_calls_total:", "my_calls:", "counter-suffix", 4, "call it my_calls_total"),
        ("my_calls_total:", "my-calls_total:", "metric-name", 4, "letters, digits and underscores"),
        ("unit: '{call}'", "unit: s", "unit-suffix", 4, "_seconds"),
        ("unit: '{call}'", "unit: USD", "unit", 4, "annotation in braces"),
        ("operation.duration", "operation.duratoin", "unknown-instrument", 8, "did you mean"),
        ("take: count", "take: value", "take", 8, "take count or sum or histogram"),
        ("take: count", "take: histogram", "take", 8, "take count or sum or value"),
        (
            "from: gen_ai.request.model",
            "from: gen_ai.request.modle",
            "unknown-attribute",
            9,
            "did you mean `gen_ai.request.model`?",
        ),
        (", absent: unknown", "", "absent-missing", 9, "add `absent: VALUE`"),
        ("{model: {", "{le: {", "label-name", 9, "choose another name"),
        ("{model: {", "{__model: {", "label-name", 9, "no __ first"),
        ("absent: unknown", "absent: unknown, limit: 0", "not-a-whole-number", 9, "from 1 up"),
        ("absent: unknown", "absent: unknown, zero: true", "zero-values", 9, "list `values`"),
        ("absent: unknown", "absent: a, values: [a], map: {x: b}", "label-values", 9, "add it to `values`"),
        ("absent: unknown", "absent: unknown, zero: maybe", "not-a-boolean", 9, "true or false"),
        (
            "{from: gen_ai.request.model, absent: unknown}",
            "modle",
            "unknown-label-definition",
            9,
            "known here: nothing",
        ),
        ("absent: unknown", "absent: unknown, map: providers", "unknown-value-map", 9, "known here: nothing"),
        ("    help: Calls.\n", "    help: Calls.\n    help: Again.\n", "duplicate-key", 8, "keep one of them"),
        ("    help: Calls.\n", "    help: Calls.\n    buckets: [1, 2]\n", "buckets-unused", 4, "drop `buckets`"),
        ("profile: mine", "profile: [mine", "yaml-syntax", 3, "mend the syntax"),
        ("metrics:", "include: [jeevs]\nmetrics:", "unknown-profile", 3, "did you mean `jeeves`?"),
        (
            "metrics:\n  my_calls_total:",
            "include: [jeeves]\nmetrics:\n  jeeves_llm_calls_total:",
            "duplicate-metric",
            72,
            "one profile owns a name",
        ),
    ],
)
def test_each_mistake_is_found_with_place_and_way_out(
    tmp_path: Path, old: str, new: str, id_: str, line: int, hint: str
) -> None:
    """One mistake gives at least its own finding, at its line, with a hint."""
    assert old in GOOD
    findings = [finding for finding in findings_of(tmp_path, GOOD.replace(old, new)) if f"[{id_}]" in finding]

    assert findings, findings_of(tmp_path, GOOD.replace(old, new))
    assert any(hint in finding for finding in findings)
    if id_ != "duplicate-metric":
        assert any(f"mine.yaml:{line} " in finding or f"mine.yaml:{line}:" in finding for finding in findings), findings


def test_histogram_with_unordered_buckets_is_found(tmp_path: Path) -> None:
    """Buckets out of order are named with the pair that is wrong."""
    text = (
        GOOD.replace("my_calls_total", "my_seconds")
        .replace("type: counter", "type: histogram")
        .replace("'{call}'", "s")
    )
    text = text.replace("take: count", "take: histogram").replace("help: Calls.", "help: Calls.\n    buckets: [1, 0.5]")

    assert any("0.5 comes after 1" in finding for finding in findings_of(tmp_path, text))


def test_counter_from_an_instrument_that_can_fall_is_found(tmp_path: Path) -> None:
    """An up-down counter cannot feed a counter."""
    text = GOOD.replace("gen_ai.client.operation.duration, take: count", "jeeves.sessions.active, take: value")

    assert any("make it a gauge" in finding for finding in findings_of(tmp_path, text))


def test_all_findings_of_a_file_come_at_once(tmp_path: Path) -> None:
    """Mistakes of shape and of content are reported together, in the order of the file."""
    text = (
        GOOD.replace("type: counter", "type: conter")
        .replace("help: Calls.", "hepl: x")
        .replace(", absent: unknown", "")
    )
    findings = findings_of(tmp_path, text)
    lines = [int(finding.split("mine.yaml:")[1].split(" ")[0]) for finding in findings]

    assert len(findings) >= 3
    assert lines == sorted(lines)


def test_load_raises_with_every_finding(tmp_path: Path) -> None:
    """An explicit call gets an exception that carries them all."""
    path = tmp_path / "mine.yaml"
    path.write_text("profile: mine\nmetrics:\n  a: {type: x}\n  b: {tpye: counter}\n")
    with pytest.raises(RegistryError) as raised:
        load([str(path)])

    assert len(raised.value.findings) > 4


def test_own_instruments_of_a_profile_can_feed_its_metrics(tmp_path: Path) -> None:
    """A user's profile may declare what the user's code records."""
    text = """
profile: mine
instruments:
  shop.orders:
    kind: counter
    unit: '{order}'
    attributes: [shop.region]
metrics:
  shop_orders_total:
    type: counter
    unit: '{order}'
    help: Orders.
    source: {instrument: shop.orders, take: value}
    labels: {region: {from: shop.region, absent: unknown, limit: 10}}
"""
    assert findings_of(tmp_path, text) == []


def test_unreadable_and_missing_profiles_are_findings(tmp_path: Path) -> None:
    """A file that is not there, or not text, is said like everything else."""
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")

    assert "does not exist" in str(examine_all([str(tmp_path / "nothing.yaml")])[1][0])
    assert "cannot be read" in str(examine_all([str(tmp_path / "binary.yaml")])[1][0])


@pytest.mark.parametrize(
    "scalar",
    [".nan", ".inf", "-.inf", "0x10", "0b11", "1:30", "1.0e+999", "1_0.5", "''", "[]", "{}", "~", "yes", "2001-01-01"],
)
@pytest.mark.parametrize(
    "place",
    [
        "buckets: [{}]",
        "labels: {{x: {{from: error.type, absent: a, limit: {}}}}}",
        "unit: {}",
        "source: {}",
        "labels: {}",
        "help: {}",
        "type: {}",
    ],
)
def test_no_scalar_at_any_place_breaks_the_reader(tmp_path: Path, place: str, scalar: str) -> None:
    """Whatever stands there, reading and judging end with findings, never with an exception."""
    text = f"profile: mine\nmetrics:\n  a_seconds:\n    {place.format(scalar)}\n"

    assert findings_of(tmp_path, text)


def test_mistakes_in_a_definition_that_nobody_uses_are_found(tmp_path: Path) -> None:
    """A shared label is read, used or not."""
    text = GOOD.replace("metrics:", "labels: {spare: {from: error.type, absent: a, zero: maybe}}\nmetrics:", 1)

    assert any("labels.spare.zero" in finding for finding in findings_of(tmp_path, text))


def test_instrument_names_are_read_as_the_sdk_reads_them(tmp_path: Path) -> None:
    """The SDK knows instruments in lower case only."""
    text = GOOD.replace("instrument: gen_ai.client.operation.duration", "instrument: Gen_AI.client.operation.duration")

    assert findings_of(tmp_path, text) == []

# SPDX-License-Identifier: Apache-2.0
"""The generated files of the Collector: no default stands twice, no variable is in vain, nothing secret is inline."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

from jeeves_otel.checks import load_checked
from jeeves_otel.content import kinds
from jeeves_otel.generators.collector import VARIABLES, files
from jeeves_otel.registry import profile_names

FILES = files(load_checked(profile_names()), kinds().values())
CONFIGURATIONS = {path: text for path, text in FILES.items() if path.endswith(".yaml")}


def test_every_variable_is_read_by_some_file_and_in_the_table() -> None:
    """And no file reads one that is not in the table."""
    read = {
        name for text in CONFIGURATIONS.values() for name in re.findall(r"\$\{env:((?:COLLECTOR|JEEVES)_\w+)", text)
    }

    assert {variable.name for variable in VARIABLES} == read
    assert [] == [name for name in read if f"| `{name}` |" not in FILES["docs/reference/collector.md"]]


def test_no_mark_of_a_template_is_left() -> None:
    """Everything that stands for something has been replaced."""
    left = [mark for text in CONFIGURATIONS.values() for mark in re.findall(r"<[A-Z_]+>|@\w+@", text)]

    assert [] == left


@pytest.mark.parametrize(
    ("part", "module"),
    [
        ("jaeger", "jaegertracing/jaeger"),
        ("prometheus", "prometheus/prometheus"),
        ("alertmanager", "prometheus/alertmanager"),
    ],
)
def test_the_modules_of_a_part_are_those_of_its_version(part: str, module: str) -> None:
    """The version stands in one place, and the module file agrees."""
    bundle = Path(__file__).parents[2] / "collector"
    versions = (bundle / "versions.env").read_text(encoding="utf-8")
    version = re.search(rf"^{part.upper()}_VERSION=(.+)$", versions, re.MULTILINE)

    assert version is not None
    assert f"github.com/{module} v{version[1]} " in (bundle / part / "go.mod").read_text(encoding="utf-8")


@pytest.mark.parametrize("word", ["password", "token", "secret"])
def test_secrets_come_from_the_environment_and_from_files(word: str) -> None:
    """No key of a secret has a value of its own, not even a default."""
    given = [
        line.strip()
        for text in CONFIGURATIONS.values()
        for line in text.splitlines()
        if re.match(rf"\s*\w*{word}\w*: ", line) and not re.search(r": (\$\{file:)?\$\{env:\w+}}?$", line)
    ]

    assert [] == given


@pytest.mark.parametrize("name", ["sidecar", "gateway"])
def test_every_name_of_content_is_in_the_statements_for_spans_and_for_events(name: str) -> None:
    """What the SDK keeps back, sidecar and gateway keep back."""
    text = CONFIGURATIONS[f"collector/{name}.yaml"]
    names = {name for kind in kinds().values() for name in kind.attributes}
    spelled = {name: re.escape(name).replace(r"\*", ".*").replace("\\", "\\\\") for name in names}

    assert {} == {name: form for name, form in spelled.items() if text.count(form) < 2}


def test_no_key_that_is_not_looked_at_holds_content_or_is_called_like_a_secret() -> None:
    """What redaction ignores was chosen by code, whatever content is asked for."""
    redaction = yaml.safe_load(CONFIGURATIONS["collector/sidecar.yaml"])["processors"]["redaction/traces"]
    content = [name for kind in kinds().values() for name in (*kind.attributes, *kind.cut)]
    ignored = redaction["ignored_keys"]
    (secret,) = redaction["blocked_key_patterns"]

    assert len(ignored) == len(set(ignored))
    assert [] == [key for key in ignored if any(fnmatchcase(key, name) for name in content)]
    assert [] == [key for key in ignored if re.search(secret.replace(r"\z", r"\Z"), key)]

# SPDX-License-Identifier: Apache-2.0
"""content: which attribute is of which kind, and what a file of rules may say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.metrics import Observation
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from jeeves_otel.content import Content, Rules, asked_by, holds_rules, kinds, read_rules, without_query
from jeeves_otel.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers import Pipeline


def test_every_kind_that_the_settings_name_is_in_the_file() -> None:
    """The list that users read is the list that is read."""
    assert list(kinds()) == ["prompts", "completions", "tools", "sql", "queries", "headers", "exceptions"]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("gen_ai.input.messages", "prompts"),
        ("gen_ai.system_instructions", "prompts"),
        ("gen_ai.prompt.0.content", "prompts"),
        ("gen_ai.prompt.variable.customer", "prompts"),
        ("gen_ai.output.messages", "completions"),
        ("gen_ai.completion.0.content", "completions"),
        ("gen_ai.tool.call.arguments", "tools"),
        ("gen_ai.tool.call.result", "tools"),
        ("gen_ai.tool.definitions", "tools"),
        ("gen_ai.prompt.0.tool_calls.1.arguments", "tools"),
        ("db.query.text", "sql"),
        ("db.query.parameter.0", "sql"),
        ("db.statement", "sql"),
        ("url.query", "queries"),
        ("http.request.header.authorization", "headers"),
        ("rpc.grpc.request.metadata.token", "headers"),
        ("rpc.user_agent", "headers"),
        ("user_agent.original", "headers"),
        ("exception.message", "exceptions"),
        ("exception.stacktrace", "exceptions"),
    ],
)
def test_attribute_leaves_only_if_its_kind_is_asked_for(key: str, kind: str) -> None:
    """Nothing of it by default, nothing with all other kinds, everything with its own."""
    others = frozenset(kinds()) - {kind}

    assert [Content(asked).drops(key) for asked in (frozenset(), others, frozenset({kind}))] == [True, True, False]


@pytest.mark.parametrize(
    "key",
    [
        "gen_ai.prompt.name",
        "gen_ai.prompt.0.tool_calls.1.name",
        "gen_ai.request.model",
        "gen_ai.tool.name",
        "gen_ai.output.type",
        "gen_ai.usage.input_tokens",
        "db.query.summary",
        "db.operation.name",
        "url.path",
        "http.route",
        "exception.type",
        "error.type",
    ],
)
def test_attributes_that_operators_need_stay(key: str) -> None:
    """They hold names, not texts."""
    assert Content().drops(key) is False


def test_every_content_attribute_of_the_genai_convention_is_known() -> None:
    """A new version of the convention that adds one fails here; these are the ones that hold no content."""
    holds_none = {
        "gen_ai.agent.description", "gen_ai.agent.id", "gen_ai.agent.name", "gen_ai.agent.version",
        "gen_ai.conversation.id", "gen_ai.data_source.id", "gen_ai.embeddings.dimension.count",
        "gen_ai.evaluation.name", "gen_ai.evaluation.score.label",
        "gen_ai.evaluation.score.value", "gen_ai.openai.request.response_format",
        "gen_ai.openai.request.seed", "gen_ai.openai.request.service_tier", "gen_ai.openai.response.service_tier",
        "gen_ai.openai.response.system_fingerprint", "gen_ai.operation.name", "gen_ai.output.type",
        "gen_ai.prompt.name", "gen_ai.provider.name", "gen_ai.system", "gen_ai.token.type",
        "gen_ai.tool.call.id", "gen_ai.tool.description", "gen_ai.tool.name", "gen_ai.tool.type",
        "gen_ai.workflow.name",
    }  # fmt: skip
    known = {
        value
        for name, value in vars(gen_ai_attributes).items()
        if name.startswith("GEN_AI_") and isinstance(value, str) and value.startswith("gen_ai.")
    }
    harmless = {key for key in known if key.startswith(("gen_ai.request.", "gen_ai.response.", "gen_ai.usage."))}

    assert {key for key in known if not Content().drops(key)} - harmless == holds_none & known


def test_urls_lose_query_fragment_and_user_information() -> None:
    """Scheme, host, port and path stay."""
    assert without_query("https://me:secret@host:8443/a/b?x=canary#y") == "https://host:8443/a/b"
    assert without_query("https://me:se@cret@host/a") == "https://host/a"
    assert without_query("/a/b?x") == "/a/b"
    assert without_query("http://host/@home") == "http://host/@home"


def test_standard_variables_ask_for_their_kinds() -> None:
    """OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT keeps its meaning; JEEVES_OTEL_CONTENT wins."""
    variable = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

    assert asked_by({variable: "true"}) == ("prompts", "completions", "tools")
    assert asked_by({variable: "NO_CONTENT"}) == ()
    assert Settings.from_env({variable: "SPAN_ONLY"})[0].content == ("prompts", "completions", "tools")
    assert Settings.from_env({variable: "true", "JEEVES_OTEL_CONTENT": "none"})[0].content == ()
    assert asked_by({"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": "x-tenant"}) == ("headers",)


def test_rules_add_names_and_patterns(tmp_path: Path) -> None:
    """`*` stands for anything; a pattern is one of Python's."""
    path = tmp_path / "redaction.yaml"
    path.write_text("redaction:\n  drop: [app.customer.*, secret]\n  mask: ['id-[0-9]+']\n", encoding="utf-8")
    rules, findings = read_rules(str(path))
    content = Content(frozenset(kinds()), rules)

    assert findings == []
    assert [content.drops(key) for key in ("app.customer.name", "secret", "secrets", "app.x")] == [
        True,
        True,
        False,
        False,
    ]
    assert content.masked("a id-12 b id-3") == "a *** b ***"


def test_every_mistake_in_the_rules_is_said_and_the_others_hold(tmp_path: Path) -> None:
    """An unknown key, a broken pattern and one that matches everything, each with its line."""
    path = tmp_path / "redaction.yaml"
    path.write_text("redaction:\n  dorp: [a]\n  mask:\n    - '('\n    - 'x*'\n    - 'y+'\n    - ''\n", encoding="utf-8")
    rules, findings = read_rules(str(path))

    assert [(finding.id, finding.where.line) for finding in findings] == [
        ("unknown-key", 2),
        ("not-a-pattern", 4),
        ("empty-match", 5),
        ("empty-match", 7),
    ]
    assert [pattern.pattern for pattern in rules.mask] == ["y+"]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("redaction:\n  drop: [a]\n", True),
        ('"redaction":\n  drop: [a]\n', True),
        ("# mine\n  redactions: {}\n", True),
        ("profile: mine\nmetrics: {}\n", False),
        ("", False),
    ],
)
def test_a_file_of_rules_is_told_from_a_profile(text: str, holds: bool, tmp_path: Path) -> None:
    """By its head, misspelt too: what is wrong with it is then said of rules."""
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")

    assert holds == holds_rules(str(path))


def test_rules_that_cannot_be_read_are_a_finding(tmp_path: Path) -> None:
    """The kinds still hold."""
    rules, findings = read_rules(str(tmp_path / "absent.yaml"))

    assert (rules, [finding.id for finding in findings]) == (Rules(), ["unreadable-file"])


@pytest.mark.parametrize(
    ("text", "kinds_in_force", "findings"),
    [
        ("", (), 0),
        ("none", (), 0),
        ("sql", ("sql",), 0),
        ("SQL, headers", ("sql", "headers"), 0),
        ("all", ("prompts", "completions", "tools", "sql", "queries", "headers", "exceptions"), 0),
        ("sqll", (), 1),
        ("all,sql", (), 1),
    ],
)
def test_setting_names_kinds(text: str, kinds_in_force: tuple[str, ...], findings: int) -> None:
    """A mistake means that nothing leaves."""
    settings, found = Settings.from_env({"JEEVES_OTEL_CONTENT": text})

    assert (settings.content, len(found)) == (kinds_in_force, findings)


def test_a_mistake_in_the_setting_is_no_reason_to_ask_the_standard_variables() -> None:
    """The line says that nothing leaves."""
    standard = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only"}
    settings, found = Settings.from_env({"JEEVES_OTEL_CONTENT": "promts", **standard})

    assert ((), 1) == (settings.content, len(found))


@pytest.mark.parametrize("name", ["a.library.duration", "gen_ai.client.operation.duration"])
def test_measurements_lose_attributes_that_hold_content(name: str, pipeline: Pipeline) -> None:
    """Of instruments that are mapped and of those that nobody knows."""
    pipeline.meter_provider.get_meter("library").create_histogram(name, "s").record(
        1, {"url.query": "canary", "gen_ai.input.messages": "canary", "kept": "yes", "gen_ai.operation.name": "chat"}
    )
    data = pipeline.reader.get_metrics_data()

    assert data is not None
    assert "canary" not in data.to_json()
    assert ("kept" in data.to_json()) is (name == "a.library.duration")


@pytest.mark.parametrize("key", ["url.full", "http.url", "http.target"])
def test_urls_of_measurements_lose_their_query(key: str, pipeline: Pipeline) -> None:
    """As those of spans do, whether an instrument is called or calls back."""
    meter = pipeline.meter_provider.get_meter("library")
    attributes = {key: "http://user:canary@host/path?q=canary"}
    meter.create_histogram("a.library.duration", "s").record(1, attributes)
    meter.create_observable_gauge("a.library.level", [lambda _: [Observation(1, attributes)]])
    data = pipeline.reader.get_metrics_data()

    assert data is not None
    assert (2, 0) == (data.to_json().count(f'"{key}": "http://host/path"'), data.to_json().count("canary"))

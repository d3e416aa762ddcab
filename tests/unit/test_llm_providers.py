# SPDX-License-Identifier: Apache-2.0
"""llm_providers: the server in the client's base URL names the provider."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jeeves_otel.integrations.genai import carries_output
from jeeves_otel.llm_providers import LlmProviders
from jeeves_otel.settings import Settings


def _rules(text: str) -> tuple[tuple[str, str, int | None], ...]:
    settings, findings = Settings.from_env({"JEEVES_OTEL_LLM_PROVIDERS": text})
    assert findings == []
    return settings.llm_providers


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("", ()),
        ("llamaserver=http://localhost:8080", (("llamaserver", "localhost", 8080),)),
        ("llamaserver=http://LOCALHOST:8080/v1;", (("llamaserver", "localhost", 8080),)),
        ("a=http://one", (("a", "one", 80),)),
        ("a=https://one", (("a", "one", 443),)),
        ("a=one", (("a", "one", None),)),
        ("a=one:8080", (("a", "one", 8080),)),
        ("a=*.example.com", (("a", "*.example.com", None),)),
        ("a=[::1]:8080", (("a", "::1", 8080),)),
        ("a=one|two:1; b=three", (("a", "one", None), ("a", "two", 1), ("b", "three", None))),
        ("a=one; a=one", (("a", "one", None),)),
    ],
)
def test_a_server_is_a_host_a_port_or_a_url(text: str, rules: tuple[Any, ...]) -> None:
    """A host alone is any port; a URL without a port has its scheme's; a path says nothing."""
    assert rules == _rules(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("llamaserver", "write provider=address|address"),
        ("=one", "write provider=address|address"),
        ("two words=one", "write provider=address|address"),
        ("a=", "write a server as"),
        ("a=one:http", "write a server as"),
        ("a=one:0", "write a server as"),
        ("a=one:70000", "write a server as"),
        ("a=ftp://one", "write a server as"),
        ("a=http://user:secret@one", "write a server as"),
        ("a=on*e", "write a server as"),
        ("a=[::1", "write a server as"),
        ("a=one:1; b=http://one:1/v2", "one stands for two providers"),
    ],
)
def test_a_malformed_value_is_a_finding_and_names_no_provider(text: str, says: str) -> None:
    """As with every other setting: said once, with the way out and without secrets, and the default holds."""
    settings, findings = Settings.from_env({"JEEVES_OTEL_LLM_PROVIDERS": text})

    assert settings.llm_providers == ()
    assert [finding.id for finding in findings] == ["malformed-setting"]
    assert says in str(findings[0])
    assert "secret" not in str(findings[0])


@pytest.mark.parametrize(
    ("text", "address", "port", "provider"),
    [
        ("a=http://one:8080", "one", 8080, "a"),
        ("a=http://one:8080", "ONE", 8080, "a"),
        ("a=http://one:8080", "one", 8081, None),
        ("a=http://one:8080", "one", None, None),
        ("a=http://one:8080", "other", 8080, None),
        # Instrumentations leave the default port of the scheme out.
        ("a=https://one", "one", None, "a"),
        ("a=https://one", "one", 443, "a"),
        ("a=http://one", "one", None, "a"),
        ("a=one", "one", None, "a"),
        ("a=one", "one", 1234, "a"),
        ("a=*.example.com", "x.example.com", None, "a"),
        ("a=*.example.com", "y.x.example.com", 1, "a"),
        ("a=*.example.com", "example.com", None, None),
        ("a=*.example.com", "badexample.com", None, None),
        # The narrower rule wins, wherever it stands.
        ("a=one; b=one:1", "one", 1, "b"),
        ("a=*.com; b=*.example.com; c=x.example.com", "x.example.com", None, "c"),
        ("a=*.com; b=*.example.com", "x.example.com", None, "b"),
        ("a=*.com; b=*.example.com", "x.com", None, "a"),
        ("a=one", None, None, None),
        ("a=one", ["one"], None, None),
        ("a=one", 7, None, None),
    ],
)
def test_the_narrowest_rule_about_the_server_names_the_provider(
    text: str, address: Any, port: int | None, provider: str | None
) -> None:
    """Host and port before a host, a host before a wildcard, a longer wildcard before a shorter one."""
    attributes = {"server.address": address} | ({} if port is None else {"server.port": port})
    providers = LlmProviders(_rules(text))

    assert provider == providers.of(attributes)
    assert provider == providers.of(attributes), "the second time it is remembered"


def test_what_is_remembered_is_bounded() -> None:
    """A tenant per host name must not grow this table without end."""
    providers = LlmProviders((("a", "*.example.com", None),))
    found = {providers.of({"server.address": f"{n}.example.com"}) for n in range(3_000)}

    assert {"a"} == found
    assert len(providers._known) <= 1_024


def _chat(**delta: Any) -> Any:
    return SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(**delta))])


def _event(kind: str, **fields: Any) -> Any:
    return SimpleNamespace(type=kind, **fields)


@pytest.mark.parametrize(
    ("chunk", "output"),
    [
        (_chat(role="assistant", content=""), False),
        (_chat(role="assistant", content=None), False),
        (_chat(content="a"), True),
        (_chat(tool_calls=[1]), True),
        (_chat(refusal="no"), True),
        (_chat(reasoning_content="hm"), True),
        (SimpleNamespace(choices=[]), False),
        (_event("response.created"), False),
        (_event("response.output_text.delta"), True),
        (_event("response.function_call_arguments.delta"), True),
        (_event("response.completed"), False),
        (_event("message_start"), False),
        (_event("ping"), False),
        (_event("content_block_start", content_block=SimpleNamespace(type="text")), False),
        (_event("content_block_start", content_block=SimpleNamespace(type="tool_use")), True),
        (_event("content_block_delta"), True),
        (_event("message_delta"), False),
        ({"a": "chunk of a type of the application's own"}, True),
    ],
)
def test_a_first_token_is_told_from_events_that_only_open_or_close_a_stream(chunk: Any, output: bool) -> None:
    """Roles, pings, starts and usage hold nothing that a model has generated."""
    assert output == carries_output(chunk)

# SPDX-License-Identifier: Apache-2.0
"""Name the provider of an LLM call by the server that was asked.

In: rules of ``JEEVES_OTEL_LLM_PROVIDERS`` (provider, host, port). Out: the provider of a measurement or span that has
``server.address`` and ``server.port``. A client library knows its own protocol, not who answers: the client of OpenAI is
used for llama.cpp, gateways and a dozen providers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

PROVIDER_NAME = "gen_ai.provider.name"
_ADDRESS, _PORT, _OPERATION = "server.address", "server.port", "gen_ai.operation.name"
_MOST_KNOWN = 1_024  # servers whose provider is remembered; those beyond are looked up each time
_UNSAID = (80, 443)  # ports that a URL, and so an instrumentation, leaves out


class LlmProviders:
    """Providers by server; safe from several threads.

    Args:
        rules: ``(provider, host, port)``. A host may begin with ``*.``; a port of None is any port. A rule with a port
            goes before one without, a host before a wildcard, and a longer wildcard before a shorter one.
    """

    def __init__(self, rules: Iterable[tuple[str, str, int | None]]) -> None:
        self._rules = sorted(rules, key=lambda rule: (rule[2] is None, rule[1].startswith("*."), -len(rule[1])))
        self._known: dict[tuple[Any, Any], str | None] = {}

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return bool(self._rules)

    def of(self, attributes: Mapping[str, Any]) -> str | None:
        """Return the provider of the server in *attributes*, or None if no rule is about it."""
        server = attributes.get(_ADDRESS), attributes.get(_PORT)
        try:
            return self._known[server]
        except KeyError:
            found = self._look_up(*server)
            if len(self._known) < _MOST_KNOWN:
                self._known[server] = found
            return found
        except TypeError:  # a collection, which is no server
            return None

    def _look_up(self, address: Any, port: Any) -> str | None:
        if not isinstance(address, str):
            return None
        host = address.lower()
        ports = _UNSAID if port is None else (port,)
        for provider, pattern, wanted in self._rules:
            if wanted is not None and wanted not in ports:
                continue
            if host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:])):
                return provider
        return None


def naming(providers: LlmProviders) -> Callable[[Sequence[ReadableSpan]], list[ReadableSpan]]:
    """Return a function of finished spans that returns them with the provider named on those of GenAI clients.

    At export, because an instrumentation may write its own name once more when it ends the span.
    """

    def named(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
        return [_named(span, providers) for span in spans]

    return named


def _named(span: ReadableSpan, providers: LlmProviders) -> ReadableSpan:
    attributes = span.attributes
    if not attributes or _OPERATION not in attributes:
        return span
    provider = providers.of(attributes)
    if provider is None or attributes.get(PROVIDER_NAME) == provider:
        return span
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes={**attributes, PROVIDER_NAME: provider},
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )

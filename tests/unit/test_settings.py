# SPDX-License-Identifier: Apache-2.0
"""settings: the environment becomes one frozen object, and nothing malformed goes unsaid."""

from __future__ import annotations

import pytest

from jeeves_otel.settings import PROBES, VARIABLES, Settings, describe, mask


def test_empty_environment_gives_the_documented_defaults() -> None:
    """The defaults are those of the design: 15 s, 9090 on loopback, OTLP over HTTP, a tenth of the traces."""
    settings, findings = Settings.from_env({})

    assert findings == []
    assert (settings.metrics_host, settings.metrics_port) == ("127.0.0.1", 9090)
    assert settings.metric_export_interval_s == 15
    assert settings.otlp_protocol == "http/protobuf"
    assert (settings.sampler, settings.sampler_arg) == ("parentbased_traceidratio", None)
    assert (settings.traces_exporters, settings.metrics_exporters, settings.logs_exporters) == (
        ("otlp",),
        ("otlp",),
        (),
    )
    assert settings.names == "views"


@pytest.mark.parametrize(
    ("environ", "port"),
    [
        ({}, 9090),
        ({"METRICS_PORT": "9191"}, 9191),
        ({"METRICS_PORT": "0"}, None),
        ({"METRICS_PORT": ""}, 9090),
        ({"METRICS_PORT": "70000"}, 9090),
        ({"METRICS_PORT": "-1"}, 9090),
        ({"METRICS_PORT": "٣"}, 9090),
        ({"OTEL_METRICS_EXPORTER": "none"}, None),
        ({"OTEL_METRICS_EXPORTER": "none", "METRICS_PORT": "9191"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus", "METRICS_PORT": "9191"}, 9191),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, 9090),
    ],
)
def test_metrics_port_truth_table(environ: dict[str, str], port: int | None) -> None:
    """Who turns the page off: port 0, no metrics at all, or the standard exporter that has a port of its own."""
    settings, _ = Settings.from_env(environ)

    assert settings.metrics_port == port


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("METRICS_PORT", "http", "`http` is not a port"),
        ("JEEVES_OTEL_NAMES", "semconf", "did you mean `semconv`?"),
        ("JEEVES_OTEL_UNMAPPED", "keep", "known here: drop, pass"),
        ("JEEVES_OTEL_STRICT", "yes", "write true, false, 1 or 0"),
        ("JEEVES_OTEL_FOLDER", "tmp", "write an absolute path"),
        ("JEEVES_OTEL_SNAPSHOT_INTERVAL", "0", "more than 0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", "more than 0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "inf", "more than 0"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http", "http/protobuf"),
        ("JEEVES_OTEL_DECLARE", "agent", "write label=value"),
        ("JEEVES_OTEL_DECLARE", "agent=a||b", "write label=value"),
        ("JEEVES_OTEL_PROFILE", "x", "did you mean `JEEVES_OTEL_PROFILES`?"),
        ("METRICS_PROT", "1", "did you mean `METRICS_PORT`?"),
    ],
)
def test_malformed_value_or_name_is_one_finding_with_the_way_out(name: str, value: str, says: str) -> None:
    """What does not fit is said once, with what fits, and the default holds."""
    settings, findings = Settings.from_env({name: value})

    assert len(findings) == 1
    assert name in str(findings[0])
    assert says in str(findings[0])
    assert settings == Settings.from_env({})[0]


def test_all_findings_come_at_once() -> None:
    """Three mistakes give three findings, not one after the other."""
    _, findings = Settings.from_env({"METRICS_PORT": "x", "JEEVES_OTEL_NAMES": "x", "JEEVES_OTEL_X": "x"})

    assert len(findings) == 3


def test_declared_label_sets_multiply_within_a_set_only() -> None:
    """`|` gives alternatives, `,` another label of the same set, `;` another set."""
    settings, _ = Settings.from_env({"JEEVES_OTEL_DECLARE": "agent=a|b; provider=p,model=m|n"})

    assert settings.declared_labels == (
        {"agent": "a"},
        {"agent": "b"},
        {"provider": "p", "model": "m"},
        {"provider": "p", "model": "n"},
    )


@pytest.mark.parametrize(
    ("name", "value", "masked"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer x", "***"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x", "***"),
        ("MY_API_KEY", "x", "***"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:pass@host:4318/v1", "https://***@host:4318/v1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:pa@ss@host:4318/v1", "https://***@host:4318/v1"),
        ("OTEL_SERVICE_NAME", "checkout", "checkout"),
        ("JEEVES_OTEL_RESPONSE_HEADERS", "false", "false"),
    ],
)
def test_secrets_are_masked_wherever_settings_are_printed(name: str, value: str, masked: str) -> None:
    """Headers, keys and user information never show."""
    rows = {row[0]: row[1] for row in describe({name: value})}

    assert mask(name, value) == masked
    assert rows.get(name, masked) == masked


def test_every_variable_has_a_meaning_and_its_default_parses() -> None:
    """The table describes itself without holes."""
    for variable in VARIABLES:
        assert variable.meaning.endswith(".")
        if variable.default and " " not in variable.default:
            variable.parse(variable.default)


def test_settings_never_show_a_secret_in_repr() -> None:
    """No field holds a secret, so repr cannot show one."""
    settings, _ = Settings.from_env({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=canary"})

    assert "canary" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("JEEVES_OTEL_HTTP_EXCLUDED", "", "http_excluded", PROBES),
        ("JEEVES_OTEL_HTTP_EXCLUDED", "None", "http_excluded", ()),
        ("JEEVES_OTEL_HTTP_EXCLUDED", "/a, /b/*,*/c", "http_excluded", ("/a", "/b/*", "*/c")),
        ("JEEVES_OTEL_HTTP_EXCLUDED", "health", "http_excluded", PROBES),
        ("JEEVES_OTEL_RESPONSE_HEADERS", "false", "response_headers", False),
        ("OTEL_PYTHON_EXCLUDED_URLS", "a.*,b", "excluded_urls", ("a.*", "b")),
        ("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "(", "fastapi_excluded_urls", ()),
    ],
)
def test_what_is_excluded_is_paths_or_expressions(name: str, text: str, field: str, value: object) -> None:
    """Empty means the default, `none` nothing; what is neither a path nor an expression is a finding."""
    settings, findings = Settings.from_env({name: text})

    assert value == getattr(settings, field)
    assert (text in {"health", "("}) == bool(findings)

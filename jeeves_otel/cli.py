# SPDX-License-Identifier: Apache-2.0
"""Parse ``check``, ``render``, ``collector``, ``settings`` and ``demo``; print; set the exit code.

Exit codes: 0 all is well, 1 findings or a failed run, 2 wrong usage.
"""

from __future__ import annotations

import os
import sys

from jeeves_otel import checks, generators
from jeeves_otel.content import holds_rules, read_rules
from jeeves_otel.documents import Finding, Level
from jeeves_otel.registry import DATA, Registry, examine, profile_names
from jeeves_otel.settings import VARIABLES, Settings, describe

try:
    import click
except ImportError:  # the core install has no command line
    sys.exit("jeeves-otel needs its extra `cli` for the command line: pip install 'jeeves-otel[cli]'")

_ROOT = DATA.parent.parent


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="jeeves-otel")
def main() -> None:
    """OpenTelemetry for services that run LLM agents: semantic conventions in, a stable Prometheus contract out.

    A service needs none of these commands: `opentelemetry-instrument python app.py` is enough.
    """


@main.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
def check(files: tuple[str, ...]) -> None:
    """Judge profiles and rules of redaction: every finding at once, each with place and way out.

    FILE is a profile of your own (YAML), the name of one in the package, or a file for JEEVES_OTEL_REDACTION; without
    FILE the packaged ones are judged and the generated pages compared with the committed ones.
    """
    rules = [file for file in files if holds_rules(file)]
    profiles = [file for file in files if file not in rules]
    registry, findings = checks.examine_all(profiles if files else profile_names())
    findings += [finding for file in rules for finding in read_rules(file)[1]]
    _print_findings(findings)
    failed = any(finding.level is Level.VIOLATION for finding in findings)
    if not files and not failed:
        failed = _print_stale(registry)
    if failed:
        sys.exit(1)
    promised = len([metric for metric in registry.metrics.values() if metric.profile != "internal"])
    judged = f"{promised} metrics" if profiles or not files else "rules of redaction"
    click.echo(f"{', '.join(files) or 'packaged profiles'}: {judged}, no violation")


@main.command()
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit 1 if a committed file is stale.")
def render(*, only_check: bool) -> None:
    """Write everything that is generated from the registry (in a checkout of the project)."""
    registry, findings = examine(profile_names())
    if findings:
        _print_findings(findings)
        sys.exit(1)
    if not (_ROOT / "pyproject.toml").is_file():
        click.echo("render works in a checkout of jeeves-otel; an installed package has nothing to write", err=True)
        sys.exit(1)
    if only_check:
        sys.exit(1 if _print_stale(registry) else 0)
    for path, text in _rendered(registry).items():
        target = _ROOT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
        click.echo(path)


@main.command("collector")
@click.argument("profiles", nargs=-1, metavar="[PROFILE]...")
def print_overlay(profiles: tuple[str, ...]) -> None:
    """Print translation.yaml, by which a Collector translates for services in other languages.

    PROFILE is a profile of your own (YAML) or the name of one in the package; without any it is `jeeves`.
    """
    profiles = profiles or ("jeeves",)
    registry, findings = checks.examine_all(profiles)
    _print_findings(findings)
    if any(finding.level is Level.VIOLATION for finding in findings):
        sys.exit(1)
    click.echo(generators.collector.overlay(profiles, registry), nl=False)


@main.command("settings")
def show_settings() -> None:
    """Print every setting in force, where it comes from and what it means; secrets masked."""
    for name, value, origin, meaning in describe(os.environ):
        click.echo(f"{click.style(f'{name}={value}', bold=origin == 'environment')}  ({origin})\n    {meaning}")
    _, findings = Settings.from_env(os.environ)
    _print_findings(findings)
    if any(finding.level is Level.VIOLATION for finding in findings):
        sys.exit(1)


@main.command()
@click.option(
    "--requests", default=300, show_default=True, type=click.IntRange(min=1), help="How many requests to send."
)
@click.option("--seed", default=1, show_default=True, help="Seed of delays, errors and contents.")
@click.option("--keep", is_flag=True, help="Leave the service running until Ctrl-C.")
@click.option("--port", default=0, help="Port of the gateway; 0: any free one.")
@click.option("--metrics-port", default=0, help="Port of the /metrics server; 0: any free one.")
@click.option(
    "--sampled", default=1.0, show_default=True, type=click.FloatRange(0, 1), help="Share of traces that are sampled."
)
def demo(*, requests: int, seed: int, keep: bool, port: int, metrics_port: int, sampled: float) -> None:
    """Run a small agent service under opentelemetry-instrument, and show what came out."""
    try:
        from jeeves_otel.demo.driver import run  # noqa: PLC0415 - needs the extra
    except ModuleNotFoundError as error:
        click.echo(f"the demo needs its extra ({error.name} is missing): pip install 'jeeves-otel[demo]'", err=True)
        sys.exit(1)
    sys.exit(run(requests, seed, keep, port, metrics_port, sampled))


def _rendered(registry: Registry) -> dict[str, str]:
    return generators.render(registry, [(each.name, each.default, each.meaning) for each in VARIABLES])


def _print_stale(registry: Registry) -> bool:
    if not (_ROOT / "pyproject.toml").is_file():
        return False
    diffs = generators.stale(_rendered(registry), _ROOT)
    for path, diff in diffs.items():
        click.echo(f"{path} is stale; run `jeeves-otel render`\n{diff}", err=True)
    return bool(diffs)


def _print_findings(findings: list[Finding]) -> None:
    for finding in findings:
        prefix = "advice: " if finding.level is Level.ADVICE else ""
        click.echo(f"{prefix}{finding}", err=True)
    count = sum(finding.level is Level.VIOLATION for finding in findings)
    if count:
        click.echo(f"{count} violation{'s' if count > 1 else ''}", err=True)

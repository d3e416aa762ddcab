# SPDX-License-Identifier: Apache-2.0
"""Parse ``check``, ``render``, ``collector``, ``settings`` and ``demo``; print; set the exit code.

Exit codes: 0 all is well, 1 findings or a failed run, 2 wrong usage.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jeeves_otel import checks, dashboards, generators, plausibility, specification
from jeeves_otel.content import holds_rules, read_rules
from jeeves_otel.demo.incidents import KINDS as INCIDENTS
from jeeves_otel.documents import Finding, Level, did_you_mean
from jeeves_otel.objectives import Links
from jeeves_otel.promql import families_of
from jeeves_otel.registry import DATA, Registry, examine, profile_names
from jeeves_otel.settings import VARIABLES, Settings, describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jeeves_otel.objectives import Objectives

try:
    import click
except ImportError:  # the core install has no command line
    sys.exit("jeeves-otel needs its extra `cli` for the command line: pip install 'jeeves-otel[cli]'")

_ROOT = DATA.parent.parent
_RENDERED = re.compile(r"Generated from [^`]*`jeeves-otel render`")  # the head of generated files
_OWN = "by `jeeves-otel rules`"  # of those that are made from a user's file


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="jeeves-otel")
def main() -> None:
    """OpenTelemetry for services that run LLM agents: semantic conventions in, a stable Prometheus contract out.

    A service needs none of these commands: `opentelemetry-instrument python app.py` is enough.
    """


@main.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
def check(files: tuple[str, ...]) -> None:
    """Judge profiles, objectives and rules of redaction: every finding at once, each with place and way out.

    FILE is a profile of your own (YAML), the name of one in the package, objectives of your own, or a file for
    JEEVES_OTEL_REDACTION; without FILE the packaged ones are judged and the generated pages compared with the committed
    ones.
    """
    rules = [file for file in files if holds_rules(file)]
    own = [Path(file) for file in files if file not in rules and specification.holds_objectives(file)]
    profiles = [file for file in files if file not in rules and Path(file) not in own]
    registry, findings = checks.examine_all(profiles if files else profile_names())
    findings += [finding for file in rules for finding in read_rules(file)[1]]
    if own:
        findings += _examine_own(own)[2]
    if not files:
        findings += _specification(registry)[2]
    _print_findings(findings)
    failed = any(finding.level is Level.VIOLATION for finding in findings)
    if not files and not failed:
        failed = _print_stale(registry)
    if failed:
        sys.exit(1)
    promised = len([metric for metric in registry.metrics.values() if metric.profile != "internal"])
    judged = f"{promised} metrics" if profiles or not files else "objectives" if own else "rules of redaction"
    click.echo(f"{', '.join(files) or 'packaged profiles'}: {judged}, no violation")


@main.command()
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit 1 if a committed file is stale.")
@click.option("--prune", is_flag=True, help="Remove what was rendered once, and no longer is.")
def render(*, only_check: bool, prune: bool) -> None:
    """Write everything that is generated from the registry (in a checkout of the project)."""
    registry, findings = examine(profile_names())
    findings = [*findings, *_specification(registry)[2]]
    if findings:
        _print_findings(findings)
        sys.exit(1)
    if not (_ROOT / "pyproject.toml").is_file():
        click.echo("render works in a checkout of jeeves-otel; an installed package has nothing to write", err=True)
        sys.exit(1)
    if only_check:
        sys.exit(1 if _print_stale(registry) else 0)
    files = _rendered(registry)
    _write({_ROOT / path: text for path, text in files.items()}, _ROOT)
    for path in generators.left_over(files, _ROOT):
        if generators.was_rendered(_ROOT / path):
            _remove(_ROOT / path, path, prune=prune)
        else:
            click.echo(f"{path} is in a folder where everything is rendered; move it elsewhere", err=True)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="FILE...")
@click.option("--into", required=True, type=click.Path(file_okay=False), help="Folder to write into.")
@click.option("--runbooks", metavar="URL", help="Where your runbooks will be; alerts lead to URL/ALERT.md.")
@click.option("--dashboards", "pages", metavar="URL", help="Where your Grafana is; alerts lead to URL/jeeves-NAME.")
@click.option("--prune", is_flag=True, help="Remove what this command has written there before, and does not any more.")
def rules(names: tuple[str, ...], into: str, runbooks: str | None, pages: str | None, *, prune: bool) -> None:
    """Write rules with their tests, runbooks, dashboards and files for Alertmanager, from objectives of your own.

    FILE is YAML with `slos:` and `alerts:`; its `profile:` says whose metrics it speaks of. It may also be the name of
    packaged ones: jeeves, objectives, collector, prometheus, telemetry. Files that this command has written before are
    replaced; if any other is in the way, nothing is written. A folder is written by one call, which names everything that
    belongs there: what it does not write any more is left over, and named.
    """
    files = [_file_of_objectives(name) for name in names]
    links = Links(**{key: url.rstrip("/") for key, url in (("runbooks", runbooks), ("dashboards", pages)) if url})
    registry, promised, findings = _examine_own(files, links)
    _print_findings(findings)
    if any(finding.level is Level.VIOLATION for finding in findings):
        sys.exit(1)
    source = f"Generated from {', '.join(names)} {_OWN}"
    targets = {
        Path(into) / path: _signed(text, source if not path.endswith(".json") else json.dumps(source)[1:-1])
        for path, text in _rendered_for_own(files, registry, promised, links).items()
    }
    _write(targets, mark=_OWN)
    rendered = {path.relative_to(into).as_posix(): text for path, text in targets.items()}
    for left in generators.left_over(rendered, Path(into)):
        if generators.was_rendered(Path(into) / left, _OWN):
            _remove(Path(into) / left, str(Path(into) / left), prune=prune)


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
@click.option(
    "--incident", type=click.Choice(tuple(INCIDENTS)), help="What is wrong while the second half of them is sent."
)
def demo(
    *, requests: int, seed: int, keep: bool, port: int, metrics_port: int, sampled: float, incident: str | None
) -> None:
    """Run a small agent service under opentelemetry-instrument, and show what came out."""
    try:
        from jeeves_otel.demo.driver import run  # noqa: PLC0415 - needs the extra
    except ModuleNotFoundError as error:
        click.echo(f"the demo needs its extra ({error.name} is missing): pip install 'jeeves-otel[demo]'", err=True)
        sys.exit(1)
    sys.exit(run(requests, seed, keep, port, metrics_port, sampled, incident))


def _rendered(registry: Registry) -> dict[str, str]:
    promised, pages, _ = _specification(registry)
    return generators.render(registry, promised, pages, [(each.name, each.default, each.meaning) for each in VARIABLES])


def _examine_own(files: Sequence[Path], links: Links | None = None) -> tuple[Registry, Objectives, list[Finding]]:
    """Return the profiles that *files* speak of, what is promised on them, and every finding about both."""
    registry, findings = checks.examine_all(specification.profiles_of(files))
    promised, more = plausibility.examine_all(registry, files, links)
    return registry, promised, [*findings, *more]


def _file_of_objectives(name: str) -> Path:
    """Return the file *name*, or the packaged one that is called so."""
    packaged = specification.packaged()
    if not Path(name).is_file() and name not in packaged:
        hint = did_you_mean(name, packaged) if Path(name).suffix == "" else "check the path"
        raise click.BadParameter(f"there is no file `{name}`; {hint}", param_hint="FILE")
    return Path(name) if Path(name).is_file() else packaged[name]


def _rendered_for_own(files: Sequence[Path], registry: Registry, promised: Objectives, links: Links) -> dict[str, str]:
    """Return everything that is made of the objectives in *files*, ``{path: text}``."""
    packaged = [file for file in files if specification.is_packaged(file)]
    own: dict[str, list[Path]] = {}  # files of one name share a dashboard, as they share a rule file
    for file in files:
        if file not in packaged:
            own.setdefault(specification.own_page(file.name), []).append(file)
    pages = [
        dashboards.of_own(page, of[0].stem, promised.of_files(map(specification.place_of, of)))
        for page, of in own.items()
    ]
    everything, _ = specification.examine(registry, specification.packaged().values(), links)
    if packaged:
        named = promised.of_files(map(specification.place_of, packaged)).dashboards
        pages += [page for page in dashboards.examine(families_of(registry), everything)[0] if page.name in named]
    return generators.render_own(registry, promised, pages, everything)


def _signed(text: str, source: str) -> str:
    """Return *text* with *source* in its head instead of the packaged one."""
    return _RENDERED.sub(lambda _: source, text, count=1).replace(" and fail CI", "", 1)


def _write(files: Mapping[Path, str], root: Path | None = None, mark: str = "") -> None:
    """Write *files* and name them, below *root* if there is one; if one cannot be written, say so, and exit.

    Nothing is written if that can be known before: a file stands where a folder has to be, or the other way round, a
    folder cannot be made, or there is a file without *mark*.
    """
    try:
        obstacles = list(dict.fromkeys(found for path in files if (found := _obstacle(path, mark))))
        for obstacle in obstacles:
            click.echo(f"{obstacle}; move it away, or write into another folder", err=True)
        if obstacles:
            sys.exit(1)
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8", newline="\n")
            click.echo(path.relative_to(root) if root else path)
    except OSError as error:
        where = error.filename or "what is made of them"
        click.echo(f"{where} cannot be written ({error.strerror}); write into another folder", err=True)
        sys.exit(1)


def _obstacle(path: Path, mark: str) -> str:
    """Return what is in the way of a file at *path*, in words; empty if nothing is known to be."""
    above = next((parent for parent in path.parents if parent.exists()), path.parent)
    if above.exists() and not above.is_dir():
        return f"{above} is a file, and has to be a folder"
    if path.is_dir():
        return f"{path} is a folder, and has to be a file"
    if mark and path.is_file() and not generators.was_rendered(path, mark):
        return f"{path} is not from this command"
    return ""


def _remove(target: Path, shown: str, *, prune: bool) -> None:
    """Remove a file that was rendered once, if that is asked for. It is named, either way."""
    if prune:
        try:
            target.unlink()
        except OSError as error:
            click.echo(f"{shown} cannot be removed ({error.strerror})", err=True)
            sys.exit(1)
        click.echo(f"{shown} (removed: nothing renders it any more)")
    else:
        click.echo(f"{shown} is rendered no more; look at it, and remove it with --prune", err=True)


def _specification(registry: Registry) -> tuple[Objectives, tuple[dashboards.Dashboard, ...], list[Finding]]:
    """Return what is promised on *registry*, the dashboards, and every finding about both."""
    promised, findings = plausibility.examine_all(registry)
    pages, more = dashboards.examine(families_of(registry), promised)
    return promised, pages, [*findings, *more]


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

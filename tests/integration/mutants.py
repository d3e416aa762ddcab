# SPDX-License-Identifier: Apache-2.0
"""Put one slip after another into the shipped rules, and see whether the generated tests notice: ``make mutants``.

A slip that no test notices is a survivor, and has to stand in `EQUIVALENT` with a reason, or a test is missing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from jeeves_otel.demo.parts import cached
from jeeves_otel.generators import rule_tests, rules
from jeeves_otel.promql import families_of, metrics_in
from jeeves_otel.registry import load
from jeeves_otel.specification import examine
from tests.integration.slips import Rule, slips

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# All objectives are written by the same code. One about a share, with events that count neither way, has everything that
# there is, but for what is asked of a histogram; of another one, that alone is mutated.
_WHOLE, _HISTOGRAM = "pipeline_success_rate", "pipeline_latency_p99"

_NOUGHT = (
    "0 times whatever happened is 0: another window, or other events, decide when there is such a 0, and where there are no"
    " events to divide it by, it is of no consequence"
)
_SHARES = ("HighErrorRate", "LLMProviderDown", "LLMRateLimited")


class Equivalent(NamedTuple):
    """Slips, with wildcards, of one or several rules that no test can notice, and why."""

    rules: tuple[str, ...]
    slips: tuple[str, ...]
    reason: str


EQUIVALENT = (
    Equivalent(
        ("*BudgetBurn *", "slo:error_ratio:*", "slo:budget_remaining:*"),
        ('slo:* without {slo="*"}*',),
        "the other side of the division, or of `and`, has that label, and vectors are matched by it",
    ),
    Equivalent(
        ("slo:bad:rate2m *", "slo:bad:rate30m *", "slo:bad:rate1h *", "slo:bad:rate2h *", "slo:bad:rate6h *"),
        ("*[[]*] is [[]*], number 2",),
        _NOUGHT,
    ),
    Equivalent(("slo:bad:rate5m *",), ("*[[]5m] is [[]150s], number 2",), _NOUGHT),
    Equivalent(("slo:bad:*",), ('jeeves_pipeline_executions_total without {status!="terminated"}',), _NOUGHT),
    Equivalent(
        _SHARES,
        (
            "`or` without its right side",
            "0 is 1",
            "*[[]5m] is [[]10m], number 2",
            "*[[]5m] is [[]150s], number 2",
        ),
        "the right side of `or` is there for panels: it says 0 where nothing bad has ever happened, 0 is above no threshold,"
        " and where it says more, the floor has nothing to count",
    ),
    Equivalent(
        ("LLMProviderDown", "LLMRateLimited"),
        ("sum by (provider) without provider, number 2",),
        "the right side of `or`, as above",
    ),
    Equivalent(
        ("HighErrorRate",),
        ('jeeves_pipeline_executions_total without {status!="terminated"}',),
        "the right side of `or`, as above",
    ),
    Equivalent(
        ("CollectorDown", "PrometheusNotConnectedToAlertmanager"),
        ("1 is 0.333333",),
        "what is compared is a whole number",
    ),
    Equivalent(
        ("CollectorAbsent",),
        ('up without {job="otelcol"}, number 2',),
        "`unless` compares the label job, of which the left side has this value only",
    ),
    Equivalent(
        ("CollectorQueueNearlyFull",),
        ("0 is 1",),
        "no queue has a capacity of one byte, or of one request",
    ),
    Equivalent(
        ("TrafficStopped",),
        ("slo:total:rate1h offset 5m is 150s",),
        "the five minutes in which nothing happens are no part of either hour",
    ),
    Equivalent(
        ("Watchdog",),
        ("1 is 3", "1 is 0.333333"),
        "nothing compares or shows the value",
    ),
)

_ALERT = re.compile(r'ALERTS\{alertname="(\w+)"')


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule with one slip; *index* counts the rules of its file."""

    file: str
    index: int
    name: str
    slip: str
    rule: Rule

    def __str__(self) -> str:
        return f"{self.file}: {self.name}: {self.slip}"


@dataclass(frozen=True)
class Shipped:
    """The rules and suites as they are rendered: ``{name: content}``."""

    rules: dict[str, Any]
    suites: dict[str, Any]

    def of(self, file: str) -> list[Rule]:
        """Return the rules of one file, in its order."""
        return [rule for group in self.rules[file]["groups"] for rule in group["rules"]]

    @cached_property
    def asked(self) -> dict[str, frozenset[str]]:
        """Which series each record asks, ``{record: names}``, over all objectives."""
        found: dict[str, frozenset[str]] = {}
        for rule in (rule for file in self.rules for rule in self.of(file) if "record" in rule):
            found[rule["record"]] = found.get(rule["record"], frozenset()) | set(metrics_in(rule["expr"]))
        return found


@cache
def shipped() -> Shipped:
    """Return what is rendered from the packaged objectives."""
    registry = load()
    objectives, _ = examine(registry)

    made = {Path(path).stem: yaml.safe_load(text) for path, text in rules.files(objectives).items()}
    return Shipped(made, rule_tests.suites(objectives, families_of(registry)))


def mutants() -> Iterator[Mutant]:
    """Yield every mutant of every shipped rule, in the order of files and rules."""
    for file in shipped().rules:
        for index, rule in enumerate(shipped().of(file)):
            slo = rule["labels"].get("slo")
            if slo in {None, _WHOLE} or (slo == _HISTOGRAM and "_bucket" in rule["expr"]):
                words = (rule.get("record") or rule.get("alert"), rule["labels"].get("tier"), slo)
                name = " ".join(filter(None, words))
                yield from (Mutant(file, index, name, slip, wrong) for slip, wrong in slips(rule))


def entry(mutant: Mutant) -> tuple[str, str, str] | None:
    """Return the ``(rule, slip, reason)`` of `EQUIVALENT` that *mutant* falls under."""
    return next(
        (each for each in entries() if fnmatchcase(mutant.name, each[0]) and fnmatchcase(mutant.slip, each[1])), None
    )


def entries() -> list[tuple[str, str, str]]:
    """Return every ``(rule, slip, reason)`` of `EQUIVALENT`."""
    return [(rule, slip, each.reason) for each in EQUIVALENT for rule in each.rules for slip in each.slips]


# ---- playing -----------------------------------------------------------------------------------------------------------


def survives(mutant: Mutant, promtool: str) -> bool:
    """Return whether all tests pass that ask what *mutant* says, suite by suite until one fails."""
    with tempfile.TemporaryDirectory() as folder:
        for name, suite in sorted(_parts(mutant), key=lambda part: _cost(part[1])):
            if not _passes(Path(folder) / name, suite, promtool):
                return False
    return True


def _parts(mutant: Mutant) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(name, suite)`` of every suite that asks *mutant*, with no other tests, and with the rules as ``rules``."""
    for name, suite in shipped().suites.items():
        files = [Path(path).stem for path in suite["rule_files"]]
        # What alerts that ask records say of several objectives would need all of them; objectives have their own suites.
        if mutant.file != files[-1]:
            continue
        tests = [part for test in suite["tests"] if (part := _part(test, mutant))]
        if tests:
            wanted = _wanted(tests)
            groups = [group for file in files for group in _groups(file, mutant, wanted)]
            asked = {name for group in groups for rule in group["rules"] for name in metrics_in(rule["expr"])} | wanted
            for test in tests:
                series = test["input_series"]
                test["input_series"] = [each for each in series if each["series"].partition("{")[0] in asked]
            yield name, {**suite, "rule_files": ["rules.yaml"], "tests": tests, "rules": {"groups": groups}}


def _part(test: dict[str, Any], mutant: Mutant) -> dict[str, Any] | None:
    """Return *test* with no other assertions than those that ask *mutant*, or what is made of it; None without any."""
    own = mutant.rule.get("record")
    reached = {own, *_made_of(own)} if own else set()
    labels = {key: mutant.rule["labels"].get(key) for key in ("slo", "tier")}
    # A wrong label is looked for under the right one.
    labels |= {key: value for key, value in _right(mutant)["labels"].items() if key in labels}

    def _asks(assertion: dict[str, Any]) -> bool:
        expr = assertion.get("expr", "")
        if any(f'{key}="' in expr and f'{key}="{value}"' not in expr for key, value in labels.items() if value):
            return False
        told_of = {each["exp_labels"].get("slo") for each in assertion.get("exp_alerts", ())}
        if labels["slo"] and told_of and labels["slo"] not in told_of:
            return False
        alert = _ALERT.search(expr)
        name = alert[1] if alert else assertion.get("alertname")
        if name is not None:
            return name == mutant.rule.get("alert") or bool(_asked_by(name) & reached)
        return bool({*metrics_in(expr)} & reached)

    kinds = ("promql_expr_test", "alert_rule_test")
    kept = {kind: [each for each in test.get(kind, ()) if _asks(each)] for kind in kinds}
    return {**test, **kept} if any(kept.values()) else None


def _right(mutant: Mutant) -> Rule:
    return shipped().of(mutant.file)[mutant.index]


@cache
def _made_of(record: str) -> frozenset[str]:
    """Return the records that are made of *record*."""
    direct = {name for name, asked in shipped().asked.items() if record in asked}
    return frozenset(direct).union(*(_made_of(name) for name in direct))


@cache
def _asked_by(alert: str) -> frozenset[str]:
    return frozenset(
        name
        for file in shipped().rules
        for rule in shipped().of(file)
        if rule.get("alert") == alert
        for name in metrics_in(rule["expr"])
    )


def _wanted(tests: Iterable[dict[str, Any]]) -> set[str]:
    """Return the names of all alerts and records that *tests* need."""
    found: set[str] = set()
    for test in tests:
        found |= {each["alertname"] for each in test["alert_rule_test"]}
        for each in test["promql_expr_test"]:
            found |= set(_ALERT.findall(each["expr"])) or set(metrics_in(each["expr"]))
    pending = {name for alert in found for name in _asked_by(alert)} | found
    while pending:
        found |= pending
        pending = {name for record in pending for name in shipped().asked.get(record, ())} - found
    return found


def _groups(file: str, mutant: Mutant, wanted: set[str]) -> list[dict[str, Any]]:
    """Return the groups of *file* with the *wanted* rules, *mutant* among them; those of one objective if it is about one."""
    slo = _right(mutant)["labels"].get("slo")
    alone = slo is not None and "{slo=" not in mutant.slip  # without that label, it meets the records of the others
    groups, index = [], -1
    for group in shipped().rules[file]["groups"]:
        kept = []
        for rule in group["rules"]:
            index += 1
            if (rule.get("record") or rule["alert"]) not in wanted or (alone and rule["labels"].get("slo") != slo):
                continue
            kept.append(mutant.rule if (file, index) == (mutant.file, mutant.index) else rule)
        if kept:
            groups.append({**group, "rules": kept})
    return groups


def _cost(suite: dict[str, Any]) -> float:
    """Return about how many rules are evaluated in *suite*."""
    every = _seconds(suite["evaluation_interval"])
    rules_ = sum(len(group["rules"]) for group in suite["rules"]["groups"])
    last = [
        max(_seconds(each["eval_time"]) for kind in ("promql_expr_test", "alert_rule_test") for each in test[kind])
        for test in suite["tests"]
    ]
    return sum(last) / every * rules_


def _seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def _passes(folder: Path, suite: dict[str, Any], promtool: str) -> bool:
    folder.mkdir()
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    (folder / "rules.yaml").write_text(yaml.dump(suite["rules"], Dumper=dumper), encoding="utf-8")
    tests = {key: value for key, value in suite.items() if key != "rules"}
    (folder / "suite.yaml").write_text(yaml.dump(tests, Dumper=dumper), encoding="utf-8")
    command = [promtool, "test", "rules", "suite.yaml"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    if "parse error" in result.stdout + result.stderr:
        raise ValueError(f"no slip, but no rule either: {result.stdout}{result.stderr}")
    return result.returncode == 0


# ---- reporting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of *made* mutants."""

    made: Sequence[Mutant]
    survivors: Sequence[Mutant]

    def findings(self, *, complete: bool) -> list[str]:
        """Return what is wrong: survivors without a reason, and, of all mutants, reasons that do not hold or are of none."""
        found = [f"{each}: no test notices" for each in self.survivors if entry(each) is None]
        alive = set(map(str, self.survivors))
        wrong = [each for each in self.made if entry(each) and str(each) not in alive]
        found += [f"{each}: a test notices, so it is not equivalent" for each in wrong]
        return found + (unused(self.made) if complete else [])


def unused(made: Iterable[Mutant]) -> list[str]:
    """Return which entries of `EQUIVALENT` none of *made* falls under."""
    used = {entry(each) for each in made}
    return [
        f"{rule}: {slip}: there is no such mutant"
        for rule, slip, reason in entries()
        if (rule, slip, reason) not in used
    ]


def play(chosen: Sequence[Mutant], promtool: str, *, say: bool = False) -> Outcome:
    """Return which of *chosen* survive, two at a time."""
    survivors = []
    with ThreadPoolExecutor(2) as pool:
        for number, (mutant, alive) in enumerate(
            zip(chosen, pool.map(lambda each: survives(each, promtool), chosen), strict=True), 1
        ):
            if alive:
                survivors.append(mutant)
            if say and (alive or number % 50 == 0):
                print(
                    f"{number}/{len(chosen)} {'survives: ' + str(mutant) if alive else ''}", file=sys.stderr, flush=True
                )
    return Outcome(chosen, survivors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the mutants and print survivors by rule."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only mutants whose file, rule or slip has this in it"
    )
    parser.add_argument("--one-of", type=int, default=1, metavar="N", help="every Nth mutant alone")
    parser.add_argument("--list", action="store_true", help="print the mutants and play none")
    options = parser.parse_args(arguments)
    every = [each for each in mutants() if options.only in str(each)][:: options.one_of]
    if options.list:
        print(*every, sep="\n")
        return 0
    prometheus = cached("prometheus")
    if prometheus is None:
        print("no promtool 3: make prometheus", file=sys.stderr)
        return 2
    began = time.monotonic()
    outcome = play(every, str(Path(prometheus).parent / "promtool"), say=True)
    findings = outcome.findings(complete=not options.only and options.one_of == 1)
    explained = list(filter(entry, outcome.survivors))
    print(*findings, sep="\n")
    print(
        f"{len(every)} mutants of {len({(each.file, each.index) for each in every})} rules in {time.monotonic() - began:.0f} s:"
        f" {len(every) - len(outcome.survivors)} killed, {len(explained)} equivalent,"
        f" {len(findings)} findings"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

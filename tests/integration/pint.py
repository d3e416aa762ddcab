# SPDX-License-Identifier: Apache-2.0
"""Let pint judge rules, by themselves or against a live Prometheus."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXCEPTIONS = ROOT / "tests/rules/pint.hcl"


def findings(
    program: str, folder: Path, rules: Path, url: str = "", exceptions: str | None = None
) -> list[tuple[str, str, str, str]]:
    """Return what pint reports of *rules*, ``(file, check, rule or line, problem)``, from warnings on.

    Args:
        program: pint.
        folder: Where its configuration may be written.
        rules: A folder or a file.
        url: A Prometheus that is asked, if any.
        exceptions: What is not to be reported, instead of ``tests/rules/pint.hcl``.
    """
    text = EXCEPTIONS.read_text(encoding="utf-8") if exceptions is None else exceptions
    if url:
        # Required: a server that does not answer is a finding, and not nothing.
        text += f'\nprometheus "live" {{\n  uri       = "{url}"\n  required  = true\n  rateLimit = 1000\n}}\n'
    configuration, report = folder / "pint.hcl", folder / "pint.json"
    configuration.write_text(text, encoding="utf-8")
    command = [program, "--no-color", "--config", configuration, *([] if url else ["--offline"])]
    command += ["--show-duplicates", "lint", "--min-severity=warning", "--fail-on=warning", "--json", report, rules]
    ended = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=120, check=False)
    print(ended.stdout + ended.stderr)  # what a failing test shows
    found = [
        (Path(each["path"]).name, each["reporter"], each["severity"], each["problem"])
        for each in json.loads(report.read_text(encoding="utf-8")) or ()
        if each["severity"] != "Information"
    ]
    # Its exit code and its report must say the same, or it has not judged at all.
    assert bool(ended.returncode) == bool(found), ended.stderr
    return found

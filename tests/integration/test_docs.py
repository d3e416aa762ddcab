# SPDX-License-Identifier: Apache-2.0
"""The documentation: what it shows works as it stands, and what it links to exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jeeves_otel.checks import examine_all
from tests.helpers import counts_by
from tests.integration.launching import free_port, get, launched, llm_server, page_with_requests

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("collector/*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced code blocks of *language* in a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.integration
def test_ten_lines_of_the_readme_give_the_metrics_that_it_promises(tmp_path: Path) -> None:
    """A stranger who copies the example gets HTTP, pipeline, agent, both LLM layers and tokens."""
    port, metrics_port = free_port(), free_port()
    script = tmp_path / "app.py"
    script.write_text(blocks("README.md", "python")[0].replace("port=8000", f"port={port}"))
    with (
        llm_server() as base_url,
        launched(str(script), METRICS_PORT=str(metrics_port), OPENAI_BASE_URL=base_url, OPENAI_API_KEY="none") as app,
    ):
        app.wait_for_page(f"http://127.0.0.1:{port}/openapi.json")
        answer = get(f"http://127.0.0.1:{port}/answer?question=why")
        # The page that said that the service is there, and the question.
        samples = page_with_requests(2, f"http://127.0.0.1:{metrics_port}/metrics")

    assert answer == '"hi"'
    assert counts_by(samples, "jeeves_http_requests_total", "path")["/answer"] == 1
    assert counts_by(samples, "jeeves_pipeline_executions_total", "pipeline") == {"support": 1}
    assert counts_by(samples, "jeeves_agent_executions_total", "agent") == {"writer": 1}
    assert counts_by(samples, "jeeves_llm_calls_total", "status") == {"success": 1}
    assert counts_by(samples, "jeeves_llm_provider_calls_total", "status") == {"success": 1}
    assert counts_by(samples, "jeeves_llm_tokens_total", "type") == {"prompt": 11, "completion": 7}


def test_the_line_of_the_sqlalchemy_howto_names_a_pool(tmp_path: Path) -> None:
    """The example runs as it stands, and its engine is measured under the name given."""
    script = blocks("docs/howto/sqlalchemy.md", "python")[0] + (
        "engine.connect().close()\n"
        "from jeeves_otel.integrations import sqlalchemy as integration\n"
        "print(*[watched.pool_name for watched in integration._engines.values()])\n"
        "engine.dispose()\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, check=True, capture_output=True)

    assert b"orders\n" == done.stdout


def test_the_line_of_the_http_howto_measures_a_bare_application() -> None:
    """A request counts under the route that the application names."""
    script = blocks("docs/howto/http.md", "python")[0] + (
        "import asyncio\n"
        "from tests.helpers import Pipeline\n"
        "from tests.integration.serving import call\n"
        "from jeeves_otel import recording\n"
        "pipeline = Pipeline()\n"
        "recording.bind(meter_provider=pipeline.meter_provider, tracer_provider=pipeline.tracer_provider)\n"
        "asyncio.run(call(app, '/users/canary'))\n"
        "assert pipeline.counts_by('jeeves_http_requests_total', 'path') == {'/users/{id}': 1}\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_profile_of_the_howto_has_no_finding(tmp_path: Path) -> None:
    """The example profile passes the check that the page recommends."""
    profile = tmp_path / "shop.yaml"
    profile.write_text(blocks("docs/howto/own-profile.md", "yaml")[0])

    assert examine_all(["jeeves", str(profile)])[1] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """No page sends its reader to a file or heading that is not there."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        file = (page.parent / path) if path else page
        if target.startswith("http"):
            continue
        if not file.exists():
            broken.append(target)
        elif heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
            broken += [] if heading in slugs else [target]

    assert broken == []

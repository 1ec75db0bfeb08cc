"""`corpusmill demo`, the whole way, in a process of its own and a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def corpusmill(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "NO_COLOR": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "jobs.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=540)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_shows_results_rejections_and_what_to_do_next(tmp_path: Path) -> None:
    first = corpusmill(tmp_path, "demo")
    assert first.returncode == 0, first.stderr
    shown = " ".join(first.stdout.split())
    assert "corpusmill-demo/job.yaml" in shown
    assert "Made 66 rows from 20 documents" in shown
    assert "✓" in shown and "are exactly right" in shown
    assert "empty_input" in shown
    assert "image_unreadable" in shown
    assert "Table corpusmill-demo/table" in shown
    assert "Traceback" not in first.stderr

    again = corpusmill(tmp_path, "demo")
    assert again.returncode == 0, again.stderr
    assert "Nothing to do: all 72 rows for 20 documents are in the table already." in " ".join(again.stdout.split())

    asked = corpusmill(
        tmp_path, "query", "corpusmill-demo/table", "SELECT count(*) AS n, count(DISTINCT key) AS k FROM results",
        "--format", "csv",
    )  # fmt: skip
    assert asked.stdout == "n,k\n66,66\n"

    # A task more: only that task runs.
    job = tmp_path / "corpusmill-demo/job.yaml"
    job.write_text(job.read_text().replace("tasks:\n", "tasks:\n  - {name: kind, kind: prompt, prompt: 'Kind?'}\n"))
    planned = corpusmill(tmp_path, "plan", str(job), "--json")
    todo = json.loads(planned.stdout)["todo"]
    assert todo.pop("kind") >= 18
    assert set(todo.values()) == {0}

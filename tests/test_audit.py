"""The audit of dependencies: what its report means, that it ends, and that every lock pins exactly."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
assert _spec is not None and _spec.loader is not None
audit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(audit)

GOOD = {"name": "six", "version": "1.17.0", "vulns": []}
BAD = {"name": "Old_Thing", "version": "1.0", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["1.1", "2.0"]}]}
SKIPPED = {"name": "ray", "skip_reason": "not found on PyPI"}


@pytest.mark.parametrize(
    ("entries", "code", "said"),
    [
        ([GOOD, {**BAD, "vulns": []}], 0, "audit: no known vulnerability in 2 packages"),
        ([GOOD, BAD], 1, "audit: Old_Thing 1.0: CVE-2026-1, fixed in 1.1, 2.0"),
        ([BAD], 1, "audit: NOT DONE for 1 of 2 packages"),
        ([GOOD], 75, "audit: NOT DONE for 1 of 2 packages (the service has no answer): old-thing"),
        ([GOOD, {**SKIPPED, "name": "old-thing"}], 75, "audit: NOT DONE for 1 of 2"),
        ([SKIPPED], 75, "audit: NOT DONE (no vulnerability service reachable)"),
        ([], 75, "audit: NOT DONE (no vulnerability service reachable)"),
    ],
)
def test_what_nobody_answered_for_is_not_passed(entries: list[dict[str, Any]], code: int, said: str) -> None:
    lines, found = audit.verdict({"dependencies": entries}, {"six", "old-thing"})
    assert found == code
    assert any(line.startswith(said) for line in lines), lines


def test_without_a_package_index_it_says_so_and_ends(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    for name in ("audit.py", "audit.lock"):
        (tmp_path / ".ci" / name).write_bytes((ROOT / ".ci" / name).read_bytes())
    (tmp_path / "requirements.lock").write_text("six==1.17.0\n")
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    ended = subprocess.run(
        [sys.executable, str(tmp_path / ".ci" / "audit.py")],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (ended.returncode, ended.stderr) == (75, "")
    assert re.fullmatch(r"audit: NOT DONE \([^\n]+\)\n", ended.stdout), ended.stdout


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-vllm.lock", ".ci/audit.lock"])
def test_a_lock_pins_exactly_and_names_no_index(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    wrong = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]
    assert lines and not wrong, wrong
    packages = sorted(audit.names(lines))
    assert len(packages) == len(lines), "a package stands there twice"

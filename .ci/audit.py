"""Known vulnerabilities of what requirements*.lock name: exit 0 for none, 1 for some, 75 when nobody could be asked.

pip-audit lives in build/audit, an environment of its own with the versions of .ci/audit.lock: its packages
are nothing that a user of the project should have to install. Needs a network, and at most a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCKS, TOOL_LOCK = sorted(ROOT.glob("requirements*.lock")), ROOT / ".ci" / "audit.lock"
HOME = ROOT / "build" / "audit"
SECONDS = 60.0
NOT_DONE = 75


def main() -> int:
    """Prints the verdict's lines; its exit code."""
    until = time.monotonic() + SECONDS
    try:
        _install(until)
        report = HOME / "report.json"
        report.unlink(missing_ok=True)
        asked = [str(HOME / "bin" / "pip-audit"), *(f"--requirement={lock}" for lock in LOCKS)]
        asked += ["--no-deps", "--disable-pip"]
        asked += ["--format", "json", "--output", str(report), "--progress-spinner", "off", "--timeout", "10"]
        # 1 stands for vulnerabilities and for trouble alike; the report tells them apart.
        _run(asked, until)
        document = json.loads(report.read_text()) if report.exists() else {}
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"audit: NOT DONE ({_reason(error)})")
        return NOT_DONE
    lines, code = verdict(document, {name for lock in LOCKS for name in names(lock.read_text().splitlines())})
    print("\n".join(lines))
    return code


def names(lock: Iterable[str]) -> set[str]:
    """The packages of a lock's lines, as pip-audit spells them."""
    return {_plain(line.split("==")[0]) for line in lock if "==" in line}


def verdict(document: Any, wanted: set[str]) -> tuple[list[str], int]:
    """What a report in pip-audit's JSON means for the `wanted` packages: lines to print, and the exit code.

    A package that the service does not know, or the report does not hold, is not a good one: the audit is not done.
    """
    listed = document.get("dependencies", []) if isinstance(document, dict) else []
    asked = {_plain(entry["name"]) for entry in listed if "skip_reason" not in entry}
    found = [(entry, vulnerability) for entry in listed for vulnerability in entry.get("vulns", [])]
    lines = [
        f"audit: {entry['name']} {entry['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability.get('fix_versions') or ['no version yet'])}"
        for entry, vulnerability in found
    ]
    missing = wanted - asked
    if missing and not asked:
        lines.append("audit: NOT DONE (no vulnerability service reachable)")
    elif missing:
        some = ", ".join(sorted(missing)[:5])
        lines.append(
            f"audit: NOT DONE for {len(missing)} of {len(wanted)} packages (the service has no answer): {some}"
        )
    if found:
        return lines, 1
    return (lines, NOT_DONE) if missing else ([f"audit: no known vulnerability in {len(wanted)} packages"], 0)


def _install(until: float) -> None:
    stamp = HOME / "installed"
    if stamp.exists() and stamp.read_text() == TOOL_LOCK.read_text():
        return
    _run([sys.executable, "-m", "venv", "--clear", str(HOME)], until, check=True)
    pip = [str(HOME / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--retries", "1", "--timeout", "10", "--requirement", str(TOOL_LOCK)], until, check=True)
    stamp.write_text(TOOL_LOCK.read_text())


def _run(command: list[str], until: float, check: bool = False) -> None:
    left = max(1.0, until - time.monotonic())
    # No virtual environment of the caller's may lead pip astray.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(command, check=check, timeout=left, capture_output=True, stdin=subprocess.DEVNULL, env=environment)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer within {SECONDS:g} s"
    if isinstance(error, subprocess.CalledProcessError):
        return "pip-audit cannot be installed here: no network, or no package index"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    sys.exit(main())

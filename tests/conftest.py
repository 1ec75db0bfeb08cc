"""What the suite says at its end: how many storage faults it injected; a whole run that injected too few has failed.

Tests marked `vllm` are left out where vLLM is not installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.fault_proxy import INJECTED

LEAST_FAULTS = 500
FAULT_TESTS = ("test_faults.py", "test_publish_faults.py", "test_lease_faults.py", "test_read_faults.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(
                    pytest.mark.skip(reason="needs vLLM, which has an environment of its own: make test-vllm")
                )


def _too_few(session: pytest.Session) -> bool:
    """Whether all of the fault tests were asked for, and passed, and yet did not break enough."""
    chosen = session.config.option.keyword or any("::" in argument for argument in session.config.args)
    there = {Path(item.path).name for item in session.items}
    whole = not chosen and set(FAULT_TESTS) <= there and not session.config.option.collectonly
    return whole and session.testsfailed == 0 and INJECTED.total() < LEAST_FAULTS


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not session.shouldstop and _too_few(session):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not INJECTED:
        return
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(INJECTED.items()))
    terminalreporter.write_line(f"storage faults injected: {INJECTED.total()} ({kinds})")
    if _too_few(terminalreporter._session):
        terminalreporter.write_line(f"too few: a whole run injects at least {LEAST_FAULTS}", red=True)

"""What a verification looked at and what it found: plain values, no rendering."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, NOT_CHECKED = "passed", "failed", "not checked"
EXAMPLES = 3


@dataclass(slots=True)
class Found:
    """One kind of thing that is wrong: how often, and the first few by name."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Check:
    """One thing that must hold. `looked`: what was looked at, in numbers; `undone`: what could not be, and why."""

    name: str
    claim: str
    looked: dict[str, int] = field(default_factory=dict)
    problems: dict[str, Found] = field(default_factory=dict)
    notes: dict[str, Found] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Failed where anything is wrong, else not checked where a part could not be looked at, else passed."""
        return FAILED if self.problems else NOT_CHECKED if self.undone else PASSED

    def saw(self, what: str, count: int = 1) -> None:
        """Counts what was looked at."""
        self.looked[what] = self.looked.get(what, 0) + count

    def wrong(self, what: str, example: str | Iterable[str] = (), count: int | None = None) -> None:
        """Notes something that does not hold; the check fails."""
        _add(self.problems, what, example, count)

    def note(self, what: str, example: str | Iterable[str] = (), count: int | None = None) -> None:
        """Notes something worth knowing that is as it should be."""
        _add(self.notes, what, example, count)

    def left_out(self, why: str) -> None:
        """Notes why a part could not be checked, once."""
        if why not in self.undone:
            self.undone.append(why)


@dataclass(slots=True, kw_only=True)
class Verification:
    """All checks of one table. `holder`: the run that was writing meanwhile; figures may move then."""

    table: str
    holder: str | None
    checks: list[Check]

    @property
    def state(self) -> str:
        """Of all checks together, the worst."""
        states = {check.state for check in self.checks}
        return next(state for state in (FAILED, NOT_CHECKED, PASSED) if state in states or state == PASSED)

    def as_json(self) -> dict[str, Any]:
        """One plain object."""
        return {
            "table": self.table,
            "state": self.state,
            "running": self.holder,
            "checks": [
                {
                    "name": check.name,
                    "claim": check.claim,
                    "state": check.state,
                    "looked_at": check.looked,
                    "problems": _plain(check.problems),
                    "notes": _plain(check.notes),
                    "not_checked": check.undone,
                }
                for check in self.checks
            ],
        }


def _add(into: dict[str, Found], what: str, example: str | Iterable[str], count: int | None) -> None:
    examples = [example] if isinstance(example, str) else list(example)
    found = into.setdefault(what, Found())
    found.count += max(1, len(examples)) if count is None else count
    found.examples += examples[: EXAMPLES - len(found.examples)]


def _plain(found: dict[str, Found]) -> list[dict[str, Any]]:
    return [{"what": what, "count": each.count, "examples": each.examples} for what, each in found.items()]

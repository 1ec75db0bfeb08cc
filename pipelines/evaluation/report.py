"""What an evaluation found: plain values, and the JSON document they become."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from workers.score import Comparison, Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """References of a set of documents, and what stands against them: `missing` have no row, `rejected` and `failed`
    one without a text, `empty` a text without a word; all four count as empty outputs (`missing: empty`) or, but for
    `empty`, are left out (`missing: skip`)."""

    references: int
    outputs: int
    missing: int
    rejected: int
    failed: int
    empty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One set of documents: all of a task (`by` is None), or those with one value of a column."""

    by: str | None
    value: str | None
    counts: Counts
    scored: int
    scores: dict[str, Interval]
    # against the other table, when there is one
    compared: dict[str, Comparison] = field(default_factory=dict)
    other_scores: dict[str, Interval] = field(default_factory=dict)
    other_counts: Counts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """A task's scores: overall, then slice by slice. `without_reference`: documents in the references file that have
    none for this task; `without_document`: outputs whose document is not in the references file."""

    task: str
    kind: str
    language: str | None
    signatures: dict[str, str]
    without_reference: int
    without_document: int
    overall: Scores
    slices: list[Scores]


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """The plain mean of several tasks' scores: those of one kind, or of one kind and language."""

    kind: str
    language: str | None
    tasks: list[str]
    scores: dict[str, Interval]
    compared: dict[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked for in a task's outputs: in how many of `looked_at` it was found, and a few of their keys."""

    found: int
    looked_at: int
    examples: list[dict[str, str]] = field(default_factory=list)
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedTask:
    """What the checks found in one task and language. `rows`: outputs there are; `checked`: those looked at."""

    task: str
    kind: str
    language: str | None
    rows: int
    not_made: int
    checked: int
    checks: dict[str, Check]
    # means and percentiles: repeated, copied, length_ratio
    figures: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A finished evaluation; `about` says what of: table, model, references, versions, dates."""

    name: str
    about: dict[str, Any]
    tasks: list[TaskResult]
    averages: list[Average]
    checks: list[CheckedTask]
    warnings: list[str]
    level: float
    other: str | None = None

    @property
    def comparisons(self) -> list[Comparison]:
        """Every comparison that was made."""
        scores = [piece for task in self.tasks for piece in (task.overall, *task.slices)]
        found = [comparison for piece in scores for comparison in piece.compared.values()]
        return found + [comparison for average in self.averages for comparison in average.compared.values()]

    def as_json(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        return {
            "version": 1,
            "name": self.name,
            **self.about,
            "compared_with": self.other,
            "tasks": [asdict(task) for task in self.tasks],
            "averages": [asdict(average) for average in self.averages],
            "checks": [asdict(check) for check in self.checks],
            "warnings": self.warnings,
        }

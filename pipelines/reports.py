"""What a run and a plan tell the command line: plain counts, no rendering."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass(slots=True, kw_only=True)
class TaskCounts:
    """Pairs of one task: what this run made, what stood there before, what does not apply."""

    ok: int = 0
    rejected: int = 0
    failed: int = 0
    already_ok: int = 0
    already_rejected: int = 0
    already_failed: int = 0
    not_applicable: int = 0

    @property
    def applicable(self) -> int:
        """Pairs that apply: each stands in the table as exactly one row."""
        return self.made + self.already

    @property
    def made(self) -> int:
        """Pairs that this run ended."""
        return self.ok + self.rejected + self.failed

    @property
    def already(self) -> int:
        """Pairs that were final before this run."""
        return self.already_ok + self.already_rejected + self.already_failed

    def add(self, other: TaskCounts) -> None:
        """Count another's pairs too."""
        for counted in fields(self):
            setattr(self, counted.name, getattr(self, counted.name) + getattr(other, counted.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands. `documents` counts those that left the graph, of `documents_total`."""

    documents: int
    documents_total: int
    documents_made: int
    input_tokens: int
    output_tokens: int
    ok: int
    rejected: int
    failed: int
    already: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A finished run. `seconds` is wall time; `generate_seconds`: how long the busiest worker's engine worked, of the
    `serving_seconds` from its first document to its last generation. `model_revision` and `fingerprints` (of its tasks)
    are those of its rows, among others that the table may hold."""

    run_id: str
    table: str
    documents: int
    documents_made: int
    tasks: dict[str, TaskCounts]
    input_tokens: int
    output_tokens: int
    seconds: float
    generate_seconds: float
    workers: int
    # errors of this run by code, with one example message each
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    serving_seconds: float = 0.0
    model_revision: str = ""
    fingerprints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBucket:
    """Documents whose encoder input has up to `max_tokens` tokens (and more than the bucket before)."""

    max_tokens: int
    documents: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What a run would do. Documents that are complete are in `documents` but not in the buckets."""

    table: str
    files: int
    source_bytes: int
    documents: int
    documents_todo: int
    todo: dict[str, int]
    tasks: dict[str, TaskCounts]
    buckets: list[LengthBucket]
    input_tokens: int
    max_output_tokens: int
    errors: dict[str, tuple[int, str]]
    # seconds for what is to do, measured by the table's newest run; None when it has had none
    estimate_seconds: float | None
    estimate_basis: str
    warnings: list[str] = field(default_factory=list)

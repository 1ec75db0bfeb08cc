"""Counts of a run as its outcomes come in."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pyarrow as pa

from .errors import FailureRateError
from .reports import Progress, TaskCounts
from .resume import STATUS_NAMES
from .skip import Skip

# The failure rate means little before this many rows.
_RATE_FROM = 100


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a run has done so far."""

    tasks: list[str]
    documents_total: int
    counts: dict[str, TaskCounts] = field(default_factory=dict)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    serving: dict[str, float] = field(default_factory=dict)
    dtype: str | None = None
    documents: int = 0
    documents_made: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.counts = {name: TaskCounts() for name in self.tasks}

    def skip(self, skip: Skip) -> None:
        """Count the documents that need not be read, as if they had been."""
        self.documents += skip.documents
        for task, known in skip.counts.items():
            self.counts[task].add(known)

    def add(self, outcome: pa.Table) -> None:
        """Count a block of outcomes (pipelines.stages.OUTCOME)."""
        for document in outcome.to_pylist():
            self.documents += 1
            self.input_tokens += document["input_tokens"]
            self.output_tokens += document["output_tokens"]
            self.dtype = document["dtype"] or self.dtype
            for task in document["not_applicable"]:
                self.counts[self.tasks[task]].not_applicable += 1
            made = [pair for pair in document["pairs"] if self._count(pair)]
            self.documents_made += bool(made)
            if document["busy_seconds"] is not None:
                worker = document["worker"]
                self.busy[worker] = max(self.busy.get(worker, 0.0), document["busy_seconds"])
                self.serving[worker] = max(self.serving.get(worker, 0.0), document["serving_seconds"])

    @property
    def generate_seconds(self) -> float:
        """How long the busiest worker's engine worked; loading and waiting are not in it."""
        return max(self.busy.values(), default=0.0)

    @property
    def serving_seconds(self) -> float:
        """From the first document in an engine to its last generation, for the worker that took longest."""
        return max(self.serving.values(), default=0.0)

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        sums = {name: sum(getattr(c, name) for c in self.counts.values()) for name in ("ok", "rejected", "failed")}
        return Progress(
            documents=self.documents,
            documents_total=self.documents_total,
            documents_made=self.documents_made,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            already=sum(c.already for c in self.counts.values()),
            seconds=time.monotonic() - self.started,
            **sums,
        )

    def check_failure_rate(self, limit: float) -> None:
        """FailureRateError when failed / (ok + failed) passes `limit`, looked at from 100 rows on."""
        ok = sum(counts.ok for counts in self.counts.values())
        failed = sum(counts.failed for counts in self.counts.values())
        if ok + failed >= _RATE_FROM and failed > limit * (ok + failed):
            code, (_, message) = max(self.errors.items(), key=lambda entry: entry[1][0])
            raise FailureRateError(
                f"{failed} of {ok + failed} rows failed, more than limits.max_failure_rate ({limit:g}) allows; "
                f"most often {code}: {message}. What is done is kept; run again to go on"
            )

    def _count(self, pair: dict) -> bool:
        counts, state = self.counts[self.tasks[pair["task"]]], STATUS_NAMES[pair["state"]]
        name = state if pair["made"] else f"already_{state}"
        setattr(counts, name, getattr(counts, name) + 1)
        if pair["made"] and pair["error_code"]:
            seen, example = self.errors.get(pair["error_code"], (0, pair["error_message"]))
            self.errors[pair["error_code"]] = (seen + 1, example)
        return pair["made"]

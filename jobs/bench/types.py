"""What the benchmark suite is asked and what it answers: settings in, one `Figure` for each measured case out."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpec:
    """One competitor: which runtime, and what it computes in."""

    name: str
    dtype: str

    @property
    def label(self) -> str:
        """How tables and JSON name it."""
        return f"{self.name} {self.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a person asked for, checked; every figure reads it and none changes it.

    `model` is a folder with weights, `folder` the place for what the suite makes. `lengths` overrides a figure's own
    document lengths. A case stops repeating after `budget_seconds`; a peer that answers nothing for `limit_seconds` is
    stopped and named; `settle_seconds` pass between two peers. `say` takes one line of progress.
    """

    model: Path
    folder: Path
    size: str
    peers: tuple[PeerSpec, ...]
    device: str = "cpu"
    threads: int = 1
    repeat: int = 3
    seed: int = 0
    lengths: tuple[int, ...] = ()
    tasks: tuple[int, ...] = ()
    tokens: int = 32
    documents: int = 48
    budget_seconds: float = 900.0
    limit_seconds: float = 1800.0
    settle_seconds: float = 0.3
    say: Callable[[str], None] = field(default=lambda line: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One peer's samples of one case, in the figure's unit; `extra` holds what else was seen (memory, occupancy…)."""

    peer: str
    samples: tuple[float, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return statistics.median(self.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What bounds the figure: `kind` "MFU", "MBU" or "slower peer"; `measured` is that bound, in `unit`, and
    `reached` the share of it by peer."""

    kind: str
    measured: float
    unit: str
    reached: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured case. `ratios`: "native dtype / other peer" → how many times better native is (below 1: worse),
    the median over repetitions run side by side. `missing`: peer → why it has no value."""

    name: str
    work: Mapping[str, Any]
    unit: str
    values: tuple[Value, ...]
    better: Better = "higher"
    ratios: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    ceiling: Ceiling | None = None
    device: str = ""
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def case(self) -> str:
        """The work in a few words, as a table's first column shows it."""
        return ", ".join(f"{key} {value}" for key, value in self.work.items())

    def line(self) -> str:
        """The whole figure as one line of JSON, medians included; a number that JSON cannot hold becomes null."""
        document = asdict(self)
        for value, mine in zip(document["values"], self.values, strict=True):
            value["median"] = mine.median
        return json.dumps(_finite(document), ensure_ascii=False, allow_nan=False)


Measure = Callable[[Settings], Iterator[Figure]]


def ratios(values: Sequence[Value], better: Better = "higher") -> dict[str, float]:
    """How many times better each native value is than each other peer's, sample against the sample beside it."""
    found = {}
    for ours in values:
        if not ours.peer.startswith("native"):
            continue
        for theirs in values:
            if theirs.peer.startswith("native"):
                continue
            pairs = [(a, b) if better == "higher" else (b, a) for a, b in zip(ours.samples, theirs.samples)]
            if pairs and all(b > 0 for _, b in pairs):
                found[f"{ours.peer} / {theirs.peer}"] = statistics.median(a / b for a, b in pairs)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value

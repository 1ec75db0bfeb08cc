"""One case measured: every peer in turn, again and again, and what came of it as a `Figure`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_runtime.backends.peers.types import Produced

from .child import Timed
from .crew import Crew, PeerLost, settle
from .machine import describe, today, versions
from .types import Better, Ceiling, Figure, PeerSpec, Settings, Value, ratios

# Up to here a case is run once before it is timed; beyond, the first run costs little against the case itself.
_WARM_UP_TO = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One peer's one result in the figure's unit; of `seen` the middle is kept, of peaks the highest."""

    value: float
    seen: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Case:
    """One row of a figure: its work, its samples so far, and who has none."""

    name: str
    work: dict[str, Any]
    unit: str
    better: Better = "higher"
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    bounds: list[float] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)

    def repeat(
        self,
        crew: Crew,
        settings: Settings,
        measure: Callable[[PeerSpec, int], Sample],
        *,
        peers: Sequence[PeerSpec] | None = None,
        bound: Callable[[], float] | None = None,
        warm: bool = False,
    ) -> None:
        """A B A B …: `measure` each peer once a repetition, until there are enough or the budget is spent.

        `measure` gets -1 as its repetition for the run that is not counted (`warm`). `bound` measures the device
        beside each repetition.
        """
        chosen = list(settings.peers if peers is None else peers)
        self.missing |= {peer.label: why for peer in chosen if (why := crew.gone.get(peer.label))}
        started = time.monotonic()
        for repetition in range(-1 if warm else 0, settings.repeat):
            if bound is not None and repetition >= 0:
                self._bound(crew, settings, bound)
            for peer in chosen:
                if peer.label not in self.missing:
                    self._measure(crew, settings, measure, peer, repetition)
            if repetition >= 0 and time.monotonic() - started > settings.budget_seconds:
                break

    def figure(self, settings: Settings, ceiling: Ceiling | None = None) -> Figure:
        """What was measured."""
        values = tuple(
            Value(peer=label, samples=tuple(sample.value for sample in samples), extra=_seen(samples))
            for label, samples in self.samples.items()
        )
        return Figure(
            name=self.name,
            work=self.work,
            unit=self.unit,
            values=values,
            better=self.better,
            ratios=ratios(values, self.better),
            missing=self.missing,
            checks=self.checks,
            ceiling=ceiling or _slower_peer(values, self.unit, self.better),
            device=describe(settings.device, settings.threads),
            date=today(),
            versions=versions(),
        )

    def ceiling(self, kind: str, unit: str, reached: Callable[[str, float], float], scale: float) -> Ceiling | None:
        """The measured bound (its median) in `unit`, and `reached(peer, median value)` as a share of it."""
        if not self.bounds:
            return None
        bound = statistics.median(self.bounds)
        medians = {label: statistics.median(s.value for s in samples) for label, samples in self.samples.items()}
        shares = {label: reached(label, median) / bound for label, median in medians.items()}
        return Ceiling(kind=kind, measured=bound / scale, unit=unit, reached=shares)

    def _bound(self, crew: Crew, settings: Settings, bound: Callable[[], float]) -> None:
        settle(settings)
        try:
            self.bounds.append(bound())
        except PeerLost as lost:
            self.checks["ceiling"] = f"not measured: {lost}"

    def _measure(
        self,
        crew: Crew,
        settings: Settings,
        measure: Callable[[PeerSpec, int], Sample],
        peer: PeerSpec,
        repetition: int,
    ) -> None:
        settle(settings)
        try:
            sample = measure(peer, repetition)
        except PeerLost as lost:
            self.missing[peer.label] = str(lost)
            settings.say(f"{self._title()}: {peer.label} has no result: {lost}")
            return
        if repetition >= 0:
            self.samples.setdefault(peer.label, []).append(sample)
            settings.say(
                f"{self._title()}: {peer.label} {sample.value:,.2f} {self.unit} ({repetition + 1}/{settings.repeat})"
            )

    def _title(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.work.items())])


def warm(settings: Settings, tokens: int) -> bool:
    """Whether a case of this length is run once before it is timed; on a GPU always."""
    return settings.device != "cpu" or tokens <= _WARM_UP_TO


def seen(timed: Timed, **more: float | None) -> dict[str, float | None]:
    """What stands beside a value: the peak of memory, and `more`."""
    mib = None if timed.peak_bytes is None else timed.peak_bytes / 2**20
    return {"peak_mib": mib, **more}


def check_produced(produced: Produced, tasks: Sequence[int], max_tokens: int) -> None:
    """PeerLost unless every decode of every document produced exactly what was asked."""
    counts = [[len(tokens) for tokens in document] for document in produced.tokens]
    if counts != [[max_tokens] * number for number in tasks]:
        wrong = sorted({count for document in counts for count in document} - {max_tokens})
        raise PeerLost(f"produced {', '.join(map(str, wrong)) or 'too few'} tokens where {max_tokens} were asked")


def _seen(samples: Sequence[Sample]) -> dict[str, float]:
    names = dict.fromkeys(name for sample in samples for name in sample.seen)
    found = {name: [v for s in samples if (v := s.seen.get(name)) is not None] for name in names}
    return {n: max(v) if n.startswith("peak") else statistics.median(v) for n, v in found.items() if v}


def _slower_peer(values: Sequence[Value], unit: str, better: Better) -> Ceiling | None:
    """Where no device bounds a figure: the fastest peer that is not native is what there is to compare with."""
    others = [value.median for value in values if not value.peer.startswith("native")]
    if not others:
        return None
    best = max(others) if better == "higher" else min(others)
    reached = {v.peer: v.median / best for v in values if v.peer.startswith("native")} if best else {}
    return Ceiling(kind="best other peer", measured=best, unit=unit, reached=reached)

"""The picture of an evaluation: for each metric its tasks as bars with their intervals, then slice by slice."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.evaluation.report import Evaluation, Scores
from workers.score import Interval
from workers.score.packages import need

_COLOURS = ("#1b6e53", "#d98a5b", "#7d7aa8", "#c9b458", "#b04a3a", "#8fd3b6", "#5b8bd9", "#a7a7a7")
_MOST_PANELS, _MOST_BARS = 16, 60


@dataclass(frozen=True, slots=True)
class _Panel:
    """Bars at `places`, one series beside the other; an interval is None where there is nothing."""

    title: str
    places: list[str]
    series: dict[str, list[Interval | None]]


def picture(evaluation: Evaluation) -> bytes | None:
    """A PNG, or None when there are no scores; PackageMissing without matplotlib."""
    panels = [*_overall(evaluation), *_slices(evaluation)][:_MOST_PANELS]
    if not panels:
        return None
    backend, figure = need("matplotlib.backends.backend_agg", "the picture"), need("matplotlib.figure", "the picture")
    canvas = figure.Figure(figsize=(9, 0.8 + 2.8 * len(panels)), layout="constrained")
    backend.FigureCanvasAgg(canvas)
    for place, panel in enumerate(panels):
        _draw(canvas.add_subplot(len(panels), 1, place + 1), panel)
    canvas.suptitle(_plain(f"{evaluation.name}, {100 * evaluation.level:g}% intervals"), fontsize=9)
    out = io.BytesIO()
    with warnings.catch_warnings():
        # A slice may be named in a script that the font does not have.
        warnings.simplefilter("ignore", UserWarning)
        canvas.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _overall(evaluation: Evaluation) -> list[_Panel]:
    panels = []
    for metric in _metrics(evaluation):
        tasks = [task for task in evaluation.tasks if metric in task.overall.scores][:_MOST_BARS]
        places = [f"{task.task} ({task.language})" if task.language else task.task for task in tasks]
        series: dict[str, list[Interval | None]] = {"this table": [task.overall.scores[metric] for task in tasks]}
        if evaluation.other is not None:
            series["other table"] = [task.overall.other_scores.get(metric) for task in tasks]
        panels.append(_Panel(metric, places, series))
    return panels


def _slices(evaluation: Evaluation) -> list[_Panel]:
    panels = []
    for column in dict.fromkeys(piece.by for task in evaluation.tasks for piece in task.slices):
        for metric in _metrics(evaluation):
            found: dict[str, dict[str, Scores]] = {}
            for task in evaluation.tasks:
                mine = {str(p.value): p for p in task.slices if p.by == column and metric in p.scores}
                if mine and len(found) < len(_COLOURS):
                    found[task.task] = mine
            values = list(dict.fromkeys(value for mine in found.values() for value in mine))[:_MOST_BARS]
            series: dict[str, list[Interval | None]] = {
                task: [mine[value].scores[metric] if value in mine else None for value in values]
                for task, mine in found.items()
            }
            if series:
                panels.append(_Panel(f"{metric} by {column}", values, series))
    return panels


def _metrics(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys(name for task in evaluation.tasks for name in task.overall.scores))


def _draw(axes: Any, panel: _Panel) -> None:
    width = 0.8 / len(panel.series)
    for place, (name, intervals) in enumerate(panel.series.items()):
        at = [x - 0.4 + width * (place + 0.5) for x in range(len(intervals))]
        scores = [0.0 if i is None else i.score for i in intervals]
        axes.bar(at, scores, width * 0.94, label=_plain(name), color=_COLOURS[place % len(_COLOURS)])
        axes.errorbar(at, scores, yerr=_arms(intervals), fmt="none", ecolor="#333333", elinewidth=0.8, capsize=2)
    many = len(panel.places) > 8
    names = [_plain(_short(name)) for name in panel.places]
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=60 if many else 0, ha="right" if many else "center")
    axes.set_title(_plain(panel.title), fontsize=9, loc="left")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.series) > 1:
        axes.legend(fontsize=7, frameon=False, ncols=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)


def _arms(intervals: Sequence[Interval | None]) -> list[list[float]]:
    low, high = [], []
    for i in intervals:
        known = i is not None and i.low is not None and i.high is not None
        # A percentile interval of few documents need not hold the score itself.
        low.append(max(0.0, i.score - i.low) if known else 0.0)  # type: ignore[union-attr, operator]
        high.append(max(0.0, i.high - i.score) if known else 0.0)  # type: ignore[union-attr, operator]
    return [low, high]


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"

"""The picture of a training run: its loss, and how the held-out rows fared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_POINTS = 400


def save_curve(path: Path, history: Any) -> None:
    """Write a PNG from a run's History: training and held-out loss above, exactly right by task below."""
    held = history.held_out
    figure = Figure(figsize=(8, 6 if held else 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    upper = figure.add_subplot(2 if held else 1, 1, 1)
    steps, losses = _thinned(history.loss)
    upper.plot(steps, losses, color="#1b6e53", linewidth=1, label="training")
    if held:
        upper.plot([h["step"] for h in held], [h["loss"] for h in held], "o-", color="#b04a3a", label="held out")
    upper.set_yscale("log")
    upper.set_ylabel("loss per token")
    upper.legend(frameon=False, fontsize=8)
    if held:
        lower = figure.add_subplot(2, 1, 2, sharex=upper)
        lower.set_prop_cycle(color=colormaps["tab20"].colors)  # type: ignore[attr-defined]
        for name in held[-1]["tasks"]:
            seen = [h for h in held if name in h["tasks"]]
            lower.plot(
                [h["step"] for h in seen], [100 * h["tasks"][name]["exact"] for h in seen], linewidth=1, label=name
            )
        lower.set_ylabel("exactly right, %")
        lower.set_xlabel("step")
        lower.legend(frameon=False, fontsize=6, ncols=3)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(path, dpi=110)


def _thinned(losses: list[float]) -> tuple[list[int], list[float]]:
    """At most 400 points, each the mean of its stretch."""
    stretch = max(1, len(losses) // _POINTS)
    parts = [losses[i : i + stretch] for i in range(0, len(losses), stretch)]
    return [i * stretch + len(part) for i, part in enumerate(parts)], [sum(part) / len(part) for part in parts]

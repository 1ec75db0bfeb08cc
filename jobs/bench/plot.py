"""The plot of a section: for each figure bars by case, the peers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .report import number
from .types import Figure

# Native's shades against everybody else's; the order is that of the tables.
_NATIVE = ("#1b6e53", "#3aa57f", "#8fd3b6")
_OTHERS = ("#b04a3a", "#d98a5b", "#7d7aa8", "#a7a7a7", "#c9b458")


def save_plot(path: Path, figures: Sequence[Figure]) -> None:
    """Write a PNG: one panel for each figure that has values."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    named = {
        name: [f for f in figures if f.name == name and f.values] for name in dict.fromkeys(f.name for f in figures)
    }
    panels = [cases for cases in named.values() if cases]
    canvas = Canvas(figsize=(9, 1 + 3.2 * max(1, len(panels))), layout="constrained")
    FigureCanvasAgg(canvas)
    peers = list(dict.fromkeys(value.peer for figure in figures for value in figure.values))
    colours = _colours(peers)
    for place, cases in enumerate(panels):
        _panel(canvas.add_subplot(len(panels), 1, place + 1), cases, colours)
    first = figures[0]
    canvas.suptitle(f"corpusmill {first.versions.get('corpusmill', '')}, {first.date}, {first.device}", fontsize=9)
    canvas.savefig(path, dpi=110)


def _panel(axes, cases: Sequence[Figure], colours: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    peers = [peer for peer in colours if any(value.peer == peer for case in cases for value in case.values)]
    width = 0.8 / len(peers)
    for place, peer in enumerate(peers):
        values = [next((v.median for v in case.values if v.peer == peer), 0.0) for case in cases]
        at = [x - 0.4 + width * (place + 0.5) for x in range(len(cases))]
        bars = axes.bar(at, values, width * 0.94, label=peer, color=colours[peer])
        axes.bar_label(bars, [number(v) if v else "none" for v in values], fontsize=6, rotation=90, padding=2)
    axes.set_xticks(range(len(cases)), [case.case for case in cases], fontsize=7)
    axes.margins(y=0.35)
    axes.set_ylabel(cases[0].unit, fontsize=8)
    better = "" if cases[0].better == "higher" else " (lower is better)"
    axes.set_title(f"{cases[0].name}{better}", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, ncols=3)


def _colours(peers: Sequence[str]) -> dict[str, str]:
    native = [peer for peer in peers if peer.startswith("native")]
    others = [peer for peer in peers if peer not in native]
    chosen = {peer: _NATIVE[i % len(_NATIVE)] for i, peer in enumerate(native)}
    return chosen | {peer: _OTHERS[i % len(_OTHERS)] for i, peer in enumerate(others)}

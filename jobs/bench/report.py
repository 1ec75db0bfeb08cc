"""Figures as a person reads them: a dated Markdown section, losses included, and its plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .types import Figure, Value

_SIZES = {"demo": "2M demo shape", "270m": "270M-270M shape", "1b": "1B-1B shape", "4b": "4B-4B shape"}


def append_section(path: Path, figures: Sequence[Figure], *, model: str, command: str) -> Path:
    """Append a section about `figures` to the Markdown file, its plot beside it; returns the plot's path."""
    from .plot import save_plot

    first = figures[0]
    picture = _free(path.parent / path.stem / f"{first.date}-{_slug(model)}.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_plot(picture, figures)
    text = section(figures, model=model, command=command, picture=picture.relative_to(path.parent).as_posix())
    before = path.read_text(encoding="utf-8").rstrip("\n") + "\n\n" if path.exists() else "# Measurements\n\n"
    path.write_text(before + text, encoding="utf-8")
    return picture


def section(figures: Sequence[Figure], *, model: str, command: str, picture: str) -> str:
    """The section's Markdown."""
    first = figures[0]
    named = ", ".join(f"{name} {number}" for name, number in first.versions.items())
    lines = [
        f"## {first.date}: benchmark, {_SIZES.get(model, model)}, {first.device}",
        "",
        f"`{command}`; {named}. Medians of samples taken in turn (A B A B …). A ratio below 1 is a loss of native's.",
        "MiB: memory that the work took above what the loaded peer held.",
        "",
        f"![{first.date}, {_SIZES.get(model, model)}]({picture})",
        "",
    ]
    for name in dict.fromkeys(figure.name for figure in figures):
        lines += _figure([figure for figure in figures if figure.name == name])
    return "\n".join(lines).rstrip("\n") + "\n"


def cell(figure: Figure, value: Value) -> str:
    """One peer's median, its share of the ceiling and its memory."""
    notes = []
    if figure.ceiling and figure.ceiling.kind in ("MFU", "MBU") and value.peer in figure.ceiling.reached:
        notes.append(f"{figure.ceiling.kind} {figure.ceiling.reached[value.peer]:.0%}")
    if (peak := value.extra.get("peak_mib")) is not None:
        notes.append(f"+{peak:,.0f} MiB")
    if (occupancy := value.extra.get("occupancy")) is not None:
        notes.append(f"occupancy {occupancy:.0%}")
    if (divergence := value.extra.get("divergence")) is not None:
        notes.append(f"KL {divergence:.1e}, other token {value.extra['other_token']:.0%}")
    return number(value.median) + (f" ({', '.join(notes)})" if notes else "")


def number(value: float) -> str:
    """Three figures that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _figure(figures: Sequence[Figure]) -> list[str]:
    peers = list(dict.fromkeys(value.peer for figure in figures for value in figure.values))
    lines = [f"### {figures[0].name}, {figures[0].unit}", ""]
    if peers:
        lines += _table(["work", *peers, "ceiling"], (_values(figure, peers) for figure in figures))
    names = list(dict.fromkeys(name for figure in figures for name in figure.ratios))
    if names:
        rows = ([f.case, *(f"{f.ratios[name]:.2f}" if name in f.ratios else "–" for name in names)] for f in figures)
        lines += _table(["times better", *names], rows)
    return lines + _notes(figures)


def _values(figure: Figure, peers: Sequence[str]) -> list[str]:
    found = {value.peer: cell(figure, value) for value in figure.values}
    ceiling = figure.ceiling
    bound = f"{ceiling.kind}: {number(ceiling.measured)} {ceiling.unit}" if ceiling else "–"
    return [figure.case, *(found.get(peer, "–") for peer in peers), bound]


def _notes(figures: Sequence[Figure]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for figure in figures:
        for peer, why in figure.missing.items():
            notes.setdefault(f"{peer}: {why}", []).append(figure.case)
        for name, found in figure.checks.items():
            notes.setdefault(f"{name}: {_shown(found)}", []).append(figure.case)
    lines = [
        f"- {note}" if len(cases) == len(figures) else f"- {note} ({'; '.join(cases)})" for note, cases in notes.items()
    ]
    return [*lines, ""] if lines else []


def _shown(found: object) -> str:
    if isinstance(found, dict):
        return ", ".join(f"{name} {_shown(value)}" for name, value in found.items())
    if isinstance(found, list | tuple):
        return ", ".join(map(_shown, found)) or "none"
    if isinstance(found, float):
        return f"{found:.2g}"
    return f"{found:,}" if isinstance(found, int) else str(found)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [_row(titles), _row(["---"] * len(titles)), *(_row(row) for row in rows), ""]
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _slug(model: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in model.lower()).strip("-") or "model"


def _free(path: Path) -> Path:
    """`path`, or the first numbered name beside it that is not taken: an earlier section's plot stays."""
    found, count = path, 1
    while found.exists():
        count += 1
        found = path.with_stem(f"{path.stem}-{count}")
    return found

"""What a person sees of the demo: documents beside what was made of them, and how much of it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..render import heading, plain
from ..text import count, one_line

SHOWN = {"report": 2, "note": 3, "scene": 4}
TITLES = {
    "report": "Reports: summaries and answers",
    "note": "Notes: translations",
    "scene": "Scenes: captions of images",
}
_SOURCE_LINES = 3


def show_results(
    console: Console,
    documents: Sequence[Mapping[str, Any]],
    made: Mapping[str, Mapping[str, str]],
    right: Mapping[tuple[str, str], str],
) -> None:
    """Some documents of each kind with their outputs (`made`: document → task → text), marked where the right one is
    known; at last the count over all of them."""
    for genre, most in SHOWN.items():
        heading(console, TITLES[genre])
        of_genre = [document for document in documents if document["genre"] == genre and document["doc_id"] in made]
        for document in of_genre[:most]:
            _show_document(console, document, made[document["doc_id"]], right)
    _show_count(console, made, right)


def _show_document(
    console: Console,
    document: Mapping[str, Any],
    texts: Mapping[str, str],
    right: Mapping[tuple[str, str], str],
) -> None:
    name = str(document["doc_id"])
    body = document["body"]
    what = count(len(body.split()), "word") if body else f"an image, {len(document['photo']):,} bytes of PNG"
    console.print()
    console.print(Text.assemble((name, "cyan"), (f"  {what}", "dim")), soft_wrap=True)
    if body:
        console.print(Text(_clipped(one_line(body), _SOURCE_LINES * (console.width - 2)), style="dim"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for task, text in texts.items():
        grid.add_row(task, _marked(text, right.get((name, task))))
    console.print(grid)


def _marked(text: str, right: str | None) -> Text:
    if right is None:
        return Text(one_line(text))
    if text == right:
        return Text.assemble(one_line(text), ("  ✓", "green"))
    return Text.assemble(one_line(text), ("  ✗ ", "red"), (one_line(right), "dim"))


def _show_count(console: Console, made: Mapping[str, Mapping[str, str]], right: Mapping[tuple[str, str], str]) -> None:
    known = {(d, task): text for d, texts in made.items() for task, text in texts.items() if (d, task) in right}
    good = sum(text == right[place] for place, text in known.items())
    console.print()
    plain(
        console,
        "✓ is exactly right; behind ✗ stands what is right. The documents come from a synthetic world that knows its "
        "own answers; none of their names and combinations was trained on. "
        f"{good:,} of {len(known):,} are exactly right.",
    )


def _clipped(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    while cell_len(text) > width - 1:
        text = text[: len(text) - max(1, cell_len(text) - width)]
    return text.rstrip() + "…"

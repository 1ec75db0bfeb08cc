"""One stream of documents: reports, notes and scenes as rows of one schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from . import scenes
from .dice import SPLITS, Dice
from .drawing import draw
from .notes import draw_note
from .reports import draw_report
from .summaries import draw_questions, summaries

KINDS = ("report", "note", "scene")
MIN_WORDS, MAX_WORDS = 50, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One row; what does not apply to the kind is None."""

    doc_id: str
    kind: str
    body: str | None = None
    photo: bytes | None = None
    words: int | None = None
    summary_en: str | None = None
    summary_de: str | None = None
    summary_es: str | None = None
    summary_zh: str | None = None
    summary_ar: str | None = None
    to_de: str | None = None
    to_es: str | None = None
    to_zh: str | None = None
    to_ar: str | None = None
    caption_en: str | None = None
    caption_de: str | None = None
    question_1: str | None = None
    answer_1: str | None = None
    question_2: str | None = None
    answer_2: str | None = None
    question_3: str | None = None
    answer_3: str | None = None

    def row(self) -> dict[str, str | bytes | int | None]:
        """The columns by name, in the schema's order."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(Document.__dataclass_fields__)
SCHEMA = pa.schema(
    [pa.field(name, {"photo": pa.binary(), "words": pa.int32()}.get(name, pa.string())) for name in COLUMNS]
)


def documents(
    kind: str,
    *,
    seed: int,
    split: str,
    start: int,
    count: int,
    min_words: int = MIN_WORDS,
    max_words: int = MAX_WORDS,
    most_groups: int = 2,
) -> Iterator[Document]:
    """Documents start to start + count - 1 of a kind; each depends on seed, split, kind and its number only.

    `min_words` and `max_words` bound reports and change what is drawn, as `most_groups` (1 or 2) does for scenes.
    Raises ValueError for an unknown kind or split, or bounds that leave no room for the facts.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    for index in range(start, start + count):
        dice = Dice(seed, split, kind, index)
        name = f"{kind}-{split}-{seed}-{index:07d}"
        if kind == "report":
            yield _report(name, dice, min_words, max_words)
        elif kind == "note":
            yield _note(name, dice)
        else:
            yield _scene(name, dice, most_groups)


def _report(name: str, dice: Dice, min_words: int, max_words: int) -> Document:
    report = draw_report(dice, min_words, max_words)
    summary: dict[str, Any] = {f"summary_{language}": text for language, text in summaries(report.facts).items()}
    asked = _asked(draw_questions(dice, report.facts))
    return Document(doc_id=name, kind="report", body=report.body, words=report.words, **summary, **asked)


def _note(name: str, dice: Dice) -> Document:
    note = draw_note(dice)
    targets: dict[str, Any] = {f"to_{language}": text for language, text in note.translations.items()}
    return Document(doc_id=name, kind="note", body=note.body, words=note.words, **targets)


def _scene(name: str, dice: Dice, most_groups: int) -> Document:
    scene = scenes.draw_scene(dice, most_groups)
    asked = _asked(scenes.draw_questions(dice, scene))
    photo, _ = draw(dice, scene)
    caption: dict[str, Any] = {f"caption_{language}": text for language, text in scenes.captions(scene).items()}
    return Document(doc_id=name, kind="scene", photo=photo, **caption, **asked)


def _asked(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    columns = {}
    for number, (question, answer) in enumerate(pairs, 1):
        columns[f"question_{number}"], columns[f"answer_{number}"] = question, answer
    return columns

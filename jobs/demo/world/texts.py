"""What a tokenizer is trained on, and the fixed documents that the demo shows."""

from __future__ import annotations

from collections.abc import Iterator

from .documents import Document, documents

PROMPTS = ("Summarize in {}:", "Translate to {}:", "Describe the image in {}:", "Answer in {}:")
LANGUAGES = ("English", "German", "Spanish", "Chinese", "Arabic")
SHOWCASE_SEED = 2026
# In these the long report stands first.
_LONG = {"min_words": 980, "max_words": 1000}
_SHORT = {"min_words": 60, "max_words": 140}
SIX = 6
SHOWN_FROM = 60  # the notes and scenes shown are the first of so many that have something to show
TELLING = 14  # words


def tokenizer_texts(seed: int, count: int) -> Iterator[str]:
    """Bodies, targets in all languages, questions and prompts of `count` training documents, kinds in turn."""
    for prompt in PROMPTS:
        for language in LANGUAGES:
            yield prompt.format(language)
    streams = [
        documents(kind, seed=seed, split="train", start=0, count=-(-count // 3)) for kind in ("report", "note", "scene")
    ]
    for place in range(count):
        for column, value in next(streams[place % 3]).row().items():
            if isinstance(value, str) and column not in ("doc_id", "kind"):
                yield value


def showcase() -> list[Document]:
    """Eighteen held-out documents, the same ones always: six of each kind, one report of about a thousand words."""
    seed, split = SHOWCASE_SEED, "held_out"
    shown = list(documents("report", seed=seed, split=split, start=0, count=1, **_LONG))
    shown += documents("report", seed=seed, split=split, start=1, count=SIX - 1, **_SHORT)
    notes = documents("note", seed=seed, split=split, start=0, count=SHOWN_FROM)
    shown += [note for note in notes if note.words and note.words >= TELLING][:SIX]
    scenes = list(documents("scene", seed=seed, split=split, start=0, count=SHOWN_FROM))
    for words, count in ((" to the left of ", 3), (" above ", 2), ("", 1)):
        shown += [scene for scene in scenes if words in (scene.caption_en or "") and scene not in shown][:count]
    return shown

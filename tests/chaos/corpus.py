"""What a round works on: 200 documents of very different lengths in several shards, and what must become of each."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.pipelines.bad_corpus import Doc, make_documents, write_corpus
from tests.pipelines.corpora import text

ROOT = Path(__file__).parents[2]
DOCUMENTS = 200
TASKS = [
    {"name": "summary", "kind": "summarize", "max_tokens": 12},
    {"name": "to_de", "kind": "translate", "language": "de", "max_tokens": 12},
    {"name": "alt", "kind": "caption", "language": "en", "max_tokens": 12},
]
# A few documents that cannot work, so that errors/ changes too.
_BAD = ("null_id", "duplicate_id", "empty_text", "image_unreadable", "damaged")
_EACH = 4
_SHARDS = 6
_MODEL = ROOT / "jobs" / "demo" / "model"

Pair = tuple[str, int, str]  # file name, physical row, task


@dataclass(frozen=True, slots=True)
class Corpus:
    """The source's folder or URL, and the code that each pair's row must have (None: a row in results/)."""

    path: str
    expected: dict[Pair, str | None]


def make_corpus(folder: Path, url: str, seed: int) -> Corpus:
    """Writes the shards into `folder`, which readers know as `url`."""
    docs = make_documents(DOCUMENTS, dict.fromkeys(_BAD, _EACH), seed)
    lengthen([doc for doc in docs if doc.kind == "good"], random.Random(seed))
    write_corpus(docs, folder, _SHARDS)
    names = {task["name"] for task in TASKS}
    pairs = {(*doc.place, name): code for doc in docs for name, code in doc.codes.items() if name in names}
    return Corpus(url, pairs)


def lengthen(docs: list[Doc], rng: random.Random) -> None:
    """Texts of a few words to a thousand: some packets then hold many documents and others one or two."""
    for doc in docs:
        if doc.body is not None:
            doc.body = text(doc.number, round(10 * 100 ** rng.random())).encode()


def job_text(corpus: Corpus, table: str) -> str:
    """The job file. float32, so that a document's text does not depend on its company."""
    return yaml.safe_dump(
        {
            "name": "chaos",
            "model": {"path": str(_MODEL), "dtype": "float32", "device": "cpu"},
            "source": {
                "path": corpus.path, "id": "doc_id", "text": "body", "images": "photos", "carry": ["note"],
            },
            "tasks": TASKS,
            "output": {"path": table},
            "limits": {"max_input_tokens": 4096, "overflow": "reject"},
            "workers": {"min": 1, "max": 2},
        },
        sort_keys=False,
    )  # fmt: skip

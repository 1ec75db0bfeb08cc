"""How good the demo's model is: `python -m jobs.demo.quality`, over a held-out world, through the whole pipeline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from .model import MODEL
from .world import SCHEMA, documents

# Another seed than training's held-out rows, which chose nothing but might have.
SEED = 4711
EDGES = [100, 200, 300, 600]
LANGUAGES = {"summary": ("en", "de", "es", "zh", "ar"), "to": ("de", "es", "zh", "ar"), "caption": ("en", "de")}
KINDS = {"summary": ("summarize", "report"), "to": ("translate", "note"), "caption": ("caption", "scene")}
SHAPES = ("circle", "square", "triangle", "star", "cross")
# Questions that name nothing of the document, so that one task of a job can ask them of many.
QUESTIONS = {
    "who": "Who did the work?",
    "where": "In which town was the work done?",
    "when": "On which day was the work done?",
    "cost": "How much did the work cost?",
    **{f"is_{shape}": f"Is there a {shape}?" for shape in SHAPES},
    **{f"count_{shape}": f"How many {shape}{'es' if shape == 'cross' else 's'} are there?" for shape in SHAPES},
}


def write_corpus(path: Path, *, reports: int, notes: int, scenes: int, long_reports: int, seed: int = SEED) -> None:
    """A held-out world with a column for each question of QUESTIONS: its answer where the document knows it."""
    counts = {"report": reports, "note": notes, "scene": scenes}
    rows = [
        d.row() for kind, n in counts.items() for d in documents(kind, seed=seed, split="held_out", start=0, count=n)
    ]
    rows += [
        d.row()
        for d in documents(
            "report", seed=seed, split="held_out", start=reports, count=long_reports, min_words=900, max_words=1000
        )
    ]
    for row in rows:
        asked = {row[f"question_{n}"]: row[f"answer_{n}"] for n in (1, 2, 3)}
        row |= {name: asked.get(question) for name, question in QUESTIONS.items()}
    schema = pa.schema([*SCHEMA, *((name, pa.string()) for name in QUESTIONS)])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=256)


def run_job(model: Path, corpus: Path, table: Path, backend: str) -> dict[str, Any]:
    """The job that makes every target; each task is asked of the kind of document that has it."""
    return {
        "name": "demo-quality",
        "model": {"path": str(model), "backend": backend, "dtype": "float32"},
        "source": {"path": str(corpus), "id": "doc_id", "text": "body", "images": "photo"},
        "tasks": [*_made_tasks(), *_question_tasks()],
        "output": {"path": str(table)},
        "workers": {"min": 1, "max": 1},
    }


def evaluation(job: Path, corpus: Path, out: Path) -> dict[str, Any]:
    """Exactly right, by task and by the reports' length."""
    return {
        "name": "demo-quality",
        "job": str(job),
        "references": {"path": str(corpus), "id": "doc_id"},
        "tasks": [
            {"name": task["name"], "reference": task["name"], "metrics": ["exact_strict"]}
            | ({"slices": [{"column": "words", "edges": EDGES}]} if task["kind"] == "summarize" else {})
            for task in (*_made_tasks(), *_question_tasks())
        ],
        "checks": False,
        "output": {"path": str(out)},
    }


def measure(folder: Path, model: Path, backend: str = "native", **counts: int) -> None:
    """Write the world and both job files into `folder`, run them, and show the scores."""
    from ..evaluate import evaluate_file

    corpus = folder / "corpus" / "held-out.parquet"
    write_corpus(corpus, **counts)
    job, evaluate = folder / f"{backend}.yaml", folder / f"evaluate-{backend}.yaml"
    _write(job, run_job(model, corpus, folder / f"table-{backend}", backend))
    _write(evaluate, evaluation(job, corpus, folder / f"quality-{backend}"))
    evaluate_file(evaluate, compare=None, as_json=False)


def _made_tasks() -> Iterable[dict[str, Any]]:
    for prefix, (kind, document) in KINDS.items():
        for language in LANGUAGES[prefix]:
            where = [["kind", "=", document]]
            yield {
                "name": f"{prefix}_{language}",
                "kind": kind,
                "language": language,
                "max_tokens": 160,
                "where": where,
            }


def _question_tasks() -> Iterable[dict[str, Any]]:
    for name, question in QUESTIONS.items():
        # A comparison with null lets nothing pass: only documents whose answer is known are asked.
        where = [[name, "!=", ""]]
        yield {"name": name, "kind": "answer", "language": "en", "question": question, "max_tokens": 48, "where": where}


def _write(path: Path, document: dict[str, Any]) -> None:
    # ${…} and $$ mean something in job files.
    path.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False).replace("$", "$$"), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo.quality", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="model folder (default: the one that ships)")
    parser.add_argument(
        "--dir", type=Path, default=Path("build/demo-quality"), help="where corpus, table and scores go"
    )
    parser.add_argument("--backend", choices=("native", "transformers", "vllm"), default="native")
    parser.add_argument("--seed", type=int, default=SEED, help="of the world that is measured on")
    parser.add_argument("--reports", type=int, default=500)
    parser.add_argument("--long-reports", type=int, default=100, help="of 900 to 1,000 words, besides")
    parser.add_argument("--notes", type=int, default=400)
    parser.add_argument("--scenes", type=int, default=300)
    options = parser.parse_args(arguments)
    measure(
        options.dir,
        options.model,
        options.backend,
        reports=options.reports,
        notes=options.notes,
        scenes=options.scenes,
        long_reports=options.long_reports,
        seed=options.seed,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

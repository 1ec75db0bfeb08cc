"""Small tables, references and evaluation files: as a run and a person would leave them, and no Ray."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.evaluate import evaluate_file
from pipelines.schema import OUTPUT

from .tables import row

SENTENCES = {
    "de": "Der Hafen wurde im zwölften Jahrhundert von {} Kaufleuten aus dem Norden gebaut und später erweitert.",
    "en": "The harbour was built in the twelfth century by {} merchants from the north and extended later.",
    "fr": "Le port fut construit au douzième siècle par {} marchands venus du nord et agrandi plus tard.",
    "zh": "这个港口是十二世纪由{}位来自北方的商人建造的，后来又扩建了。",
}


def sentence(number: int, language: str = "en") -> str:
    """A sentence of its own for each document and language."""
    return SENTENCES[language].format(f"{number * 7919 % 1000}")


def output(number: int, task: str, text: str | None, **values: Any) -> dict[str, Any]:
    """A row of a table: ok with a text, failed without."""
    made = row(number, **{"task": task, "status": "ok" if text is not None else "failed", "text": text, **values})
    made.pop("lang")
    made["key"] = values.get("key", f"{task}-{number}")
    if text is None and made.get("error_code") is None:
        made["error_code"] = "engine_crash"
    return made


def write_rows(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A table of `rows`, several files for each task, rows not in the order of their ids."""
    for zone in ("results", "errors"):
        mine = [made for made in rows if (made["status"] == "ok") == (zone == "results")]
        for task in sorted({made["task"] for made in mine}) or ["none"]:
            found = [made for made in mine if made["task"] == task]
            for part in range(2):
                path = folder / zone / task / f"part-{part}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_pylist(found[part::2][::-1], schema=OUTPUT), path, row_group_size=7)
    return folder


def write_references(path: Path, columns: dict[str, list[Any]]) -> Path:
    """A Parquet file with `id` and `columns`."""
    count = len(next(iter(columns.values())))
    table = pa.table({"id": [f"doc-{number}" for number in range(count)], **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=11)
    return path


def write_file(folder: Path, **keys: Any) -> Path:
    """An evaluation file of `folder`/table and `folder`/references.parquet; a key of None is left out."""
    content = {
        "name": "test",
        "table": {"path": str(folder / "table")},
        "references": {"path": str(folder / "references.parquet"), "id": "id"},
        "tasks": [{"name": "to_de", "reference": "de"}],
        "bootstrap": {"samples": 200},
        "checks": False,
        "output": {"path": str(folder / "out")},
        **keys,
    }
    path = folder / "evaluation.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    )
    return path


def evaluated(folder: Path, compare: Path | None = None, **keys: Any) -> dict[str, Any]:
    """What evaluation.json holds of a file with `keys`."""
    evaluate_file(write_file(folder, **keys), compare=None if compare is None else str(compare), as_json=False)
    return json.loads((folder / "out" / "evaluation.json").read_text())


def later(days: int) -> datetime.datetime:
    """A moment after the other rows were made."""
    return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(days=days)

"""Checks without references: each planted fault is found, by key, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .evaluations import evaluated, output, sentence, write_rows

COUNT = 30
ALONE = {"references": None, "tasks": None, "checks": True}

LONG = (
    "Im Frühjahr kamen die ersten Schiffe, beladen mit Korn, Salz und feinem Tuch. Niemand fragte damals, woher die "
    "Waren stammten oder wem sie einmal gehört hatten. Auf dem Markt stritten sich Händler um jeden Pfennig, während "
    "Kinder zwischen den Ständen Fangen spielten. Abends wurde es still; nur aus dem Wirtshaus drangen "
    "noch Stimmen und Musik."
)
PLANTED = {
    2: ("wrong_language", sentence(2, "fr")),
    5: ("wrong_language", sentence(5, "en") + " That is not what was asked for."),
    7: ("empty", ""),
    8: ("empty", " \n"),
    11: ("looping", "Der Hafen ist alt und schön. " * 12),
    13: ("odd_length", LONG),
}


def long(number: int, language: str) -> str:
    """Two sentences of a document of its own."""
    return sentence(number, language) + " " + sentence(number + 500, language)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        output(n, "to_de", PLANTED[n][1] if n in PLANTED else long(n, "de"), kind="translate", language="de")
        for n in range(COUNT)
    ]
    rows[17]["finish_reason"], rows[18]["truncated"] = "length", True
    rows.append(output(99, "to_de", None, kind="translate", language="de"))
    summaries = [sentence(n) if n else long(n, "en") for n in range(COUNT)]
    rows += [output(n, "short", text, kind="summarize", language=None) for n, text in enumerate(summaries)]
    write_rows(tmp_path / "table", rows)
    texts = [f"Ships came. {long(n, 'en')} Nobody wrote down what they carried." for n in range(COUNT)]
    texts[13] = "Ships came. Nobody knows what they had carried."
    ids = [f"doc-{n}" for n in range(COUNT)]
    # An id that stands in the source twice: its first row is the document.
    pq.write_table(pa.table({"id": [*ids, "doc-0"], "body": [*texts, "no"]}), tmp_path / "documents.parquet")
    return tmp_path


def source(folder: Path) -> dict[str, str]:
    return {"path": str(folder / "documents.parquet"), "id": "id", "text": "body"}


def test_planted_faults_are_found_and_nothing_else(folder: Path, capsys) -> None:
    found = evaluated(folder, **{**ALONE, "checks": {"examples": 10}}, source=source(folder))
    by_task = {task["task"]: task for task in found["checks"]}
    german = by_task["to_de"]
    assert (german["rows"], german["checked"], german["not_made"]) == (COUNT, COUNT, 1)
    seen = {name: [e["document_id"] for e in check["examples"]] for name, check in german["checks"].items()}
    wanted = {name: [f"doc-{n}" for n, (planted, _) in PLANTED.items() if planted == name] for name in seen}
    wanted |= {"cut": ["doc-17"], "input_cut": ["doc-18"]}
    assert seen == {name: sorted(ids) for name, ids in wanted.items()}
    assert german["checks"]["wrong_language"]["examples"][0] == {
        "key": "to_de-2", "document_id": "doc-2", "why": "looks like fr",
    }  # fmt: skip
    assert german["checks"]["wrong_language"]["looked_at"] == COUNT - 2, "an empty text is in no language"
    text = " ".join(capsys.readouterr().out.split())
    assert "language 2 (7.1%) 28 doc-2 (looks like fr); doc-5" in text
    assert not found["tasks"]
    assert not (folder / "out" / "evaluation.png").exists(), "there is nothing to draw"


def test_copies_of_the_document(folder: Path) -> None:
    found = evaluated(folder, **ALONE, source=source(folder))
    short = next(task for task in found["checks"] if task["task"] == "short")
    assert short["checks"]["copied"]["found"] == COUNT - 1, "all but the one whose document is another text"
    assert short["figures"]["copied_mean"] > 0.95
    assert 0.2 < short["figures"]["length_ratio_median"] < 0.5
    assert short["checks"]["wrong_language"] == {
        "found": 0, "looked_at": 0, "examples": [], "note": "not checked: the task names no language",
    }  # fmt: skip
    german = next(task for task in found["checks"] if task["task"] == "to_de")
    assert german["checks"]["copied"]["found"] == 0
    assert "copied" not in evaluated(folder, **ALONE)["checks"][0]["checks"], "without a source nothing is said of it"


def test_a_task_of_which_nothing_was_made_is_shown(folder: Path, capsys) -> None:
    rows = [output(n, "to_de", None, kind="translate", language="de\x1b[2J") for n in range(4)]
    rows += [output(n, "short", sentence(n), language="en") for n in range(3)]
    rows.append(output(3, "short", None, language="en"))
    write_rows(folder / "failed", rows)
    keys = {**ALONE, "table": {"path": str(folder / "failed")}}
    evaluated(folder, **keys, source=source(folder))
    out = capsys.readouterr().out
    text = " ".join(out.split())
    assert "not made 4 (100.0%) 4 rejected or failed" in text and "not made 1 (25.0%) 4" in text
    assert "\x1b" not in out


def test_what_found_nothing_is_of_what_was_looked_at(folder: Path, capsys) -> None:
    text = "A harbour and its merchants, who traded in salt and in cloth."
    write_rows(folder / "few", [output(n, "short", text if n > 50 else "", language="en") for n in range(50, 60)])
    ids = pa.table({"id": [f"doc-{n}" for n in range(50, 53)], "body": [long(n, "en") for n in range(3)]})
    pq.write_table(ids, folder / "documents.parquet")
    evaluated(folder, **ALONE, table={"path": str(folder / "few")}, source=source(folder))
    rest = " ".join(capsys.readouterr().out.split())
    assert "0 10 cut, input cut" in rest and "0 9 loops, language" in rest and "0 2 copied, length" in rest


def test_a_source_without_these_documents_is_said(folder: Path, capsys) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"x"], pa.binary()).buffers())
    pq.write_table(pa.table({"id": ["doc-0", "elsewhere"], "body": bad}), folder / "documents.parquet")
    found = evaluated(folder, **ALONE, source=source(folder))
    assert all(task["checks"]["copied"]["looked_at"] == 1 for task in found["checks"]), "a text that is no UTF-8"
    pq.write_table(pa.table({"id": ["elsewhere"], "body": ["x"]}), folder / "documents.parquet")
    found = evaluated(folder, **ALONE, source=source(folder))
    assert {task["checks"]["copied"]["note"] for task in found["checks"]} == {
        "not checked: source has no text of these documents"
    }
    assert "source has no text of these" in " ".join(capsys.readouterr().out.split())


def test_large_tasks_are_sampled_and_it_is_always_the_same_sample(folder: Path, capsys) -> None:
    keys = {**ALONE, "checks": {"rows": 10}}
    first, second = evaluated(folder, **keys), evaluated(folder, **keys)
    assert first["checks"] == second["checks"]
    assert {(task["rows"], task["checked"]) for task in first["checks"]} == {(COUNT, 10)}
    assert "a sample was looked at" in capsys.readouterr().out

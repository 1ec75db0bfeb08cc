"""`corpusmill evaluate`: which rows count, what is scored and compared, and what is said and written."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sacrebleu.metrics import BLEU, CHRF

from jobs.cli import main
from pipelines.errors import JobError, SourceError, TableError
from pipelines.schema import OUTPUT

from .evaluations import evaluated, later, output, sentence, write_file, write_references, write_rows

COUNT = 40


def call(capsys, *words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def translated(number: int) -> str:
    """An output that is right four times in five, and else some words short."""
    text = sentence(number, "de")
    return text if number % 5 else " ".join(text.split()[:-4])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table with one translation for each of COUNT documents, and their references."""
    write_rows(
        tmp_path / "table", [output(n, "to_de", translated(n), kind="translate", language="de") for n in range(COUNT)]
    )
    write_references(
        tmp_path / "references.parquet",
        {
            "de": [sentence(n, "de") for n in range(COUNT)],
            "domain": ["news" if n % 2 else None for n in range(COUNT)],
            "words": [n * 10 for n in range(COUNT)],
        },
    )
    return tmp_path


def test_scores_are_sacrebleus(folder: Path) -> None:
    found = evaluated(folder)
    [task] = found["tasks"]
    made, wanted = [translated(n) for n in range(COUNT)], [[sentence(n, "de") for n in range(COUNT)]]
    scores = task["overall"]["scores"]
    assert list(scores) == ["chrf", "bleu", "exact"], "the metrics of a translation"
    assert scores["bleu"]["score"] == pytest.approx(BLEU().corpus_score(made, wanted).score)
    assert scores["chrf"]["score"] == pytest.approx(CHRF().corpus_score(made, wanted).score)
    assert scores["exact"]["score"] == 80
    assert all(s["low"] <= s["score"] <= s["high"] and s["low"] < s["high"] for s in scores.values())
    assert task["overall"]["counts"] == {
        "references": COUNT, "outputs": COUNT, "missing": 0, "rejected": 0, "failed": 0, "empty": 0,
    }  # fmt: skip
    assert found["table"]["models"] == [
        {"model": "demo", "model_revision": "b" * 32, "backend": "native", "dtype": "float32", "rows": COUNT}
    ]
    assert task["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["packages"]["sacrebleu"] and found["file"]["text"].startswith("name: test")
    assert (folder / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_file_gives_the_same_numbers(folder: Path) -> None:
    first, second = evaluated(folder), evaluated(folder)
    assert first["tasks"] == second["tasks"]
    assert evaluated(folder, bootstrap={"samples": 200, "seed": 1})["tasks"] != first["tasks"]


def test_outputs_that_are_not_there_count_as_empty_and_are_reported(folder: Path) -> None:
    rows = [output(n, "to_de", translated(n), kind="translate", language="de") for n in range(3, COUNT)]
    rows[0] = output(3, "to_de", "  ", kind="translate", language="de")
    rows.append(output(0, "to_de", None, kind="translate", language="de"))
    rows.append(output(1, "to_de", None, kind="translate", language="de", status="rejected", error_code="too_long"))
    write_rows(folder / "fewer", rows)
    table = {"path": str(folder / "fewer")}
    made = ["", "", "", "  ", *(translated(n) for n in range(4, COUNT))]
    wanted = [sentence(n, "de") for n in range(COUNT)]
    overall = evaluated(folder, table=table)["tasks"][0]["overall"]
    assert overall["counts"] == {
        "references": COUNT, "outputs": COUNT - 3, "missing": 1, "rejected": 1, "failed": 1, "empty": 1,
    }  # fmt: skip
    assert overall["scored"] == COUNT
    assert overall["scores"]["chrf"]["score"] == pytest.approx(CHRF().corpus_score(made, [wanted]).score)
    overall = evaluated(folder, table=table, missing="skip")["tasks"][0]["overall"]
    assert overall["scored"] == COUNT - 3
    assert overall["counts"]["missing"] == 1
    assert overall["scores"]["chrf"]["score"] == pytest.approx(CHRF().corpus_score(made[3:], [wanted[3:]]).score)


def test_the_newest_row_of_a_document_counts(folder: Path) -> None:
    rows = [output(n, "to_de", "alt", kind="translate", language="de") for n in range(COUNT)]
    rows += [
        output(n, "to_de", translated(n), kind="translate", language="de", created_at=later(1), model_revision="c" * 32)
        for n in range(1, COUNT)
    ]
    # A document that stands in the source twice: the second is rejected, and is no output of the first.
    rows.append(output(5, "to_de", None, status="rejected", error_code="duplicate_id", created_at=later(2)))
    # The newest text of this document made it fail.
    rows.append(output(6, "to_de", None, kind="translate", created_at=later(2)))
    write_rows(folder / "table", rows)
    found = evaluated(folder)
    assert found["tasks"][0]["overall"]["counts"]["failed"] == 1
    assert found["tasks"][0]["overall"]["scores"]["exact"]["score"] == pytest.approx(100 * (COUNT * 0.8 - 1) / COUNT)
    assert found["table"]["superseded_rows"] == COUNT
    assert any("2 models" in line for line in found["warnings"])
    old = evaluated(folder, table={"path": str(folder / "table"), "filter": [["model_revision", "=", "b" * 32]]})
    assert old["tasks"][0]["overall"]["counts"]["missing"] == 0
    assert old["tasks"][0]["overall"]["scores"]["exact"]["score"] == 0


def test_slices(folder: Path) -> None:
    found = evaluated(folder, by=["domain", {"column": "words", "edges": [100, 300]}])
    slices = {(s["by"], s["value"]): s for s in found["tasks"][0]["slices"]}
    assert {name: s["scored"] for name, s in slices.items()} == {
        ("domain", "(none)"): 20, ("domain", "news"): 20,
        ("words", "below 100"): 10, ("words", "100 to 300"): 20, ("words", "300 or more"): 10,
    }  # fmt: skip
    numbers = [n for n in range(COUNT) if n % 2]
    news = CHRF().corpus_score([translated(n) for n in numbers], [[sentence(n, "de") for n in numbers]])
    assert slices["domain", "news"]["scores"]["chrf"]["score"] == pytest.approx(news.score)
    own = evaluated(folder, tasks=[{"name": "to_de", "reference": "de", "metrics": ["exact"], "slices": "domain"}])
    assert [s["value"] for s in own["tasks"][0]["slices"]] == ["(none)", "news"]


def test_several_references_in_columns_and_in_lists(folder: Path) -> None:
    write_references(
        folder / "references.parquet",
        {
            "de": [sentence(n, "de") for n in range(COUNT)],
            "more": [[translated(n), None] if n % 2 else None for n in range(COUNT)],
            "sparse": [sentence(n, "de") if n < 10 else None for n in range(COUNT)],
        },
    )
    tasks = [{"name": "to_de", "reference": ["de", "more"], "metrics": ["exact"]}]
    [task] = evaluated(folder, tasks=tasks)["tasks"]
    assert task["overall"]["scores"]["exact"]["score"] == 90, "right, or as the second reference says"
    [task] = evaluated(folder, tasks=[{"name": "to_de", "reference": "sparse"}])["tasks"]
    assert (task["overall"]["counts"]["references"], task["without_reference"]) == (10, 30)


def test_averages_over_the_tasks_of_a_kind(folder: Path) -> None:
    rows = [
        output(n, f"to_{language}", sentence(n if n % 3 else 0, language), kind="translate", language=language)
        for n in range(COUNT) for language in ("de", "fr", "zh")
    ]  # fmt: skip
    rows += [output(n, "short", sentence(n), kind="summarize", language="en") for n in range(COUNT)]
    write_rows(folder / "table", rows)
    columns = {name: [sentence(n, name) for n in range(COUNT)] for name in ("de", "fr", "zh", "en")}
    write_references(folder / "references.parquet", columns)
    tasks = [{"name": f"to_{name}", "reference": name} for name in ("de", "fr", "zh")]
    found = evaluated(folder, tasks=[*tasks, {"name": "short", "reference": "en"}])
    assert "tok:zh" in found["tasks"][2]["signatures"]["bleu"]
    assert list(found["tasks"][3]["overall"]["scores"]) == ["rouge1", "rougeL", "chrf", "exact"]
    [average] = found["averages"]
    assert (average["kind"], average["tasks"]) == ("translate", ["to_de", "to_fr", "to_zh"])
    for metric in ("chrf", "bleu", "exact"):
        mean = sum(task["overall"]["scores"][metric]["score"] for task in found["tasks"][:3]) / 3
        assert average["scores"][metric]["score"] == pytest.approx(mean)
    # The three tasks are right on the same documents, so that the mean is as uncertain as each of them.
    exact = found["tasks"][0]["overall"]["scores"]["exact"]
    assert average["scores"]["exact"] == pytest.approx(exact)


def test_comparing_finds_a_planted_difference(folder: Path, capsys) -> None:
    rows = [
        output(n, "to_de", sentence(n, "de") if n % 2 else "nein", kind="translate", language="de")
        for n in range(COUNT)
    ]
    write_rows(folder / "other", rows)
    found = evaluated(folder, compare=folder / "other", by="domain")
    [task] = found["tasks"]
    chrf = task["overall"]["compared"]["chrf"]
    assert chrf["significant"] and 0 < chrf["low"] < chrf["delta"] < chrf["high"] and chrf["p"] < 0.02
    assert chrf["this"] - chrf["other"] == pytest.approx(chrf["delta"])
    assert task["slices"][0]["compared"]["chrf"]["delta"] > 0
    assert found["compared_with"] == str(folder / "other")
    assert found["other_table"]["outputs"] == COUNT
    text = capsys.readouterr().out
    assert "to_de: chrf is significantly better, by" in text
    assert "would look significant by chance alone" in " ".join(text.split())
    back = evaluated(folder, compare=folder / "table", table={"path": str(folder / "other")})
    assert "to_de: chrf is significantly worse" in capsys.readouterr().out
    assert back["tasks"][0]["overall"]["compared"]["chrf"]["p"] == chrf["p"]


def test_a_table_does_not_differ_from_itself(folder: Path, capsys) -> None:
    found = evaluated(folder, compare=folder / "table")
    compared = found["tasks"][0]["overall"]["compared"]
    assert {(c["delta"], c["p"], c["significant"]) for c in compared.values()} == {(0, 1, False)}
    assert "Not significant: to_de chrf, to_de bleu, to_de exact." in capsys.readouterr().out


def test_skipping_compares_the_same_documents(folder: Path) -> None:
    rows = [output(n, "to_de", translated(n), kind="translate", language="de") for n in range(10, COUNT)]
    write_rows(folder / "fewer", rows)
    overall = evaluated(folder, compare=folder / "fewer", missing="skip")["tasks"][0]["overall"]
    assert overall["scored"] == COUNT - 10
    assert overall["other_counts"]["missing"] == 10
    assert overall["compared"]["chrf"]["delta"] == 0
    overall = evaluated(folder, compare=folder / "fewer")["tasks"][0]["overall"]
    assert overall["compared"]["chrf"]["delta"] > 0


def test_two_models_in_the_other_table_are_said(folder: Path) -> None:
    rows = [
        output(n, "to_de", translated(n), kind="translate", language="de", model_revision=("b" if n % 2 else "c") * 32)
        for n in range(COUNT)
    ]
    write_rows(folder / "other", rows)
    [warning] = evaluated(folder, compare=folder / "other")["warnings"]
    assert f"in {folder / 'other'} come from 2 models" in warning and "table.filter" not in warning


def test_rows_that_are_not_published_are_said(folder: Path, capsys) -> None:
    path = folder / "table" / "_work" / "run" / "a.parquet"
    path.parent.mkdir(parents=True)
    rows = [output(COUNT, "to_de", "neu", kind="translate", language="de")]
    pq.write_table(pa.Table.from_pylist(rows, schema=OUTPUT), path)
    found = evaluated(folder, bootstrap={"samples": 10, "level": 0.999})
    [warning] = found["warnings"]
    assert (
        "rows that no run has published yet (files in _work: 1) are not looked at" in warning
        and found["table"]["outputs"] == COUNT
    )
    assert "(99.9% intervals)" in capsys.readouterr().out


def test_without_resampling_nothing_is_called_insignificant(folder: Path, capsys) -> None:
    evaluated(folder, compare=folder / "table", bootstrap={"samples": 0})
    text = " ".join(capsys.readouterr().out.split())
    assert "Nothing was tested" in text and "significant" not in text


def test_one_document_shows_no_difference(folder: Path, capsys) -> None:
    write_references(folder / "references.parquet", {"de": [sentence(0, "de")]})
    write_rows(folder / "other", [output(0, "to_de", "nein", kind="translate", language="de")])
    [task] = evaluated(folder, compare=folder / "other")["tasks"]
    assert {(c["p"], c["significant"]) for c in task["overall"]["compared"].values()} == {(1, False)}


def test_references_of_other_documents_are_no_zero(folder: Path) -> None:
    rows = [output(n, "to_de", translated(n), kind="translate", language="de") for n in range(COUNT, 2 * COUNT)]
    write_rows(folder / "others", rows)
    said = (
        r"references.id: .*/others holds none of these documents for task to_de: an id is 'doc-0' in .* and 'doc-40' in"
    )
    for keys in ({"table": {"path": str(folder / "others")}}, {"compare": folder / "others"}):
        with pytest.raises(JobError, match=said):
            evaluated(folder, **keys)


def test_a_task_of_which_nothing_is_left_is_said_and_spoils_no_average(folder: Path) -> None:
    tasks = ("a", "b", "none")
    write_rows(
        folder / "table",
        [
            output(n, task, None if task == "none" else translated(n), kind="translate", language=None)
            for task in tasks for n in range(COUNT)
        ],
    )  # fmt: skip
    found = evaluated(folder, missing="skip", tasks=[{"name": task, "reference": "de"} for task in tasks])
    assert found["warnings"] == [
        "task none: missing: skip leaves no document to score, so it stands in no average either"
    ]
    [average] = found["averages"]
    assert average["tasks"] == ["a", "b"] and set(average["scores"]) == {"chrf", "bleu", "exact"}


def test_an_error_is_no_output_without_a_document(folder: Path) -> None:
    rows = [output(n, "to_de", None, kind="translate", language="de") for n in range(COUNT, COUNT + 3)]
    rows += [output(n, "to_de", translated(n), kind="translate", language="de") for n in range(COUNT)]
    write_rows(folder / "table", rows)
    assert evaluated(folder)["tasks"][0]["without_document"] == 0


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    path = write_file(folder, checks=True, by=["domain"])
    code, out, err = call(capsys, "evaluate", str(path), "--compare", str(folder / "table"))
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if str(folder) not in line]
    assert all(len(line) <= width for line in lines), max(lines, key=len)
    for said in ("95% intervals", "By domain", "Compared with", "Checks without references", "evaluation.json"):
        assert said in out
    code, out, _ = call(capsys, "evaluate", str(path), "--json")
    assert code == 0 and json.loads(out)["tasks"][0]["task"] == "to_de"


def test_what_others_wrote_does_not_steer_the_terminal(folder: Path, capsys) -> None:
    rows = [output(n, "to_de", "", kind="translate", language="de", document_id=f"\x1b[31mdoc\n{n}") for n in range(3)]
    write_rows(folder / "table", [*rows, output(0, "to_de", translated(0), kind="translate", language="de")])
    columns = {"de": [sentence(n, "de") for n in range(4)], "domain": ["\x1b[2J", "\u202eevil", "$x^2$ 新闻", "a\nb"]}
    write_references(folder / "references.parquet", columns)
    evaluated(folder, by="domain", checks=True)
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\u202e" not in text
    assert r"\x1b[2J" in text and r"\x1b[31mdoc 0 (no text)" in " ".join(text.split())


def test_a_table_without_rows(folder: Path) -> None:
    write_rows(folder / "empty", [])
    for zone in ("results", "errors"):
        path = folder / "empty" / zone / "to_de" / "part.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(OUTPUT.empty_table(), path)
    table = {"path": str(folder / "empty")}
    found = evaluated(folder, table=table, references=None, tasks=None, checks=True)
    assert found["checks"] == [] and found["table"]["outputs"] == 0
    with pytest.raises(JobError, match="has no task to_de; it holds no rows"):
        evaluated(folder, table=table)


def test_one_document_and_no_resampling(folder: Path) -> None:
    write_references(folder / "references.parquet", {"de": [sentence(0, "de")]})
    [task] = evaluated(folder, bootstrap={"samples": 0})["tasks"]
    assert task["without_document"] == COUNT - 1
    assert task["overall"]["scores"]["chrf"]["low"] is None
    [task] = evaluated(folder, bootstrap={"samples": 10})["tasks"]
    chrf = task["overall"]["scores"]["chrf"]
    assert chrf["low"] == chrf["high"] == chrf["score"]


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"table": {"path": "nowhere-at-all"}}, TableError, "there is no table here"),
        ({"tasks": [{"name": "to_fr", "reference": "de"}]}, JobError, r"tasks\[0\].name: .* no task to_fr; it holds"),
        ({"tasks": [{"name": "to_de", "reference": "dee"}]}, SourceError, r"tasks\[0\].reference: .*did you mean de\?"),
        ({"by": ["domian"]}, SourceError, r"by\[0\]: .* no column 'domian'; did you mean domain"),
        ({"by": [{"column": "domain", "edges": [1]}]}, SourceError, "by domain: edges need a column of numbers"),
        ({"references": {"path": "nowhere-at-all", "id": "id"}}, SourceError, "references.path: .*nowhere-at-all"),
        ({"references": {"path": "REFERENCES", "id": "doc"}}, SourceError, "references.id: .* no column 'doc'"),
        ({"table": {"path": "TABLE", "filter": [["run", "=", "x"]]}}, JobError, "table.filter: .* no column 'run'"),
        ({"table": {"path": "TABLE", "filter": [["job", "=", "x"]]}}, JobError, "table.filter: no row of .* passes it"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(folder: Path, keys: dict, error: type[Exception], said: str) -> None:
    places = {"REFERENCES": folder / "references.parquet", "TABLE": folder / "table"}
    for block in keys.values():
        if isinstance(block, dict) and block.get("path") in places:
            block["path"] = str(places[block["path"]])
    with pytest.raises(error, match=said) as caught:
        evaluated(folder, **keys)
    assert "\n" not in str(caught.value)


def test_references_that_stand_there_twice_are_refused(folder: Path) -> None:
    path = folder / "references.parquet"
    rows = pq.read_table(path)
    pq.write_table(pa.concat_tables([rows, rows.slice(3, 2)]), path)
    with pytest.raises(
        SourceError, match=r"'doc-3' stands there twice \(.*\), and so does 1 more; each document needs one"
    ):
        evaluated(folder)
    nothing = pa.table({"id": pa.array([None], pa.string()), "de": ["x"], "domain": ["x"], "words": [1]})
    pq.write_table(pa.concat_tables([rows, nothing]), path)
    with pytest.raises(SourceError, match=r"references.id: 1 null in column 'id'"):
        evaluated(folder)


def test_references_that_are_no_text_are_named(folder: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    pq.write_table(pa.table({"id": ["doc-0"], "de": bad}), folder / "references.parquet")
    with pytest.raises(SourceError, match=r"tasks\[0\].reference: column 'de' is not valid UTF-8"):
        evaluated(folder)


def test_files_of_older_versions_and_files_of_no_table(folder: Path) -> None:
    path = next((folder / "table" / "results").rglob("*.parquet"))
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["truncated", "backend"]), path)
    assert evaluated(folder)["tasks"][0]["overall"]["counts"]["outputs"] == COUNT
    pq.write_table(pa.table({"document_id": ["doc-0"], "text": ["x"]}), path)
    with pytest.raises(TableError, match="column task is missing; this is not a corpusmill table"):
        evaluated(folder)


def test_too_many_values_to_break_down_by(folder: Path) -> None:
    columns = {"de": ["x"] * 150, "words": list(range(150))}
    write_references(folder / "references.parquet", columns)
    with pytest.raises(SourceError, match=r"by words: 150 different values are too many .* give edges"):
        evaluated(folder, by=["words"])


def test_ids_may_be_numbers_and_files_a_folder(tmp_path: Path) -> None:
    rows = [output(n, "q", str(n), kind="answer", document_id=str(n)) for n in range(20)]
    write_rows(tmp_path / "table", rows)
    for part in range(2):
        path = tmp_path / "answers" / f"part-{part}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": range(10 * part, 10 * part + 10), "a": range(10 * part, 10 * part + 10)}), path)
    references = {"path": str(tmp_path / "answers"), "id": "id"}
    [task] = evaluated(tmp_path, references=references, tasks=[{"name": "q", "reference": "a"}])["tasks"]
    assert task["overall"]["scores"]["exact"]["score"] == 100
    assert list(task["overall"]["scores"]) == ["exact", "chrf"]


def test_any_fsspec_url(folder: Path) -> None:
    import fsspec

    here = evaluated(folder)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder / "table"), "/evaluate-test/table", recursive=True)
    memory.put(str(folder / "references.parquet"), "/evaluate-test/references/part.parquet")
    try:
        path = write_file(
            folder,
            table={"path": "memory://evaluate-test/table"},
            references={"path": "memory://evaluate-test/references/*.parquet", "id": "id"},
            output={"path": "memory://evaluate-test/out"},
        )
        from jobs.evaluate import evaluate_file

        evaluate_file(path, compare=None, as_json=False)
        there = json.loads(memory.cat_file("/evaluate-test/out/evaluation.json"))
        assert memory.cat_file("/evaluate-test/out/evaluation.png").startswith(b"\x89PNG")
    finally:
        memory.rm("/evaluate-test", recursive=True)
    assert there["tasks"] == here["tasks"]

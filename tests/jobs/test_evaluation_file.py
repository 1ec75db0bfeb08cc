"""The evaluation file: what is read, what is said about a wrong one, and the examples."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.evaluate import evaluate_file
from jobs.spec import JobFileError, load_job, load_spec
from pipelines.errors import JobError
from pipelines.evaluation.job import DEFAULT_METRICS, EvaluationSpec
from workers.tasks import DEFAULT_PROMPTS

EXAMPLES = Path(__file__).parents[2] / "jobs" / "examples"
GOOD = """\
name: quality
table: {path: table/}
references:
  path: references/*.parquet
  id: doc_id
tasks:
  - {name: summary, reference: [short, other], metrics: rouge1, slices: kind}
  - {name: to_zh, reference: zh, tokenize: zh, slices: [{column: words, edges: [10, 20]}]}
by: [domain, {column: words, edges: [100, 300, 1000]}]
output: {path: out/}
"""


def load(tmp_path: Path, text: str) -> EvaluationSpec:
    path = tmp_path / "evaluation.yaml"
    path.write_text(text, encoding="utf-8")
    return load_spec(path, EvaluationSpec)[0]


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        load(tmp_path, text)
    assert caught.value.exit_code == 2
    assert all("\n" not in line for line in caught.value.problems)
    return [line.removeprefix(f"{tmp_path}/") for line in caught.value.problems]


def test_a_good_file(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD)
    assert spec.tasks[0].reference == ("short", "other")
    assert spec.tasks[0].metrics == ("rouge1",)
    assert (spec.bootstrap.samples, spec.bootstrap.seed, spec.bootstrap.level) == (1000, 0, 0.95)
    assert spec.missing == "empty" and spec.checks is not None and spec.checks.rows == 20_000
    assert [piece.column for piece in spec.slices["summary"]] == ["domain", "words", "kind"]
    assert [piece.edges for piece in spec.slices["to_zh"]] == [(), (10, 20)], "a task's own edges win"


def test_every_kind_has_metrics() -> None:
    assert DEFAULT_METRICS.keys() == DEFAULT_PROMPTS.keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("id: doc_id", "ids: doc_id"), "evaluation.yaml:5: references.ids: unknown key; did you mean id?"),
        (("name: to_zh", "nmae: to_zh"), "evaluation.yaml:8: tasks[1].nmae: unknown key; did you mean name?"),
        (("metrics: rouge1", "metrics: [rouge9]"), "evaluation.yaml:7: tasks[0].metrics[0]: expected chrf, chrf++"),
        (("metrics: rouge1", "metrics: []"), "tasks[0].metrics: expected at least one entry"),
        (("reference: zh", "reference: []"), "evaluation.yaml:8: tasks[1].reference: expected at least one entry"),
        (("tokenize: zh", "tokenize: zhh"), "tasks[1].tokenize: expected auto, 13a, intl, char, zh, ja-mecab"),
        (("[100, 300, 1000]", "[100, 50]"), "evaluation.yaml:9: by[1].edges: edges must rise"),
        (("[100, 300, 1000]", "[a]"), "evaluation.yaml:9: by[1].edges[0]: expected a number, found 'a'"),
        (("[domain, {column", "[domain, {colum"), "evaluation.yaml:9: by[1].colum: unknown key; did you mean column?"),
        (("by: [domain,", "by: [7,"), "evaluation.yaml:9: by[0]: expected a column's name, or"),
        (("name: summary", "name: to_zh"), "task to_zh stands in tasks twice"),
        (("table: {path: table/}", ""), "evaluation.yaml:1: name what to evaluate: either table"),
        (("table: {path: table/}", "table: {path: t}\njob: job.yaml"), "name what to evaluate: either table"),
        (("output: {path: out/}", ""), "evaluation.yaml:1: output: is missing; it needs path"),
        (("output:", "bootstrap: {samples: -1, level: 2}\noutput:"), "bootstrap.samples: expected at least 0"),
        (("output:", "checks: maybe\noutput:"), "evaluation.yaml:10: checks: expected true, false, or a block"),
        (("output:", "checks: {loops: 1}\noutput:"), "evaluation.yaml:10: checks.loops: unknown key; did you mean"),
        (("output:", "source: {path: x, id: y}\noutput:"), "evaluation.yaml:10: source.text: is missing"),
        (("output:", "missing: drop\noutput:"), "missing: expected empty or skip, found 'drop'"),
        (("references/*", "${NOT_SET_ANYWHERE}"), "evaluation.yaml:4: references.path: the environment variable"),
    ],
)  # fmt: skip
def test_what_is_expected(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    assert change[0] in GOOD
    lines = problems(tmp_path, GOOD.replace(*change))
    assert any(said in line for line in lines), lines


def test_references_and_checks_may_each_be_left_out(tmp_path: Path) -> None:
    head = "name: quality\ntable: {path: t}\noutput: {path: out}\n"
    assert load(tmp_path, head).checks is not None
    assert load(tmp_path, GOOD + "checks: false\n").checks is None
    assert load(tmp_path, GOOD + "checks: {rows: 5}\n").checks.rows == 5
    assert "nothing to do" in problems(tmp_path, head + "checks: false\n")[0]
    assert "references is missing" in problems(tmp_path, head + "by: [x]\n")[0]
    assert "tasks is missing" in problems(tmp_path, head + "references: {path: r, id: x}\n")[0]


def test_the_command_line_says_it_in_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "evaluation.yaml").write_text(GOOD.replace("table/", str(tmp_path / "none")))
    for words, said in (
        (["evaluate"], "Missing argument 'JOB'"),
        (["evaluate", "no-such.yaml"], "no-such.yaml: no such file"),
        (["evaluate", str(tmp_path / "evaluation.yaml")], "there is no table here"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        out, err = capsys.readouterr()
        assert caught.value.code in (2, 3) and out == ""
        assert err.startswith("corpusmill: ") and said in err and err.count("\n") == 1, err


def test_a_missing_package_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evaluation.yaml").write_text(GOOD)
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(
        JobError, match=r"^the check of languages needs the package py3langid: pip install 'corpusmill\[ev"
    ):
        evaluate_file(tmp_path / "evaluation.yaml", compare=None, as_json=False)


@pytest.mark.parametrize(("module", "said"), [("matplotlib", "the picture needs"), ("regex", "cider needs")])
def test_packages_of_the_end_are_checked_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, said: str
) -> None:
    (tmp_path / "evaluation.yaml").write_text(GOOD)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(JobError, match=f"^{said} the package {module}"):
        evaluate_file(tmp_path / "evaluation.yaml", compare=None, as_json=False)


def test_the_run_job_is_checked_first(tmp_path: Path) -> None:
    job = "name: a\nmodel: {path: m}\nsource: {path: d, id: id, text: t}\noutput: {path: o}\n"
    (tmp_path / "job.yaml").write_text(job + "tasks: [{name: summery, kind: summarize}]\n")
    path = tmp_path / "evaluation.yaml"
    path.write_text(GOOD.replace("table: {path: table/}", f"job: {tmp_path / 'job.yaml'}"))
    with pytest.raises(JobError, match=r"tasks\[0\].name: .*job.yaml has no task summary; it has summery"):
        evaluate_file(path, compare=None, as_json=False)
    (tmp_path / "job.yaml").write_text(job)
    with pytest.raises(JobFileError, match=r"job.yaml:1: tasks: is missing"):
        evaluate_file(path, compare=None, as_json=False)


@pytest.mark.parametrize("name", ["wmt24pp", "flores", "coco-captions"])
def test_the_examples_fit_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MODEL_PATH", "DATA", "TABLES"):
        monkeypatch.setenv(variable, "x")
    spec, text = load_spec(EXAMPLES / f"evaluate-{name}.yaml", EvaluationSpec)
    assert spec.job == f"jobs/examples/{name}.yaml"
    job = load_job(EXAMPLES / f"{name}.yaml").job
    assert [task.name for task in spec.tasks] == [task.name for task in job.tasks]
    assert spec.references is not None and spec.references.path == job.source.path
    published = {"wmt24pp": "49.2", "flores": "41.8", "coco-captions": "105.4"}[name]
    assert f"4B-4B {published}" in text

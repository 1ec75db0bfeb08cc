"""The job file: what is read, and what is said about a wrong one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.environment import expand
from jobs.spec import JobFileError, load_job

GOOD = """\
name: nightly
model: {path: google/t5gemma-2-270m-270m}
source:
  path: s3://corpus/documents/
  id: doc_id
  text: body
tasks:
  - {name: summary, kind: summarize, language: en}
output: {path: table/}
"""


def problems(tmp_path: Path, text: str | bytes, name: str = "job.yaml") -> list[str]:
    """What is said about a job file, without the folder it stands in."""
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JobFileError) as caught:
        load_job(path)
    assert caught.value.exit_code == 2
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all("\n" not in line and line.startswith(str(path)) for line in caught.value.problems)
    return [line.removeprefix(f"{tmp_path}/") for line in caught.value.problems]


def load(tmp_path: Path, text: str):
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    return load_job(tmp_path / "job.yaml")


def test_a_good_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD)
    assert loaded.text == GOOD
    assert loaded.job.tasks[0].max_tokens == 256
    assert loaded.job.limits.max_input_tokens == 131072


def test_an_unknown_key_names_line_path_and_the_likely_key(tmp_path: Path) -> None:
    text = GOOD.replace("language: en", "langauge: en")
    assert problems(tmp_path, text) == ["job.yaml:8: tasks[0].langauge: unknown key; did you mean language?"]


def test_int8_is_the_native_backends(tmp_path: Path) -> None:
    model = "model: {path: google/t5gemma-2-270m-270m"
    assert load(tmp_path, GOOD.replace(model, f"{model}, dtype: int8")).job.model.dtype == "int8"
    [line] = problems(tmp_path, GOOD.replace(model, f"{model}, backend: transformers, dtype: int8"))
    assert line == "job.yaml:2: model.dtype: int8 is the native backend's; choose auto, float32 or bfloat16"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("device: auto", "device: 'cuda:1'", "vLLM takes the first GPU that its worker is given; say cuda"),
        (
            "tasks:",
            "workers: {gpus: 0.5}\ntasks:",
            "vllm backend takes nearly all memory of its GPU",
        ),
        ("language: en", "language: en, temperature: 2.5", "temperature 2.5; the vllm backend samples at 2 at most"),
    ],
)
def test_what_vllm_cannot_do_is_said_before_the_run(tmp_path: Path, old: str, new: str, said: str) -> None:
    model = "model: {path: google/t5gemma-2-270m-270m"
    text = GOOD.replace(model, f"{model}, backend: vllm, device: auto")
    assert load(tmp_path, text).job.model.backend == "vllm"
    [line] = problems(tmp_path, text.replace(old, new, 1))
    assert said in line


def test_a_key_like_no_other_gets_the_list(tmp_path: Path) -> None:
    [line] = problems(tmp_path, GOOD + "zzz: 1\n")
    assert line.startswith("job.yaml:10: zzz: unknown key; known here: name, model, source, tasks")


def test_everything_wrong_is_said_at_once_in_the_files_order(tmp_path: Path) -> None:
    text = (
        GOOD.replace("summarize", "summarise")
        .replace("id: doc_id", "id: 5")
        .replace("name: nightly", "name: a b")
        .replace("  path: s3", "  path: ${NOT_SET_ANYWHERE}/s3")
    )
    lines = problems(tmp_path, text + "workers: {max: many, gpus: some}\n")
    assert [line.split(": ")[0] for line in lines] == [f"job.yaml:{n}" for n in (1, 4, 5, 8, 10, 10)]
    assert "NOT_SET_ANYWHERE is not set" in lines[1]
    assert lines[2].endswith('source.id: expected text, found 5: write "5" in quotes')
    assert lines[3].endswith("found 'summarise'; did you mean summarize?")
    assert lines[4].endswith("workers.max: expected a whole number, found 'many'")
    assert lines[5].endswith("workers.gpus: expected auto or a number, found 'some'")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("output: {path: table/}", ""), "job.yaml:1: output: is missing; it needs path"),
        (("  id: doc_id\n", ""), "job.yaml:3: source.id: is missing"),
        (("  text: body\n", ""), "job.yaml:3: source: text and images are both missing"),
        (("language: en", "language: no"), 'which YAML reads as false: write "no" in quotes'),
        (("language: en", "language: klingonese"), "is not a language tag"),
        (("kind: summarize, language: en", "kind: translate"), "a task of kind translate needs language"),
        (("language: en", "max_tokens: 0"), "tasks[0].max_tokens: expected at least 1, found 0"),
        (("  text: body", "  text: body\n  filter: [[a, '=']]"), "source.filter[0]: expected three parts"),
        (("  text: body", "  text: body\n  filter: [[a, '~', 1]]"), "operator '~' on column a"),
        (("tasks:\n", "tasks: []\nxtasks:\n"), "job.yaml:7: tasks: expected at least one entry"),
        (("model: {", "model: 7 #"), "model: expected a block of `key: value` lines, found 7"),
        (("name: summary", "name: ../x"), "expected 1 to 64 small letters, digits and _, found '../x'"),
    ],
)
def test_what_is_expected(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    lines = problems(tmp_path, GOOD.replace(*change))
    assert any(said in line for line in lines), lines


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("[id, in, 5]", "source.filter[0]: in looks for id in a list of values"),
        ("[x, not in, ab]", "source.filter[0]: not in looks for x in a list of values"),
        ("[x, in, []]", "a list of one value or more"),
        ("[x, in, [1, a]]", "all text, all numbers"),
        ("[x, in, [true, 1]]", "all text, all numbers"),
        ("[x, in, [null]]", "a list of one value or more"),
        ("[x, in, [[1]]]", "all text, all numbers"),
        ("[x, '=', [1, 2]]", "source.filter[0]: = compares x with one value: text, a number, true or false, or a date"),
        ("[x, '=', null]", "= compares x with one value"),
        ("[x, '<', {a: 1}]", "< compares x with one value"),
        ("[x, '=', 1180591620717411303424]", "= compares x with one value"),
        ('[x, "=", "\\uD800"]', "source.filter[0][2]: holds half a character"),
    ],
)
def test_filters_that_could_not_be_asked(tmp_path: Path, condition: str, said: str) -> None:
    [line] = problems(tmp_path, GOOD.replace("  text: body", f"  text: body\n  filter: [{condition}]"))
    assert line.startswith("job.yaml:7: ") and said in line, line


@pytest.mark.parametrize(
    "condition",
    [
        "[x, in, [a, b]]",
        "[x, not in, [1, 2.5, null]]",
        "[x, '>=', 2026-01-01]",
        "[x, in, [2026-01-01, 2026-01-02T00:00:00]]",
        "[x, '=', true]",
        "[x, '<', -9223372036854775808]",
    ],
)
def test_filters_that_can(tmp_path: Path, condition: str) -> None:
    from pyarrow.parquet import filters_to_expression

    job = load(tmp_path, GOOD.replace("  text: body", f"  text: body\n  filter: [{condition}]")).job
    filters_to_expression(list(job.source.filter or ()))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("seed: 1180591620717411303424", "tasks[0].seed: expected at most 9,223,372,036,854,775,807, found 11805916"),
        ("seed: -9223372036854775809", "tasks[0].seed: expected at least -9,223,372,036,854,775,808, found -92233"),
        ("temperature: .inf", "tasks[0].temperature: expected a finite number, found .inf"),
        ("repetition_penalty: .nan", "tasks[0].repetition_penalty: expected a finite number, found .nan"),
        ('stop: ["\\uD800"]', "tasks[0].stop[0]: holds half a character"),
    ],
)
def test_numbers_and_text_that_nothing_could_hold(tmp_path: Path, value: str, said: str) -> None:
    [line] = problems(tmp_path, GOOD.replace("language: en", value))
    assert said in line


def test_an_environment_that_is_not_utf8(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MILL_BUCKET", os.fsdecode(b"corpus-\xff"))
    [line] = problems(tmp_path, GOOD.replace("s3://corpus", "s3://${MILL_BUCKET}"))
    assert line.startswith("job.yaml:4: source.path: holds half a character")


@pytest.mark.parametrize("gpus", ["1.5", "-1", ".nan", ".inf", "0.00001"])
def test_gpus_that_ray_would_refuse(tmp_path: Path, gpus: str) -> None:
    [line] = problems(tmp_path, GOOD + f"workers: {{gpus: {gpus}}}\n")
    assert line == "job.yaml:10: workers.gpus: expected auto, 0, a fraction below 1, or a whole number"


@pytest.mark.parametrize(("gpus", "read"), [("auto", "auto"), ("0", 0), ("0.25", 0.25), ("1", 1), ("2.0", 2)])
def test_gpus_that_ray_gives(tmp_path: Path, gpus: str, read: str | float) -> None:
    assert load(tmp_path, GOOD + f"workers: {{gpus: {gpus}}}\n").job.workers.gpus == read


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    text = GOOD.replace("output", "  - {name: summary, kind: caption}\noutput")
    [line] = problems(tmp_path, text)
    assert "two tasks are named summary" in line


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    [line] = problems(tmp_path, GOOD + "output: {path: other/}\n")
    assert line == "job.yaml:10: output: stands here a second time (first in line 9)"
    [line] = problems(tmp_path, GOOD.replace("  id: doc_id", "  id: doc_id\n  id: other"))
    assert line.startswith("job.yaml:6: source.id: stands here a second time")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "job.yaml:1: found a list"),
        ("just words\n", "job.yaml:1: found plain text"),
        ("name: a\nmodel:\n\tpath: b\n", "job.yaml:3: a tab stands here"),
        ("name: [a\nmodel: b\n", "not valid YAML"),
        ("name: a\n---\nname: b\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("name: *nowhere\n", "not valid YAML"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (b"name: \xff\xfe\n", "job.yaml:1: not UTF-8 text"),
        ("name: \x00\n", "not valid YAML"),
    ],
)
def test_no_job_at_all(tmp_path: Path, text: str | bytes, said: str) -> None:
    [line] = problems(tmp_path, text)
    assert said in line


def test_aliases_work_and_cannot_blow_up(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        GOOD.replace(
            "  - {name: summary, kind: summarize, language: en}",
            "  - &short {name: summary, kind: summarize, language: en, max_tokens: 9}\n"
            "  - {<<: *short, name: summary_fr, language: fr}",
        ),
    )
    assert [(task.language, task.max_tokens) for task in loaded.job.tasks] == [("en", 9), ("fr", 9)]
    bomb = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert "too large for a job file" in problems(tmp_path, bomb)[0]
    assert problems(tmp_path, GOOD + "x: &x [*x]\n")


def test_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "nightly.yaml").write_text(GOOD)
    with pytest.raises(JobFileError, match=r"no such file; did you mean .*nightly\.yaml"):
        load_job(tmp_path / "nigthly.yaml")
    with pytest.raises(JobFileError, match="this is a folder"):
        load_job(tmp_path)


def test_variables_are_filled_in_and_the_text_is_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MILL_BUCKET", "corpus-a")
    monkeypatch.setenv("MILL_WORKERS", "3")
    loaded = load(
        tmp_path,
        GOOD.replace("s3://corpus", "s3://${MILL_BUCKET}").replace("summarize,", "prompt, prompt: 'US$$ $5?',")
        + "workers: {max: '${MILL_WORKERS}'}\n",
    )
    assert loaded.job.source.path == "s3://corpus-a/documents/"
    assert loaded.job.tasks[0].prompt == "US$ $5?"
    assert loaded.job.workers.max == 3
    assert "corpus-a" not in loaded.text


def test_a_value_from_the_environment_is_never_shown(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MILL_SECRET", "hunter2-s3cret")
    text = (
        GOOD.replace("name: nightly", "name: 'x ${MILL_SECRET}'")
        .replace("language: en", "language: '${MILL_SECRET}'")
        .replace("  text: body", "  text: body\n  filter: [['${MILL_SECRET}', '${MILL_SECRET}', 1]]")
        .replace("google/", "'${MILL_SECRET}', dtype: '${MILL_SECRET}', device: '${MILL_SECRET}', revision: x")
        .replace("t5gemma-2-270m-270m", "")
    )
    lines = problems(tmp_path, text)
    assert len(lines) == 5
    assert not any("hunter2" in line for line in lines), lines
    assert any("${MILL_SECRET}" in line for line in lines)


@pytest.mark.parametrize("text", ["${}", "${1A}", "${A", "${A:-b}"])
def test_a_broken_variable_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a variable: write \$\{NAME\}"):
        expand(text, {"A": "secret"})


def test_plain_dollars() -> None:
    assert expand("$ $A $$A $${A} ${A}", {"A": "x"}) == "$ $A $A ${A} x"


def test_merges_cannot_blow_up(tmp_path: Path) -> None:
    lines = [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)]
    bomb = "a0: &a0 {x: 1, y: 2}\n" + "".join(lines)
    assert problems(tmp_path, bomb) == ["job.yaml: too large for a job file (over 20,000 entries)"]


def test_a_number_without_end_is_refused_at_once(tmp_path: Path) -> None:
    # As YAML reads it, one that takes quadratic time: base 60.
    [line] = problems(tmp_path, GOOD + "limits: {max_images: 1" + ":1" * 400_000 + "}\n")
    assert line == "job.yaml:10: limits.max_images: a number of 800,001 characters; write it in quotes"


@pytest.mark.parametrize("value", ["!!timestamp x", "!!int x", "!!bool maybe", "!!float ."])
def test_a_value_that_is_not_what_its_tag_says(tmp_path: Path, value: str) -> None:
    [line] = problems(tmp_path, GOOD + f"x: {value}\n")
    assert "not valid YAML: " in line


def test_a_filter_in_a_filter(tmp_path: Path) -> None:
    lines = problems(tmp_path, GOOD.replace("language: en", 'language: en, where: [[[a, "=", b]]]'))
    assert any("tasks[0].where[0]: expected three parts in each filter" in line for line in lines), lines

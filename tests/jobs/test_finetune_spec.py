"""Training job files: every mistake named with its line; the example reads; what is printed of a run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from jobs.finetune import shown
from jobs.spec import JobFileError, load_spec
from pipelines.finetune import Event
from pipelines.finetune_job import FinetuneSpec

ROOT = Path(__file__).parents[2]
GOOD = """\
name: learn
model: {path: base}
source: {path: data, id: doc_id, text: body}
tasks:
  - {name: short, kind: summarize, target: summary}
training: {steps: 10}
output: {path: out}
"""


def load(tmp_path: Path, text: str) -> FinetuneSpec:
    (tmp_path / "job.yaml").write_text(text)
    return load_spec(tmp_path / "job.yaml", FinetuneSpec)[0]


def test_a_small_file_has_sensible_defaults(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD)
    assert (job.lanes, job.training.prompt_in, job.training.train_vision, job.training.lora) == (
        1,
        "decoder",
        False,
        None,
    )
    assert job.source.as_source(job.tasks).carry == ("summary",)


def test_the_example_reads() -> None:
    job, _ = load_spec(ROOT / "jobs/examples/finetune.yaml", FinetuneSpec)
    assert job.training.lora is not None and job.lanes % job.workers.count == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("steps: 10", "stepps: 10"), r"job\.yaml:6: training\.stepps: unknown key; did you mean steps\?"),
        (("{steps: 10}", "{}"), r"job\.yaml:6: training: give one of steps and epochs"),
        (("{steps: 10}", "{steps: 10, epochs: 2}"), r"job\.yaml:6: training: give one of steps and epochs"),
        (("steps: 10", "steps: 0"), r"job\.yaml:6: training\.steps: .*at least 1"),
        (
            ("steps: 10", "steps: 1, betas: [0.9, 1.5]"),
            r"job\.yaml:6: training\.betas: both are at least 0 and below 1",
        ),
        ((", target: summary", ""), r"job\.yaml:5: tasks\[0\]\.target: is missing"),
        (("kind: summarize", "kind: answer"), r"job\.yaml:5: tasks\[0\]: a task of kind answer needs question or"),
        (("kind: summarize", "kind: translate"), r"job\.yaml:5: tasks\[0\]: a task of kind translate needs language"),
        (("kind: summarize", "kind: summarize, question_column: q"), r"question_column belongs to kind answer"),
        (("kind: summarize", "kind: summarize, language: xx-yy-zz"), r"is not a language tag"),
        (("out}", "out}\nworkers: {count: 3}"), None),
        (
            ("{steps: 10}", "{steps: 10, lanes: 4}\nworkers: {count: 3}"),
            r"lanes \(4\) must be a multiple of workers\.count",
        ),
        (("steps: 10", "steps: 10, lora: {rank: 0}"), r"job\.yaml:6: training\.lora\.rank: .*at least 1"),
        (("tasks:\n", "tasks:\n  - {name: short, kind: summarize, target: x}\n"), r"two tasks are named short"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, change: tuple[str, str], said: str | None) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    if said is None:
        load(tmp_path, text)
        return
    with pytest.raises(JobFileError, match=said):
        load(tmp_path, text)


def test_progress_where_there_is_no_terminal() -> None:
    console = Console(width=100, file=io.StringIO())
    with shown(console, 100) as on_event:
        step = {"loss": 2.5, "tokens": 9000, "seconds": 3.0, "skipped": 2}
        on_event(Event("step", {"step": 10, **step}))
        on_event(Event("step", {"step": 11, **step}))
        tasks = {"short": {"exact": 0.5, "loss": 1.0, "n": 4}}
        on_event(Event("held_out", {"step": 11, "loss": 1.25, "exact": 0.5, "tasks": tasks}))
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said == [
        "step 10 of 100, loss 2.500, 3.0k tokens/s, 27 s left, 2 left out",
        "step 11, held out: loss 1.250, exactly right 50.0% (short 50%)",
    ]

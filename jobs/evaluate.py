"""`corpusmill evaluate`: an evaluation file in; scores, intervals and checks out, in the terminal, JSON and PNG."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.text import Text

from infra.storage import Location, redact, redact_url
from pipelines.errors import JobError
from pipelines.evaluate import check_evaluation, evaluate, write_evaluation
from pipelines.evaluation.job import EvaluationSpec, TableSpec, TextSpec
from pipelines.evaluation.report import Evaluation
from workers.score import PackageMissing

from .evaluation_plot import picture
from .evaluation_view import show_evaluation
from .render import consoles, show_run
from .spec import LoadedJob, load_job, load_spec
from .text import short_path


def evaluate_file(path: Path, *, compare: str | None, as_json: bool) -> None:
    """Evaluate what the file at `path` names, running its run job first where it names one; show and write the result.

    The whole of both files, and the packages that the evaluation needs, are checked before anything runs.
    """
    out, err = consoles()
    spec, text = load_spec(path, EvaluationSpec)
    run = None if spec.job is None else load_job(spec.job)
    _check(spec, run)
    table = spec.table if run is None else _run(run, err)
    assert table is not None
    spec = _with_source(spec, run)
    with err.status("reading") if err.is_terminal else nullcontext() as spinner:
        say = (lambda line: spinner.update(Text(redact(line)))) if spinner else (lambda line: None)
        evaluation = evaluate(spec, table, text=text, compare=compare, say=say)
        written = _write(evaluation, Location(spec.output.path))
    if as_json:
        print(json.dumps(evaluation.as_json(), ensure_ascii=False, indent=2))
        return
    show_evaluation(out, evaluation)
    out.print()
    for line in written:
        out.print(Text.assemble(("Written  ", "bold"), short_path(redact_url(line))), soft_wrap=True)


def _check(spec: EvaluationSpec, run: LoadedJob | None) -> None:
    check_evaluation(spec)
    if run is None:
        return
    there = [task.name for task in run.job.tasks]
    for number, task in enumerate(spec.tasks):
        if task.name not in there:
            raise JobError(f"tasks[{number}].name: {spec.job} has no task {task.name}; it has {', '.join(there)}")


def _run(run: LoadedJob, err: Console) -> TableSpec:
    """Runs the job; its table, and there its own rows, whatever other models or prompts wrote after them."""
    from .running import run_loaded

    report = run_loaded(run, err)
    # On standard error: what stands on standard output is the evaluation.
    show_run(err, report, details=False)
    own = (("model_revision", "=", report.model_revision), ("task_fingerprint", "in", list(report.fingerprints)))
    return TableSpec(path=run.job.output.path, filter=own)


def _with_source(spec: EvaluationSpec, run: LoadedJob | None) -> EvaluationSpec:
    """A run job's documents are the source to compare outputs with, unless the file names another."""
    if spec.source is not None or run is None or (text := run.job.source.text) is None:
        return spec
    source = TextSpec(path=run.job.source.path, id=run.job.source.id, text=text)
    return spec.model_copy(update={"source": source})


def _write(evaluation: Evaluation, output: Location) -> list[str]:
    written = [write_evaluation(evaluation, output)]
    try:
        drawn = picture(evaluation)
    except PackageMissing as error:
        raise JobError(str(error)) from error
    if drawn is not None:
        target = output.child("evaluation.png")
        target.write_bytes(drawn)
        written.append(target.url)
    return written

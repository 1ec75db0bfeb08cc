"""`corpusmill finetune`: a training job in; a model folder, its card and its curve out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from infra.storage import Location, scratch_folder
from pipelines.finetune_job import FinetuneSpec

from .model_card import model_card
from .render import consoles, heading, plain, table
from .spec import load_spec
from .text import count, duration, rate, shell_word, short_path

_PLAIN_EVERY = 20.0


def finetune_file(path: Path) -> None:
    """Train as the job at `path` says and show what came of it; the same command goes on after a kill."""
    out, err = consoles()
    job, _ = load_spec(path, FinetuneSpec)
    train(job, out, err)


def train(job: FinetuneSpec, out: Console, err: Console) -> Any:
    """Run a training job with its progress on `err` and its result on `out`; returns the report."""
    from pipelines.finetune import finetune
    from pipelines.finetune_plan import plan

    planned = plan(job)
    corpus = planned.corpus
    err.print(
        Text(
            f"{count(corpus.documents, 'row')} in {count(len(corpus.files), 'file')}, {count(len(job.tasks), 'task')}, "
            f"{count(planned.steps, 'step')}",
            style="dim",
        ),
        soft_wrap=True,
    )
    with shown(err, planned.steps) as on_event:
        report = finetune(job, planned, on_event=on_event)
    output = Location(job.output.path)
    if not report.already_done:
        output.child("README.md").write_bytes(model_card(report).encode())
        _write_curve(output, report.history, err)
    show(out, report)
    return report


def show(out: Console, report: Any) -> None:
    """The scores of the held-out rows, what was left out, and where the model is."""
    history, job = report.history, report.plan.job
    if report.already_done:
        plain(out, "Nothing to do: this model is trained already.")
    if history.held_out:
        last = history.held_out[-1]
        heading(out, f"Held-out rows after step {last['step']:,}")
        rows = [
            [name, f"{score['loss']:.4f}", f"{score['exact']:.1%}", f"{score['n']:,}"]
            for name, score in last["tasks"].items()
        ]
        out.print(table(["task", "loss", "exactly right", "n"], rows))
    if report.skips.counts:
        heading(out, "Left out")
        rows = [
            [code, f"{number:,}", next((s.message for s in report.skips.listed if s.code == code), "")]
            for code, number in report.skips.counts.most_common()
        ]
        out.print(table(["why", "examples", ("for example", "fold")], rows))
        plain(out, "Each with its file and row in training.json, under skipped.", "dim")
    out.print()
    resumed = f", going on from step {report.resumed_at:,}" if report.resumed_at and not report.already_done else ""
    plain(out, f"{len(history.loss):,} steps in {duration(history.seconds)}{resumed}")
    out.print(Text.assemble(("Model   ", "bold"), short_path(str(Location(job.output.path)))), soft_wrap=True)
    out.print(
        Text.assemble(("Use it  ", "bold"), (f"model: {{path: {shell_word(short_path(job.output.path))}}}", "cyan")),
        soft_wrap=True,
    )


@contextmanager
def shown(console: Console, total: int) -> Iterator[Callable[[Any], None]]:
    """A bar on a terminal, else a line from time to time; held-out scores as they come."""
    if not console.is_terminal:
        yield _Lines(console, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rest]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=total, rest="")

        def on_event(event: Any) -> None:
            figures = event.figures
            if event.event == "step":
                bar.update(task, completed=figures["step"], rest=_rest(figures, total))
            elif event.event == "held_out":
                console.print(Text(_held_out(figures), style="dim"))

        yield on_event


class _Lines:
    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._last = 0.0

    def __call__(self, event: Any) -> None:
        figures = event.figures
        if event.event == "held_out":
            self._console.print(_held_out(figures), soft_wrap=True)
        elif event.event == "step" and time.monotonic() - self._last >= _PLAIN_EVERY:
            self._last = time.monotonic()
            self._console.print(
                f"step {figures['step']:,} of {self._total:,}, {_rest(figures, self._total)}", soft_wrap=True
            )


def _rest(figures: dict[str, Any], total: int) -> str:
    seconds, step = figures["seconds"], figures["step"]
    parts = [f"loss {figures['loss']:.3f}", f"{rate(figures['tokens'] / max(seconds, 1e-9))} tokens/s"]
    parts.append(f"{duration(seconds / max(step, 1) * (total - step))} left")
    if figures["skipped"]:
        parts.append(f"{figures['skipped']:,} left out")
    return ", ".join(parts)


def _held_out(figures: dict[str, Any]) -> str:
    tasks = ", ".join(f"{name} {score['exact']:.0%}" for name, score in figures["tasks"].items())
    scores = f"loss {figures['loss']:.3f}, exactly right {figures['exact']:.1%} ({tasks})"
    return f"step {figures['step']:,}, held out: {scores}"


def _write_curve(output: Location, history: Any, err: Console) -> None:
    try:
        from .curve import save_curve
    except ImportError:
        err.print(Text("no training.png: pip install 'corpusmill[finetune]' brings matplotlib", style="dim"))
        return
    with scratch_folder() as scratch:
        save_curve(scratch / "training.png", history)
        output.child("training.png").upload(scratch / "training.png")

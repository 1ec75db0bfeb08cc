"""A run's progress: a bar on a terminal, a line from time to time everywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from pipelines.reports import Progress

from .text import count, duration, rate

PLAIN_EVERY = 10.0
_WINDOW = 60.0
_ROOMY = 100

OnProgress = Callable[[Progress], None]


class Rates:
    """Documents and tokens per second over the last minute, and the time left at that pace."""

    def __init__(self) -> None:
        self._seen: deque[Progress] = deque()

    def add(self, now: Progress) -> None:
        """Take one more reading; readings are in the order of their `seconds`."""
        self._seen.append(now)
        while len(self._seen) > 2 and now.seconds - self._seen[1].seconds >= _WINDOW:
            self._seen.popleft()

    @property
    def documents(self) -> float:
        """Documents that left the graph, per second."""
        return self._per_second(lambda progress: progress.documents)

    @property
    def tokens(self) -> float:
        """Input and output tokens per second."""
        return self._per_second(lambda progress: progress.input_tokens + progress.output_tokens)

    @property
    def left(self) -> float | None:
        """Seconds to the end, or None while there is nothing to judge by."""
        if not self._seen or not self.documents:
            return None
        return (self._seen[-1].documents_total - self._seen[-1].documents) / self.documents

    def _per_second(self, value: Callable[[Progress], int]) -> float:
        if len(self._seen) < 2:
            return 0.0
        first, last = self._seen[0], self._seen[-1]
        seconds = last.seconds - first.seconds
        return (value(last) - value(first)) / seconds if seconds > 0 else 0.0


def line(progress: Progress, rates: Rates) -> str:
    """Where the run stands, in one line."""
    share = f" ({progress.documents * 100 // progress.documents_total}%)" if progress.documents_total else ""
    parts = [f"{progress.documents:,} of {count(progress.documents_total, 'document')}{share}"]
    if rates.documents:
        parts.append(f"{rate(rates.documents)} documents/s")
    if rates.tokens:
        parts.append(f"{rate(rates.tokens)} tokens/s")
    if rates.left:
        parts.append(f"{duration(rates.left)} left")
    troubles = [f"{number:,} {what}" for number, what in ((progress.rejected, "rejected"), (progress.failed, "failed"))]
    return ", ".join(parts + [trouble for trouble in troubles if not trouble.startswith("0 ")])


@contextmanager
def shown(console: Console) -> Iterator[OnProgress]:
    """What `run_job` calls with its progress; drawn on `console` until the block ends."""
    with _bar(console) if console.is_terminal and not console.is_dumb_terminal else _plain(console) as on_progress:
        yield on_progress


@contextmanager
def _plain(console: Console) -> Iterator[OnProgress]:
    rates, due = Rates(), time.monotonic() + PLAIN_EVERY
    latest: Progress | None = None
    told: Progress | None = None

    def on_progress(progress: Progress) -> None:
        nonlocal due, latest, told
        rates.add(progress)
        latest = progress
        if time.monotonic() >= due:
            console.print(line(progress, rates), highlight=False, markup=False, soft_wrap=True)
            due, told = time.monotonic() + PLAIN_EVERY, progress

    yield on_progress
    if latest is not None and latest is not told:
        console.print(line(latest, rates), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _bar(console: Console) -> Iterator[OnProgress]:
    rates = Rates()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[done]}", table_column=Column(no_wrap=True)),
        _Bar(bar_width=None),
        _Speed(rates, roomy=console.width >= _ROOMY),
    )
    with Bar(*columns, console=console, expand=True, transient=True) as bar:
        task = bar.add_task("", total=None, done="starting the workers and the model")

        def on_progress(progress: Progress) -> None:
            rates.add(progress)
            done = f"{progress.documents:,}/{progress.documents_total:,}"
            total = progress.documents_total or None
            bar.update(task, total=total, completed=progress.documents, done=done)

        yield on_progress


class _Bar(BarColumn):
    """A bar once there is something to measure; without colours a waiting bar looks like a full one."""

    def render(self, task: Task) -> Any:
        """Nothing, or the bar."""
        return Text() if task.total is None else super().render(task)


class _Speed(ProgressColumn):
    """Documents/s, tokens/s and time left; in full only where the terminal has room for the words."""

    def __init__(self, rates: Rates, roomy: bool) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._rates = rates
        self._documents, self._tokens = ("documents/s", "tokens/s") if roomy else ("docs/s", "tok/s")

    def render(self, task: Task) -> Text:
        """The pace, or the time since the start while there is none."""
        if not self._rates.documents:
            return Text(duration(task.elapsed or 0), style="dim")
        parts = [f"{rate(self._rates.documents)} {self._documents}"]
        if self._rates.tokens:
            parts.append(f"{rate(self._rates.tokens)} {self._tokens}")
        if self._rates.left:
            parts.append(f"{duration(self._rates.left)} left")
        return Text(" · ".join(parts), style="cyan")

"""Outputs beside their references: scores of each task and slice, with intervals, of one table or of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import JobError
from workers.score import Options, Statistics, compare, interval, resample, score
from workers.score.metrics import Metric, warnings_of

from .job import DEFAULT_METRICS, BootstrapSpec, EvaluationSpec, TaskMetrics
from .outputs import Outputs
from .references import References
from .report import Average, Counts, Scores, TaskResult

_STATES = ("missing", "rejected", "failed", "empty", "ok")
_MISSING, _REJECTED, _FAILED, _EMPTY, _OK = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """One table's outputs of a task against the documents that have references."""

    texts: list[str | None]
    states: np.ndarray
    without_document: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A task's result, and its overall scores in the resampled corpora (this table, the other), for averages."""

    result: TaskResult
    resampled: dict[str, tuple[np.ndarray, np.ndarray | None]]
    warnings: list[str]


def score_task(
    spec: EvaluationSpec, number: int, references: References, table: Outputs, other: Outputs | None
) -> Scored:
    """Score task `number` of the file; JobError when a table does not hold it."""
    task = spec.tasks[number]
    rows = _rows(table, task, number)
    kind, language = _common(rows, "kind") or "prompt", _common(rows, "language")
    wanted = references.texts(f"tasks[{number}].reference", task.reference)
    documents = np.flatnonzero([len(texts) > 0 for texts in wanted])
    if not len(documents):
        named = ", ".join(task.reference)
        raise JobError(f"tasks[{number}].reference: every cell of {named} is empty; there is nothing to compare with")
    sides = [(table, rows)] if other is None else [(table, rows), (other, _rows(other, task, number))]
    made = [_made(side, its, references, documents) for side, its in sides]
    metrics = task.metrics or DEFAULT_METRICS[kind]
    options = _options(task, language)
    texts = [wanted[document] for document in documents]
    statistics = [score(metrics, one.texts, texts, options) for one in made]
    scoring = _Scoring(spec, made, statistics)
    overall, resampled = scoring.of(None, None, np.arange(len(documents)))
    places = np.full(len(references.ids), -1)
    places[documents] = np.arange(len(documents))
    slices = []
    for piece in spec.slices[task.name]:
        for value, which in references.slices(piece):
            if len(inside := places[which][places[which] >= 0]):
                slices.append(scoring.of(piece.column, value, inside)[0])
    return Scored(
        result=TaskResult(
            task=task.name,
            kind=kind,
            language=language,
            signatures={one.name: one.signature for one in statistics[0]},
            without_reference=len(references.ids) - len(documents),
            without_document=made[0].without_document,
            overall=overall,
            slices=slices,
        ),
        resampled=resampled,
        warnings=_warnings(task, metrics, options, overall, sides),
    )


def averages(scored: Sequence[Scored], bootstrap: BootstrapSpec) -> list[Average]:
    """Means over the tasks of a kind, and over those of a kind and language, where there are several.

    Tasks with the same documents share their resampled corpora, so that an average's interval takes into account that
    a hard document is hard in every language. A task without a scored document has no score and stands in no mean.
    """
    groups: dict[tuple[str, str | None], list[Scored]] = {}
    for one in (one for one in scored if one.result.overall.scored):
        groups.setdefault((one.result.kind, None), []).append(one)
        if one.result.language is not None:
            groups.setdefault((one.result.kind, one.result.language), []).append(one)
    found = []
    for (kind, language), members in groups.items():
        whole = len(groups[kind, None])
        if len(members) > 1 and (language is None or len(members) < whole):
            found.append(_average(kind, language, members, bootstrap))
    return found


class _Scoring:
    """The scores of any subset of a task's documents."""

    def __init__(self, spec: EvaluationSpec, made: list[_Made], statistics: list[list[Statistics]]) -> None:
        self._bootstrap = spec.bootstrap
        self._made, self._statistics = made, statistics
        # Left out of one table is left out of both: a comparison is of the same documents.
        kept = [one.states >= _EMPTY for one in made] if spec.missing == "skip" else []
        self._kept = np.logical_and.reduce(kept) if kept else np.ones(len(made[0].states), dtype=bool)

    def of(
        self, by: str | None, value: str | None, documents: np.ndarray
    ) -> tuple[Scores, dict[str, tuple[np.ndarray, np.ndarray | None]]]:
        """Scores of some documents, and each metric's scores in the resampled corpora."""
        inside = documents[self._kept[documents]]
        settings = {"samples": self._bootstrap.samples if len(inside) else 0, "seed": self._bootstrap.seed}
        pieces = [[one.take(inside) for one in statistics] for statistics in self._statistics]
        drawn = [resample(piece, **settings) for piece in pieces]
        level = self._bootstrap.level
        ours = list(zip(pieces[0], drawn[0], strict=True)) if len(inside) else []
        compared, other_scores = {}, {}
        if len(pieces) > 1:
            for (this, mine), that, theirs in zip(ours, pieces[1], drawn[1]):
                compared[this.name] = compare(this.score, that.score, mine, theirs, level, documents=len(inside))
                other_scores[this.name] = interval(that.score, theirs, level)
        scores = Scores(
            by=by,
            value=value,
            counts=_counts(self._made[0].states[documents]),
            scored=len(inside),
            scores={one.name: interval(one.score, mine, level) for one, mine in ours},
            compared=compared,
            other_scores=other_scores,
            other_counts=_counts(self._made[1].states[documents]) if len(self._made) > 1 else None,
        )
        second: list[np.ndarray | None] = list(drawn[1]) if len(drawn) > 1 else [None] * len(drawn[0])
        return scores, {one.name: (mine, their) for (one, mine), their in zip(ours, second)}


def _rows(table: Outputs, task: TaskMetrics, number: int) -> pa.Table:
    rows = table.of_task(task.name)
    if not len(rows):
        there = ", ".join(sorted(set(table.rows.column("task").to_pylist()))) or "no rows"
        raise JobError(f"tasks[{number}].name: {table.location} has no task {task.name}; it holds {there}")
    return rows


def _made(table: Outputs, rows: pa.Table, references: References, documents: np.ndarray) -> _Made:
    ids = references.ids.take(pa.array(documents))
    at = pc.index_in(ids, value_set=rows.column("document_id").combine_chunks())
    there = at.is_valid().to_numpy(zero_copy_only=False)
    if not there.any():
        raise JobError(
            f"references.id: {table.location} holds none of these documents for task {rows.column('task')[0]}: an id "
            f"is {ids[0].as_py()!r} in the references and {rows.column('document_id')[0].as_py()!r} in the table"
        )
    states = np.full(len(documents), _MISSING)
    matched = rows.take(at.drop_null())
    statuses = np.array(matched.column("status").to_pylist(), dtype=object)
    states[there] = np.select([statuses == "rejected", statuses == "failed"], [_REJECTED, _FAILED], _OK)
    texts: list[str | None] = [None] * len(documents)
    written = np.flatnonzero(states == _OK)
    for index, text in zip(written, table.texts(matched.filter(pa.array(statuses == "ok"))), strict=True):
        texts[index] = text or ""
        states[index] = _OK if text and text.strip() else _EMPTY
    outputs = rows.filter(pc.equal(rows.column("status"), "ok"))
    known = pc.is_in(outputs.column("document_id"), value_set=references.ids)
    return _Made(texts=texts, states=states, without_document=int(pc.sum(pc.invert(known)).as_py() or 0))


def _counts(states: np.ndarray) -> Counts:
    found = {name: int((states == number).sum()) for number, name in enumerate(_STATES)}
    outputs = found.pop("ok") + found["empty"]
    return Counts(references=len(states), outputs=outputs, **found)


def _average(kind: str, language: str | None, members: Sequence[Scored], bootstrap: BootstrapSpec) -> Average:
    names = [n for n in members[0].resampled if all(n in one.resampled for one in members)]
    scores, compared = {}, {}
    documents = max(one.result.overall.scored for one in members)
    for name in names:
        this = float(np.mean([one.result.overall.scores[name].score for one in members]))
        mine = np.mean([one.resampled[name][0] for one in members], axis=0)
        scores[name] = interval(this, mine, bootstrap.level)
        theirs = [other for one in members if (other := one.resampled[name][1]) is not None]
        if len(theirs) == len(members):
            that = float(np.mean([one.result.overall.compared[name].other for one in members]))
            compared[name] = compare(this, that, mine, np.mean(theirs, axis=0), bootstrap.level, documents=documents)
    tasks = [one.result.task for one in members]
    return Average(kind=kind, language=language, tasks=tasks, scores=scores, compared=compared)


def _common(rows: pa.Table, column: str) -> str | None:
    """The value that most rows have; None when they have none."""
    values = rows.column(column).drop_null()
    if not len(values):
        return None
    counts = pc.value_counts(values.cast(pa.string())).to_pylist()
    return str(max(counts, key=lambda entry: (entry["counts"], entry["values"]))["values"])


def _options(task: TaskMetrics, language: str | None) -> Options:
    return Options(
        language=language,
        tokenize=task.tokenize,
        rouge_tokenizer=task.rouge_tokenizer,
        stemmer=task.stemmer,
        ignore_case=task.ignore_case,
    )


def _warnings(
    task: TaskMetrics,
    metrics: Sequence[Metric],
    options: Options,
    overall: Scores,
    sides: Sequence[tuple[Outputs, pa.Table]],
) -> list[str]:
    found = warnings_of(metrics, options)
    if not overall.scored:
        found.append("missing: skip leaves no document to score, so it stands in no average either")
    for number, (table, rows) in enumerate(sides):
        for column, what in (("model_revision", "models"), ("task_fingerprint", "versions of the task")):
            different = len(pc.unique(rows.filter(pc.equal(rows.column("status"), "ok")).column(column)))
            if different > 1:
                where = "" if number == 0 else f" in {table.location}"
                advice = (
                    "; table.filter keeps those of one" if number == 0 else ", of which the newest of each document"
                )
                found.append(f"its rows{where} come from {different} {what}{advice} ({column})")
    return [f"task {task.name}: {line}" for line in found]

"""An evaluation: a table's outputs beside their references, scored, checked and written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import Location, redact, redact_url
from workers.score import PackageMissing
from workers.score.languages import check_detector
from workers.score.metrics import METRICS, check_packages
from workers.score.packages import need

from .errors import JobError
from .evaluation.checks import check_outputs
from .evaluation.job import EvaluationSpec, TableSpec
from .evaluation.outputs import Outputs, read_outputs
from .evaluation.references import References, read_references
from .evaluation.report import Evaluation
from .evaluation.scoring import averages, score_task
from .lineage import code_version, job_hash, package_versions

_PACKAGES = ("sacrebleu", "rouge-score", "py3langid", "regex", "numpy", "pyarrow")


def check_evaluation(spec: EvaluationSpec) -> None:
    """JobError when a package that this evaluation needs is not installed: before a run takes hours."""
    metrics = dict.fromkeys(name for task in spec.tasks for name in (task.metrics or METRICS))
    try:
        check_packages(list(metrics), [task.tokenize for task in spec.tasks if "bleu" in (task.metrics or METRICS)])
        if spec.tasks:
            need("matplotlib", "the picture")
        if spec.checks is not None:
            check_detector()
    except PackageMissing as error:
        raise JobError(str(error)) from error


def evaluate(
    spec: EvaluationSpec,
    table: TableSpec,
    *,
    text: str,
    compare: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Evaluate `table` as `spec` says; `text` is the evaluation file as written, `compare` another table's path.

    JobError, SourceError and TableError name what does not fit. Costs the light columns of the tables, the texts that
    have references or are checked, and the references.
    """
    try:
        return _evaluate(spec, table, text, compare, say)
    except PackageMissing as error:
        raise JobError(str(error)) from error


def write_evaluation(evaluation: Evaluation, output: Location) -> str:
    """Writes `<output>/evaluation.json`; its path."""
    target = output.child("evaluation.json")
    target.write_bytes(json.dumps(evaluation.as_json(), indent=1, ensure_ascii=False).encode())
    return target.url


def _evaluate(
    spec: EvaluationSpec, table: TableSpec, text: str, compare: str | None, say: Callable[[str], None]
) -> Evaluation:
    say("reading the table")
    outputs = read_outputs(table.path, table.filter)
    if spec.table is not None and table.filter and not len(outputs.rows):
        raise JobError(f"table.filter: no row of {outputs.location} passes it")
    # The filter says which of this table's rows count; another table may not even have such rows.
    other = None if compare is None else read_outputs(compare)
    about = _about(spec, text, outputs, other)
    scored = []
    if spec.references is not None:
        say("reading the references")
        references = read_references(spec)
        about["references"] = _about_references(references, spec.references.path)
        for number, task in enumerate(spec.tasks):
            say(f"scoring {task.name}")
            scored.append(score_task(spec, number, references, outputs, other))
    checks = check_outputs(outputs, spec.checks, spec.source, say) if spec.checks else []
    return Evaluation(
        name=spec.name,
        about=about,
        tasks=[one.result for one in scored],
        averages=averages(scored, spec.bootstrap),
        checks=checks,
        warnings=[*_unpublished(outputs, other), *(line for one in scored for line in one.warnings)],
        level=spec.bootstrap.level,
        other=None if other is None else str(other.location),
    )


def _unpublished(*tables: Outputs | None) -> list[str]:
    return [
        f"{table.location}: rows that no run has published yet (files in _work: {table.unpublished:,}) are not looked "
        "at; a run that is under way, or the same job run again, publishes them"
        for table in tables
        if table is not None and table.unpublished
    ]


def _about(spec: EvaluationSpec, text: str, outputs: Outputs, other: Outputs | None) -> dict[str, Any]:
    return {
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code_version(),
        "packages": package_versions(_PACKAGES),
        "file": {"text": redact(text), "sha256": job_hash(text)},
        "bootstrap": spec.bootstrap.model_dump(),
        "missing_counts_as": spec.missing,
        "table": _about_table(outputs),
        "other_table": None if other is None else _about_table(other),
        "references": None,
    }


def _about_table(outputs: Outputs) -> dict[str, Any]:
    """Where the rows that count come from: models, runs, and when they were made."""
    made = outputs.rows.filter(pc.equal(outputs.rows.column("status"), "ok"))
    models = made.group_by(["model", "model_revision", "backend", "dtype"]).aggregate([([], "count_all")]).to_pylist()
    stamps = pc.min_max(made.column("created_at")).as_py()
    return {
        "path": redact_url(outputs.location.url),
        "models": sorted(
            ({("rows" if name == "count_all" else name): value for name, value in model.items()} for model in models),
            key=lambda model: -model["rows"],
        ),
        "runs": _distinct(made, "run_id"),
        "jobs": _distinct(made, "job"),
        "outputs": len(made),
        "superseded_rows": outputs.superseded,
        "oldest": None if stamps["min"] is None else stamps["min"].isoformat(),
        "newest": None if stamps["max"] is None else stamps["max"].isoformat(),
    }


def _distinct(rows: pa.Table, column: str) -> list[str]:
    values: Iterable[Any] = pc.unique(rows.column(column)).to_pylist()
    return sorted(str(value) for value in values if value is not None)


def _about_references(references: References, path: str) -> dict[str, Any]:
    return {
        "path": redact_url(Location(path).url),
        "documents": len(references.ids),
        "files": [{"path": redact_url(file.url), "size": file.size, "etag": file.etag} for file in references.files],
    }

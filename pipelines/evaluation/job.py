"""The evaluation file's model: which table, which references, which metrics. `jobs/spec.py` reads it from YAML."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pipelines.job import Condition, OutputSpec
from workers.score.metrics import Metric

_STRICT = ConfigDict(extra="forbid", frozen=True)

DEFAULT_METRICS: dict[str, tuple[Metric, ...]] = {
    "summarize": ("rouge1", "rougeL", "chrf", "exact"),
    "translate": ("chrf", "bleu", "exact"),
    "caption": ("cider", "exact"),
    "answer": ("exact", "chrf"),
    "prompt": ("rouge1", "rougeL", "chrf"),
}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_block(value: Any) -> Any:
    if isinstance(value, bool | int | float | list):
        raise ValueError("expected a column's name, or a block such as {column: words, edges: [100, 300]}")
    return {"column": value} if isinstance(value, str) else value


def _switched(value: Any) -> Any:
    if isinstance(value, bool):
        return {} if value else None
    if isinstance(value, str | int | float | list):
        raise ValueError("expected true, false, or a block such as {rows: 1000}")
    return value


class TableSpec(BaseModel):
    """A table that is there, and which of its rows."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    filter: tuple[Condition, ...] = ()


class ReferencesSpec(BaseModel):
    """Parquet files with one row of references for each document."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    id: str = Field(min_length=1)


class TextSpec(BaseModel):
    """Parquet files with each document's own text, for the checks that compare an output with it."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    id: str = Field(min_length=1)
    text: str = Field(min_length=1)


class SliceSpec(BaseModel):
    """A column of the references to break scores down by; a numeric one in ranges between `edges`."""

    model_config = _STRICT

    column: str = Field(min_length=1)
    edges: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()

    @field_validator("edges")
    @classmethod
    def _edges_rise(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if any(not low < high for low, high in pairwise(edges)):
            raise ValueError("edges must rise, as in [100, 300, 1000]")
        return edges


Slice = Annotated[SliceSpec, BeforeValidator(_as_block)]


class TaskMetrics(BaseModel):
    """How one task of the table is scored."""

    model_config = _STRICT

    name: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    reference: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(min_length=1)
    metrics: Annotated[tuple[Metric, ...] | None, BeforeValidator(_listed)] = Field(default=None, min_length=1)
    tokenize: Literal["auto", "13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"] = "auto"
    rouge_tokenizer: Literal["auto", "ascii", "unicode"] = "auto"
    stemmer: bool = False
    ignore_case: bool = True
    slices: Annotated[tuple[Slice, ...], BeforeValidator(_listed)] = ()


class BootstrapSpec(BaseModel):
    """How intervals are made; `samples` 0 makes none."""

    model_config = _STRICT

    samples: int = Field(default=1000, ge=0, le=100_000)
    seed: int = Field(default=0, ge=0)
    level: float = Field(default=0.95, gt=0.0, lt=1.0)


class ChecksSpec(BaseModel):
    """What is looked at without references, and when a row is counted as suspicious."""

    model_config = _STRICT

    # Rows of each task, spread evenly over its documents.
    rows: int = Field(default=20_000, ge=1)
    examples: int = Field(default=3, ge=0, le=100)
    loop: float = Field(default=0.25, gt=0.0, le=1.0)
    repeated: float = Field(default=0.5, gt=0.0, le=1.0)
    copied: float = Field(default=0.9, gt=0.0, le=1.0)


Checks = Annotated[ChecksSpec | None, BeforeValidator(_switched)]


class EvaluationSpec(BaseModel):
    """A whole evaluation, its ${ENV} filled in."""

    model_config = _STRICT

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    table: TableSpec | None = None
    job: str | None = Field(default=None, min_length=1)
    references: ReferencesSpec | None = None
    tasks: tuple[TaskMetrics, ...] = ()
    by: Annotated[tuple[Slice, ...], BeforeValidator(_listed)] = ()
    missing: Literal["empty", "skip"] = "empty"
    bootstrap: BootstrapSpec = BootstrapSpec()
    checks: Checks = ChecksSpec()
    source: TextSpec | None = None
    output: OutputSpec

    @model_validator(mode="after")
    def _is_of_one_table(self) -> EvaluationSpec:
        if (self.table is None) == (self.job is None):
            raise ValueError(
                "name what to evaluate: either table: {path: …}, a table that is there, or job: FILE, a run job to run "
                "first"
            )
        return self

    @model_validator(mode="after")
    def _has_something_to_do(self) -> EvaluationSpec:
        if self.references is None and (self.tasks or self.by):
            raise ValueError("references is missing: tasks and by need the files that hold the references")
        if self.references is not None and not self.tasks:
            raise ValueError("tasks is missing: name at least one task of the table, and the column of its references")
        if self.references is None and self.checks is None:
            raise ValueError("nothing to do: there are no references, and checks are switched off")
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"task {twice[0]} stands in tasks twice")
        return self

    @property
    def slices(self) -> dict[str, tuple[SliceSpec, ...]]:
        """For each task the columns it is broken down by, each once: its own, then those of `by`."""
        return {
            task.name: tuple({piece.column: piece for piece in (*self.by, *task.slices)}.values())
            for task in self.tasks
        }

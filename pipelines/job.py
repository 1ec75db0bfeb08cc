"""The job file's model: what a run reads, asks for and writes. `jobs/spec.py` reads it from YAML."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from workers.tasks import LimitsSpec, TaskSpec

_STRICT = ConfigDict(extra="forbid", frozen=True)
_OPERATORS = ("=", "==", "!=", "<", "<=", ">", ">=", "in", "not in")


class ModelSpec(BaseModel):
    """Which checkpoint, and how to run it."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    revision: str | None = None
    backend: Literal["native", "transformers"] = "native"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    max_batch_tokens: int = Field(default=8192, ge=256)
    max_decodes: int = Field(default=64, ge=1)


class SourceSpec(BaseModel):
    """Which Parquet files, and what their columns mean."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    id: str = Field(min_length=1)
    text: str | None = None
    images: str | None = None
    image_roots: tuple[str, ...] = ()
    carry: tuple[str, ...] = ()
    filter: tuple[tuple[str, str, Any], ...] | None = None

    @field_validator("filter")
    @classmethod
    def _operators_are_known(cls, value: Any) -> Any:
        for column, operator, _ in value or ():
            if operator not in _OPERATORS:
                raise ValueError(f"operator {operator!r} on column {column}: use one of {', '.join(_OPERATORS)}")
        return value

    @model_validator(mode="after")
    def _reads_something(self) -> SourceSpec:
        if self.text is None and self.images is None:
            raise ValueError("text and images are both missing: name at least one column to read")
        if len(set(self.carry)) != len(self.carry):
            raise ValueError("carry names a column twice")
        return self

    @property
    def columns(self) -> list[str]:
        """Every source column that a run reads, each once, the filter's included."""
        named = [self.id, self.text, self.images, *self.carry, *(c for c, _, _ in self.filter or ())]
        return list(dict.fromkeys(c for c in named if c is not None))


class OutputSpec(BaseModel):
    """Where the table stands."""

    model_config = _STRICT

    path: str = Field(min_length=1)


class WorkersSpec(BaseModel):
    """How many model workers; `gpus: auto` gives one GPU each where the cluster has any, else the CPU."""

    model_config = _STRICT

    min: int = Field(default=1, ge=1)
    max: int = Field(default=8, ge=1)
    gpus: Literal["auto"] | float = "auto"

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> WorkersSpec:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        if self.gpus != "auto" and self.gpus < 0:
            raise ValueError("gpus must be auto, 0, or a positive number per worker")
        return self


class JobSpec(BaseModel):
    """A whole job, its ${ENV} filled in; the file as it was written goes into the manifest."""

    model_config = _STRICT

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    model: ModelSpec
    source: SourceSpec
    tasks: tuple[TaskSpec, ...] = Field(min_length=1)
    output: OutputSpec
    limits: LimitsSpec = LimitsSpec()
    workers: WorkersSpec = WorkersSpec()

    @model_validator(mode="after")
    def _task_names_are_unique(self) -> JobSpec:
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two tasks are named {twice[0]}; a task's name is its folder in the table")
        return self

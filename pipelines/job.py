"""The job file's model: what a run reads, asks for and writes. `jobs/spec.py` reads it from YAML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from workers.conditions import Condition
from workers.tasks import LimitsSpec, TaskSpec

_STRICT = ConfigDict(extra="forbid", frozen=True)
_VLLM_TEMPERATURE = 2.0


class ModelSpec(BaseModel):
    """Which checkpoint, and how to run it."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    revision: str | None = None
    backend: Literal["native", "transformers", "vllm"] = "native"
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    max_batch_tokens: int = Field(default=8192, ge=256)
    max_decodes: int = Field(default=64, ge=1)

    @field_validator("dtype")
    @classmethod
    def _backend_computes_in(cls, dtype: str, info: ValidationInfo) -> str:
        if dtype == "int8" and info.data.get("backend") != "native":
            raise ValueError("int8 is the native backend's; choose auto, float32 or bfloat16")
        return dtype


class SourceSpec(BaseModel):
    """Which Parquet files, and what their columns mean."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    id: str = Field(min_length=1)
    text: str | None = None
    images: str | None = None
    image_roots: tuple[str, ...] = ()
    carry: tuple[str, ...] = ()
    filter: tuple[Condition, ...] | None = None

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

    @field_validator("gpus")
    @classmethod
    def _gpus_can_be_given(cls, gpus: str | float) -> str | float:
        # What Ray gives a worker: whole GPUs, or a share of one, in ten-thousandths.
        if isinstance(gpus, str) or gpus == 0 or 0.0001 <= gpus < 1 or (gpus >= 1 and gpus == gpus // 1):
            return gpus
        raise ValueError("expected auto, 0, a fraction below 1, or a whole number")

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> WorkersSpec:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


def named_twice(names: Iterable[str]) -> str | None:
    """The first name, sorted, that stands there more than once; None for none."""
    return next((name for name, times in sorted(Counter(names).items()) if times > 1), None)


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
        if twice := named_twice(task.name for task in self.tasks):
            raise ValueError(f"two tasks are named {twice}; a task's name is its folder in the table")
        return self

    @model_validator(mode="after")
    def _vllm_can_do_it(self) -> JobSpec:
        if self.model.backend != "vllm":
            return self
        if not isinstance(self.workers.gpus, str) and 0 < self.workers.gpus < 1:
            raise ValueError(
                f"workers.gpus {self.workers.gpus:g}: each engine of the vllm backend takes nearly all memory of its "
                "GPU; give each worker a whole one"
            )
        if self.model.device not in ("auto", "cpu", "cuda", "cuda:0"):
            raise ValueError(
                f"model.device {self.model.device}: vLLM takes the first GPU that its worker is given; say cuda"
            )
        for task in self.tasks:
            if task.temperature > _VLLM_TEMPERATURE:
                raise ValueError(
                    f"task {task.name}: temperature {task.temperature:g}; the vllm backend samples at "
                    f"{_VLLM_TEMPERATURE:g} at most"
                )
        return self

    @property
    def where(self) -> tuple[tuple[Condition, ...] | None, ...]:
        """Of each task, which rows it is asked of; None: of all."""
        return tuple(task.where for task in self.tasks)

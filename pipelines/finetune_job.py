"""The fine-tuning job's model: what is learned, from which rows, how, and where it goes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from workers.tasks import LimitsSpec, Placement, TaskSpec

from .job import Condition, SourceSpec, named_twice

_STRICT = ConfigDict(extra="forbid", frozen=True)
# What a task of a run has and a task to learn has not: how to decode.
_DECODING = {"max_tokens", "temperature", "top_k", "top_p", "seed", "repetition_penalty", "stop", "prompt_in"}


class StartSpec(BaseModel):
    """The checkpoint that training starts from: a folder, a hub id or an fsspec URL."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    revision: str | None = None


class LearnSpec(BaseModel):
    """One task to learn: as a task of a run, without its decoding settings, with the column of its target."""

    model_config = _STRICT

    name: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    kind: Literal["summarize", "translate", "caption", "answer", "prompt"]
    target: str = Field(min_length=1)
    language: str | None = None
    question: str | None = Field(default=None, min_length=1)
    question_column: str | None = Field(default=None, min_length=1)
    prompt: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _is_a_task(self) -> LearnSpec:
        if self.question is not None and self.question_column is not None:
            raise ValueError("question and question_column are both given; choose one")
        if self.kind == "answer" and self.question is None and self.question_column is None:
            raise ValueError("a task of kind answer needs question or question_column")
        if self.question_column is not None and self.kind != "answer":
            raise ValueError(f"question_column belongs to kind answer, not to {self.kind}")
        self.as_task()
        return self

    def as_task(self) -> TaskSpec:
        """The same as a task of a run."""
        question = self.question if self.question_column is None else "{question}"
        return TaskSpec(name=self.name, kind=self.kind, language=self.language, question=question, prompt=self.prompt)


class TrainingSourceSpec(BaseModel):
    """Which Parquet files, and what their columns mean; targets are named by the tasks."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    id: str = Field(min_length=1)
    text: str | None = None
    images: str | None = None
    image_roots: tuple[str, ...] = ()
    filter: tuple[Condition, ...] | None = None

    def as_source(self, tasks: tuple[LearnSpec, ...]) -> SourceSpec:
        """The same as a run's source that carries the tasks' columns."""
        named = [c for task in tasks for c in (task.target, task.question_column) if c is not None]
        return SourceSpec(
            path=self.path,
            id=self.id,
            text=self.text,
            images=self.images,
            image_roots=self.image_roots,
            filter=self.filter,
            carry=tuple(dict.fromkeys(named)),
        )


class HeldOutSpec(BaseModel):
    """Rows that are never trained on: every `every` updates, `rows` of them are scored."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    every: int = Field(default=500, ge=1)
    rows: int = Field(default=200, ge=1)


class LoraSpec(BaseModel):
    """Low-rank adapters (Hu et al. 2021) on the language model's projections."""

    model_config = _STRICT

    rank: int = Field(default=16, ge=1, le=1024)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TrainingSpec(BaseModel):
    """How it is learned. A step is one update over `lanes` × `documents_per_lane` documents.

    Lanes are the data's own parallel streams: their number, not that of the workers, decides what a step reads.
    """

    model_config = _STRICT

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    lanes: int | None = Field(default=None, ge=1, le=4096)
    documents_per_lane: int = Field(default=16, ge=1)
    tasks_per_document: int | None = Field(default=None, ge=1)
    max_batch_tokens: int = Field(default=8192, ge=64)
    shuffle_rows: int = Field(default=2048, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    warmup_steps: int = Field(default=100, ge=0)
    final_rate: float = Field(default=0.0, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: LoraSpec | None = None
    train_vision: bool = False
    vision_rate: float = Field(default=1.0, gt=0, le=1)
    gradient_checkpointing: bool = False
    prompt_in: Placement = "decoder"

    @field_validator("betas")
    @classmethod
    def _betas_are_shares(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both are at least 0 and below 1")
        return betas

    @model_validator(mode="after")
    def _has_a_length(self) -> TrainingSpec:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give one of steps and epochs")
        return self


class TrainingLimits(BaseModel):
    """Bounds on one row, and on how many rows may be left out."""

    model_config = _STRICT

    max_input_tokens: int = Field(default=8192, ge=1)
    overflow: Literal["truncate", "reject"] = "truncate"
    max_target_tokens: int = Field(default=1024, ge=1)
    max_image_pixels: int = Field(default=64_000_000, ge=1)
    max_images: int = Field(default=32, ge=1)
    max_skip_rate: float = Field(default=0.01, ge=0, le=1)

    def as_limits(self) -> LimitsSpec:
        """What a run calls limits."""
        return LimitsSpec(
            max_input_tokens=self.max_input_tokens,
            overflow=self.overflow,
            max_image_pixels=self.max_image_pixels,
            max_images=self.max_images,
        )


class TrainedOutputSpec(BaseModel):
    """Where the model folder goes; checkpoints of the run stand in it until it is done."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    licence: str = "see the base model's terms"


class TrainersSpec(BaseModel):
    """How many data-parallel workers; `gpus: auto` gives one GPU each where the cluster has any."""

    model_config = _STRICT

    count: int = Field(default=1, ge=1, le=4096)
    gpus: Literal["auto"] | int = "auto"
    threads: int | None = Field(default=None, ge=1)


class FinetuneSpec(BaseModel):
    """A whole fine-tuning job."""

    model_config = _STRICT

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    model: StartSpec
    source: TrainingSourceSpec
    tasks: tuple[LearnSpec, ...] = Field(min_length=1)
    held_out: HeldOutSpec | None = None
    training: TrainingSpec
    output: TrainedOutputSpec
    limits: TrainingLimits = TrainingLimits()
    workers: TrainersSpec = TrainersSpec()

    @model_validator(mode="after")
    def _task_names_are_unique(self) -> FinetuneSpec:
        if twice := named_twice(task.name for task in self.tasks):
            raise ValueError(f"two tasks are named {twice}")
        return self

    @model_validator(mode="after")
    def _every_worker_has_a_lane(self) -> FinetuneSpec:
        if self.lanes % self.workers.count:
            raise ValueError(
                f"training.lanes ({self.lanes}) must be a multiple of workers.count ({self.workers.count}): "
                "each worker takes as many lanes as the others"
            )
        return self

    @property
    def lanes(self) -> int:
        """Parallel streams of rows; as many as workers when the job does not say."""
        return self.training.lanes or self.workers.count

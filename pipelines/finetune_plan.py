"""A fine-tuning job joined with its model and its data: checked before anything heavy starts."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.cluster import Cluster, usable_cores
from infra.storage import stage_model
from model_runtime.config import ModelConfig
from model_runtime.folder import model_revision, resolve_checkpoint
from model_runtime.model import check_checkpoint
from model_runtime.optimizer import Schedule
from model_runtime.processing import Processor
from model_runtime.training import Method
from workers.examples import TrainingTask
from workers.tasks import TaskTable, prompt_template

from .errors import JobError, SourceError
from .feed import FeedSettings, units_of
from .finetune_job import FinetuneSpec, HeldOutSpec
from .resolve import task_table
from .source import Corpus, RowGroup, sample, scan
from .training_loop import LoopSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do. `base` is the start checkpoint's content revision; `fingerprint` names this very training."""

    job: FinetuneSpec
    base: str
    corpus: Corpus
    held_out: tuple[RowGroup, ...]
    held_out_rows: int
    tasks: tuple[TrainingTask, ...]
    tasks_json: dict[str, Any]
    steps: int
    image_size: int
    fingerprint: str

    def settings(self, cluster: Cluster) -> LoopSettings:
        """What every worker gets."""
        job, training = self.job, self.job.training
        device = "cuda" if gpus_per_trainer(job, cluster) else "cpu"
        lora = training.lora
        precision = training.precision
        return LoopSettings(
            device=device,
            threads=job.workers.threads or (max(1, usable_cores() // job.workers.count) if device == "cpu" else None),
            method=Method(
                precision=("bfloat16" if device == "cuda" else "float32") if precision == "auto" else precision,
                lora_rank=lora.rank if lora else 0,
                lora_alpha=lora.alpha if lora else 0,
                lora_dropout=lora.dropout if lora else 0.0,
                train_vision=training.train_vision,
                gradient_checkpointing=training.gradient_checkpointing,
            ),
            schedule=Schedule(
                peak=training.learning_rate,
                steps=self.steps,
                warmup=min(training.warmup_steps, self.steps),
                final=training.final_rate,
            ),
            betas=training.betas,
            weight_decay=training.weight_decay,
            clip=training.clip,
            vision_rate=training.vision_rate,
            seed=training.seed,
            feed=self._feed(),
            max_batch_tokens=training.max_batch_tokens,
            max_skip_rate=job.limits.max_skip_rate,
            held_out=self.held_out,
            held_out_every=job.held_out.every if job.held_out else 0,
            task_names=tuple(task.name for task in job.tasks),
            output=job.output.path,
            checkpoint_every=job.output.checkpoint_every,
            keep_checkpoints=job.output.keep_checkpoints,
            dtype=job.output.dtype,
            fingerprint=self.fingerprint,
            extra_files={"tasks.json": json.dumps(self.tasks_json, indent=2, ensure_ascii=False) + "\n"},
        )

    def _feed(self) -> FeedSettings:
        job, training = self.job, self.job.training
        return FeedSettings(
            model=job.model.path,
            revision=job.model.revision,
            source=job.source.as_source(job.tasks),
            carry=self.corpus.carry,
            units=units_of(self.corpus.row_groups, job.lanes),
            tasks=self.tasks,
            limits=job.limits.as_limits(),
            max_target_tokens=job.limits.max_target_tokens,
            prompt_in=training.prompt_in,
            lanes=job.lanes,
            documents=training.documents_per_lane,
            shuffle_rows=training.shuffle_rows,
            image_size=self.image_size,
            tasks_per_document=training.tasks_per_document,
            seed=training.seed,
        )


def plan(job: FinetuneSpec) -> Plan:
    """Find and check model and data; ModelError, SourceError or JobError say in one line what cannot be used."""
    folder = resolve_checkpoint(stage_model(job.model.path, job.model.revision), job.model.revision)
    check_checkpoint(folder)
    processor = Processor.load(folder)
    _check_lengths(job, folder)
    corpus = _scan(job, job.source.path, "source")
    if len(units_of(corpus.row_groups, job.lanes)) < job.lanes:
        raise SourceError(
            f"source.path: {corpus.documents:,} rows for {job.lanes:,} lanes; a lane needs one row or more"
        )
    held_out: tuple[RowGroup, ...] = ()
    held_out_rows = 0
    if job.held_out is not None:
        held_out, held_out_rows = _held_out(job, job.held_out, corpus)
    table = task_table(folder, processor)
    base = model_revision(folder)
    return Plan(
        job=job,
        base=base,
        corpus=corpus,
        held_out=held_out,
        held_out_rows=held_out_rows,
        tasks=tuple(
            TrainingTask(
                name=task.name,
                kind=task.kind,
                language=task.as_task().language,
                prompt=prompt_template(task.as_task(), table),
                question=task.question,
                question_column=task.question_column,
                target=task.target,
            )
            for task in job.tasks
        ),
        tasks_json=_tasks_json(job, table),
        steps=_steps(job, corpus),
        image_size=processor.image_size,
        fingerprint=_fingerprint(job, base, corpus),
    )


def gpus_per_trainer(job: FinetuneSpec, cluster: Cluster) -> int:
    """GPUs that one worker takes; `auto` is one where the cluster has any."""
    return int(cluster.gpus > 0) if job.workers.gpus == "auto" else int(job.workers.gpus)


def _scan(job: FinetuneSpec, path: str, key: str) -> Corpus:
    source = job.source.as_source(job.tasks).model_copy(update={"path": path})
    corpus = scan(source, key=key, reserved=())
    for task in job.tasks:
        for column in filter(None, (task.target, task.question_column)):
            kind = corpus.carry.field(column).type
            if str(kind) not in ("string", "large_string", "string_view", "null"):
                raise SourceError(f"{path}: column {column!r} is {kind}; targets and questions are text")
    if corpus.unreadable:
        file = corpus.unreadable[0]
        raise SourceError(f"{file.url}: {file.reason}; remove it, or write it anew")
    if not corpus.documents:
        raise SourceError(f"{key}.path: no rows to learn from under {path}")
    return corpus


def _held_out(job: FinetuneSpec, spec: HeldOutSpec, train: Corpus) -> tuple[tuple[RowGroup, ...], int]:
    corpus = _scan(job, spec.path, "held_out")
    both = {file.url for file in corpus.files} & {file.url for file in train.files}
    if both:
        raise JobError(f"held_out.path: {min(both)} is also trained on; held-out rows must stand in other files")
    return tuple(sample(corpus, spec.rows)), min(spec.rows, corpus.documents)


def _check_lengths(job: FinetuneSpec, folder: Path) -> None:
    positions = ModelConfig.load(folder).decoder.max_positions
    if job.limits.max_target_tokens >= positions:
        raise JobError(
            f"limits.max_target_tokens: {job.limits.max_target_tokens:,} does not fit the model's {positions:,} "
            "positions"
        )


def _steps(job: FinetuneSpec, corpus: Corpus) -> int:
    if job.training.steps is not None:
        return job.training.steps
    assert job.training.epochs is not None
    return math.ceil(corpus.documents * job.training.epochs / (job.lanes * job.training.documents_per_lane))


def _tasks_json(job: FinetuneSpec, table: TaskTable) -> dict[str, Any]:
    """What the model was trained for: one prompt and the languages of each kind."""
    tasks: dict[str, dict[str, Any]] = {}
    for spec in job.tasks:
        task = spec.as_task()
        entry = tasks.setdefault(task.kind, {"prompt": table.prompts[task.kind]})
        # A kind whose every task brings one prompt of its own has that for its default.
        own = {other.prompt for other in job.tasks if other.kind == task.kind}
        if len(own) == 1 and task.prompt is not None and task.kind != "prompt":
            entry["prompt"] = task.prompt
        if task.language is not None and task.language not in entry.setdefault("languages", []):
            entry["languages"].append(task.language)
    return {"version": 1, "prompt_in": job.training.prompt_in, "tasks": tasks}


def _fingerprint(job: FinetuneSpec, base: str, corpus: Corpus) -> str:
    """Changes with whatever changes the weights; not with how many workers share the lanes, or when it is saved."""
    document = job.model_dump(mode="json", exclude={"workers", "output", "held_out", "name"})
    document["model"] = base
    document["source"].pop("path")
    document["files"] = [[file.etag, file.rows] for file in corpus.files]
    document["training"]["lanes"] = job.lanes
    document["dtype"] = job.output.dtype
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]

"""What a run needs to know before it starts: the model's folder, its tasks, the corpus, the stages' settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow as pa

from infra.cluster import Cluster
from infra.storage import Location, base_folder, hidden, stage_model
from model_runtime import EngineConfig, ModelError
from model_runtime.config import ModelConfig
from model_runtime.folder import model_revision, resolve_checkpoint
from model_runtime.load import check_installed
from model_runtime.model import check_checkpoint
from model_runtime.processing import Processor
from workers.collect import RunContext
from workers.tasks import Task, TaskTable, language_warnings, resolve_tasks

from .errors import JobError
from .job import JobSpec
from .known import Decides, recall
from .ledger import decides
from .read import where_columns
from .source import Corpus, scan
from .stages import StageSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A job joined with its model and its source. `revision` names the model's content, `commit` the hub's snapshot."""

    job: JobSpec
    revision: str
    commit: str | None
    tasks: tuple[Task, ...]
    corpus: Corpus
    decides: Decides
    warnings: list[str]

    def settings(
        self, *, run_id: str, table: str, cluster: Cluster, retry_failed: bool = False, pixels: bool = True
    ) -> StageSettings:
        """What the stages get; `table` may be a scratch table instead of the job's own."""
        job = self.job
        return StageSettings(
            model=job.model.path,
            revision=self.commit or job.model.revision,
            engine=EngineConfig(
                model=job.model.path,
                revision=self.commit or job.model.revision,
                backend=job.model.backend,
                device=device_for(job, cluster),
                dtype=job.model.dtype,
                max_batch_tokens=job.model.max_batch_tokens,
                max_decodes=job.model.max_decodes,
                shares_cores=True,  # with Ray's processes and the other stages
            ),
            limits=job.limits,
            context=RunContext(
                run_id=run_id,
                job=job.name,
                model=job.model.path,
                model_revision=self.revision,
                backend=job.model.backend,
                runtime_version=runtime_version(),
                tasks=self.tasks,
            ),
            source_path=job.source.path,
            image_roots=job.source.image_roots,
            table=table,
            carry=self.carry,
            retry_failed=retry_failed,
            pixels=pixels,
        )

    @property
    def carry(self) -> pa.Schema:
        """The carried columns."""
        return self.corpus.carry


def resolve(job: JobSpec) -> Resolved:
    """Find and check model and source; ModelError, SourceError or StorageError when one cannot be used.

    The weights are hashed and their headers compared with the config; they are not loaded. Of source files that the
    table's earlier runs know, nothing is read.
    """
    if not os.environ.get("RAY_ADDRESS"):
        # On a cluster the workers may have what the driver has not.
        check_installed(job.model.backend)
    folder = resolve_checkpoint(stage_model(job.model.path, job.model.revision), job.model.revision)
    check_checkpoint(folder)
    processor = Processor.load(folder)
    table = task_table(folder, processor)
    tasks = resolve_tasks(job.tasks, table, job.limits)
    _check_lengths(tasks, processor, ModelConfig.load(folder).decoder.max_positions)
    revision = model_revision(folder)
    decided_by = decides(job.source, tasks, job.where, revision)
    table_there = Location(job.output.path)
    corpus = scan(
        job.source, also=where_columns(job.where), recall=lambda listed: recall(table_there, decided_by, listed)
    )
    _check_apart(job, corpus)
    warnings = language_warnings(job.tasks, table)
    warnings += [f"{file.url}: {file.reason}; its rows cannot be read" for file in corpus.unreadable]
    return Resolved(
        job=job,
        revision=revision,
        commit=_commit(folder),
        tasks=tasks,
        corpus=corpus,
        decides=decided_by,
        warnings=warnings,
    )


def gpus_per_worker(job: JobSpec, cluster: Cluster) -> float:
    """GPUs that one model worker takes; `auto` is one where the cluster has any."""
    if job.workers.gpus == "auto":
        return 1.0 if cluster.gpus else 0.0
    return float(job.workers.gpus)


def device_for(job: JobSpec, cluster: Cluster) -> str:
    """The engine's device: the job's own word, else CUDA for workers with a GPU."""
    if job.model.device != "auto":
        return job.model.device
    return "cuda" if gpus_per_worker(job, cluster) else "cpu"


def runtime_version() -> str:
    """This package's version."""
    try:
        return version("corpusmill")
    except PackageNotFoundError:
        return "unknown"


def check_gpus(job: JobSpec, cluster: Cluster) -> str | None:
    """JobError when this machine lacks the GPUs that a worker asks for; on a cluster, which may grow, a warning."""
    wanted = gpus_per_worker(job, cluster)
    if wanted <= cluster.gpus:
        return None
    asked = f"workers.gpus asks for {wanted:g} a worker"
    if cluster.local:
        raise JobError(
            f"{asked}, and this machine has {cluster.gpus:g}; write gpus: auto, or run on a cluster with GPUs"
        )
    return f"{asked}, and the cluster has {cluster.gpus:g} now; the run waits until it grows"


def task_table(folder: Path, processor: Processor) -> TaskTable:
    """The model's prompts and languages; ModelError when its tasks.json cannot be used."""
    try:
        return TaskTable.parse(processor.tasks_document)
    except ValueError as error:
        raise ModelError(f"{folder}: {error}") from error


def _check_lengths(tasks: tuple[Task, ...], processor: Processor, positions: int) -> None:
    for task in tasks:
        prefix = len(processor.prefix_ids(task.prompt)) if task.prompt_in == "decoder" else 0
        needed = 1 + prefix + task.sampling.max_tokens
        if needed > positions:
            raise JobError(
                f"task {task.name}: max_tokens {task.sampling.max_tokens} and its prompt make {needed} decoder tokens; "
                f"the model takes {positions}"
            )


def _check_apart(job: JobSpec, corpus: Corpus) -> None:
    """JobError when the table's own files would be read as documents, now or in a later run."""
    table, source = _real(Location(job.output.path)), _real(base_folder(job.source.path))
    inside = table[len(source) :].strip("/") if f"{table}/".startswith(f"{source.rstrip('/')}/") else None
    # What a folder's listing leaves out, and what a glob or a file names, is read only where it is found below.
    is_folder = Location(job.source.path).url == base_folder(job.source.path).url
    if inside is not None and is_folder and not hidden(inside, "._"):
        raise JobError(
            f"output.path {Location(job.output.path)} lies inside source.path: the table's files would be read as "
            "documents; write it beside the source"
        )
    zones = tuple(f"{table}/{zone}/" for zone in ("results", "errors", "_work", "_runs", "_samples"))
    for file in corpus.files:
        if _real(Location(file.url)).startswith(zones):
            raise JobError(
                f"source.path reads {Location(file.url)}, a file of this job's own table; name another output.path"
            )


def _real(location: Location) -> str:
    return os.path.realpath(location.url) if location.is_local else location.url


def _commit(folder: Path) -> str | None:
    # The hub's cache keeps each commit in snapshots/<commit>: what every worker must get, wherever a branch moves.
    return folder.name if folder.parent.name == "snapshots" else None

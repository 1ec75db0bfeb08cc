"""The graph: source → prepare → generate → finish, streaming, as one Ray Data pipeline."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError

from infra.cluster import Cluster

from .errors import RunError
from .job import JobSpec
from .read import Read, as_units
from .relay import Relaying, meant
from .resolve import Resolved, gpus_per_worker
from .resume import DoneIndex
from .shards import UnreadableFile
from .source import RowGroup
from .stages import Finish, GenerateStage, PrepareStage, StageSettings

# Packets inside one model worker at a time: the engine always has documents to take up while slow decodes end.
_CALLS_PER_WORKER = 8
# Rows that a prepare worker takes at a time: enough to fill packets, few enough to be on their way soon.
_PREPARE_ROWS = 64
# Blocks between the stages stay small: with images, a few dozen documents are this much.
_BLOCK_BYTES = 32 << 20
# One packet of 128K-token documents may take an hour on a CPU: slow is not stuck.
_NO_PROGRESS_SECONDS = 24 * 3600
# From so many row groups on, those with few documents are read several to a task: each task costs milliseconds.
_TASKS, _TASK_DOCUMENTS = 1024, 256
# What an input crashes is a process of the workers' own (workers/child_process.py): an actor or a task whose process
# dies was killed from outside, or lost its node. So much of that a run survives; Ray's own default is to try for ever.
_RESTARTS, _RETRIES = 100, 10
_LIGHT, _PREPARE = 0.25, 0.5
_DEATHS = (ActorDiedError, WorkerCrashedError, NodeDiedError, OutOfMemoryError)
_SHOWN = 200


def prepared(
    resolved: Resolved, settings: StageSettings, done: ray.ObjectRef, groups: list[RowGroup], cluster: Cluster
) -> Dataset:
    """Packets of prepared documents."""
    quiet_context()
    docs: Dataset = ray.data.from_arrow(unit_blocks(groups, resolved.corpus.unreadable))
    read = Read(resolved.job.source, resolved.carry, resolved.job.where)
    with _bounded_retries() as (actors, tasks):
        docs = docs.map_batches(Relaying(read), batch_format="pyarrow", num_cpus=_LIGHT, **tasks)
        return docs.map_batches(
            PrepareStage,
            fn_constructor_kwargs={"settings": settings, "done": [done]},
            batch_size=_PREPARE_ROWS,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=_prepare_workers(cluster)),
            num_cpus=_PREPARE,
            **actors,
        )


def unit_blocks(groups: Sequence[RowGroup], unreadable: Sequence[UnreadableFile]) -> list[pa.Table]:
    """What the read stage takes, a block for each of its tasks: a row group, or of very many small ones several."""
    units = as_units(groups, unreadable)
    most = _TASK_DOCUMENTS if units.num_rows > _TASKS else 0
    cuts, filled = [0], 0
    for n, documents in enumerate(units.column("documents").to_pylist()):
        filled += max(1, documents or 0)
        if filled >= most:
            cuts.append(n + 1)
            filled = 0
    cuts += [units.num_rows] if cuts[-1] < units.num_rows else []
    return [units.slice(start, end - start) for start, end in pairwise(cuts)]


def outcomes(
    resolved: Resolved, settings: StageSettings, done: ray.ObjectRef, groups: list[RowGroup], cluster: Cluster
) -> Dataset:
    """The whole job: what became of every document, its rows durable in `_work/`."""
    packets = prepared(resolved, settings, done, groups, cluster).repartition(target_num_rows_per_block=1)
    with _bounded_retries() as (actors, tasks):
        generated = packets.map_batches(
            GenerateStage,
            fn_constructor_kwargs={"settings": settings},
            batch_size=1,
            batch_format="pyarrow",
            compute=_model_workers(resolved.job, cluster),
            num_cpus=1,
            num_gpus=gpus_per_worker(resolved.job, cluster) or None,
            **actors,
        )
        return generated.map_batches(Relaying(Finish(settings)), batch_format="pyarrow", num_cpus=_LIGHT, **tasks)


def outcome_blocks(
    resolved: Resolved, settings: StageSettings, done: DoneIndex, groups: list[RowGroup], cluster: Cluster
) -> Generator[pa.Table, None, None]:
    """The blocks of `outcomes`, none when there is nothing to read."""
    if groups or resolved.corpus.unreadable:
        yield from blocks(outcomes(resolved, settings, share(done), groups, cluster))


def blocks(dataset: Dataset) -> Iterator[pa.Table]:
    """The dataset's blocks as they are finished; an error of a worker is raised as what it was."""
    with worker_errors():
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            if isinstance(block, pa.Table) and block.num_rows:
                yield block


@contextmanager
def worker_errors() -> Iterator[None]:
    """Unwrap Ray's exceptions: what a worker meant for a person is raised as it was."""
    try:
        yield
    except Exception as error:
        cause = meant(error)
        if cause is error:
            raise
        if cause is not None:
            raise cause from error
        if isinstance(error, _DEATHS):
            reason = " ".join(str(error).split())[:_SHOWN]
            raise RunError(
                f"a worker's process died more than {_RETRIES} times over the same documents ({type(error).__name__}: "
                f"{reason}). What is done is kept; look at the node's memory and Ray's logs, and run again to go on"
            ) from error
        raise


def share(done: DoneIndex) -> ray.ObjectRef:
    """Put the keys that are done where every worker of a node reads one copy."""
    return ray.put(done)


@contextmanager
def _bounded_retries() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Keywords for stages of actors and of tasks."""
    # Until Ray 2.64 the keywords are only deprecated, and there is no other way to say it yet.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        yield {"max_restarts": _RESTARTS, "max_task_retries": _RETRIES}, {"max_retries": _RETRIES}


def _model_workers(job: JobSpec, cluster: Cluster) -> ActorPoolStrategy:
    # On the CPU one worker uses all cores of its node: more of them on it would only share these.
    most = job.workers.max if gpus_per_worker(job, cluster) else min(job.workers.max, cluster.nodes)
    return ActorPoolStrategy(
        min_size=min(job.workers.min, most),
        max_size=most,
        max_concurrent_calls_per_actor=_CALLS_PER_WORKER,
        enable_true_multi_threading=True,
        max_tasks_in_flight_per_actor=2 * _CALLS_PER_WORKER,
    )


def _prepare_workers(cluster: Cluster) -> int:
    return max(1, int(cluster.cpus // 4))


def quiet_context() -> None:
    """Small blocks, no progress bars, no chatter, and no time limit on slow work: for what this process starts next."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_no_progress_timeout_s = _NO_PROGRESS_SECONDS
    # Ray's own wrapper loses what it wraps on the way to the driver: only a traceback as text would arrive.
    context.raise_original_map_exception = True
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

"""Fine-tuning as a Ray Train job: what a run needs to know, its data-parallel workers, and what came of it."""

from __future__ import annotations

import json
import posixpath
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train.torch import TorchTrainer

from infra.cluster import Cluster, cluster
from infra.storage import Location, StorageError, redact_url
from model_runtime.errors import ModelError
from workers.examples import Skipped

from .errors import JobError, RunError, TableError
from .finetune_job import FinetuneSpec
from .finetune_plan import Plan, gpus_per_trainer
from .lease import Lease
from .lineage import new_run_id, package_versions
from .pools import PoolServer, steps
from .resolve import runtime_version
from .training_checkpoint import Checkpoints, History, SkipLog
from .training_loop import LoopSettings, TrainingLoop, Workers

RESULT = "training.json"
_RESTARTS = 3
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """How a run ended. `already_done`: the model was there before, and nothing was done."""

    plan: Plan
    history: History
    skips: SkipLog
    document: dict[str, Any]
    resumed_at: int
    already_done: bool


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a worker tells: `event` is start, step, held_out, saved or ended; the rest are its figures."""

    event: str
    figures: dict[str, Any]


def finetune(job: FinetuneSpec, plan: Plan, *, on_event: Callable[[Event], None] = lambda event: None) -> TrainReport:
    """Train from the newest checkpoint to the end and write the model folder; RunError and its kin say why not."""
    output = Location(job.output.path)
    checkpoints = Checkpoints(output, job.output.keep_checkpoints)
    found = checkpoints.latest()
    done = _result(output)
    if done is not None and done["fingerprint"] == plan.fingerprint:
        if found is not None:  # killed between its last two actions
            checkpoints.drop_all()
        return _report(plan, done, resumed_at=plan.steps, already_done=True)
    _check_output(output, plan, done, found.fingerprint if found else None)
    with Lease.acquire(output, new_run_id(), job.name), cluster() as ray_cluster:
        _check_cluster(job, ray_cluster)
        _train(plan.settings(ray_cluster), job, ray_cluster, on_event)
        last = checkpoints.latest()
        assert last is not None and last.step == plan.steps
        skips = SkipLog()
        for lane in range(job.lanes):
            log = checkpoints.load_skips(last.step, lane)
            skips.counts.update(log.counts)
            skips.listed += log.listed
        document = _document(plan, last.history, skips)
        output.child(RESULT).write_bytes(json.dumps(document, ensure_ascii=False).encode())
        checkpoints.drop_all()
    return _report(plan, document, resumed_at=found.step if found else 0, already_done=False)


def _train(settings: LoopSettings, job: FinetuneSpec, ray_cluster: Cluster, on_event: Callable[[Event], None]) -> None:
    board: Any = ray.remote(_Board).options(num_cpus=0).remote()
    pools = ray.remote(PoolServer).options(num_cpus=0, max_concurrency=max(8, 2 * job.lanes)).remote(settings.feed)
    gpus = settings.device == "cuda"
    resources = {"CPU": 1.0} | ({"GPU": 1.0} if gpus else {})
    with tempfile.TemporaryDirectory(prefix="corpusmill-train-") as scratch, _forwarded(board, on_event):
        trainer = TorchTrainer(
            _work,
            train_loop_config={"settings": settings, "board": board, "pools": pools},
            scaling_config=ScalingConfig(num_workers=job.workers.count, use_gpu=gpus, resources_per_worker=resources),
            run_config=RunConfig(
                name=job.name, storage_path=scratch, failure_config=FailureConfig(max_failures=_RESTARTS)
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _for_a_person(error) from error
    failure: Exception | None = ray.get(board.failure.remote())
    if failure is not None:
        raise failure


def _work(config: dict[str, Any]) -> None:
    """One worker's life. What no restart would mend is told to the board: the restarted group then ends in peace."""
    context, board = get_context(), config["board"]
    if ray.get(board.failure.remote()) is not None:
        return
    workers = Workers(context.get_world_rank(), context.get_world_size())
    try:
        server = config["pools"]
        TrainingLoop(
            config["settings"],
            workers,
            lambda lane, cursor: steps(server, lane, cursor),
            lambda event: board.post.remote(event),
        ).run()
    except (RunError, ModelError, StorageError) as error:
        ray.get(board.fail.remote(error))
        raise


class _Board:
    """Where workers put up what happens, and the driver reads it."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._failure: Exception | None = None

    def post(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def fail(self, error: Exception) -> None:
        self._failure = self._failure or error

    def failure(self) -> Exception | None:
        return self._failure

    def take(self) -> list[dict[str, Any]]:
        taken, self._events = self._events, []
        return taken


@contextmanager
def _forwarded(board: Any, on_event: Callable[[Event], None]) -> Iterator[None]:
    """Pass the board's events on while the block runs, and what is left of them at its end."""
    over = threading.Event()

    def forward() -> None:
        for found in ray.get(board.take.remote()):
            figures = dict(found)
            on_event(Event(figures.pop("event"), figures))

    def poll() -> None:
        while not over.wait(_POLL_SECONDS):
            forward()

    thread = threading.Thread(target=poll, name="corpusmill-training-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    forward()


def _for_a_person(error: TrainingFailedError) -> Exception:
    """The one line that a failure of the workers means; theirs, when it is one of ours."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, RunError | ModelError | StorageError):
            return failure
    first = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    return RunError(
        f"the training workers died {_RESTARTS + 1} times ({lines[-1] if lines else type(first).__name__}); the same "
        "command goes on from the last checkpoint"
    )


def _result(output: Location) -> dict[str, Any] | None:
    location = output.child(RESULT)
    if not location.exists():
        return None
    try:
        document = json.loads(location.read_bytes())
        if not {"fingerprint", "history", "skipped"} <= set(document):
            raise ValueError("it lacks its keys")
        return document
    except (ValueError, TypeError) as error:
        raise TableError(f"{location} is not a training run's result ({error}): delete it to train anew") from error


def _check_output(output: Location, plan: Plan, done: dict[str, Any] | None, found: str | None) -> None:
    if done is not None:
        raise TableError(
            f"{output} holds a model that another training made (other data, model or settings): choose another "
            "output.path, or delete the folder"
        )
    if found is not None and found != plan.fingerprint:
        raise TableError(
            f"{output}/checkpoints belong to another training (other data, model or settings): choose another "
            "output.path, or delete the folder to begin anew"
        )
    if found is None and output.child("config.json").exists():
        raise TableError(f"{output} holds a model already, and not one of this job's: choose another output.path")


def _check_cluster(job: FinetuneSpec, ray_cluster: Cluster) -> None:
    gpus = gpus_per_trainer(job, ray_cluster)
    if not ray_cluster.local:
        return
    if gpus * job.workers.count > ray_cluster.gpus:
        raise JobError(
            f"workers: {job.workers.count} × {gpus} GPUs are asked for, and this machine has {ray_cluster.gpus:g}"
        )
    if job.workers.count > ray_cluster.cpus - 1:
        raise JobError(f"workers.count: {job.workers.count} is more than this machine's {ray_cluster.cpus - 1:g} CPUs")


def _document(plan: Plan, history: History, skips: SkipLog) -> dict[str, Any]:
    """training.json: the course of the run and what it was made of."""
    return {
        "fingerprint": plan.fingerprint,
        "job": plan.job.name,
        "base": {"path": redact_url(plan.job.model.path), "revision": plan.base},
        "data": {
            "path": redact_url(plan.job.source.path),
            "files": [{"name": posixpath.basename(f.url), "etag": f.etag, "rows": f.rows} for f in plan.corpus.files],
        },
        "steps": plan.steps,
        "history": asdict(history),
        "skipped": {
            "counts": dict(skips.counts),
            "listed": [skip._asdict() | {"source_path": redact_url(skip.source_path)} for skip in skips.listed],
        },
        "versions": {"corpusmill": runtime_version(), **package_versions()},
    }


def _report(plan: Plan, document: dict[str, Any], *, resumed_at: int, already_done: bool) -> TrainReport:
    skipped = document["skipped"]
    return TrainReport(
        plan=plan,
        history=History(**document["history"]),
        skips=SkipLog(Counter(skipped["counts"]), [Skipped(**skip) for skip in skipped["listed"]]),
        document=document,
        resumed_at=resumed_at,
        already_done=already_done,
    )

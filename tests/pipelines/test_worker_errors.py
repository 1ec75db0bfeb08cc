"""What a worker of Ray's raises reaches the driver as what it was, not as Ray's wrapper."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pytest
import ray

from infra.storage import StorageError
from jobs.failures import explain
from model_runtime import ModelError
from pipelines import graph
from pipelines.errors import SourceError
from pipelines.generate import run_job
from pipelines.job import JobSpec
from pipelines.relay import Relaying, relaying_actor
from pipelines.resolve import Resolved
from pipelines.stages import StageSettings

from .corpora import write_shards

ERRORS = [
    ModelError("model m: its shard is missing"),
    SourceError("source s: has no column text"),
    StorageError("s3://bucket/table", "not writable"),
]


@relaying_actor
class Stage:
    """Fails with what it was given."""

    def __init__(self, error: Exception, starting: bool) -> None:
        if starting:
            raise error
        self._error = error

    def __call__(self, block: pa.Table) -> pa.Table:
        raise self._error


def through_an_actor(error: Exception, *, starting: bool) -> Any:
    return ray.data.range(4).map_batches(
        Stage,
        fn_constructor_args=(error, starting),
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_format="pyarrow",
    )


def through_a_task(error: Exception) -> Any:
    def fail(block: pa.Table) -> pa.Table:
        raise error

    return ray.data.range(4).map_batches(Relaying(fail), batch_format="pyarrow")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["task", "actor", "actor's start"])
def test_it_is_what_it_was(local_ray: None, error: Exception, where: str) -> None:
    graph.quiet_context()
    made = through_a_task(error) if where == "task" else through_an_actor(error, starting=where != "actor")
    with pytest.raises(type(error)) as caught:
        list(graph.blocks(made))
    assert type(caught.value) is type(error) and str(caught.value) == str(error)


def test_a_model_that_is_another_one_on_the_workers_ends_the_run_in_one_line(local_ray, tmp_path, model, monkeypatch):
    real = Resolved.settings

    def planned_otherwise(self: Resolved, **given: Any) -> StageSettings:
        made = real(self, **given)
        return dataclasses.replace(made, context=dataclasses.replace(made.context, model_revision="another"))

    monkeypatch.setattr(Resolved, "settings", planned_otherwise)
    write_shards(tmp_path / "corpus", [{"doc_id": "doc", "body": "Rain fell."}], shards=1, group=1)
    job = {
        "name": "changed",
        "model": {"path": str(model), "dtype": "float32"},
        "source": {"path": str(tmp_path / "corpus"), "id": "doc_id", "text": "body"},
        "tasks": [{"name": "summary", "kind": "summarize", "max_tokens": 6}],
        "output": {"path": str(tmp_path / "table")},
    }
    with pytest.raises(ModelError) as caught:
        run_job(JobSpec.model_validate(job), job_text="")
    [line] = explain(caught.value).lines
    assert line.startswith(str(model)) and "holds other files than the model this run was planned with" in line

"""The order in which rows are learned: every row once an epoch, the same for whoever reads it, from any place."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from pipelines.feed import Cursor, FeedSettings, Step, pool_units, units_of
from pipelines.finetune_job import FinetuneSpec
from pipelines.finetune_plan import Plan, plan
from pipelines.pools import PoolServer, steps

from .corpora import SCHEMA, text, write_shards

ROWS = 90
LEARN = pa.schema([*SCHEMA, *((name, pa.string()) for name in ("target", "other", "z"))])


def spec(folder: Path, model: Path, **training: Any) -> FinetuneSpec:
    return FinetuneSpec.model_validate(
        {
            "name": "feed",
            "model": {"path": str(model)},
            "source": {"path": str(folder), "id": "doc_id", "text": "body"},
            "tasks": [{"name": "t", "kind": "summarize", "target": "target"}],
            "training": {"steps": 5, "documents_per_lane": 4, "shuffle_rows": 20, **training},
            "output": {"path": str(folder / "out")},
        }
    )


@pytest.fixture(scope="module")
def planned(local_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Plan]:
    """The plan of the same rows for 1 and for 3 lanes; each row's text is its own, two rows have no target."""
    folder = tmp_path_factory.mktemp("feed")
    rows = [
        {
            "doc_id": f"d{n}",
            "body": text(n, 4 + n % 9),
            "photos": [],
            "year": n,
            "target": None if n in (7, 50) else "x",
        }
        for n in range(ROWS)
    ]
    write_shards(folder, rows, shards=3, group=8, schema=LEARN)
    return {lanes: plan(spec(folder, model, lanes=lanes)) for lanes in (1, 3)}


@pytest.fixture(scope="module")
def feeds(planned: dict[int, Plan]) -> dict[int, FeedSettings]:
    from infra.cluster import Cluster

    return {lanes: found.settings(Cluster(4, 0, 1, True)).feed for lanes, found in planned.items()}


def of_epoch(server: Any, lanes: int, epoch: int) -> list[Step]:
    found = []
    for lane in range(lanes):
        found += list(itertools.takewhile(lambda s: s.after.epoch == epoch, steps(server, lane, Cursor(epoch))))
    return found


def inputs(found: list[Step]) -> list[bytes]:
    return [document.input_ids.tobytes() for step in found for document in step.documents]


@pytest.mark.parametrize("lanes", [1, 3])
def test_every_row_is_learned_once_an_epoch(feeds: dict[int, FeedSettings], lanes: int) -> None:
    server = ray.remote(PoolServer).options(num_cpus=0, max_concurrency=8).remote(feeds[lanes])
    first, second = of_epoch(server, lanes, 0), of_epoch(server, lanes, 1)
    for found in (first, second):
        assert max(Counter(inputs(found)).values()) == 1 and len(inputs(found)) == ROWS - 2
        assert sorted(skip.code for step in found for skip in step.skipped) == ["missing_target"] * 2
        assert all(1 <= len(step.documents) <= 4 for step in found)
    assert sorted(inputs(first)) == sorted(inputs(second)) and inputs(first) != inputs(second)
    ray.kill(server)


def test_a_lane_goes_on_from_any_place_with_the_same_rows(feeds: dict[int, FeedSettings]) -> None:
    server = ray.remote(PoolServer).options(num_cpus=0, max_concurrency=8).remote(feeds[3])
    whole = list(itertools.islice(steps(server, 1, Cursor()), 20))
    assert whole[-1].after.epoch >= 1, "it goes over an epoch's end"
    other = ray.remote(PoolServer).options(num_cpus=0, max_concurrency=8).remote(feeds[3])
    for place in (1, 4, 7, 12, 17):
        rest = list(itertools.islice(steps(other, 1, whole[place - 1].after), 20 - place))
        assert [step.after for step in rest] == [step.after for step in whole[place:]]
        assert inputs(rest) == inputs(whole[place:])
    # As a restarted worker does: back to what was served before.
    again = list(itertools.islice(steps(other, 1, Cursor()), 20))
    assert inputs(again) == inputs(whole)
    for actor in (server, other):
        ray.kill(actor)


def test_lanes_share_nothing_and_leave_nothing_out(feeds: dict[int, FeedSettings]) -> None:
    settings = feeds[3]
    for epoch in range(3):
        dealt = [unit for lane in range(3) for pool in pool_units(settings, lane, epoch) for unit in pool]
        assert sorted(dealt) == list(range(len(settings.units)))


def test_a_source_of_one_row_group_feeds_several_lanes(planned: dict[int, Plan]) -> None:
    (group,) = planned[1].corpus.row_groups[:1]
    units = units_of([group], 4)
    assert len(units) == 4
    assert [n for unit in units for n in (unit.only or ())] == list(range(group.documents))


def test_examples_are_drawn_anew_each_epoch(local_ray: None, model: Path, tmp_path: Path) -> None:
    from infra.cluster import Cluster

    rows = [{"doc_id": f"d{n}", "body": text(n, 5), "target": f"t{n}", "other": f"o{n}", "z": "z"} for n in range(12)]
    write_shards(tmp_path / "rows", rows, shards=1, group=12, schema=LEARN)
    document = spec(tmp_path / "rows", model, tasks_per_document=2).model_dump()
    document["tasks"] = [{"name": name, "kind": "summarize", "target": name} for name in ("target", "other", "z")]
    settings = plan(FinetuneSpec.model_validate(document)).settings(Cluster(4, 0, 1, True)).feed
    server = ray.remote(PoolServer).options(num_cpus=0, max_concurrency=8).remote(settings)
    chosen = [
        {d.input_ids.tobytes(): tuple(e.task for e in d.examples) for s in of_epoch(server, 1, n) for d in s.documents}
        for n in range(2)
    ]
    assert all(len(tasks) == len(set(tasks)) == 2 for epoch in chosen for tasks in epoch.values())
    assert chosen[0].keys() == chosen[1].keys() and chosen[0] != chosen[1]
    ray.kill(server)

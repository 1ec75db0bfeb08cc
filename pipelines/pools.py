"""Serves pools to the training workers: Ray Data makes them a few at a time, ahead of what is being read."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from .feed import Cursor, FeedSettings, Pool, Step, pool_table, pool_units, steps_of
from .graph import quiet_context, worker_errors
from .relay import Relaying

# Pools of each lane that are made together. Small: the first are waited for, and all stand in the object store.
_TOGETHER = 2
_READER_CPUS = 0.1
# A reader's niceness: on a machine without GPUs it shares the cores with the training itself.
_NICENESS = 10

_Segment = tuple[int, int]


class PoolServer:
    """One for a run. It moves references only: a worker fetches a pool's rows from where they were made.

    The same pool may be asked for again, after a restart of the workers: it is the same rows in the same order.
    """

    def __init__(self, settings: FeedSettings) -> None:
        quiet_context()
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        self._settings = settings
        self._making: dict[_Segment, Future[dict[tuple[int, int], Any]]] = {}
        # Workers ask at the same time, each in a thread of this actor.
        self._lock = threading.Lock()
        # One at a time, so that what is needed now is not slowed down by what comes after it.
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="corpusmill-pools")

    def pool(self, lane: int, epoch: int, number: int) -> list[Any]:
        """[a reference to the block of one pool] (Ray would fetch a bare one), or [] behind the lane's last pool."""
        if number >= len(pool_units(self._settings, lane, epoch)):
            with self._lock:
                self._begin((epoch + 1, 0))
            return []
        segment = (epoch, number // _TOGETHER)
        with self._lock:
            making = self._begin(segment)
            self._begin((epoch, segment[1] + 1))
            for old in [s for s in self._making if s < (epoch, segment[1] - 1)]:
                del self._making[old]
        return [making.result()[lane, number]]

    def _begin(self, segment: _Segment) -> Future[dict[tuple[int, int], Any]]:
        if segment not in self._making:
            self._making[segment] = self._maker.submit(self._make, segment)
        return self._making[segment]

    def _make(self, segment: _Segment) -> dict[tuple[int, int], Any]:
        epoch, part = segment
        places = [
            (lane, epoch, number)
            for number in range(part * _TOGETHER, (part + 1) * _TOGETHER)
            for lane in range(self._settings.lanes)
            if number < len(pool_units(self._settings, lane, epoch))
        ]
        if not places:
            return {}
        table = pool_table(self._settings, places)
        pools: Dataset = ray.data.from_arrow([table.slice(i, 1) for i in range(table.num_rows)])
        pools = pools.map_batches(
            Relaying(_Reader(self._settings)), batch_size=1, batch_format="pyarrow", num_cpus=_READER_CPUS
        )
        pools.context.execution_options.preserve_order = True
        pools.context.target_max_block_size = None  # a pool is one block
        with worker_errors():
            blocks = pools.materialize().get_internal_block_refs()
        assert len(blocks) == len(places)
        return {(lane, number): block for (lane, _, number), block in zip(places, blocks)}


class _Reader(Pool):
    """A Pool that yields to the trainers."""

    def __call__(self, pools: pa.Table) -> pa.Table:
        os.nice(max(0, _NICENESS - os.nice(0)))
        return super().__call__(pools)


def steps(server: Any, lane: int, start: Cursor) -> Iterator[Step]:
    """The lane's steps from `start` on, for ever; the same for the same settings, whoever reads them and when.

    Epochs follow each other: each deals all units anew among the lanes and shuffles rows anew within pools.
    """
    cursor = start
    while True:
        with worker_errors():
            found = ray.get(server.pool.remote(lane, cursor.epoch, cursor.pool))
            block = ray.get(found[0]) if found else None
        if block is None:
            cursor = Cursor(cursor.epoch + 1)
            continue
        yield from (step for step in steps_of(block, cursor.epoch) if step.after.step > cursor.step)
        cursor = Cursor(cursor.epoch, cursor.pool + 1)

"""Training data in seeded pools: rows dealt out among lanes, read, shuffled, and cut into steps. Knows no Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from infra.storage import stage_model
from model_runtime.batches import Example, TrainingDocument
from model_runtime.folder import resolve_checkpoint
from workers.examples import Examples, Skipped, TrainingTask
from workers.image_reader import ImageReader
from workers.tasks import LimitsSpec, Placement

from .job import SourceSpec
from .read import Read, as_units
from .source import RowGroup

# Rows read together: a pool is made of whole pieces.
_UNIT_ROWS = 1024
# A pool holds no more pixels than this, whatever `shuffle_rows` says.
_POOL_BYTES = 256 << 20
_SKIPPED = pa.struct([(name, pa.int64() if name == "source_row" else pa.string()) for name in Skipped._fields])
_EXAMPLE = pa.struct([("task", pa.int16()), ("prefix", pa.list_(pa.int32())), ("target", pa.list_(pa.int32()))])
_ROW = pa.schema(
    [
        ("pool", pa.int32()),
        ("step", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
        ("images", pa.int32()),
        ("pixels", pa.large_binary()),
        ("examples", pa.list_(_EXAMPLE)),
        ("skipped", _SKIPPED),
    ]
)
_POOL = pa.schema([("pool", pa.int32()), ("seed", pa.int64()), ("units", pa.list_(pa.int32()))])


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in a lane: the next step to take is `step` of pool `pool` in epoch `epoch`."""

    epoch: int = 0
    pool: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """What every lane reads, and how it is dealt out. `units` are pieces of row groups, read as a whole."""

    model: str
    revision: str | None
    source: SourceSpec
    carry: pa.Schema
    units: tuple[RowGroup, ...]
    tasks: tuple[TrainingTask, ...]
    limits: LimitsSpec
    max_target_tokens: int
    prompt_in: Placement
    lanes: int
    documents: int
    shuffle_rows: int
    image_size: int
    tasks_per_document: int | None
    seed: int

    @property
    def pool_rows(self) -> int:
        """`shuffle_rows`, or as many as fit into a pool with an image each."""
        if self.source.images is None:
            return self.shuffle_rows
        return max(1, min(self.shuffle_rows, _POOL_BYTES // (3 * self.image_size**2)))

    def folder(self) -> Path:
        """The start checkpoint's folder on this node, fetched when it is not there yet."""
        return resolve_checkpoint(stage_model(self.model, self.revision), self.revision)

    def read(
        self, groups: Sequence[RowGroup], chance: random.Random | None = None
    ) -> Iterator[TrainingDocument | Skipped]:
        """Whole row groups in order, read here and now; with `chance`, so many targets of a row as the job says."""
        most = None if chance is None else self.tasks_per_document
        reader = ImageReader(source_root=self.source.path, roots=self.source.image_roots)
        examples = Examples(
            str(self.folder()), self.tasks, self.limits, self.max_target_tokens, self.prompt_in, reader, most, chance
        )
        for table in Read(self.source, self.carry)(as_units(groups)):
            yield from examples(table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One lane's share of one update. `after` is the place behind it; `skipped` what its pool left out, told once."""

    documents: list[TrainingDocument]
    skipped: list[Skipped]
    after: Cursor


def units_of(groups: Sequence[RowGroup], lanes: int) -> tuple[RowGroup, ...]:
    """Row groups cut so that every lane has something to read, as long as there are as many rows as lanes."""
    rows = sum(group.documents for group in groups)
    most = max(1, min(_UNIT_ROWS, -(-rows // max(lanes, 1))))
    units = []
    for group in groups:
        for start in range(0, group.documents, most):
            whole = start == 0 and group.documents <= most
            only = None if whole else range(start, min(start + most, group.documents))
            units.append(
                group if whole else dataclasses.replace(group, only=list(only or ()), documents=len(only or ()))
            )
    return tuple(units)


class Pool:
    """Callable over one row of `_POOL`: reads its units, makes training documents, shuffles, numbers the steps."""

    def __init__(self, settings: FeedSettings) -> None:
        self._settings = settings

    def __call__(self, pools: pa.Table) -> pa.Table:
        (pool,) = pools.to_pylist()
        settings = self._settings
        documents: list[TrainingDocument] = []
        skipped: list[Skipped] = []
        chance = random.Random(pool["seed"])
        for made in settings.read([settings.units[u] for u in pool["units"]], chance):
            if isinstance(made, Skipped):
                skipped.append(made)
            else:
                documents.append(made)
        chance.shuffle(documents)
        rows = [_row(pool["pool"], n // settings.documents, document) for n, document in enumerate(documents)]
        # What was left out stands with the pool's last step: it is told once, and also when nothing else is there.
        last = max(0, len(documents) - 1) // settings.documents
        rows += [{"pool": pool["pool"], "step": last, "skipped": skip._asdict()} for skip in skipped]
        return pa.Table.from_pylist(rows, schema=_ROW)


def pool_units(settings: FeedSettings, lane: int, epoch: int) -> list[list[int]]:
    """The lane's units in the epoch's order, gathered into pools of about `shuffle_rows` rows."""
    order = list(range(len(settings.units)))
    random.Random(_seed(settings.seed, epoch)).shuffle(order)
    pools: list[list[int]] = []
    most = settings.pool_rows
    rows = most
    for unit in order[lane :: settings.lanes]:
        if rows >= most:
            pools.append([])
            rows = 0
        pools[-1].append(unit)
        rows += settings.units[unit].documents
    return pools


def _some_tasks(document: TrainingDocument, most: int | None, chance: random.Random) -> TrainingDocument:
    """The document with at most `most` of its examples, others in each epoch, in a random order."""
    examples = document.examples
    if most is None or len(examples) <= most:
        return document
    return dataclasses.replace(document, examples=tuple(chance.sample(examples, most)))


def _seed(*parts: int) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def pool_table(settings: FeedSettings, places: Sequence[tuple[int, int, int]]) -> pa.Table:
    """What `Pool` takes, for pools given as (lane, epoch, number)."""
    rows = []
    for lane, epoch, number in places:
        units = pool_units(settings, lane, epoch)[number]
        rows.append({"pool": number, "seed": _seed(settings.seed, epoch, *units), "units": units})
    return pa.Table.from_pylist(rows, schema=_POOL)


def steps_of(table: pa.Table, epoch: int) -> Iterator[Step]:
    """The steps of one pool's block, in order."""
    for (pool, step), rows in itertools.groupby(table.to_pylist(), key=lambda row: (row["pool"], row["step"])):
        documents, skipped = [], []
        for row in rows:
            if row["skipped"] is None:
                documents.append(_document(row))
            else:
                skipped.append(Skipped(**row["skipped"]))
        yield Step(documents=documents, skipped=skipped, after=Cursor(epoch, pool, step + 1))


def _row(pool: int, step: int, document: TrainingDocument) -> dict:
    pixels = document.pixels
    return {
        "pool": pool,
        "step": step,
        "input_ids": document.input_ids,
        "images": 0 if pixels is None else len(pixels),
        "pixels": None if pixels is None else pixels.tobytes(),
        "examples": [{"task": e.task, "prefix": e.prefix_ids, "target": e.target_ids} for e in document.examples],
    }


def _document(row: dict) -> TrainingDocument:
    pixels = None
    if row["images"]:
        flat = np.frombuffer(row["pixels"], np.uint8)
        side = round((len(flat) / (3 * row["images"])) ** 0.5)
        pixels = flat.reshape(row["images"], 3, side, side)
    return TrainingDocument(
        input_ids=np.array(row["input_ids"], np.int32),
        pixels=pixels,
        examples=tuple(
            Example(
                task=e["task"], prefix_ids=np.array(e["prefix"], np.int32), target_ids=np.array(e["target"], np.int32)
            )
            for e in row["examples"]
        ),
    )

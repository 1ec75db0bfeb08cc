"""The command that writes a world: `python -m jobs.demo.world --out DIR --split train --seed 1 --reports 1000`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ...text import count
from .dice import SPLITS
from .documents import MAX_WORDS, MIN_WORDS
from .shards import World, write_shards


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments and write the shards; 2 where they make no sense or the folder cannot be written."""
    options = _parser().parse_args(arguments)
    world = World(
        seed=options.seed,
        split=options.split,
        reports=options.reports,
        notes=options.notes,
        scenes=options.scenes,
        start=options.start,
        min_words=options.min_words,
        max_words=options.max_words,
        most_groups=options.most_groups,
    )
    began = time.monotonic()
    try:
        paths = write_shards(options.out, world, processes=options.processes)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - began
    size = sum(path.stat().st_size for path in paths) / 1e6
    what = f"{count(world.total, 'document')} in {count(len(paths), 'shard')}"
    print(f"{what}, {size:.1f} MB, {seconds:.1f} s: {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.demo.world",
        description="Write a synthetic world as Parquet shards. The same options write the same bytes on any machine "
        "with the same versions of Pillow and pyarrow.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the shards; made if missing")
    add("--split", choices=SPLITS, default="train", help="held_out shares no name, event, clause or scene with train")
    add("--seed", type=int, default=1, help="another seed is another world")
    add("--reports", type=_count, default=0, help="documents with five facts to find, in English")
    add("--notes", type=_count, default=0, help="short English texts with four translations")
    add("--scenes", type=_count, default=0, help="drawn images with captions")
    add("--start", type=_count, default=0, help="number of the first document of each kind")
    add("--min-words", type=int, default=MIN_WORDS, help="fewest words of a report")
    add("--max-words", type=int, default=MAX_WORDS, help="most words of a report")
    add("--most-groups", type=int, choices=(1, 2), default=2, help="most groups of shapes in a scene")
    add("--processes", type=_processes, default=1, help="write so many shards at a time")
    return parser


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def _processes(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())

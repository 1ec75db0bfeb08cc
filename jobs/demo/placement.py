"""Does encoding once cost quality? `python -m jobs.demo.placement`: the instruction in the decoder against the encoder.

The same start, seeds and updates, and the same targets in the same order: each document is asked for one target at a
time, so that a step holds the same examples wherever their instruction stands.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .train import HELD_OUT, Stage, start_checkpoint, training_job, write_world

PLACEMENTS = ("decoder", "encoder")
# One target for each document and step: the same examples, wherever their instruction stands.
STAGE = Stage(
    name="placement", seed=31, reports=40_000, notes=60_000, scenes=20_000, min_words=30, max_words=80,
    documents=24, targets=1, steps=600, rate=3.5e-3,
)  # fmt: skip
SCORED = replace(HELD_OUT, reports=200, notes=200, scenes=100)
GROUPS = {"summaries": "summary_", "translations": "to_", "captions": "caption_", "answers": "answer_"}


def study(folder: Path, seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """Train each placement with each seed (what is there already is not done again); one record for each run."""
    from pipelines.finetune_job import FinetuneSpec

    from ..finetune import train
    from ..render import consoles
    from ..spec import load_spec

    start = start_checkpoint(folder / "start")
    world = write_world(folder / "world", STAGE, "train")
    held_out = write_world(folder / "held-out", SCORED, "held_out")
    out, err = consoles()
    stage = replace(STAGE, steps=steps)
    records = []
    for seed in seeds:
        for placement in PLACEMENTS:
            name = f"{placement}-{seed}"
            path = training_job(folder, stage, start, world, held_out, folder / name, name=name)
            spec = load_spec(path, FinetuneSpec)[0].model_dump()
            spec["training"] |= {"prompt_in": placement, "seed": seed}
            spec["held_out"] |= {"every": steps, "rows": SCORED.reports + SCORED.notes + SCORED.scenes}
            report = train(FinetuneSpec.model_validate(spec), out, err)
            records.append(_record(placement, seed, report))
    return records


def summary(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each placement's scores, in percent exactly right."""
    rows = []
    for placement in PLACEMENTS:
        runs = [record for record in records if record["placement"] == placement]
        row: dict[str, Any] = {"placement": placement, "seeds": len(runs)}
        for group in (*GROUPS, "loss", "seconds", "examples"):
            values = [run[group] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            row[group] = {"mean": statistics.fmean(values), "spread": spread}
        rows.append(row)
    return rows


def _record(placement: str, seed: int, report: Any) -> dict[str, Any]:
    last, history = report.history.held_out[-1], report.history
    record: dict[str, Any] = {"placement": placement, "seed": seed, "loss": last["loss"]}
    for group, prefix in GROUPS.items():
        scores = [score for name, score in last["tasks"].items() if name.startswith(prefix)]
        right = sum(score["exact"] * score["n"] for score in scores)
        record[group] = 100 * right / max(1, sum(score["n"] for score in scores))
    return record | {"seconds": history.seconds, "examples": history.examples, "steps": len(history.loss)}


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, train, and print one JSON line for each run and one for each placement."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo.placement", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("build/placement"), help="where worlds and models go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=STAGE.steps)
    options = parser.parse_args(arguments)
    options.dir.mkdir(parents=True, exist_ok=True)
    records = study(options.dir, options.seeds, options.steps)
    for line in (*records, *summary(records)):
        print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())

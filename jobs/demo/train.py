"""Makes the demo's model from nothing: `python -m jobs.demo.train --dir DIR`; the same command goes on after a kill."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from infra.cluster import usable_cores

from .average import average
from .world import World, tokenizer_texts, write_shards

SIZE = "small"
TOKENIZER_TEXTS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One fine-tuning job: how many documents of each kind, what they are like, how it is learned."""

    name: str
    seed: int
    reports: int = 0
    notes: int = 0
    scenes: int
    most_groups: int = 2
    min_words: int = 50
    max_words: int = 1000
    documents: int = 24  # of each of the two lanes in a step
    targets: int = 4  # of a document in a step
    steps: int
    rate: float
    final_rate: float = 0.0
    vision_rate: float = 1.0


# Scenes first, of one group and then of two: seeing takes the most documents, and is lost at rates that suit texts.
# Then short reports before long ones: where to look is learned there, and carries over. Notes, whose grammar takes
# longest of the texts, have most of the last two. The mean of those two was better at every kind than either.
STAGES = (
    Stage(
        name="shapes", seed=21, scenes=80_000, most_groups=1,
        documents=16, targets=2, steps=2500, rate=1e-3, final_rate=1.0,
    ),
    Stage(
        name="scenes", seed=22, scenes=200_000,
        documents=16, targets=2, steps=7000, rate=1e-3, final_rate=0.3,
    ),
    Stage(
        name="short", seed=11, reports=40_000, notes=60_000, scenes=20_000, min_words=30, max_words=80,
        steps=1800, rate=3.5e-3, final_rate=0.4, vision_rate=0.1,
    ),
    Stage(
        name="long", seed=12, reports=20_000, notes=24_000, scenes=20_000,
        steps=1200, rate=1.8e-3, vision_rate=0.3,
    ),
    Stage(
        name="texts", seed=23, reports=30_000, notes=60_000, scenes=25_000,
        steps=1600, rate=1.8e-3, vision_rate=0.1,
    ),
    Stage(
        name="notes", seed=24, reports=12_000, notes=75_000, scenes=12_000,
        steps=1400, rate=1.8e-3, vision_rate=0.1,
    ),
)  # fmt: skip
HELD_OUT = Stage(name="held-out", seed=13, reports=80, notes=80, scenes=80, steps=1, rate=0)


def make_model(folder: Path, stages: tuple[Stage, ...] = STAGES) -> Path:
    """Worlds, start checkpoint and each of two or more stages below `folder`; the mean of the last two is returned."""
    if len(stages) < 2:
        raise ValueError("a mean is of two stages or more")
    start = start_checkpoint(folder / "start")
    held_out = write_world(folder / "held-out", HELD_OUT, "held_out")
    before = start
    for stage in stages:
        world = write_world(folder / f"world-{stage.name}", stage, "train")
        out = folder / f"model-{stage.name}"
        _finetune(training_job(folder, stage, start, world, held_out, out))
        before, start = start, out
    return average(before, start, folder / "model")


def start_checkpoint(folder: Path) -> Path:
    """Random weights to start from, with a tokenizer of the world's texts, in `folder` unless it is there."""
    if not (folder / "config.json").exists():
        from model_runtime.synthetic import make_random_checkpoint

        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        texts = tokenizer_texts(seed=1, count=TOKENIZER_TEXTS)
        make_random_checkpoint(partial, texts=texts, seed=1, size=SIZE, to_train=True)
        partial.rename(folder)
    return folder


def write_world(folder: Path, stage: Stage, split: str) -> Path:
    """The stage's documents of one split in `folder`, unless it is there."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        world = World(
            seed=stage.seed,
            split=split,
            reports=stage.reports,
            notes=stage.notes,
            scenes=stage.scenes,
            min_words=stage.min_words,
            max_words=stage.max_words,
            most_groups=stage.most_groups,
        )
        write_shards(partial, world, processes=usable_cores())
        partial.rename(folder)
    return folder


def training_job(
    folder: Path, stage: Stage, start: Path, world: Path, held_out: Path, out: Path, name: str | None = None
) -> Path:
    """The stage's training job as a file in `folder`; returns its path."""
    text = files("jobs.demo").joinpath("training.yaml").read_text(encoding="utf-8")
    marks = {
        "NAME": f"demo-{name or stage.name}",
        "START": _quoted(start),
        "WORLD": _quoted(world),
        "HELD_OUT": _quoted(held_out),
        "OUT": _quoted(out),
        "STEPS": str(stage.steps),
        "DOCUMENTS": str(stage.documents),
        "TARGETS": str(stage.targets),
        "RATE": repr(stage.rate),
        "FINAL_RATE": repr(stage.final_rate),
        "VISION_RATE": repr(stage.vision_rate),
    }
    for mark, value in marks.items():
        text = text.replace(f"@{mark}@", value)
    path = folder / f"{name or stage.name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _quoted(path: Path) -> str:
    # A JSON string is a YAML string, and $$ a plain $.
    return json.dumps(str(path).replace("$", "$$"), ensure_ascii=False)


def _finetune(job: Path) -> None:
    from jobs.finetune import finetune_file

    finetune_file(job)


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, train, and say where the model is."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo.train", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("build/demo-model"), help="where worlds and models go")
    options = parser.parse_args(arguments)
    options.dir.mkdir(parents=True, exist_ok=True)
    print(f"model: {make_model(options.dir)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

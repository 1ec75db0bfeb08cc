"""How the demo's model is made: every stage is a job that loads, and the stages run one after the other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.demo.train import STAGES, Stage, make_model, training_job
from jobs.spec import load_spec
from model_runtime.config import ModelConfig
from pipelines.finetune_job import FinetuneSpec


@pytest.mark.parametrize("stage", STAGES, ids=[stage.name for stage in STAGES])
def test_a_stage_is_a_job_that_says_what_the_stage_says(stage: Stage, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("it's $HOME: start", "world", "held out", "out")]
    job, _ = load_spec(training_job(tmp_path, stage, *paths), FinetuneSpec)
    assert (job.model.path, job.source.path, job.held_out.path, job.output.path) == tuple(map(str, paths))
    training = job.training
    assert (training.steps, training.learning_rate, training.final_rate) == (stage.steps, stage.rate, stage.final_rate)
    assert (training.documents_per_lane, training.tasks_per_document) == (stage.documents, stage.targets)
    assert training.vision_rate == stage.vision_rate


def test_stages_differ_in_name_and_seed() -> None:
    assert len({stage.name for stage in STAGES}) == len({stage.seed for stage in STAGES}) == len(STAGES)


@pytest.mark.slow
def test_stages_go_on_from_one_another(tmp_path: Path) -> None:
    small = [
        replace(stage, reports=8, notes=8, scenes=16, max_words=120, documents=2, steps=2) for stage in STAGES[-2:]
    ]
    folder = make_model(tmp_path, tuple(small))
    assert folder == tmp_path / f"model-{small[-1].name}"
    first, second = (json.loads((tmp_path / f"model-{s.name}" / "training.json").read_text()) for s in small)
    assert len(first["history"]["loss"]) == len(second["history"]["loss"]) == 2
    assert second["base"]["path"] == str(tmp_path / f"model-{small[0].name}")
    ModelConfig.load(folder)

"""How the demo's model is made: every stage is a job that loads, and the stages run one after the other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jobs.demo.average import average
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
    assert folder == tmp_path / "model"
    first, second = (json.loads((tmp_path / f"model-{s.name}" / "training.json").read_text()) for s in small)
    assert len(first["history"]["loss"]) == len(second["history"]["loss"]) == 2
    assert second["base"]["path"] == str(tmp_path / f"model-{small[0].name}")
    ModelConfig.load(folder)
    earlier, later, mean = (
        load_file(path / "model.safetensors") for path in (*(tmp_path / f"model-{s.name}" for s in small), folder)
    )
    for name, tensor in mean.items():
        np.testing.assert_allclose(tensor, (earlier[name] + later[name]) / 2, rtol=1e-6, atol=1e-7)
    assert any(not np.array_equal(earlier[name], later[name]) for name in mean)
    card = (folder / "README.md").read_text()
    assert f"`model-{small[1].name}`" in card and f"`model-{small[0].name}`" in card and "the mean" in card


def test_a_mean_is_made_anew_of_what_is_there_now(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text("a card")
        save_file({"w": np.full(2, value, np.float32)}, tmp_path / name / "model.safetensors")
    out = average(tmp_path / "one", tmp_path / "other", tmp_path / "mean")
    assert load_file(out / "model.safetensors")["w"].tolist() == [1.5, 1.5]
    average(tmp_path / "one", tmp_path / "one", out)
    assert load_file(out / "model.safetensors")["w"].tolist() == [1.0, 1.0]
    assert not list(tmp_path.glob("*.partial"))


def test_a_mean_is_of_one_model_only(tmp_path: Path) -> None:
    for name, width in (("one", 2), ("other", 3)):
        (tmp_path / name).mkdir()
        save_file({"w": np.ones(width, np.float32)}, tmp_path / name / "model.safetensors")
    with pytest.raises(ValueError, match="not checkpoints of one model"):
        average(tmp_path / "one", tmp_path / "other", tmp_path / "mean")
    assert not (tmp_path / "mean").exists()

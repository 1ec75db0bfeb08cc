"""The JSON files of a model folder, config.json old and new: a model's sizes, or one line that names file and key."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from model_runtime.config import ModelConfig
from model_runtime.errors import ModelError
from model_runtime.processing import Processor
from model_runtime.settings import read_json
from tests.tokenizers_tiny import IMAGE_SIZE, model_folder
from workers.tasks import LimitsSpec, TaskSpec, TaskTable, language_warnings, resolve_tasks

from .mutate import damaged, damaged_tree
from .surface import Surface, answered, line

_DEMO = Path(__file__).parents[2] / "jobs" / "demo" / "model"
_TASKS = [
    TaskSpec(name="a", kind="translate", language="de"),
    TaskSpec(name="b", kind="answer", question="Why {language}?"),
]


def _old(config: dict[str, Any]) -> dict[str, Any]:
    """As older releases of transformers wrote it: rope and layer pattern under their old names."""
    config = json.loads(json.dumps(config))
    for stack in (config["encoder"]["text_config"], config["decoder"]):
        stack.pop("rope_parameters", None)
        stack.pop("layer_types", None)
        stack |= {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 2,
        }
    config["torch_dtype"] = config.pop("dtype")
    return config


_CONFIG = json.loads((_DEMO / "config.json").read_text())
_IMAGES = {
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2, "rescale_factor": 1 / 255,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "do_resize": True, "do_pan_and_scan": None,
}  # fmt: skip
SEEDS: dict[str, list[Any]] = {
    "config.json": [_CONFIG, _old(_CONFIG)],
    "preprocessor_config.json": [_IMAGES, json.loads((_DEMO / "preprocessor_config.json").read_text())],
    "processor_config.json": [{"image_processor": _IMAGES}],
    "generation_config.json": [{"eos_token_id": [1, 7]}, json.loads((_DEMO / "generation_config.json").read_text())],
    "tasks.json": [
        json.loads((_DEMO / "tasks.json").read_text()),
        {"version": 1, "prompt_in": "encoder", "tasks": {"answer": {"prompt": "Q: {question}"}}},
    ],
}


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    name = draw(st.sampled_from(("config.json", "config.json", "config.json", *SEEDS)))
    if draw(st.integers(0, 5)):
        data = json.dumps(draw(damaged_tree(SEEDS[name]))).encode()
    else:
        data = draw(damaged([json.dumps(seed).encode() for seed in SEEDS[name]], 3))
    return {"file": name, "data": data}


@cache
def _folder() -> Path:
    """A good small folder; its own files are put back after each case."""
    return model_folder(Path("model"), tasks={"version": 1})


def _check(case: dict[str, Any]) -> bool:
    name, folder = case["file"], _folder()
    good = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in SEEDS}
    if name == "processor_config.json":
        (folder / "preprocessor_config.json").unlink()
    (folder / name).write_bytes(case["data"])
    try:
        if name == "tasks.json":
            return answered(lambda: _use_tasks(read_json(folder / name)), ModelError)
        read = answered(lambda: ModelConfig.load(folder), ModelError)
        # With the files of another model beside it most are refused, which must be one line too.
        return answered(lambda: Processor.load(folder), ModelError) or read
    finally:
        (folder / name).unlink()
        for other, data in good.items():
            (folder / other).write_bytes(data)


def _use_tasks(document: dict[str, Any] | None) -> None:
    try:
        table = TaskTable.parse(document)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        line(str(error))
        raise ModelError(str(error)) from error
    resolve_tasks(_TASKS, table, LimitsSpec())
    for warning in language_warnings(_TASKS, table):
        line(warning)


SURFACE = Surface(name="settings", cases=_cases(), check=_check, share=150)

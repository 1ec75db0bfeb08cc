"""Checkpoints as they come: every key layout gives the same outputs, and a broken one is refused in one line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_runtime import Decode, EngineConfig, ModelError, Request, Sampling, load_backend
from tests.checkpoints import (
    Layout,
    cached_checkpoint,
    read_tensors,
    shape_named,
    tensor_files,
    write_tensors,
)
from tests.model_runtime.oracle import Oracle, make_request

SHAPE = shape_named("one-kv-head")
BACKENDS = ("native", "transformers")


def load(folder: Path, backend: str = "native", **settings: Any) -> Any:
    """A backend on the CPU in float32, or what `settings` say."""
    return load_backend(
        EngineConfig(model=str(folder), backend=backend, **({"device": "cpu", "dtype": "float32"} | settings))
    )


def outputs(engine: Any) -> list[tuple[int, ...]]:
    """Greedy tokens of a document with images and one without."""
    rng = random.Random(1)
    twice = [Sampling(max_tokens=12)] * 2
    requests = [
        make_request(SHAPE, rng, name, tokens=30, images=images, prefixes=[0, 4], sampling=twice)
        for name, images in (("plain", 0), ("pictures", 2))
    ]
    made = {generation.key: generation for generation in engine.generate(requests)}
    assert all(generation.error is None for generation in made.values())
    return [made[key].token_ids for key in sorted(made)]


@pytest.fixture(scope="module")
def usual() -> list[tuple[int, ...]]:
    """What the checkpoint makes in the layout that `save_pretrained` writes."""
    return outputs(load(cached_checkpoint(SHAPE)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["saved", "memory", "vision_model", "tied"])
def test_layouts_load_to_the_same_model(backend: str, layout: Layout, usual: list[tuple[int, ...]]) -> None:
    assert outputs(load(cached_checkpoint(SHAPE, layout=layout), backend)) == usual


@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_load_to_the_same_model(backend: str, usual: list[tuple[int, ...]]) -> None:
    folder = cached_checkpoint(SHAPE, sharded=True)
    assert len(tensor_files(folder)) > 3
    assert outputs(load(folder, backend)) == usual


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that a test may break."""
    return Path(shutil.copytree(cached_checkpoint(SHAPE), tmp_path / "model"))


def _drop(tensors: dict[str, torch.Tensor]) -> str:
    del tensors["model.decoder.layers.1.self_attn.k_norm.weight"]
    return "decoder.layers.1.self_attn.k_norm.weight"


def _drop_projector(tensors: dict[str, torch.Tensor]) -> str:
    del tensors["model.encoder.multi_modal_projector.mm_input_projection_weight"]
    return "multi_modal_projector.mm_input_projection_weight"


def _add(tensors: dict[str, torch.Tensor]) -> str:
    tensors["model.decoder.layers.0.cross_attn.q_proj.weight"] = torch.zeros(4, 4)
    return "decoder.layers.0.cross_attn.q_proj.weight"


def _reshape(tensors: dict[str, torch.Tensor]) -> str:
    name = "model.encoder.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1]
    return "layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("damage", [_drop, _drop_projector, _add, _reshape])
def test_a_wrong_tensor_is_named(backend: str, damage: Callable[[dict[str, torch.Tensor]], str], folder: Path) -> None:
    tensors = read_tensors(folder)
    name = damage(tensors)
    write_tensors(folder, tensors)
    assert name in refusal(folder, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [0, 5, 400, -3])
def test_a_truncated_file_is_refused(backend: str, kept: int, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "model" in refusal(folder, backend)


def test_a_truncated_file_is_named_by_the_native_backend(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refusal(folder, "native")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_shard_is_named(backend: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(cached_checkpoint(SHAPE, sharded=True), tmp_path / "model"))
    lost = tensor_files(folder)[2]
    lost.unlink()
    assert lost.name in refusal(folder, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_without_weights_or_config(backend: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refusal(folder, backend)
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pickled_weights_are_never_read(backend: str, folder: Path) -> None:
    torch.save(read_tensors(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refusal(folder, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_is_not_there(backend: str, tmp_path: Path) -> None:
    assert "nowhere" in refusal(tmp_path / "nowhere", backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_kind_of_model(backend: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "t5gemma"}))
    assert "t5gemma" in refusal(folder, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_eos_only_generation_config_knows(backend: str, folder: Path) -> None:
    """transformers' generate stops where generation_config.json says, so must both backends."""
    request = make_request(SHAPE, random.Random(3), "doc", tokens=20, sampling=[Sampling(max_tokens=20)])
    [whole] = load(folder, backend).generate([request])
    extra = whole.token_ids[6]
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, extra]}))
    [expected] = Oracle(folder).greedy(request)
    assert extra not in expected.token_ids
    [generation] = load(folder, backend).generate([request])
    assert (generation.token_ids, generation.finish_reason) == (expected.token_ids, "stop")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_a_dtype_is_said_and_used(backend: str, dtype: str) -> None:
    engine = load(cached_checkpoint(SHAPE), backend, dtype=dtype)
    # On a CPU "auto" keeps float32 weights as they are.
    assert engine.dtype == ("bfloat16" if dtype == "bfloat16" else "float32")
    assert all(generation.error is None for generation in engine.generate([_short()]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", [{"dtype": "float8"}, {"device": "abacus"}])
def test_an_unknown_dtype_or_device(backend: str, settings: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=next(iter(settings.values()))):
        load(cached_checkpoint(SHAPE), backend, **settings)


def test_an_unknown_backend() -> None:
    with pytest.raises(ModelError, match="abacus"):
        load(cached_checkpoint(SHAPE), "abacus")


def test_the_transformers_backend_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'corpusmill\[transformers\]'"):
        load(cached_checkpoint(SHAPE), "transformers")


def refusal(folder: Path, backend: str) -> str:
    """The one line with which a backend refuses to load `folder`."""
    with pytest.raises(ModelError) as refused:
        load(folder, backend)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def _short() -> Request:
    return Request(id="d", input_ids=[2, 40, 41], decodes=(Decode(key="d/0", sampling=Sampling(max_tokens=3)),))

"""What the plugin sets in vLLM's configuration, and what it refuses there, in one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make setup-vllm")

from vllm import EngineArgs
from vllm.config import CUDAGraphMode, KVTransferConfig

from model_runtime.vllm_plugin import register
from model_runtime.vllm_plugin.limits import T5Gemma2Limits
from model_runtime.vllm_plugin.model import T5Gemma2ForConditionalGeneration
from tests.checkpoints import cached_checkpoint, shape_named

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def folder() -> Path:
    register()
    return cached_checkpoint(shape_named("heads-of-64"))


def configured(folder: Path, **settings: Any) -> Any:
    """vLLM's own configuration of the model."""
    settings = {"dtype": "float32", "max_model_len": 400, "enforce_eager": True, **settings}
    return EngineArgs(model=str(folder), **settings).create_engine_config()


def test_what_is_set(folder: Path) -> None:
    made = configured(folder)
    assert made.load_config.load_format == "safetensors"
    assert made.cache_config.block_size == 32
    assert made.scheduler_config.encoder_cache_size == 262_144
    assert made.scheduler_config.max_num_encoder_input_tokens >= 400
    assert made.parallel_config.worker_extension_cls.endswith("worker.T5Gemma2Worker")
    if not torch.cuda.is_available():
        assert made.parallel_config.worker_cls == "model_runtime.vllm_plugin.cpu_worker.T5Gemma2CpuWorker"


@pytest.mark.parametrize(
    "settings",
    [
        {"load_format": "safetensors"},
        {"load_format": "dummy"},
        {"dtype": "bfloat16", "kv_cache_dtype": "bfloat16"},
        {"additional_config": {"t5gemma2_encoder_cache": 500}},
    ],
    ids=str,
)
def test_what_is_taken_as_it_is(folder: Path, settings: dict[str, Any]) -> None:
    made = configured(folder, **settings)
    assert made.load_config.load_format == settings.get("load_format", "safetensors")
    if "additional_config" in settings:
        assert made.scheduler_config.encoder_cache_size == 500


def test_fewer_tokens_than_the_longest_document_are_raised_to_it(folder: Path) -> None:
    made = configured(folder, additional_config={"t5gemma2_encoder_cache": 7})
    assert made.scheduler_config.encoder_cache_size == 400


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "float16"}, "does not run in float16"),
        # Pages of half the size, into which float32 would be written.
        ({"kv_cache_dtype": "bfloat16"}, "in its own dtype, float32, not in bfloat16"),
        ({"dtype": "bfloat16", "kv_cache_dtype": "fp8"}, "in its own dtype, bfloat16, not in fp8"),
        ({"load_format": "pt"}, "from safetensors alone: leave out --load-format pt"),
        ({"load_format": "npcache"}, "leave out --load-format npcache"),
        ({"load_format": "hf"}, "leave out --load-format hf"),
        ({"load_format": "sharded_state"}, "leave out --load-format sharded_state"),
        ({"hf_overrides": {"tie_word_embeddings": False}}, "leave out --hf-overrides"),
        ({"kv_transfer_config": KVTransferConfig(kv_connector="ExampleConnector", kv_role="kv_both")}, "stay with"),
        ({"kv_offloading_size": 1.0}, "leave out --kv-transfer-config and --kv-offloading-size"),
        ({"tensor_parallel_size": 2}, "on one device for each engine"),
        ({"prefill_context_parallel_size": 2}, "on one device for each engine"),
        ({"additional_config": {"t5gemma2_encoder_cache": True}}, "must be a number of tokens, not True"),
        ({"additional_config": {"t5gemma2_encoder_cache": -1}}, "must be a number of tokens, not -1"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_is_refused(folder: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        configured(folder, **settings)
    # pydantic, which vLLM's classes are made with, puts a headline above it.
    [line] = [line for line in str(raised.value).splitlines() if said in line]
    assert "T5Gemma 2" in line or "t5gemma2_" in line


@pytest.mark.parametrize(
    ("weights", "left"),
    [("", "safetensors"), ("s3://bucket/model", "auto"), ("gs://bucket/model", "auto")],
)
def test_vllm_itself_chooses_how_to_read_a_bucket(folder: Path, weights: str, left: str) -> None:
    made = configured(folder)
    made.load_config.load_format = "auto"
    made.model_config.model_weights = weights
    T5Gemma2Limits.verify_and_update_config(made)
    assert made.load_config.load_format == left


@pytest.mark.parametrize(
    ("mode", "switch", "refused"),
    [("PIECEWISE", "1", True), ("FULL_AND_PIECEWISE", "1", True), ("NONE", "1", False), ("PIECEWISE", "0", False)],
)
def test_breakable_graphs_are_refused(mode: str, switch: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed, they run without the model's forward, which tells sliding layers where their documents end."""
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", switch)
    config: Any = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_mode=CUDAGraphMode[mode]))
    # Beyond that check it needs more of a configuration.
    with pytest.raises(ValueError if refused else AttributeError, match="BREAKABLE" if refused else "model_config"):
        T5Gemma2ForConditionalGeneration(vllm_config=config)

"""The vLLM plugin on a CUDA device: graphs, compiled layers, Triton's windows; runs wherever there are both."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make setup-vllm")

from tests.checkpoints import cached_checkpoint
from tests.model_runtime.vllm_parity import SHAPES, Mode, differing, documents, expected_of, run

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MODES = {
    "eager": Mode(),
    "graphs": Mode(engine={"enforce_eager": False}),
    "graphs, small chunks": Mode(engine={"enforce_eager": False, "max_num_batched_tokens": 96}),
    "graphs, the older runner": Mode(engine={"enforce_eager": False}, environment={"VLLM_USE_V2_MODEL_RUNNER": "0"}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SHAPES)
def test_float32_tokens_equal_transformers(name: str, mode: str) -> None:
    folder, requests = cached_checkpoint(SHAPES[name]), documents(SHAPES[name], 60)
    expected = expected_of(folder, requests)
    assert differing(expected, run(folder, SHAPES[name], requests, MODES[mode])) == []


@pytest.mark.parametrize("name", ["window-33", "window-512"])
def test_bfloat16_stays_near_float32(name: str) -> None:
    """The first token's log-probability: later ones follow from tokens that may differ at a near tie."""
    folder, requests = cached_checkpoint(SHAPES[name]), documents(SHAPES[name], 60)
    expected = expected_of(folder, requests)
    made = run(folder, SHAPES[name], requests, Mode(engine={"enforce_eager": False, "dtype": "bfloat16"}))
    same = sum(made.got[key].token_ids[:1] == one.token_ids[:1] for key, one in expected.items())
    assert same >= 0.9 * len(expected)

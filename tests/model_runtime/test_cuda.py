"""The native engine on a CUDA device against itself on the CPU; runs wherever there is a GPU."""

from __future__ import annotations

import pytest
import torch

from model_runtime import Decode, EngineConfig, Request, Sampling, load_backend
from tests.checkpoints import SHAPES, cached_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def requests() -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for n, tokens in enumerate([3, 40, 200, 17, 90]):
        ids = [2, *torch.randint(261, 480, (tokens,), generator=generator).tolist()]
        decodes = tuple(
            Decode(key=f"{n}-{k}", prefix_ids=tuple(range(270, 270 + 3 * k)), sampling=Sampling(max_tokens=24))
            for k in range(1 + n % 3)
        )
        made.append(Request(id=str(n), input_ids=ids, decodes=decodes))
    return made


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_float32_tokens_on_cuda_equal_the_cpus(shape):
    folder = str(cached_checkpoint(shape))
    texts = []
    for device in ("cpu", "cuda"):
        backend = load_backend(EngineConfig(model=folder, device=device, dtype="float32", max_decodes=4))
        texts.append({g.key: g.token_ids for g in backend.generate(requests())})
        backend.close()
    assert texts[0] == texts[1]


def test_bfloat16_on_cuda_stays_near_float32():
    folder = str(cached_checkpoint(SHAPES[0]))
    states = {}
    for name in ("float32", "bfloat16"):
        backend = load_backend(EngineConfig(model=folder, device="cuda", dtype=name))
        states[name] = torch.cat(backend.model.encode(requests())).float().cpu()
        backend.close()
    error = (states["bfloat16"] - states["float32"]).pow(2).mean().sqrt() / states["float32"].pow(2).mean().sqrt()
    assert error < 0.05

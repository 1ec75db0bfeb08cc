"""8 bits on the CPU: products against exact integer arithmetic, the head, and whole models beside float32."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_runtime import EngineConfig, ModelError, Sampling, load_backend
from model_runtime.cpu import build
from model_runtime.cpu.int8 import Int8Head, Int8Linear
from model_runtime.decoder import capped
from model_runtime.model import T5Gemma2
from tests.checkpoints import Shape, cached_checkpoint, shape_named
from tests.model_runtime.oracle import make_request

needs_kernels = pytest.mark.skipif(build.library() is None, reason="this machine cannot run the CPU kernels")


def native(shape: Shape, dtype: str) -> Any:
    """The native backend over bfloat16 weights."""
    folder = cached_checkpoint(shape, dtype=torch.bfloat16)
    return load_backend(EngineConfig(model=str(folder), device="cpu", dtype=dtype))


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of 8 bits and the scale of each row, by the definition: largest magnitude / 127."""
    scales = x.double().abs().amax(dim=1, keepdim=True) / 127
    return (x.double() / scales).round(), scales


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ with both factors in 8 bits, sums exact."""
    (a, a_scales), (w, w_scales) = quantized(x), quantized(weight)
    return (a @ w.T) * a_scales * w_scales.T


@needs_kernels
@pytest.mark.parametrize("rows", [1, 5, 6, 7, 97, 200])
@pytest.mark.parametrize(("inner", "outer"), [(32, 16), (640, 96), (96, 640), (64, 208)])
def test_products_are_exact_in_8_bits(rows, inner, outer):
    generator = torch.Generator().manual_seed(rows * inner + outer)
    x = (torch.randn(rows, inner, generator=generator) * torch.rand(rows, 1, generator=generator) * 9).bfloat16()
    weight, bias = torch.randn(outer, inner, generator=generator).bfloat16(), torch.randn(outer, generator=generator)
    other = torch.randn(rows, outer, generator=generator).bfloat16()
    linear = Int8Linear(weight, bias.bfloat16())
    expected = product(x, weight) + bias.bfloat16().double()
    prepared = linear.prepare(x)
    for made, wanted in (
        (linear(prepared), expected),
        (linear(prepared, "gelu_pytorch_tanh"), F.gelu(expected, approximate="tanh")),
        (linear(prepared, "silu"), F.silu(expected.bfloat16().double())),
        (linear.times(prepared, other), expected * other.double()),
    ):
        assert made.dtype == torch.bfloat16 and made.shape == (rows, outer)
        # Rounded once to bfloat16; a tie in the activations may round the other way.
        assert float((made.double() - wanted).norm() / wanted.norm()) < 4e-3


@needs_kernels
def test_what_is_no_number_stays_in_its_row():
    x = torch.randn(3, 64).bfloat16()
    x[1, 7], x[2] = torch.inf, 0
    linear = Int8Linear(torch.randn(32, 64).bfloat16(), None)
    made = linear(linear.prepare(x))
    assert made.isnan().all(dim=1).tolist() == [False, True, False]
    assert (made[2] == 0).all()


@needs_kernels
@pytest.mark.parametrize("rows", [1, 4, 6, 13])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_head_chooses_by_its_own_logits(rows, softcap):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 96, generator=generator).bfloat16()
    weight = torch.randn(64 * 21, 96, generator=generator).bfloat16()
    weight[700] = weight[13]  # two tokens with the same logit
    hidden[0] = weight[13]
    logits = product(hidden, weight)
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    head = Int8Head(weight, softcap)
    tokens, chances = head.greedy(hidden)
    best = logits.log_softmax(-1).max(-1)
    assert torch.allclose(chances.double(), best.values, atol=1e-3, rtol=1e-3)
    if not softcap:
        assert tokens[0] == 13
        assert tokens[1:].tolist() == best.indices[1:].tolist()
    assert float((head.logits(hidden).double() - logits).norm() / logits.norm()) < 4e-3
    hidden[0, 3] = torch.nan
    assert head.greedy(hidden)[1].isnan().tolist() == [True] + [False] * (rows - 1)


def in_8_bits_by_definition(model: T5Gemma2) -> T5Gemma2:
    """The plain modules in float32, each product of a layer and the head with both factors in 8 bits."""

    def linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        out = product(x.flatten(0, -2), weight).float().unflatten(0, x.shape[:-1])
        return out if bias is None else out + bias

    for half in (model.encoder, model.decoder):
        for module in half.layers.modules():
            if isinstance(module, nn.Linear):
                module.forward = partial(linear, module.weight, module.bias)
    cap, embedding = model.config.decoder.logit_softcap, model.encoder.embed_tokens.weight
    model.logits = lambda hidden_RE: capped(linear(embedding, None, hidden_RE), cap)
    return model


@needs_kernels
@pytest.mark.parametrize("name", ["heads-of-64", "heads-of-256"])
def test_a_model_loses_what_8_bits_lose_and_no_more(name):
    """States and first logits, against what the definition makes of the same weights."""
    shape = shape_named(name)
    rng = random.Random(name)
    requests = [
        make_request(shape, rng, f"d{i}", tokens=tokens, prefixes=[2, 9, 4], sampling=[Sampling(max_tokens=8)] * 3)
        for i, tokens in enumerate([3, 40, 300, 111])
    ]
    backend = native(shape, "int8")
    assert backend.model.precision == backend.dtype == "int8"

    def states_and_logits(model: T5Gemma2) -> tuple[Tensor, Tensor]:
        rows = [row for rows in model.first_logits(requests) for row in rows]
        return torch.cat(model.encode(requests)).double(), torch.stack(rows).double()

    exact = states_and_logits(native(shape, "float32").model)
    emulated = states_and_logits(in_8_bits_by_definition(native(shape, "float32").model))
    ours = states_and_logits(backend.model)
    for what, mine, theirs, wanted in zip(("states", "logits"), ours, emulated, exact, strict=True):
        error, least = (float((x - wanted).norm() / wanted.norm()) for x in (mine, theirs))
        print(
            f"{name}: int8 {what} {error:.2e} away from float32 (by definition {least:.2e}, ratio {error / least:.2f})"
        )
        assert error <= 1.2 * least

    made = {generation.key: generation for generation in backend.generate(requests)}
    keys = [decode.key for request in requests for decode in request.decodes]
    assert sorted(made) == sorted(keys) and all(generation.error is None for generation in made.values())
    # The engine's first token is the one that the same logits put first, up to their rounding.
    for row, key in zip(ours[1], keys, strict=True):
        if made[key].token_ids:
            assert row[made[key].token_ids[0]] >= row.max() - row.abs().max() * 2**-7


def test_where_the_kernels_cannot_run_8_bits_are_refused(monkeypatch):
    monkeypatch.setattr("model_runtime.cpu.weights.library", lambda: None)
    with pytest.raises(ModelError, match="int8 needs a CPU with AVX-512"):
        native(shape_named("heads-of-64"), "int8")

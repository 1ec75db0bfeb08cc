"""Parity where size matters: documents of 32,768 tokens, the memory they take, and the true 270M shape."""

from __future__ import annotations

import dataclasses
import gc
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_runtime import EngineConfig, Generation, Sampling, load_backend
from tests.checkpoints import Shape, cached_checkpoint, make_checkpoint
from tests.model_runtime.oracle import Expected, Oracle, long_states, make_request, oracle_for

RELATIVE = 1e-4

LONG = Shape(
    name="long",
    hidden=32,
    ffn=32,
    encoder="sf",
    decoder="sf",
    heads=2,
    kv_heads=1,
    window=512,
    rope_factor=8.0,
    max_positions=65_536,
    eos_scale=0.0,
)

TRUE_270M = Shape(
    name="270m",
    vocab=262_144,
    hidden=640,
    ffn=2048,
    encoder="sssssf" * 3,
    decoder="sssssf" * 3,
    heads=4,
    kv_heads=1,
    head_dim=256,
    window=512,
    query_pre_attn_scalar=256,
    rope_factor=8.0,
    max_positions=131_072,
    # The released tower but for the image's side, 896: at a quarter of the patches it takes seconds.
    image_size=448,
    patch=14,
    image_tokens=64,
    vision_hidden=1152,
    vision_ffn=4304,
    vision_layers=27,
    vision_heads=16,
)


@pytest.fixture
def _two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def _assert_tokens(made: Sequence[Generation], expected: Sequence[Expected]) -> None:
    tokens = {generation.key: generation.token_ids for generation in made}
    assert tokens == {one.key: one.token_ids for one in expected}


def test_the_oracle_for_long_documents_is_the_oracle() -> None:
    request = make_request(LONG, random.Random(0), "doc", tokens=2100, images=1)
    oracle = oracle_for(LONG)
    assert torch.equal(long_states(oracle, request).last_hidden_state[0], oracle.encode(request))


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("tokens", [16_384, pytest.param(32_768, marks=pytest.mark.slow)])
def test_a_long_document_among_short_ones(tokens: int) -> None:
    rng = random.Random(tokens)
    twice = [Sampling(max_tokens=8)] * 2
    long = make_request(LONG, rng, "long", tokens=tokens, images=2, prefixes=[0, 7], sampling=twice)
    short = [make_request(LONG, rng, f"short{i}", tokens=30 + i, images=i, sampling=twice[:1]) for i in range(2)]
    requests = [short[0], long, short[1]]
    oracle = oracle_for(LONG)
    outputs = [long_states(oracle, request) for request in requests]
    expected = [one for request, out in zip(requests, outputs) for one in oracle.greedy(request, out)]

    engine = load_backend(EngineConfig(model=str(cached_checkpoint(LONG)), device="cpu", dtype="float32"))
    states = engine.model.encode(requests)  # type: ignore[attr-defined]
    logits = engine.model.first_logits([long])[0]  # type: ignore[attr-defined]
    error = max(_relative_error(a, out.last_hidden_state[0]) for a, out in zip(states, outputs))
    logits_error = max(map(_relative_error, logits, oracle.first_logits(long, outputs[1])))
    print(f"{tokens} tokens: encoder states within {error:.1e}, first logits within {logits_error:.1e}")
    assert error <= RELATIVE
    assert logits_error <= RELATIVE
    _assert_tokens(list(engine.generate(requests)), expected)


# --- memory --------------------------------------------------------------------------------------------------------

_ENCODE = """
import json, random, sys, time
import torch
from tests.model_runtime.oracle import Oracle, make_request
from tests.model_runtime.test_parity_long import LONG
from model_runtime import EngineConfig, load_backend

folder, backend, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(2)
if backend == "native":
    model = load_backend(EngineConfig(model=folder, device="cpu", dtype="float32")).model
    encode = lambda request: model.encode([request])
else:
    encode = Oracle(folder).states
def peak():
    # Not ru_maxrss, which a process inherits from the one that started it.
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
encode(make_request(LONG, random.Random(0), "warm", tokens=600))
request = make_request(LONG, random.Random(0), "doc", tokens=tokens)
before, started = peak(), time.perf_counter()
encode(request)
print(json.dumps({"bytes": peak() - before, "seconds": time.perf_counter() - started}))
"""


def _encoding(backend: str, tokens: int) -> dict[str, float]:
    """Growth of the peak resident set over encoding one document, in a fresh process."""
    command = [sys.executable, "-c", _ENCODE, str(cached_checkpoint(LONG)), backend, str(tokens)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_a_document_of_32768_tokens_takes_linear_memory() -> None:
    """Four times the tokens take about four times the memory, far below one mask of tokens × tokens."""
    small, large = _encoding("native", 8_192), _encoding("native", 32_768)
    theirs = _encoding("transformers", 8_192)
    for name, figures in (("native 8,192", small), ("native 32,768", large), ("transformers 8,192", theirs)):
        print(f"{name} tokens: {figures['bytes'] / 2**20:,.0f} MiB above rest, {figures['seconds']:.1f} s")
    # Beyond the linear part, buffers of a fixed size (tiles, one chunk of masks).
    assert large["bytes"] < 4 * small["bytes"] + 64 * 2**20
    assert large["bytes"] < 32_768**2 / 4
    assert small["bytes"] < theirs["bytes"] / 4


# --- the released sizes --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("_two_threads")
def test_the_true_270m_shape(tmp_path: Path) -> None:
    """18 + 18 layers, a vocabulary of 262,144, the 27-layer tower: same states, same tokens in float32."""
    rng = random.Random(270)
    text = make_request(TRUE_270M, rng, "text", tokens=700, prefixes=[0, 9], sampling=[Sampling(max_tokens=5)] * 2)
    picture = make_request(
        TRUE_270M, rng, "picture", tokens=40, images=1, prefixes=[3], sampling=[Sampling(max_tokens=5)]
    )
    picture = dataclasses.replace(picture, pixel_values=torch.as_tensor(picture.pixel_values))
    requests = [text, picture]
    folder = make_checkpoint(tmp_path / "model", TRUE_270M, dtype=torch.bfloat16)
    try:
        oracle = Oracle(folder)
        outputs = [oracle.states(request) for request in requests]
        logits = [row for request, out in zip(requests, outputs) for row in oracle.first_logits(request, out)]
        expected = [one for request, out in zip(requests, outputs) for one in oracle.greedy(request, out)]
        del oracle
        gc.collect()

        engine = load_backend(EngineConfig(model=str(folder), device="cpu", dtype="float32"))
        states = engine.model.encode(requests)  # type: ignore[attr-defined]
        error = max(_relative_error(a, out.last_hidden_state[0]) for a, out in zip(states, outputs))
        ours = [row for rows in engine.model.first_logits(requests) for row in rows]  # type: ignore[attr-defined]
        logits_error = max(map(_relative_error, ours, logits))
        print(f"270M: encoder states within {error:.1e}, first logits within {logits_error:.1e}")
        print(f"270M: narrowest lead {min(one.gap for one in expected):.1e}")
        assert error <= RELATIVE
        assert logits_error <= RELATIVE
        _assert_tokens(list(engine.generate(requests)), expected)
    finally:
        shutil.rmtree(folder)

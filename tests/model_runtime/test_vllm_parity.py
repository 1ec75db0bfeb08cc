"""The vLLM plugin against transformers, token for token, in every way that vLLM runs a model.

The whole of it, 200 documents for each shape and mode: `python -m tests.model_runtime.vllm_parity`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make setup-vllm")

from model_runtime import Request, Sampling
from tests.checkpoints import Shape, cached_checkpoint
from tests.model_runtime.oracle import Expected, Oracle, long_states, make_request
from tests.model_runtime.test_parity_long import LONG
from tests.model_runtime.vllm_parity import MODES, SHAPES, Mode, Run, differing, documents, expected_of, run

pytestmark = pytest.mark.vllm

# Each run is an engine of its own: ten seconds and more before its first token.
DOCUMENTS = {"window-7": 40, "window-33": 60, "window-512": 40}


@dataclass(frozen=True, slots=True)
class Case:
    """One shape's documents and what transformers makes of them."""

    shape: Shape
    folder: Path
    requests: Sequence[Request]
    expected: dict[str, Expected]


@cache
def case(name: str) -> Case:
    """Asked of transformers once, whatever the number of modes."""
    shape = SHAPES[name]
    folder = cached_checkpoint(shape)
    requests = documents(shape, DOCUMENTS[name])
    return Case(shape, folder, requests, expected_of(folder, requests))


def made(name: str, mode: str) -> tuple[Case, Run]:
    """A shape's documents through an engine in one mode; every decode equal to transformers'."""
    asked = case(name)
    got = run(asked.folder, asked.shape, asked.requests, MODES[mode])
    taken = [request for request in asked.requests if len(request.input_ids) <= MODES[mode].longest]
    assert sorted(got.got) == sorted(decode.key for request in taken for decode in request.decodes)
    wrong = differing(asked.expected, got)
    assert not wrong, f"{len(wrong)} of {len(asked.expected)} differ: {wrong[:5]}"
    for key, one in got.got.items():
        assert one.logprob == pytest.approx(asked.expected[key].logprob, abs=2e-3), key
    return asked, got


@pytest.mark.parametrize("name", SHAPES)
def test_the_documents_are_of_every_kind(name: str) -> None:
    asked = case(name)
    lengths = [len(one.token_ids) for one in asked.expected.values()]
    assert sum(length > asked.shape.window for length in lengths) >= 2
    assert {one.finish_reason for one in asked.expected.values()} == {"stop", "length"}
    assert sum(request.pixel_values is not None for request in asked.requests) >= len(asked.requests) // 3
    assert {len(request.decodes) for request in asked.requests} == {1, 2, 3, 4, 5}
    assert max(len(request.input_ids) for request in asked.requests) >= 4000


def test_bytes_and_normalised_pixels_in_one_pass() -> None:
    """Stacked by vLLM, bytes would become floats, which count as normalised."""
    shape, folder = SHAPES["window-33"], cached_checkpoint(SHAPES["window-33"])
    requests = [make_request(shape, random.Random(i), f"doc{i}", tokens=20, images=2) for i in range(12)]
    kinds = {str(torch.as_tensor(request.pixel_values).dtype) for request in requests}
    assert kinds == {"torch.uint8", "torch.float32"}
    got = run(folder, shape, requests, MODES["sorted"])
    assert got.counts["passes"] == 1
    assert differing(expected_of(folder, requests), got) == []


@pytest.mark.parametrize("name", ["window-7", "window-512"])
def test_shuffled(name: str) -> None:
    _, got = made(name, "default")
    assert sum(one.cached for one in got.got.values()) > 0


def test_sorted_by_document_each_is_encoded_once() -> None:
    asked, got = made("window-33", "sorted")
    assert got.counts["encodes"] == len(asked.requests)
    assert got.counts["encoder_tokens"] == sum(len(request.input_ids) for request in asked.requests)
    assert got.counts["passes"] < len(asked.requests), "documents are encoded together"


def test_without_prefix_caching() -> None:
    _, got = made("window-33", "no-prefix-cache")
    assert sum(one.cached for one in got.got.values()) == 0


@pytest.mark.parametrize("mode", ["small-chunks", "one-row-chunks"])
def test_a_document_in_many_chunks(mode: str) -> None:
    made("window-33", mode)


def test_preempted_decodes_end_as_others_do() -> None:
    _, got = made("window-33", "preemption")
    assert got.preemptions >= 3


@pytest.mark.parametrize("name", ["window-7", "window-33"])
def test_documents_of_4000_tokens_preempted_again_and_again(name: str) -> None:
    _, got = made(name, "all-preempted")
    assert got.preemptions >= 50


def test_compiled() -> None:
    made("window-33", "compiled")


def test_engine_in_a_process_of_its_own() -> None:
    asked, got = made("window-33", "own-process")
    assert got.counts["encodes"] >= len(asked.requests)


def test_a_document_of_32768_tokens_takes_no_memory_of_its_length_squared() -> None:
    shape = dataclasses.replace(LONG, name="long-vllm", head_dim=32)
    folder, tokens = cached_checkpoint(shape), 32_768
    sampling = [Sampling(max_tokens=8)] * 2
    long = make_request(shape, random.Random(0), "long", tokens=tokens, images=2, prefixes=[0, 7], sampling=sampling)
    oracle = Oracle(folder)
    expected = {one.key: one for one in oracle.greedy(long, long_states(oracle, long))}
    got = run(folder, shape, [long], Mode(engine={"max_model_len": tokens + 100}))
    assert differing(expected, got) == []
    assert got.counts["encodes"] == 1
    print(f"{tokens} tokens: {got.peak_bytes / 2**20:,.0f} MiB above the loaded engine")
    # A float32 mask of tokens by tokens alone takes 4 GiB.
    assert got.peak_bytes < tokens**2 / 2

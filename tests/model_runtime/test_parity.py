"""The native backend against stock transformers: the same states, the same logits, the same tokens.

Every bar is absolute: greedy tokens equal, float32 numbers within 1e-4 of the largest, bfloat16 at most 1.2 times as
far from float32 as transformers' own bfloat16.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from model_runtime import EngineConfig, Generation, Request, Sampling, load_backend
from model_runtime.rows import Rows
from tests.checkpoints import BOS, SHAPES, Shape, cached_checkpoint, shape_named
from tests.model_runtime.oracle import Expected, Oracle, corpus, make_request, oracle_for, text_ids

RELATIVE = 1e-4
# Two best tokens closer than this are a tie that rounding may break either way: such a corpus proves nothing.
TIE = 5e-5
BFLOAT16_RATIO = 1.2

COUNTS = dict(zip([shape.name for shape in SHAPES], [40, 25, 18, 20, 9, 24, 30, 24, 22, 33, 20, 15], strict=True))
SEEDS = {"old-config": 1}

all_shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A corpus and what transformers makes of it, one entry per document."""

    requests: list[Request]
    states: list[Tensor]
    first_logits: list[list[Tensor]]
    expected: list[Expected]


@cache
def case_for(shape: Shape) -> Case:
    """The oracle's answers, worked out once for all tests."""
    oracle = oracle_for(shape)
    requests = corpus(shape, COUNTS[shape.name], seed=SEEDS.get(shape.name, 0))
    outputs = [oracle.states(request) for request in requests]
    pairs = list(zip(requests, outputs, strict=True))
    return Case(
        requests=requests,
        states=[output.last_hidden_state[0] for output in outputs],
        first_logits=[oracle.first_logits(request, output) for request, output in pairs],
        expected=[one for request, output in pairs for one in oracle.greedy(request, output)],
    )


def native(shape: Shape, **settings: Any) -> Any:
    """The native backend on the CPU in float32, or what `settings` say."""
    stored = settings.pop("stored", torch.float32)
    folder = cached_checkpoint(shape, dtype=stored)
    return load_backend(EngineConfig(model=str(folder), **({"device": "cpu", "dtype": "float32"} | settings)))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value expected."""
    return float((actual.float() - expected.float()).abs().max() / expected.float().abs().max())


def assert_same(generations: Iterable[Generation], expected: Sequence[Expected]) -> None:
    """Each key exactly once, with transformers' tokens, finish reason and log-probability."""
    made = list(generations)
    by_key = {generation.key: generation for generation in made}
    assert len(made) == len(by_key) == len(expected)
    for one in expected:
        generation = by_key[one.key]
        assert generation.error is None
        assert generation.token_ids == one.token_ids, f"{one.key}: transformers' narrowest lead was {one.gap:.1e}"
        assert generation.finish_reason == one.finish_reason, one.key
        assert generation.output_tokens == len(one.token_ids) + (one.finish_reason == "stop")
        assert generation.logprob == pytest.approx(one.logprob, rel=RELATIVE, abs=1e-3)


# --- float32 -------------------------------------------------------------------------------------------------------


@all_shapes
def test_the_corpus_can_tell(shape: Shape) -> None:
    """Outputs vary, run past the window, end in both ways over the shapes, and hold no ties."""
    expected = case_for(shape).expected
    produced = [one.token_ids for one in expected]
    assert max(map(len, produced)) > shape.window
    assert len(set(produced)) > 0.8 * len(produced)
    assert len({token for tokens in produced for token in tokens}) > 10
    assert min(one.gap for one in expected) > TIE, "choose another seed for this shape"


@all_shapes
def test_encoder_states(shape: Shape) -> None:
    case = case_for(shape)
    actual = native(shape).model.encode(case.requests)
    errors = [relative_error(a, b) for a, b in zip(actual, case.states, strict=True)]
    print(f"{shape.name}: encoder states within {max(errors):.1e}")
    assert max(errors) <= RELATIVE


@all_shapes
def test_first_logits(shape: Shape) -> None:
    case = case_for(shape)
    actual = native(shape).model.first_logits(case.requests)
    assert [len(logits) for logits in actual] == [len(request.decodes) for request in case.requests]
    pairs = [pair for a, b in zip(actual, case.first_logits, strict=True) for pair in zip(a, b, strict=True)]
    errors = [relative_error(a, b) for a, b in pairs]
    print(f"{shape.name}: first logits within {max(errors):.1e}")
    assert all(a.dtype == torch.float32 for a, _ in pairs)
    assert max(errors) <= RELATIVE


@all_shapes
def test_greedy_tokens_all_together(shape: Shape) -> None:
    case = case_for(shape)
    assert_same(native(shape).generate(case.requests), case.expected)


@all_shapes
@pytest.mark.parametrize("decodes", [1, 5])
def test_greedy_tokens_as_documents_join_and_leave(shape: Shape, decodes: int) -> None:
    case = case_for(shape)
    engine = native(shape, max_decodes=decodes, max_batch_tokens=64)
    assert_same(engine.generate(case.requests), case.expected)


@all_shapes
def test_greedy_tokens_when_documents_arrive_late(shape: Shape) -> None:
    """A document submitted while others decode changes nothing for them, nor they for it."""
    case = case_for(shape)
    engine = native(shape, max_decodes=6, max_batch_tokens=200)
    made = []
    for request in case.requests:
        engine.submit(request)
        made += engine.step() + engine.step()
    while step := _until_something(engine):
        made += step
    assert_same(made, case.expected)


@pytest.mark.parametrize("budget", [1, 40_000])
def test_greedy_tokens_under_a_small_cache(budget: int) -> None:
    shape = shape_named("one-kv-head")
    case = case_for(shape)
    assert_same(native(shape, cache_bytes=budget).generate(case.requests), case.expected)


def test_greedy_tokens_of_documents_alone() -> None:
    shape = shape_named("window-33")
    case = case_for(shape)
    engine = native(shape)
    assert_same([made for request in case.requests for made in engine.generate([request])], case.expected)


def test_the_order_of_documents_does_not_matter() -> None:
    shape = shape_named("old-config")
    case = case_for(shape)
    backwards = list(reversed(case.requests))
    assert_same(native(shape, max_decodes=9).generate(backwards), case.expected)


def _until_something(engine: Any, patience: int = 2000) -> list[Generation]:
    for _ in range(patience):
        if done := engine.step():
            return done
    return []


# --- bfloat16 ------------------------------------------------------------------------------------------------------


@all_shapes
def test_bfloat16_is_as_close_as_transformers(shape: Shape) -> None:
    """Against float32 on the same bfloat16 weights: relative RMS error at most 1.2 times transformers' own."""
    rng = random.Random(shape.name)
    requests = [
        make_request(shape, rng, f"d{i}", tokens=tokens, images=i % 3, prefixes=[0, 3, 12], sampling=[Sampling()] * 3)
        for i, tokens in enumerate([1, 9, 40, 90, 150, 400, 40, 90])
    ]
    reference = oracle_for(shape, torch.float32, torch.bfloat16)
    stock = oracle_for(shape, torch.bfloat16, torch.bfloat16)
    ours = native(shape, stored=torch.bfloat16, dtype="bfloat16").model

    exact_states = [reference.encode(request) for request in requests]
    states = _relative_rms([stock.encode(request) for request in requests], exact_states)
    own_states = _relative_rms(ours.encode(requests), exact_states)

    exact_logits = [logits for request in requests for logits in reference.first_logits(request)]
    logits = _relative_rms([row for request in requests for row in stock.first_logits(request)], exact_logits)
    own_logits = _relative_rms([row for rows in ours.first_logits(requests) for row in rows], exact_logits)

    print(
        f"{shape.name}: bfloat16 states {own_states:.2e} (transformers {states:.2e}, ratio {own_states / states:.2f}), "
        f"logits {own_logits:.2e} (transformers {logits:.2e}, ratio {own_logits / logits:.2f})"
    )
    assert own_states <= BFLOAT16_RATIO * states
    assert own_logits <= BFLOAT16_RATIO * logits


@pytest.mark.parametrize("name", ["one-kv-head", "window-33", "deep-decoder", "old-config"])
def test_bfloat16_steps_are_as_close_as_transformers(name: str) -> None:
    """The same bar for decoding steps: the logits after each of 40 forced tokens, past the window."""
    shape = shape_named(name)
    rng = random.Random(shape.name)
    requests = [
        make_request(shape, rng, f"d{i}", tokens=tokens, images=i % 2, prefixes=[2, 9], sampling=[Sampling()] * 2)
        for i, tokens in enumerate([3, 40, 120])
    ]
    forced = [text_ids(shape, 40, rng) for request in requests for _ in request.decodes]
    exact = _forced_oracle(oracle_for(shape, torch.float32, torch.bfloat16), requests, forced)
    stock = _forced_oracle(oracle_for(shape, torch.bfloat16, torch.bfloat16), requests, forced)
    ours = native(shape, stored=torch.bfloat16, dtype="bfloat16").model
    rows = Rows(ours)
    documents = [ours.document_keys(states) for states in ours.encode(requests)]
    rows.enter(
        [(keys, decode.prefix_ids) for r, keys in zip(requests, documents, strict=True) for decode in r.decodes],
        capacity=64,
    )
    steps = torch.stack([ours.logits(rows.advance([row[i] for row in forced])) for i in range(40)], dim=1)
    error, own = _relative_rms([stock], [exact]), _relative_rms([steps], [exact])
    print(f"{name}: bfloat16 steps {own:.2e} (transformers {error:.2e}, ratio {own / error:.2f})")
    assert own <= BFLOAT16_RATIO * error


@torch.inference_mode()
def _forced_oracle(oracle: Oracle, requests: Sequence[Request], forced: Sequence[list[int]]) -> Tensor:
    """Logits [decodes, steps, vocabulary] after each forced token, one token at a time over transformers' cache."""
    rows, queue = [], iter(forced)
    for request in requests:
        states = oracle.states(request)
        for decode in request.decodes:
            cache, logits = None, []
            for ids in ([BOS, *decode.prefix_ids], *([token] for token in next(queue))):
                out = oracle.model(
                    encoder_outputs=states,
                    decoder_input_ids=torch.tensor([ids]),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                cache = out.past_key_values
                logits.append(out.logits[0, -1].float())
            rows.append(torch.stack(logits[1:]))
    return torch.stack(rows)


def _relative_rms(actual: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    difference = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(actual, exact, strict=True))
    return (difference / sum(float(b.float().square().sum()) for b in exact)) ** 0.5


# --- one encoding, many decodings ----------------------------------------------------------------------------------


def test_a_document_is_encoded_once() -> None:
    """Five tasks on one document: one encoder pass, and one copy of its keys and values while they run."""
    shape = shape_named("window-512")
    request = make_request(
        shape, random.Random(5), "doc", tokens=100, prefixes=[0, 1, 5, 9, 20], sampling=[Sampling(max_tokens=6)] * 5
    )
    engine = native(shape)
    engine.submit(request)
    assert engine.step() == []
    one_copy = len(shape.decoder) * 2 * shape.kv_heads * len(request.input_ids) * shape.head_dim * 4
    assert engine.document_key_bytes == one_copy
    done: list[Generation] = []
    while len(done) < 5:
        done += engine.step()
    assert engine.stats.encodes == 1
    assert engine.stats.encoder_tokens == 100
    assert engine.stats.decoded_tokens == 30
    assert engine.document_key_bytes == 0
    assert_same(done, oracle_for(shape).greedy(request))


def test_five_decodes_equal_five_documents() -> None:
    """Sharing an encoding gives what encoding again would give."""
    shape = shape_named("deep-decoder")
    request = case_for(shape).requests[1]
    assert len(request.decodes) == 5
    apart = [
        Request(id=decode.key, input_ids=request.input_ids, pixel_values=request.pixel_values, decodes=(decode,))
        for decode in request.decodes
    ]
    together = {g.key: g.token_ids for g in native(shape).generate([request])}
    engine = native(shape)
    assert {g.key: g.token_ids for g in engine.generate(apart)} == together
    assert engine.stats.encodes == 5

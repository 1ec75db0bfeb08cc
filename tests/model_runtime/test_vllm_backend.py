"""vLLM behind the same interface: what the reference makes, each document encoded once, errors as generations."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, Field, ValidationError

pytest.importorskip("vllm")

from model_runtime import Decode, EngineConfig, ErrorCode, Generation, ModelError, Request, Sampling, load_backend
from model_runtime.backends.vllm_engine import shown
from model_runtime.processing import Processor
from tests.checkpoints import cached_checkpoint, make_checkpoint, shape_named
from tests.model_runtime.generations import run, tokens_of
from tests.model_runtime.oracle import corpus, make_request, oracle_for

pytestmark = pytest.mark.vllm

SHAPE = shape_named("heads-of-64")
ROWS = 12
# Bytes of one block of 32 tokens: keys and values of every layer.
BLOCK = 32 * 2 * len(SHAPE.decoder) * SHAPE.kv_heads * SHAPE.head_dim * 4


def load(backend: str = "vllm", **settings: Any) -> Any:
    usual = {"model": str(cached_checkpoint(SHAPE)), "device": "cpu", "dtype": "float32", "threads": 1}
    return load_backend(EngineConfig(**(usual | {"backend": backend} | settings)))


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """Much room: nothing is ever pushed out of its caches."""
    made = load(max_decodes=ROWS, max_batch_tokens=512, cache_bytes=1 << 25)
    yield made
    made.close()


@pytest.fixture(scope="module")
def small() -> Iterator[Any]:
    """Room for 11 blocks of 32 tokens, one of which vLLM keeps for itself."""
    made = load(max_decodes=4, max_batch_tokens=64, cache_bytes=12 * BLOCK)
    yield made
    made.close()


@pytest.fixture(scope="module")
def native() -> Any:
    return load("native")


def document(*sampling: Sampling, name: str = "doc", tokens: int = 25, images: int = 1, key: str = "") -> Request:
    """A document, always the same by that name, with one decode per `sampling`."""
    bare = make_request(SHAPE, random.Random(name), name, tokens=tokens, images=images, prefixes=[], sampling=[])
    decodes = [Decode(key=f"{key or name}/{i}", prefix_ids=(9, 80, 33), sampling=s) for i, s in enumerate(sampling)]
    return dataclasses.replace(bare, decodes=tuple(decodes))


def check_greedy(made: dict[str, Generation], requests: Sequence[Request], **settings: Any) -> None:
    for request in requests:
        for expected in oracle_for(SHAPE).greedy(request, **settings):
            generation = made[expected.key]
            assert generation.error is None
            assert generation.token_ids == expected.token_ids
            assert generation.finish_reason == expected.finish_reason
            assert generation.logprob == pytest.approx(expected.logprob, rel=1e-4, abs=1e-3)
            assert generation.output_tokens == len(expected.token_ids) + (expected.finish_reason == "stop")


# --- greedy --------------------------------------------------------------------------------------------------------


def test_it_makes_what_generate_makes_and_encodes_each_document_once(engine: Any) -> None:
    requests = corpus(SHAPE, 12, seed=4)
    before = engine.stats
    made = run(engine, requests)
    check_greedy(made, requests)
    stats = engine.stats
    assert stats.encodes - before.encodes == len(requests)
    assert stats.encoder_tokens - before.encoder_tokens == sum(len(request.input_ids) for request in requests)
    assert stats.decoded_tokens - before.decoded_tokens == sum(one.output_tokens for one in made.values())
    assert stats.steps > before.steps and 0 < stats.occupancy <= 1
    assert stats.encode_seconds > 0 and stats.decode_seconds > 0
    assert engine.dtype == "float32"


def test_a_document_that_is_known_is_not_encoded_again(engine: Any) -> None:
    """Another task over the same documents, submitted later by other names: their keys are still there."""
    first = [document(Sampling(max_tokens=4), name=f"known{i}", tokens=30 + 40 * i, images=i) for i in range(3)]
    run(engine, first)
    before = engine.stats.encodes
    again = [dataclasses.replace(one, id=f"again-{one.id}", decodes=_asked_anew(one)) for one in first]
    check_greedy(run(engine, again), again)
    assert engine.stats.encodes == before


def _asked_anew(request: Request) -> tuple[Decode, ...]:
    return (Decode(key=f"{request.id}/new", prefix_ids=(50, 51), sampling=Sampling(max_tokens=9)),)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_the_penalty_is_over_the_decoders_tokens(engine: Any, penalty: float) -> None:
    requests = [document(Sampling(max_tokens=24, repetition_penalty=penalty), name=f"d{i}", images=0) for i in range(4)]
    check_greedy(run(engine, requests), requests, repetition_penalty=penalty)


def test_stop_strings_end_as_the_native_backends(engine: Any, native: Any) -> None:
    processor = Processor.load(cached_checkpoint(SHAPE))
    requests = []
    for n in range(3):
        [whole] = native.generate([document(Sampling(max_tokens=30), name=f"s{n}", images=n)])
        text = processor.decode(whole.token_ids)
        middle = len(text) // 2
        stops = [text[0], text[middle], text[middle : middle + 2], text[-2:], "~~~~~~"]
        sampling = [Sampling(max_tokens=30, stop=("not in there", stop)) for stop in stops]
        requests.append(document(*sampling, Sampling(max_tokens=30), name=f"s{n}", images=n))
    expected, made = run(native, requests), run(engine, requests)
    assert {generation.finish_reason for generation in expected.values()} == {"stop", "length"}
    for key, generation in made.items():
        assert generation == dataclasses.replace(expected[key], logprob=generation.logprob)
        assert generation.logprob == pytest.approx(expected[key].logprob, rel=1e-4, abs=1e-3)


# --- sampling ------------------------------------------------------------------------------------------------------


def test_what_leaves_one_token_is_greedy(engine: Any) -> None:
    ways = [{"top_k": 1}, {"top_p": 1e-6}]
    sampling = [Sampling(max_tokens=16, temperature=1.5, seed=7, **way) for way in ways]
    requests = [document(Sampling(max_tokens=16), *sampling, name=f"g{i}") for i in range(3)]
    made = tokens_of(engine, requests)
    for request in requests:
        assert len({made[decode.key] for decode in request.decodes}) == 1


def test_a_seed_fixes_a_row_whatever_runs_beside_it(engine: Any) -> None:
    sampling = Sampling(max_tokens=20, temperature=1.0, top_p=0.95, seed=11)
    requests = [document(sampling, sampling, name=f"r{i}", images=i % 3, tokens=10 + 9 * i) for i in range(5)]
    alone: dict[str, tuple[int, ...]] = {}
    for request in requests:
        alone |= tokens_of(engine, [request])
    assert tokens_of(engine, requests[::-1]) == alone
    assert len(set(alone.values())) == len(alone)  # equal settings, yet each key draws for itself
    other = [document(dataclasses.replace(sampling, seed=12), name="r0", images=0, tokens=10)]
    assert tokens_of(engine, other)["r0/0"] != alone["r0/0"]


@pytest.mark.parametrize(
    ("temperature", "rule"),
    [(0.7, {}), (1.5, {"top_k": 5}), (1.5, {"top_p": 0.4}), (1.5, {"top_k": 40, "top_p": 0.3})],
    ids=str,
)
def test_sampled_frequencies_follow_the_distribution(engine: Any, temperature: float, rule: dict[str, Any]) -> None:
    """Pearson's chi-square over what transformers' warpers leave; the seeds are fixed, and so is the result."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    draws = 800
    sampling = Sampling(max_tokens=1, temperature=temperature, seed=5, **rule)
    request = document(*[sampling] * draws)
    [scores] = oracle_for(SHAPE).first_logits(dataclasses.replace(request, decodes=request.decodes[:1]))
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(rule["top_k"])] if "top_k" in rule else []
    warpers += [TopPLogitsWarper(rule["top_p"])] if "top_p" in rule else []
    scores = scores[None]
    for warper in warpers:
        scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
    chances = scores[0].softmax(-1)
    made = run(engine, [request]).values()
    drawn = Counter(generation.token_ids[0] if generation.token_ids else 1 for generation in made)
    assert set(drawn) <= set(chances.nonzero().flatten().tolist())
    often = [token for token in range(len(chances)) if chances[token] * draws >= 5]
    expected = [float(chances[token]) * draws for token in often]
    seen = [drawn[token] for token in often]
    if draws - sum(expected) >= 5:
        expected.append(draws - sum(expected))
        seen.append(draws - sum(seen))
    assert len(expected) > 1
    distance = sum((o - e) ** 2 / e for o, e in zip(seen, expected, strict=True))
    freedom = len(expected) - 1
    # Its mean is `freedom`, its variance twice that: so far out come about 1 in 10,000.
    assert distance < freedom + 4 * (2 * freedom) ** 0.5 + 6


def test_logprob_is_of_the_models_own_distribution(engine: Any) -> None:
    request = document(Sampling(max_tokens=6, temperature=1.7, top_k=9, repetition_penalty=1.2, seed=2))
    [generation] = engine.generate([request])
    prefix, expected = request.decodes[0].prefix_ids, 0.0
    for i, token in enumerate(generation.token_ids):
        step = Decode(key="s", prefix_ids=(*prefix, *generation.token_ids[:i]))
        [logits] = oracle_for(SHAPE).first_logits(dataclasses.replace(request, decodes=(step,)))
        expected += float(logits.log_softmax(-1)[token])
    assert generation.logprob == pytest.approx(expected, rel=1e-4, abs=1e-3)


# --- inputs that cannot work ---------------------------------------------------------------------------------------


def _bad(name: str, **changes: Any) -> Request:
    usual: dict[str, Any] = {"id": name, "input_ids": [2, 40], "decodes": (Decode(key=name),)}
    return Request(**(usual | changes))


def bad_requests() -> list[Request]:
    long = Decode(key="positions", sampling=Sampling(max_tokens=SHAPE.max_positions))
    return [
        _bad("empty", input_ids=[]),
        _bad("vocabulary", input_ids=[2, SHAPE.vocab]),
        _bad("prefix", decodes=(Decode(key="prefix", prefix_ids=(SHAPE.vocab,)),)),
        _bad("placeholders", input_ids=[2, *[SHAPE.image_token] * SHAPE.image_tokens]),
        _bad("positions", decodes=(long,)),
        _bad("encoder", input_ids=[40] * (SHAPE.max_positions + 1)),
        _bad("hot", decodes=(Decode(key="hot", sampling=Sampling(temperature=2.5)),)),
    ]


def test_bad_requests_are_errors_and_their_neighbours_live(engine: Any) -> None:
    bad = bad_requests()
    fine = [document(Sampling(max_tokens=4), name=f"fine{i}") for i in range(len(bad))]
    made = run(engine, [one for pair in zip(bad, fine, strict=True) for one in pair])
    for request in bad:
        error = made[request.decodes[0].key].error
        assert error is not None and error.code.status == "rejected"
        assert error.message and "\n" not in error.message
    check_greedy(made, fine)


def test_what_the_cache_cannot_hold_has_failed(small: Any) -> None:
    """As where the native backend finds no memory: with more it may work, so it is not rejected."""
    fits = document(Sampling(max_tokens=20), name="fits", tokens=300, images=0)
    long = document(Sampling(max_tokens=20), name="long", tokens=400, images=0)
    made = run(small, [long, fits])
    error = made["long/0"].error
    assert error is not None and error.code is ErrorCode.OUT_OF_MEMORY and "400 input tokens and 24" in error.message
    check_greedy(made, [fits])


def test_what_vllm_refuses_has_failed_alone(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine._engine.add_request

    def refuse(key: str, *arguments: Any) -> None:
        if key == "refused/0":
            raise ValueError("no\nsecond line")
        real(key, *arguments)

    monkeypatch.setattr(engine._engine, "add_request", refuse)
    fine = document(Sampling(max_tokens=4), name="fine")
    made = run(engine, [document(Sampling(), name="refused"), fine])
    error = made["refused/0"].error
    assert error is not None and error.code is ErrorCode.ENGINE_CRASH
    assert error.message == "ValueError while entering vLLM: no"
    check_greedy(made, [fine])


def test_a_key_twice_in_flight_is_refused(engine: Any) -> None:
    twice = document(Sampling(max_tokens=2), name="twice")
    with pytest.raises(ValueError, match="twice/0"):
        engine.submit(dataclasses.replace(twice, decodes=twice.decodes * 2))
    engine.submit(twice)
    with pytest.raises(ValueError, match="twice/0"):
        engine.submit(twice)
    assert [made.key for made in engine.generate([])] == ["twice/0"]
    assert tokens_of(engine, [twice])  # finished, so the key is free again


def test_nothing_to_do(engine: Any) -> None:
    assert engine.step() == []
    assert list(engine.generate([])) == []
    assert list(engine.generate([document()])) == []


def test_generate_reads_its_input_lazily(engine: Any) -> None:
    asked = 0

    def many() -> Iterator[Request]:
        nonlocal asked
        for asked in range(1, 400):
            yield document(Sampling(max_tokens=1), name=f"lazy{asked}", tokens=5, images=0)

    stream = engine.generate(many())
    assert next(stream).error is None
    assert asked < 100
    assert sum(1 for _ in stream) == 398


def test_a_seeded_decode_of_a_document_in_chunks_draws_the_same(engine: Any, small: Any) -> None:
    """Its first number is drawn after the last chunk: 64 tokens at a time as well as 512."""
    sampling = Sampling(max_tokens=20, temperature=1.0, seed=3)
    request = document(sampling, sampling, name="chunked", tokens=250, images=0)
    assert tokens_of(small, [request]) == tokens_of(engine, [request])


# --- memory --------------------------------------------------------------------------------------------------------


def test_a_cache_that_is_too_small_for_all_changes_no_result(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are preempted and computed again, sampled ones too."""
    scheduler = small._engine.engine_core.engine_core.scheduler
    preempted: list[str] = []
    real = scheduler._preempt_request

    def preempt(one: Any, *rest: Any, **more: Any) -> None:
        preempted.append(one.request_id)
        real(one, *rest, **more)

    monkeypatch.setattr(scheduler, "_preempt_request", preempt)
    greedy = [document(Sampling(max_tokens=70), name=f"p{i}", tokens=40 + i, images=0) for i in range(6)]
    sampled = [
        document(Sampling(max_tokens=60, temperature=1.0, seed=1), name=f"q{i}", tokens=40, images=0) for i in range(4)
    ]
    made = run(small, [*greedy, *sampled])
    assert preempted
    check_greedy(made, greedy)
    for request in sampled:
        [alone] = small.generate([request])
        assert alone.token_ids == made[alone.key].token_ids


@pytest.mark.parametrize("which", ["engine", "small"])
def test_not_a_number_fails_alone_and_leaves_nothing_behind(which: str, request: pytest.FixtureRequest) -> None:
    """Its neighbours, and those who get its blocks of the cache, see nothing of it."""
    backend = request.getfixturevalue(which)
    pixels = torch.full((1, 3, SHAPE.image_size, SHAPE.image_size), float("nan"))
    ids = [2, *[SHAPE.image_token] * SHAPE.image_tokens, *range(40, 70)]
    plain, watched = Sampling(max_tokens=12), Sampling(max_tokens=12, stop=("~~~~~~",))
    poison = [
        Request(
            id=f"nan{i}", input_ids=[*ids, 50 + i], pixel_values=pixels,
            decodes=(Decode(key=f"nan{i}/0", sampling=plain), Decode(key=f"nan{i}/1", sampling=watched)),
        )
        for i in range(4)
    ]  # fmt: skip
    good = [document(Sampling(max_tokens=40), name=f"good{i}", tokens=20 + 7 * i, images=i % 2) for i in range(8)]
    mixed = [good[0], poison[0], good[1], poison[1], good[2], poison[2], *good[3:6], poison[3], *good[6:]]
    made = run(backend, mixed)
    for one in poison:
        for decode in one.decodes:
            error = made[decode.key].error
            assert error is not None and error.code is ErrorCode.NON_FINITE
    check_greedy(made, good)
    later = [document(Sampling(max_tokens=45), name=f"later{i}", tokens=15 + 9 * i, images=0) for i in range(8)]
    check_greedy(run(backend, later), later)


def test_a_request_that_cannot_be_read_leaves_nothing_behind(engine: Any) -> None:
    good = document(Sampling(max_tokens=3), name="read", images=1)
    with pytest.raises(AttributeError):
        engine.submit(dataclasses.replace(good, pixel_values=[[1.0]]))
    check_greedy({one.key: one for one in engine.generate([good])}, [good])


def test_occupancy_counts_rows_as_they_advance(engine: Any) -> None:
    def advanced() -> int:
        return round(engine.stats.occupancy * engine.stats.steps * ROWS)

    before, finished = advanced(), engine.stats.decoded_tokens
    engine.submit(document(*[Sampling(max_tokens=9)] * 2, name="rows"))
    for step in range(1, 5):
        assert engine.step() == []
        assert advanced() == before + 2 * step
    assert engine.stats.decoded_tokens == finished, "counted when they end"
    assert len(list(engine.generate([]))) == 2
    assert advanced() - before == engine.stats.decoded_tokens - finished


# --- what cannot be loaded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "int8"}, "int8 is the native backend's"),
        ({"dtype": "float16"}, "'float16' is not known"),
        ({"device": "cuda"}, "cannot be used here"),
        ({"model": str(cached_checkpoint(shape_named("one-kv-head")))}, "this model's are of 16"),
        ({"cache_bytes": 5}, "too little memory is free for vLLM's cache: 0 MiB"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_loaded_is_one_line(settings: dict[str, Any], said: str) -> None:
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match=said) as raised:
        load(**settings)
    assert "\n" not in str(raised.value)


def test_of_pydantics_errors_the_part_that_says_what_is_wrong() -> None:
    class Limits(BaseModel):
        rows: int = Field(gt=0)

    with pytest.raises(ValidationError) as raised:
        Limits(rows=0)
    assert shown(raised.value).startswith("rows Input should be greater than 0")
    assert shown(ValueError("no room\nfor it")) == "no room" and shown(KeyError()) == "KeyError"


def test_a_broken_checkpoint_is_one_line(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", SHAPE)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match=r"model\.safetensors") as raised:
        load(model=str(folder))
    assert "\n" not in str(raised.value)

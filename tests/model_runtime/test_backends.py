"""What both backends promise: sampling by transformers' rules, stop strings, bad inputs as errors, not exceptions."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_runtime import Decode, EngineConfig, ErrorCode, Request, Sampling, load_backend
from model_runtime.processing import Processor
from tests.checkpoints import Shape, cached_checkpoint, make_checkpoint, shape_named
from tests.model_runtime.generations import run, tokens_of
from tests.model_runtime.oracle import corpus, make_request, oracle_for

SHAPE = shape_named("one-kv-head")
BACKENDS = ("native", "transformers")

both = pytest.mark.parametrize("backend", BACKENDS)


def load(backend: str = "native", shape: Shape = SHAPE, **settings: Any) -> Any:
    """A backend over a cached checkpoint, on the CPU in float32."""
    return _loaded(backend, str(cached_checkpoint(shape)), tuple(sorted(settings.items())))


@cache
def _loaded(backend: str, folder: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    return load_backend(EngineConfig(model=folder, backend=backend, device="cpu", dtype="float32", **dict(settings)))


def document(*sampling: Sampling, name: str = "doc", tokens: int = 25, images: int = 1) -> Request:
    """A document, always the same by that name, with one decode per `sampling`."""
    bare = make_request(SHAPE, random.Random(name), name, tokens=tokens, images=images, prefixes=[], sampling=[])
    decodes = (Decode(key=f"{name}/{i}", prefix_ids=(9, 80, 33), sampling=one) for i, one in enumerate(sampling))
    return dataclasses.replace(bare, decodes=tuple(decodes))


# --- the two backends ----------------------------------------------------------------------------------------------


def test_the_reference_backend_makes_what_generate_makes() -> None:
    requests = corpus(SHAPE, 12, seed=4)
    made = run(load("transformers"), requests)
    for request in requests:
        for one in oracle_for(SHAPE).greedy(request):
            assert made[one.key].token_ids == one.token_ids
            assert made[one.key].finish_reason == one.finish_reason
            assert made[one.key].logprob == pytest.approx(one.logprob, rel=1e-4, abs=1e-3)


def test_both_backends_draw_the_same_samples() -> None:
    sampling = [
        Sampling(max_tokens=10, temperature=0.8, seed=3),
        Sampling(max_tokens=10, temperature=1.3, top_k=20, top_p=0.9),
        Sampling(max_tokens=10, temperature=0.7, repetition_penalty=1.4),
    ]
    requests = [document(*sampling, name=f"d{i}", images=i) for i in range(3)]
    assert tokens_of(load("native"), requests) == tokens_of(load("transformers"), requests)


@both
def test_stats_count(backend: str) -> None:
    engine = load_backend(
        EngineConfig(model=str(cached_checkpoint(SHAPE)), backend=backend, device="cpu", dtype="float32")
    )
    made = run(engine, [document(Sampling(max_tokens=4), Sampling(max_tokens=2)), document(Sampling(), name="other")])
    stats = engine.stats
    assert stats.encodes == 2
    assert stats.encoder_tokens == sum(len(document(name=name).input_ids) for name in ("doc", "other"))
    assert stats.decoded_tokens == sum(generation.output_tokens for generation in made.values())
    assert 0 < stats.occupancy <= 1
    assert stats.steps > 0 and stats.encode_seconds > 0 and stats.decode_seconds > 0


@both
def test_nothing_to_do(backend: str) -> None:
    engine = load(backend)
    assert engine.step() == []
    assert list(engine.generate([])) == []
    assert list(engine.generate([document()])) == []
    assert engine.step() == []


@both
def test_generate_reads_its_input_lazily(backend: str) -> None:
    """An endless stream of documents is not read to its end before the first result."""

    def endless() -> Any:
        for i in range(10**9):
            yield document(Sampling(max_tokens=1), name=f"d{i}")

    stream = load(backend).generate(endless())
    assert next(iter(stream)).error is None
    stream.close()
    _loaded.cache_clear()  # what was read ahead is still queued in that engine


@both
def test_input_ids_may_be_an_array(backend: str) -> None:
    request = document(Sampling(max_tokens=5))
    array = dataclasses.replace(request, input_ids=np.array(request.input_ids, dtype=np.int32))
    assert tokens_of(load(backend), [array]) == tokens_of(load(backend), [request])


@both
def test_uint8_and_normalised_pixels_agree(backend: str) -> None:
    """uint8 pixels are normalised by the processor's mean and std, float pixels are taken as they are."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, 3, SHAPE.image_size, SHAPE.image_size), dtype=np.uint8)
    ids = [2, SHAPE.boi, *[SHAPE.image_token] * SHAPE.image_tokens, SHAPE.eoi, 40]
    decode = Decode(key="d", sampling=Sampling(max_tokens=10))
    as_bytes = Request(id="a", input_ids=ids, pixel_values=pixels, decodes=(decode,))
    floats = torch.from_numpy(pixels).float().div(255).sub(0.5).div(0.5)
    as_floats = Request(id="b", input_ids=ids, pixel_values=floats, decodes=(decode,))
    darker = Request(id="c", input_ids=ids, pixel_values=pixels // 3, decodes=(decode,))
    made = [tokens_of(load(backend), [request]) for request in (as_bytes, as_floats, darker)]
    assert made[0] == made[1] != made[2]


@both
def test_the_processor_file_decides_the_normalisation(backend: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", SHAPE)
    path = folder / "preprocessor_config.json"
    text = path.read_text()
    path.write_text(text.replace("0.5,", "0.25,").replace("0.5\n", "0.25\n"))
    assert path.read_text() != text
    pixels = np.full((1, 3, SHAPE.image_size, SHAPE.image_size), 90, dtype=np.uint8)
    pixels[:, :, ::3] = 200
    ids = [SHAPE.image_token] * SHAPE.image_tokens
    decode = Decode(key="d", sampling=Sampling(max_tokens=12))
    floats = torch.from_numpy(pixels).float().div(255).sub(0.25).div(0.25)
    engine = _loaded(backend, str(folder), ())
    made = [
        tokens_of(engine, [Request(id="a", input_ids=ids, pixel_values=values, decodes=(decode,))])
        for values in (pixels, floats)
    ]
    assert made[0] == made[1]
    usual = tokens_of(load(backend), [Request(id="a", input_ids=ids, pixel_values=pixels, decodes=(decode,))])
    assert usual != made[0]


# --- sampling ------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("penalty", [1.3, 0.8, 3.0])
def test_repetition_penalty_is_transformers_own(backend: str, penalty: float) -> None:
    """Over the decoder's tokens, the prefix and BOS among them, and not over the document's."""
    sampling = Sampling(max_tokens=24, repetition_penalty=penalty)
    requests = [document(sampling, name=f"d{i}", images=0) for i in range(4)]
    made = run(load(backend), requests)
    changed = 0
    for request in requests:
        [expected] = oracle_for(SHAPE).greedy(request, repetition_penalty=penalty)
        generation = made[expected.key]
        assert generation.token_ids == expected.token_ids
        assert generation.logprob == pytest.approx(expected.logprob, rel=1e-4, abs=1e-3)
        [plain] = oracle_for(SHAPE).greedy(request)
        changed += plain.token_ids != expected.token_ids
    assert changed


@both
def test_top_k_one_is_greedy(backend: str) -> None:
    warm = Sampling(max_tokens=16, temperature=1.5, top_k=1, seed=7)
    requests = [document(Sampling(max_tokens=16), warm, name=f"d{i}") for i in range(3)]
    made = run(load(backend), requests)
    for request in requests:
        greedy, sampled = (made[decode.key] for decode in request.decodes)
        assert sampled.token_ids == greedy.token_ids
        assert sampled.logprob == pytest.approx(greedy.logprob, rel=1e-5, abs=1e-4)


@both
def test_a_tiny_top_p_is_greedy(backend: str) -> None:
    nearly = Sampling(max_tokens=12, temperature=2.0, top_p=1e-6)
    [greedy] = oracle_for(SHAPE).greedy(document(nearly))
    [generation] = load(backend).generate([document(nearly)])
    assert generation.token_ids == greedy.token_ids


@pytest.mark.parametrize(
    "rule", [{"top_k": 5}, {"top_p": 0.4}, {"top_k": 3, "top_p": 0.8}, {"top_k": 40, "top_p": 0.3}], ids=str
)
def test_top_k_and_top_p_leave_what_transformers_leaves(rule: dict[str, Any]) -> None:
    """Over many draws: only tokens that transformers' own warpers keep, and every likely one of them."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    sampling = Sampling(max_tokens=1, temperature=1.5, **rule)
    [scores] = oracle_for(SHAPE).first_logits(document(sampling))
    warpers: list[Any] = [TemperatureLogitsWarper(1.5)]
    warpers += [TopKLogitsWarper(rule["top_k"])] if "top_k" in rule else []
    warpers += [TopPLogitsWarper(rule["top_p"])] if "top_p" in rule else []
    scores = scores[None]
    for warper in warpers:
        scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
    chances = scores[0].softmax(-1)
    drawn = _draw(document(), sampling, 400)
    assert set(drawn) <= set(chances.nonzero().flatten().tolist())
    assert set(drawn) >= set((chances > 0.04).nonzero().flatten().tolist())
    assert len(drawn) > 1


def test_sampled_frequencies_follow_the_distribution() -> None:
    request, sampling = document(), Sampling(max_tokens=1, temperature=0.7)
    [logits] = oracle_for(SHAPE).first_logits(document(sampling))
    chances = (logits / 0.7).softmax(-1)
    draws = 1500
    drawn = _draw(request, sampling, draws)
    for token in chances.argsort(descending=True)[:8].tolist():
        chance = float(chances[token])
        assert abs(drawn[token] / draws - chance) < 4.5 * (chance * (1 - chance) / draws) ** 0.5


def _draw(request: Request, sampling: Sampling, count: int) -> Counter[int]:
    """How often each token comes first over `count` keys; EOS counts as itself."""
    made = load().generate([dataclasses.replace(request, decodes=document(*[sampling] * count).decodes)])
    return Counter(generation.token_ids[0] if generation.token_ids else 1 for generation in made)


def test_a_seed_fixes_a_row_whatever_runs_beside_it() -> None:
    sampling = Sampling(max_tokens=20, temperature=1.0, top_p=0.95, seed=11)
    requests = [document(sampling, sampling, name=f"d{i}", images=i % 3, tokens=10 + 9 * i) for i in range(8)]
    alone: dict[str, tuple[int, ...]] = {}
    for request in requests:
        alone |= tokens_of(load(), [request])
    assert tokens_of(load(), requests) == alone
    assert tokens_of(load(max_decodes=3, max_batch_tokens=50), list(reversed(requests))) == alone
    assert len(set(alone.values())) == len(alone)  # equal settings, yet each key draws for itself


def test_another_seed_draws_otherwise() -> None:
    made = [
        tokens_of(load(), [document(Sampling(max_tokens=12, temperature=1.2, seed=seed))])["doc/0"] for seed in range(6)
    ]
    assert len(set(made)) == 6


@both
def test_logprob_is_of_the_models_own_distribution(backend: str) -> None:
    """Temperature, top-k and penalty change what is drawn, not how likely the model says it is."""
    sampling = Sampling(max_tokens=6, temperature=1.7, top_k=9, repetition_penalty=1.2, seed=2)
    request = document(sampling)
    [generation] = load(backend).generate([request])
    assert generation.finish_reason == "length"
    prefix = request.decodes[0].prefix_ids
    expected = 0.0
    for i, token in enumerate(generation.token_ids):
        step = Decode(key="s", prefix_ids=(*prefix, *generation.token_ids[:i]))
        [logits] = oracle_for(SHAPE).first_logits(dataclasses.replace(request, decodes=(step,)))
        expected += float(logits.log_softmax(-1)[token])
    assert generation.logprob == pytest.approx(expected, rel=1e-4, abs=1e-3)


# --- stop strings --------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("images", [0, 1, 2])
def test_stop_strings_are_trimmed(backend: str, images: int) -> None:
    processor = Processor.load(cached_checkpoint(SHAPE))
    [whole] = load(backend).generate([document(Sampling(max_tokens=30), images=images)])
    # What a reader of the stream sees after each token: bytes of a character may still be missing.
    seen = [processor.decode(whole.token_ids[:i]) for i in range(1, len(whole.token_ids) + 1)]
    text = seen[-1]
    middle = len(text) // 2
    for stop in (text[0], text[middle], text[middle : middle + 2], text[-2:], text[-1]):
        at, first = next((i, one) for i, one in enumerate(seen) if stop in one)
        [cut] = load(backend).generate([document(Sampling(max_tokens=30, stop=("not in there", stop)), images=images)])
        assert processor.decode(cut.token_ids) == first[: first.index(stop)]
        assert cut.finish_reason == "stop"
        assert cut.output_tokens == at + 1


@both
def test_a_stop_string_that_never_comes(backend: str) -> None:
    plain, watched = Sampling(max_tokens=10), Sampling(max_tokens=10, stop=("~~~~~~",))
    assert tokens_of(load(backend), [document(plain)]) == tokens_of(load(backend), [document(watched)])


# --- inputs that cannot work ---------------------------------------------------------------------------------------

FINE = document(Sampling(max_tokens=4), name="fine")
_PIXELS = np.zeros((1, 3, SHAPE.image_size, SHAPE.image_size), dtype=np.uint8)


def _bad(**changes: Any) -> Request:
    usual: dict[str, Any] = {"id": "bad", "input_ids": [2, 40], "decodes": (Decode(key="bad/0"), Decode(key="bad/1"))}
    return Request(**(usual | changes))


_LONG = Decode(key="bad/0", sampling=Sampling(max_tokens=SHAPE.max_positions))
BAD = {
    "empty": _bad(input_ids=[]),
    "id too large": _bad(input_ids=[2, SHAPE.vocab]),
    "negative id": _bad(input_ids=[2, -1]),
    "prefix id too large": _bad(decodes=(Decode(key="bad/0", prefix_ids=(SHAPE.vocab,)),)),
    "placeholders without an image": _bad(input_ids=[2, *[SHAPE.image_token] * SHAPE.image_tokens]),
    "an image without placeholders": _bad(pixel_values=_PIXELS),
    "too few placeholders": _bad(input_ids=[2, *[SHAPE.image_token] * (SHAPE.image_tokens - 1)], pixel_values=_PIXELS),
    "image of another size": _bad(
        input_ids=[2, *[SHAPE.image_token] * SHAPE.image_tokens], pixel_values=_PIXELS[:, :, 1:]
    ),
    "more output than positions": _bad(decodes=(_LONG,)),
    "longer than the encoder's positions": _bad(input_ids=[40] * (SHAPE.max_positions + 1)),
}


@both
@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_an_error_and_its_neighbours_live(backend: str, name: str) -> None:
    made = run(load(backend), [FINE, BAD[name], dataclasses.replace(FINE, id="x", decodes=_renamed(FINE.decodes))])
    for decode in BAD[name].decodes:
        error = made[decode.key].error
        assert error is not None
        assert error.code.status == "rejected"
        assert error.message and "\n" not in error.message
        assert made[decode.key].token_ids == ()
    [expected] = oracle_for(SHAPE).greedy(FINE)
    assert made["fine/0"].token_ids == made["again"].token_ids == expected.token_ids


def _renamed(decodes: tuple[Decode, ...]) -> tuple[Decode, ...]:
    return tuple(dataclasses.replace(decode, key="again") for decode in decodes)


@both
def test_a_key_twice_in_flight_is_refused(backend: str) -> None:
    engine = load(backend)
    twice = document(Sampling(max_tokens=2), name="twice")
    with pytest.raises(ValueError, match="twice/0"):
        engine.submit(dataclasses.replace(twice, decodes=twice.decodes * 2))
    engine.submit(twice)
    with pytest.raises(ValueError, match="twice/0"):
        engine.submit(twice)
    assert [made.key for made in engine.generate([FINE])] in (["twice/0", "fine/0"], ["fine/0", "twice/0"])
    assert tokens_of(engine, [twice])  # finished, so the key is free again


@both
def test_no_decodes_is_no_output(backend: str) -> None:
    assert [made.key for made in load(backend).generate([_bad(decodes=()), FINE])] == ["fine/0"]


@both
def test_not_a_number_fails_alone(backend: str) -> None:
    """An image of NaNs makes `non_finite` rows, and nothing else in the batch."""
    pixels = torch.full((1, 3, SHAPE.image_size, SHAPE.image_size), float("nan"))
    poison = _bad(input_ids=[2, *[SHAPE.image_token] * SHAPE.image_tokens], pixel_values=pixels)
    made = run(load(backend), [poison, FINE])
    for decode in poison.decodes:
        error = made[decode.key].error
        assert error is not None and error.code is ErrorCode.NON_FINITE
    [expected] = oracle_for(SHAPE).greedy(FINE)
    assert made["fine/0"].token_ids == expected.token_ids


def test_not_a_number_leaves_nothing_behind() -> None:
    """Rows that take the place of a poisoned one, while another runs on, find clean memory."""
    pixels = torch.full((1, 3, SHAPE.image_size, SHAPE.image_size), float("nan"))
    poison = _bad(input_ids=[2, *[SHAPE.image_token] * SHAPE.image_tokens], pixel_values=pixels)
    long = document(Sampling(max_tokens=40), name="long")
    later = [document(Sampling(max_tokens=6), name=f"later{i}") for i in range(4)]
    made = run(load(max_decodes=3), [long, poison, *later])
    for request in (long, *later):
        [expected] = oracle_for(SHAPE).greedy(request)
        assert made[expected.key].token_ids == expected.token_ids


@both
def test_a_checkpoint_without_a_tokenizer_runs_on_ids(backend: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", SHAPE)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    engine = _loaded(backend, str(folder), ())
    stopping = Decode(key="stopping", sampling=Sampling(stop=("x",)))
    made = run(engine, [FINE, _bad(decodes=(stopping,))])
    assert made["fine/0"].error is None
    error = made["stopping"].error
    assert error is not None and "tokenizer" in error.message


@both
def test_close_gives_the_model_back(backend: str) -> None:
    import gc
    import weakref

    engine = load_backend(
        EngineConfig(model=str(cached_checkpoint(SHAPE)), backend=backend, device="cpu", dtype="float32")
    )
    held: Any = engine
    model = weakref.ref(held.model if backend == "native" else held._model)
    list(engine.generate([FINE]))
    engine.close()
    del held
    gc.collect()
    assert model() is None

"""The native engine between encoder and decoder: neither starves, passes that fail cost only what is to blame."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from model_runtime import Decode, EngineConfig, ErrorCode, Generation, Request, Sampling, flights
from model_runtime.engine import NativeBackend
from model_runtime.model import T5Gemma2
from model_runtime.sampling import Sampler
from tests.checkpoints import cached_checkpoint, shape_named
from tests.model_runtime.oracle import make_request

SHAPE = shape_named("one-kv-head")
Results = dict[str, tuple[tuple[int, ...], str | None, int]]


def backend(lookahead: bool | None = None, **settings: Any) -> NativeBackend:
    folder = cached_checkpoint(SHAPE)
    config = EngineConfig(model=str(folder), device="cpu", dtype="float32", **settings)
    return NativeBackend(_model(), config, folder, lookahead)


@cache
def _model() -> T5Gemma2:
    return T5Gemma2.load(cached_checkpoint(SHAPE), "cpu", "float32")


def corpus(count: int = 12, *, seed: int = 0) -> list[Request]:
    """Documents of two decodes each: greedy ones, then sampled, penalised and stopping ones among them."""
    rng = random.Random(seed)
    kinds = [
        Sampling(max_tokens=14),
        Sampling(max_tokens=9),
        Sampling(max_tokens=12, temperature=1.2, top_k=30, seed=3),
        Sampling(max_tokens=17),
        Sampling(max_tokens=10, repetition_penalty=1.5),
        Sampling(max_tokens=20, stop=("e", "a")),
        Sampling(max_tokens=13, temperature=0.8, top_p=0.9, repetition_penalty=1.2),
    ]
    return [
        make_request(
            SHAPE, rng, f"d{i}", tokens=20 + i, prefixes=[i % 4, 3], sampling=[kinds[i % 7], kinds[(3 * i + 1) % 7]]
        )
        for i in range(count)
    ]


def greedy(name: str, tokens: int, *, decodes: int = 1, max_tokens: int = 12) -> Request:
    return make_request(
        SHAPE,
        random.Random(name),
        name,
        tokens=tokens,
        prefixes=[1] * decodes,
        sampling=[Sampling(max_tokens=max_tokens)] * decodes,
    )


def results(generations: Iterable[Generation]) -> Results:
    """What came out, each key once and none with an error."""
    made: Results = {}
    for generation in generations:
        assert generation.error is None, f"{generation.key}: {generation.error}"
        assert generation.key not in made
        made[generation.key] = generation.token_ids, generation.finish_reason, generation.output_tokens
    return made


def errors(generations: Iterable[Generation]) -> dict[str, ErrorCode]:
    return {g.key: g.error.code for g in generations if g.error is not None}


@cache
def undisturbed() -> Results:
    return results(backend().generate(corpus()))


def wrap_decode(
    monkeypatch: pytest.MonkeyPatch, engine: NativeBackend, fail: Callable[[int, list[int]], Exception | None]
) -> None:
    """`fail` sees the rows of each decoder pass and the tokens of the documents they read."""
    decode = engine.model.decode

    def wrapped(x_RPE: Any, positions: Any, step: Any) -> Any:
        error = fail(x_RPE.shape[0], [document.tokens for document, _ in step.groups])
        if error is not None:
            raise error
        return decode(x_RPE, positions, step)

    monkeypatch.setattr(engine.model, "decode", wrapped)


def wrap_encode(
    monkeypatch: pytest.MonkeyPatch, engine: NativeBackend, fail: Callable[[list[int]], Exception | None]
) -> None:
    """`fail` sees the documents' tokens of each encoder pass, after its first slice."""
    encode_steps = engine.model.encode_steps

    def wrapped(requests: Sequence[Request]) -> Generator[None, None, Any]:
        steps = encode_steps(requests)
        next(steps)
        yield
        error = fail([len(request.input_ids) for request in requests])
        if error is not None:
            raise error
        return (yield from steps)

    monkeypatch.setattr(engine.model, "encode_steps", wrapped)


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("injected: out of memory")


both_modes = pytest.mark.parametrize("lookahead", [False, True], ids=["synchronous", "lookahead"])


# --- one step behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decodes", [1, 3, 64])
def test_lookahead_changes_nothing(decodes: int) -> None:
    ahead, behind = backend(lookahead=True, max_decodes=decodes), backend(max_decodes=decodes)
    assert results(ahead.generate(corpus())) == results(behind.generate(corpus())) == undisturbed()
    assert ahead.stats.decoded_tokens == behind.stats.decoded_tokens


def test_lookahead_reads_a_step_after_the_next_one_was_launched() -> None:
    engine = backend(lookahead=True)
    engine.submit(greedy("d", 10, max_tokens=3))
    launched = [(engine.step(), engine.stats.steps, len(engine._flights)) for _ in range(4)]
    # The last token needs no further pass: its row is free as soon as it has been launched.
    assert [steps for _, steps, _ in launched][:3] == [1, 2, 3]
    assert [rows for *_, rows in launched] == [1, 1, 0, 0]
    assert sum(len(done) for done, *_ in launched) == 1


@both_modes
def test_not_a_number_fails_alone_in_both_modes(lookahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend(lookahead, max_decodes=4)
    decode = engine.model.decode

    def poisoned(x_RPE: Any, positions: Any, step: Any) -> Any:
        out = decode(x_RPE, positions, step).clone()
        for document, rows in step.groups:
            if document.tokens == 33 and not step.prefill:
                out[rows] = float("nan")
        return out

    monkeypatch.setattr(engine.model, "decode", poisoned)
    made = list(engine.generate([*corpus(6), greedy("poison", 33), *corpus()[6:]]))
    assert errors(made) == {"poison/0": ErrorCode.NON_FINITE}
    assert results(g for g in made if g.error is None) == undisturbed()


# --- neither waits for the other -----------------------------------------------------------------------------------


def test_short_documents_decode_while_a_long_one_is_encoded() -> None:
    engine = backend(max_decodes=4, max_batch_tokens=64)
    engine._budget = dataclasses.replace(engine._budget, step_tokens=64)
    engine._scheduler._budget = engine._budget
    for i in range(3):
        engine.submit(greedy(f"s{i}", 20, max_tokens=6))
    engine.step()
    engine.submit(greedy("long", 1500))
    order = []
    while len(order) < 4:
        order += [(generation.key, engine.stats.encodes) for generation in engine.step()]
    assert {key for key, _ in order[:3]} == {"s0/0", "s1/0", "s2/0"}
    assert all(encodes == 3 for _, encodes in order[:3]), "they ended before the long one was encoded"
    assert order[3][0] == "long/0"


def test_a_long_document_is_encoded_while_short_ones_keep_coming() -> None:
    engine = backend(max_decodes=4, max_batch_tokens=64)
    engine.submit(greedy("long", 600))
    done: list[str] = []
    for i in range(200):
        if "long/0" in done:
            break
        engine.submit(greedy(f"s{i}", 20, max_tokens=4))
        done += [generation.key for generation in engine.step()]
    assert "long/0" in done
    results(engine.generate([]))


def test_rows_are_filled_from_what_is_ready() -> None:
    """While documents wait, a step finds its rows taken: nothing waits for the encoder but the first ones."""
    engine = backend(max_decodes=8, max_batch_tokens=200)
    for i in range(60):
        engine.submit(greedy(f"d{i}", 20, max_tokens=8))
    rows = []
    while engine._scheduler.queued:
        engine.step()
        rows.append(len(engine._flights))
    results(engine.generate([]))
    assert sum(rows) / len(rows) > 6.5
    assert engine.stats.encodes == 60


# --- out of memory -------------------------------------------------------------------------------------------------


@both_modes
def test_a_pack_that_does_not_fit_is_split(lookahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend(lookahead)
    failed: list[int] = []

    def fail(tokens: list[int]) -> Exception | None:
        failed.append(len(tokens)) if sum(tokens) > 100 else None
        return out_of_memory() if sum(tokens) > 100 else None

    wrap_encode(monkeypatch, engine, fail)
    assert results(engine.generate(corpus())) == undisturbed()
    assert failed and engine.stats.encodes == 12, "a pass that failed is no encoding"


def test_a_document_that_does_not_fit_beside_others_runs_when_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend(max_decodes=6, max_batch_tokens=100)
    wrap_encode(monkeypatch, engine, lambda tokens: out_of_memory() if 90 in tokens and engine._keys else None)
    big = greedy("big", 90)
    [alone] = backend().generate([big])
    made = results(engine.generate([*corpus()[:6], big, *corpus()[6:]]))
    assert made.pop("big/0")[0] == alone.token_ids
    assert made == undisturbed() and engine.stats.encodes == 13


def test_a_document_that_does_not_fit_alone_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend(max_batch_tokens=100)
    wrap_encode(monkeypatch, engine, lambda tokens: out_of_memory() if 90 in tokens else None)
    made = list(engine.generate([*corpus()[:6], greedy("big", 90, decodes=2), *corpus()[6:]]))
    assert errors(made) == dict.fromkeys(["big/0", "big/1"], ErrorCode.OUT_OF_MEMORY)
    assert results(g for g in made if g.error is None) == undisturbed()


@both_modes
@pytest.mark.parametrize("most", [1, 3])
def test_rows_that_do_not_fit_go_on_later(most: int, lookahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, sampled, penalised and stopping decodes alike: what they had produced and drawn is kept."""
    engine = backend(lookahead)
    passes = [0]

    def fail(rows: int, _: list[int]) -> Exception | None:
        passes[0] += 1
        return out_of_memory() if rows > most and passes[0] > 4 else None

    wrap_decode(monkeypatch, engine, fail)
    assert results(engine.generate(corpus())) == undisturbed()
    assert engine.stats.encodes == 12


def test_a_choice_that_runs_out_of_memory_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, rng = backend(), random.Random(1)
    logits = engine.model.logits

    def failing(hidden_RE: Any) -> Any:
        if rng.random() < 0.2 and hidden_RE.shape[0] > 1:
            raise out_of_memory()
        return logits(hidden_RE)

    greedy_head = engine.model.greedy

    def best(hidden_RE: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "logits", logits)
            return greedy_head(hidden_RE)

    monkeypatch.setattr(engine.model, "logits", failing)
    monkeypatch.setattr(engine.model, "greedy", best)
    assert results(engine.generate(corpus())) == undisturbed()


def test_a_sampler_that_fails_half_way_draws_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the decodes whose choice had been made before."""
    engine, rng = backend(), random.Random(2)
    draw = Sampler._draw

    def failing(self: Sampler, scores_V: Any) -> int:
        token = draw(self, scores_V)
        if rng.random() < 0.15 and len(engine._flights) > 1:
            raise out_of_memory()
        return token

    expected = undisturbed()
    monkeypatch.setattr(Sampler, "_draw", failing)
    assert results(engine.generate(corpus())) == expected


@both_modes
def test_a_row_that_does_not_fit_alone_fails_alone(lookahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend(lookahead, max_decodes=6)
    wrap_decode(monkeypatch, engine, lambda rows, documents: out_of_memory() if 90 in documents else None)
    made = list(engine.generate([*corpus()[:4], greedy("big", 90), *corpus()[4:]]))
    assert errors(made) == {"big/0": ErrorCode.OUT_OF_MEMORY}
    assert results(g for g in made if g.error is None) == undisturbed()


def test_a_lone_row_gets_the_memory_of_documents_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend(max_decodes=3)
    wrap_decode(
        monkeypatch,
        engine,
        lambda rows, documents: out_of_memory() if documents == [90] and len(engine._keys) > 1 else None,
    )
    big = greedy("big", 90)
    [alone] = backend().generate([big])
    made = results(engine.generate([big, *corpus()]))
    assert made.pop("big/0")[0] == alone.token_ids
    assert made == undisturbed()


@both_modes
def test_choices_that_cannot_be_read_lose_no_decode(lookahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of those that have left their rows before, and of those that ended with their first token."""
    lengths = [1, 4, 1, 2, 7, 1]
    documents = [greedy(f"g{i}", 10 + i, decodes=2, max_tokens=lengths[i % 6]) for i in range(18)]
    expected = results(backend().generate(documents))
    rng, choices, failed = random.Random(6), flights._Pass.choices, []

    def failing(self: Any) -> Any:
        if len(self.flights) > 1 and rng.random() < 0.5:
            failed.append(len(self.flights))
            raise out_of_memory()
        return choices(self)

    monkeypatch.setattr(flights._Pass, "choices", failing)
    # A failed pass leaves fewer rows for a long while: several engines, to fail at different places.
    for _ in range(8):
        engine = backend(lookahead, max_decodes=5)
        assert results(engine.generate(documents)) == expected
        assert engine.document_key_bytes == 0
    assert len(failed) > 8


@both_modes
def test_a_choice_that_fails_costs_its_own_decode_alone(lookahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = undisturbed()
    [victim] = [d.key for r in corpus() for d in r.decodes if d.key == "d2/0"]
    engine, pick = backend(lookahead), Sampler.next

    def failing(self: Sampler, logits_V: Any) -> Any:
        if self is victims[0]:
            raise IndexError("of this one's own making\nand more")
        return pick(self, logits_V)

    victims: list[Sampler] = []
    made_sampler = Sampler.__init__

    def remembered(self: Sampler, sampling: Any, key: str, prompt: Any) -> None:
        made_sampler(self, sampling, key, prompt)
        if key == victim:
            victims.append(self)

    monkeypatch.setattr(Sampler, "__init__", remembered)
    monkeypatch.setattr(Sampler, "next", failing)
    made = list(engine.generate(corpus()))
    assert errors(made) == {victim: ErrorCode.ENGINE_CRASH}
    [message] = [g.error.message for g in made if g.error is not None]
    assert message == "IndexError while choosing a token: of this one's own making"
    assert results(g for g in made if g.error is None) == {k: v for k, v in expected.items() if k != victim}


# --- a decode that breaks the pass ---------------------------------------------------------------------------------


@both_modes
def test_a_decode_that_breaks_the_pass_fails_alone(lookahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend(lookahead)
    wrap_decode(
        monkeypatch, engine, lambda rows, documents: RuntimeError("boom\nand more") if 90 in documents else None
    )
    made = list(engine.generate([*corpus()[:4], greedy("poison", 90, decodes=2), *corpus()[4:]]))
    assert errors(made) == dict.fromkeys(["poison/0", "poison/1"], ErrorCode.ENGINE_CRASH)
    [message] = {g.error.message for g in made if g.error is not None}
    assert message == "RuntimeError while decoding: boom"
    assert results(g for g in made if g.error is None) == undisturbed()


def test_a_failure_that_does_not_come_back_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend()
    passes = iter(range(10**6))
    wrap_decode(monkeypatch, engine, lambda *_: RuntimeError("once") if next(passes) in (3, 9) else None)
    assert results(engine.generate(corpus())) == undisturbed()


def test_a_failure_of_many_rows_is_avoided_with_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend(max_decodes=8)
    wrap_decode(monkeypatch, engine, lambda rows, _: RuntimeError("too many") if rows > 2 else None)
    assert results(engine.generate(corpus())) == undisturbed()


def test_when_everything_breaks_everything_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend()
    wrap_decode(monkeypatch, engine, lambda *_: RuntimeError("gone"))
    made = list(engine.generate(corpus()))
    assert errors(made) == dict.fromkeys(undisturbed(), ErrorCode.ENGINE_CRASH)
    assert engine.document_key_bytes == 0


def test_a_document_that_breaks_the_encoder_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend()
    wrap_encode(monkeypatch, engine, lambda tokens: RuntimeError("boom") if 90 in tokens else None)
    made = list(engine.generate([*corpus()[:4], greedy("poison", 90), *corpus()[4:]]))
    assert errors(made) == {"poison/0": ErrorCode.ENGINE_CRASH}
    assert results(g for g in made if g.error is None) == undisturbed()
    assert engine.stats.encodes == 12


# --- the real thing ------------------------------------------------------------------------------------------------

_LIMITED = """
import json, re, resource, sys
import torch
from model_runtime import Decode, EngineConfig, Request, Sampling, load_backend

torch.set_num_threads(1)
folder, spare = sys.argv[1], int(sys.argv[2])
engine = load_backend(EngineConfig(model=folder, device="cpu", dtype="float32", max_batch_tokens=100_000))
def requests(count):
    for i in range(count):
        ids = [4 + (7 * i + 13 * j) % 400 for j in range(600)]
        yield Request(id=str(i), input_ids=ids, decodes=(Decode(key=str(i), sampling=Sampling(max_tokens=4)),))
list(engine.generate(requests(2)))
failures = []
if spare:
    used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
    failed = engine._encoding_failed
    engine._encoding_failed = lambda documents, why: failures.append(why.code) or failed(documents, why)
made = {g.key: [g.token_ids, g.error and str(g.error)] for g in engine.generate(requests(40))}
print(json.dumps([made, failures, engine.stats.encodes]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_an_allocator_that_really_gives_up_changes_no_token() -> None:
    """Forty documents packed into one pass need more than the address space that is left."""
    folder = str(cached_checkpoint(shape_named("window-33")))
    made = []
    for spare in (0, 30_000_000):
        command = [sys.executable, "-c", _LIMITED, folder, str(spare)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        made.append(json.loads(done.stdout))
    (expected, *_), (limited, failures, encodes) = made
    assert limited == expected
    assert failures and set(failures) == {ErrorCode.OUT_OF_MEMORY.value}
    assert encodes == 42


# --- the rest ------------------------------------------------------------------------------------------------------


def test_generate_reads_ahead_and_no_further() -> None:
    engine = backend(max_batch_tokens=100)
    read = []

    def lazily() -> Iterable[Request]:
        for i in range(200):
            read.append(i)
            yield greedy(f"d{i}", 10, max_tokens=2)

    next(iter(engine.generate(lazily())))
    assert len(read) < 120


def test_a_key_is_free_again_when_its_decode_has_ended_in_any_way(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend()
    wrap_decode(monkeypatch, engine, lambda *_: RuntimeError("gone"))
    request = Request(id="d", input_ids=[5, 6], decodes=(Decode(key="d"),))
    for _ in range(2):
        assert errors(engine.generate([request])) == {"d": ErrorCode.ENGINE_CRASH}

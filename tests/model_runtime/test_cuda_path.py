"""All of the CUDA path but its kernels, on the CPU: the attention call is emulated, graphs are replayed by hand.

In float32 it must give what the plain modules give, token for token, as documents join and leave.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from model_runtime import EngineConfig, load_backend
from model_runtime.config import ModelConfig, TextConfig
from model_runtime.cuda import CudaPath, same_sizes
from model_runtime.cuda.check import whole_path_differs
from model_runtime.cuda.graphs import Capture, StepGraphs
from model_runtime.cuda.own import CudaOwnKeys
from model_runtime.cuda.pointwise import Pointwise
from model_runtime.cuda.select import Differs, check_pointwise, checked_varlen
from model_runtime.cuda.varlen import Varlen
from model_runtime.engine import NativeBackend
from model_runtime.model import T5Gemma2
from tests.checkpoints import SHAPES, Shape, cached_checkpoint, shape_named
from tests.model_runtime import varlen
from tests.model_runtime.oracle import corpus

all_shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
COUNT = 7


def capture_by_hand() -> Capture:
    """A graph is what it is on the device: the same work on the same places, its result in the same place."""

    def capture(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        out = torch.full_like(work(), float("nan"))

        def replay() -> None:
            with torch.inference_mode():
                out.copy_(work())

        return replay, out

    return capture


def with_path(shape: Shape, graphs: StepGraphs | None = None, varlen_attn: Any = varlen.varlen_attn, **settings: Any):
    """A backend whose model computes through the CUDA path."""
    folder = cached_checkpoint(shape)
    model = T5Gemma2.load(folder, "cpu", "float32")
    path = path_of(model, graphs, varlen_attn)
    model.use_path(path)
    return NativeBackend(model, EngineConfig(model=str(folder), **settings), folder), path


def path_of(model: Any, graphs: StepGraphs | None = None, varlen_attn: Any = varlen.varlen_attn) -> CudaPath:
    with torch.inference_mode():
        kernel = Varlen(varlen_attn, varlen.AuxRequest)
        do = Pointwise(model.config.decoder, compiled=False)
        return CudaPath(model, kernel, do, graphs, blocks_wanted=40)


def plain(shape: Shape, **settings: Any):
    folder = str(cached_checkpoint(shape))
    return load_backend(EngineConfig(model=folder, **({"device": "cpu", "dtype": "float32"} | settings)))


def shape_config(name: str) -> TextConfig:
    return ModelConfig.load(cached_checkpoint(shape_named(name))).decoder


@cache
def expected(shape: Shape) -> dict[str, tuple[int, ...]]:
    return {g.key: g.token_ids for g in plain(shape).generate(corpus(shape, COUNT))}


@all_shapes
def test_it_computes_what_the_plain_modules_compute(shape: Shape) -> None:
    backend = plain(shape)
    assert whole_path_differs(backend.model, path_of(backend.model)) is None
    requests = corpus(shape, COUNT)
    states = torch.cat(backend.model.encode(requests))
    first = [torch.stack(rows) for rows in backend.model.first_logits(requests)]
    backend.model.use_path(path_of(backend.model))
    torch.testing.assert_close(torch.cat(backend.model.encode(requests)), states, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(backend.model.first_logits(requests), first, strict=True):
        torch.testing.assert_close(torch.stack(ours), theirs, atol=2e-4, rtol=1e-4)


@all_shapes
@pytest.mark.parametrize("decodes", [1, 5, 64])
def test_tokens_as_documents_join_and_leave(shape: Shape, decodes: int) -> None:
    backend, path = with_path(shape, max_decodes=decodes, max_batch_tokens=200)
    made = list(backend.generate(corpus(shape, COUNT)))
    assert {g.key: g.token_ids for g in made} == expected(shape)
    pages = path.decoder.pool.pages
    assert pages.free == pages.total


@all_shapes
@pytest.mark.parametrize("decodes", [3, 64])
def test_tokens_with_graphs(shape: Shape, decodes: int) -> None:
    graphs = StepGraphs(capture_by_hand)
    backend, _ = with_path(shape, graphs, max_decodes=decodes, max_batch_tokens=200)
    made = list(backend.generate(corpus(shape, COUNT)))
    assert {g.key: g.token_ids for g in made} == expected(shape)
    assert graphs.captured > 0
    assert graphs.replayed > graphs.captured


def test_a_capture_that_fails_ends_graphs_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Capture:
        def capture(work: Callable[[], Tensor]) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

        return capture

    shape = shape_named("window-33")
    graphs = StepGraphs(fails)
    backend, path = with_path(shape, graphs)
    assert {g.key: g.token_ids for g in backend.generate(corpus(shape, COUNT))} == expected(shape)
    assert [record.message for record in caplog.records] == [
        "decoder steps run without CUDA graphs: operation not permitted when stream is capturing"
    ]
    assert path.report()["graphs"] == "off"


@functools.wraps(varlen.varlen_attn)
def wrong_window(*arguments: Any, **options: Any) -> Any:
    """One key too few to the right."""
    left, right = options.pop("window_size")
    return varlen.varlen_attn(*arguments, window_size=(left, right - (right > 0)), **options)


@functools.wraps(varlen.varlen_attn)
def wrong_sums(*arguments: Any, **options: Any) -> Any:
    """Log-sum-exps to base 2. (Off by a constant would change nothing: only differences count in a merge.)"""
    made = varlen.varlen_attn(*arguments, **options)
    return (made[0], made[1] * math.log2(math.e)) if options.get("return_aux") else made


@functools.wraps(varlen.varlen_attn)
def sums_of_tokens_first(*arguments: Any, **options: Any) -> Any:
    """Log-sum-exps [tokens, heads], as some versions return them."""
    made = varlen.varlen_attn(*arguments, **options)
    return (made[0], made[1].T) if options.get("return_aux") else made


def test_a_wrong_kernel_is_found_out_on_the_whole_model() -> None:
    model = plain(shape_named("heads-of-64")).model
    assert "differ from the plain modules'" in (whole_path_differs(model, path_of(model, None, wrong_sums)) or "")
    assert model.kernels == {}


def test_kernels_are_checked_one_by_one_before_they_are_used() -> None:
    config = shape_config("heads-of-64")

    def check(kernel: Any) -> Varlen:
        return checked_varlen(
            lambda layout: Varlen(kernel, varlen.AuxRequest, layout), config, torch.float32, torch.device("cpu")
        )

    assert check(varlen.varlen_attn).lse_layout == "heads first"
    assert check(sums_of_tokens_first).lse_layout == "tokens first"
    for wrong in (wrong_window, wrong_sums):
        with pytest.raises(Differs):
            check(wrong)


def test_functions_between_the_products_are_checked_one_by_one() -> None:
    config = shape_config("heads-of-64")
    do = Pointwise(config, compiled=False)
    check_pointwise(do, config, torch.float32, torch.device("cpu"))
    merge = do.merge
    do.merge = lambda own, own_lse, *rest: merge(own, own_lse * math.log2(math.e), *rest)
    with pytest.raises(Differs, match="merge"):
        check_pointwise(do, config, torch.float32, torch.device("cpu"))


def test_finished_documents_pages_are_free_though_their_plan_is_remembered() -> None:
    shape = shape_named("one-kv-head")
    backend, path = with_path(shape)
    request = corpus(shape, 3)[2]
    list(backend.generate([request]))
    assert path.decoder._plan is not None
    assert path.decoder.pool.pages.free == path.decoder.pool.pages.total
    assert backend.document_key_bytes == 0


def test_room_for_rows_that_cannot_be_had_leaves_nothing_half_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = shape_config("window-33")
    own = CudaOwnKeys(config, torch.float32, torch.device("cpu"))
    own.reserve(8, 300)
    zeros, calls = torch.zeros, []

    def failing(*arguments: Any, **options: Any) -> Tensor:
        calls.append(arguments)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("injected")
        return zeros(*arguments, **options)

    monkeypatch.setattr(torch, "zeros", failing)
    before = own.generation
    with pytest.raises(torch.OutOfMemoryError):
        own.reserve(32, 300)
    assert own.generation != before
    own.reserve(8, 300)
    assert len(own.keys) == len(own.values) == config.num_layers
    assert all(keys.shape[0] == own.rows == 8 for keys in own.keys)


def test_a_long_document_is_cut_into_chunks() -> None:
    """Its results come together from many partials, in a pool that has grown and has holes."""
    shape = shape_named("window-33")
    backend = plain(shape)
    model: Any = backend.model
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        states = [torch.randn(n, shape.hidden, generator=generator) for n in (900, 40, 3000, 700, 64)]
        expected_rows = _forced(model, states)
        model.use_path(path_of(model))
        pool = model._fast.decoder.pool
        held = [model.document_keys(torch.randn(n, shape.hidden)) for n in (500, 4000, 100, 900, 300, 12000)]
        del held[1], held[2]
        made = _forced(model, states)
    torch.testing.assert_close(made, expected_rows, atol=1e-4, rtol=1e-4)
    assert pool.generation > 1


def _forced(model: Any, states: list[Tensor]) -> Tensor:
    from model_runtime.rows import Rows

    rows, rng = Rows(model), random.Random(0)
    documents = [model.document_keys(one) for one in states]
    order = [rng.randrange(len(documents)) for _ in range(11)]
    made = [rows.enter([(documents[d], [5] * rng.randrange(40)) for d in order], 60)]
    made += [rows.advance([rng.randrange(4, 400) for _ in order]) for _ in range(6)]
    return torch.stack(made)


def test_both_halves_of_every_shape_are_alike() -> None:
    assert all(same_sizes(plain(shape).model) for shape in SHAPES)


def test_int8_weights_stay_near_the_others() -> None:
    shape = shape_named("heads-of-64")
    backend, path = with_path(shape)
    requests = corpus(shape, 5)
    before = torch.cat(backend.model.encode(requests))
    with torch.inference_mode():
        path.quantize()
    after = torch.cat(backend.model.encode(requests))
    assert 0 < float((after - before).square().mean().sqrt() / before.square().mean().sqrt()) < 0.1
    assert path.report()["weights"] == "int8"
    assert all(g.error is None for g in backend.generate(requests))

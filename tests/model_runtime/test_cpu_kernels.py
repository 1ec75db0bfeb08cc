"""The compiled kernels against the same arithmetic in float64: every length, window, head size and split."""

from __future__ import annotations

import gc
import logging
import math
import os
import random
import stat
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from model_runtime import EngineConfig, load_backend
from model_runtime.cpu import build
from model_runtime.cpu import kernels as k
from model_runtime.cpu.decoder import _split
from model_runtime.cpu.encoder import _bounds, _calls, _jobs
from tests.checkpoints import cached_checkpoint, shape_named
from tests.model_runtime.oracle import corpus

needs_kernels = pytest.mark.skipif(build.library() is None, reason="this machine cannot run the CPU kernels")
# bfloat16 keeps 8 bits; results are means over keys, rounded once at the end and once as shares.
CLOSE = 2.0**-7


def relative(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected."""
    return float((actual.double() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())


def packed(x_TKD: Tensor) -> tuple[Tensor, Tensor]:
    """The same numbers as keys and as values [K, stride], by the layouts' definition."""
    tokens, heads, size = x_TKD.shape
    room = -(-tokens // 16) * 16 + k.SPARE_TOKENS
    padded = torch.zeros(room, heads, size, dtype=torch.bfloat16)
    padded[:tokens] = x_TKD
    keys = padded.view(room // 16, 16, heads, size // 2, 2).permute(2, 0, 3, 1, 4)
    values = padded.view(room // 2, 2, heads, size).permute(2, 0, 3, 1)
    return keys.reshape(heads, -1).contiguous(), values.reshape(heads, -1).contiguous()


def expected_attention(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    group = q.shape[1] // keys.shape[1]
    k64, v64 = (t.double().repeat_interleave(group, 1) for t in (keys, values))
    scores = torch.einsum("thd,nhd->htn", q.double(), k64) * scale
    return torch.einsum("htn,nhd->thd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v64)


@needs_kernels
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 1, 256), (4, 4, 32), (6, 2, 64), (3, 1, 96), (16, 1, 32)])
@pytest.mark.parametrize("window", [None, 1, 2, 7, 33, 512])
def test_packed_documents_attend_within_their_window_and_themselves(heads, kv_heads, size, window):
    rng = random.Random(heads * size + (window or 0))
    for _ in range(4):
        lengths = [rng.choice([1, 2, 15, 16, 17, 64, rng.randint(1, 700)]) for _ in range(rng.randint(1, 6))]
        tokens = sum(lengths)
        generator = torch.Generator().manual_seed(tokens)
        q, keys, values = (
            (torch.randn(tokens, n, size, generator=generator) * 2).bfloat16() for n in (heads, kv_heads, kv_heads)
        )
        document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        distance = torch.arange(tokens) - torch.arange(tokens).unsqueeze(-1)
        seen = document == document.unsqueeze(-1)
        if window is not None:
            seen &= (distance >= -((window + 1) // 2 - 1)) & (distance <= window // 2)
        bounds = _bounds(lengths, window or 1)[window is not None]
        packed_keys, _ = packed(keys)
        _, packed_values = packed(values)
        out = torch.full_like(q, torch.nan)
        jobs = _jobs(lengths, packed_keys, packed_values, heads // kv_heads)
        for call in _calls(jobs, bounds):
            k.attend(call, q, kv_heads, 0.125, out=out, bounds=bounds)
        assert relative(out, expected_attention(q, keys, values, seen, 0.125)) < CLOSE


@needs_kernels
def test_a_long_document_is_cut_into_calls_that_cover_each_token_once():
    lengths = [3, 20_000, 5]
    keys = torch.zeros(2, 64, dtype=torch.bfloat16)
    jobs = _jobs(lengths, keys, keys, 4)
    calls = list(_calls(jobs, _bounds(lengths, 512)[False]))
    covered = np.zeros((2, sum(lengths)), dtype=int)
    for job in np.concatenate(calls):
        covered[job["head"], job["first"] : job["first"] + job["count"]] += 1
    assert len(calls) > 3 and (covered == 1).all()


@needs_kernels
@pytest.mark.parametrize("size", [32, 256])
def test_one_softmax_over_own_keys_and_the_documents_in_splits(size):
    heads, kv_heads, tokens, total, splits = 4, 2, 5, 700, 3
    generator = torch.Generator().manual_seed(size)
    q = (torch.randn(tokens, heads, size, generator=generator) * 2).bfloat16()
    keys, values = (torch.randn(total, kv_heads, size, generator=generator).bfloat16() for _ in range(2))
    own_k, own_v = (torch.randn(tokens, kv_heads, 9, size, generator=generator).bfloat16() for _ in range(2))
    packed_keys, (_, packed_values) = packed(keys)[0], packed(values)
    edges = [0, 130, 389, total]
    jobs = np.zeros(kv_heads * splits, dtype=k.JOB)
    for at in range(len(jobs)):
        head, split = divmod(at, splits)
        offset = head * packed_keys.stride(0) * 2
        jobs[at] = (
            packed_keys.data_ptr() + offset, packed_values.data_ptr() + offset,
            0, tokens, edges[split], edges[split + 1], head, at,
        )  # fmt: skip
    group = heads // kv_heads
    partial = k.Partial(torch.empty(len(jobs), tokens * group, size), torch.empty(len(jobs), tokens * group, 2))
    order = torch.tensor([3, 0, 4, 1, 2], dtype=torch.int32)
    k.attend(jobs, q, kv_heads, 0.125, tokens=order, partial=partial)
    place = torch.argsort(order).int()
    spread = torch.stack(
        [torch.zeros(tokens, dtype=torch.int32), torch.full((tokens,), splits, dtype=torch.int32), place]
    )
    seen = torch.tensor([1, 9, 4, 2, 7], dtype=torch.int32)
    where = torch.stack([torch.arange(tokens, dtype=torch.int32), seen // 3, seen])
    own = k.OwnView(own_k, own_v, (own_k.stride(0), own_k.stride(1), own_k.stride(2)))
    merged = k.own_and_merge(q, own, where, partial, spread, kv_heads, 0.125)
    for t in range(tokens):
        mine = slice(int(seen[t]) // 3, int(seen[t]))
        both_k = torch.cat([own_k[t, :, mine].transpose(0, 1), keys])
        both_v = torch.cat([own_v[t, :, mine].transpose(0, 1), values])
        whole = expected_attention(q[t : t + 1], both_k, both_v, torch.tensor(True), 0.125)
        assert relative(merged[t : t + 1], whole) < CLOSE


@needs_kernels
@pytest.mark.parametrize("rows", [1, 5, 6, 7, 64])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_greedy_head_finds_the_first_best_token_and_its_chance(rows, softcap):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 96, generator=generator).bfloat16()
    weight = torch.randn(64 * 21, 96, generator=generator).bfloat16()
    weight[700] = weight[13]  # two tokens with the same logit
    hidden[0] = weight[13] * 4
    logits = hidden.double() @ weight.double().T
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    tokens, chances = k.greedy_head(hidden, k.pack_rows(weight), softcap)
    best = logits.log_softmax(-1).max(-1)
    assert torch.allclose(chances.double(), best.values, atol=1e-4, rtol=1e-4)
    if not softcap:
        assert tokens[0] == 13
        assert tokens[1:].tolist() == best.indices[1:].tolist()


@needs_kernels
def test_a_row_of_the_head_that_is_no_number_is_told_and_spares_the_others():
    hidden = torch.ones(3, 64).bfloat16()
    hidden[1, 5] = torch.nan
    weight = torch.randn(128, 64).bfloat16()
    _, chances = k.greedy_head(hidden, k.pack_rows(weight), None)
    assert chances.isnan().tolist() == [False, True, False]


@needs_kernels
def test_tokens_that_are_out_of_the_question_take_no_share():
    hidden = torch.full((2, 64), 1e30).bfloat16()
    hidden[1] = -hidden[1]
    weight = torch.zeros(128, 64).bfloat16()
    weight[:64] = -1e30
    tokens, chances = k.greedy_head(hidden[:1], k.pack_rows(weight), None)
    assert tokens.tolist() == [64] and chances.tolist() == pytest.approx([-math.log(64)])
    weight[64:] = -1e30
    assert k.greedy_head(hidden, k.pack_rows(weight), None)[1].isnan().all(), "no best token, or several without end"


@needs_kernels
def test_a_finished_documents_keys_are_not_kept_by_a_plan(monkeypatch):
    shape = shape_named("heads-of-64")
    folder = str(cached_checkpoint(shape, dtype=torch.bfloat16))
    backend = load_backend(EngineConfig(model=folder, device="cpu", dtype="bfloat16"))
    made, document_keys = [], backend.model.document_keys

    def remembered(states):
        keys = document_keys(states)
        made.append(weakref.ref(keys.keys))
        return keys

    monkeypatch.setattr(backend.model, "document_keys", remembered)
    requests = corpus(shape, 4)
    assert all(generation.error is None for generation in backend.generate(requests))
    gc.collect()
    assert len(made) == 4 and all(reference() is None for reference in made)


@needs_kernels
@pytest.mark.parametrize(("tokens", "others"), [(1, 1), (1024, 1), (1025, 1), (131_072, 1), (131_072, 400), (5000, 7)])
def test_a_documents_keys_are_split_into_whole_tiles_that_cover_them(tokens, others):
    keys, splits = _split(tokens, others)
    assert keys % 16 == 0 and (splits - 1) * keys < tokens <= splits * keys
    assert splits == 1 or splits * others <= 128


@needs_kernels
@pytest.mark.parametrize("size", [32, 96, 640])
def test_norms_round_where_the_reference_rounds(size):
    generator = torch.Generator().manual_seed(size)
    x, branch = (torch.randn(40, size, generator=generator).bfloat16() for _ in range(2))
    post, following = (1 + torch.randn(size, generator=generator) for _ in range(2))

    def norm(y: Tensor, weight: Tensor) -> Tensor:
        y = y.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * weight).bfloat16()

    stream = x.clone()
    normed = k.residual_norm(stream, branch, post, following, 1e-6)
    expected = x + norm(branch, post)
    assert relative(stream, expected.double()) < 1e-3
    assert relative(normed, norm(expected, following).double()) < 1e-3
    assert relative(k.rms_norm(x, post, 1e-6), norm(x, post).double()) < 1e-3


@pytest.mark.skipif(
    not build._machine_fits() or not build.shutil.which("g++") or build.SWITCH in os.environ,
    reason="without the instructions, a compiler or the wish there are no kernels",
)
def test_the_kernels_compile_where_they_can():
    """The tests above are left out where there are no kernels: that must not hide a mistake in their source."""
    assert build.library() is not None


@needs_kernels
def test_the_library_is_compiled_once_into_a_folder_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = build.shutil.which("g++")
    first = build._built(compiler)
    written = first.stat().st_mtime_ns
    assert build._built(compiler) == first and first.stat().st_mtime_ns == written
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    first.parent.chmod(0o777)
    assert build._built(compiler).parent != first.parent, "others could have written there"


def test_without_a_compiler_one_line_says_what_is_missing(monkeypatch, caplog):
    monkeypatch.setattr(build, "_machine_fits", lambda: True)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert build.library.__wrapped__() is None
    assert "install g++" in caplog.text


def test_a_compiler_that_fails_costs_the_kernels_and_nothing_else(tmp_path, monkeypatch, caplog):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho no such instruction >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(build, "_machine_fits", lambda: True)
    monkeypatch.setenv("CXX", str(broken))
    with caplog.at_level(logging.WARNING):
        assert build.library.__wrapped__() is None
    assert "no such instruction" in caplog.text


def test_the_switch_leaves_the_kernels_out(monkeypatch):
    monkeypatch.setitem(os.environ, build.SWITCH, "off")
    assert build.library.__wrapped__() is None

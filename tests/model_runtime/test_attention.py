"""Attention against the formula written out: bands, folded heads, merged softmaxes."""

from __future__ import annotations

import pytest
import torch

from model_runtime.attention import (
    attention_with_lse,
    banded_attention,
    fold_heads,
    full_attention,
    merge_attention,
    plan_bands,
    unfold_heads,
)


def written_out(q_THD, k_TKD, v_TKD, allowed_TT, scale):
    """softmax(q·k·scale) over the allowed keys, in float64, one head at a time."""
    heads, kv_heads = q_THD.shape[1], k_TKD.shape[1]
    out = torch.empty_like(q_THD, dtype=torch.float64)
    for head in range(heads):
        kv = head // (heads // kv_heads)
        scores = q_THD[:, head].double() @ k_TKD[:, kv].double().T * scale
        scores = scores.masked_fill(~allowed_TT, float("-inf"))
        out[:, head] = scores.softmax(dim=-1) @ v_TKD[:, kv].double()
    return out


def packed(lengths, heads, kv_heads, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    q = torch.randn(tokens, heads, size, generator=generator)
    k = torch.randn(tokens, kv_heads, size, generator=generator)
    v = torch.randn(tokens, kv_heads, size, generator=generator)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return q, k, v, document.unsqueeze(0) == document.unsqueeze(1)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 16, 33, 512])
@pytest.mark.parametrize("lengths", [[1], [5], [300], [40, 1, 7, 130, 2], [1] * 40, [257, 256, 255], [4100, 300]])
def test_a_band_sees_its_window_inside_its_document(window, lengths):
    q, k, v, same = packed(lengths, heads=4, kv_heads=2)
    position = torch.arange(sum(lengths))
    ahead = position.unsqueeze(0) - position.unsqueeze(1)
    allowed = same & (ahead <= window // 2) & (-ahead <= (window + 1) // 2 - 1)
    plan = plan_bands(lengths, window, group=2, dtype=torch.float32, device=torch.device("cpu"))
    got = banded_attention(q, k, v, plan, scale=0.3)
    torch.testing.assert_close(got.double(), written_out(q, k, v, allowed, 0.3), atol=1e-5, rtol=1e-5)


def test_masks_grow_with_the_tokens_not_with_their_square():
    sizes = []
    for tokens in (16_384, 65_536):
        plan = plan_bands([tokens], 512, group=4, dtype=torch.float32, device=torch.device("cpu"))
        sizes.append(sum(mask.nbytes for mask in {id(mask): mask for mask in plan.masks}.values()))
    assert sizes[1] <= sizes[0] * 1.01, "chunks inside one document share one mask"
    assert sizes[1] < 65_536 * 65_536 / 10


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (4, 2), (4, 4)])
def test_full_attention_stays_inside_each_document(heads, kv_heads):
    lengths = [3, 50, 1, 17]
    q, k, v, same = packed(lengths, heads, kv_heads)
    got = full_attention(q, k, v, lengths, scale=0.3)
    torch.testing.assert_close(got.double(), written_out(q, k, v, same, 0.3), atol=1e-5, rtol=1e-5)


def test_folding_heads_is_undone():
    q = torch.randn(5, 6, 8)
    assert torch.equal(unfold_heads(fold_heads(q, 2), 5), q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_attentions_merge_to_one_softmax(dtype):
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, 1, 3, 16, generator=generator).to(dtype)
    k, v = (torch.randn(2, 1, 40, 16, generator=generator).to(dtype) for _ in range(2))
    k[:, :, 25:] *= 6  # one part far heavier than the other
    whole, whole_lse = attention_with_lse(q, k, v, 0.5)
    parts = [attention_with_lse(q, k[:, :, at], v[:, :, at], 0.5) for at in (slice(0, 25), slice(25, 40))]
    merged = merge_attention(*parts[0], *parts[1])
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(merged, whole, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(torch.logaddexp(parts[0][1], parts[1][1]), whole_lse, atol=tolerance, rtol=tolerance)


def test_the_cpu_kernel_and_the_formula_agree_on_the_log_sum_exp():
    """The kernel is private to torch: this is what must hold of it in every version that is allowed."""
    q, k, v = torch.randn(3, 2, 4, 16), torch.randn(3, 2, 9, 16), torch.randn(3, 2, 9, 16)
    mask = torch.zeros(3, 1, 4, 9)
    mask[1, :, :, 5:] = float("-inf")
    out, lse = attention_with_lse(q, k, v, 0.25, mask)
    scores = q @ k.transpose(-1, -2) * 0.25 + mask
    torch.testing.assert_close(lse, scores.logsumexp(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out, scores.softmax(-1) @ v, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    lengths = [300, 5, 700]
    q, k, v, _ = packed(lengths, heads=4, kv_heads=1, size=64)
    cpu_plan = plan_bands(lengths, 33, group=4, dtype=torch.float32, device=torch.device("cpu"))
    gpu_plan = plan_bands(lengths, 33, group=4, dtype=torch.float32, device=torch.device("cuda"))
    there = [x.cuda() for x in (q, k, v)]
    torch.testing.assert_close(
        banded_attention(*there, gpu_plan, 0.2).cpu(), banded_attention(q, k, v, cpu_plan, 0.2), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        full_attention(*there, lengths, 0.2).cpu(), full_attention(q, k, v, lengths, 0.2), atol=1e-4, rtol=1e-4
    )

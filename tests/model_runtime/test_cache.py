"""Own keys: rows grow, move and wrap without losing a position that is still in a window."""

from __future__ import annotations

import pytest
import torch

from model_runtime.cache import OwnKeys
from model_runtime.config import Rope, TextConfig


def config(window: int) -> TextConfig:
    return TextConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=4,
        activation="gelu", max_positions=64, norm_eps=1e-6, query_scale=1.0, attention_bias=False, window=window,
        sliding=(True, False), rope_full=Rope(theta=1e6), rope_sliding=Rope(theta=1e4), logit_softcap=None,
        attention_softcap=None,
    )  # fmt: skip


def marked(rows: int, positions: range) -> torch.Tensor:
    """[rows, positions, K, D] filled with row · 1000 + position."""
    values = torch.arange(rows).view(-1, 1) * 1000 + torch.tensor(list(positions))
    return values.view(rows, -1, 1, 1).expand(rows, len(positions), 2, 4).float()


def held(own: OwnKeys, layer: int, row: int) -> set[int]:
    return {int(value) for value in own.keys[layer][row, 0, :, 0].tolist()}


@pytest.mark.parametrize("prefix", [1, 3, 5, 9])
def test_a_ring_holds_exactly_the_window_and_a_full_layer_everything(prefix):
    own = OwnKeys(config(window=5), torch.float32, torch.device("cpu"))
    own.reserve(2, 30)
    fresh = marked(2, range(prefix))
    for layer in range(2):
        own.write_prefix(layer, slice(0, 2), [prefix, prefix], fresh, fresh)
    for position in range(prefix, 20):
        step = marked(2, range(position, position + 1))[:, 0]
        for layer in range(2):
            own.write_step(layer, torch.tensor([position, position]), step, step)
    assert held(own, 0, 1) == {1000 + p for p in range(15, 20)}
    assert {1000 + p for p in range(20)} <= held(own, 1, 1)


def test_growing_and_moving_keep_what_stands_there():
    own = OwnKeys(config(window=100), torch.float32, torch.device("cpu"))
    own.reserve(2, 4)
    own.write_prefix(1, slice(0, 2), [3, 3], marked(2, range(3)), marked(2, range(3)))
    own.reserve(20, 50)
    assert {1000, 1001, 1002} <= held(own, 1, 1)
    own.move(1, 0)
    assert {1000, 1001, 1002} <= held(own, 1, 0)
    assert own.keys[0].shape[2] == 64, "a sliding layer grows with the rest until its window"


def test_rows_of_different_lengths_enter_together():
    own = OwnKeys(config(window=4), torch.float32, torch.device("cpu"))
    own.reserve(2, 16)
    fresh = marked(2, range(9))
    own.write_prefix(0, slice(0, 2), [9, 2], fresh, fresh)
    assert held(own, 0, 0) == {5, 6, 7, 8}
    assert {1000, 1001} <= held(own, 0, 1)

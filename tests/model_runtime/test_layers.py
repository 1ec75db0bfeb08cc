"""What a layer is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from model_runtime.config import ModelConfig
from model_runtime.layers import Block
from tests.checkpoints import cached_checkpoint, shape_named


def test_a_long_documents_feed_forward_is_made_some_rows_at_a_time() -> None:
    config = ModelConfig.load(cached_checkpoint(shape_named("heads-of-64"))).encoder
    generator = torch.Generator().manual_seed(0)
    block = Block(config, 0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    x = torch.randn(20_000, config.hidden_size, generator=generator)
    attended = torch.randn(20_000, config.num_heads, config.head_dim, generator=generator)
    rows: list[int] = []

    def note(_: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        rows.append(len(given[0]))

    block.mlp.register_forward_pre_hook(note)
    with torch.inference_mode():
        whole = block.finish(x, attended)
        assert rows == [16_384, 3_616]
        parts = [block.finish(*both) for both in zip(x.split(7000), attended.split(7000), strict=True)]
    torch.testing.assert_close(whole, torch.cat(parts))

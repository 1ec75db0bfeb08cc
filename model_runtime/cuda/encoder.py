"""The encoder on CUDA: one attention call over all packed documents, through the window on sliding layers."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from ..config import TextConfig
from ..encoder import Encoder
from ..layers import rotary_tables
from .pointwise import Pointwise
from .varlen import EVERYTHING, Packed, Varlen, boundaries, encoder_window
from .weights import FusedBlock, factor


class CudaEncoder:
    """See `Encoder`, whose embedding, vision tower and weights it uses."""

    def __init__(self, encoder: Encoder, blocks: Sequence[FusedBlock], varlen: Varlen, do: Pointwise) -> None:
        self._config, self._blocks, self._norm = encoder.config, blocks, factor(encoder.norm)
        self._varlen, self._do = varlen, do

    def steps(self, x_TE: Tensor, lengths: Sequence[int]) -> Generator[None, None, Tensor]:
        """Embedded tokens of packed documents [T, hidden] → encoder states [T, hidden]; see `Encoder.steps`."""
        config, do, device = self._config, self._do, x_TE.device
        cu = torch.from_numpy(boundaries(lengths)).to(device)
        packed = Packed(cu, cu, max(lengths), max(lengths))
        positions = torch.cat([torch.arange(n, device=device) for n in lengths])
        angles = angles_of(config, positions)
        windows = {True: encoder_window(config.window), False: EVERYTHING}
        normed = do.norm(x_TE, self._blocks[0].before)
        following = [block.before for block in self._blocks[1:]] + [self._norm]
        for block, next_norm in zip(self._blocks, following, strict=True):
            q, k, v = do.heads(block.qkv(normed), block.q_norm, block.k_norm, *angles[block.sliding])
            attended = self._varlen(q, k, v, packed, block.scale, windows[block.sliding])
            x_TE, normed = block.finish(x_TE, attended.flatten(1), next_norm, do)
            yield
        return normed


def angles_of(config: TextConfig, positions_T: Tensor) -> dict[bool, tuple[Tensor, Tensor]]:
    """Cosines and sines [T, D / 2] of sliding (True) and full layers, float32."""
    half = config.head_dim // 2
    ropes = {True: config.rope_sliding, False: config.rope_full}
    tables = {
        kind: rotary_tables(rope, config.head_dim, positions_T, torch.float32)
        for kind, rope in ropes.items()
        if kind in config.sliding
    }
    return {kind: (cos[:, :half].contiguous(), sin[:, :half].contiguous()) for kind, (cos, sin) in tables.items()}

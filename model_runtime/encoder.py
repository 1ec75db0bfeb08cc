"""The encoder: packed documents → encoder states."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .attention import BandPlan, banded_attention, full_attention, plan_bands
from .config import ModelConfig
from .layers import Block, RMSNorm, ScaledEmbedding, rotary_tables, rotate
from .vision import Projector, VisionTower


class EncoderLayer(Block):
    """Attention over the document, through a two-sided window on sliding layers."""

    def forward(
        self, x_TE: Tensor, rope: tuple[Tensor, Tensor], lengths: Sequence[int], plan: BandPlan | None
    ) -> Tensor:
        """[T, hidden] → [T, hidden]; documents stand one after another, `lengths` tokens each."""
        attn, normed = self.self_attn, self.pre_self_attn_layernorm(x_TE)
        k_TKD, v_TKD = attn.key_value(normed)
        q_THD, k_TKD = rotate(attn.query(normed), *rope), rotate(k_TKD, *rope)
        if self.sliding and plan is not None:
            attended = banded_attention(q_THD, k_TKD, v_TKD, plan, self.scale)
        else:
            attended = full_attention(q_THD, k_TKD, v_TKD, lengths, self.scale)
        return self.finish(x_TE, attended)


class Encoder(nn.Module):
    """Embedding, layers and final norm, with the vision tower beside them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.encoder
        self.embed_tokens = ScaledEmbedding(config.encoder, config.eoi_id)
        self.layers = nn.ModuleList(EncoderLayer(config.encoder, i) for i in range(config.encoder.num_layers))
        self.norm = RMSNorm(config.encoder.hidden_size, config.encoder.norm_eps)
        self.vision_tower = VisionTower(config.vision)
        self.multi_modal_projector = Projector(config)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [images, 3, S, S] → soft tokens [images · tokens_per_image, hidden]."""
        return self.multi_modal_projector(self.vision_tower(pixels)).flatten(0, 1)

    def steps(self, x_TE: Tensor, lengths: Sequence[int]) -> Generator[None, None, Tensor]:
        """Embedded tokens of packed documents [T, hidden] → encoder states [T, hidden], returned at the end.

        Yields between layers, so that whoever drives it can do other work while a long document is encoded.
        """
        config = self.config
        positions = torch.cat([torch.arange(n, device=x_TE.device) for n in lengths])
        ropes = {
            True: rotary_tables(config.rope_sliding, config.head_dim, positions, x_TE.dtype),
            False: rotary_tables(config.rope_full, config.head_dim, positions, x_TE.dtype),
        }
        plan = None
        # A window that reaches both ends of every document is full attention.
        if any(config.sliding) and max(lengths) > (config.window + 1) // 2:
            plan = plan_bands(lengths, config.window, config.group, x_TE.dtype, x_TE.device)
        for layer in cast(Iterator[EncoderLayer], iter(self.layers)):
            x_TE = layer(x_TE, ropes[layer.sliding], lengths, plan)
            yield
        return self.norm(x_TE)

"""The decoder: merged attention over [encoder keys | own keys], many decodes of many documents together.

One softmax over both sets of keys equals two attentions merged by their log-sum-exps, so the encoder's keys are
neither copied nor concatenated: each document's are read once per layer for all its decodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import additive_mask, attention_with_lse, fold_heads, merge_attention, unfold_heads
from .cache import DocumentKeys, EncodedKeys, OwnKeys
from .config import ModelConfig
from .layers import Block, RMSNorm, rotary_tables, rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one pass over R rows × P positions needs to know; P is 1 except when prefixes enter.

    `groups`: each document with the (sorted) indices of its rows among the R, on the CPU. `rows`: the R rows' place in
    the cache.
    `lengths`: positions in use per row after this pass; `prefill`: whether the rows are new.
    """

    groups: Sequence[tuple[EncodedKeys, Tensor]]
    own: OwnKeys
    rows: slice
    lengths: Sequence[int]
    prefill: bool


class DecoderLayer(Block):
    """Merged attention over the document's encoder keys and the decode's own."""

    def forward(
        self, x_RPE: Tensor, positions_RP: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, step: Step
    ) -> Tensor:
        """[R, P, hidden] → [R, P, hidden]; writes the rows' own keys and values."""
        attn, normed = self.self_attn, self.pre_self_attn_layernorm(x_RPE)
        k_RPKD, v_RPKD = attn.key_value(normed)
        q_RPHD, k_RPKD = rotate(attn.query(normed), *rope), rotate(k_RPKD, *rope)
        cross, cross_lse = self._over_documents(q_RPHD, step)
        own, own_lse = self._over_own(q_RPHD, k_RPKD, v_RPKD, positions_RP, mask, step)
        attended = merge_attention(own, own_lse, cross, cross_lse)
        return self.finish(x_RPE, attended)

    def _over_documents(self, q_RPHD: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Each row over its document's encoder keys: [R, P, H, D] and log-sum-exps [R, P, H]."""
        out = torch.empty_like(q_RPHD)
        lse = torch.empty(q_RPHD.shape[:-1], dtype=torch.float32, device=q_RPHD.device)
        for document, rows in step.groups:
            assert isinstance(document, DocumentKeys)
            keys, values = document.keys[self.index], document.values[self.index]
            queries = q_RPHD[rows]
            tokens = queries.shape[0] * queries.shape[1]
            folded = fold_heads(queries.flatten(0, 1), keys.shape[0])
            attended, total = attention_with_lse(folded[None], keys[None], values[None], self.scale)
            out[rows] = unfold_heads(attended[0], tokens).view(queries.shape)
            lse[rows] = unfold_heads(total[0].unsqueeze(-1), tokens).view(queries.shape[:-1])
        return out, lse

    def _over_own(
        self, q_RPHD: Tensor, k_RPKD: Tensor, v_RPKD: Tensor, positions_RP: Tensor, mask: Tensor, step: Step
    ) -> tuple[Tensor, Tensor]:
        """Each row over its own keys: [R, P, H, D] and log-sum-exps [R, P, H]."""
        rows, places, heads, size = q_RPHD.shape
        kv_heads = k_RPKD.shape[2]
        if step.prefill:
            step.own.write_prefix(self.index, step.rows, step.lengths, k_RPKD, v_RPKD)
            keys, values = k_RPKD.transpose(1, 2), v_RPKD.transpose(1, 2)
        else:
            step.own.write_step(self.index, positions_RP[:, 0], k_RPKD[:, 0], v_RPKD[:, 0])
            seen = mask.shape[-1]
            keys = step.own.keys[self.index][:rows, :, :seen]
            values = step.own.values[self.index][:rows, :, :seen]
        folded = q_RPHD.view(rows, places, kv_heads, -1, size).permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, size)
        attended, lse = attention_with_lse(folded, keys, values, self.scale, mask)
        attended = attended.view(rows, kv_heads, -1, places, size).permute(0, 3, 1, 2, 4)
        lse = lse.view(rows, kv_heads, -1, places).permute(0, 3, 1, 2)
        return attended.reshape(rows, places, heads, size), lse.reshape(rows, places, heads)


class Decoder(nn.Module):
    """Layers and final norm; the embedding belongs to the encoder and is passed in embedded."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.decoder
        self.layers = nn.ModuleList(DecoderLayer(config.decoder, i) for i in range(config.decoder.num_layers))
        self.norm = RMSNorm(config.decoder.hidden_size, config.decoder.norm_eps)

    def document_keys(self, states_NE: Tensor) -> DocumentKeys:
        """A document's keys and values for every layer, from its encoder states, without positions or pre-norm."""
        pairs = [layer.self_attn.key_value(states_NE) for layer in self._layers()]
        # Contiguous by head: a step streams each head's keys from end to end.
        keys = torch.stack([k.transpose(0, 1) for k, _ in pairs])
        return DocumentKeys(keys, torch.stack([v.transpose(0, 1) for _, v in pairs]))

    def forward(self, x_RPE: Tensor, positions_RP: Tensor, step: Step) -> Tensor:
        """Embedded tokens [R, P, hidden] at positions [R, P] → hidden states [R, P, hidden]."""
        config = self.config
        ropes = {
            True: rotary_tables(config.rope_sliding, config.head_dim, positions_RP, x_RPE.dtype),
            False: rotary_tables(config.rope_full, config.head_dim, positions_RP, x_RPE.dtype),
        }
        masks = {kind: self._own_mask(kind, x_RPE, step) for kind in set(config.sliding)}
        step = dataclasses.replace(step, groups=[(keys, rows.to(x_RPE.device)) for keys, rows in step.groups])
        for layer in self._layers():
            x_RPE = layer(x_RPE, positions_RP, ropes[layer.sliding], masks[layer.sliding], step)
        return self.norm(x_RPE)

    def _layers(self) -> Iterator[DecoderLayer]:
        return cast(Iterator[DecoderLayer], iter(self.layers))

    def _own_mask(self, sliding: bool, x_RPE: Tensor, step: Step) -> Tensor:
        """Additive mask over own keys: [1, 1, G·P, P] when prefixes enter, else [R, 1, G, keys seen]."""
        config, device = self.config, x_RPE.device
        if step.prefill:
            places = x_RPE.shape[1]
            distance = torch.arange(places, device=device).unsqueeze(-1) - torch.arange(places, device=device)
            allowed = (distance >= 0) & (distance < config.window if sliding else True)
            return additive_mask(allowed.repeat(config.group, 1)[None, None], x_RPE.dtype)
        room = step.own.layer_capacity(config.sliding.index(sliding), step.own.capacity)
        seen = min(room, max(step.lengths))
        lengths = torch.tensor(step.lengths, device=device)
        # A ring that has wrapped holds exactly the window: every slot counts.
        allowed = torch.arange(seen, device=device) < lengths.unsqueeze(-1)
        return additive_mask(allowed[:, None, None].expand(-1, 1, config.group, -1), x_RPE.dtype)


def lm_logits(hidden_RE: Tensor, embedding_VE: Tensor, softcap: float | None) -> Tensor:
    """Next-token logits, float32 [R, V]: tied head, then cap · tanh(logits / cap) where the config asks for it."""
    return capped(F.linear(hidden_RE, embedding_VE), softcap)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits through the config's soft cap, if there is one, as float32."""
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits.float()

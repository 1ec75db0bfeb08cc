"""Training documents → padded tensors: an encoder row per document, all its examples packed in one decoder row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What the loss leaves out, by torch's convention.
IGNORED = -100
# A micro-batch never mixes lengths further apart than this: short rows would be mostly padding.
_SPREAD = 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One target of a document: `prefix_ids` after BOS, then `target_ids`, then EOS; int32, neither BOS nor EOS inside.

    `task` is the place of its task in the job.
    """

    task: int
    prefix_ids: np.ndarray
    target_ids: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDocument:
    """One encoder input and all that is learned from it. `pixels`: uint8 [images, 3, S, S] or None."""

    input_ids: np.ndarray
    pixels: np.ndarray | None
    examples: tuple[Example, ...]

    @property
    def decoder_length(self) -> int:
        """Decoder positions of all examples, each with its BOS."""
        return sum(1 + len(e.prefix_ids) + len(e.target_ids) for e in self.examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tensors of one forward pass. B documents, L encoder tokens, T decoder tokens, N labels, E examples.

    input_ids, input_mask [B, L]; pixels uint8 [images, 3, S, S] or None; decoder_ids, positions, segments [B, T], where
    positions count from 0 in each example and segments tell examples apart (-1: padding); label_at [N]: places in the
    flattened [B·T]; labels, label_example [N]; example_task [E].
    """

    input_ids: Tensor
    input_mask: Tensor
    pixels: Tensor | None
    decoder_ids: Tensor
    positions: Tensor
    segments: Tensor
    label_at: Tensor
    labels: Tensor
    label_example: Tensor
    example_task: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        tensors: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name, tensor in tensors.items():
            tensors[name] = None if tensor is None else tensor.to(device, non_blocking=True)
        return Batch(**tensors)


def collate(documents: Sequence[TrainingDocument], *, bos: int, eos: int, pad: int) -> Batch:
    """Pad `documents` into one Batch. The document's order is kept; padding stands on the right."""
    count = len(documents)
    length = max(len(d.input_ids) for d in documents)
    width = max(d.decoder_length for d in documents)
    input_ids = np.full((count, length), pad, np.int64)
    input_mask = np.zeros((count, length), np.int64)
    decoder_ids = np.full((count, width), pad, np.int64)
    positions = np.zeros((count, width), np.int64)
    segments = np.full((count, width), -1, np.int64)
    label_at: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    tasks: list[int] = []
    for row, document in enumerate(documents):
        input_ids[row, : len(document.input_ids)] = document.input_ids
        input_mask[row, : len(document.input_ids)] = 1
        start = 0
        for example in document.examples:
            fed = np.concatenate([[bos], example.prefix_ids, example.target_ids])
            place = slice(start, start + len(fed))
            decoder_ids[row, place] = fed
            positions[row, place] = np.arange(len(fed))
            segments[row, place] = len(tasks)
            # The last token of the prefix (BOS without one) predicts the first of the target, that one's last EOS.
            first = row * width + start + len(example.prefix_ids)
            label_at.append(np.arange(first, first + len(example.target_ids) + 1))
            labels.append(np.concatenate([example.target_ids, [eos]]))
            tasks.append(example.task)
            start += len(fed)
    pixels = [d.pixels for d in documents if d.pixels is not None and len(d.pixels)]
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        input_mask=torch.from_numpy(input_mask),
        pixels=torch.from_numpy(np.concatenate(pixels)) if pixels else None,
        decoder_ids=torch.from_numpy(decoder_ids),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        label_at=torch.from_numpy(np.concatenate(label_at).astype(np.int64)),
        labels=torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        label_example=torch.from_numpy(np.repeat(np.arange(len(labels)), [len(part) for part in labels])),
        example_task=torch.tensor(tasks, dtype=torch.int64),
    )


def label_count(documents: Sequence[TrainingDocument]) -> int:
    """Tokens that the loss is taken over: every target's and its EOS."""
    return sum(len(e.target_ids) + 1 for d in documents for e in d.examples)


def micro_batches(documents: Sequence[TrainingDocument], max_tokens: int) -> Iterator[list[TrainingDocument]]:
    """Cut a step's documents by length into batches of at most `max_tokens` padded positions (or one document).

    Positions are the encoder's and the decoder's together; lengths in one batch stay within a factor of 1.6, so that
    little of it is padding. Which documents a step has does not change: only how they are grouped.
    """
    group: list[TrainingDocument] = []
    length = width = shortest = 0
    for document in sorted(documents, key=lambda d: (len(d.input_ids) + d.decoder_length, len(d.input_ids))):
        size = len(document.input_ids) + document.decoder_length
        new_length = max(length, len(document.input_ids))
        new_width = max(width, document.decoder_length)
        full = (len(group) + 1) * (new_length + new_width) > max_tokens
        if group and (full or size > _SPREAD * shortest + 16):
            yield group
            group, new_length, new_width = [], len(document.input_ids), document.decoder_length
        if not group:
            shortest = size
        group.append(document)
        length, width = new_length, new_width
    if group:
        yield group


def decoder_masks(batch: Batch, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boolean masks, True where a query sees a key: full and sliding self-attention [B, 1, T, T], cross [B, 1, T, L].

    An example sees itself only, causally; on sliding layers its last `window` tokens, its own included.
    """
    segments_BT, positions_BT = batch.segments, batch.positions
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    order = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    full_BTT = same_BTT & (order[:, None] >= order[None, :])
    sliding_BTT = full_BTT & (positions_BT[:, :, None] - positions_BT[:, None, :] < window)
    cross_B1TL = batch.input_mask.bool()[:, None, None, :].expand(-1, 1, segments_BT.shape[1], -1)
    return full_BTT[:, None], sliding_BTT[:, None], cross_B1TL

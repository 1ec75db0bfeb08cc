"""An encoder pass over a pack of documents that can be left between slices."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .scheduler import Document

if TYPE_CHECKING:
    from .model import T5Gemma2


class EncoderPass:
    """The pass of `documents`; `slice_tokens`: the tokens that a slice counts for."""

    def __init__(self, model: T5Gemma2, documents: Sequence[Document]) -> None:
        self.documents = documents
        # A layer's share, though a layer may take several slices.
        self.slice_tokens = max(1, sum(document.tokens for document in documents) // model.config.encoder.num_layers)
        self._steps: Generator[None, None, list[Tensor]] = model.encode_steps([d.request for d in documents])
        self._states: list[Tensor] = []

    def advance(self) -> bool:
        """Run a slice; True when it was the last one."""
        try:
            next(self._steps)
        except StopIteration as end:
            self._states = end.value
            return True
        return False

    def finite(self) -> Iterator[tuple[Document, Tensor]]:
        """Each document with its encoder states [tokens, hidden], but for those that are no numbers."""
        fine = torch.stack([torch.isfinite(states_NE).all() for states_NE in self._states]).tolist()
        for document, states_NE, is_finite in zip(self.documents, self._states, fine, strict=True):
            if is_finite:
                yield document, states_NE

    def close(self) -> None:
        """Give back the activations."""
        self._steps.close()
        self._states = []

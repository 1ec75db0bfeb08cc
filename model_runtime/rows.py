"""The decodes in flight: a block of rows that advance together, entering and leaving at any step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cache import EncodedKeys
from .decoder import Step

if TYPE_CHECKING:
    from .model import T5Gemma2


class Groups(list[tuple[EncodedKeys, Tensor]]):
    """Each document with the rows that read it; a list that a plan made for it can refer to without keeping it."""


class Rows:
    """Row r reads `documents[r]` and has used `lengths[r]` positions of its own keys.

    Rows in use always stand side by side from 0 on, so a step is one batch without gaps.
    """

    def __init__(self, model: T5Gemma2) -> None:
        self._model = model
        self._own = model.own_keys()
        self._documents: list[EncodedKeys] = []
        self._lengths: list[int] = []
        self._groups: Groups | None = None
        # `_lengths` on the device, as long as no row enters or leaves: a step then waits for no copy.
        self._positions_R: Tensor | None = None

    def __len__(self) -> int:
        return len(self._documents)

    @torch.inference_mode()
    def enter(self, fresh: Sequence[tuple[EncodedKeys, Sequence[int]]], capacity: int = 0) -> Tensor:
        """Append a row per (document, prefix); the hidden states after BOS and prefix, [rows, hidden].

        `capacity`: positions the longest of these rows will use, BOS, prefix and output together.
        """
        model, first = self._model, len(self)
        prefixes = [[model.config.bos_id, *prefix] for _, prefix in fresh]
        lengths = [len(prefix) for prefix in prefixes]
        places = max(lengths)
        self._own.reserve(first + len(fresh), max(places, capacity))
        padded = [prefix + [model.config.pad_id] * (places - len(prefix)) for prefix in prefixes]
        ids_RP = torch.tensor(padded, device=model.device)
        positions_RP = torch.arange(places, device=model.device).expand_as(ids_RP)
        documents = [document for document, _ in fresh]
        step = Step(
            groups=_group(documents),
            own=self._own,
            rows=slice(first, first + len(fresh)),
            lengths=lengths,
            prefill=True,
        )
        hidden_RPE = model.decode(model.embed(ids_RP), positions_RP, step)
        self._documents += documents
        self._lengths += lengths
        self._groups = self._positions_R = None
        last = torch.tensor(lengths, device=model.device) - 1
        return hidden_RPE[torch.arange(len(fresh), device=model.device), last]

    @torch.inference_mode()
    def advance(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """Feed each row its newest token (int64 [rows] when on the device); the hidden states after it, [rows, hidden].

        A failed call changes nothing that another one would not write again.
        """
        model = self._model
        if self._groups is None:
            self._groups = _group(self._documents)
        if self._positions_R is None:
            self._positions_R = torch.tensor(self._lengths, device=model.device)
        lengths = [length + 1 for length in self._lengths]
        step = Step(groups=self._groups, own=self._own, rows=slice(0, len(self)), lengths=lengths, prefill=False)
        ids_R = tokens if isinstance(tokens, Tensor) else torch.tensor(tokens, device=model.device)
        hidden_R1E = model.decode(model.embed(ids_R.unsqueeze(-1)), self._positions_R.unsqueeze(-1), step)
        self._lengths, self._positions_R = lengths, self._positions_R + 1
        return hidden_R1E[:, 0]

    @torch.inference_mode()
    def leave(self, row: int, wipe: bool = False) -> int:
        """Drop a row: the last row takes its place. Returns the index that moved (`row` itself when it was last).

        `wipe`: its keys may hold what is no number, which even a masked place would pass on to the next row there.
        """
        last = len(self) - 1
        if wipe:
            self._own.wipe(row)
        if row != last:
            self._own.move(last, row)
            self._documents[row], self._lengths[row] = self._documents[last], self._lengths[last]
        self._documents.pop()
        self._lengths.pop()
        self._groups = self._positions_R = None
        return last

    def clear(self) -> None:
        """Drop all rows and give their memory back."""
        self._documents, self._lengths = [], []
        self._groups = self._positions_R = None
        self._own.release()


def _group(documents: Sequence[EncodedKeys]) -> Groups:
    members: dict[int, tuple[EncodedKeys, list[int]]] = {}
    for row, document in enumerate(documents):
        members.setdefault(id(document), (document, []))[1].append(row)
    return Groups((document, torch.tensor(rows)) for document, rows in members.values())

"""Native as a peer: the engine that `load_backend` gives, end-of-sequence put out of its reach."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...errors import ModelError
from ...load import load_backend
from ...types import Decode, EngineConfig, EngineStats, Request, Sampling
from .types import Ask, PeerConfig, PeerMissing, Produced

# Token ids are accepted beyond the vocabulary, where nothing can produce them.
_NEVER = (1 << 24) - 1


class NativePeer:
    """See `Peer`."""

    backend_name = "native"

    def __init__(self, backend: Any, max_decodes: int) -> None:
        self._backend = backend
        self._max_decodes = max_decodes
        self._held: np.ndarray | None = None
        self._states: list[Any] = []
        self._runs = 0

    @classmethod
    def prepare(cls, config: PeerConfig) -> None:
        """Nothing to make."""

    @classmethod
    def load(cls, config: PeerConfig) -> NativePeer:
        """The engine with its own defaults; PeerMissing when it refuses the dtype or the model."""
        with TemporaryDirectory() as folder:
            _without_eos(config.model, Path(folder))
            engine = EngineConfig(
                model=folder,
                backend=cls.backend_name,
                device=config.device,
                dtype=config.dtype,
                threads=config.threads if config.device == "cpu" else None,
            )
            if config.max_decodes is not None:
                engine = dataclasses.replace(engine, max_decodes=config.max_decodes)
            try:
                backend = load_backend(engine)
            except (ModelError, ValueError) as error:
                raise PeerMissing(f"{cls.backend_name} refuses {config.dtype}: {error}") from error
        return cls(backend, engine.max_decodes)

    def encode(self, documents: Sequence[np.ndarray]) -> None:
        """One packed call."""
        model = self._backend.model
        self._states = model.encode([Request(id=str(i), input_ids=ids, decodes=()) for i, ids in enumerate(documents)])
        _synchronize(model.device)

    def encoded(self) -> list[np.ndarray]:
        """See `Peer`."""
        states, self._states = self._states, []
        return [states_NE.float().cpu().numpy() for states_NE in states]

    def run(self, asks: Sequence[Ask], max_tokens: int) -> Produced:
        """Submit everything and step until it has come out."""
        self._runs += 1
        before = self._backend.stats
        for number, ask in enumerate(asks):
            self._backend.submit(self._request(number, ask, max_tokens))
        tokens: list[list[tuple[int, ...]]] = [[()] * len(ask.prefixes) for ask in asks]
        missing = sum(len(ask.prefixes) for ask in asks)
        first: tuple[float, float] | None = None
        while missing:
            for generation in self._backend.step():
                if generation.error is not None:
                    raise generation.error
                _, document, task = generation.key.split("/")
                tokens[int(document)][int(task)] = generation.token_ids
                missing -= 1
            # The step that takes the last document in may advance it too: what counts as later begins behind it.
            if first is None and self._taken_in(before, len(asks)):
                first = time.perf_counter(), self._busy()
        ended, after = time.perf_counter(), self._backend.stats
        started, busy = first or (ended, self._busy())
        steps = after.steps - before.steps
        advanced = after.occupancy * after.steps - before.occupancy * before.steps
        return Produced(
            tokens=tokens,
            later_tokens=round(self._busy() - busy),
            later_seconds=ended - started,
            extra={"occupancy": advanced / steps if steps else 0.0, "steps": float(steps)},
        )

    def first_logits(self, ask: Ask) -> np.ndarray:
        """See `Peer`."""
        [rows] = self._backend.model.first_logits([self._request(0, ask, 1)])
        return np.stack([row.float().cpu().numpy() for row in rows])

    def hold(self, ids: np.ndarray) -> None:
        """Remembered only: the engine encodes it with its decodes."""
        self._held = ids

    def decode(self, prefixes: Sequence[tuple[int, ...]], max_tokens: int) -> Produced:
        """Run the held document."""
        assert self._held is not None, "hold a document first"
        return self.run([Ask(ids=self._held, prefixes=tuple(prefixes))], max_tokens)

    def _taken_in(self, before: EngineStats, documents: int) -> bool:
        """Whether all documents since `before` have been encoded, and decoding has begun."""
        stats = self._backend.stats
        return stats.steps > before.steps and stats.encodes == before.encodes + documents

    def _busy(self) -> float:
        """Rows advanced since loading: the tokens made by decoding steps."""
        stats = self._backend.stats
        return stats.occupancy * stats.steps * self._max_decodes

    def _request(self, number: int, ask: Ask, max_tokens: int) -> Request:
        sampling = Sampling(max_tokens=max_tokens)
        decodes = tuple(
            Decode(key=f"{self._runs}/{number}/{task}", prefix_ids=prefix, sampling=sampling)
            for task, prefix in enumerate(ask.prefixes)
        )
        return Request(id=str(number), input_ids=ask.ids, decodes=decodes)


def _without_eos(model: Path, folder: Path) -> None:
    """The same model in `folder`, by links, with an end-of-sequence id that no model produces."""
    for path in model.iterdir():
        if path.name not in ("config.json", "generation_config.json"):
            (folder / path.name).symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["decoder"]["eos_token_id"] = _NEVER
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _synchronize(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)

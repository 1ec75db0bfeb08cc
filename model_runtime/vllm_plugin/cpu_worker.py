"""vLLM's CPU worker, in which seeded requests can be computed in chunks."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.cpu_worker import CPUWorker


class T5Gemma2CpuWorker(CPUWorker):
    """See SeededStreams; nothing else is changed."""

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """As vLLM's, which may make the runner's batch anew here."""
        super().initialize_from_config(kv_cache_config)
        # vLLM's newer runner has another batch, and no generators.
        batch: Any = getattr(self.model_runner, "input_batch", None)
        if isinstance(getattr(batch, "generators", None), dict):
            batch.generators = SeededStreams(batch)


class SeededStreams(dict[int, Any]):
    """vLLM's generators of seeded requests by row, such that a CPU's can be set back.

    After a chunk that does not end a prompt vLLM takes back the number that was drawn for nothing, by the generator's
    offset, which a CPU's has not: the engine would end. Here the stream is begun anew and drawn to where it was.
    """

    def __init__(self, batch: Any) -> None:
        super().__init__(batch.generators)
        self._batch = batch

    def get(self, row: int, default: Any = None) -> Any:
        """The generator of a row, as one that can be set back."""
        found = super().get(row)
        return default if found is None else _Stream(found, len(self._batch.req_output_token_ids[row] or ()))

    def __setitem__(self, row: int, generator: Any) -> None:
        super().__setitem__(row, generator.generator if isinstance(generator, _Stream) else generator)


class _Stream:
    """A CPU generator from which `tokens` numbers are used, and one has been drawn too many."""

    def __init__(self, generator: torch.Generator, tokens: int) -> None:
        self.generator = generator
        self._tokens = tokens

    def get_offset(self) -> int:
        """Of no meaning here."""
        return 0

    def set_offset(self, _: int) -> None:
        """To behind the last number that is used; the CPU's sampler draws one for each token."""
        self.generator.manual_seed(self.generator.initial_seed())
        for _token in range(self._tokens):
            torch.randint(0, 2**31, (1,), generator=self.generator)

"""The encoder inside vLLM's model: packs, and a count of what was encoded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..encoder import Encoder
from ..packing import encode_packed
from ..types import Request

# Documents are packed up to so many tokens in a pass; a longer one has a pass of its own.
_PACK_TOKENS = 8192


@dataclass(slots=True)
class Counts:
    """What this process has encoded since it loaded the model."""

    encodes: int = 0
    encoder_tokens: int = 0
    passes: int = 0
    # On CUDA the time to launch the work: nobody waits for it here.
    encode_seconds: float = 0.0


class EncoderHalf(nn.Module):
    """The encoder with its tower and embedding, by the names that checkpoints give them."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.model = model
        self.encoder = Encoder(model)
        self.counts = Counts()
        self._layers: Any = self.encoder

    def choose_kernels(self) -> None:
        """Take the fast kernels of this device where it has them; once the weights are there."""
        weight = self.encoder.norm.weight
        if weight.is_cuda:
            from ..cuda.alone import checked_encoder

            self._layers = checked_encoder(self.encoder, self.model) or self.encoder
            return
        from ..cpu.weights import usable

        if usable(self.model, weight.dtype, weight.device):
            from ..cpu.encoder import CpuEncoder

            # It packs the layers' weights for itself and takes them from the plain modules.
            self._layers = CpuEncoder(self.encoder, int8=False)

    @torch.inference_mode()
    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        """Encoder states [tokens, hidden] of each document, in memory of its own."""
        started = time.perf_counter()
        out: list[Tensor] = []
        for pack in _packs(requests):
            # Clones: a slice would keep its whole pack alive for as long as one document is cached.
            states = self._run(pack)
            self.counts.passes += 1
            if len(pack) > 1 and not all(bool(one.isfinite().all()) for one in states):
                # One of them is not finite, and has taken its neighbours along: each alone.
                out += [self._run([one])[0] for one in pack]
                self.counts.passes += len(pack)
                continue
            out += [one.clone() for one in states] if len(states) > 1 else states
        self.counts.encodes += len(requests)
        self.counts.encoder_tokens += sum(len(states) for states in out)
        self.counts.encode_seconds += time.perf_counter() - started
        return out

    def counted(self) -> dict[str, float]:
        """The counts so far, by name."""
        return asdict(self.counts)

    def _run(self, pack: Sequence[Request]) -> list[Tensor]:
        steps = encode_packed(self.encoder, self._layers.steps, self.model, pack)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value


def _packs(requests: Sequence[Request]) -> Iterator[list[Request]]:
    pack: list[Request] = []
    tokens = 0
    for request in requests:
        if pack and tokens + len(request.input_ids) > _PACK_TOKENS:
            yield pack
            pack, tokens = [], 0
        pack.append(request)
        tokens += len(request.input_ids)
    if pack:
        yield pack

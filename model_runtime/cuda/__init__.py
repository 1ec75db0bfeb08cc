"""The CUDA path: torch's packed FlashAttention over pooled keys, fused products, compiled norms, graphs for steps.

Nothing here is imported on a CPU. Each part is tried on the device at load, and left out, with a line in the log, where
it fails or differs; without the attention kernel the plain modules run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import TextConfig
from ..errors import ModelError
from ..layers import Block
from .check import whole_path_differs
from .decoder import CudaDecoder
from .encoder import CudaEncoder
from .graphs import StepGraphs, cuda_capture
from .own import CudaOwnKeys
from .pointwise import Pointwise
from .select import check_pointwise, checked_varlen, first_that_works
from .varlen import Varlen
from .weights import FusedBlock

if TYPE_CHECKING:
    from ..model import T5Gemma2

_log = logging.getLogger(__name__)
# Environment variables that leave parts out when set to off: all of it, the graphs, torch.compile.
SWITCH, GRAPHS, COMPILE = "CORPUSMILL_CUDA_KERNELS", "CORPUSMILL_CUDA_GRAPHS", "CORPUSMILL_CUDA_COMPILE"


class CudaPath:
    """Both halves and the head of one model; the plain modules stay usable and share its weights."""

    def __init__(
        self, model: T5Gemma2, varlen: Varlen, do: Pointwise, graphs: StepGraphs | None, blocks_wanted: int
    ) -> None:
        encoder, decoder = model.encoder, model.decoder
        self._halves = halves = [
            [FusedBlock(block, half.config) for block in cast(Iterator[Block], iter(half.layers))]
            for half in (encoder, decoder)
        ]
        self.encoder = CudaEncoder(encoder, halves[0], varlen, do)
        self.decoder = CudaDecoder(decoder, halves[1], varlen, do, graphs, blocks_wanted)
        self._embedding, self._softcap = encoder.embed_tokens, model.config.decoder.logit_softcap
        self._do, self._graphs, self._int8 = do, graphs, False

    def greedy(self, hidden_RE: Tensor) -> tuple[Tensor, Tensor]:
        """See `T5Gemma2.greedy`."""
        return self._do.best(F.linear(hidden_RE, self._embedding.weight), self._softcap)

    def own_keys(self) -> CudaOwnKeys:
        """Room for decodes' own keys, as this decoder reads it."""
        return self.decoder.own_keys()

    def quantize(self) -> None:
        """Keep the layers' weights in 8 bits from now on; the plain modules lose theirs. The head stays as it is."""
        for block in (block for half in self._halves for block in half):
            block.quantize()
        self._int8 = True

    def report(self) -> dict[str, str]:
        """What runs: for benchmarks and logs."""
        graphs = self._graphs
        return {
            "attention": "varlen_attn",
            "pointwise": "torch.compile" if self._do.compiled else "plain",
            "weights": "int8" if self._int8 else "bfloat16",
            "graphs": "off" if graphs is None or not graphs.enabled else f"{graphs.captured} captured",
        }


def cuda_path(model: T5Gemma2, int8: bool = False) -> CudaPath | None:
    """`checked_path`, with its weights in 8 bits if asked for; ModelError when that cannot be had."""
    path = checked_path(model)
    if int8:
        if path is None:
            raise ModelError("dtype int8 needs the CUDA kernels, which do not run here; choose bfloat16")
        with torch.inference_mode():
            path.quantize()
    return path


def checked_path(model: T5Gemma2) -> CudaPath | None:
    """The fast path for a model on a CUDA device, once its parts and then the whole have been checked, or None."""
    config, device, dtype = model.config, model.device, model.dtype
    if off(SWITCH):
        return None
    if dtype != torch.bfloat16:
        # FlashAttention knows 16-bit numbers only.
        return None
    if not same_sizes(model):
        _log.warning("CUDA kernels are left out: the halves' heads differ")
        return None
    with torch.inference_mode():
        varlen = first_that_works(
            "attention on CUDA",
            [("varlen_attn", lambda: checked_varlen(Varlen.of_torch, config.decoder, dtype, device))],
        )
        if varlen is None:
            return None
        do = pointwise_for(config.decoder, dtype, device)
        blocks = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    # With all there is, then with less: one part that is wrong must not cost the others.
    plain = Pointwise(config.decoder, compiled=False)
    choices = [(not off(GRAPHS), do), (False, do), (False, plain)]
    for with_graphs, functions in dict.fromkeys(choices):
        graphs = StepGraphs(partial(cuda_capture, device)) if with_graphs else None
        with torch.inference_mode():
            path = CudaPath(model, varlen[1], functions, graphs, blocks)
        reason = whole_path_differs(model, path)
        if reason is None:
            _log.info("CUDA kernels: %s", path.report())
            return path
        _log.warning("CUDA kernels (%s) are left out: %s", path.report(), reason)
    return None


def same_sizes(model: T5Gemma2) -> bool:
    """Whether both halves share what one set of compiled functions is made for."""
    names = ("num_heads", "num_kv_heads", "head_dim", "norm_eps", "activation")
    halves = model.config.encoder, model.config.decoder
    return all(getattr(halves[0], name) == getattr(halves[1], name) for name in names)


def pointwise_for(config: TextConfig, dtype: torch.dtype, device: torch.device) -> Pointwise:
    """The functions between a half's products: compiled where that works on this device, else plain."""

    def compiled() -> Pointwise:
        do = Pointwise(config, compiled=True)
        check_pointwise(do, config, dtype, device)
        return do

    if not off(COMPILE):
        made = first_that_works("norms, rotary positions and gates on CUDA", [("torch.compile", compiled)])
        if made is not None:
            return made[1]
    return Pointwise(config, compiled=False)


def off(name: str) -> bool:
    """Whether an environment variable leaves its part out."""
    return os.environ.get(name, "").lower() in ("off", "0", "false")

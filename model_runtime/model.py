"""T5Gemma2: the two halves with their weights on one device, and what the engine asks of them."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .cache import EncodedKeys, OwnKeys
from .checkpoint import check_tensors, load_tensors, weights_dtype
from .config import ModelConfig
from .decoder import Decoder, Step, lm_logits
from .encoder import Encoder
from .errors import ModelError
from .packing import encode_packed
from .types import Request

if TYPE_CHECKING:
    from .cpu import CpuPath
    from .cuda import CudaPath

_log = logging.getLogger(__name__)


class T5Gemma2(nn.Module):
    """Encoder, decoder and shared embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.tied:
            raise ModelError("config.json has tie_word_embeddings false; T5Gemma 2 shares one embedding")
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self._fast: CpuPath | CudaPath | None = None
        self.precision = ""  # what it computes in, by name: float32, bfloat16 or int8

    @classmethod
    def load(cls, folder: Path, device: str = "auto", dtype: str = "auto") -> T5Gemma2:
        """The model of a checkpoint folder on `device`; ModelError names what cannot be used.

        Built without memory first, then each tensor is put where it belongs as it is read.
        """
        config = ModelConfig.load(folder)
        if config.encoder.attention_softcap or config.decoder.attention_softcap:
            # transformers stores the value and never applies it, so weights were trained without it.
            _log.warning("%s sets attn_logit_softcapping, which T5Gemma 2 ignores, as in transformers", folder)
        where = choose_device(device)
        kind = torch.bfloat16 if dtype == "int8" else choose_dtype(dtype, folder, where)
        with torch.device("meta"):
            model = cls(config)
        for name, tensor in load_tensors(folder, cls.expected_tensors(config), config.tied):
            _assign(model, name, tensor.to(device=where, dtype=kind))
        model = model.eval().requires_grad_(False)
        if where.type == "cuda":
            from .cuda import cuda_path

            model._fast = cuda_path(model, int8=dtype == "int8")
        else:
            model._fast = _cpu_path(model, where, kind, int8=dtype == "int8")
        model.precision = dtype if dtype == "int8" else str(kind).removeprefix("torch.")
        return model

    @classmethod
    def expected_tensors(cls, config: ModelConfig) -> dict[str, torch.Size]:
        """Canonical name and shape of every tensor that a checkpoint of this config holds."""
        with torch.device("meta"):
            return {name: parameter.shape for name, parameter in cls(config).named_parameters()}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights and activations are computed in."""
        return self.encoder.norm.weight.dtype

    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        """Encoder states [tokens, hidden] of each document, all documents packed into one pass."""
        steps = self.encode_steps(requests)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def encode_steps(self, requests: Sequence[Request]) -> Generator[None, None, list[Tensor]]:
        """`encode`, a layer at a time: yields whenever other work may be done; returns what `encode` returns."""
        layers = (self._fast.encoder if self._fast else self.encoder).steps
        return encode_packed(self.encoder, layers, self.config, requests)

    @torch.inference_mode()
    def document_keys(self, states_NE: Tensor) -> EncodedKeys:
        """The decoder's keys and values over one document, computed once for all its decodes."""
        return (self._fast.decoder if self._fast else self.decoder).document_keys(states_NE)

    def decode(self, x_RPE: Tensor, positions_RP: Tensor, step: Step) -> Tensor:
        """One decoder pass: embedded tokens [R, P, hidden] at positions [R, P] → hidden states, same shape."""
        return (self._fast.decoder if self._fast else self.decoder).forward(x_RPE, positions_RP, step)

    @torch.inference_mode()
    def greedy(self, hidden_RE: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's most likely next token, int64 [R], and its log-probability, float32 [R].

        The log-probability is NaN or −∞ where the logits are not finite.
        """
        if self._fast:
            return self._fast.greedy(hidden_RE)
        logits_RV = self.logits(hidden_RE)
        best = logits_RV.argmax(dim=-1)
        return best, logits_RV.gather(-1, best.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits_RV, dim=-1)

    def own_keys(self) -> OwnKeys:
        """Room for decodes' own keys, as `decode` reads it."""
        own_keys = getattr(self._fast, "own_keys", None)
        return own_keys() if own_keys else OwnKeys(self.config.decoder, self.dtype, self.device)

    def use_path(self, path: CpuPath | CudaPath | None) -> CpuPath | CudaPath | None:
        """Compute with `path` from now on, or with the plain modules (None); returns what it was until now."""
        before, self._fast = self._fast, path
        return before

    @property
    def kernels(self) -> dict[str, str]:
        """Which fast kernels run, by what they do; empty when the plain modules run."""
        report = getattr(self._fast, "report", None)
        return report() if report else {}

    def embed(self, ids: Tensor) -> Tensor:
        """int64 [...] → [..., hidden]."""
        return self.encoder.embed_tokens(ids)

    @torch.inference_mode()
    def logits(self, hidden_RE: Tensor) -> Tensor:
        """Next-token logits, float32 [R, vocabulary]."""
        if logits := getattr(self._fast, "logits", None):
            return logits(hidden_RE)
        return lm_logits(hidden_RE, self.encoder.embed_tokens.weight, self.config.decoder.logit_softcap)

    def first_logits(self, requests: Sequence[Request]) -> list[list[Tensor]]:
        """Float32 logits [vocabulary] after BOS and prefix, for each decode of each request."""
        from .rows import Rows

        rows = Rows(self)
        out = []
        for request, states in zip(requests, self.encode(requests), strict=True):
            keys = self.document_keys(states)
            hidden = rows.enter([(keys, list(decode.prefix_ids)) for decode in request.decodes])
            out.append(list(self.logits(hidden)))
            rows.clear()
        return out


def _cpu_path(model: T5Gemma2, device: torch.device, dtype: torch.dtype, int8: bool) -> CpuPath | None:
    from .cpu.weights import usable

    if not usable(model.config, dtype, device):
        if int8:
            raise ModelError("dtype int8 needs a CPU with AVX-512 BF16 and VNNI, and a C++ compiler; choose bfloat16")
        return None
    from .cpu import CpuPath

    return CpuPath(model.encoder, model.decoder, model.config, int8)


def check_checkpoint(folder: Path) -> None:
    """Compare the weight files' headers with config.json, reading no tensor; ModelError names what differs."""
    config = ModelConfig.load(folder)
    check_tensors(folder, T5Gemma2.expected_tensors(config), config.tied)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; ModelError when the named device is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} cannot be used here; choose auto or cpu") from error
    return device


def choose_dtype(name: str, folder: Path, device: torch.device) -> torch.dtype:
    """`auto` is the weights' own, but float32 on a CPU without bfloat16 arithmetic; float16 is never used."""
    match name:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "auto":
            stored = weights_dtype(folder)
            if stored == torch.float32 and device.type == "cpu":
                return torch.float32
            return torch.bfloat16 if device.type == "cuda" or _cpu_has_bfloat16() else torch.float32
        case "int8":
            raise ModelError("dtype int8 is the native backend's; choose auto, float32 or bfloat16")
        case _:
            raise ModelError(f"dtype {name!r} is not known; choose auto, float32, bfloat16 or int8")


def _cpu_has_bfloat16() -> bool:
    # Private, so looked up with a default: without an answer float32 is the safe choice.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(supported())


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))

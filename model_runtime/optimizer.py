"""AdamW with its learning rate's course, saved and taken up again without pickles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up to `peak`, then a cosine down to `final` × peak at step `steps`."""

    peak: float
    steps: int
    warmup: int
    final: float = 0.0

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.peak * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress)))


class Optimizer:
    """AdamW in float32 over named weights, gradients clipped by their global norm (Loshchilov and Hutter 2019).

    Weight decay is on matrices only: not on norms, biases and embeddings. The vision tower learns at `vision_rate` ×
    the learning rate.
    """

    def __init__(
        self,
        weights: dict[str, nn.Parameter],
        *,
        betas: tuple[float, float],
        weight_decay: float,
        clip: float,
        vision_rate: float = 1.0,
    ) -> None:
        self._weights = weights
        self._clip = clip
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, weight in weights.items():
            decay = weight_decay if weight.ndim >= 2 and "embed" not in name else 0.0
            share = vision_rate if "vision_tower." in name else 1.0
            groups.setdefault((decay, share), []).append(weight)
        self._adam = torch.optim.AdamW(
            [{"params": params, "weight_decay": decay, "share": share} for (decay, share), params in groups.items()],
            lr=0.0,
            betas=betas,
            fused=True,
        )

    def gradients(self) -> Iterator[Tensor]:
        """Every weight's gradient in the weights' order; zeros where a step did not touch one."""
        for weight in self._weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            yield weight.grad

    def update(self, rate: float) -> float:
        """Clip, update at learning rate `rate`, drop the gradients; the norm before clipping (if finite)."""
        for _ in self.gradients():
            pass
        norm = float(nn.utils.clip_grad_norm_(list(self._weights.values()), self._clip))
        if math.isfinite(norm):
            for group in self._adam.param_groups:
                group["lr"] = rate * group["share"]
            self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return norm

    def save(self, weights_file: Path, state_file: Path) -> None:
        """The trained weights, and both moments of each with the number of updates: safetensors, nothing pickled."""
        save_file({name: p.detach().contiguous().cpu() for name, p in self._weights.items()}, weights_file)
        state: dict[str, Tensor] = {}
        for name, weight in self._weights.items():
            for key, tensor in self._adam.state[weight].items():
                state[f"{key}.{name}"] = tensor.detach().contiguous().cpu()
        save_file(state, state_file)

    def load(self, weights_file: Path, state_file: Path) -> None:
        """Take up what `save` wrote; ModelError when it belongs to other weights."""
        weights = load_file(weights_file)
        if set(weights) != set(self._weights):
            odd = min(set(weights) ^ set(self._weights))
            raise ModelError(f"the checkpoint of the training run does not fit this model or method: {odd}")
        state = load_file(state_file)
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(weights[name])
                found = {key: state[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                moved = {key: t if key == "step" else t.to(weight.device) for key, t in found.items()}
                self._adam.state[weight] = {**moved, "step": moved["step"].to(weight.device)}

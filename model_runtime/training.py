"""Supervised fine-tuning of T5Gemma 2: loss, gradients and updates over transformers' model class; knows no Ray."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backends.transformers import load_model
from .batches import Batch, decoder_masks
from .config import ModelConfig
from .errors import ModelError
from .vision import normalise_pixels

# Logits of one piece of the loss: a vocabulary of 262,144 makes a gigabyte of every thousand labels.
_PIECE_LOGITS = 1 << 26
# The language model's own projections: the vision tower's bear the same names and must not match.
_LORA_TARGETS = re.compile(
    r"^model\.(encoder\.text_model|decoder)\.layers\.\d+\.(self_attn|mlp)\."
    r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$"
)
_COPIED = ("tokenizer*", "special_tokens_map.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What is trained and in which precision. `lora_rank` 0 trains the weights themselves.

    bfloat16 runs the matrix products so; weights that are trained and their optimizer state stay float32.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    lora_rank: int = 0
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    train_vision: bool = False
    gradient_checkpointing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One forward pass: `loss` is the sum over labels (differentiable); per example [E] its loss, labels, exactness.

    `exact`: every label was the likeliest token given the true ones before it, which is when greedy decoding makes it.
    """

    loss: Tensor
    example_loss: Tensor
    example_labels: Tensor
    exact: Tensor


class TrainingModel:
    """A checkpoint being trained: forward pass, loss, named trainable weights, and its way back into a folder."""

    def __init__(self, folder: Path, model: Any, config: ModelConfig, method: Method) -> None:
        self._folder = folder
        self._model = model
        self.config = config
        self._method = method
        self._window = config.decoder.window

    @classmethod
    def load(cls, folder: Path, method: Method, device: torch.device) -> TrainingModel:
        """Read a folder with transformers, freeze what is not trained; ModelError says what cannot be used."""
        config = ModelConfig.load(folder)
        base = torch.bfloat16 if method.lora_rank and method.precision == "bfloat16" else torch.float32
        model = load_model(folder, device, base)
        model.get_encoder().vision_tower.requires_grad_(method.train_vision)
        if method.lora_rank:
            model = _with_lora(model, method)
        if method.gradient_checkpointing:
            # Its new name, activation_checkpointing_enable, came after the oldest release that is supported.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        return cls(folder, model.train(), config, method)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self._model.parameters()).device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The weights that are trained, by name; tied ones once."""
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def scores(self, batch: Batch) -> Scores:
        """Encode each document once, decode all its examples from that; losses in float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._method.precision == "bfloat16"):
            hidden_NH = self._hidden(batch)
            loss_N, right_N = self._label_losses(hidden_NH, batch.labels)
        count = len(batch.example_task)
        at, zeros = batch.label_example, torch.zeros(count, device=loss_N.device)
        wrong_E = zeros.index_add(0, at, (~right_N).float())
        return Scores(
            loss=loss_N.sum(),
            example_loss=zeros.index_add(0, at, loss_N.detach()),
            example_labels=zeros.index_add(0, at, torch.ones_like(loss_N)),
            exact=wrong_E == 0,
        )

    def train(self, on: bool = True) -> None:
        """Dropout and gradient checkpointing on, or off."""
        self._model.train(on)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a Hugging Face folder: adapters merged, the base's tokenizer and image settings beside the weights."""
        model = self._model
        if self._method.lora_rank:
            model = model.merge_and_unload()
        folder.mkdir(parents=True, exist_ok=True)
        model.to(dtype).save_pretrained(folder)
        for pattern in _COPIED:
            for path in self._folder.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        _name_dtype(folder / "config.json", dtype)

    def _base(self) -> Any:
        return self._model.get_base_model() if self._method.lora_rank else self._model

    def _hidden(self, batch: Batch) -> Tensor:
        """The decoder's last states where there is a label, [N, H]."""
        model = self._base()
        pixels = batch.pixels
        if pixels is not None:
            pixels = normalise_pixels(pixels, self.config.image_mean, self.config.image_std, model.dtype)
        encoded = model.get_encoder()(
            input_ids=batch.input_ids, attention_mask=batch.input_mask, pixel_values=pixels
        ).last_hidden_state
        full, sliding, cross = decoder_masks(batch, self._window)
        states_BTH = model.get_decoder()(
            input_ids=batch.decoder_ids,
            attention_mask={"full_attention": full, "sliding_attention": sliding},
            position_ids=batch.positions,
            encoder_hidden_states=encoded,
            encoder_attention_mask={"full_attention": cross},
            use_cache=False,
        ).last_hidden_state
        return states_BTH.flatten(0, 1)[batch.label_at]

    def _label_losses(self, hidden_NH: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of each label, and whether it was the likeliest token; logits exist a piece at a time."""
        rows = max(1, _PIECE_LOGITS // self.config.decoder.vocab_size)
        whole = len(labels_N) <= rows
        losses, right = [], []
        for hidden, labels in zip(hidden_NH.split(rows), labels_N.split(rows)):
            if whole or not torch.is_grad_enabled():
                loss, hit = self._piece(hidden, labels)
            else:
                loss, hit = checkpoint(self._piece, hidden, labels, use_reentrant=False)
            losses.append(loss)
            right.append(hit)
        return torch.cat(losses), torch.cat(right)

    def _piece(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._base().lm_head(hidden).float()
        cap = self.config.decoder.logit_softcap
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return nn.functional.cross_entropy(logits, labels, reduction="none"), logits.detach().argmax(-1) == labels


def _with_lora(model: Any, method: Method) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError("LoRA needs peft: pip install 'corpusmill[finetune]'") from error
    targets = [name for name, _ in model.named_modules() if _LORA_TARGETS.match(name)]
    tuned: Any = get_peft_model(
        model,
        LoraConfig(
            r=method.lora_rank,
            lora_alpha=method.lora_alpha,
            lora_dropout=method.lora_dropout,
            target_modules=targets,
        ),
    )
    if method.train_vision:
        tuned.get_base_model().get_encoder().vision_tower.requires_grad_(True)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return tuned


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

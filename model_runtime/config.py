"""ModelConfig: every size and switch of a T5Gemma 2, read from a checkpoint's config.json.

Keys that a saved config leaves out take transformers' defaults: it writes only what differs from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelError
from .settings import Settings, image_settings_of, naming, read_json, settings_of, shown

ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "silu", "relu")
_KINDS = ("sliding_attention", "full_attention")
_LAYERS, _HEADS, _SIDE = 1024, 4096, 1 << 13
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions of one kind of layer: angle = position / factor / theta^(2i/head_dim)."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """One half (encoder or decoder). `sliding[i]` tells whether layer i looks through `window` only."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    activation: str
    max_positions: int
    norm_eps: float
    query_scale: float
    attention_bias: bool
    window: int
    sliding: tuple[bool, ...]
    rope_full: Rope
    rope_sliding: Rope
    logit_softcap: float | None
    attention_softcap: float | None

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The SigLIP tower."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    channels: int
    norm_eps: float
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A whole T5Gemma 2."""

    encoder: TextConfig
    decoder: TextConfig
    vision: VisionConfig
    tokens_per_image: int
    pad_id: int
    bos_id: int
    eos_ids: tuple[int, ...]
    boi_id: int
    eoi_id: int
    image_id: int
    tied: bool
    dtype: str | None
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    @property
    def max_input_tokens(self) -> int:
        """Longest encoder input, in tokens."""
        return self.encoder.max_positions

    @classmethod
    def load(cls, folder: Path) -> ModelConfig:
        """Read `folder`/config.json (and its image preprocessor's mean and std); ModelError names what is wrong."""
        document = read_json(folder / "config.json")
        if document is None:
            raise ModelError(f"{folder} has no config.json: not a model folder")
        with image_settings_of(folder) as images:
            mean, std = images.numbers("image_mean", _HALF), images.numbers("image_std", _HALF)
            if min(std) <= 0:
                raise images.wrong("image_std", "above 0 in each channel")
        with naming(folder / "config.json"):
            parsed = cls.parse(document, (mean, std))
        with settings_of(folder / "generation_config.json") as generation:
            eos = dict.fromkeys([*parsed.eos_ids, *generation.tokens("eos_token_id", ())])
        return dataclasses.replace(parsed, eos_ids=tuple(eos))

    @classmethod
    def parse(
        cls,
        config: Mapping[str, Any],
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] = (_HALF, _HALF),
    ) -> ModelConfig:
        """From a parsed config.json; ValueError names the key that cannot be used."""
        keys = Settings(config)
        if config.get("model_type") != "t5gemma2":
            raise ValueError(f"model_type is {shown(config.get('model_type'))}; corpusmill runs t5gemma2")
        encoder, decoder = keys.block("encoder"), keys.block("decoder")
        text, decoder_text = _text(encoder.block("text_config")), _text(decoder)
        _must_agree(text, decoder_text)
        vision = _vision(encoder.block("vision_config"))
        mean, std = normalisation
        return cls(
            encoder=text,
            decoder=decoder_text,
            vision=vision,
            tokens_per_image=_tokens_per_image(encoder, vision),
            pad_id=decoder.token("pad_token_id", 0, text.vocab_size),
            bos_id=decoder.token("bos_token_id", 2, text.vocab_size),
            eos_ids=decoder.tokens("eos_token_id", (1,)),
            boi_id=encoder.token("boi_token_index", 255_999, text.vocab_size),
            eoi_id=encoder.token("eoi_token_index", 256_000, text.vocab_size),
            image_id=keys.token("image_token_index", 256_001, text.vocab_size),
            tied=keys.flag("tie_word_embeddings", True),
            dtype=next((keys.text(name, "") for name in ("dtype", "torch_dtype") if keys.has(name)), None),
            image_mean=mean,
            image_std=std,
        )


def _text(keys: Settings) -> TextConfig:
    heads, kv_heads = keys.size("num_attention_heads", 8, _HEADS), keys.size("num_key_value_heads", 4, _HEADS)
    if heads % kv_heads:
        raise keys.wrong("num_key_value_heads", f"a divisor of the {heads} attention heads")
    head_dim = keys.size("head_dim", 256, _HEADS)
    if head_dim % 2:
        raise keys.wrong("head_dim", "even: rotary positions turn it by halves")
    sliding = _sliding(keys, keys.size("num_hidden_layers", 26, _LAYERS))
    # Without sliding layers the window may be null.
    window = keys.size("sliding_window", 4096) if any(sliding) or keys.has("sliding_window") else 1
    rope_full, rope_sliding = _ropes(keys)
    return TextConfig(
        vocab_size=keys.size("vocab_size", 262_208),
        hidden_size=keys.size("hidden_size", 2304),
        intermediate_size=keys.size("intermediate_size", 9216),
        num_layers=len(sliding),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        activation=keys.choice("hidden_activation", "gelu_pytorch_tanh", ACTIVATIONS),
        max_positions=keys.size("max_position_embeddings", 131_072),
        norm_eps=keys.positive("rms_norm_eps", 1e-6),
        query_scale=keys.positive("query_pre_attn_scalar", 256) ** -0.5,
        attention_bias=keys.flag("attention_bias", False),
        window=window,
        sliding=sliding,
        rope_full=rope_full,
        rope_sliding=rope_sliding,
        logit_softcap=_softcap(keys, "final_logit_softcapping"),
        attention_softcap=_softcap(keys, "attn_logit_softcapping"),
    )


def _sliding(keys: Settings, layers: int) -> tuple[bool, ...]:
    if not keys.has("layer_types"):
        pattern = keys.size("sliding_window_pattern", 6)
        return tuple(bool((i + 1) % pattern) for i in range(layers))
    kinds = keys.values["layer_types"]
    if not isinstance(kinds, list) or not all(kind in _KINDS for kind in kinds):
        raise keys.wrong("layer_types", f"a list of {' and '.join(_KINDS)}")
    if len(kinds) != layers:
        raise ValueError(f"{keys.name('layer_types')} names {len(kinds)} layers, num_hidden_layers says {layers}")
    return tuple(kind == "sliding_attention" for kind in kinds)


def _ropes(keys: Settings) -> tuple[Rope, Rope]:
    # New configs nest both under rope_parameters; old ones write rope_theta, rope_local_base_freq, rope_scaling.
    parameters = keys.block("rope_parameters")
    full, sliding = parameters.block("full_attention"), parameters.block("sliding_attention")
    if keys.has("rope_scaling"):
        full = keys.block("rope_scaling").over(full)
    return _rope(full, keys, "rope_theta", 1_000_000.0), _rope(sliding, keys, "rope_local_base_freq", 10_000.0)


def _rope(parameters: Settings, keys: Settings, old_name: str, theta: float) -> Rope:
    if "rope_theta" in parameters.values:
        theta = parameters.positive("rope_theta", None)
    else:
        theta = keys.positive(old_name, theta)
    kind = next((name for name in ("rope_type", "type") if parameters.has(name)), None)
    if kind is None or parameters.choice(kind, "default", ("default", "linear")) == "default":
        return Rope(theta=float(theta))
    return Rope(theta=float(theta), factor=float(parameters.positive("factor", None)))


def _vision(keys: Settings) -> VisionConfig:
    size, heads = keys.size("hidden_size", 768), keys.size("num_attention_heads", 12, _HEADS)
    if size % heads:
        raise keys.wrong("num_attention_heads", f"a divisor of the hidden size {size}")
    image, patch = _side(keys, "image_size", 224), _side(keys, "patch_size", 16)
    if image % patch:
        raise keys.wrong("image_size", f"a multiple of the patch size {patch}")
    if keys.size("num_channels", 3) != 3:
        raise keys.wrong("num_channels", "3: images are RGB")
    return VisionConfig(
        hidden_size=size,
        intermediate_size=keys.size("intermediate_size", 3072),
        num_layers=keys.size("num_hidden_layers", 12, _LAYERS),
        num_heads=heads,
        image_size=image,
        patch_size=patch,
        channels=3,
        norm_eps=keys.positive("layer_norm_eps", 1e-6),
        activation=keys.choice("hidden_act", "gelu_pytorch_tanh", ACTIVATIONS),
    )


def _side(keys: Settings, name: str, default: int) -> int:
    value = keys.values.get(name)
    if not isinstance(value, list):
        return keys.size(name, default, _SIDE)
    if len(value) != 2 or value[0] != value[1]:
        raise keys.wrong(name, "one number, or the same twice")
    return Settings({name: value[0]}, keys.where).size(name, default, _SIDE)


def _tokens_per_image(keys: Settings, vision: VisionConfig) -> int:
    """Soft tokens of an image: the patches are pooled in squares, so it is a square whose side divides the grid's."""
    tokens, grid = keys.size("mm_tokens_per_image", 256), vision.image_size // vision.patch_size
    side = math.isqrt(tokens)
    if side * side != tokens or grid % side:
        raise keys.wrong("mm_tokens_per_image", f"the square of a divisor of {grid}, the patches to an image's side")
    return tokens


def _softcap(keys: Settings, name: str) -> float | None:
    return keys.positive(name, None) if keys.has(name) else None


def _must_agree(encoder: TextConfig, decoder: TextConfig) -> None:
    for name in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(encoder, name), getattr(decoder, name)
        if ours != theirs:
            raise ValueError(f"{name} differs: encoder {ours}, decoder {theirs}; the two halves share it")

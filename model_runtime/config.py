"""ModelConfig: every size and switch of a T5Gemma 2, read from a checkpoint's config.json.

Keys that a saved config leaves out take transformers' defaults: it writes only what differs from them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelError

_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "silu", "relu")


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
        config = read_json(folder / "config.json")
        if config is None:
            raise ModelError(f"{folder} has no config.json: not a model folder")
        try:
            parsed = cls.parse(config, _image_normalisation(folder))
            generation = read_json(folder / "generation_config.json") or {}
            eos = dict.fromkeys([*parsed.eos_ids, *_ids(_or(generation.get("eos_token_id"), []))])
            return dataclasses.replace(parsed, eos_ids=tuple(eos))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{folder / 'config.json'}: {error}") from error

    @classmethod
    def parse(
        cls,
        config: Mapping[str, Any],
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] = ((0.5,) * 3, (0.5,) * 3),
    ) -> ModelConfig:
        """From a parsed config.json; ValueError names the key that cannot be used."""
        if config.get("model_type") != "t5gemma2":
            raise ValueError(f"model_type is {config.get('model_type')!r}; corpusmill runs t5gemma2")
        encoder = config.get("encoder") or {}
        decoder_keys = config.get("decoder") or {}
        text = _text(encoder.get("text_config") or {}, "encoder.text_config")
        decoder = _text(decoder_keys, "decoder")
        _must_agree(text, decoder)
        mean, std = normalisation
        return cls(
            encoder=text,
            decoder=decoder,
            vision=_vision(encoder.get("vision_config") or {}),
            tokens_per_image=encoder.get("mm_tokens_per_image", 256),
            pad_id=_or(decoder_keys.get("pad_token_id"), 0),
            bos_id=_or(decoder_keys.get("bos_token_id"), 2),
            eos_ids=_ids(_or(decoder_keys.get("eos_token_id"), 1)),
            boi_id=encoder.get("boi_token_index", 255_999),
            eoi_id=encoder.get("eoi_token_index", 256_000),
            image_id=config.get("image_token_index", 256_001),
            tied=config.get("tie_word_embeddings", True),
            dtype=config.get("dtype") or config.get("torch_dtype"),
            image_mean=mean,
            image_std=std,
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """The parsed file, or None when it is not there; ModelError when it is no JSON object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object")
    return document


def _text(keys: Mapping[str, Any], where: str) -> TextConfig:
    layers = keys.get("num_hidden_layers", 26)
    heads = keys.get("num_attention_heads", 8)
    kv_heads = keys.get("num_key_value_heads", 4)
    activation = keys.get("hidden_activation", "gelu_pytorch_tanh")
    sliding = _sliding(keys, layers, where)
    window = keys.get("sliding_window", 4096)
    if heads % kv_heads:
        raise ValueError(f"{where}: {heads} attention heads cannot share {kv_heads} key-value heads")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{where}.hidden_activation {activation!r} is not one of {', '.join(_ACTIVATIONS)}")
    if any(sliding) and (window is None or window < 1):
        raise ValueError(f"{where}.sliding_window is {window!r}, but there are sliding layers")
    rope_full, rope_sliding = _ropes(keys, where)
    return TextConfig(
        vocab_size=keys.get("vocab_size", 262_208),
        hidden_size=keys.get("hidden_size", 2304),
        intermediate_size=keys.get("intermediate_size", 9216),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=keys.get("head_dim", 256),
        activation=activation,
        max_positions=keys.get("max_position_embeddings", 131_072),
        norm_eps=keys.get("rms_norm_eps", 1e-6),
        query_scale=keys.get("query_pre_attn_scalar", 256) ** -0.5,
        attention_bias=keys.get("attention_bias", False),
        window=window or 1,
        sliding=sliding,
        rope_full=rope_full,
        rope_sliding=rope_sliding,
        logit_softcap=keys.get("final_logit_softcapping"),
        attention_softcap=keys.get("attn_logit_softcapping"),
    )


def _sliding(keys: Mapping[str, Any], layers: int, where: str) -> tuple[bool, ...]:
    kinds = keys.get("layer_types")
    if kinds is None:
        pattern = keys.get("sliding_window_pattern", 6)
        return tuple(bool((i + 1) % pattern) for i in range(layers))
    if len(kinds) != layers:
        raise ValueError(f"{where}.layer_types names {len(kinds)} layers, num_hidden_layers says {layers}")
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown:
        raise ValueError(f"{where}.layer_types holds the unknown kind {sorted(unknown)[0]!r}")
    return tuple(kind == "sliding_attention" for kind in kinds)


def _ropes(keys: Mapping[str, Any], where: str) -> tuple[Rope, Rope]:
    # New configs nest both under rope_parameters; old ones write rope_theta, rope_local_base_freq, rope_scaling.
    parameters = keys.get("rope_parameters") or {}
    full = dict(parameters.get("full_attention") or {}) | dict(keys.get("rope_scaling") or {})
    sliding = dict(parameters.get("sliding_attention") or {})
    full.setdefault("rope_theta", keys.get("rope_theta", 1_000_000.0))
    sliding.setdefault("rope_theta", keys.get("rope_local_base_freq", 10_000.0))
    return _rope(full, f"{where} full_attention"), _rope(sliding, f"{where} sliding_attention")


def _rope(parameters: Mapping[str, Any], where: str) -> Rope:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in ("default", "linear"):
        raise ValueError(f"{where}: rope_type {kind!r} is not supported; default and linear are")
    factor = float(parameters["factor"]) if kind == "linear" else 1.0
    return Rope(theta=float(parameters["rope_theta"]), factor=factor)


def _vision(keys: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        hidden_size=keys.get("hidden_size", 768),
        intermediate_size=keys.get("intermediate_size", 3072),
        num_layers=keys.get("num_hidden_layers", 12),
        num_heads=keys.get("num_attention_heads", 12),
        image_size=_side(keys.get("image_size", 224), "image_size"),
        patch_size=_side(keys.get("patch_size", 16), "patch_size"),
        channels=keys.get("num_channels", 3),
        norm_eps=keys.get("layer_norm_eps", 1e-6),
        activation=keys.get("hidden_act", "gelu_pytorch_tanh"),
    )


def _side(value: int | list[int], name: str) -> int:
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"vision_config.{name} {value} is not square")
    return value[0]


def _must_agree(encoder: TextConfig, decoder: TextConfig) -> None:
    for name in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(encoder, name), getattr(decoder, name)
        if ours != theirs:
            raise ValueError(f"{name} differs: encoder {ours}, decoder {theirs}; the two halves share it")


def _image_normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    settings = read_json(folder / "preprocessor_config.json")
    if settings is None:
        settings = (read_json(folder / "processor_config.json") or {}).get("image_processor") or {}
    mean, std = settings.get("image_mean") or [0.5] * 3, settings.get("image_std") or [0.5] * 3
    return tuple(map(float, mean)), tuple(map(float, std))


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _ids(value: int | list[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
